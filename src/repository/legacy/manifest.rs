//! The manifest of a snapshot of 0.1.x: `{ "version": 1, "timestamp", "files": { <path>: { "hash", "size" } } }`.
//!
//! Nothing authenticates it, so that it is hostile until checked: its paths are held to the rules of a file tree, and of
//! each file only the SHA-256 is believed. Its sizes are not: those of databases are of the live file and not of the
//! copy that was stored, and those of transcripts are older than their hashes.

use std::fmt;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use super::LegacyId;
use crate::error::{Error, Result};
use crate::repository::id::unhex;
use crate::repository::read::check_parents;
use crate::repository::restore::parents;
use crate::repository::tree::{Content, Entry, Kind};
use crate::state::database::{self, SIDE_FILES};
use crate::state::rules::{Rules, Verdict};

/// The largest manifest that is read, in bytes: some hundreds of thousands of files.
pub const MAX_MANIFEST: u64 = 64 << 20;
/// What 0.1.x gave no mode gets the one that shows it to nobody else.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// One file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative to the state directory, `/` between segments; checked.
    pub path: String,
    /// Of the plain content.
    pub sha256: [u8; 32],
    /// Bytes, about.
    pub size: u64,
}

impl File {
    /// Whether it is the empty file, which needs no object.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        Sha256::digest([])[..] == self.sha256
    }
}

/// What a snapshot holds, ordered by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its files.
    pub files: Vec<File>,
}

#[derive(Deserialize)]
struct Stored {
    version: u64,
    #[serde(deserialize_with = "files")]
    files: Vec<File>,
}

#[derive(Deserialize)]
struct StoredFile {
    hash: String,
    size: u64,
}

/// The files in the order in which they stand, also those that stand twice.
fn files<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<File>, D::Error> {
    struct Files;

    impl<'de> Visitor<'de> for Files {
        type Value = Vec<File>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object with a field for each file")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> std::result::Result<Self::Value, M::Error> {
            let mut files = Vec::new();
            while let Some((path, StoredFile { hash, size })) = map.next_entry::<String, StoredFile>()? {
                let sha256 = unhex(&hash).ok_or_else(|| M::Error::custom(format!("{path:?} has no SHA-256")))?;
                files.push(File { path, sha256, size });
            }
            Ok(files)
        }
    }

    deserializer.deserialize_map(Files)
}

impl Manifest {
    /// Reads the stored manifest of snapshot `id`.
    ///
    /// # Errors
    /// `CORRUPT` when it is none, `UNSAFE_PATH` when a path would lead elsewhere.
    pub fn parse(id: &LegacyId, bytes: &[u8]) -> Result<Self> {
        Self::read(&id.manifest_key(), bytes).map_err(|error| error.in_snapshot(id.as_str()))
    }

    fn read(key: &str, bytes: &[u8]) -> Result<Self> {
        let Stored { version, mut files } = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(key, format!("it is no manifest of 0.1.x: {error}")))?;
        if version != 1 {
            return Err(Error::corrupt(key, format!("its version is {version}, of which nothing is known")));
        }
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        if let Some(twice) = files.windows(2).find(|two| two[0].path == two[1].path) {
            return Err(Error::corrupt(key, format!("it holds {:?} twice", twice[0].path)));
        }
        for file in &files {
            Entry::new(file.path.as_str(), Kind::File, 0, 0).check_path()?;
        }
        Ok(Self { files })
    }

    /// The snapshot's file tree: its files, and the directories above them. What it says nothing of (modes, times) is
    /// filled in; `size` gives a file's bytes.
    ///
    /// # Errors
    /// `UNSAFE_PATH` when something lies below a file.
    pub fn tree(&self, id: &LegacyId, size: impl Fn(&File) -> u64) -> Result<Vec<Entry>> {
        let rules = Rules::new(&[], &[], true)?;
        let time = i64::try_from(id.time().as_nanosecond()).unwrap_or_default();
        let mut entries: Vec<Entry> = self.files.iter().map(|file| entry(file, &rules, time, &size)).collect();
        let mut directories: Vec<&str> = self.files.iter().flat_map(|file| parents(&file.path)).collect();
        directories.sort_unstable();
        directories.dedup();
        let is_file = |path: &str| self.files.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok();
        let directories = directories.into_iter().filter(|path| !is_file(path));
        entries.extend(directories.map(|path| Entry::new(path, Kind::Directory, DIRECTORY_MODE, time)));
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        check_parents(&entries)?;
        Ok(entries)
    }
}

/// One file as this version has it in a tree.
fn entry(file: &File, rules: &Rules, time: i64, size: impl Fn(&File) -> u64) -> Entry {
    let left_out = |why: &str| Entry::new(file.path.as_str(), Kind::Exception, 0, 0).with_target(why);
    if rules.verdict(&file.path) == Verdict::Secret {
        return left_out("it holds credentials, which are this machine's own");
    }
    // Beside a copy that is whole by itself, a journal of the live database would be played into it.
    let owner = SIDE_FILES.iter().find_map(|suffix| file.path.strip_suffix(suffix));
    if owner.is_some_and(is_database) {
        return left_out("it belongs to a database that was in use");
    }
    let kind = if is_database(&file.path) { Kind::Database } else { Kind::File };
    // A size of nothing is kept for what is nothing.
    let size = if file.is_empty() { 0 } else { size(file).max(1) };
    let content = Content { size, sha256: file.sha256, chunks: Vec::new() };
    Entry::new(file.path.as_str(), kind, FILE_MODE, time).with_content(&content)
}

