//! The product's own folder, `<stateDir>/b2-backup/`: lock, machine id, cache, temporary copies, a rollback under way.
//!
//! Everything in it is 0700/0600, is made again when lost, and never goes into a snapshot.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Code, Error, Result};
use crate::repository::id::{MachineId, hex, random};

/// The folder's name below the state directory.
pub const FOLDER: &str = "b2-backup";

/// The folder in it for plain copies.
const TEMPORARY: &str = "tmp";
/// The folder in it for a restore that is only tried.
const SCRATCH: &str = "drill";
/// The file in it with the machine's id.
const MACHINE: &str = "machine-id";
/// The file in it with the snapshot from which on the owner has agreed to what the state holds.
const ACCEPTED: &str = "accepted-shrink";
/// The folder in it where a snapshot of 0.1.x lies while it is imported.
const IMPORT: &str = "import";

/// How long a command waits for another one on the same state directory before it gives up.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// The product's own folder in one state directory.
#[derive(Debug, Clone)]
pub struct PrivateFolder {
    root: PathBuf,
}

impl PrivateFolder {
    /// Makes the folder if it is not there.
    ///
    /// # Errors
    /// `CONFIG` when the state directory does not exist, `IO` when it cannot be written.
    pub fn open(state_dir: &Path) -> Result<Self> {
        if !state_dir.is_dir() {
            return Err(Error::config("stateDir", format!("{} is not a directory", state_dir.display()))
                .at_path(state_dir.display().to_string())
                .advise("check --state-dir or OPENCLAW_STATE_DIR"));
        }
        let root = state_dir.join(FOLDER);
        match fs::symlink_metadata(&root) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                return Err(Error::new(Code::UnsafePath, format!("{} is not a plain directory", root.display()))
                    .at_path(root.display().to_string())
                    .advise("remove it"));
            }
            Err(_) => create_private_dir(&root)?,
        }
        Ok(Self { root })
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where plain copies of databases lie while they are read, empty.
    ///
    /// # Errors
    /// `IO` when it cannot be emptied.
    pub fn fresh_temporary_folder(&self) -> Result<PathBuf> {
        self.remove_temporary_folder()?;
        let folder = self.path(TEMPORARY);
        create_private_dir(&folder)?;
        Ok(folder)
    }

    /// Removes the plain copies of databases.
    ///
    /// # Errors
    /// `IO`.
    fn remove_temporary_folder(&self) -> Result<()> {
        remove_tree(&self.path(TEMPORARY))
    }

    /// Where a snapshot of 0.1.x lies while it is imported, empty.
    ///
    /// # Errors
    /// `IO` when it cannot be emptied.
    pub fn fresh_import_folder(&self) -> Result<PathBuf> {
        self.remove_import_folder()?;
        let folder = self.path(IMPORT);
        create_private_dir(&folder)?;
        Ok(folder)
    }

    /// Removes what [`PrivateFolder::fresh_import_folder`] has made.
    ///
    /// # Errors
    /// `IO`.
    pub fn remove_import_folder(&self) -> Result<()> {
        remove_tree(&self.path(IMPORT))
    }

    /// Removes the plain copies that a crash may have left, at the start of every command that takes the lock.
    ///
    /// # Errors
    /// `IO`.
    pub fn remove_leftovers(&self) -> Result<()> {
        self.remove_temporary_folder()?;
        self.remove_import_folder()
    }

    /// A folder for a restore that is only tried, empty; it is removed when it is dropped. No other command waits for it.
    ///
    /// # Errors
    /// `LOCKED` when another process has it, `IO`.
    pub fn scratch(&self) -> Result<Scratch> {
        let lock = self.take_lock("drill.lock", "drill", Duration::ZERO)?;
        let path = self.path(SCRATCH);
        remove_tree(&path)?;
        create_private_dir(&path)?;
        Ok(Scratch { path, _lock: lock })
    }

    /// Removes what a crash has left of one, as long as nobody is using it.
    ///
    /// # Errors
    /// `IO`.
    pub fn remove_scratch(&self) -> Result<()> {
        match fs::symlink_metadata(self.path(SCRATCH)) {
            Ok(_) => match self.scratch() {
                Err(error) if error.code() == Code::Locked => Ok(()),
                scratch => scratch?.remove(),
            },
            Err(_) => Ok(()),
        }
    }

    /// From which snapshot on the owner has agreed to what the state holds; its id.
    #[must_use]
    pub fn accepted_shrink(&self) -> Option<String> {
        let text = fs::read_to_string(self.path(ACCEPTED)).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    /// Remembers that the owner has agreed to what the state held at `snapshot`. It lies beside the machine's id, for which
    /// alone it counts.
    ///
    /// # Errors
    /// `IO`.
    pub fn accept_shrink(&self, snapshot: &str) -> Result<()> {
        write_durably(&self.path(ACCEPTED), format!("{snapshot}\n").as_bytes())
    }

    /// The folder of a state directory, if there is one: nothing is made.
    #[must_use]
    pub fn existing(state_dir: &Path) -> Option<Self> {
        let root = state_dir.join(FOLDER);
        fs::symlink_metadata(&root).is_ok_and(|meta| meta.is_dir()).then_some(Self { root })
    }

    /// This machine's id, if it has one yet.
    #[must_use]
    pub fn known_machine_id(&self) -> Option<MachineId> {
        fs::read_to_string(self.path(MACHINE)).ok()?.trim().parse().ok()
    }

    /// This machine's random id. Never restored from elsewhere: retention counts per machine.
    ///
    /// # Errors
    /// `IO` when it can be neither read nor made.
    pub fn machine_id(&self) -> Result<MachineId> {
        if let Some(id) = self.known_machine_id() {
            return Ok(id);
        }
        let id = MachineId(random()?);
        write_durably(&self.path(MACHINE), format!("{id}\n").as_bytes())?;
        Ok(id)
    }

    /// Takes the folder's lock, which ends with the process that holds it and can never be stale.
    ///
    /// # Errors
    /// `LOCKED`, saying who holds it and since when, after a few seconds; `IO`.
    pub fn lock(&self, verb: &str) -> Result<Lock> {
        self.take_lock("lock", verb, LOCK_PATIENCE)
    }

    fn take_lock(&self, name: &str, verb: &str, patience: Duration) -> Result<Lock> {
        let path = self.path(name);
        let failed = |error| Error::io("lock", &path, error);
        let mut file =
            private_file().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let started = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(fs::TryLockError::WouldBlock) if started.elapsed() < patience => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(fs::TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.read_to_string(&mut holder);
                    let holder = holder.lines().next().filter(|line| !line.is_empty()).unwrap_or("another process");
                    return Err(Error::new(Code::Locked, format!("{holder} is working on this state directory"))
                        .at_path(path.display().to_string())
                        .advise("try again when it is done")
                        .retryable());
                }
                Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC");
        let holder = format!("{verb} (process {}, since {now})\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(failed)?;
        Ok(Lock { _file: file })
    }
}

/// Held while a command changes the state directory or the product's own folder; given back when dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// A folder that nobody else uses and that does not stay.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: Lock,
}

