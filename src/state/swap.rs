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

use super::database::{self, Exclusive};
use super::private::{FOLDER, PrivateFolder, remove_tree, sync_parent, write_durably};
use crate::error::{Code, Error, Result};
use crate::repository::restore::{set_mode, time};

/// Holds everything of a swap under way.
const SWAP: &str = "rollback";
/// Where what could not be saved elsewhere stays after it was replaced.
const SET_ASIDE: &str = "set-aside";
const JOURNAL: &str = "journal.json";

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

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Journal {
    format: u32,
    /// The snapshot taken before, after which the folder for what is set aside is named.
    safety_snapshot: String,
    /// Whether the steps are being taken back.
    undo: bool,
    steps: Vec<Step>,
}

/// A swap that is being prepared.
#[derive(Debug)]
pub struct Swap {
    state_dir: PathBuf,
    folder: PathBuf,
}

impl Swap {
    /// Makes an empty staging folder.
    ///
    /// # Errors
    /// `IO`.
    pub fn prepare(state_dir: &Path, folder: &PrivateFolder) -> Result<Self> {
        let swap = Self { state_dir: state_dir.to_owned(), folder: folder.path(SWAP) };
        remove_tree(&swap.folder)?;
        super::private::create_private_dir(&swap.staging())?;
        Ok(swap)
    }

    /// Where what is new is put before [`Swap::apply`], under its path in the state directory.
    #[must_use]
    pub fn staging(&self) -> PathBuf {
        self.folder.join("new")
    }

    /// Gives up before anything was touched.
    pub fn discard(&self) {
        if let Err(error) = remove_tree(&self.folder) {
            tracing::warn!(%error, "the staging folder is removed at the next start");
        }
    }

    /// Performs the steps in order; takes back what was done if one fails.
    ///
    /// # Errors
    /// The failed step's. Then the old state is in place again; should even that fail, the error says so, and the
    /// next start tries anew.
    pub fn apply(self, safety_snapshot: &str, steps: Vec<Step>) -> Result<()> {
        let mut journal = Journal { format: 1, safety_snapshot: safety_snapshot.into(), undo: false, steps };
        let mover = Mover::new(&self.state_dir, safety_snapshot)?;
        sync_file_system(&self.folder);
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
        sync_file_system(&self.folder);
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

/// Finishes a swap that a crash interrupted, or takes it back if it cannot be finished; removes what one left over.
///
/// # Errors
/// `LOCKED` when somebody has a database open that has to be moved, `CORRUPT` when the journal is damaged, `IO`.
pub fn recover(state_dir: &Path, folder: &PrivateFolder) -> Result<()> {
    let swap = Swap { state_dir: state_dir.to_owned(), folder: folder.path(SWAP) };
    let path = swap.folder.join(JOURNAL);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove_tree(&swap.folder),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let mut journal: Journal = serde_json::from_slice(&bytes)
        .ok()
        .filter(|journal: &Journal| journal.format == 1 && journal.steps.iter().all(Step::is_safe))
        .ok_or_else(|| {
            Error::corrupt(&path.display().to_string(), "it is no journal of a rollback").advise(format!(
                "what was replaced lies in {}, what was to come in {}",
                swap.folder.join("old").display(),
                swap.staging().display()
            ))
        })?;
    let mover = Mover::new(state_dir, &journal.safety_snapshot)?;
    let _locks = lock_databases(state_dir, &journal.steps).map_err(|error| {
        let problem = format!("a rollback was interrupted and has to be finished first: {error}");
        Error::new(error.code(), problem).because(error)
    })?;
    if !journal.undo {
        match mover.forward(&journal.steps) {
            Ok(()) => {
                tracing::warn!(before = journal.safety_snapshot, "finished a rollback that was interrupted");
                return swap.finish();
            }
            Err(error) => tracing::warn!(%error, "a rollback that was interrupted cannot be finished"),
        }
        journal.undo = true;
        journal.write(&swap.folder)?;
    }
    mover.backward(&journal.steps)?;
    tracing::warn!("took back a rollback that was interrupted");
    swap.finish()
}

/// Takes the databases that the steps move for this process alone.
///
/// # Errors
/// `LOCKED` when somebody has one open, `IO`.
pub fn lock_databases(state_dir: &Path, steps: &[Step]) -> Result<Vec<Exclusive>> {
    let databases = steps.iter().filter_map(|step| match step {
        Step::TakeAway { path, database: true, .. } => Some(state_dir.join(path)),
        _ => None,
    });
    let is_file = |path: &PathBuf| std::fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file());
    let mut locks = Vec::new();
    for path in databases.filter(is_file) {
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
    /// Whether the step stays within the state directory. The journal was written by this program, but the disk is not
    /// trusted with where files go.
    fn is_safe(&self) -> bool {
        let (Self::TakeAway { path, .. }
        | Self::MakeDirectory(path)
        | Self::PutIn(path)
        | Self::RemoveDirectory { path, .. }
        | Self::SetAttributes { path, .. }) = self;
        !path.is_empty() && path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
    }
}

/// Performs steps, and takes them back. Every access stays within the state directory.
struct Mover {
    root: Dir,
    shown: PathBuf,
    set_aside: String,
}

impl Mover {
    fn new(state_dir: &Path, safety_snapshot: &str) -> Result<Self> {
        let root = Dir::open_ambient_dir(state_dir, ambient_authority())
            .map_err(|error| Error::io("open", state_dir, error))?;
        Ok(Self {
            root,
            shown: state_dir.to_owned(),
            set_aside: format!("{FOLDER}/{SET_ASIDE}/{}", safety_snapshot.replace('/', "_")),
        })
    }

    fn staged(path: &str) -> String {
        format!("{FOLDER}/{SWAP}/new/{path}")
    }

    fn away(&self, path: &str, saved: bool) -> String {
        if saved { format!("{FOLDER}/{SWAP}/old/{path}") } else { format!("{}/{path}", self.set_aside) }
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

    /// Keeps what turned up where something else has to go.
    fn make_way(&self, path: &str) -> io::Result<()> {
        let mut aside = format!("{}/{path}", self.set_aside);
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
                && self.exists(&Self::staged(path)).is_ok_and(|waits| !waits)
            {
                continue;
            }
            self.perform(step).map_err(|(what, path, error)| Error::io(what, &self.shown.join(path), error))?;
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
                let staged = Self::staged(path);
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
                let staged = Self::staged(path);
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
            Step::SetAttributes { .. } => Ok(()),
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
