//! `diff`: how two snapshots differ, or a snapshot and the live state.

use std::sync::Arc;

use super::capture::look;
use super::snapshot::Snapshot;
use super::workplace::{Workplace, cache_for_reading};
use super::{Change, DiffReport, Operation};
use crate::config::Target;
use crate::error::Result;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::tree::{Entry, Kind};

/// Compares the snapshot `from` with the snapshot `to`, or with the live state.
///
/// # Errors
/// `NOT_FOUND`, `CONFIG`, `CORRUPT`, those of [`Repository::open`]; for the live state also `LOCKED` and `IO`.
pub async fn diff(target: &Target, from: &str, to: Option<&str>, operation: &Operation) -> Result<DiffReport> {
    let workplace = if to.is_none() { Some(Workplace::open(target, "diff").await?) } else { None };
    let cache = match &workplace {
        Some(workplace) => Some(Arc::clone(&workplace.cache)),
        None => cache_for_reading(target).await,
    };
    let mut repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    let from = Snapshot::find(&mut repository, target, from, operation).await?;
    let (to, after) = match (to, &workplace) {
        (Some(to), _) => {
            let to = Snapshot::find(&mut repository, target, to, operation).await?;
            let after = to.compared_with(&from.entries)?.into_owned();
            (Some(to.id), after)
        }
        (None, Some(workplace)) => (None, look(target, workplace, &repository, operation).await?.entries),
        (None, None) => (None, Vec::new()),
    };
    let changes = changes(&from.compared_with(&after)?, &after);
    Ok(DiffReport { from: from.id, to, changes })
}

/// The differences of two trees, both ordered by path.
fn changes(before: &[Entry], after: &[Entry]) -> Vec<Change> {
    let held = |entry: &&Entry| entry.kind != Kind::Exception;
    let (mut before, mut after) = (before.iter().filter(held).peekable(), after.iter().filter(held).peekable());
    let mut changes = Vec::new();
    let mut note = |entry: &Entry, kind| changes.push(Change { path: entry.path.clone(), kind });
    loop {
        match (before.peek(), after.peek()) {
            (None, None) => return changes,
            (Some(old), Some(new)) if old.path == new.path => {
                if !is_same(old, new) {
                    note(old, "modified");
                }
                before.next();
                after.next();
            }
            (Some(old), new) if new.is_none_or(|new| old.path < new.path) => {
                note(old, "removed");
                before.next();
            }
            (_, new) => {
                if let Some(new) = new {
                    note(new, "added");
                }
                after.next();
            }
        }
    }
}

/// Times do not count: a tree is compared by what it holds.
fn is_same(old: &Entry, new: &Entry) -> bool {
    let mode_counts = old.kind != Kind::Symlink;
    old.kind == new.kind
        && old.sha256 == new.sha256
        && old.target == new.target
        && (!mode_counts || old.mode == new.mode)
}
