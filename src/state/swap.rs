//! Replaces parts of a state directory so that a crash at any moment leaves the old state or the new one.
//!
//! Everything new lies complete and checked in the private folder before the journal is written. The journal lists
//! renames, each of which can be repeated and taken back: what is replaced moves into the private folder, what is new
//! moves out of it. The swap counts as done once the journal is gone. [`recover`] finishes what a crash interrupted, or
//! takes it back if it cannot be finished.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::database::{self, Exclusive};
use super::private::{FOLDER, PrivateFolder, remove_tree, sync_parent, write_durably};
use crate::error::{Code, Error, Result};
use crate::repository::restore::{set_mode, time};
use crate::repository::tree::{Entry, Kind};

/// Holds everything of a swap under way, in the private folder.
const SWAP: &str = "rollback";
/// Where what could not be saved elsewhere stays after it was replaced, in the private folder.
pub const SET_ASIDE: &str = "set-aside";
/// The same two at the top of another file system that is mounted in the state directory, for instance a workspace in a
/// volume of its own: nothing can be renamed across file systems.
const SWAP_IN_MOUNT: &str = ".b2-backup-rollback";
/// What [`SET_ASIDE`] is called at the top of another file system.
pub const SET_ASIDE_IN_MOUNT: &str = ".b2-backup-set-aside";
const JOURNAL: &str = "journal.json";
/// Says, in the private folder, that what is staged waits for its time.
pub const PREPARED: &str = "prepared.json";

/// One step of a swap. Paths are relative to the state directory, `/` between segments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Step {
    /// Moves something of the old state away.
    #[serde(rename_all = "camelCase")]
    TakeAway {
        /// What.
        path: String,
        /// Whether a copy of it exists in a snapshot: then it is deleted in the end, otherwise set aside.
        saved: bool,
        /// Whether it is a database, which nobody may have open, and which goes with its side files.
        database: bool,
    },
    /// Makes a directory that was not there.
    MakeDirectory(String),
    /// Makes a live database equal to the staged one of the same path, under whoever has it open.
    Overwrite(String),
    /// Moves something new from the staging folder to its place.
    PutIn(String),
    /// Removes a directory, if it is empty.
    RemoveDirectory {
        /// Which.
        path: String,
        /// What it had before.
        before: Attributes,
    },
    /// Sets the mode and time of a directory or file.
    SetAttributes {
        /// Of what.
        path: String,
        /// What it had before; `None` if it was not there.
        before: Option<Attributes>,
        /// What it gets.
        after: Attributes,
    },
}

/// Mode and time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    pub mtime: i64,
}

/// Why and when a swap takes place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Occasion {
    /// What the new state is.
    pub snapshot: String,
    /// The snapshot taken before, after which the folder for what is set aside is named.
    pub safety_snapshot: String,
    /// Whether a gateway may have databases open meanwhile: then none that is moved is asked for.
    pub under_gateway: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Journal {
    format: u32,
    occasion: Occasion,
    /// Whether the steps are being taken back.
    undo: bool,
    /// Where other file systems are mounted.
    mounts: Vec<String>,
    steps: Vec<Step>,
}

/// A swap that is being prepared.
#[derive(Debug)]
pub struct Swap {
    state_dir: PathBuf,
    folder: PathBuf,
    mounts: Vec<String>,
}

impl Swap {
    /// Makes a staging folder for `wanted`; gives also what of it is not in there yet. What an earlier preparation left is
    /// kept if it is the same.
    ///
    /// # Errors
    /// `IO`.
    pub fn prepare(state_dir: &Path, folder: &PrivateFolder, wanted: &[Entry]) -> Result<(Self, Vec<Entry>)> {
        let swap = Self { state_dir: state_dir.to_owned(), folder: folder.path(SWAP), mounts: mounts_below(state_dir) };
        let is_there = |entry: &&Entry| is_staged(&swap.staging_of(&entry.path).join(&entry.path), entry);
        let (there, lacking): (Vec<&Entry>, Vec<&Entry>) = wanted.iter().partition(is_there);
        if there.is_empty() {
            swap.folders().try_for_each(|folder| remove_tree(&folder))?;
        }
        for entry in &lacking {
            let path = swap.staging_of(&entry.path).join(&entry.path);
            if std::fs::symlink_metadata(&path).is_ok() {
                std::fs::remove_file(&path)
                    .or_else(|_| std::fs::remove_dir_all(&path))
                    .map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        super::private::create_private_dir(&swap.staging())?;
        Ok((swap, lacking.into_iter().cloned().collect()))
    }

    /// Where what is new is put before [`Swap::apply`], under its path in the state directory.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.folder.join("new")
    }

    /// [`Swap::staging`] for what belongs to `path`, which may be in another file system.
    #[must_use]
    pub fn staging_of(&self, path: &str) -> PathBuf {
        match mount_of(&self.mounts, path) {
            Some(mount) => self.state_dir.join(mount).join(SWAP_IN_MOUNT).join("new"),
            None => self.staging(),
        }
    }

    /// All folders that hold something of a swap: one in each file system.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let in_mounts = self.mounts.iter().map(|mount| self.state_dir.join(mount).join(SWAP_IN_MOUNT));
        std::iter::once(self.folder.clone()).chain(in_mounts)
    }

