//! `drill`: proves that a snapshot can be restored by restoring one, beside the state and away from it.
//!
//! Everything comes from the store, as it would on a new machine. What was restored is read back from the disk, its hashes
//! are compared and its databases checked, and then it is removed. Nothing of the state is touched, and no push waits.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use super::list::{Selected, select};
use super::{DrillOptions, DrillReport, Meter, Operation};
use crate::config::Target;
use crate::error::{Code, Error, Result, to_json};
use crate::repository::id::{SnapshotId, random};
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::restore::{free_space, sha256_of};
use crate::repository::tree::{Entry, Kind};
use crate::state::database;
use crate::state::private::{FOLDER, PrivateFolder, create_private_dir, write_durably};
use crate::task::blocking;

/// The file in the private folder that remembers what drills have shown.
const RECORD: &str = "drill.json";
/// A drill takes at most this part of the free disk space: the state goes on growing meanwhile.
const PART_OF_FREE_SPACE: u64 = 2;
/// How many problems are remembered.
const KEPT_PROBLEMS: usize = 20;

/// What is remembered of drills, in the private folder.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Record {
    /// Which repository this is about.
    repository: String,
    /// The last snapshot that was restored wholly.
    pub(super) proven: Option<Proven>,
    /// The last one that was not, unless it was since.
    pub(super) failed: Option<Failed>,
}

/// A snapshot that was restored wholly.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proven {
    /// The snapshot's id.
    pub snapshot: String,
    /// When it was restored, by this machine's clock.
    pub at: jiff::Timestamp,
}

/// A snapshot that could not be restored wholly.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failed {
    /// The snapshot's id.
    pub snapshot: String,
    /// When it was tried, by this machine's clock.
    pub at: jiff::Timestamp,
    /// What was wrong, the first of it.
    pub problems: Vec<String>,
}

impl Record {
    /// What the private folder of a state directory says of this repository; nothing where it says nothing, or cannot be
    /// read.
    pub(super) fn read(target: &Target) -> Self {
        let bytes = fs::read(target.state_dir.join(FOLDER).join(RECORD)).unwrap_or_default();
        let record: Self = serde_json::from_slice(&bytes).unwrap_or_default();
        if record.repository == target.identity() { record } else { Self::default() }
    }

    /// Takes in the outcome of a drill, and writes it down.
    fn note(target: &Target, folder: &PrivateFolder, report: &DrillReport) -> Result<()> {
        let (mut record, at) = (Self::read(target), jiff::Timestamp::now());
        let snapshot = report.snapshot.clone();
        record.repository = target.identity();
        if report.problems.is_empty() {
            record.failed = record.failed.filter(|failed| failed.snapshot != snapshot);
            record.proven = Some(Proven { snapshot, at });
        } else {
            record.proven = record.proven.filter(|proven| proven.snapshot != snapshot);
            let problems = report.problems.iter().take(KEPT_PROBLEMS).cloned().collect();
            record.failed = Some(Failed { snapshot, at, problems });
        }
        write_durably(&folder.path(RECORD), &to_json(&record)?)
    }
}

/// Restores a snapshot to a scratch folder in the private folder, checks it, and removes it. Without a name it is in half of
/// the cases the newest regular one, else any.
///
/// # Errors
/// `LOCKED` when another drill is under way, `NOT_FOUND` when there is no such snapshot, `IO`, `CANCELLED`, and those of
/// [`Repository::open`] and of the store. That the snapshot cannot be restored is in the report, not an error.
pub async fn drill(target: &Target, options: DrillOptions, operation: &Operation) -> Result<DrillReport> {
    let folder = {
        let state_dir = target.state_dir.clone();
        blocking(move || PrivateFolder::open(&state_dir)).await?
    };
    let repository = Repository::open(target, None, IfMissing::ReadAsEmpty, operation).await?;
    let name = match options.snapshot {
        Some(name) => name,
        None => match sample(&repository)? {
            Some(id) => id,
            None => return Ok(DrillReport::skipped(String::new(), "there is no snapshot yet")),
        },
    };
    let (id, summary) = match select(&repository, &name, operation).await {
        // Known by its whole name, so that this is about a listed snapshot.
        Err(error) if error.code() == Code::Corrupt && repository.contents.has_snapshot(&name) => {
            let report = DrillReport { snapshot: name, problems: vec![error.to_string()], ..DrillReport::default() };
            return noted(target, folder, report).await;
        }
        selected => match selected? {
            Selected::Current(id, summary) => (id, summary),
            Selected::Legacy(id) => {
                let problem = format!("{id} is a snapshot of 0.1.x, which a drill does not try");
                return Err(
                    Error::config("snapshot", problem).advise("import-legacy makes a snapshot of this version of it")
                );
            }
        },
    };
    let report = restore_and_check(repository, folder.clone(), &id, &summary, operation).await?;
    if report.skipped.is_some() { Ok(report) } else { noted(target, folder, report).await }
}

