//! `verify`: checks that every snapshot can be restored, by what the store lists or by reading stored bytes as well.
//!
//! It finds damage and says which files of which snapshots it concerns. What it does about it is little: a pack with damage
//! in it is marked in the repository, so that pushes store its content anew, and a manifest that this machine remembers is
//! stored again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::list::{Summaries, summaries};
use super::prune::marks;
use super::workplace::cache_for_reading;
use super::{LostFile, Meter, Operation, VerifyOptions, VerifyReport};
use crate::cache::Cache;
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::id::{ChunkId, PackId, SnapshotId, random};
use crate::repository::index::{Index, PackEntry, index_key};
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::pack::{MAX_PACK, pack_key};
use crate::repository::tree::Entry;
use crate::task::{blocking, in_parallel};

/// Packs read at once; each is held in memory whole.
const PARALLEL_PACKS: usize = 3;
/// Under which name the cache remembers the pack that was read last.
const LAST_READ: &str = "verify";

/// Checks the repository.
///
/// # Errors
/// `CONFIG` when the part to be read is none; those of [`Repository::open`] and of the store, `CANCELLED`. What is wrong
/// with the repository itself is in the report, not an error.
pub async fn verify(target: &Target, options: VerifyOptions, operation: &Operation) -> Result<VerifyReport> {
    if options.read_data.is_some_and(|percent| !(1..=100).contains(&percent)) {
        return Err(Error::config("readData", "a part of the stored data is 1 to 100 percent"));
    }
    // What counts is what the store has: nothing is taken from this machine's cache, and nothing is read twice.
    let remembered = cache_for_reading(target).await;
    // The key slots are looked at one by one: should they be damaged, this machine may be the one that remembers them.
    let slots = remembered.as_ref().map(|cache| cache.objects("keys/")).unwrap_or_default();
    let read = Arc::new(Cache::in_memory()?);
    read.put_objects(slots.iter().map(|(key, bytes)| (key.clone(), &bytes[..])))?;
    let mut repository = Repository::open(target, Some(read), IfMissing::ReadAsEmpty, operation).await?;
    let mut report = VerifyReport::default();
    for (key, error) in repository.damaged_slots(&slots).await? {
        match slots.get(&key) {
            Some(bytes) if repository.store.put(&key, bytes.clone().into()).await.is_ok() => {
                report.healed.push(format!("the key slot was stored again as this machine remembers it: {error}"));
            }
            _ => report.problems.push(error.to_string()),
        }
    }
    let mut index = Arc::new(repository.load_index().await?);
    report.problems.extend(index.unreadable.iter().cloned());
    if let Some(cache) = &remembered {
        // So that this machine's next push and prune see it too, and make up for it.
        let damaged: HashSet<String> = index.damaged_objects.iter().map(|id| index_key(*id)).collect();
        if !damaged.is_empty() {
            cache.attempt(|cache| cache.retain_objects(|key| !damaged.contains(key)));
        }
    }

    let mut found = Found::default();
    if let Some(percent) = options.read_data {
        found = read_packs(&repository, &index, percent, remembered.as_deref(), operation, &mut report).await?;
        if mark(&repository, &index, &found, &mut report).await? {
            repository.refresh().await?;
            index = Arc::new(repository.load_index().await?);
        }
    }
    report.packs = index.packs.len() as u64;
    report.damaged_packs = index.packs.iter().filter(|pack| pack.damaged).count() as u64;

    let Summaries { mut readable, unreadable } = summaries(&repository, operation).await?;
    for (id, error) in unreadable {
        match put_back(&repository, remembered.as_deref(), &id, &error).await {
            Some(summary) => {
                report.healed.push(format!("the manifest was stored again as this machine remembers it: {error}"));
                readable.push((id, summary));
            }
            None => report.problems.push(format!("snapshot {id} cannot be read: {error}")),
        }
    }
    let mut needed: HashSet<ChunkId> = HashSet::new();
    let mut is_whole = true;
    for (id, summary) in &readable {
        operation.check()?;
        report.snapshots += 1;
        match repository.read_tree(&index, &summary.tree, operation).await {
            Ok((entries, own)) => {
                let before = report.lost.len();
                report.lost.extend(entries.iter().filter_map(|entry| found.lost_file(&index, id, entry)));
                if let Some(first) = report.lost.get(before) {
                    is_whole = false;
                    let count = report.lost.len() - before;
                    let example = &first.path;
                    report
                        .problems
                        .push(format!("snapshot {id} lacks content of {count} files, for example {example}"));
                }
                needed.extend(entries.iter().flat_map(Entry::chunks));
                needed.extend(own);
            }
            Err(error) if is_damage(&error) => {
                is_whole = false;
                report.problems.push(format!("the file tree of snapshot {id} cannot be read: {error}"));
            }
            Err(error) => return Err(error),
        }
    }
    report.chunks = needed.len() as u64;
    if !is_whole {
        // Where nothing is missing, they are what another machine has deleted meanwhile.
        let absent = index.absent.iter().map(|id| format!("{} is not there, or was cut", pack_key(*id)));
        report.problems.extend(absent);
    }
    Ok(report)
}

