//! `pull`: writes a snapshot's files into a new or empty directory, never into the live state.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::snapshot::Snapshot;
use super::workplace::cache_for_reading;
use super::{Exception, Meter, Operation, PullOptions, PullReport};
use crate::config::Target;
use crate::error::{Error, Result, to_json};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::restore::{lost_files, parents};
use crate::repository::tree::{Entry, Kind};
use crate::state::database;
use crate::state::places::Places;
use crate::state::private::{create_private_dir, create_private_file, remove_file, remove_tree};
use crate::state::rules::PathFilter;
use crate::task::blocking;

/// Where files lie until all of them are there and checked. A directory that holds only this counts as empty: it is
/// what a pull leaves that was killed.
const PARTIAL: &str = ".openclaw-b2-backup-partial";
/// Names what is being moved from there to where it belongs, so that a pull that is killed meanwhile can be repeated:
/// while this is there, what it names is of that pull.
const MOVING: &str = ".openclaw-b2-backup-moving";

/// Writes a snapshot, or the part of it that `paths` choose. With an error nothing is left behind. Where files cannot be
/// restored as they were stored, that is one, unless `partial` says to do without them.
///
/// # Errors
/// `CONFIG` when the directory is not empty or lies in the live state, `NOT_FOUND`, `CORRUPT`, `UNSAFE_PATH`, `IO`,
/// `CANCELLED`, and those of [`Repository::open`].
pub async fn pull(target: &Target, options: PullOptions, operation: &Operation) -> Result<PullReport> {
    let filter = PathFilter::new(&options.paths)?;
    let directory = {
        let (directory, target) = (options.directory.clone(), target.clone());
        blocking(move || check_directory(&directory, &Places::find(&target))).await?
    };
    let cache = cache_for_reading(target).await;
    let mut repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    let mut snapshot = Snapshot::find(&mut repository, target, &options.snapshot, operation).await?;
    let id = snapshot.id.clone();
    let in_snapshot = |error: Error| error.in_snapshot(id.as_str());
    snapshot.check_chosen(&filter, &options.paths)?;
    let entries = chosen(std::mem::take(&mut snapshot.entries), &filter);
    let exceptions: Vec<Exception> = exceptions(&entries);
    snapshot.check_available(&entries)?;
    let sizes: BTreeMap<String, u64> = entries
        .iter()
        .filter(|entry| matches!(entry.kind, Kind::File | Kind::Database | Kind::Symlink))
        .map(|entry| (entry.path.clone(), entry.size))
        .collect();

    let databases = entries.iter().filter(|entry| entry.kind == Kind::Database);
    let databases: Vec<String> = databases.map(|entry| entry.path.clone()).collect();

    let destination = blocking(move || Destination::create(directory)).await?;
    let meter = Arc::new(Meter::new(operation, "download", 0, 0));
    let restored = snapshot.restore(&repository, entries, &destination.partial(), meter, operation).await;
    let finish = move || match restored {
        Ok(lost) if lost.is_empty() || options.partial => {
            destination.complete(&databases).map(|warnings| (lost, warnings))
        }
        failed => {
            destination.remove();
            Err(failed.map_or_else(|error| error, |lost| lost_files(&lost)))
        }
    };
    let (lost, warnings) = blocking(finish).await.map_err(in_snapshot)?;
    let files = sizes.len().saturating_sub(lost.len()) as u64;
    let bytes = sizes.values().sum::<u64>() - lost.iter().filter_map(|lost| sizes.get(&lost.path)).sum::<u64>();
    Ok(PullReport { snapshot: snapshot.id, files, bytes, exceptions, lost, warnings })
}

/// What the tree says is not in the snapshot.
pub(super) fn exceptions(entries: &[Entry]) -> Vec<Exception> {
    let exceptions = entries.iter().filter(|entry| entry.kind == Kind::Exception);
    exceptions.map(|entry| Exception { path: entry.path.clone(), reason: entry.target.clone() }).collect()
}

/// The entries that the filter lets through, and the directories above them.
fn chosen(mut entries: Vec<Entry>, filter: &PathFilter) -> Vec<Entry> {
    if !filter.is_all() {
        let matching = entries.iter().filter(|entry| filter.matches(&entry.path));
        let needed: std::collections::HashSet<String> = matching
            .flat_map(|entry| std::iter::once(entry.path.as_str()).chain(parents(&entry.path)))
            .map(str::to_owned)
            .collect();
        entries.retain(|entry| needed.contains(&entry.path));
    }
    entries
}

