//! Writes the files of a snapshot into a directory, in the order that reads packs fastest, and checks every one.
//!
//! Nothing is written outside the directory, whatever the tree says: paths were checked when the tree was read, and
//! every access goes through a handle of the directory that refuses to leave it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, IoSlice, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cap_std::ambient_authority;
use cap_std::fs::{Dir, OpenOptions};
use sha2::{Digest, Sha256};

use super::id::ChunkId;
use super::index::Index;
use super::open::Repository;
use super::pages;
use super::read::{Proof, missing};
use super::tree::{Entry, Kind};
use crate::commands::{Exception, Meter, Operation};
use crate::error::{Code, Error, Result};
use crate::task::blocking;

/// Room that is left free on the file system beyond what a restore takes.
const SPARE_BYTES: u64 = 4 << 20;
/// How many lost files an error names.
const LISTED_LOST: usize = 20;

const OTHER_CONTENT: &str = "it does not have the content that the snapshot says";

/// One place in one file that a chunk goes to.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: u32,
    offset: u64,
}

/// A part of a file and where it belongs.
type Part<'c> = (u64, Cow<'c, [u8]>);

/// The files that are being written.
pub(super) struct Target {
    directory: Dir,
    /// For messages.
    shown: PathBuf,
    files: Vec<Entry>,
    /// How many bytes each file still lacks.
    lacking: Vec<AtomicU64>,
    /// Where chunks go, ordered by chunk: a large state has hundreds of thousands.
    places: Vec<(ChunkId, Place)>,
    /// Why files do not come out as they were stored.
    lost: Mutex<BTreeMap<u32, String>>,
    meter: Arc<Meter>,
}

impl Repository {
    /// Writes `entries`, ordered by path, into the empty directory `root`: content, modes, times, links, empty
    /// directories. Directories on the way to an entry need not be among the entries. Gives the files that are not there,
    /// because they would not be what was stored, each with the reason: it is the caller's to say whether that will do.
    ///
    /// # Errors
    /// `IO`, those of the store, `CANCELLED`. What was written until then is left to the caller.
    pub(crate) async fn restore(
        &self,
        index: &Arc<Index>,
        mut entries: Vec<Entry>,
        root: &Path,
        meter: Arc<Meter>,
        operation: &Operation,
    ) -> Result<Vec<Exception>> {
        let others: Vec<_> = entries.extract_if(.., |entry| !entry.has_content()).collect();
        entries.shrink_to_fit();
        let files = entries;
        meter.expect(files.len() as u64, files.iter().map(|file| file.size).sum());
        let prepared = {
            let (shown, meter, index) = (root.to_owned(), Arc::clone(&meter), Arc::clone(index));
            let folders: Vec<_> = others.iter().filter(|entry| entry.kind == Kind::Directory).cloned().collect();
            blocking(move || Target::prepare(&shown, files, &folders, &index, meter))
        };
        let target = Arc::new(prepared.await?);
        let mut wanted: Vec<ChunkId> = target.places.iter().map(|(id, _)| *id).collect();
        wanted.dedup();
        let (writing, repository) = (Arc::clone(&target), self.clone());
        let sink = move |chunks: &[(ChunkId, &[u8])]| {
            writing.meter.transferred(repository.stats().received_bytes);
            writing.write(chunks)
        };
        let losing = Arc::clone(&target);
        let damaged = move |chunks: &[ChunkId], error: Error| {
            for id in chunks {
                losing.lose_files_of(*id, &error);
            }
            Ok(())
        };
        self.read_chunks(index, wanted, Proof::Seal, operation, Arc::new(sink), Arc::new(damaged)).await?;
        blocking(move || target.finish(&others)).await
    }
}

/// The error for a snapshot of which some files cannot be restored.
#[must_use]
pub fn lost_files(lost: &[Exception]) -> Error {
    let listed = lost.iter().take(LISTED_LOST).map(|lost| format!("{} ({})", lost.path, lost.reason));
    let more = lost.len().saturating_sub(LISTED_LOST);
    let rest = if more > 0 { format!(", and {more} more") } else { String::new() };
    let listed = listed.collect::<Vec<_>>().join(", ");
    Error::new(Code::Corrupt, format!("{} files cannot be restored as they were stored: {listed}{rest}", lost.len()))
        .advise("with `--partial` the rest is restored; run `verify --read-data`, and push from a machine that still has them")
}

/// The directories above `path`, from the inside out.
pub fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(path.rsplit_once('/'), |(parent, _)| parent.rsplit_once('/')).map(|(parent, _)| parent)
}

