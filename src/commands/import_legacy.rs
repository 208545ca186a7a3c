//! `import-legacy`: makes snapshots of this format of those that 0.1.x has written, which stay as they are.
//!
//! Each is fetched whole into the private folder, checked, and then pushed as if that folder were the state: by the same
//! rules, without credentials, deduplicated with all that is there. Older ones come first, and what two of them share is
//! fetched once. An interruption loses the one under way; what was imported says so in its manifest, and is not again.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::list::{Summaries, summaries};
use super::push::{Upload, WhenUnchanged};
use super::workplace::Workplace;
use super::{Exception, ImportOptions, ImportReport, Imported, Meter, Operation};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::legacy::LegacyId;
use crate::repository::legacy::catalog::Catalog;
use crate::repository::legacy::source::{Plain, Source};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::tree::{Entry, Kind};
use crate::state::places::Places;
use crate::task::blocking;

/// Imports every snapshot of 0.1.x that can be restored wholly and was not imported yet.
///
/// # Errors
/// `LOCKED`, `CONFIG`, `IO`, `CANCELLED`, and those of [`Repository::open`] and of the store. What is wrong with one
/// snapshot is in the report, not an error.
pub async fn import_legacy(target: &Target, options: ImportOptions, operation: &Operation) -> Result<ImportReport> {
    let mut workplace = Workplace::open(target, "import-legacy").await?;
    let cache = Some(Arc::clone(&workplace.cache));
    let repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    let Summaries { readable, .. } = summaries(&repository, operation).await?;
    let present: HashSet<String> = readable.into_iter().filter_map(|(_, summary)| summary.imported_from).collect();
    let catalog = Catalog::read(&repository, operation).await?;
    let plain = if options.accept_plain { Plain::Accepted } else { Plain::of(target) };
    let folder = workplace.folder.fresh_import_folder()?;
    // The folder takes the state's place. What lies outside the state directory is no part of a snapshot of 0.1.x.
    let mut places = Places::within(&folder);
    places.config_files.clone_from(&workplace.places.config_files);
    places.secret_files.clone_from(&workplace.places.secret_files);
    workplace.places = places;
    let mut import =
        Import { target, workplace: &workplace, catalog, repository, plain, staged: Staged::new(folder), operation };
    let report = import.all(&present).await;
    // No plain copy outlives the command, however it ends.
    workplace.folder.remove_import_folder()?;
    report
}

fn is_about_the_snapshot(error: &Error) -> bool {
    matches!(error.code(), Code::Corrupt | Code::NotFound | Code::UnsafePath | Code::WrongKey)
}

struct Import<'i> {
    target: &'i Target,
    workplace: &'i Workplace,
    catalog: Catalog,
    repository: Repository,
    plain: Plain,
    staged: Staged,
    operation: &'i Operation,
}

impl Import<'_> {
    async fn all(&mut self, present: &HashSet<String>) -> Result<ImportReport> {
        let mut report = ImportReport::default();
        let ids: Vec<LegacyId> = self.repository.contents.legacy.iter().map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.operation.check()?;
            if present.contains(id.as_str()) {
                report.present += 1;
                continue;
            }
            match self.one(&id).await {
                Ok(snapshot) => report.imported.push(Imported { from: id.to_string(), snapshot }),
                Err(error) if is_about_the_snapshot(&error) => {
                    report.skipped.push(Exception { path: id.to_string(), reason: error.to_string() });
                }
                Err(error) => return Err(error.in_snapshot(id.as_str())),
            }
        }
        Ok(report)
    }

    async fn one(&mut self, id: &LegacyId) -> Result<String> {
        // Should somebody date a snapshot so that it becomes the latest, it is found out here.
        if id.time() > self.repository.now()? {
            return Err(Error::corrupt(&id.manifest_key(), "its time is in the future"));
        }
        let (entries, source) = Source::open(&mut self.catalog, &self.repository, self.target, id, self.plain)?;
        source.check_available(&entries)?;
        self.stage(entries, Arc::new(source)).await?;
        let mut upload = Upload::start(self.target, self.workplace, WhenUnchanged::Store, self.operation).await?;
        Ok(upload.commit_import(id).await?.to_string())
    }

    /// Makes the folder hold the snapshot's files and nothing else.
    async fn stage(&mut self, entries: Vec<Entry>, source: Arc<Source>) -> Result<()> {
        let wanted: HashMap<String, Vec<u8>> =
            entries.iter().filter(|entry| entry.has_content()).map(|e| (e.path.clone(), e.sha256.clone())).collect();
        let nothing = Staged::new(self.staged.folder.clone());
        let mut staged = std::mem::replace(&mut self.staged, nothing);
        let (staged, lacking) = blocking(move || {
            staged.retain(&wanted)?;
            let is_there = |entry: &Entry| entry.has_content() && staged.files.contains_key(&entry.path);
            let lacking: Vec<Entry> =
                entries.into_iter().filter(|entry| entry.kind != Kind::Exception && !is_there(entry)).collect();
            staged.files = wanted;
            Ok((staged, lacking))
        })
        .await?;
        let meter = Arc::new(Meter::new(self.operation, "download", 0, 0));
        let restored = source.restore(lacking, &staged.folder, meter, self.operation).await;
        match restored {
            Ok(()) => self.staged = staged,
            // Nobody knows what of it is there: the next one starts from nothing.
            Err(error) => {
                self.workplace.folder.fresh_import_folder()?;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// What lies in the folder, checked.
struct Staged {
    folder: PathBuf,
    /// The hashes of the manifest by path.
    files: HashMap<String, Vec<u8>>,
}

impl Staged {
    fn new(folder: PathBuf) -> Self {
        Self { folder, files: HashMap::new() }
    }

    /// Removes what is not wanted, and the directories that are empty then.
    fn retain(&mut self, wanted: &HashMap<String, Vec<u8>>) -> Result<()> {
        let folder = self.folder.clone();
        let mut going = Vec::new();
        self.files.retain(|path, sha256| {
            let stays = wanted.get(path) == Some(sha256);
            if !stays {
                going.push(path.clone());
            }
            stays
        });
        for path in going {
            remove_with_empty_parents(&folder, &folder.join(path))?;
        }
        Ok(())
    }
}

fn remove_with_empty_parents(folder: &Path, path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|error| Error::io("remove", path, error))?;
    for parent in path.ancestors().skip(1).take_while(|parent| *parent != folder) {
        if std::fs::remove_dir(parent).is_err() {
            break;
        }
    }
    Ok(())
}
