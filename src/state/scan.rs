//! Finds what belongs into a snapshot. Reads names and metadata, never content.

use std::collections::HashSet;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::database::is_side_file;
use super::places::{Place, Places, join};
use super::rules::{Rules, Verdict};
use crate::commands::{Exception, Operation};
use crate::error::{Error, Result};
use crate::repository::restore::parents;
use crate::repository::tree::MAX_PATH;

/// Something that belongs into a snapshot.
#[derive(Debug, Clone)]
pub struct Found {
    /// What a snapshot calls it; see [`Places`].
    pub path: String,
    /// What it is.
    pub kind: FoundKind,
    /// Permission bits (the lower 12 of `st_mode`).
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime: i64,
    /// Content bytes of a file.
    pub size: u64,
    /// What changes whenever the content does; of a database, with its write-ahead log.
    pub signature: Signature,
}

/// What a found thing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// A regular file; a database is told by its first bytes, later.
    File,
    /// A directory.
    Directory,
    /// A symlink with its target.
    Symlink(String),
}

/// Size, times, inode and mode of a file, and of the write-ahead log beside it: when none of them changed, neither did
/// the content. The change time is in it because programs can set the modification time back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// The fields, put together; equal or not is all that is asked of them.
    pub bytes: Vec<u8>,
    /// The latest time in it, nanoseconds since 1970.
    pub latest: i64,
}

impl Signature {
    fn add(&mut self, meta: &Metadata) {
        let (_, changed, _) = times_and_inode(meta);
        self.add_content(meta);
        self.latest = self.latest.max(changed);
        self.bytes.extend_from_slice(&changed.to_le_bytes());
    }

    fn add_content(&mut self, meta: &Metadata) {
        let (modified, _, inode) = times_and_inode(meta);
        self.latest = self.latest.max(modified);
        for field in [meta.len().to_le_bytes(), modified.to_le_bytes(), inode.to_le_bytes()] {
            self.bytes.extend_from_slice(&field);
        }
    }

    /// Adds a write-ahead log. An empty one says nothing: a mere reader of the database may have made it. Nor does its
    /// change time, since SQLite gives it the owner of the database whenever it opens it.
    fn add_log(&mut self, meta: &Metadata) {
        if meta.len() > 0 {
            self.add_content(meta);
        }
    }

    /// The signature of the file at `path` with the write-ahead log beside it, if there is one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn of(path: &Path) -> io::Result<Self> {
        let mut signature = Self::default();
        signature.add(&std::fs::symlink_metadata(path)?);
        let mut wal = path.as_os_str().to_owned();
        wal.push("-wal");
        if let Ok(meta) = std::fs::symlink_metadata(Path::new(&wal)) {
            signature.add_log(&meta);
        }
        Ok(signature)
    }
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Scan {
    /// What belongs into the snapshot, ordered by path.
    pub found: Vec<Found>,
    /// What would belong into it but cannot be kept.
    pub exceptions: Vec<Exception>,
    /// Directories left out because a tool fills them again.
    pub rebuildable: Vec<String>,
}

/// Walks all places by the rules.
///
/// # Errors
/// `IO` when the state directory itself cannot be read, `CANCELLED`.
pub fn scan(places: &Places, rules: &Rules, operation: &Operation) -> Result<Scan> {
    let mut walk = Walk { places, rules, operation, scan: Scan::default(), logs: HashSet::new() };
    walk.scan.exceptions.clone_from(&places.exceptions);
    for place in places.all() {
        walk.walk(place)?;
    }
    let Walk { mut scan, logs, .. } = walk;
    for found in &mut scan.found {
        let mut log = places.locate(&found.path).into_os_string();
        log.push("-wal");
        let log = PathBuf::from(log);
        if found.kind == FoundKind::File
            && logs.contains(&log)
            && let Ok(meta) = std::fs::symlink_metadata(&log)
        {
            found.signature.add_log(&meta);
        }
    }
    make_a_tree(&mut scan.found);
    add_parents(places, &mut scan.found);
    scan.found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(scan)
}

struct Walk<'a> {
    places: &'a Places,
    rules: &'a Rules,
    operation: &'a Operation,
    scan: Scan,
    /// Write-ahead logs that were seen.
    logs: HashSet<PathBuf>,
}