    /// Gives up before anything was touched.
    pub fn discard(&self) {
        if let Err(error) = self.folders().try_for_each(|folder| remove_tree(&folder)) {
            tracing::warn!(%error, "the staging folder is removed at the next start");
        }
    }

    fn sync(&self) {
        self.folders().filter(|folder| folder.exists()).for_each(|folder| sync_file_system(&folder));
    }

    /// Performs the steps in order; takes back what was done if one fails.
    ///
    /// # Errors
    /// The failed step's. Then the old state is in place again; should even that fail, the error says so, and the
    /// next start tries anew.
    pub fn apply(self, occasion: Occasion, steps: Vec<Step>) -> Result<()> {
        let mounts = self.mounts.clone();
        let mut journal = Journal { format: 1, occasion, undo: false, mounts, steps };
        let mover = Mover::new(&self.state_dir, &journal)?;
        self.sync();
        journal.write(&self.folder)?;
        if let Err(error) = mover.forward(&journal.steps) {
            journal.undo = true;
            let undone = journal.write(&self.folder).and_then(|()| mover.backward(&journal.steps));
            return match undone.and_then(|()| self.finish()) {
                Ok(()) => Err(error),
                Err(undo) => Err(Error::new(error.code(), format!("{error}; and taking it back failed: {undo}"))
                    .advise("the next command on this state directory tries again")),
            };
        }
        self.finish()
    }

    /// Declares the state whole by removing the journal, then cleans up.
    fn finish(&self) -> Result<()> {
        self.sync();
        let journal = self.folder.join(JOURNAL);
        std::fs::remove_file(&journal)
            .and_then(|()| sync_parent(&journal))
            .map_err(|error| Error::io("remove", &journal, error))?;
        // From here on nothing can go wrong for the state; what is left over is removed at the next start.
        self.discard();
        Ok(())
    }
}

impl Journal {
    fn write(&self, folder: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self).map_err(|error| Error::new(Code::Io, error.to_string()))?;
        write_durably(&folder.join(JOURNAL), &bytes)
    }
}

/// Drops what is staged and waits for its time.
///
/// # Errors
/// `IO`.
pub fn drop_prepared(state_dir: &Path, folder: &PrivateFolder) -> Result<()> {
    let path = folder.path(PREPARED);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::io("remove", &path, error)),
        _ => {}
    }
    recover(state_dir, folder).map(|_| ())
}

/// Finishes a swap that a crash interrupted, or takes it back if it cannot be finished; removes what one left over.
///
/// # Errors
/// `LOCKED` when somebody has a database open that has to be moved, `CORRUPT` when the journal is damaged, `IO`.
pub fn recover(state_dir: &Path, folder: &PrivateFolder) -> Result<Option<Recovered>> {
    let mounts = mounts_below(state_dir);
    let mut swap = Swap { state_dir: state_dir.to_owned(), folder: folder.path(SWAP), mounts };
    let path = swap.folder.join(JOURNAL);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        // Nothing was touched. What is staged waits for its time, or is left over.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if !folder.path(PREPARED).exists() {
                swap.folders().try_for_each(|folder| remove_tree(&folder))?;
            }
            return Ok(None);
        }
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let mut journal: Journal = serde_json::from_slice(&bytes)
        .ok()
        .filter(|journal: &Journal| journal.format == 1)
        .filter(|journal| journal.steps.iter().map(Step::path).chain(&journal.mounts).all(|path| stays_inside(path)))
        .ok_or_else(|| {
            Error::corrupt(&path.display().to_string(), "it is no journal of a rollback").advise(format!(
                "what was replaced lies in {}, what was to come in {}",
                swap.folder.join("old").display(),
                swap.staging().display()
            ))
        })?;
    swap.mounts.clone_from(&journal.mounts);
    let mover = Mover::new(state_dir, &journal)?;
    let locks = if journal.occasion.under_gateway { Ok(Vec::new()) } else { lock_databases(state_dir, &journal.steps) };
    let _locks = locks.map_err(|error| {
        let problem = format!("a rollback was interrupted and has to be finished first: {error}");
        Error::new(error.code(), problem).because(error)
    })?;
    let (snapshot, safety_snapshot) = (journal.occasion.snapshot.clone(), journal.occasion.safety_snapshot.clone());
    let recovered = |finished| Some(Recovered { finished, snapshot, safety_snapshot });
    if !journal.undo {
        match mover.forward(&journal.steps) {
            Ok(()) => {
                tracing::warn!(before = journal.occasion.safety_snapshot, "finished a rollback that was interrupted");
                return swap.finish().map(|()| recovered(true));
            }
            Err(error) => tracing::warn!(%error, "a rollback that was interrupted cannot be finished"),
        }
        journal.undo = true;
        journal.write(&swap.folder)?;
    }
    mover.backward(&journal.steps)?;
    tracing::warn!("took back a rollback that was interrupted");
    swap.finish().map(|()| recovered(false))
}

