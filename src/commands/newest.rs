//! The newest snapshot that this machine has seen, so that an old state of the repository is not taken for the present one.
//!
//! Nothing stored ties snapshots to each other: whoever controls the store can show the repository as it was a month ago, each
//! object of it genuine. So the cache remembers the newest regular snapshot whose manifest was read and authenticated here.
//! Retention keeps the newest one of every machine, whichever machine prunes, and removes an older one only while a newer one
//! is listed. Therefore, where neither the one that is remembered nor a newer one is listed, something else has removed it:
//! the store, a person, or another program. (A push that takes its snapshot back at once, because a prune has overtaken it,
//! looks the same to a machine that has listed just then, until the next push.)
//!
//! A machine that has lost its cache knows nothing of this, as a new one does.

use crate::error::{Code, Error};
use crate::repository::id::SnapshotId;
use crate::repository::open::Repository;

/// Under which name the cache remembers it.
const NEWEST: &str = "newest";
/// So many manifests with newer names are read at most.
const MOST_READ: usize = 32;

/// Takes note of snapshots whose manifests were authenticated.
pub(super) fn note<'s>(repository: &Repository, ids: impl IntoIterator<Item = &'s SnapshotId>) {
    let regular = ids.into_iter().filter(|id| !id.is_safety());
    let Some(newest) = regular.max_by(|a, b| a.order().cmp(b.order())) else { return };
    if seen(repository).is_none_or(|seen| newest.order() > seen.order()) {
        repository.remember(NEWEST.to_owned(), newest.as_str().as_bytes());
    }
}

/// Takes note of a snapshot that was made just now, when whatever is missing was told to the owner: it is the newest one from
/// now on.
pub(super) async fn note_own(repository: &Repository, id: &SnapshotId) {
    match missing(repository).await {
        Some(_) if !id.is_safety() => repository.remember(NEWEST.to_owned(), id.as_str().as_bytes()),
        _ => note(repository, [id]),
    }
}

/// The newest snapshot that this machine has seen, if neither it nor a newer one is listed. Anybody can write a newer name: one
/// counts if its manifest was sealed with a key of this repository.
pub(super) async fn missing(repository: &Repository) -> Option<SnapshotId> {
    let seen = seen(repository)?;
    let is_as_new = |id: &SnapshotId| !id.is_safety() && id.order() >= seen.order();
    let listed = repository.contents.snapshots.iter().map(|(id, _)| id);
    for id in listed.rev().filter(|id| is_as_new(id)).take(MOST_READ) {
        match repository.summary(id).await {
            _ if *id == seen => return None,
            Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::NotFound) => {}
            // What cannot be told now is told the next time.
            _ => return None,
        }
    }
    Some(seen)
}

fn seen(repository: &Repository) -> Option<SnapshotId> {
    let bytes = repository.cache.as_ref()?.object(NEWEST)?;
    String::from_utf8(bytes).ok()?.parse().ok()
}

/// Why an older snapshot is not taken unasked.
pub(super) fn error(missing: &SnapshotId) -> Error {
    Error::new(Code::NotFound, problem(missing))
        .in_snapshot(missing.as_str())
        .advise("look at what happened in the bucket; to take an older snapshot all the same, name it by its id")
}

/// What to tell the owner of it.
pub(super) fn warning(missing: &SnapshotId) -> String {
    format!("{}: look at what happened in the bucket", problem(missing))
}

fn problem(missing: &SnapshotId) -> String {
    format!(
        "{missing}, the newest snapshot that this machine has seen, is not listed any more, though retention never removes the \
         newest: a person or another program has removed it, or the store shows an old state"
    )
}
