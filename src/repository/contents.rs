//! What a repository's listing shows: which snapshots, packs, index objects and key slots exist.

use std::collections::HashMap;
use std::time::SystemTime;

use super::id::{IndexId, PackId, SlotId, SnapshotId};
use crate::store::{Listing, ObjectMeta};

/// A listing, sorted out by what the keys name.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Snapshots, oldest first.
    pub snapshots: Vec<(SnapshotId, ObjectMeta)>,
    /// Packs.
    pub packs: HashMap<PackId, ObjectMeta>,
    /// Index objects.
    pub indexes: HashMap<IndexId, ObjectMeta>,
    /// Key slots in the order of their making, by the store's clock, then by id.
    pub slots: Vec<(SlotId, ObjectMeta)>,
    /// A time that the store's clock has certainly reached: that of its newest object. Ages that are reckoned from it
    /// are never too high, whatever this machine's clock shows.
    pub newest: SystemTime,
    /// Stored bytes of all of these.
    pub bytes: u64,
    /// How many objects these are.
    pub objects: u64,
}

impl Contents {
    /// Sorts a listing out. What this format does not name belongs to somebody else and is not looked at.
    #[must_use]
    pub fn new(listing: Listing) -> Self {
        let mut contents = Self {
            snapshots: Vec::new(),
            packs: HashMap::new(),
            indexes: HashMap::new(),
            slots: Vec::new(),
            newest: SystemTime::UNIX_EPOCH,
            bytes: 0,
            objects: 0,
        };
        for object in listing.objects {
            let (size, modified) = (object.size, object.modified);
            let segments: Vec<&str> = object.key.split('/').collect();
            let known = match segments[..] {
                [snapshot, "manifest.json"] => {
                    snapshot.parse().map(|id| contents.snapshots.push((id, object.clone()))).is_ok()
                }
                ["packs", fan, id] if id.starts_with(fan) && fan.len() == 2 => {
                    id.parse().map(|id| contents.packs.insert(id, object.clone())).is_ok()
                }
                ["index", id] => id.parse().map(|id| contents.indexes.insert(id, object.clone())).is_ok(),
                ["keys", name] => name
                    .strip_suffix(".json")
                    .and_then(|id| id.parse().ok())
                    .map(|id| contents.slots.push((id, object.clone())))
                    .is_some(),
                _ => false,
            };
            if known {
                contents.newest = contents.newest.max(modified);
                contents.bytes += size;
                contents.objects += 1;
            }
        }
        contents.snapshots.sort_by(|(a, _), (b, _)| a.order().cmp(b.order()));
        contents.slots.sort_by_key(|(id, object)| (object.modified, *id));
        contents
    }

    /// Whether a snapshot is listed.
    #[must_use]
    pub fn has_snapshot(&self, id: &str) -> bool {
        self.snapshots.iter().any(|(known, _)| known.as_str() == id)
    }

    /// Whether anything is there that was sealed with a key, or could have been.
    #[must_use]
    pub fn holds_something(&self) -> bool {
        !(self.snapshots.is_empty() && self.packs.is_empty() && self.indexes.is_empty())
    }

    /// How long ago, at least, the object was finished, by the store's clock.
    #[must_use]
    pub fn age(&self, object: &ObjectMeta) -> std::time::Duration {
        self.newest.duration_since(object.modified).unwrap_or_default()
    }
}
