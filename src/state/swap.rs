//! Replaces parts of a state directory so that a crash at any moment leaves the old state or the new one.
//!
//! Everything new lies complete and checked in the private folder before the journal is written. The journal lists
//! renames, each of which can be repeated and taken back: what is replaced moves into the private folder, what is new
//! moves out of it. The swap counts as done once the journal is gone. [`recover`] finishes what a crash interrupted, or
//! takes it back if it cannot be finished.

mod volumes;

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use cap_std::ambient_authority;
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

use super::database::{self, Exclusive};
use super::places::Places;
use super::private::{PrivateFolder, create_private_dir, remove_file, remove_tree, sync_parent, write_durably};
use super::scan::{mode, mtime};
use crate::error::{Code, Error, Result, to_json};
use crate::repository::restore::{parents, set_mode, set_time_of, sha256_of};
use crate::repository::tree::{Entry, Kind};

pub use volumes::{SET_ASIDE, SET_ASIDE_IN_VOLUME};
use volumes::{SWAP, Volumes, stays_inside};

/// What is to come, and what was taken away, in each of the folders of a swap.
const NEW: &str = "new";
const OLD: &str = "old";
const JOURNAL: &str = "journal.json";
/// Says, in the private folder, that what is staged waits for its time.
pub const PREPARED: &str = "prepared.json";

/// One step of a swap. Paths are names as in a snapshot; see [`Places`].
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

