//! A repository in a directory of this machine, or of a mounted disk (`file:///dir`). Every call is one attempt and runs
//! on a blocking thread.
//!
//! An object becomes visible by a rename after its bytes are on the medium, so a reader or a crash never meets half of
//! one. Symbolic links below the root are not followed by a listing.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use walkdir::WalkDir;

use super::traffic::Traffic;
use super::{Listing, ObjectMeta, Store, ends_before_range};
use crate::error::{Code, Error, Result};

/// Where objects are written before they get their name.
const INCOMING: &str = ".incoming";
/// A file that has waited this long in [`INCOMING`] was left by a crash.
const ABANDONED: Duration = Duration::from_hours(24);
/// How often a running store looks for such files.
const SWEEP: Duration = Duration::from_hours(1);
/// How often a `put` makes its directory again when a `delete` elsewhere removes it as empty at that moment.
const DIRECTORY_ATTEMPTS: u32 = 16;

/// The store over a directory.
#[derive(Debug)]
pub(super) struct LocalDirectory {
    directory: Arc<Directory>,
    traffic: Arc<Traffic>,
}

impl LocalDirectory {
    /// Opens the directory, which need not exist, and clears what crashes have left in it.
    ///
    /// # Errors
    /// `IO`.
    pub(super) async fn open(root: PathBuf, traffic: Arc<Traffic>) -> Result<Self> {
        match fs::metadata(&root) {
            Ok(metadata) if !metadata.is_dir() => {
                return Err(Error::config("endpoint", format!("{} is not a directory", root.display())));
            }
            _ => {}
        }
        let store = Self { directory: Arc::new(Directory::new(root)), traffic };
        store.blocking(Directory::sweep).await?;
        Ok(store)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let directory = Arc::clone(&self.directory);
        match tokio::task::spawn_blocking(move || work(&directory)).await {
            Ok(result) => result,
            Err(stopped) if stopped.is_panic() => std::panic::resume_unwind(stopped.into_panic()),
            Err(_) => Err(Error::cancelled()),
        }
    }

    async fn request<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.traffic.request();
        let result = self.blocking(work).await;
        self.traffic.answered();
        result
    }
}

#[async_trait]
impl Store for LocalDirectory {
    async fn list(&self, prefix: &str) -> Result<Listing> {
        let prefix = prefix.to_owned();
        self.request(move |directory| directory.list(&prefix)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let key = key.to_owned();
        let bytes = self.request(move |directory| directory.get(&key)).await?;
        self.traffic.received(bytes.len());
        Ok(bytes)
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let key = key.to_owned();
        let bytes = self.request(move |directory| directory.get_range(&key, offset, length)).await?;
        self.traffic.received(bytes.len());
        Ok(bytes)
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let (key, length) = (key.to_owned(), body.len());
        let result = self.request(move |directory| directory.put(&key, &body)).await;
        self.traffic.sent(length);
        result
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let key = key.to_owned();
        self.request(move |directory| directory.delete(&key)).await
    }

    fn now(&self) -> SystemTime {
        self.directory.now()
    }

    fn location(&self) -> String {
        format!("file://{}", self.directory.root.display())
    }
}

#[derive(Debug)]
struct Directory {
    root: PathBuf,
    swept: Mutex<Option<Instant>>,
    /// The time of the last new file, by the file system's clock, and when that was.
    dated: Mutex<Option<(SystemTime, Instant)>>,
}

impl Directory {
    fn new(root: PathBuf) -> Self {
        Self { root, swept: Mutex::default(), dated: Mutex::default() }
    }

    /// The clock that dates the objects. On a disk that several machines have mounted it is not that of this one, and
    /// what one of them takes for old another has just written. Where nothing can be written it is this machine's.
    fn now(&self) -> SystemTime {
        let dated = *self.dated.lock().unwrap_or_else(PoisonError::into_inner);
        dated.and_then(|(time, seen)| time.checked_add(seen.elapsed())).unwrap_or_else(SystemTime::now)
    }

