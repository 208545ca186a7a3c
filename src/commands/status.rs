//! `status`: where backups stand.

use super::list::{Summaries, info, summaries};
use super::workplace::cache_for_reading;
use super::{Operation, StatusReport};
use crate::config::Target;
use crate::error::Result;
use crate::repository::open::{IfMissing, Repository};
use crate::state::places::Places;
use crate::state::rules::Rules;
use crate::state::scan::scan;
use crate::task::blocking;

/// Looks at the repository and at the state.
///
/// # Errors
/// Those of [`Repository::open`] and of the store, `CANCELLED`.
pub async fn status(target: &Target, operation: &Operation) -> Result<StatusReport> {
    let scanning = {
        let (target, operation) = (target.clone(), operation.clone());
        // On an empty machine there is nothing to look at yet.
        blocking(move || {
            if !target.state_dir.is_dir() {
                return Ok(Vec::new());
            }
            let places = Places::find(&target);
            let (rules, _) = Rules::of(&target, &places)?;
            scan(&places, &rules, &operation).map(|scan| scan.rebuildable)
        })
    };
    let repository =
        Repository::open(target, cache_for_reading(target).await, IfMissing::ReadAsEmpty, operation).await?;
    let Summaries { readable, .. } = summaries(&repository, operation).await?;
    let contents = &repository.contents;
    Ok(StatusReport {
        location: repository.store.location(),
        encrypted: target.encrypt,
        snapshots: readable.len() as u64,
        legacy_snapshots: contents.legacy.len() as u64,
        latest: readable.iter().rev().find(|(id, _)| !id.is_safety()).map(|(id, summary)| info(id, summary)),
        stored_bytes: contents.bytes,
        objects: contents.objects,
        left_out: scanning.await?,
    })
}