impl Occasion {
    /// What the folder for what is set aside is called.
    fn folder_name(&self) -> String {
        self.safety_snapshot.replace('/', "_")
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Journal {
    format: u32,
    occasion: Occasion,
    /// Whether the steps are being taken back.
    undo: bool,
    volumes: Volumes,
    steps: Vec<Step>,
}

/// Whether these bytes are a journal that may be followed, for [`crate::fuzzing`].
pub(crate) fn is_journal(bytes: &[u8]) -> bool {
    Journal::parse(bytes).is_some_and(|journal| {
        assert!(journal.steps.iter().all(|step| !Path::new(step.path()).is_absolute()));
        true
    })
}

/// A swap that is being prepared.
#[derive(Debug)]
pub struct Swap {
    /// Its folder in the private folder, where the journal is.
    folder: PathBuf,
    volumes: Volumes,
}

impl Swap {
    /// Makes a staging folder for `wanted`; gives also what of it is not in there yet. What an earlier preparation left is
    /// kept if it is the same.
    ///
    /// # Errors
    /// `IO`.
    pub fn prepare(places: &Places, folder: &PrivateFolder, wanted: &[Entry]) -> Result<(Self, Vec<Entry>)> {
        let swap = Self { folder: folder.path(SWAP), volumes: Volumes::of(places) };
        let is_there = |entry: &&Entry| is_staged(&swap.staged(&entry.path), entry);
        let (there, lacking): (Vec<&Entry>, Vec<&Entry>) = wanted.iter().partition(is_there);
        if there.is_empty() {
            swap.volumes.swap_folders().try_for_each(|folder| remove_tree(&folder))?;
        }
        for entry in &lacking {
            let path = swap.staged(&entry.path);
            if std::fs::symlink_metadata(&path).is_ok() {
                std::fs::remove_file(&path)
                    .or_else(|_| std::fs::remove_dir_all(&path))
                    .map_err(|error| Error::io("remove", &path, error))?;
            }
        }
        create_private_dir(&swap.folder.join(NEW))?;
        Ok((swap, lacking.into_iter().cloned().collect()))
    }

    /// Where what is new and called `name` is put before [`Swap::apply`], under its whole name. It is in the volume that it is
    /// for.
    #[must_use]
    pub fn staging_of(&self, name: &str) -> PathBuf {
        let volume = &self.volumes.0[self.volumes.find(name).0];
        volume.folder().join(NEW)
    }

    /// Where what is new and called `name` itself lies until then.
    #[must_use]
    pub fn staged(&self, name: &str) -> PathBuf {
        self.staging_of(name).join(name)
    }

    /// Gives up before anything was touched.
    pub fn discard(&self) {
        // The journal goes first: without what it leads to it must not be followed.
        let _ = std::fs::remove_file(self.folder.join(JOURNAL));
        if let Err(error) = self.volumes.swap_folders().try_for_each(|folder| remove_tree(&folder)) {
            tracing::warn!(%error, "the staging folder is removed at the next start");
        }
    }

    fn sync(&self) -> Result<()> {
        self.volumes.swap_folders().filter(|folder| folder.exists()).try_for_each(|folder| {
            sync_file_system(&folder).map_err(|error| Error::io("write what was changed to", &folder, error))
        })
    }

    /// Performs the steps in order; takes back what was done if one fails. Gives what could not be made as it was to be.
    ///
    /// # Errors
    /// The failed step's. Then the old state is in place again; should even that fail, the error says so, and the
    /// next start tries anew.
    pub fn apply(self, occasion: Occasion, steps: Vec<Step>) -> Result<Vec<String>> {
        let mut journal = Journal { format: 1, occasion, undo: false, volumes: self.volumes.clone(), steps };
        let begin = || {
            self.volumes.make_ready(&journal.steps)?;
            let mover = Mover::new(&journal)?;
            self.sync()?;
            journal.write(&self.folder)?;
            Ok(mover)
        };
        let mover = match begin() {
            Ok(mover) => mover,
            Err(error) => {
                self.discard();
                return Err(error);
            }
        };
        match mover.forward(&journal.steps) {
            Ok(warnings) => self.finish().map(|()| warnings),
            Err(error) => {
                journal.undo = true;
                let undone = journal.write(&self.folder).and_then(|()| mover.backward(&journal.steps));
                match undone.and_then(|()| self.finish()) {
                    Ok(()) => Err(error),
                    Err(undo) => Err(Error::new(error.code(), format!("{error}; and taking it back failed: {undo}"))
                        .advise("the next command on this state directory tries again")),
                }
            }
        }
    }

    /// Copies a live database that is about to be overwritten to where things are set aside that no snapshot holds.
    ///
    /// # Errors
    /// `IO`; `LOCKED` when a writer holds it for too long.
    pub fn set_aside_copy(&self, name: &str, occasion: &Occasion) -> Result<()> {
        let (number, below) = self.volumes.find(name);
        let volume = &self.volumes.0[number];
        let folder = volume.place.directory.join(volume.set_aside()).join(occasion.folder_name());
        let mut copy = folder.join(below).into_os_string();
        while Path::new(&copy).exists() {
            copy.push("~");
        }
        let copy = PathBuf::from(copy);
        create_private_dir(copy.parent().unwrap_or(&folder))?;
        database::copy_whole(&self.volumes.locate(name), &copy)
    }

    /// What was set aside last of what is called `name`.
    #[must_use]
    pub fn newest_set_aside(&self, name: &str) -> Option<PathBuf> {
        let (number, below) = self.volumes.find(name);
        let volume = &self.volumes.0[number];
        let occasions = std::fs::read_dir(volume.place.directory.join(volume.set_aside())).ok()?.flatten();
        let dated =
            occasions.filter_map(|occasion| Some((occasion.metadata().ok()?.modified().ok()?, occasion.path())));
        dated
            .map(|(time, folder)| (time, folder.join(below)))
            .filter(|(_, path)| path.is_file())
            .max()
            .map(|(_, path)| path)
    }

    /// Declares the state whole by removing the journal, then cleans up.
    fn finish(&self) -> Result<()> {
        self.sync()?;
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
    /// Undoes writing; `None` when it is none, or leads outside the state.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let journal: Self = serde_json::from_slice(bytes).ok()?;
        let names = journal.steps.iter().map(Step::path).chain([&journal.occasion.safety_snapshot]);
        let stays = names.into_iter().all(|path| stays_inside(path));
        (journal.format == 1 && journal.volumes.make_sense() && stays).then_some(journal)
    }

    fn write(&self, folder: &Path) -> Result<()> {
        write_durably(&folder.join(JOURNAL), &to_json(self)?)
    }
}

/// Drops what is staged and waits for its time.
///
/// # Errors
/// `IO`.
pub fn drop_prepared(places: &Places, folder: &PrivateFolder) -> Result<()> {
    remove_file(&folder.path(PREPARED))?;
    remove_left_over(places, folder)
}

/// Removes what lies staged and does not wait for its time, once [`recover`] has found nothing to finish.
///
/// # Errors
/// `IO`.
pub fn remove_left_over(places: &Places, folder: &PrivateFolder) -> Result<()> {
    if folder.path(PREPARED).exists() || folder.path(SWAP).join(JOURNAL).exists() {
        return Ok(());
    }
    Volumes::of(places).swap_folders().try_for_each(|folder| remove_tree(&folder))
}

/// Finishes a swap that a crash interrupted, or takes it back if it cannot be finished.
///
/// # Errors
/// `LOCKED` when somebody has a database open that has to be moved, `CORRUPT` when the journal is damaged, `IO`.
pub fn recover(state_dir: &Path, folder: &PrivateFolder) -> Result<Option<Recovered>> {
    let swap_folder = folder.path(SWAP);
    let path = swap_folder.join(JOURNAL);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        // Nothing was touched.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let mut journal = Journal::parse(&bytes).ok_or_else(|| {
        Error::corrupt(&path.display().to_string(), "it is no journal of a rollback").advise(format!(
            "what was replaced lies in {}, what was to come in {}",
            swap_folder.join(OLD).display(),
            swap_folder.join(NEW).display()
        ))
    })?;
    journal.volumes.move_to(state_dir);
    let swap = Swap { folder: swap_folder, volumes: journal.volumes.clone() };
    if let Some(missing) = swap.volumes.without_swap_folder(&journal.steps) {
        let problem = format!(
            "a rollback was interrupted and has to be finished first, and part of it lies in {}, which is not there",
            missing.display()
        );
        return Err(Error::new(Code::Io, problem)
            .at_path(missing.display().to_string())
            .advise(format!("mount its disk; if that is gone for good, remove {} to go on without", path.display()))
            .retryable());
    }
    let mover = Mover::new(&journal)?;
    let locate = |name: &str| journal.volumes.locate(name);
    let locks = if journal.occasion.under_gateway { Ok(Vec::new()) } else { lock_databases(&locate, &journal.steps) };
    let _locks = locks.map_err(|error| {
        let problem = format!("a rollback was interrupted and has to be finished first: {error}");
        Error::new(error.code(), problem).because(error)
    })?;
    let (snapshot, safety_snapshot) = (journal.occasion.snapshot.clone(), journal.occasion.safety_snapshot.clone());
    let recovered = |finished| Some(Recovered { finished, snapshot, safety_snapshot });
    if !journal.undo {
        match mover.forward(&journal.steps) {
            Ok(warnings) => {
                tracing::warn!(before = journal.occasion.safety_snapshot, "finished a rollback that was interrupted");
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
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

/// Whether what lies at `path` is what `entry` says.
fn is_staged(path: &Path, entry: &Entry) -> bool {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => {
            entry.kind == Kind::Symlink
                && std::fs::read_link(path).is_ok_and(|target| target.as_os_str() == &*entry.target)
        }
        Ok(meta) if meta.is_file() && entry.has_content() && meta.len() == entry.size => {
            std::fs::File::open(path).and_then(sha256_of).is_ok_and(|sha256| sha256[..] == *entry.sha256)
        }
        _ => false,
    }
}

/// Takes the databases that the steps move for this process alone; `locate` says where a name lies.
///
/// # Errors
/// `LOCKED` when somebody has one open, `IO`.
pub fn lock_databases(locate: &dyn Fn(&str) -> PathBuf, steps: &[Step]) -> Result<Vec<Exclusive>> {
    let going = steps.iter().filter_map(|step| match step {
        Step::TakeAway { path, database: true, .. } => Some(locate(path)),
        _ => None,
    });
    // A directory that gives way takes the databases in it along.
    let below = |path: PathBuf| walkdir::WalkDir::new(path).follow_root_links(false).into_iter().flatten();
    let files = going.flat_map(below).filter(|found| found.file_type().is_file()).map(walkdir::DirEntry::into_path);
    let named: HashSet<PathBuf> = steps.iter().map(|step| locate(step.path())).collect();
    let is_named = |path: &PathBuf| named.contains(path);
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
    /// What it does, for messages.
    const fn deed(&self) -> &'static str {
        match self {
            Self::TakeAway { .. } => "move away",
            Self::MakeDirectory(_) => "create the directory",
            Self::Overwrite(_) => "overwrite",
            Self::PutIn(_) => "put in place",
            Self::RemoveDirectory { .. } => "remove the directory",
            Self::SetAttributes { .. } => "set the mode and time of",
        }
    }

    /// Of what.
    #[must_use]
    pub const fn path(&self) -> &String {
        let (Self::TakeAway { path, .. }
        | Self::MakeDirectory(path)
        | Self::Overwrite(path)
        | Self::PutIn(path)
        | Self::RemoveDirectory { path, .. }
        | Self::SetAttributes { path, .. }) = self;
        path
    }
}

/// Performs steps, and takes them back. Every access stays within the directory of a volume.
struct Mover {
    volumes: Volumes,
    /// The directories of those volumes that something happens in.
    open: HashMap<usize, Dir>,
    /// What the folder for what is set aside is called.
    occasion: String,
}

impl Mover {
    fn new(journal: &Journal) -> Result<Self> {
        let volumes = journal.volumes.clone();
        let mut open = HashMap::new();
        for number in volumes.used_by(&journal.steps) {
            let path = &volumes.0[number].place.directory;
            let opened = Dir::open_ambient_dir(path, ambient_authority());
            open.insert(number, opened.map_err(|error| Error::io("open", path, error))?);
        }
        Ok(Self { volumes, open, occasion: journal.occasion.folder_name() })
    }

    fn spot<'s>(&'s self, name: &'s str) -> Spot<'s> {
        let (number, live) = self.volumes.find(name);
        let volume = &self.volumes.0[number];
        let folder = volume.swap_folder();
        Spot {
            directory: &self.open[&number],
            shown: &volume.place.directory,
            live,
            staged: format!("{folder}/{NEW}/{name}"),
            old: format!("{folder}/{OLD}/{name}"),
            aside: format!("{}/{}/{name}", volume.set_aside(), self.occasion),
        }
    }

    fn forward(&self, steps: &[Step]) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let put_in = steps.iter().filter_map(|step| if let Step::PutIn(path) = step { Some(path) } else { None });
        let replaced: HashSet<&String> = put_in.collect();
        for step in steps {
            let spot = self.spot(step.path());
            // What replaces it may be in place already: that must not be taken for the old.
            if let Step::TakeAway { path, .. } = step
                && replaced.contains(path)
                && spot.exists(&spot.staged).is_ok_and(|waits| !waits)
            {
                continue;
            }
            let done = match step {
                Step::TakeAway { saved, database, .. } => spot.despite_modes(|| spot.take_away(*saved, *database)),
                Step::MakeDirectory(_) => spot.despite_modes(|| spot.make_directory()),
                Step::PutIn(_) => spot.despite_modes(|| spot.put_in()),
                Step::RemoveDirectory { .. } => spot.despite_modes(|| spot.remove_directory()),
                Step::SetAttributes { path, after, .. } => match spot.set_attributes(*after) {
                    // Somebody else's, as the top of a volume may be: its owner alone can. Everything else can go on.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        warnings.push(format!("{path} did not get its mode and time of the snapshot: {error}"));
                        Ok(())
                    }
                    set => set,
                },
                Step::Overwrite(_) => {
                    spot.overwrite()?;
                    Ok(())
                }
            };
            done.map_err(|error| Error::io(step.deed(), &spot.path(), error))?;
        }
        Ok(warnings)
    }

