//! Where a command that changes something works: the locked private folder of the state directory, and the cache in it.

use std::sync::Arc;

use crate::cache::Cache;
use crate::config::Target;
use crate::error::Result;
use crate::repository::id::MachineId;
use crate::state::places::Places;
use crate::state::private::{FOLDER, Lock, PrivateFolder};
use crate::state::swap;
use crate::task::blocking;

/// The lock on the product's own folder, and what is in it.
#[derive(Debug)]
pub(super) struct Workplace {
    pub(super) folder: PrivateFolder,
    pub(super) cache: Arc<Cache>,
    pub(super) machine: MachineId,
    /// Where the parts of the state lie.
    pub(super) places: Places,
    /// What became of a rollback that had been interrupted.
    pub(super) recovered: Option<swap::Recovered>,
    _lock: Lock,
}

impl Workplace {
    /// Takes the lock, finishes or undoes a rollback that was interrupted, and opens the cache.
    pub(super) async fn open(target: &Target, verb: &'static str) -> Result<Self> {
        let target = target.clone();
        let open = move || {
            let folder = PrivateFolder::open(&target.state_dir)?;
            let lock = folder.lock(verb)?;
            folder.remove_leftovers()?;
            folder.remove_scratch()?;
            let recovered = swap::recover(&target.state_dir, &folder)?;
            // Not before: an interrupted rollback may have left half of a configuration.
            let places = Places::find(&target);
            if let Err(error) = swap::remove_left_over(&places, &folder) {
                // No reason not to go on: it is in nobody's way.
                tracing::warn!(%error, "what an earlier rollback left is still there");
            }
            let cache = Arc::new(Cache::open(&folder.path("cache.sqlite"), &target.identity())?);
            Ok(Self { machine: folder.machine_id()?, cache, folder, places, recovered, _lock: lock })
        };
        blocking(open).await
    }
}

/// The cache of a state directory, for a command that only reads and takes no lock; `None` when there is none for this
/// repository.
pub(super) async fn cache_for_reading(target: &Target) -> Option<Arc<Cache>> {
    let (path, identity) = (target.state_dir.join(FOLDER).join("cache.sqlite"), target.identity());
    blocking(move || Ok(Cache::open_existing(&path, &identity))).await.ok().flatten().map(Arc::new)
}