impl Target {
    fn prepare(
        root: &Path,
        mut files: Vec<Entry>,
        folders: &[Entry],
        index: &Index,
        meter: Arc<Meter>,
    ) -> Result<Self> {
        let mut places = Vec::with_capacity(files.iter().map(|file| file.chunks().len()).sum());
        let mut lost = BTreeMap::new();
        for (number, file) in files.iter_mut().enumerate() {
            let (number, start) = (number as u32, places.len());
            let mut offset = 0;
            for id in file.chunks() {
                places.push((id, Place { file: number, offset }));
                let Some(at) = index.find(id) else {
                    lost.insert(number, missing(id).to_string());
                    break;
                };
                offset += u64::from(at.length);
            }
            if !lost.contains_key(&number) && offset != file.size {
                lost.insert(number, format!("its chunks add up to {offset} bytes, not {}", file.size));
            }
            if lost.contains_key(&number) {
                places.truncate(start);
            }
            file.forget_chunks();
        }
        places.sort_unstable_by_key(|(id, _)| *id);
        let target = Self::start(root, files, folders, meter)?;
        target.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(lost);
        Ok(Self { places, ..target })
    }

    /// Makes the directories and the empty files.
    ///
    /// # Errors
    /// `IO`; `CORRUPT` when an empty file should have another content.
    pub(super) fn start(root: &Path, files: Vec<Entry>, folders: &[Entry], meter: Arc<Meter>) -> Result<Self> {
        ensure_space(root, files.iter().map(|file| file.size).sum())?;
        let directory =
            Dir::open_ambient_dir(root, ambient_authority()).map_err(|error| Error::io("open", root, error))?;
        let lacking = files.iter().map(|file| AtomicU64::new(file.size)).collect();
        let (places, lost) = (Vec::new(), Mutex::default());
        let target = Self { directory, shown: root.to_owned(), files, lacking, places, lost, meter };
        let parents = target.files.iter().filter_map(|file| file.path.rsplit_once('/')).map(|(parent, _)| parent);
        let mut made = HashSet::new();
        for path in folders.iter().map(|folder| folder.path.as_str()).chain(parents) {
            if made.insert(path) {
                target.create_dir(path)?;
            }
        }
        for (number, file) in target.files.iter().enumerate() {
            if file.size == 0 {
                target.create(file).and_then(|made| target.complete(number, &made, Sha256::digest([]).into()))?;
            }
        }
        Ok(target)
    }