async fn noted(target: &Target, folder: PrivateFolder, report: DrillReport) -> Result<DrillReport> {
    let target = target.clone();
    blocking(move || Record::note(&target, &folder, &report).map(|()| report)).await
}

/// A snapshot to try: every other time the newest regular one, which is the one that will most likely be needed.
fn sample(repository: &Repository) -> Result<Option<String>> {
    let listed = &repository.contents.snapshots;
    let dice = u64::from_le_bytes(random()?);
    let newest = listed.iter().rev().find(|(id, _)| !id.is_safety());
    let any = listed.get((dice >> 1) as usize % listed.len().max(1));
    let chosen = if dice & 1 == 0 { newest.or(any) } else { any };
    Ok(chosen.map(|(id, _)| id.to_string()))
}

async fn restore_and_check(
    mut repository: Repository,
    folder: PrivateFolder,
    id: &SnapshotId,
    summary: &Summary,
    operation: &Operation,
) -> Result<DrillReport> {
    let mut report = DrillReport { snapshot: id.to_string(), ..DrillReport::default() };
    let index = repository.attempt_index().await;
    let (index, entries) = match repository.read_snapshot(index, &summary.tree, operation).await {
        Ok(read) => read,
        Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::UnsafePath) => {
            report.problems.push(format!("the file tree cannot be read: {error}"));
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    // Whatever modes the snapshot has: here everything is private, and can be removed.
    let private = |mut entry: Entry| {
        entry.mode = if entry.kind == Kind::Directory { 0o700 } else { 0o600 };
        entry
    };
    let entries: Vec<Entry> = entries.into_iter().map(private).collect();
    let bytes = entries.iter().map(|entry| entry.size).sum();
    let scratch = {
        let folder = folder.clone();
        blocking(move || folder.scratch()).await?
    };
    if let Some(problem) = free_space(scratch.path()).and_then(|free| does_not_fit(bytes, free)) {
        return Ok(DrillReport::skipped(report.snapshot, &problem));
    }
    let place = scratch.path().join("files");
    {
        let place = place.clone();
        blocking(move || create_private_dir(&place)).await?;
    }
    let meter = Arc::new(Meter::new(operation, "download", 0, 0));
    let lost = repository.restore(&index, entries.clone(), &place, meter, operation).await?;
    let missing: HashSet<String> = lost.iter().map(|lost| lost.path.clone()).collect();
    report.problems.extend(lost.into_iter().map(|lost| format!("{}: {}", lost.path, lost.reason)));
    let operation = operation.clone();
    let check = move || {
        for entry in entries.iter().filter(|entry| !missing.contains(&entry.path)) {
            operation.check()?;
            report.databases += u64::from(entry.kind == Kind::Database);
            match check(&place.join(&entry.path), entry) {
                Ok(()) if entry.has_content() => {
                    report.files += 1;
                    report.bytes += entry.size;
                }
                Ok(()) => {}
                Err(problem) => report.problems.push(format!("{}: {problem}", entry.path)),
            }
        }
        // Before the outcome is noted.
        scratch.remove()?;
        Ok(report)
    };
    blocking(check).await
}

/// Why a drill would not leave enough room, if so.
fn does_not_fit(bytes: u64, free: u64) -> Option<String> {
    let problem = || format!("it takes {bytes} bytes, and {free} are free, of which a drill takes no more than half");
    (free / PART_OF_FREE_SPACE < bytes).then(problem)
}

/// Reads back what was restored.
fn check(path: &Path, entry: &Entry) -> std::result::Result<(), String> {
    let meta = fs::symlink_metadata(path).map_err(|error| error.to_string());
    match entry.kind {
        Kind::Exception => return Ok(()),
        Kind::Directory if meta?.is_dir() => return Ok(()),
        Kind::Symlink if fs::read_link(path).is_ok_and(|target| target == Path::new(&entry.target)) => return Ok(()),
        Kind::Directory | Kind::Symlink => return Err("it did not come out as it was stored".into()),
        Kind::File | Kind::Database => {}
    }
    let sha256 = File::open(path).and_then(sha256_of).map_err(|error| error.to_string())?;
    if sha256[..] != *entry.sha256 {
        return Err("on the disk it does not have the content that was stored".into());
    }
    if entry.kind == Kind::File {
        return Ok(());
    }
    // What contradicts its schema does not keep it from being restored.
    database::check_integrity(path).map_err(|error| error.to_string())?;
    let problems = database::make_indexes_again(path).map_err(|error| error.to_string())?;
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

impl DrillReport {
    fn skipped(snapshot: String, why: &str) -> Self {
        Self { snapshot, skipped: Some(why.into()), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_takes_no_more_than_half_of_what_is_free() {
        assert_eq!(does_not_fit(50, 100), None);
        assert_eq!(does_not_fit(0, 0), None);
        assert!(does_not_fit(51, 100).unwrap().contains("51 bytes"));
        assert!(does_not_fit(u64::MAX, u64::MAX).is_some());
    }
}