/// What became of a swap that a crash had interrupted.
#[derive(Debug, Clone)]
pub struct Recovered {
    /// Whether the new state is in place, or else the old one.
    pub finished: bool,
    /// What the new state is.
    pub snapshot: String,
    /// The snapshot taken before.
    pub safety_snapshot: String,
}

fn sha256(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = std::fs::File::open(path)?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Whether what lies at `path` is what `entry` says.
fn is_staged(path: &Path, entry: &Entry) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            entry.kind == Kind::Symlink
                && std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*entry.target)
        }
        Ok(meta) if meta.is_file() && entry.has_content() && meta.len() == entry.size => {
            sha256(path).is_ok_and(|sha256| sha256[..] == *entry.sha256)
        }
        _ => false,
    }
}

/// Takes the databases that the steps move for this process alone.
///
/// # Errors
/// `LOCKED` when somebody has one open, `IO`.
pub fn lock_databases(state_dir: &Path, steps: &[Step]) -> Result<Vec<Exclusive>> {
    let going = steps.iter().filter_map(|step| match step {
        Step::TakeAway { path, database: true, .. } => Some(state_dir.join(path)),
        _ => None,
    });
    // A directory that gives way takes the databases in it along.
    let below = |path: PathBuf| walkdir::WalkDir::new(path).follow_root_links(false).into_iter().flatten();
    let files = going.flat_map(below).filter(|found| found.file_type().is_file()).map(walkdir::DirEntry::into_path);
    let is_named = |path: &PathBuf| steps.iter().any(|step| state_dir.join(step.path()) == *path);
    let databases = files.filter(|path| is_named(path) || database::has_magic(path));
    let mut locks = Vec::new();
    for path in databases {
        match database::take_exclusively(&path) {
            Ok(lock) => locks.push(lock),
            Err(error) => {
                locks.into_iter().for_each(Exclusive::release);
                return Err(error);
            }
        }
    }
    Ok(locks)
}

impl Step {
    fn path(&self) -> &String {
        let (Self::TakeAway { path, .. }
        | Self::MakeDirectory(path)
        | Self::Overwrite(path)
        | Self::PutIn(path)
        | Self::RemoveDirectory { path, .. }
        | Self::SetAttributes { path, .. }) = self;
        path
    }
}

/// Whether a path of the journal stays within the state directory. This program wrote it, but the disk is not trusted with
/// where files go.
fn stays_inside(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
}

/// Where other file systems are mounted in the state directory, relative to it. Linux only: elsewhere such a rollback
/// fails, and is taken back.
fn mounts_below(state_dir: &Path) -> Vec<String> {
    let (Ok(state_dir), Ok(mounts)) = (state_dir.canonicalize(), std::fs::read_to_string("/proc/self/mountinfo"))
    else {
        return Vec::new();
    };
    // The fifth field is the mount point, with spaces and the like as octal escapes (proc_pid_mountinfo(5)).
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).filter_map(unescape);
    let mut below: Vec<String> = points
        .filter_map(|point| Some(Path::new(&point).strip_prefix(&state_dir).ok()?.to_str()?.to_owned()))
        .collect();
    below.retain(|mount| !mount.is_empty());
    below.sort();
    below.dedup();
    below
}

fn unescape(field: &str) -> Option<String> {
    let mut parts = field.split('\\');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..3)?, 8).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[3..]);
    }
    String::from_utf8(bytes).ok()
}