impl Walk<'_> {
    fn walk(&mut self, place: &Place) -> Result<()> {
        let root = place.path();
        let is_state = place.name.is_empty();
        if !is_state && !root.exists() {
            // An agent that has not worked yet.
            return Ok(());
        }
        let others: HashSet<PathBuf> = self.places.all().iter().map(Place::path).filter(|path| *path != root).collect();
        let mut walk = WalkDir::new(&root).follow_links(false).min_depth(usize::from(is_state)).into_iter();
        while let Some(step) = walk.next() {
            self.operation.check()?;
            let entry = match step {
                Ok(entry) => entry,
                Err(error) => {
                    let path = error.path().unwrap_or(&root).to_owned();
                    let gone = error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound);
                    if is_state && path == root {
                        let error = error.into_io_error().unwrap_or_else(|| io::Error::other("cannot be walked"));
                        return Err(Error::io("read", &root, error));
                    }
                    if !gone {
                        self.except(named(place, &root, &path).1, error.to_string());
                    }
                    continue;
                }
            };
            let is_dir = entry.file_type().is_dir();
            let (name_is_text, path) = named(place, &root, entry.path());
            // What is a place of its own is walked as that, and what only has the name of one is not what it means.
            if entry.depth() > 0 && (others.contains(entry.path()) || self.places.is_place(&path)) {
                if is_dir {
                    walk.skip_current_dir();
                }
                continue;
            }
            if path.ends_with("-wal") {
                self.logs.insert(entry.path().to_owned());
            }
            if !self.look_at(&entry, path, name_is_text) && is_dir {
                walk.skip_current_dir();
            }
        }
        Ok(())
    }

    /// Takes one entry into the scan, or leaves it out; `false` for a directory that is not to be entered.
    fn look_at(&mut self, entry: &walkdir::DirEntry, path: String, name_is_text: bool) -> bool {
        let verdict = scan_verdict(self.rules, &path, entry.path(), entry.file_type().is_dir());
        if verdict != Verdict::Keep {
            let is_entered = verdict == Verdict::Ephemeral && self.rules.may_include_below(&path);
            if verdict == Verdict::Rebuildable {
                self.scan.rebuildable.push(path);
            } else if verdict == Verdict::NeedsEncryption {
                self.except(path, "it may hold credentials, which an unencrypted repository never gets");
            }
            return is_entered;
        }
        if !name_is_text {
            self.except(path, "its name is not valid UTF-8");
            return false;
        }
        if path.len() > MAX_PATH {
            self.except(path, "its path is longer than one in a snapshot may be");
            return false;
        }
        if entry.file_type().is_file() && is_side_file(entry.path()) {
            return true;
        }
        match inspect(entry, path.clone()) {
            Ok(Some(found)) => self.scan.found.push(found),
            Ok(None) => self.except(path, "it is neither a file, a directory nor a symlink"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => self.except(path, error.to_string()),
        }
        true
    }

    fn except(&mut self, path: String, reason: impl Into<String>) {
        self.scan.exceptions.push(Exception { path, reason: reason.into() });
    }
}

/// The rules' verdict, and `Rebuildable` for a directory that says so itself by the Cache Directory Tagging
/// Specification (<https://bford.info/cachedir/>).
fn scan_verdict(rules: &Rules, path: &str, absolute: &Path, is_dir: bool) -> Verdict {
    const TAG: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";
    let verdict = rules.verdict(path);
    if verdict == Verdict::Keep && is_dir && path.contains('/') {
        let tag = absolute.join("CACHEDIR.TAG");
        if tag.is_file() && std::fs::read(&tag).is_ok_and(|content| content.starts_with(TAG)) {
            return Verdict::Rebuildable;
        }
    }
    verdict
}

/// A directory that changes while it is walked may give a name twice, or come back as a file or link after its entries
/// were listed. Of a tree, each path is there once, and nothing lies below what is no directory.
fn make_a_tree(found: &mut Vec<Found>) {
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found.dedup_by(|later, earlier| later.path == earlier.path);
    let others = found.iter().filter(|found| found.kind != FoundKind::Directory);
    let others: HashSet<String> = others.map(|found| found.path.clone()).collect();
    found.retain(|found| !parents(&found.path).any(|parent| others.contains(parent)));
}

/// Directories that were left out but entered on the way to something included belong to the tree too.
fn add_parents(places: &Places, found: &mut Vec<Found>) {
    let mut known: HashSet<String> =
        found.iter().filter(|found| found.kind == FoundKind::Directory).map(|found| found.path.clone()).collect();
    let mut missing = Vec::new();
    for one in found.iter() {
        for parent in places.parents(&one.path) {
            if !known.insert(parent.to_owned()) {
                break;
            }
            if let Ok(meta) = std::fs::symlink_metadata(places.locate(parent)) {
                missing.push(describe(parent.to_owned(), FoundKind::Directory, &meta));
            }
        }
    }
    found.append(&mut missing);
}

fn inspect(entry: &walkdir::DirEntry, path: String) -> io::Result<Option<Found>> {
    let meta = entry.metadata()?;
    let kind = if meta.is_dir() {
        FoundKind::Directory
    } else if meta.is_file() {
        FoundKind::File
    } else if meta.is_symlink() {
        let target = std::fs::read_link(entry.path())?;
        let target = target.into_os_string().into_string();
        FoundKind::Symlink(target.map_err(|_| io::Error::other("its target is not valid UTF-8"))?)
    } else {
        return Ok(None);
    };
    Ok(Some(describe(path, kind, &meta)))
}

fn describe(path: String, kind: FoundKind, meta: &Metadata) -> Found {
    let mut signature = Signature::default();
    signature.add(meta);
    let size = if kind == FoundKind::File { meta.len() } else { 0 };
    Found { path, mode: mode(meta), mtime: times_and_inode(meta).0, size, signature, kind }
}