/// The absolute path of a directory that may be written to: new or empty, and apart from the live state.
fn check_directory(directory: &Path, live: &Places) -> Result<PathBuf> {
    let refused = |problem: String| {
        Err(Error::config("target", format!("{} {problem}", directory.display()))
            .at_path(directory.display().to_string())
            .advise("name a new or empty directory"))
    };
    let absolute = std::path::absolute(directory).map_err(|error| Error::io("find", directory, error))?;
    match fs::read_dir(&absolute) {
        Ok(entries) => {
            let moved = moved(&absolute);
            for entry in entries {
                let entry = entry.map_err(|error| Error::io("read", &absolute, error))?;
                let name = entry.file_name();
                let is_ours = [PARTIAL, MOVING].iter().any(|own| name == *own) || moved.iter().any(|own| name == **own);
                if !is_ours {
                    return refused("is not empty".into());
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return refused("is not a directory".into()),
        Err(error) => return Err(Error::io("read", &absolute, error)),
    }
    let real = resolve(&absolute);
    let meets = |live: PathBuf| real.starts_with(&live) || live.starts_with(&real);
    if live.all().iter().any(|place| meets(resolve(&place.path()))) {
        return refused("is, holds or lies in the live state".into());
    }
    Ok(absolute)
}

/// The path without symlinks, as far as it exists.
fn resolve(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = fs::canonicalize(ancestor) {
            return path.strip_prefix(ancestor).map_or_else(|_| real.clone(), |rest| real.join(rest));
        }
    }
    path.to_owned()
}

/// What a pull that was interrupted at its very end has put into `directory`.
fn moved(directory: &Path) -> Vec<String> {
    let names = fs::read(directory.join(MOVING)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let mut names: Vec<String> = names.unwrap_or_default();
    names.retain(|name| Path::new(name).file_name().is_some_and(|own| own == name.as_str()));
    names
}

/// The directory that a pull writes to.
struct Destination {
    directory: PathBuf,
    /// The topmost directory that had to be made for it.
    made: Option<PathBuf>,
}

impl Destination {
    fn create(directory: PathBuf) -> Result<Self> {
        let made = directory.ancestors().take_while(|path| !path.exists()).last().map(Path::to_owned);
        fs::create_dir_all(&directory).map_err(|error| Error::io("create the directory", &directory, error))?;
        let destination = Self { directory, made };
        let partial = destination.partial();
        if let Err(error) = destination.take_back().and_then(|()| create_private_dir(&partial)) {
            destination.remove();
            return Err(error);
        }
        Ok(destination)
    }

    fn partial(&self) -> PathBuf {
        self.directory.join(PARTIAL)
    }

    /// Finishes the databases and moves everything to where it belongs, or takes it all back. Gives what the owner should know.
    fn complete(&self, databases: &[String]) -> Result<Vec<String>> {
        let finish = || {
            let mut warnings = Vec::new();
            for path in databases {
                let problems = database::make_indexes_again(&self.partial().join(path))?;
                warnings.extend(problems.into_iter().map(|problem| format!("{path}: {problem}")));
            }
            self.move_all().map(|()| warnings)
        };
        finish().inspect_err(|_| self.remove())
    }

    fn move_all(&self) -> Result<()> {
        let (partial, moving) = (self.partial(), self.directory.join(MOVING));
        let failed = |error| Error::io("move the files to", &self.directory, error);
        let names: Vec<_> = fs::read_dir(&partial)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect())
            .map_err(failed)?;
        // The names of a snapshot's files are text.
        let texts: Vec<_> = names.iter().map(|name| name.to_string_lossy()).collect();
        let list = to_json(&texts)?;
        // One that was cut is no list, and then nothing was moved either.
        let mut file = create_private_file(&moving)?;
        file.write_all(&list).and_then(|()| file.sync_all()).map_err(failed)?;
        names.iter().try_for_each(|name| move_up(&partial.join(name), &self.directory.join(name))).map_err(failed)?;
        // From here on the pull is done.
        fs::remove_file(&moving).map_err(failed)?;
        if let Err(error) = fs::remove_dir(&partial) {
            tracing::warn!(path = %partial.display(), %error, "an empty directory could not be removed");
        }
        Ok(())
    }

    /// Removes what this pull has written, or one before it that was killed.
    fn take_back(&self) -> Result<()> {
        for name in moved(&self.directory) {
            let path = self.directory.join(name);
            match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => remove_tree(&path)?,
                _ => remove_file(&path)?,
            }
        }
        remove_tree(&self.partial())?;
        remove_file(&self.directory.join(MOVING))
    }

    /// Takes back what was written.
    fn remove(&self) {
        if let Err(error) = self.take_back() {
            tracing::warn!(%error, "what was pulled could not be removed; the next pull to the same directory does");
        }
        if let Some(made) = &self.made {
            // Only what is empty goes: nobody else's files.
            for path in self.directory.ancestors().take_while(|path| path.starts_with(made)) {
                let _ = fs::remove_dir(path);
            }
        }
    }
}

/// Renames a file or directory. A directory must be writable to be moved, as its entry `..` changes.
fn move_up(from: &Path, to: &Path) -> io::Result<()> {
    let Err(error) = fs::rename(from, to) else { return Ok(()) };
    #[cfg(unix)]
    if error.kind() == io::ErrorKind::PermissionDenied && fs::symlink_metadata(from)?.is_dir() {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs::metadata(from)?;
        let modified = meta.modified()?;
        fs::set_permissions(from, fs::Permissions::from_mode(meta.permissions().mode() | 0o700))?;
        fs::rename(from, to)?;
        fs::File::open(to)?.set_modified(modified)?;
        return fs::set_permissions(to, meta.permissions());
    }
    Err(error)
}
