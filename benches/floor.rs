//! What a first push cannot do without, each alone: reading the state, one SHA-256 pass, one zstd pass at the repository's
//! level, one AES-256-GCM pass over what that gives, and uploading that many bytes to the same server.
//!
//! `cargo bench --bench floor -- <configuration file> <state directory>`; `npm run bench -- --floor` does it after a run,
//! against that run's server. The passes run on one core; a push may spread them over all, and upload meanwhile.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use bytes::Bytes;
use openclaw_b2_backup::config::{Resolve, resolve};
use openclaw_b2_backup::repository::pack::{Compressor, FRAME_TARGET, PACK_TARGET};
use openclaw_b2_backup::store::{SharedStore, open};
use sha2::{Digest, Sha256};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What a snapshot of the benchmark's state leaves out.
const EXCLUDED: [&str; 3] = ["b2-backup", "credentials", "media"];
/// As many as a push has under way.
const PARALLEL_UPLOADS: usize = 3;

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    // `cargo bench` adds `--bench`, and runs every benchmark when none is named.
    let [config, state] = arguments.iter().filter(|argument| !argument.starts_with("--bench")).collect::<Vec<_>>()[..]
    else {
        println!("floor: name a configuration file and a state directory");
        return;
    };
    let passes = Passes::over(state);
    let upload = tokio::runtime::Runtime::new().unwrap().block_on(upload(config, state, &passes.sealed));
    passes.print(upload);
}

#[derive(Default)]
struct Passes {
    bytes: u64,
    read: Duration,
    sha256: Duration,
    zstd: Duration,
    aes_gcm: Duration,
    /// What is left to upload, in packs.
    sealed: Vec<Bytes>,
}

impl Passes {
    fn over(state: &Path) -> Self {
        let is_kept = |entry: &walkdir::DirEntry| !EXCLUDED.iter().any(|name| entry.path() == state.join(name));
        let files = walkdir::WalkDir::new(state).into_iter().filter_entry(is_kept).map(Result::unwrap);
        let mut passes = Self::default();
        let mut compressor = Compressor::new().unwrap();
        let cipher = Aes256Gcm::new(&[7; 32].into());
        let (mut frame, mut pack) = (Vec::with_capacity(FRAME_TARGET), Vec::with_capacity(PACK_TARGET));
        let mut hasher = Sha256::new();
        for entry in files.filter(|entry| entry.file_type().is_file()) {
            let mut file = File::open(entry.path()).unwrap();
            loop {
                let wanted = (FRAME_TARGET - frame.len()) as u64;
                let started = Instant::now();
                let count = file.by_ref().take(wanted).read_to_end(&mut frame).unwrap();
                passes.read += started.elapsed();
                if count == 0 {
                    break;
                }
                passes.bytes += count as u64;
                let started = Instant::now();
                hasher.update(&frame[frame.len() - count..]);
                passes.sha256 += started.elapsed();
                if frame.len() == FRAME_TARGET {
                    passes.seal(&mut frame, &mut pack, &mut compressor, &cipher);
                }
            }
        }
        passes.seal(&mut frame, &mut pack, &mut compressor, &cipher);
        passes.sealed.push(pack.into());
        passes
    }

    fn seal(&mut self, frame: &mut Vec<u8>, pack: &mut Vec<u8>, compressor: &mut Compressor, cipher: &Aes256Gcm) {
        let started = Instant::now();
        let mut payload = compressor.compress(frame).unwrap();
        self.zstd += started.elapsed();
        let started = Instant::now();
        let tag = cipher.encrypt_inout_detached(&Nonce::default(), b"", payload.as_mut_slice().into()).unwrap();
        self.aes_gcm += started.elapsed();
        payload.extend_from_slice(&tag);
        pack.extend_from_slice(&payload);
        frame.clear();
        if pack.len() >= PACK_TARGET {
            self.sealed.push(std::mem::replace(pack, Vec::with_capacity(PACK_TARGET)).into());
        }
    }

    fn print(&self, upload: Duration) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let sealed: usize = self.sealed.iter().map(Bytes::len).sum();
        println!(
            "The floor of a first push of {:.0} MB, {:.0} MB sealed:",
            self.bytes as f64 / 1e6,
            sealed as f64 / 1e6
        );
        for (name, took) in
            [("read", self.read), ("SHA-256", self.sha256), ("zstd", self.zstd), ("AES-GCM", self.aes_gcm)]
        {
            println!("  {name:<8} {:6.2} s", took.as_secs_f64());
        }
        println!("  {:<8} {:6.2} s", "upload", upload.as_secs_f64());
        let work = (self.read + self.sha256 + self.zstd + self.aes_gcm) / u32::try_from(cores).unwrap_or(1);
        let overlapped = work.max(upload);
        println!("  perfectly overlapped on {cores} cores: {:.2} s", overlapped.as_secs_f64());
    }
}

async fn upload(config: &Path, state: &Path, packs: &[Bytes]) -> Duration {
    let request = Resolve { config_path: Some(config.into()), state_dir: Some(state.into()), ..Resolve::default() };
    let target = resolve(&request).unwrap();
    let store: SharedStore = open(&target, &CancellationToken::new()).await.unwrap().store;
    let started = Instant::now();
    let mut under_way = JoinSet::new();
    for (number, pack) in packs.iter().enumerate() {
        if under_way.len() == PARALLEL_UPLOADS {
            under_way.join_next().await;
        }
        let (store, pack) = (store.clone(), pack.clone());
        under_way.spawn(async move { store.put(&format!("floor/{number}"), pack).await.unwrap() });
    }
    under_way.join_all().await;
    started.elapsed()
}