    /// Takes all steps back, also those that were not performed.
    fn backward(&self, steps: &[Step]) -> Result<()> {
        let failed = |spot: &Spot<'_>, error| Error::io("take back the change of", &spot.path(), error);
        for step in steps.iter().rev() {
            let spot = self.spot(step.path());
            let undone = match step {
                Step::TakeAway { saved, database, .. } => spot.despite_modes(|| spot.bring_back(*saved, *database)),
                Step::MakeDirectory(_) => spot.despite_modes(|| spot.remove_directory()),
                Step::PutIn(_) => spot.despite_modes(|| spot.take_out()),
                Step::RemoveDirectory { .. } => spot.despite_modes(|| spot.make_directory()),
                Step::SetAttributes { .. } => Ok(()),
                Step::Overwrite(_) => {
                    spot.take_back_overwriting()?;
                    Ok(())
                }
            };
            undone.map_err(|error| failed(&spot, error))?;
        }
        // Times of directories change while their entries come back, so that they are set last.
        for step in steps {
            if let Step::RemoveDirectory { before, .. } | Step::SetAttributes { before: Some(before), .. } = step {
                let spot = self.spot(step.path());
                // Nothing is lost with them; a journal that cannot be got rid of would take databases back once more each time.
                if let Err(error) = spot.set_attributes(*before) {
                    tracing::warn!(path = %spot.path().display(), %error, "the mode and time are not those of before");
                }
            }
        }
        Ok(())
    }
}

