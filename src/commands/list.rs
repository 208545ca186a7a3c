//! `list`: every snapshot with its summary; and the way from what a user writes to the snapshot that is meant.
//!
//! Snapshots of 0.1.x are listed with the others and found by their ids alone: nothing authenticates what they hold or
//! when they were taken, so that none becomes `latest`, or what a time means, by what stands in the bucket.

use super::newest;
use super::workplace::cache_for_reading;
use super::{Exception, ListReport, Operation, SnapshotInfo, SnapshotKind, Trigger};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::id::SnapshotId;
use crate::repository::legacy::LegacyId;
use crate::repository::legacy::catalog::Catalog;
use crate::repository::legacy::manifest::Manifest;
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::selector::{Candidate, Selector};
use crate::task::all_in_parallel;

/// Manifests asked for at once.
const PARALLEL_MANIFESTS: usize = 8;

/// Lists every snapshot, newest first.
///
/// # Errors
/// Those of [`Repository::open`] and of the store.
pub async fn list(target: &Target, operation: &Operation) -> Result<ListReport> {
    let cache = cache_for_reading(target).await;
    let repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    let Summaries { readable, unreadable } = summaries(&repository, operation).await?;
    let catalog = Catalog::read(&repository, operation).await?;
    let legacy = catalog.snapshots.iter().map(|(id, manifest)| (id.time(), legacy_info(&catalog, id, manifest)));
    let current = readable.iter().map(|(id, summary)| (summary.created_at, info(id, summary)));
    let mut snapshots: Vec<_> = legacy.chain(current).collect();
    // Stable: those of one second stay in the order that their ids give.
    snapshots.sort_by_key(|(time, _)| *time);
    let unreadable = unreadable
        .into_iter()
        .map(|(id, error)| (id.to_string(), error))
        .chain(catalog.unreadable.into_iter().map(|(id, error)| (id.to_string(), error)))
        .map(|(path, error)| Exception { path, reason: error.to_string() })
        .collect();
    let warnings = newest::missing(&repository).await.iter().map(newest::warning).collect();
    Ok(ListReport { snapshots: snapshots.into_iter().rev().map(|(_, info)| info).collect(), unreadable, warnings })
}

/// One snapshot of 0.1.x as users see it.
fn legacy_info(catalog: &Catalog, id: &LegacyId, manifest: &Manifest) -> SnapshotInfo {
    let lacking = manifest.files.iter().filter(|file| !catalog.has(file)).count() as u64;
    SnapshotInfo {
        id: id.to_string(),
        created_at: id.time().to_string(),
        kind: SnapshotKind::Legacy,
        trigger: if id.is_safety() { Trigger::BeforeRollback.as_str() } else { "unknown" }.into(),
        host: "unknown".into(),
        files: manifest.files.len() as u64,
        bytes: manifest.files.iter().fold(0, |sum, file| sum.saturating_add(file.size)),
        complete: lacking == 0,
        exceptions: lacking,
        first_exceptions: Vec::new(),
        shrunk: false,
    }
}

/// One snapshot as users see it.
pub(super) fn info(id: &SnapshotId, summary: &Summary) -> SnapshotInfo {
    SnapshotInfo {
        id: id.to_string(),
        created_at: summary.created_at.to_string(),
        kind: kind(id),
        trigger: summary.trigger.as_str().into(),
        host: summary.host.clone(),
        files: summary.files,
        bytes: summary.bytes,
        complete: summary.exceptions == 0,
        exceptions: summary.exceptions,
        first_exceptions: summary.first_exceptions.clone(),
        shrunk: summary.shrunk,
    }
}

fn kind(id: &SnapshotId) -> SnapshotKind {
    if id.is_safety() { SnapshotKind::Safety } else { SnapshotKind::Regular }
}

/// What the manifests of all listed snapshots say, oldest first.
#[derive(Debug, Default)]
pub(super) struct Summaries {
    pub(super) readable: Vec<(SnapshotId, Summary)>,
    /// Those that are damaged, or sealed with a key that no configured secret opens.
    pub(super) unreadable: Vec<(SnapshotId, Error)>,
}

/// Reads every manifest. A snapshot that another machine removes meanwhile is in neither list.
///
/// # Errors
/// Those of the store, `CANCELLED`.
pub(super) async fn summaries(repository: &Repository, operation: &Operation) -> Result<Summaries> {
    let read = |(id, _): &(SnapshotId, _)| {
        let (repository, id) = (repository.clone(), id.clone());
        async move {
            let summary = repository.summary(&id).await;
            (id, summary)
        }
    };
    let manifests = repository.contents.snapshots.iter().map(read);
    let mut summaries = Summaries::default();
    for (id, result) in all_in_parallel(PARALLEL_MANIFESTS, manifests, operation).await? {
        match result {
            Ok(summary) => summaries.readable.push((id, summary)),
            Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey) => {
                summaries.unreadable.push((id, error));
            }
            Err(error) if error.code() == Code::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    newest::note(repository, summaries.readable.iter().map(|(id, _)| id));
    Ok(summaries)
}

/// A snapshot that is meant.
#[derive(Debug)]
pub(super) enum Selected {
    /// One of this format.
    Current(SnapshotId, Box<Summary>),
    /// One of 0.1.x.
    Legacy(LegacyId),
}

/// The snapshot that `text` means.
///
/// # Errors
/// `CONFIG` when the text makes no sense, `NOT_FOUND`, also when it may mean one that this machine has seen and that is not
/// listed any more, and those of [`Repository::summary`]: when the snapshot that is
/// meant cannot be read, no other one is taken in its place.
pub(super) async fn select(repository: &Repository, text: &str, operation: &Operation) -> Result<Selected> {
    let selector = Selector::parse(text, repository.now()?.to_zoned(jiff::tz::TimeZone::system()))?;
    if let Some(missing) = newest::missing(repository).await.filter(|missing| selector.may_mean(missing.time())) {
        return Err(newest::error(&missing));
    }
    let contents = &repository.contents;
    let mut candidates: Vec<Candidate> = if selector == Selector::BeforeCompaction {
        // Only the manifests know why they were written.
        let summaries = summaries(repository, operation).await?;
        summaries.readable.iter().map(|(id, summary)| candidate(id, summary.trigger.as_str())).collect()
    } else {
        contents.snapshots.iter().map(|(id, _)| candidate(id, "")).collect()
    };
    candidates.extend(contents.legacy.iter().map(|(id, _)| Candidate {
        id: id.to_string(),
        created_at: id.time(),
        kind: SnapshotKind::Legacy,
        trigger: String::new(),
    }));
    let chosen = selector.select(&candidates)?;
    if chosen.kind == SnapshotKind::Legacy {
        return chosen.id.parse().map(Selected::Legacy);
    }
    let id: SnapshotId = chosen.id.parse()?;
    let summary = repository.summary(&id).await?;
    newest::note(repository, [&id]);
    Ok(Selected::Current(id, Box::new(summary)))
}

fn candidate(id: &SnapshotId, trigger: &str) -> Candidate {
    Candidate { id: id.to_string(), created_at: id.time(), kind: kind(id), trigger: trigger.into() }
}