/// The innermost of `mounts` that `path` lies in.
fn mount_of<'m>(mounts: &'m [String], path: &str) -> Option<&'m String> {
    let holds = |mount: &&String| path.strip_prefix(mount.as_str()).is_some_and(|rest| rest.starts_with('/'));
    mounts.iter().filter(holds).max_by_key(|mount| mount.len())
}

/// Performs steps, and takes them back. Every access stays within the state directory.
struct Mover {
    root: Dir,
    shown: PathBuf,
    safety_snapshot: String,
    mounts: Vec<String>,
}

impl Mover {
    fn new(state_dir: &Path, journal: &Journal) -> Result<Self> {
        let root = Dir::open_ambient_dir(state_dir, ambient_authority())
            .map_err(|error| Error::io("open", state_dir, error))?;
        Ok(Self {
            root,
            shown: state_dir.to_owned(),
            safety_snapshot: journal.occasion.safety_snapshot.replace('/', "_"),
            mounts: journal.mounts.clone(),
        })
    }

    fn swap_folder(&self, path: &str) -> String {
        match mount_of(&self.mounts, path) {
            Some(mount) => format!("{mount}/{SWAP_IN_MOUNT}"),
            None => format!("{FOLDER}/{SWAP}"),
        }
    }

    fn staged(&self, path: &str) -> String {
        format!("{}/new/{path}", self.swap_folder(path))
    }

    fn away(&self, path: &str, saved: bool) -> String {
        if saved { format!("{}/old/{path}", self.swap_folder(path)) } else { self.aside(path) }
    }

    fn aside(&self, path: &str) -> String {
        let id = &self.safety_snapshot;
        match mount_of(&self.mounts, path) {
            Some(mount) => format!("{mount}/{SET_ASIDE_IN_MOUNT}/{id}/{path}"),
            None => format!("{FOLDER}/{SET_ASIDE}/{id}/{path}"),
        }
    }

    /// Renames something. A database's side files go first, so that at no moment it lies beside those of another.
    fn rename_with_side_files(&self, from: &str, to: &str) -> io::Result<()> {
        for suffix in database::SIDE_FILES {
            if self.exists(&format!("{from}{suffix}"))? {
                self.rename(&format!("{from}{suffix}"), &format!("{to}{suffix}"))?;
            }
        }
        if self.exists(from)? { self.rename(from, to) } else { Ok(()) }
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.root.symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if let Some((parent, _)) = to.rsplit_once('/') {
            self.root.create_dir_all(parent)?;
        }
        self.root.rename(from, &self.root, to)
    }

    /// Overwrites a live database, after a copy of it has been made for taking that back.
    fn overwrite(&self, path: &str) -> Result<()> {
        let live = self.shown.join(path);
        let old = self.shown.join(self.away(path, true));
        if !old.exists() {
            let parent = old.parent().unwrap_or(&self.shown);
            super::private::create_private_dir(parent)?;
            let part = old.with_extension("part");
            let _ = std::fs::remove_file(&part);
            database::copy_whole(&live, &part)?;
            let renamed = std::fs::File::open(&part).and_then(|file| file.sync_all());
            renamed.and_then(|()| std::fs::rename(&part, &old)).map_err(|error| Error::io("rename", &part, error))?;
        }
        database::overwrite(&live, &self.shown.join(self.staged(path)))
    }

    /// Keeps what turned up where something else has to go.
    fn make_way(&self, path: &str) -> io::Result<()> {
        let mut aside = self.aside(path);
        while self.exists(&aside)? {
            aside.push('~');
        }
        tracing::warn!(path, aside, "something new was in the way and is kept aside");
        self.rename_with_side_files(path, &aside)
    }

    fn forward(&self, steps: &[Step]) -> Result<()> {
        let replaced: HashSet<&str> = steps
            .iter()
            .filter_map(|step| if let Step::PutIn(path) = step { Some(path.as_str()) } else { None })
            .collect();
        for step in steps {
            // What replaces it may be in place already: that must not be taken for the old.
            if let Step::TakeAway { path, .. } = step
                && replaced.contains(path.as_str())
                && self.exists(&self.staged(path)).is_ok_and(|waits| !waits)
            {
                continue;
            }
            match step {
                Step::Overwrite(path) => self.overwrite(path)?,
                step => {
                    self.perform(step).map_err(|(what, path, error)| Error::io(what, &self.shown.join(path), error))?;
                }
            }
        }
        Ok(())
    }

