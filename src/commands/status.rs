//! `status`: where backups stand.

use super::drill::Record;
use super::list::{Summaries, info, summaries};
use super::prune::{own_snapshots, shrink};
use super::workplace::cache_for_reading;
use super::{Operation, Shrink, StatusReport};
use crate::config::Target;
use crate::error::Result;
use crate::repository::id::SnapshotId;
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::state::places::Places;
use crate::state::private::PrivateFolder;
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
    let (shrunk, record) = {
        let (target, readable) = (target.clone(), readable.clone());
        blocking(move || Ok((shrunk(&target, &readable), Record::read(&target)))).await?
    };
    Ok(StatusReport {
        location: repository.store.location(),
        encrypted: target.encrypt,
        snapshots: readable.len() as u64,
        legacy_snapshots: contents.legacy.len() as u64,
        latest: readable.iter().rev().find(|(id, _)| !id.is_safety()).map(|(id, summary)| info(id, summary)),
        stored_bytes: contents.bytes,
        objects: contents.objects,
        left_out: scanning.await?,
        shrunk,
        proven: record.proven,
        failed: record.failed.filter(|failed| contents.has_snapshot(&failed.snapshot)),
    })
}

/// Whether the state had lost most of its files at this machine's last snapshot.
fn shrunk(target: &Target, readable: &[(SnapshotId, Summary)]) -> Option<Shrink> {
    let folder = PrivateFolder::existing(&target.state_dir)?;
    let own = own_snapshots(readable, folder.known_machine_id()?);
    shrink(&own, folder.accepted_shrink().as_deref(), None)
}