/// Everything about one name in a swap: paths below the directory of its volume.
struct Spot<'s> {
    directory: &'s Dir,
    /// The directory's path.
    shown: &'s Path,
    /// Where it belongs.
    live: &'s str,
    /// Where the new one waits.
    staged: String,
    /// Where the old one is kept until the swap is over.
    old: String,
    /// Where the old one stays if there is no other copy of it.
    aside: String,
}

impl Spot<'_> {
    fn path(&self) -> PathBuf {
        self.shown.join(self.live)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.directory.symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Renames something, if it is there.
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if !self.exists(from)? {
            return Ok(());
        }
        if let Some((parent, _)) = to.rsplit_once('/') {
            self.directory.create_dir_all(parent)?;
        }
        self.directory.rename(from, self.directory, to)
    }

    /// Moves something although the modes of directories forbid it, of those above it or its own: their owner can lift that
    /// for the moment. (What a rollback takes away may have been made read-only since, as caches of modules are.) `work` may
    /// be begun anew.
    fn despite_modes(&self, work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.with_modes_lifted(&[self.live, &self.staged, &self.old, &self.aside], work)
    }

    /// The same, of the directories above it and those named, if there is need.
    fn with_modes_lifted(&self, moving: &[&str], work: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let denied = match work() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => error,
            done => return done,
        };
        let mut above: Vec<&str> = parents(self.live).collect();
        above.push(".");
        let mut lifted = Vec::new();
        for path in above.into_iter().rev().chain(moving.iter().copied()) {
            lifted.extend(self.lift_mode(path));
        }
        let done = if lifted.is_empty() { Err(denied) } else { work() };
        lifted.iter().try_for_each(|(directory, before)| set_mode(directory, *before)).and(done)
    }

    /// Lets this process change a directory, if that is its own and forbids it. Gives the directory, to be found again where it
    /// is by then, and the mode that it had.
    #[cfg(unix)]
    fn lift_mode(&self, path: &str) -> Option<(std::fs::File, u32)> {
        let meta = std::fs::symlink_metadata(self.shown.join(path)).ok()?;
        let before = mode(&meta);
        if !meta.is_dir() || before & 0o700 == 0o700 {
            return None;
        }
        self.set_mode_of(path, before | 0o700).ok()?;
        Some((self.directory.open(path).ok()?.into_std(), before))
    }

    #[cfg(not(unix))]
    fn lift_mode(&self, _: &str) -> Option<(std::fs::File, u32)> {
        None
    }

    #[cfg(unix)]
    fn set_mode_of(&self, path: &str, mode: u32) -> io::Result<()> {
        let permissions: std::fs::Permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        self.directory.set_permissions(path, cap_std::fs::Permissions::from_std(permissions))
    }

    /// Renames a database. Its side files go first, so that at no moment it lies beside those of another.
    fn rename_with_side_files(&self, from: &str, to: &str) -> io::Result<()> {
        for suffix in database::SIDE_FILES {
            self.rename(&format!("{from}{suffix}"), &format!("{to}{suffix}"))?;
        }
        self.rename(from, to)
    }

    /// Keeps what turned up where something else has to go.
    fn make_way(&self) -> io::Result<()> {
        let mut aside = self.aside.clone();
        while self.exists(&aside)? {
            aside.push('~');
        }
        tracing::warn!(path = %self.path().display(), aside, "something new was in the way and is kept aside");
        self.rename_with_side_files(self.live, &aside)
    }

    fn take_away(&self, saved: bool, database: bool) -> io::Result<()> {
        let away = if saved { &self.old } else { &self.aside };
        match (self.exists(away)?, database) {
            (true, _) => Ok(()),
            (false, true) => self.rename_with_side_files(self.live, away),
            (false, false) => self.rename(self.live, away),
        }
    }

    fn bring_back(&self, saved: bool, database: bool) -> io::Result<()> {
        let away = if saved { &self.old } else { &self.aside };
        if self.exists(away)? && self.exists(self.live)? {
            self.make_way()?;
        }
        if database { self.rename_with_side_files(away, self.live) } else { self.rename(away, self.live) }
    }

    fn put_in(&self) -> io::Result<()> {
        if !self.exists(&self.staged)? {
            return Ok(());
        }
        if self.exists(self.live)? {
            self.make_way()?;
        }
        self.directory.rename(&self.staged, self.directory, self.live)
    }

    fn take_out(&self) -> io::Result<()> {
        if self.exists(&self.staged)? || !self.exists(self.live)? {
            return Ok(());
        }
        // With what a program that ran meanwhile may have made beside it.
        self.rename_with_side_files(self.live, &self.staged)
    }

    fn make_directory(&self) -> io::Result<()> {
        match self.directory.create_dir(self.live) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    fn remove_directory(&self) -> io::Result<()> {
        match self.directory.remove_dir(self.live) {
            Err(error) if !is_no_empty_directory(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Sets what differs, by its name: what may not be read has a mode all the same, and that of somebody else may be right.
    fn set_attributes(&self, wanted: Attributes) -> io::Result<()> {
        // Not those of its own: that is what is being set.
        self.with_modes_lifted(&[], || self.try_to_set_attributes(wanted))
    }

    fn try_to_set_attributes(&self, wanted: Attributes) -> io::Result<()> {
        let meta = std::fs::symlink_metadata(self.path())?;
        if meta.is_symlink() {
            return Err(io::Error::other("a link has taken its place"));
        }
        #[cfg(unix)]
        if mode(&meta) != wanted.mode {
            self.set_mode_of(self.live, wanted.mode)?;
        }
        if mtime(&meta) != wanted.mtime {
            set_time_of(self.directory, self.live, wanted.mtime)?;
        }
        Ok(())
    }

    /// Overwrites a live database, after a copy of it has been made for taking that back.
    fn overwrite(&self) -> Result<()> {
        let old = self.shown.join(&self.old);
        if !old.exists() {
            create_private_dir(old.parent().unwrap_or(self.shown))?;
            let part = old.with_extension("part");
            let _ = std::fs::remove_file(&part);
            database::copy_whole(&self.path(), &part)?;
            let renamed = std::fs::File::open(&part).and_then(|file| file.sync_all());
            renamed.and_then(|()| std::fs::rename(&part, &old)).map_err(|error| Error::io("rename", &part, error))?;
        }
        database::overwrite(&self.path(), &self.shown.join(&self.staged))
    }

    /// Once: when another step cannot be taken back yet, what is written to the database until then must stay.
    fn take_back_overwriting(&self) -> Result<()> {
        let old = self.shown.join(&self.old);
        if !old.exists() {
            return Ok(());
        }
        database::overwrite(&self.path(), &old)?;
        std::fs::rename(&old, old.with_extension("taken-back")).map_err(|error| Error::io("rename", &old, error))
    }
}

/// Whether a directory was not removed since it is not there, holds something, is still what it was to replace, or has
/// something mounted on it.
fn is_no_empty_directory(error: &io::Error) -> bool {
    use io::ErrorKind::{DirectoryNotEmpty, NotADirectory, NotFound, ResourceBusy};
    matches!(error.kind(), NotFound | DirectoryNotEmpty | NotADirectory | ResourceBusy)
}

/// Makes everything written so far survive a power cut.
fn sync_file_system(folder: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::syncfs(std::fs::File::open(folder)?)?;
    // Elsewhere as far as files can be opened for it.
    #[cfg(not(target_os = "linux"))]
    for entry in walkdir::WalkDir::new(folder).into_iter().flatten().filter(|entry| !entry.path_is_symlink()) {
        if let Ok(file) = std::fs::File::open(entry.path()) {
            let _ = file.sync_all();
        }
    }
    Ok(())
}
