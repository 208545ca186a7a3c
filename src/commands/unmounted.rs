//! Places outside the state directory that lie on a disk of their own, and what is told when that is not mounted.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use super::Exception;
use crate::cache::{Cache, CachedFile};
use crate::error::to_json;
use crate::state::places::{Place, Places};

/// Under which key the cache remembers the names of those places.
const ON_ANOTHER_DISK: &str = "on-another-disk";

/// Places on another disk than the state directory's that held something when they were last read (`known`) and are empty, or
/// not there at all. Their owner may have emptied them, but no snapshot is to say so.
pub(super) fn find(places: &Places, known: &HashMap<String, CachedFile>, cache: &Cache) -> Vec<Exception> {
    let before =
        cache.object(ON_ANOTHER_DISK).and_then(|names| serde_json::from_slice::<BTreeSet<String>>(&names).ok());
    let before = before.unwrap_or_default();
    let others = || places.all().iter().skip(1);
    let held_something = |place: &Place| known.keys().any(|name| place.below(name).is_some());
    let missing: Vec<&Place> = others()
        .filter(|place| before.contains(&place.name) && is_bare(&place.path()) && held_something(place))
        .collect();
    let own_disk = disk(places.state_dir());
    let elsewhere = others().filter(|place| disk(&place.path()).is_some_and(|disk| Some(disk) != own_disk));
    let now: BTreeSet<&String> = elsewhere.chain(missing.iter().copied()).map(|place| &place.name).collect();
    if now.iter().copied().ne(&before) {
        cache.attempt(|cache| cache.put_objects([(ON_ANOTHER_DISK.to_owned(), &to_json(&now)?[..])]));
    }
    let exception = |place: &Place| {
        let reason = format!("there is nothing in {} any more; is its disk mounted?", place.path().display());
        Exception { path: place.name.clone(), reason }
    };
    missing.into_iter().map(exception).collect()
}

fn is_bare(path: &Path) -> bool {
    path.metadata()
        .map_or(true, |meta| meta.is_dir() && path.read_dir().is_ok_and(|mut entries| entries.next().is_none()))
}

/// Tells the file system that something lies on from others.
fn disk(path: &Path) -> Option<u64> {
    #[cfg(unix)]
    return path.metadata().ok().map(|meta| std::os::unix::fs::MetadataExt::dev(&meta));
    #[cfg(not(unix))]
    return path.components().next().map(|_| 0);
}