fn is_damage(error: &Error) -> bool {
    matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::UnsafePath | Code::NotFound)
}

/// Stores a manifest again whose sound bytes this machine remembers. `None` where it does not, or the store refuses.
async fn put_back(
    repository: &Repository,
    remembered: Option<&Cache>,
    id: &SnapshotId,
    error: &Error,
) -> Option<Summary> {
    let key = id.manifest_key();
    let bytes = remembered.filter(|_| error.code() == Code::Corrupt)?.object(&key)?;
    let summary = Summary::from_manifest(id, &bytes, |header, name| repository.keyring.find(header, name)).ok()?;
    repository.store.put(&key, bytes.into()).await.ok()?;
    Some(summary)
}

/// What reading packs has shown.
#[derive(Debug, Default)]
struct Found {
    /// Damaged packs, each with the chunks that cannot be read from it.
    damaged: HashMap<PackId, HashSet<ChunkId>>,
    /// Packs that were read and are sound.
    sound: HashSet<PackId>,
}

impl Found {
    /// A file whose content cannot be restored, as far as is known.
    fn lost_file(&self, index: &Index, snapshot: &SnapshotId, entry: &Entry) -> Option<LostFile> {
        let reason = entry.chunks().find_map(|chunk| self.problem_of(index, chunk))?;
        Some(LostFile { snapshot: snapshot.to_string(), path: entry.path.clone(), reason })
    }

    fn problem_of(&self, index: &Index, chunk: ChunkId) -> Option<String> {
        let Some(at) = index.find(chunk) else { return Some("a part of its content is missing".into()) };
        let pack = &index.packs[at.pack as usize];
        let id = pack.entry.id;
        let is_lost = match self.damaged.get(&id) {
            Some(lacking) => lacking.contains(&chunk),
            // Found at another time, and not read at this one.
            None => pack.damaged && !self.sound.contains(&id),
        };
        is_lost.then(|| format!("a part of its content lies in {}, which is damaged", pack_key(id)))
    }
}

/// Marks damaged packs in the repository; whether there was something to mark. Where the store refuses, it is said.
async fn mark(repository: &Repository, index: &Index, found: &Found, report: &mut VerifyReport) -> Result<bool> {
    let is_new = |id: &&PackId| index.pack(**id).is_some_and(|pack| !pack.damaged);
    let new: BTreeSet<PackId> = found.damaged.keys().filter(is_new).copied().collect();
    let Some(object) = marks(new) else { return Ok(false) };
    match repository.put_index(&object).await {
        Ok(_) => Ok(true),
        Err(error) if error.code() == Code::Cancelled => Err(error),
        Err(error) => {
            report
                .problems
                .push(format!("the damaged packs could not be marked, so that pushes rely on them: {error}"));
            Ok(false)
        }
    }
}

/// Which packs to read: so many that they make `percent` of all stored bytes, in the order of their ids, from the one
/// after `last` on. Ids are random, and so are the parts.
fn part(index: &Index, percent: u8, last: PackId) -> Vec<usize> {
    let size = |number: &usize| index.packs[*number].entry.size;
    let mut order: Vec<usize> = (0..index.packs.len()).collect();
    order.sort_by_key(|number| index.packs[*number].entry.id);
    let next = order.partition_point(|number| index.packs[*number].entry.id <= last);
    order.rotate_left(next);
    let wanted = (order.iter().map(size).sum::<u64>() * u64::from(percent)).div_ceil(100);
    let mut chosen = 0;
    order
        .into_iter()
        .take_while(|number| {
            let is_wanted = chosen < wanted;
            chosen += size(number);
            is_wanted
        })
        .collect()
}