    /// Where a chunk goes.
    fn places_of(&self, id: ChunkId) -> impl Iterator<Item = Place> + '_ {
        let start = self.places.partition_point(|(other, _)| *other < id);
        self.places[start..].iter().take_while(move |(other, _)| *other == id).map(|(_, place)| *place)
    }

    fn failed(&self, what: &str, path: &str, error: io::Error) -> Error {
        Error::io(what, &self.shown.join(path), error)
    }

    /// Where a file is written, for messages.
    pub(super) fn path_of(&self, file: &Entry) -> PathBuf {
        self.shown.join(&file.path)
    }

    fn create_dir(&self, path: &str) -> Result<()> {
        self.directory.create_dir_all(path).map_err(|error| self.failed("create the directory", path, error))
    }

    fn create(&self, file: &Entry) -> Result<cap_std::fs::File> {
        let mut options = OpenOptions::new();
        options.write(true).read(true).create(true);
        #[cfg(unix)]
        cap_std::fs::OpenOptionsExt::mode(&mut options, 0o600);
        self.directory.open_with(&file.path, &options).map_err(|error| self.failed("create", &file.path, error))
    }

    /// Writes chunks to all the places they go to. Called from several threads at once.
    fn write(&self, chunks: &[(ChunkId, &[u8])]) -> Result<()> {
        let mut by_file: HashMap<u32, Vec<Part<'_>>> = HashMap::new();
        for (id, content) in chunks {
            for place in self.places_of(*id) {
                let mut content = Cow::Borrowed(*content);
                if let Some(size) = self.files[place.file as usize].relative_pages {
                    pages::make_absolute(content.to_mut(), pages::number_at(place.offset, size));
                }
                by_file.entry(place.file).or_default().push((place.offset, content));
            }
        }
        for (number, mut parts) in by_file {
            let entry = &self.files[number as usize];
            let file = self.create(entry)?;
            parts.sort_unstable_by_key(|(offset, _)| *offset);
            for run in parts.chunk_by(|(offset, content), (next, _)| offset + content.len() as u64 == *next) {
                write_run(&file, run).map_err(|error| self.failed("write", &entry.path, error))?;
            }
            let written = parts.iter().map(|(_, content)| content.len() as u64).sum();
            self.meter.bytes(written);
            if self.lacking[number as usize].fetch_sub(written, Ordering::AcqRel) == written {
                let sha256 = if written == entry.size {
                    // All of it is at hand.
                    parts
                        .iter()
                        .fold(Sha256::new(), |hasher, (_, content)| hasher.chain_update(content))
                        .finalize()
                        .into()
                } else {
                    // It may have been written in any order.
                    let mut whole = &file;
                    let rewound = io::Seek::rewind(&mut whole);
                    rewound.and_then(|()| sha256_of(whole)).map_err(|error| self.failed("read", &entry.path, error))?
                };
                self.complete(number as usize, &file, sha256)?;
            }
        }
        Ok(())
    }

    /// Notes that the files with this chunk cannot be had.
    fn lose_files_of(&self, id: ChunkId, error: &Error) {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        for place in self.places_of(id) {
            lost.entry(place.file).or_insert_with(|| error.to_string());
        }
    }

    /// Checks a whole file and gives it its mode and time.
    fn complete(&self, number: usize, file: &cap_std::fs::File, sha256: [u8; 32]) -> Result<()> {
        let entry = &self.files[number];
        if entry.sha256 != sha256 {
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.insert(number as u32, OTHER_CONTENT.into());
            return Ok(());
        }
        let file = file.try_clone().map(cap_std::fs::File::into_std);
        file.and_then(|file| {
            set_mode(&file, entry.mode)?;
            file.set_modified(time(entry.mtime))
        })
        .map_err(|error| self.failed("set the mode and time of", &entry.path, error))?;
        self.meter.files(1);
        Ok(())
    }

    /// The file of `entry`, empty, for a caller that writes the whole of it at once.
    ///
    /// # Errors
    /// `IO`.
    pub(super) fn create_whole(&self, entry: &Entry) -> Result<cap_std::fs::File> {
        let file = self.create(entry)?;
        file.set_len(0).map_err(|error| self.failed("write", &entry.path, error))?;
        Ok(file)
    }

    /// Tells the meter of bytes that came for a file of [`Target::create_whole`].
    pub(super) fn note(&self, bytes: u64) {
        self.meter.bytes(bytes);
    }

    /// Checks a file of [`Target::create_whole`], the one with this number, and gives it its mode and time. `adapt` may then
    /// change it, by its path.
    ///
    /// # Errors
    /// `CORRUPT` when it is not what was stored, that of `adapt`, `IO`.
    pub(super) fn complete_whole(
        &self,
        number: usize,
        file: cap_std::fs::File,
        sha256: [u8; 32],
        adapt: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let entry = &self.files[number];
        if entry.sha256 != sha256 {
            return Err(Error::corrupt(&entry.path, OTHER_CONTENT));
        }
        // Closed before somebody else opens it.
        drop(file);
        adapt(&self.shown.join(&entry.path))?;
        let adapted = self.directory.open_with(&entry.path, OpenOptions::new().read(true).write(true));
        let adapted = adapted.map_err(|error| self.failed("open", &entry.path, error))?;
        self.complete(number, &adapted, sha256)?;
        self.lacking[number].store(0, Ordering::Release);
        Ok(())
    }

    /// Makes the links, then gives directories their modes and times, the innermost first.
    ///
    /// # Errors
    /// `IO`.
    pub(super) fn finish(&self, others: &[Entry]) -> Result<Vec<Exception>> {
        let mut lost = std::mem::take(&mut *self.lost.lock().unwrap_or_else(PoisonError::into_inner));
        for (number, lacking) in self.lacking.iter().enumerate() {
            let lacking = lacking.load(Ordering::Acquire);
            if lacking != 0 {
                lost.entry(number as u32).or_insert_with(|| format!("{lacking} bytes of it did not arrive"));
            }
        }
        let mut left_out = Vec::with_capacity(lost.len());
        for (number, reason) in lost {
            let path = &self.files[number as usize].path;
            match self.directory.remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.failed("remove", path, error)),
                _ => left_out.push(Exception { path: path.clone(), reason }),
            }
        }
        for link in others.iter().filter(|entry| entry.kind == Kind::Symlink) {
            if let Some((parent, _)) = link.path.rsplit_once('/') {
                self.create_dir(parent)?;
            }
            make_link(&self.directory, link).map_err(|error| self.failed("create the link", &link.path, error))?;
        }
        for folder in others.iter().rev().filter(|entry| entry.kind == Kind::Directory) {
            // Not `open_dir`, whose handles only serve to look things up.
            let finished = self.directory.open(&folder.path).and_then(|opened| {
                let file = opened.into_std();
                set_mode(&file, folder.mode)?;
                file.set_modified(time(folder.mtime))
            });
            finished.map_err(|error| self.failed("set the mode and time of", &folder.path, error))?;
        }
        Ok(left_out)
    }
}