    fn learn_clock(&self, file: &File) {
        if let Ok(time) = file.metadata().and_then(|metadata| metadata.modified()) {
            *self.dated.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, Instant::now()));
        }
    }

    /// The file of an object. Keys are ours, but a listing elsewhere may have been tampered with: none leads outside.
    fn path_of(&self, key: &str) -> Result<PathBuf> {
        let safe = !key.contains(['\\', '\0'])
            && key.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
            && key.split('/').next() != Some(INCOMING);
        if safe {
            Ok(self.root.join(key))
        } else {
            Err(Error::new(Code::UnsafePath, format!("{key:?} cannot be the name of a stored object")).at_key(key))
        }
    }

    fn list(&self, prefix: &str) -> Result<Listing> {
        // A listing shows times: these are to be compared with.
        if let Ok(probe) = tempfile::NamedTempFile::with_prefix_in("", self.root.join(INCOMING)) {
            self.learn_clock(probe.as_file());
        }
        let start = match prefix.rsplit_once('/') {
            Some((folder, _)) => self.path_of(folder)?,
            None => self.root.clone(),
        };
        let mut objects = Vec::new();
        let not_incoming = |entry: &walkdir::DirEntry| entry.path() != self.root.join(INCOMING);
        // A root that is itself a symbolic link, for example to a mounted disk, is followed; nothing below it is.
        // In the order of names, as S3 lists: another machine may be making a key and storing what is sealed with it, and
        // `index/` must not be read later than `keys/`.
        let walk = WalkDir::new(&start).follow_root_links(start == self.root).sort_by_file_name();
        for entry in walk.into_iter().filter_entry(not_incoming) {
            let object = entry.map_err(|error| {
                let path = error.path().unwrap_or(&start).to_owned();
                (path, error.into_io_error().unwrap_or_else(|| io::Error::other("a loop of directories")))
            });
            match object.and_then(|entry| self.object(&entry).map_err(|error| (entry.path().to_owned(), error))) {
                Ok(object) => objects.extend(object.filter(|object| object.key.starts_with(prefix))),
                // Not there, or removed by another machine while this one lists.
                Err((_, error)) if is_absent(&error) => {}
                // Somebody else's, as `lost+found` at the top of a disk.
                Err((path, error)) if error.kind() == io::ErrorKind::PermissionDenied && !self.may_be_ours(&path) => {}
                Err((path, error)) => return Err(Error::io("list", &path, error)),
            }
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        Ok(Listing { objects })
    }

    /// Whether a directory at the top has a name that one of ours can have: that of a kind of object, or a snapshot's.
    fn may_be_ours(&self, path: &Path) -> bool {
        let name = path.strip_prefix(&self.root).ok().and_then(Path::to_str).unwrap_or_default();
        let is_of_snapshots = name.starts_with("safety-") || name.starts_with(|first: char| first.is_ascii_digit());
        is_of_snapshots || name.contains('/') || matches!(name, "" | "keys" | "index" | "packs" | "plain")
    }

    /// A regular file with a name that a key can have; `None` for anything else.
    fn object(&self, entry: &walkdir::DirEntry) -> io::Result<Option<ObjectMeta>> {
        if !entry.file_type().is_file() {
            return Ok(None);
        }
        let Some(key) = entry.path().strip_prefix(&self.root).ok().and_then(key_of) else { return Ok(None) };
        let metadata = entry.metadata()?;
        Ok(Some(ObjectMeta { key, size: metadata.len(), modified: metadata.modified()? }))
    }

    fn open(&self, key: &str) -> Result<(PathBuf, File, u64)> {
        let path = self.path_of(key)?;
        let absent = || Error::new(Code::NotFound, format!("{} does not exist", path.display())).at_key(key);
        let failed = |error| if is_absent(&error) { absent() } else { Error::io("read", &path, error).at_key(key) };
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(absent());
        }
        let file = File::open(&path).map_err(failed)?;
        Ok((path, file, metadata.len()))
    }

    fn get(&self, key: &str) -> Result<Bytes> {
        let (path, mut file, size) = self.open(key)?;
        let mut bytes = Vec::with_capacity(size as usize);
        file.read_to_end(&mut bytes).map_err(|error| Error::io("read", &path, error).at_key(key))?;
        Ok(bytes.into())
    }

    fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        let (path, mut file, size) = self.open(key)?;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(ends_before_range(key, offset, length));
        }
        let mut bytes = vec![0; length as usize];
        file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(|error| {
            match error.kind() {
                io::ErrorKind::UnexpectedEof => ends_before_range(key, offset, length),
                _ => Error::io("read", &path, error).at_key(key),
            }
        })?;
        Ok(bytes.into())
    }

    fn put(&self, key: &str, body: &[u8]) -> Result<()> {
        let path = self.path_of(key)?;
        self.sweep()?;
        let incoming = self.root.join(INCOMING);
        let failed = |path: &Path, error| Error::io("write", path, error).at_key(key);
        make_directories(&self.root, &incoming)?;
        let mut file = tempfile::NamedTempFile::with_prefix_in("", &incoming).map_err(|e| failed(&incoming, e))?;
        file.write_all(body).map_err(|e| failed(file.path(), e))?;
        file.as_file().sync_all().map_err(|e| failed(file.path(), e))?;
        date_anew(file.as_file());
        self.learn_clock(file.as_file());

        let parent = path.parent().unwrap_or(&self.root);
        let mut attempts = 0;
        loop {
            make_directories(&self.root, parent)?;
            attempts += 1;
            match file.persist(&path) {
                Ok(_) => break,
                Err(refused) if is_absent(&refused.error) && attempts < DIRECTORY_ATTEMPTS => file = refused.file,
                Err(refused) => return Err(failed(&path, refused.error)),
            }
        }
        sync_directory(parent).map_err(|error| failed(parent, error))
    }

    fn delete(&self, key: &str) -> Result<()> {
        let path = self.path_of(key)?;
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() => return Ok(()),
            Err(error) if is_absent(&error) => return Ok(()),
            _ => {}
        }
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(Error::io("remove", &path, error).at_key(key)),
        }
        // Emptied directories are only untidy: the first that does not go ends the attempt.
        for parent in path.ancestors().skip(1).take_while(|parent| *parent != self.root) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Removes what crashes have left in [`INCOMING`], now and then.
    fn sweep(&self) -> Result<()> {
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.is_some_and(|last| last.elapsed() < SWEEP) {
                return Ok(());
            }
            *swept = Some(Instant::now());
        }
        let incoming = self.root.join(INCOMING);
        let entries = match fs::read_dir(&incoming) {
            Ok(entries) => entries,
            Err(error) if is_absent(&error) => return Ok(()),
            Err(error) => return Err(Error::io("list", &incoming, error)),
        };
        for entry in entries.flatten() {
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|modified| modified.elapsed());
            if matches!(age, Ok(Ok(age)) if age > ABANDONED)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "an abandoned file cannot be removed");
            }
        }
        Ok(())
    }
}