    fn perform<'s>(&self, step: &'s Step) -> std::result::Result<(), (&'static str, &'s str, io::Error)> {
        match step {
            Step::TakeAway { path, saved, database } => (|| {
                let away = self.away(path, *saved);
                if self.exists(&away)? {
                    return Ok(());
                }
                if *database {
                    return self.rename_with_side_files(path, &away);
                }
                if self.exists(path)? { self.rename(path, &away) } else { Ok(()) }
            })()
            .map_err(|error| ("move away", path.as_str(), error)),
            Step::MakeDirectory(path) => match self.root.create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    Err(("create the directory", path.as_str(), error))
                }
                _ => Ok(()),
            },
            Step::PutIn(path) => (|| {
                let staged = self.staged(path);
                if self.exists(&staged)? {
                    if self.exists(path)? {
                        self.make_way(path)?;
                    }
                    self.root.rename(staged, &self.root, path)?;
                }
                Ok(())
            })()
            .map_err(|error| ("put in place", path.as_str(), error)),
            Step::RemoveDirectory { path, .. } => match self.root.remove_dir(path) {
                Err(error) if !is_no_empty_directory(&error) => Err(("remove the directory", path.as_str(), error)),
                _ => Ok(()),
            },
            Step::SetAttributes { path, after, .. } => {
                self.set_attributes(path, *after).map_err(|error| ("set the mode and time of", path.as_str(), error))
            }
            Step::Overwrite(_) => Ok(()),
        }
    }

    fn set_attributes(&self, path: &str, attributes: Attributes) -> io::Result<()> {
        let file = self.root.open(path)?.into_std();
        set_mode(&file, attributes.mode)?;
        file.set_modified(time(attributes.mtime))
    }

    /// Takes all steps back, also those that were not performed.
    fn backward(&self, steps: &[Step]) -> Result<()> {
        for step in steps.iter().rev() {
            if let Step::Overwrite(path) = step {
                let old = self.shown.join(self.away(path, true));
                if old.exists() {
                    database::overwrite(&self.shown.join(path), &old)?;
                }
                continue;
            }
            self.take_back(step)
                .map_err(|(path, error)| Error::io("take back the change of", &self.shown.join(path), error))?;
        }
        // Times of directories change while their entries come back, so that they are set last.
        for step in steps {
            if let Step::RemoveDirectory { path, before } | Step::SetAttributes { path, before: Some(before), .. } =
                step
            {
                self.set_attributes(path, *before)
                    .map_err(|error| Error::io("set the mode and time of", &self.shown.join(path), error))?;
            }
        }
        Ok(())
    }

    fn take_back<'s>(&self, step: &'s Step) -> std::result::Result<(), (&'s str, io::Error)> {
        match step {
            Step::TakeAway { path, saved, database } => (|| {
                let away = self.away(path, *saved);
                if self.exists(&away)? && self.exists(path)? {
                    self.make_way(path)?;
                }
                match (*database, self.exists(&away)?) {
                    (true, _) => self.rename_with_side_files(&away, path),
                    (false, true) => self.rename(&away, path),
                    (false, false) => Ok(()),
                }
            })()
            .map_err(|error| (path.as_str(), error)),
            Step::PutIn(path) => (|| {
                let staged = self.staged(path);
                if !self.exists(&staged)? && self.exists(path)? {
                    // With what a program that ran meanwhile may have made beside it.
                    self.rename_with_side_files(path, &staged)?;
                }
                Ok(())
            })()
            .map_err(|error| (path.as_str(), error)),
            Step::MakeDirectory(path) => match self.root.remove_dir(path) {
                Err(error) if !is_no_empty_directory(&error) => Err((path.as_str(), error)),
                _ => Ok(()),
            },
            Step::RemoveDirectory { path, .. } => match self.root.create_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err((path.as_str(), error)),
                _ => Ok(()),
            },
            Step::SetAttributes { .. } | Step::Overwrite(_) => Ok(()),
        }
    }
}

/// Whether a directory was not removed since it is not there, holds something, or is still what it was to replace.
fn is_no_empty_directory(error: &io::Error) -> bool {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | DirectoryNotEmpty | NotADirectory)
}

/// Makes everything written so far survive a power cut.
fn sync_file_system(folder: &Path) {
    #[cfg(target_os = "linux")]
    if let Ok(folder) = std::fs::File::open(folder) {
        let _ = rustix::fs::syncfs(folder);
    }
    #[cfg(not(target_os = "linux"))]
    for entry in walkdir::WalkDir::new(folder).into_iter().flatten().filter(|entry| !entry.path_is_symlink()) {
        if let Ok(file) = std::fs::File::open(entry.path()) {
            let _ = file.sync_all();
        }
    }
}