/// Whether the path is valid UTF-8, and what a snapshot calls it, with replacement characters if it is not.
fn named(place: &Place, root: &Path, path: &Path) -> (bool, String) {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let text = relative.to_string_lossy();
    let text = if cfg!(windows) { text.replace('\\', "/") } else { text.into_owned() };
    (relative.to_str().is_some(), join(&place.name, &text))
}

/// The lower 12 bits of `st_mode`.
#[must_use]
pub fn mode(meta: &Metadata) -> u32 {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::mode(meta) & 0o7777;
    #[cfg(not(unix))]
    return if meta.permissions().readonly() { 0o444 } else { 0o644 };
}

/// Modification time, change time, inode.
#[cfg(unix)]
fn times_and_inode(meta: &Metadata) -> (i64, i64, u64) {
    use std::os::unix::fs::MetadataExt;
    let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
    (nanoseconds(meta.mtime(), meta.mtime_nsec()), nanoseconds(meta.ctime(), meta.ctime_nsec()), meta.ino())
}

#[cfg(not(unix))]
fn times_and_inode(meta: &Metadata) -> (i64, i64, u64) {
    let modified = meta.modified().unwrap_or(std::time::UNIX_EPOCH);
    let nanoseconds = modified.duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as i64);
    (nanoseconds, nanoseconds, 0)
}

/// Modification time in nanoseconds since 1970.
#[must_use]
pub fn mtime(meta: &Metadata) -> i64 {
    times_and_inode(meta).0
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn paths(scan: &Scan) -> Vec<&str> {
        scan.found.iter().map(|found| found.path.as_str()).collect()
    }

    #[test]
    fn files_directories_and_symlinks_are_found_and_the_rest_is_named() {
        let state = tempfile::tempdir().unwrap();
        let root = state.path();
        for folder in
            ["workspace/empty", "workspace/node_modules/x", "tmp", "credentials", "media/keep", "build/target"]
        {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("workspace/a b#?é\n.md"), "x").unwrap();
        std::fs::write(root.join("media/keep/photo"), "x").unwrap();
        std::fs::write(root.join("media/other"), "x").unwrap();
        std::fs::write(root.join("credentials/token"), "x").unwrap();
        std::fs::write(root.join("build/target/CACHEDIR.TAG"), "Signature: 8a477f597d28d172789f06886806bc55").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("workspace/link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("workspace/fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"workspace/\xff");
        std::fs::write(root.join(odd), "x").unwrap();
        std::fs::set_permissions(root.join("workspace"), std::fs::Permissions::from_mode(0o750)).unwrap();

        let rules = Rules::new(&["media/keep/**".into()], &[], true).unwrap();
        let scan = scan(&Places::within(root), &rules, &Operation::default()).unwrap();
        assert_eq!(
            paths(&scan),
            [
                "build",
                "media",
                "media/keep",
                "media/keep/photo",
                "workspace",
                "workspace/a b#?é\n.md",
                "workspace/empty",
                "workspace/link"
            ]
        );
        assert_eq!(scan.rebuildable.len(), 2, "{:?}", scan.rebuildable);
        assert_eq!(scan.exceptions.len(), 2, "{:?}", scan.exceptions);
        let workspace = scan.found.iter().find(|found| found.path == "workspace").unwrap();
        assert_eq!(workspace.mode, 0o750);
        let link = scan.found.iter().find(|found| found.path == "workspace/link").unwrap();
        assert_eq!(link.kind, FoundKind::Symlink("/etc".into()));
    }

    #[test]
    fn what_a_walk_through_a_changing_directory_gives_is_a_tree() {
        let found = |path: &str, kind| Found {
            path: path.into(),
            kind,
            mode: 0o755,
            mtime: 0,
            size: 0,
            signature: Signature::default(),
        };
        let mut all = vec![
            found("a", FoundKind::Symlink("elsewhere".into())),
            found("a/b/c", FoundKind::File),
            found("b", FoundKind::Directory),
            found("b/twice", FoundKind::File),
            found("b/x", FoundKind::File),
            found("b/twice", FoundKind::File),
            found("left out/kept", FoundKind::File),
        ];
        make_a_tree(&mut all);
        let paths: Vec<_> = all.iter().map(|found| found.path.as_str()).collect();
        assert_eq!(paths, ["a", "b", "b/twice", "b/x", "left out/kept"]);
    }

    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_change_of_the_write_ahead_log_changes_the_databases_signature() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("x.sqlite"), "db").unwrap();
        let signature = || Signature::of(&state.path().join("x.sqlite")).unwrap();
        let rules = Rules::new(&[], &[], true).unwrap();
        let scanned =
            || scan(&Places::within(state.path()), &rules, &Operation::default()).unwrap().found.remove(0).signature;
        let before = signature();
        assert_eq!(before, scanned());
        std::fs::write(state.path().join("x.sqlite-wal"), "log").unwrap();
        assert_ne!(signature(), before);
        assert_eq!(signature(), scanned());
    }
}