/// The SHA-256 of everything that `source` still gives.
///
/// # Errors
/// Those of reading.
pub fn sha256_of(mut source: impl Read) -> io::Result<[u8; 32]> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match source.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Bytes that are free on the file system of a directory; `None` where the system does not say.
#[must_use]
pub fn free_space(directory: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(directory).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    #[cfg(not(unix))]
    return directory.is_dir().then_some(u64::MAX);
}

/// Refuses what would not fit, before anything is written.
///
/// # Errors
/// `IO`.
pub fn ensure_space(directory: &Path, bytes: u64) -> Result<()> {
    if let Some(free) = free_space(directory)
        && bytes > 0
        && free < bytes.saturating_add(SPARE_BYTES.min(bytes / 16))
    {
        let problem = format!("{} has no space for {bytes} bytes; {free} are free", directory.display());
        return Err(Error::new(Code::Io, problem)
            .at_path(directory.display().to_string())
            .advise("free some space and try again"));
    }
    Ok(())
}

/// Writes parts that follow one another. In one call where the system can: a call for each took 9 % of a restore's processor time.
#[cfg(unix)]
fn write_run(file: &cap_std::fs::File, parts: &[Part<'_>]) -> io::Result<()> {
    /// The most that every system takes in one call (`IOV_MAX` of Linux and macOS).
    const MOST: usize = 1024;
    let Some(&(mut offset, _)) = parts.first() else { return Ok(()) };
    let mut slices: Vec<_> = parts.iter().map(|(_, content)| IoSlice::new(content)).collect();
    let mut rest = &mut slices[..];
    // Empty parts at the start would look as if nothing could be written.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match rustix::io::pwritev(file, &rest[..rest.len().min(MOST)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut rest, written);
                offset += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(unix))]
fn write_run(mut file: &cap_std::fs::File, parts: &[Part<'_>]) -> io::Result<()> {
    let Some((offset, _)) = parts.first() else { return Ok(()) };
    io::Seek::seek(&mut file, io::SeekFrom::Start(*offset))?;
    parts.iter().try_for_each(|(_, content)| io::Write::write_all(&mut file, content))
}

/// The time `nanoseconds` after 1970, or before it.
#[must_use]
pub fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds >= 0 { UNIX_EPOCH + distance } else { UNIX_EPOCH - distance }
}

/// Sets permission bits, as far as the system knows them.
///
/// # Errors
/// What the file system says.
pub fn set_mode(file: &std::fs::File, mode: u32) -> io::Result<()> {
    #[cfg(unix)]
    return file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    return Ok(());
}

/// Sets the modification time, in nanoseconds since 1970, of what is at `path` in `directory`, which need not be readable; of
/// a link its own.
///
/// # Errors
/// What the file system says.
#[cfg(unix)]
pub fn set_time_of(directory: &Dir, path: &str, mtime: i64) -> io::Result<()> {
    use rustix::fs::{AtFlags, Timespec, Timestamps};
    let (parent, name) = path.rsplit_once('/').map_or((None, path), |(parent, name)| (Some(parent), name));
    let opened = parent.map(|parent| directory.open_dir(parent)).transpose()?;
    let time = Timespec { tv_sec: mtime.div_euclid(1_000_000_000), tv_nsec: mtime.rem_euclid(1_000_000_000) as _ };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(opened.as_ref().unwrap_or(directory), name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

/// Sets the modification time, in nanoseconds since 1970, of what is at `path` in `directory`.
///
/// # Errors
/// What the file system says.
#[cfg(not(unix))]
pub fn set_time_of(directory: &Dir, path: &str, mtime: i64) -> io::Result<()> {
    directory.open(path)?.into_std().set_modified(time(mtime))
}

#[cfg(unix)]
fn make_link(directory: &Dir, link: &Entry) -> io::Result<()> {
    // The target may lead anywhere: it is kept as text, and never followed.
    directory.symlink_contents(&link.target, &link.path)?;
    set_time_of(directory, &link.path, link.mtime)
}

#[cfg(not(unix))]
fn make_link(directory: &Dir, link: &Entry) -> io::Result<()> {
    directory.symlink_file(&link.target, &link.path)
}