/// The key of a path below the root; `None` when it is not one that a key can have.
fn key_of(path: &Path) -> Option<String> {
    let segments: Option<Vec<_>> = path.iter().map(|segment| segment.to_str()).collect();
    segments.filter(|segments| !segments.is_empty()).map(|segments| segments.join("/"))
}

/// Others reckon an object's age from when they can see it, and the machine may have slept since it wrote the first byte. It is
/// the file system's own clock that says what the time is. Where times cannot be set, that of the writing stays.
fn date_anew(file: &File) {
    #[cfg(unix)]
    {
        use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, futimens};
        let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        let _ = futimens(file, &Timestamps { last_access: time(UTIME_OMIT), last_modification: time(UTIME_NOW) });
    }
    #[cfg(not(unix))]
    let _ = file;
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Makes `directory` and what is missing above it, for the owner only, and makes their names durable.
fn make_directories(root: &Path, directory: &Path) -> Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let missing: Vec<_> = directory.ancestors().take_while(|ancestor| !ancestor.is_dir()).collect();
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(|error| Error::io("create", directory, error))?;
    for made in missing.iter().rev().filter(|made| made.starts_with(root)) {
        let parent = made.parent().unwrap_or(root);
        sync_directory(parent).map_err(|error| Error::io("write", parent, error))?;
    }
    Ok(())
}

/// Makes the names in a directory durable. One that is gone again has none.
fn sync_directory(directory: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        Err(error) if is_absent(&error) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_key_leads_outside_the_directory(
            segments in prop::collection::vec(prop_oneof![
                prop::sample::select(vec!["a", "b", "..", ".", "", INCOMING, "é", "\\", "\0", "~"]).prop_map(String::from),
                "\\PC{0,10}",
            ], 0..4),
        ) {
            let key = segments.join("/");
            let directory = Directory::new("/repository".into());
            if let Ok(path) = directory.path_of(&key) {
                let below = path.strip_prefix("/repository").unwrap();
                prop_assert!(below.components().all(|part| matches!(part, Component::Normal(_))), "{}", path.display());
                prop_assert!(!below.starts_with(INCOMING) && below.components().next().is_some());
                prop_assert_eq!(key_of(below), Some(key));
            }
        }
    }
}
