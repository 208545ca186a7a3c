//! What a repository's listing shows: which snapshots, packs, index objects and key slots exist.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::id::{IndexId, PackId, SlotId, SnapshotId, unhex};
use super::legacy::Folders;
use crate::error::Result;
use crate::store::{Listing, ObjectMeta, Store};

/// A listing, sorted out by what the keys name.
#[derive(Debug, Clone)]
pub struct Contents {
    /// Snapshots, oldest first.
    pub snapshots: Vec<(SnapshotId, ObjectMeta)>,
    /// Packs.
    pub packs: BTreeMap<PackId, ObjectMeta>,
    /// Index objects.
    pub indexes: BTreeMap<IndexId, ObjectMeta>,
    /// Key slots in the order of their making, by the store's clock, then by id.
    pub slots: Vec<(SlotId, ObjectMeta)>,
    /// Snapshots of 0.1.x. They count nowhere else: not as stored bytes, not for retention, not for keys.
    pub legacy: Arc<Folders>,
    /// Marks of key slots that were removed, or are about to be.
    pub removals: Vec<(SlotId, ObjectMeta)>,
    /// Lists of what was stored before encryption was turned on.
    pub plain_lists: Vec<ObjectMeta>,
    /// A time that the store's clock has certainly reached: that of its newest object. Ages that are reckoned from it
    /// are never too high, whatever this machine's clock shows.
    pub newest: SystemTime,
    /// When the listing was asked for, by the store's clock: what came to pass since then it does not show, and no age is
    /// reckoned to a later time. A machine may sleep for days between two steps.
    pub listed_at: SystemTime,
    /// The same by this machine's own clocks.
    asked_at: (Instant, SystemTime),
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
            packs: BTreeMap::new(),
            indexes: BTreeMap::new(),
            slots: Vec::new(),
            legacy: Arc::default(),
            removals: Vec::new(),
            plain_lists: Vec::new(),
            newest: SystemTime::UNIX_EPOCH,
            listed_at: SystemTime::UNIX_EPOCH,
            asked_at: (Instant::now(), SystemTime::now()),
            bytes: 0,
            objects: 0,
        };
        let mut others = Vec::new();
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
                ["keys", name] => match (name.strip_suffix(".json"), removed_slot(name)) {
                    (Some(id), _) => id.parse().map(|id| contents.slots.push((id, object.clone()))).is_ok(),
                    (_, Some(id)) => {
                        contents.removals.push((id, object.clone()));
                        true
                    }
                    _ => false,
                },
                ["plain", id] if unhex::<16>(id).is_some() => {
                    contents.plain_lists.push(object.clone());
                    true
                }
                _ => false,
            };
            if known {
                contents.newest = contents.newest.max(modified);
                contents.bytes += size;
                contents.objects += 1;
            } else {
                others.push(object);
            }
        }
        contents.legacy = Arc::new(Folders::new(others));
        contents.snapshots.sort_by(|(a, _), (b, _)| a.order().cmp(b.order()));
        contents.slots.sort_by_key(|(id, object)| (object.modified, *id));
        contents
    }

    /// Whether a slot is marked as removed: then its object is gone, or about to go.
    #[must_use]
    pub fn is_removed(&self, slot: SlotId) -> bool {
        self.removals.iter().any(|(removed, _)| *removed == slot)
    }

    /// Asks the store what it holds.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    pub async fn of(store: &dyn Store) -> Result<Self> {
        let asked_at = (Instant::now(), SystemTime::now());
        let mut contents = Self::new(store.list("").await?);
        // The clock of the store is known by its answers only.
        let took = elapsed(asked_at);
        contents.listed_at = store.now().checked_sub(took).unwrap_or(SystemTime::UNIX_EPOCH);
        contents.asked_at = asked_at;
        Ok(contents)
    }

    /// How long ago the listing was asked for; `now` is the store's time. In a virtual machine that is paused its own clocks
    /// stand still: then the store's answers tell.
    #[must_use]
    pub fn listed_ago(&self, now: SystemTime) -> Duration {
        elapsed(self.asked_at).max(now.duration_since(self.listed_at).unwrap_or_default())
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
    pub fn age(&self, object: &ObjectMeta) -> Duration {
        self.newest.duration_since(object.modified).unwrap_or_default()
    }
}

/// The time since then. The monotonic clock stands still while some machines sleep, the other one may be set back.
fn elapsed((instant, time): (Instant, SystemTime)) -> Duration {
    instant.elapsed().max(time.elapsed().unwrap_or_default())
}

/// The slot that the mark of a removal is about: `<slot id>-<16 random bytes>.removed`.
fn removed_slot(name: &str) -> Option<SlotId> {
    let (slot, mark) = name.strip_suffix(".removed")?.split_once('-')?;
    unhex::<16>(mark)?;
    slot.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{index::index_key, pack::pack_key, slot::slot_key};
    use super::*;

    fn contents(keys: impl IntoIterator<Item = String>) -> Contents {
        let object =
            |(age, key)| ObjectMeta { key, size: 1, modified: SystemTime::UNIX_EPOCH + Duration::from_secs(age) };
        Contents::new(Listing { objects: (0..).zip(keys).map(object).collect() })
    }

    #[test]
    fn slots_are_in_the_order_of_their_making_and_snapshots_in_that_of_their_times() {
        let slots = [SlotId([2; 16]), SlotId([1; 16])];
        let snapshots =
            ["safety-2026-02-20T00-00-00Z-00000000", "2026-02-21T00-00-00Z-00000000", "2026-02-19T00-00-00Z-00000000"];
        let manifests = snapshots.map(|id| format!("{id}/manifest.json"));
        let contents = contents(slots.map(slot_key).into_iter().chain(manifests));
        assert_eq!(contents.slots.iter().map(|(id, _)| *id).collect::<Vec<_>>(), slots);
        let order: Vec<_> = contents.snapshots.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(order, [snapshots[2], snapshots[0], snapshots[1]]);
    }

    proptest! {
        /// Whatever is counted has the key that this program would give it: nothing is ever deleted under another one.
        #[test]
        fn a_name_is_known_by_its_own_key_alone(
            keys in prop::collection::vec(prop_oneof![
                "(keys|packs|index|plain|packs/0[01]|packs/0|packs/é)/0[01]0{29,30}(\\.json|/|-0{31,32}\\.removed)?",
                "(safety-)?(20|é)26-02-1[0-9]T00-00-00Z-0000000[0-9A]/(manifest\\.json)?",
                "\\PC{0,30}",
            ], 0..20),
        ) {
            let known = contents(keys.iter().cloned());
            let names: Vec<String> = (known.slots.iter().map(|(id, _)| slot_key(*id)))
                .chain(known.indexes.keys().map(|id| index_key(*id)))
                .chain(known.packs.keys().map(|id| pack_key(*id)))
                .chain(known.removals.iter().map(|(_, object)| object.key.clone()))
                .chain(known.plain_lists.iter().map(|object| object.key.clone()))
                .chain(known.snapshots.iter().map(|(id, _)| id.manifest_key()))
                .collect();
            prop_assert!(names.iter().all(|name| keys.contains(name)));
            for (id, object) in &known.removals {
                let start = format!("keys/{id}-");
                prop_assert!(object.key.starts_with(&start));
            }
        }
    }
}