impl Scratch {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, and says if that fails.
    ///
    /// # Errors
    /// `IO`.
    pub fn remove(&self) -> Result<()> {
        remove_tree(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, "the scratch folder is removed by the next command");
        }
    }
}

/// Options that make a file readable to its owner alone.
fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes a new empty file, readable to its owner alone.
///
/// # Errors
/// `IO`, also when it exists.
pub fn create_private_file(path: &Path) -> Result<File> {
    private_file().write(true).create_new(true).open(path).map_err(|error| Error::io("create", path, error))
}

/// Makes a directory (and those above it), readable to its owner alone.
///
/// # Errors
/// `IO`.
pub fn create_private_dir(path: &Path) -> Result<()> {
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path).map_err(|error| Error::io("create the directory", path, error))
}

/// Replaces a small file of the product's own: a crash leaves the old content or the new.
///
/// # Errors
/// `IO`.
pub fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = path.with_extension(format!("{}.tmp", hex(&random::<4>()?)));
    let mut file = create_private_file(&temporary)?;
    let written = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, path));
    written.and_then(|()| sync_parent(path)).map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::io("write", path, error)
    })
}

/// Makes a rename or removal in the directory of `path` survive a power cut.
///
/// # Errors
/// What the file system says.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if cfg!(unix) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Removes a file; nothing to do when there is none.
///
/// # Errors
/// `IO`.
pub fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Removes a directory with all below it; nothing to do when there is none. Symlinks are removed, never followed.
///
/// # Errors
/// `IO`.
pub fn remove_tree(path: &Path) -> Result<()> {
    let removed = fs::remove_dir_all(path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        // Directories that somebody has made read-only.
        io::ErrorKind::PermissionDenied => open_up(path).and_then(|()| fs::remove_dir_all(path)),
        _ => Err(error),
    });
    removed.map_err(|error| Error::io("remove", path, error))
}

/// Lets this process change a directory and all below it.
fn open_up(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    fs::read_dir(path)?.try_for_each(|child| open_up(&child?.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_id_stays_the_same() {
        let state = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open(state.path()).unwrap();
        assert_eq!(folder.machine_id().unwrap(), folder.machine_id().unwrap());
    }

    #[test]
    fn a_held_lock_names_its_holder() {
        let state = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open(state.path()).unwrap();
        let held = folder.lock("push").unwrap();
        let error = folder.take_lock("lock", "rollback", Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.code(), Code::Locked);
        assert!(error.to_string().starts_with(&format!("push (process {}", std::process::id())), "{error}");
        drop(held);
        folder.lock("rollback").unwrap();
    }

    #[test]
    fn leftover_copies_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let folder = PrivateFolder::open(state.path()).unwrap();
        let temporary = folder.fresh_temporary_folder().unwrap();
        fs::write(temporary.join("copy.sqlite"), "plain").unwrap();
        assert_eq!(fs::read_dir(folder.fresh_temporary_folder().unwrap()).unwrap().count(), 0);
    }
}
