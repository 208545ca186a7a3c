//! openclaw-b2-backup 0.1.x as far as it writes: what it left in buckets is made here anew, from its description.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use openclaw_b2_backup::repository::id::hex;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Bench;

/// One installation, which remembers its last manifest as 0.1.x did.
pub struct OldPlugin {
    root: PathBuf,
    state_dir: PathBuf,
    key: String,
    encrypt: bool,
    previous: BTreeMap<String, String>,
}

impl OldPlugin {
    /// On the state directory and repository of `bench`.
    pub fn of(bench: &Bench) -> Self {
        Self {
            root: bench.repository(),
            state_dir: bench.target.state_dir.clone(),
            key: bench.target.application_key.as_ref().unwrap().expose().into(),
            encrypt: true,
            previous: BTreeMap::new(),
        }
    }

    /// With `encrypt` as its configuration has it.
    pub fn encrypting(self, encrypt: bool) -> Self {
        Self { encrypt, ..self }
    }

    /// Takes a snapshot into the folder `id`: objects for what has changed, and a manifest of everything.
    pub fn push(&mut self, id: &str) {
        let mut files = serde_json::Map::new();
        let mut hashes = BTreeMap::new();
        for path in self.gather() {
            let content = self.read(&path);
            let hash = sha256(&content);
            // Its sizes are of the live file, also for databases, of which a copy is stored.
            let size = fs::metadata(self.state_dir.join(&path)).unwrap().len();
            files.insert(path.clone(), json!({ "hash": hash, "size": size }));
            if self.previous.get(&path) != Some(&hash) {
                self.put(&format!("{id}/{path}"), &content);
            }
            hashes.insert(path, hash);
        }
        // Safety snapshots do not change what it remembers.
        if !id.starts_with("safety-") {
            self.previous = hashes;
        }
        let manifest = json!({ "version": 1, "timestamp": "2026-01-01T00:00:00.000Z", "files": files });
        self.put_raw(&format!("{id}/manifest.json"), serde_json::to_string_pretty(&manifest).unwrap().as_bytes());
    }

    /// Removes a folder, as its retention does with the oldest ones.
    pub fn prune(&self, id: &str) {
        fs::remove_dir_all(self.root.join(id)).unwrap();
    }

    /// Stores an object as a file's content is stored.
    pub fn put(&self, key: &str, content: &[u8]) {
        let body = if self.encrypt { encrypt(content, &self.key) } else { content.to_vec() };
        self.put_raw(key, &body);
    }

    pub fn put_raw(&self, key: &str, body: &[u8]) {
        let path = self.root.join(key);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, body).unwrap();
    }

    /// What its include and exclude patterns let through: regular files alone.
    fn gather(&self) -> Vec<String> {
        let walk = walkdir::WalkDir::new(&self.state_dir).min_depth(1).into_iter().map(Result::unwrap);
        let files = walk.filter(|entry| entry.file_type().is_file());
        let paths = files.map(|entry| entry.path().strip_prefix(&self.state_dir).unwrap().to_str().unwrap().to_owned());
        let mut paths: Vec<String> = paths.filter(|path| gathers(path)).collect();
        paths.sort();
        paths
    }

    /// Databases go through SQLite's backup API, which copies pages as they are.
    fn read(&self, path: &str) -> Vec<u8> {
        let path = self.state_dir.join(path);
        if path.extension().is_none_or(|extension| extension != "sqlite") {
            return fs::read(path).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        let source = rusqlite::Connection::open(&path).unwrap();
        let mut target = rusqlite::Connection::open(&copy).unwrap();
        rusqlite::backup::Backup::new(&source, &mut target).unwrap().step(-1).unwrap();
        drop(target);
        fs::read(copy).unwrap()
    }
}

fn gathers(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').collect();
    let has_end = |ends: &[&str]| ends.iter().any(|end| path.ends_with(end));
    let kept = match segments[..] {
        [name] => name == "openclaw.json" || name.starts_with("openclaw.json.bak"),
        ["agents", _, "sessions", name] => has_end(&[".jsonl"]) || name == "sessions.json",
        ["agents", _, "memory", _] => has_end(&[".sqlite"]),
        ["agents", _, "agent", ..] | ["workspace" | "cron" | "hooks", ..] => true,
        [folder, ..] => folder.starts_with("workspace-"),
        [] => false,
    };
    kept && !has_end(&["/auth-profiles.json", ".lock", ".tmp", "-wal", "-shm", ".DS_Store"])
}

/// As manifests have it.
pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// Magic, salt, nonce, tag, ciphertext.
pub fn encrypt(content: &[u8], application_key: &str) -> Vec<u8> {
    // Random in 0.1.x; here one of a few salts, so that tests need not wait for scrypt each time.
    let hash = Sha256::digest(content);
    let (salt, nonce) = ([hash[31] % 4; 32], <[u8; 12]>::try_from(&hash[..12]).unwrap());
    let key = derive(application_key, salt);
    let mut body = content.to_vec();
    let cipher = Aes256Gcm::new(&key.into());
    let tag = cipher.encrypt_inout_detached(&Nonce::from(nonce), b"", body.as_mut_slice().into()).unwrap();
    [&b"B2EN"[..], &salt, &nonce, &tag, &body].concat()
}

/// By application key and salt.
type Keys = BTreeMap<(String, [u8; 32]), [u8; 32]>;

fn derive(application_key: &str, salt: [u8; 32]) -> [u8; 32] {
    static KEYS: Mutex<Keys> = Mutex::new(Keys::new());
    *KEYS.lock().unwrap().entry((application_key.to_owned(), salt)).or_insert_with(|| {
        let mut key = [0; 32];
        scrypt::scrypt(application_key.as_bytes(), &salt, &scrypt::Params::new(14, 8, 1).unwrap(), &mut key).unwrap();
        key
    })
}