/// Downloads packs and checks every frame and chunk of them.
async fn read_packs(
    repository: &Repository,
    index: &Arc<Index>,
    percent: u8,
    remembered: Option<&Cache>,
    operation: &Operation,
    report: &mut VerifyReport,
) -> Result<Found> {
    let last = remembered.and_then(|cache| cache.object(LAST_READ)).and_then(|id| id.try_into().ok());
    let chosen = part(index, percent, PackId(last.map_or_else(random, Ok)?));
    let bytes = chosen.iter().map(|number| index.packs[*number].entry.size).sum();
    let meter = Meter::new(operation, "verify", chosen.len() as u64, bytes);
    let read = |number: usize| {
        let (repository, index) = (repository.clone(), Arc::clone(index));
        async move { (number, read_pack(&repository, &index, number).await) }
    };
    let mut found = Found::default();
    in_parallel(PARALLEL_PACKS, chosen.iter().copied().map(read), operation, |(number, result)| {
        let pack = &index.packs[number].entry;
        match result? {
            Verdict::Sound => {
                report.read_bytes += pack.size;
                found.sound.insert(pack.id);
            }
            Verdict::Damaged(error, lacking) => {
                report.read_bytes += pack.size;
                // One that is known matters only as far as something still needs it.
                report.problems.extend((!index.packs[number].damaged).then(|| error.to_string()));
                found.damaged.insert(pack.id, lacking);
            }
            Verdict::Gone => {}
        }
        meter.files(1);
        meter.bytes(pack.size);
        meter.transferred(repository.stats().received_bytes);
        Ok(())
    })
    .await?;
    if let (Some(cache), Some(last)) = (remembered, chosen.last()) {
        let id = index.packs[*last].entry.id;
        cache.attempt(|cache| cache.put_objects([(LAST_READ.to_owned(), &id.0[..])]));
    }
    Ok(found)
}

/// What a pack turned out to be.
enum Verdict {
    Sound,
    /// What is wrong, and the chunks that cannot be read.
    Damaged(Error, HashSet<ChunkId>),
    /// Removed since it was listed; whether that matters shows where it is needed.
    Gone,
}

async fn read_pack(repository: &Repository, index: &Arc<Index>, number: usize) -> Result<Verdict> {
    match read_pack_once(repository, index, number).await? {
        // It is marked, and its content stored again, only if this was no fault of the way here.
        Verdict::Damaged(..) => read_pack_once(repository, index, number).await,
        verdict => Ok(verdict),
    }
}

async fn read_pack_once(repository: &Repository, index: &Arc<Index>, number: usize) -> Result<Verdict> {
    let pack = &index.packs[number].entry;
    let key = pack_key(pack.id);
    let damaged = |error| Ok(Verdict::Damaged(error, pack.chunk_ids().collect()));
    if pack.size > MAX_PACK {
        return damaged(Error::corrupt(&key, "it is larger than a pack may be"));
    }
    let bytes = match repository.store.get(&key).await {
        Err(error) if error.code() == Code::NotFound => return Ok(Verdict::Gone),
        Err(error) if error.code() == Code::Corrupt => return damaged(error),
        bytes => bytes?,
    };
    let (keyring, index) = (repository.keyring.clone(), Arc::clone(index));
    let check = move || {
        let expected = &index.packs[number].entry;
        let error = match PackEntry::of_pack(expected.id, &bytes, |header, name| keyring.find_for_pack(header, name)) {
            Ok(found) if found == *expected => return Ok(Verdict::Sound),
            Ok(_) => Error::corrupt(&key, "it does not hold what the index says"),
            Err(error) => error,
        };
        let lacking = expected.lacking(&bytes, |header, name| keyring.find_for_pack(header, name));
        Ok(Verdict::Damaged(error, lacking.into_iter().collect()))
    };
    blocking(check).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::index::{FrameEntry, IndexObject};

    #[test]
    fn parts_go_round_until_every_pack_was_read() {
        let pack = |id: u8| PackEntry {
            id: PackId([id; 16]),
            size: 100 + u64::from(id),
            frames: vec![FrameEntry::new(56, 40, &[(ChunkId([id; 16]), 1)])],
            header: Vec::new(),
        };
        let index =
            Index::new([IndexObject { live: (1..=10).map(pack).collect(), ..IndexObject::default() }], |_| true);
        let ids = |part: Vec<usize>| part.iter().map(|number| index.packs[*number].entry.id.0[0]).collect::<Vec<_>>();
        assert_eq!(ids(part(&index, 1, PackId([3; 16]))), [4]);
        assert_eq!(ids(part(&index, 25, PackId([8; 16]))), [9, 10, 1]);
        assert_eq!(ids(part(&index, 100, PackId([255; 16]))), (1..=10).collect::<Vec<_>>());
        assert!(part(&Index::default(), 50, PackId([1; 16])).is_empty());
        let (mut last, mut seen) = (PackId([77; 16]), BTreeSet::new());
        for _ in 0..5 {
            let read = ids(part(&index, 20, last));
            last = PackId([*read.last().unwrap(); 16]);
            seen.extend(read);
        }
        assert_eq!(seen.len(), 10);
    }
}
