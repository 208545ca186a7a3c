//! `status`: where backups stand.

use super::drill::Record;
use super::list::{Summaries, info, summaries};
use super::newest;
use super::prune::{hidden_snapshots, own_snapshots, shrink};
use super::workplace::cache_for_reading;
use super::{Operation, Shrink, StatusOptions, StatusReport, cost};
use crate::config::{Endpoint, Target};
use crate::error::Result;
use crate::repository::id::SnapshotId;
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::state::places::Places;
use crate::state::private::PrivateFolder;
use crate::state::rules::Rules;
use crate::state::scan::scan;
use crate::store::{Deletion, Hidden, Lifecycle};
use crate::task::blocking;

/// Looks at the repository and at the state.
///
/// # Errors
/// Those of [`Repository::open`] and of the store, `CANCELLED`.
pub async fn status(target: &Target, options: &StatusOptions, operation: &Operation) -> Result<StatusReport> {
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
    let (contents, store) = (&repository.contents, &repository.store);
    let (Summaries { readable, unreadable }, hidden, deletion, lifecycle) =
        tokio::try_join!(summaries(&repository, operation), store.hidden(), store.deletion(), store.lifecycle())?;
    let mut warnings = warnings(hidden.as_ref(), deletion, lifecycle);
    warnings.extend(newest::missing(&repository).await.iter().map(newest::warning));
    if let Some((id, error)) = unreadable.last() {
        let count = unreadable.len();
        warnings.push(format!("{count} listed snapshots cannot be read, the newest of them {id}: {error}"));
    }
    let cost = match options.pushes_per_month {
        Some(pushes) if !matches!(target.endpoint, Endpoint::Directory(_)) => {
            let billed_bytes = contents.bytes + hidden.as_ref().map_or(0, |hidden| hidden.bytes);
            Some(cost::of_month(repository.cache.as_deref(), pushes, billed_bytes)?)
        }
        _ => None,
    };
    let (shrunk, record) = {
        let (target, readable) = (target.clone(), readable.clone());
        blocking(move || Ok((shrunk(&target, &readable), Record::read(&target)))).await?
    };
    Ok(StatusReport {
        location: store.location(),
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
        hidden,
        deletion,
        warnings,
        cost,
    })
}

/// Whether the state had lost most of what it held at this machine's last snapshot.
fn shrunk(target: &Target, readable: &[(SnapshotId, Summary)]) -> Option<Shrink> {
    let folder = PrivateFolder::existing(&target.state_dir)?;
    let own = own_snapshots(readable, folder.known_machine_id()?);
    shrink(&own, folder.accepted_shrink().as_deref(), None)
}

/// What the owner of the bucket should look after.
fn warnings(hidden: Option<&Hidden>, deletion: Deletion, lifecycle: Option<Lifecycle>) -> Vec<String> {
    let mut warnings = Vec::new();
    let Lifecycle { expires_after, deletes_hidden_after } = lifecycle.unwrap_or_default();
    if let Some(days) = expires_after {
        warnings.push(format!(
            "a lifecycle rule of the bucket removes backups {days} days after their upload: change it, or choose another prefix"
        ));
    }
    let Some(hidden) = hidden.filter(|hidden| hidden.versions > 0 && deletes_hidden_after.is_none()) else {
        return warnings;
    };
    let snapshots = hidden_snapshots(hidden);
    if !snapshots.is_empty() && !matches!(deletion, Deletion::ByLifecycle { .. }) {
        warnings.push(format!(
            "{} snapshots were hidden in the bucket by another program or another person: prune frees nothing until \
             their delete markers or their versions are deleted",
            snapshots.len()
        ));
    }
    warnings.push(
        "what is hidden stays and is billed: no lifecycle rule of the bucket that this key can see deletes it"
            .to_owned(),
    );
    warnings
}