/// Whether 0.1.x stored what lies at `path` as a copy of a database.
fn is_database(path: &str) -> bool {
    path.ends_with(".sqlite") || database::is_openclaws(path.as_ref())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Code;
    use crate::repository::id::hex;

    fn id() -> LegacyId {
        "2026-02-19T00-00-00Z".parse().unwrap()
    }

    fn manifest(paths: &[&str]) -> String {
        let files: serde_json::Map<_, _> = (paths.iter())
            .map(|path| ((*path).to_owned(), json!({ "hash": hex(&Sha256::digest(path)), "size": path.len() })))
            .collect();
        json!({ "version": 1, "timestamp": "2026-02-19T00:00:00.000Z", "files": files }).to_string()
    }

    #[test]
    fn a_tree_has_the_directories_and_knows_databases() {
        let paths = ["agents/main/agent/openclaw-agent.sqlite", "agents/main/agent/models.json", "openclaw.json"];
        let manifest = Manifest::parse(&id(), manifest(&paths).as_bytes()).unwrap();
        let tree: Vec<_> = (manifest.tree(&id(), |file| file.size).unwrap().into_iter())
            .map(|entry| (entry.path, entry.kind, entry.size))
            .collect();
        let expected = [
            ("agents", Kind::Directory, 0),
            ("agents/main", Kind::Directory, 0),
            ("agents/main/agent", Kind::Directory, 0),
            ("agents/main/agent/models.json", Kind::File, 29),
            ("agents/main/agent/openclaw-agent.sqlite", Kind::Database, 39),
            ("openclaw.json", Kind::File, 13),
        ];
        assert_eq!(tree, expected.map(|(path, kind, size)| (path.to_owned(), kind, size)));
    }

    #[test]
    fn credentials_and_journals_are_no_part_of_it() {
        let paths = [
            "agents/main/agent/codex-home/auth.json",
            "agents/main/agent/openclaw-agent.sqlite-journal",
            "b2-backup/machine-id",
            "workspace/.env",
            "workspace/dream-journal",
        ];
        let manifest = Manifest::parse(&id(), manifest(&paths).as_bytes()).unwrap();
        let tree = manifest.tree(&id(), |file| file.size).unwrap();
        let kept: Vec<_> = tree.iter().filter(|entry| entry.has_content()).map(|entry| &*entry.path).collect();
        assert_eq!(kept, ["workspace/dream-journal"]);
        assert_eq!(tree.iter().filter(|entry| entry.kind == Kind::Exception).count(), 4);
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["/etc/passwd", "../x", "workspace/../../x", "a//b", "a/./b", "a/", ""] {
            let error = Manifest::parse(&id(), manifest(&[path]).as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::UnsafePath, "{path:?}");
        }
        let manifest = Manifest::parse(&id(), manifest(&["workspace/a", "workspace/a/b"]).as_bytes()).unwrap();
        assert_eq!(manifest.tree(&id(), |file| file.size).unwrap_err().code(), Code::UnsafePath);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let hash = "0".repeat(64);
        for text in [
            String::new(),
            "{}".into(),
            "{\"version\":1}".into(),
            "{\"version\":2,\"files\":{}}".into(),
            "{\"version\":1,\"files\":[]}".into(),
            format!("{{\"version\":1,\"files\":{{\"a\":{{\"hash\":\"{hash}\"}}}}}}"),
            format!("{{\"version\":1,\"files\":{{\"a\":{{\"hash\":\"{hash}\",\"size\":-1}}}}}}"),
            "{\"version\":1,\"files\":{\"a\":{\"hash\":\"abc\",\"size\":1}}}".into(),
            format!(
                "{{\"version\":1,\"files\":{{\"a\":{{\"hash\":\"{hash}\",\"size\":1}},\"a\":{{\"hash\":\"{hash}\",\"size\":1}}}}}}"
            ),
        ] {
            assert_eq!(Manifest::parse(&id(), text.as_bytes()).unwrap_err().code(), Code::Corrupt, "{text}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&id(), &bytes);
        }

        #[test]
        fn whatever_is_read_stays_below_the_directory(
            paths in prop::collection::vec("[a/.\\\\]{0,8}|\\PC{0,12}", 0..8),
        ) {
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let Ok(manifest) = Manifest::parse(&id(), manifest(&paths).as_bytes()) else { return Ok(()) };
            let Ok(tree) = manifest.tree(&id(), |file| file.size) else { return Ok(()) };
            prop_assert!(tree.is_sorted_by(|a, b| a.path < b.path));
            for entry in tree {
                let below = std::path::Path::new(&entry.path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(below && !entry.path.contains('\0'), "{:?}", entry.path);
            }
        }

        #[test]
        fn a_changed_byte_is_refused_or_leaves_checked_files(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = manifest(&["agents/a", "workspace/b"]).into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(manifest) = Manifest::parse(&id(), &bytes) {
                prop_assert!(manifest.files.len() <= 2);
                prop_assert!(manifest.files.iter().all(|file| !file.path.is_empty() && !file.path.starts_with('/')));
            }
        }
    }
}
