//! `prune`: removes the snapshots that retention does not keep, and then what no snapshot needs any more.
//!
//! Deleting is two-phase, since other machines may be pushing at the same time, and no store has a lock that is worth
//! the name. First a pack is condemned by an index object: from then on no push relies on it, but it can still be read.
//! Only after a grace period, by the store's clock, and after another look at every snapshot is it deleted; if a push
//! that was under way did rely on it, it stays as long as that snapshot needs it. It never becomes live again: somebody may be
//! about to delete it, who looked before. A pack that no index object names goes the same way: the machine that stored it may
//! wake after days, and name it.
//!
//! Where the key may not delete, all of this is left to one that may. What Object Lock keeps is left until it may go.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::list::{Summaries, summaries};
use super::workplace::Workplace;
use super::{Operation, PruneOptions, PruneReport, Shrink};
use crate::config::{Retention, Target};
use crate::error::{Code, Error, Result};
use crate::repository::id::{ChunkId, IndexId, MachineId, PackId, SnapshotId};
use crate::repository::index::{INDEX_TARGET_CHUNKS, Index, IndexObject, PackEntry, index_key};
use crate::repository::manifest::Summary;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::pack::pack_key;
use crate::repository::read::missing;
use crate::repository::tree::Entry;
use crate::store::{Deletion, Hidden, Lifecycle, ObjectMeta};

/// How long a pack stays readable after it was condemned. No push may take longer: one that does looks again before it
/// commits.
pub const GRACE: Duration = Duration::from_hours(48);
/// A state has lost most of what it held when a snapshot of it has more than this many times as many files,
const MUCH_FULLER: u64 = 2;
/// or more than this many times as many bytes, and
const MUCH_LARGER: u64 = 4;
/// at least so many.
const LARGE: u64 = 4 << 20;
/// More index objects than this are merged, so that opening a repository takes few requests.
const MANY_INDEX_OBJECTS: usize = 8;

/// Applies retention and frees what no snapshot needs.
///
/// # Errors
/// `LOCKED`, `CORRUPT` or `WRONG_KEY` when a snapshot cannot be read, so that nobody knows what it needs; those of the
/// store, `CANCELLED`. Nothing that any snapshot needs is deleted in any case.
pub async fn prune(target: &Target, operation: &Operation) -> Result<PruneReport> {
    prune_with(target, PruneOptions::default(), operation).await
}

/// [`prune`] with options.
///
/// # Errors
/// Those of [`prune`].
pub async fn prune_with(target: &Target, options: PruneOptions, operation: &Operation) -> Result<PruneReport> {
    prune_as(target, options, GRACE, operation).await
}

/// [`prune`] with another grace period. For tests: a shorter one than [`GRACE`] is safe only while nobody pushes.
///
/// # Errors
/// Those of [`prune`].
pub async fn prune_after(target: &Target, grace: Duration, operation: &Operation) -> Result<PruneReport> {
    prune_as(target, PruneOptions::default(), grace, operation).await
}

/// Whose snapshots retention may remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// This machine's.
    Own,
    /// Every machine's.
    All,
}

async fn prune_as(
    target: &Target,
    options: PruneOptions,
    grace: Duration,
    operation: &Operation,
) -> Result<PruneReport> {
    let workplace = Workplace::open(target, "prune").await?;
    let cache = Some(Arc::clone(&workplace.cache));
    let mut repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    if options.accept_shrink {
        agree(&repository, &workplace, operation).await?;
    }
    // Index objects are written on the way.
    repository.keyring.writing()?;
    let whose = if options.all_machines { Whose::All } else { Whose::Own };
    let mut report = PruneReport::default();
    if may_delete(&repository, &mut report).await? {
        let done = run(&mut repository, target, &workplace, whose, Some(grace), operation, &mut report).await;
        unless_denied(&repository, done, &mut report).await?;
    }
    Ok(report)
}

/// The owner agrees that the state holds no more than it did at this machine's last snapshot: from now on it prunes again.
/// Gives what was agreed to, if there was something.
///
/// # Errors
/// `LOCKED`, `IO`, those of [`Repository::open`] and of the store, `CANCELLED`.
pub async fn accept_shrink(target: &Target, operation: &Operation) -> Result<Option<Shrink>> {
    let workplace = Workplace::open(target, "prune").await?;
    let cache = Some(Arc::clone(&workplace.cache));
    let repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
    agree(&repository, &workplace, operation).await
}

async fn agree(repository: &Repository, workplace: &Workplace, operation: &Operation) -> Result<Option<Shrink>> {
    let Summaries { readable, .. } = summaries(repository, operation).await?;
    let own = own_snapshots(&readable, workplace.machine);
    let shrunk = shrink(&own, workplace.folder.accepted_shrink().as_deref(), None);
    if let (Some(_), Some((newest, _))) = (&shrunk, own.last()) {
        workplace.folder.accept_shrink(newest.as_str())?;
    }
    Ok(shrunk)
}

/// Whether the state has lost most of what it held: `size` is that of it now, or of this machine's last snapshot.
///
/// # Errors
/// Those of the store, `CANCELLED`.
pub(super) async fn find_shrink(
    repository: &Repository,
    workplace: &Workplace,
    size: Option<Size>,
    operation: &Operation,
) -> Result<Option<Shrink>> {
    let Summaries { readable, .. } = summaries(repository, operation).await?;
    let own = own_snapshots(&readable, workplace.machine);
    Ok(shrink(&own, workplace.folder.accepted_shrink().as_deref(), size))
}

/// The regular snapshots of a machine, oldest first.
pub(super) fn own_snapshots(readable: &[(SnapshotId, Summary)], machine: MachineId) -> Vec<&(SnapshotId, Summary)> {
    readable.iter().filter(|(id, summary)| !id.is_safety() && summary.machine == machine).collect()
}

/// How much a state holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Size {
    const fn of(summary: &Summary) -> Self {
        Self { files: summary.files, bytes: summary.bytes }
    }

    const fn is_most_gone_of(self, before: Self) -> bool {
        let has_few_files = self.files.saturating_mul(MUCH_FULLER) < before.files;
        has_few_files || (before.bytes >= LARGE && self.bytes.saturating_mul(MUCH_LARGER) < before.bytes)
    }
}

/// Compares `size`, or that of the newest of `own`, with the fullest and the largest of those since the owner last agreed.
/// Whatever emptied the state, be it an accident or a machine set up anew: it must not push good snapshots out.
pub(super) fn shrink(own: &[&(SnapshotId, Summary)], accepted: Option<&str>, size: Option<Size>) -> Option<Shrink> {
    let size = size.or_else(|| own.last().map(|(_, summary)| Size::of(summary)))?;
    let since = || own.iter().filter(|(id, _)| accepted.is_none_or(|accepted| id.as_str() >= accepted));
    let fullest = since().max_by_key(|(_, summary)| summary.files)?;
    let largest = since().max_by_key(|(_, summary)| summary.bytes)?;
    let (id, before) = [fullest, largest].into_iter().find(|(_, summary)| size.is_most_gone_of(Size::of(summary)))?;
    Some(Shrink {
        snapshot: id.to_string(),
        files_before: before.files,
        files: size.files,
        bytes_before: before.bytes,
        bytes: size.bytes,
    })
}

/// What to tell the owner of it.
pub(super) fn shrink_warning(shrink: &Shrink) -> String {
    let Shrink { snapshot, files_before, files, bytes_before, bytes } = shrink;
    format!(
        "the state holds {files} files with {bytes} bytes, and {snapshot} holds {files_before} with {bytes_before}: nothing is \
         pruned until you agree to that with `prune --accept-shrink`, or `/b2 accept-shrink` in chat"
    )
}

/// Applies retention after a push: at once when there is nothing to remove.
///
/// # Errors
/// Those of [`prune`].
pub(super) async fn apply_retention(
    repository: &mut Repository,
    target: &Target,
    workplace: &Workplace,
    operation: &Operation,
) -> Result<PruneReport> {
    let mut report = PruneReport::default();
    let regular = repository.contents.snapshots.iter().filter(|(id, _)| !id.is_safety()).count();
    // The one that was just made is not in the listing yet.
    if regular < target.keep_snapshots as usize {
        return Ok(report);
    }
    if may_delete(repository, &mut report).await? {
        repository.refresh().await?;
        let done = run(repository, target, workplace, Whose::Own, None, operation, &mut report).await;
        unless_denied(repository, done, &mut report).await?;
    }
    Ok(report)
}

/// Removes snapshots, and frees what nothing needs after `grace`; without one as usual, and only if a snapshot went.
async fn run(
    repository: &mut Repository,
    target: &Target,
    workplace: &Workplace,
    whose: Whose,
    grace: Option<Duration>,
    operation: &Operation,
    report: &mut PruneReport,
) -> Result<()> {
    let going = outdated_snapshots(repository, target, workplace, whose, operation, report).await?;
    if going.is_empty() && (report.shrunk.is_some() || grace.is_none()) {
        return Ok(());
    }
    let index = sound_index(repository, operation).await?;
    // Before anything is removed: should what stays not be whole, none of the others is to go.
    let needed = Needed::read(repository, &index, &going, operation).await?;
    remove_snapshots(repository, &going, operation, report).await?;
    if report.shrunk.is_some() {
        return Ok(());
    }
    sweep(repository, &index, &needed, grace.unwrap_or(GRACE), operation, report).await
}

/// Whether the key may delete, as far as that is known before it is tried.
async fn may_delete(repository: &Repository, report: &mut PruneReport) -> Result<bool> {
    let deletion = repository.store.deletion().await?;
    report.left_to_another_key = deletion == Deletion::Denied;
    report.hidden_for_days = match deletion {
        Deletion::ByLifecycle { days } => Some(days),
        _ => None,
    };
    Ok(!report.left_to_another_key)
}

/// `done`, unless it failed because the first deletion showed that the key may not delete.
async fn unless_denied(repository: &Repository, done: Result<()>, report: &mut PruneReport) -> Result<()> {
    let is_allowed = may_delete(repository, report).await?;
    match done {
        Err(error) if error.code() == Code::Auth && !is_allowed => Ok(()),
        done => done,
    }
}

/// Whether Object Lock keeps an object for now; those that do are counted.
async fn is_locked(repository: &Repository, key: &str, report: &mut PruneReport) -> Result<bool> {
    let locked = repository.store.locked_until(key).await?.is_some();
    report.locked_objects += u64::from(locked);
    Ok(locked)
}

/// Refuses to free anything while snapshots are hidden that this program did not remove: it deletes for good, so somebody
/// else did, perhaps with a stolen key that may do no more. What they need would be lost.
async fn check_hidden_snapshots(repository: &Repository) -> Result<()> {
    let hidden = hidden_snapshots(&repository.store.hidden().await?.unwrap_or_default());
    let by_rule = |lifecycle: Lifecycle| lifecycle.deletes_hidden_after.is_some();
    // With such a rule, machines that may only hide remove their old snapshots in this way.
    if hidden.is_empty() || repository.store.lifecycle().await?.is_some_and(by_rule) {
        return Ok(());
    }
    let message = format!(
        "nothing was removed or freed, since {} snapshots are hidden in the bucket, the first of them {}",
        hidden.len(),
        hidden[0]
    );
    Err(Error::new(Code::Corrupt, message)
        .in_snapshot(hidden[0].as_str())
        .advise("delete their delete markers to get them back, or their versions to give them up"))
}

/// The snapshots whose manifests were deleted without their versions.
pub(super) fn hidden_snapshots(hidden: &Hidden) -> Vec<SnapshotId> {
    let id = |key: &String| key.strip_suffix("/manifest.json")?.parse().ok();
    hidden.deleted.iter().filter_map(id).collect()
}

/// The regular snapshots of this machine, or of each, that retention does not keep and that may go; none of a machine whose state
/// has lost most of what it held while the owner has not agreed there.
async fn outdated_snapshots(
    repository: &Repository,
    target: &Target,
    workplace: &Workplace,
    whose: Whose,
    operation: &Operation,
    report: &mut PruneReport,
) -> Result<Vec<SnapshotId>> {
    let Summaries { readable, .. } = summaries(repository, operation).await?;
    let machines: BTreeSet<MachineId> = match whose {
        Whose::Own => BTreeSet::from([workplace.machine]),
        Whose::All => readable.iter().map(|(_, summary)| summary.machine).collect(),
    };
    let mut outdated: Vec<SnapshotId> = Vec::new();
    // The owner's calendar, by the clock that dates snapshots.
    let now = repository.now()?.to_zoned(jiff::tz::TimeZone::system());
    for machine in machines {
        let own = own_snapshots(&readable, machine);
        // What was agreed to is kept on the machine that it is about.
        let accepted = (machine == workplace.machine).then(|| workplace.folder.accepted_shrink()).flatten();
        if let Some(shrunk) = shrink(&own, accepted.as_deref(), None) {
            report.shrunk = Some(shrunk);
            continue;
        }
        let ids: Vec<&SnapshotId> = own.iter().map(|(id, _)| id).collect();
        let mut kept = kept(&ids, target.keep_snapshots as usize, &target.retention, &now);
        kept.extend(most_complete(&own));
        outdated.extend(own.iter().map(|(id, _)| id).filter(|id| !kept.contains(id)).cloned());
    }
    let mut going = Vec::new();
    for id in outdated {
        operation.check()?;
        if !is_locked(repository, &id.manifest_key(), report).await? {
            going.push(id);
        }
    }
    Ok(going)
}

async fn remove_snapshots(
    repository: &mut Repository,
    going: &[SnapshotId],
    operation: &Operation,
    report: &mut PruneReport,
) -> Result<()> {
    for id in going {
        operation.check()?;
        repository.store.delete(&id.manifest_key()).await.map_err(|error| error.in_snapshot(id.as_str()))?;
        report.removed_snapshots.push(id.to_string());
    }
    Arc::make_mut(&mut repository.contents).snapshots.retain(|(id, _)| !going.contains(id));
    Ok(())
}

/// Of the snapshots of one machine, oldest first, those that have what all later ones could not read: of each number of
/// exceptions that its machine could read before the newest, as long as that is less than all later ones have.
fn most_complete<'s>(own: &[&'s (SnapshotId, Summary)]) -> impl Iterator<Item = &'s SnapshotId> {
    let mut fewest = u64::MAX;
    own.iter().rev().filter_map(move |(id, summary)| {
        let has_more = summary.dropped < fewest;
        fewest = fewest.min(summary.dropped);
        has_more.then_some(id)
    })
}

/// Which of `snapshots`, oldest first, retention keeps: the newest ones, and the newest of each recent day, week and
/// month, as the owner's calendar has them.
fn kept<'s>(
    snapshots: &[&'s SnapshotId],
    newest: usize,
    retention: &Retention,
    now: &jiff::Zoned,
) -> HashSet<&'s SnapshotId> {
    type Period = fn(&jiff::Zoned) -> (i16, i16);
    let mut kept: HashSet<&SnapshotId> = snapshots.iter().rev().take(newest).copied().collect();
    let is_young = |time: &jiff::Zoned| {
        retention.max_age_days.is_none_or(|days| {
            now.timestamp().duration_since(time.timestamp()) <= jiff::SignedDuration::from_hours(24 * i64::from(days))
        })
    };
    let day: Period = |time| (time.year(), time.day_of_year());
    let week: Period = |time| (time.date().iso_week_date().year(), time.date().iso_week_date().week().into());
    let month: Period = |time| (time.year(), time.month().into());
    for (count, period) in [(retention.daily, day), (retention.weekly, week), (retention.monthly, month)] {
        let mut periods = BTreeSet::new();
        for id in snapshots.iter().rev() {
            let time = id.time().to_zoned(now.time_zone().clone());
            if periods.len() < count as usize && is_young(&time) && periods.insert(period(&time)) {
                kept.insert(id);
            }
        }
    }
    kept
}

/// Everything that the listed snapshots need.
struct Needed {
    chunks: HashSet<ChunkId>,
}

impl Needed {
    /// Reads the tree of every snapshot but those that are `going`.
    ///
    /// # Errors
    /// Those of reading; `CORRUPT` when a chunk is missing: then the index is not to be trusted with what can go.
    async fn read(
        repository: &Repository,
        index: &Arc<Index>,
        going: &[SnapshotId],
        operation: &Operation,
    ) -> Result<Self> {
        let Summaries { mut readable, mut unreadable } = summaries(repository, operation).await?;
        readable.retain(|(id, _)| !going.contains(id));
        let refused = |id: &SnapshotId, error: Error| {
            Error::new(
                error.code(),
                format!("nothing was removed or freed, since nobody knows what {id} needs: {error}"),
            )
            .in_snapshot(id.as_str())
            .because(error)
            .advise(format!(
                "run verify, and push from the machine that took it; should it be beyond help, delete {}",
                id.manifest_key()
            ))
        };
        if let Some((id, error)) = unreadable.pop() {
            return Err(refused(&id, error));
        }
        let mut chunks = HashSet::new();
        for (id, Summary { tree, .. }) in &readable {
            operation.check()?;
            let read = repository.read_tree(index, tree, operation).await;
            let (entries, own) = read.map_err(|error| refused(id, error))?;
            chunks.extend(own);
            chunks.extend(entries.iter().flat_map(Entry::chunks));
        }
        match chunks.iter().find(|chunk| index.find(**chunk).is_none()) {
            Some(lost) => Err(missing(*lost)),
            None => Ok(Self { chunks }),
        }
    }

    /// Whether a pack has to stay: it holds a needed chunk that no pack `instead` of it holds.
    fn needs(&self, pack: &PackEntry, instead: &HashSet<ChunkId>) -> bool {
        pack.chunk_ids().any(|chunk| self.chunks.contains(&chunk) && !instead.contains(&chunk))
    }
}

/// The index, if it can be trusted with what may go.
async fn sound_index(repository: &mut Repository, operation: &Operation) -> Result<Arc<Index>> {
    check_hidden_snapshots(repository).await?;
    let mut index = Arc::new(repository.load_index().await?);
    if !index.unreadable.is_empty() && !index.damaged_objects.is_empty() {
        replace_damaged_objects(repository, &index, operation).await?;
        index = Arc::new(repository.load_index().await?);
    }
    if let Some(problem) = index.unreadable.first() {
        let refusal = format!("nothing was removed or freed, since the index is damaged: {problem}");
        return Err(Error::new(Code::Corrupt, refusal).advise("run verify"));
    }
    Ok(index)
}

/// Condemns the packs that no snapshot needs, and deletes those that were condemned long enough ago.
async fn sweep(
    repository: &mut Repository,
    index: &Arc<Index>,
    needed: &Needed,
    grace: Duration,
    operation: &Operation,
    report: &mut PruneReport,
) -> Result<()> {
    forget(repository, needed);
    let now = repository.contents.listed_at;
    let age_is_over = move |meta: &ObjectMeta| now.duration_since(meta.modified).is_ok_and(|age| age >= grace);
    // Without a grace period nothing depends on clocks.
    let is_over = move |meta: &ObjectMeta| grace.is_zero() || age_is_over(meta);
    decide_condemned(repository, index, needed, is_over, operation, report).await?;
    condemn(repository, index, needed, is_over, report).await?;
    merge(repository, operation, report).await
}

/// Lets go of index objects whose bytes are not what was sealed, once others name every pack: what such an object said of
/// packs was read from the packs themselves. What it condemned is condemned again when its time comes.
async fn replace_damaged_objects(repository: &mut Repository, index: &Index, operation: &Operation) -> Result<()> {
    // What else cannot be read may need what the damaged object says, or be opened by another machine.
    if index.unreadable.len() > index.damaged_objects.len() {
        return Ok(());
    }
    // What a plain one said cannot be read from its packs any more.
    if index.damaged_objects.iter().any(|id| repository.keyring.accepts(&index_key(*id))) {
        return Ok(());
    }
    // What Object Lock keeps cannot be replaced yet.
    for id in &index.damaged_objects {
        if repository.store.locked_until(&index_key(*id)).await?.is_some() {
            return Ok(());
        }
    }
    let recovered: Vec<PackEntry> =
        index.recovered.iter().filter_map(|id| index.pack(*id)).map(|pack| pack.entry.clone()).collect();
    for object in IndexObject::split(recovered, Vec::new()) {
        operation.check()?;
        repository.put_index(&object).await?;
    }
    for id in &index.damaged_objects {
        // Not for a fault of one answer: it is damaged when it is read again, too.
        match repository.index_object(*id).await {
            Err(error) if error.code() == Code::Corrupt => repository.store.delete(&index_key(*id)).await?,
            Err(error) if error.code() != Code::NotFound => return Err(error),
            _ => {}
        }
    }
    repository.refresh().await
}

/// The index objects as they are stored, with their times.
async fn index_objects(repository: &Repository) -> Result<Vec<(IndexId, ObjectMeta, IndexObject)>> {
    let mut objects = Vec::new();
    for (id, meta) in &repository.contents.indexes {
        objects.push((*id, meta.clone(), repository.index_object(*id).await?));
    }
    objects.sort_by_key(|(id, ..)| *id);
    Ok(objects)
}

/// Condemns the live packs that nothing needs, and those that no index object names. They stay readable for the grace period.
/// Young ones are spared: the push that made them may be about to commit.
async fn condemn(
    repository: &mut Repository,
    index: &Index,
    needed: &Needed,
    is_over: impl Fn(&ObjectMeta) -> bool,
    report: &mut PruneReport,
) -> Result<()> {
    // Of several live packs that hold a chunk the one with the smallest id is the one to keep; the index finds just it.
    let used: HashSet<u32> = needed.chunks.iter().filter_map(|chunk| index.find(*chunk)).map(|at| at.pack).collect();
    let is_old = |pack: &PackEntry| repository.contents.packs.get(&pack.id).is_some_and(&is_over);
    let unused = index.packs.iter().enumerate().filter(|(number, _)| !used.contains(&(*number as u32)));
    let unused: Vec<PackEntry> =
        unused.filter(|(_, pack)| !pack.condemned && is_old(&pack.entry)).map(|(_, pack)| pack.entry.clone()).collect();
    let is_unnamed = |id: &PackId| index.pack(*id).is_none() && !index.orphans.contains(id);
    let packs = repository.contents.packs.iter();
    let orphans: Vec<PackId> = packs.filter(|(id, meta)| is_unnamed(id) && is_over(meta)).map(|(id, _)| *id).collect();
    report.condemned_packs += (unused.len() + orphans.len()) as u64;
    for object in IndexObject::split(Vec::new(), unused).iter().chain(&condemning(orphans)) {
        repository.put_index(object).await?;
    }
    Ok(())
}

/// The index objects that may be replaced now, and the packs that those name which Object Lock keeps.
async fn replaceable(
    repository: &Repository,
    objects: Vec<(IndexId, ObjectMeta, IndexObject)>,
    report: &mut PruneReport,
) -> Result<(Vec<(IndexId, ObjectMeta, IndexObject)>, HashSet<PackId>)> {
    let (mut free, mut bound) = (Vec::new(), HashSet::new());
    for (id, meta, object) in objects {
        if is_locked(repository, &index_key(id), report).await? {
            bound.extend(object.live.iter().map(|pack| pack.id).chain(object.condemned_ids()));
        } else {
            free.push((id, meta, object));
        }
    }
    Ok((free, bound))
}

/// Deletes what was condemned before the grace period began and is still not needed.
async fn decide_condemned(
    repository: &mut Repository,
    index: &Index,
    needed: &Needed,
    is_over: impl Fn(&ObjectMeta) -> bool,
    operation: &Operation,
    report: &mut PruneReport,
) -> Result<()> {
    let (objects, bound) = replaceable(repository, index_objects(repository).await?, report).await?;
    let live = index.packs.iter().filter(|pack| pack.is_reliable()).map(|pack| &pack.entry);
    let live: HashSet<ChunkId> = live.flat_map(PackEntry::chunk_ids).collect();
    let is_needed = |id: &PackId| index.pack(*id).is_some_and(|pack| needed.needs(&pack.entry, &live));
    let (mut decided, mut dead) = (BTreeSet::new(), BTreeSet::new());
    for (id, _, object) in objects.iter().filter(|(_, meta, _)| is_over(meta)) {
        let mut gone: Vec<PackId> = object.condemned_ids().filter(|id| !is_needed(id)).collect();
        for id in &gone {
            if bound.contains(id) || is_locked(repository, &pack_key(*id), report).await? {
                gone = Vec::new();
                break;
            }
        }
        if !gone.is_empty() {
            decided.insert(*id);
        }
        dead.extend(gone);
    }
    // Nothing that is needed is missing: what an old object says of packs that are gone, or were cut, is of no use.
    let is_gone = |meta: &ObjectMeta, id: PackId| dead.contains(&id) || (is_over(meta) && index.pack(id).is_none());
    let names_gone = |(_, meta, object): &(IndexId, ObjectMeta, IndexObject)| {
        object.live.iter().any(|pack| is_gone(meta, pack.id)) || object.damaged.iter().any(|id| is_gone(meta, *id))
    };
    let rewritten: Vec<_> = objects.iter().filter(|object| decided.contains(&object.0) || names_gone(object)).collect();
    if rewritten.is_empty() {
        return Ok(());
    }

    // 1. What these objects say, without what is about to go.
    let (mut kept, mut condemned) = (BTreeMap::new(), BTreeMap::new());
    let (mut damaged, mut orphans) = (BTreeSet::new(), BTreeSet::new());
    for (_, meta, object) in &rewritten {
        let stays = |pack: &&PackEntry| !is_gone(meta, pack.id);
        kept.extend(object.live.iter().filter(stays).map(|pack| (pack.id, pack.clone())));
        condemned.extend(object.condemned.iter().filter(stays).map(|pack| (pack.id, pack.clone())));
        damaged.extend(object.damaged.iter().filter(|id| !is_gone(meta, **id)));
        orphans.extend(object.orphans.iter().filter(|id| !dead.contains(id)));
    }
    let live_objects = IndexObject::split(kept.into_values().collect(), Vec::new());
    let condemning_objects = IndexObject::split(Vec::new(), condemned.into_values().collect());
    let orphans = condemning(orphans.into_iter().collect());
    for object in live_objects.iter().chain(&condemning_objects).chain(&orphans).chain(&marks(damaged)) {
        repository.put_index(object).await?;
    }
    // 2. The objects that still call the dead ones live. Those that condemn them stay until the end, so that at no
    // moment a pack that is about to go looks live.
    for (id, ..) in rewritten.iter().filter(|(id, ..)| !decided.contains(id)) {
        repository.store.delete(&index_key(*id)).await?;
    }
    // 3. The packs.
    for id in &dead {
        operation.check()?;
        let Some(stored) = Arc::make_mut(&mut repository.contents).packs.remove(id) else { continue };
        repository.store.delete(&pack_key(*id)).await?;
        report.deleted_packs += 1;
        report.freed_bytes += stored.size;
    }
    // 4. What condemned them.
    for id in &decided {
        repository.store.delete(&index_key(*id)).await?;
    }
    Ok(())
}

/// An index object that calls these packs damaged, if there are any.
pub(super) fn marks(damaged: BTreeSet<PackId>) -> Option<IndexObject> {
    let damaged: Vec<PackId> = damaged.into_iter().collect();
    (!damaged.is_empty()).then(|| IndexObject { damaged, ..IndexObject::default() })
}

/// An index object that condemns these packs, which none names, if there are any.
fn condemning(orphans: Vec<PackId>) -> Option<IndexObject> {
    (!orphans.is_empty()).then(|| IndexObject { orphans, ..IndexObject::default() })
}

/// Drops from the local cache what the repository does not have any more.
fn forget(repository: &Repository, needed: &Needed) {
    let Some(cache) = &repository.cache else { return };
    let contents = &repository.contents;
    let is_there = |key: &str| match key.split_once('/') {
        Some(("tree", id)) => id.parse().is_ok_and(|id| needed.chunks.contains(&id)),
        Some(("index", id)) => id.parse().is_ok_and(|id| contents.indexes.contains_key(&id)),
        Some(("lock", key)) => match key.strip_prefix("packs/").and_then(|name| name.split_once('/')) {
            Some((_, id)) => id.parse().is_ok_and(|id| contents.packs.contains_key(&id)),
            None => true,
        },
        _ => match key.strip_suffix("/manifest.json") {
            Some(id) => contents.has_snapshot(id) || contents.legacy.has(id),
            None => true,
        },
    };
    cache.attempt(|cache| cache.retain_objects(is_there));
}

/// Merges many small index objects. Those that condemn stay as they are: their age is what the grace period counts.
async fn merge(repository: &mut Repository, operation: &Operation, report: &mut PruneReport) -> Result<()> {
    if repository.contents.indexes.len() <= MANY_INDEX_OBJECTS {
        return Ok(());
    }
    repository.refresh().await?;
    let objects = match index_objects(repository).await {
        // Another machine is at it.
        Err(error) if error.code() == Code::NotFound => return Ok(()),
        objects => objects?,
    };
    let counted = report.locked_objects;
    let (objects, _) = replaceable(repository, objects, report).await?;
    report.locked_objects = counted;
    // Those that are large already would be merged again and again.
    let is_small = |object: &IndexObject| {
        object.condemned_ids().next().is_none()
            && object.live.iter().map(PackEntry::chunk_count).sum::<usize>() < INDEX_TARGET_CHUNKS / 2
    };
    let small: Vec<_> = objects.into_iter().filter(|(_, _, object)| is_small(object)).collect();
    if small.len() <= MANY_INDEX_OBJECTS / 2 {
        return Ok(());
    }
    let mut live: BTreeMap<PackId, PackEntry> = BTreeMap::new();
    let mut damaged = BTreeSet::new();
    for (_, _, object) in &small {
        live.extend(object.live.iter().map(|pack| (pack.id, pack.clone())));
        damaged.extend(&object.damaged);
    }
    for object in IndexObject::split(live.into_values().collect(), Vec::new()).iter().chain(&marks(damaged)) {
        operation.check()?;
        repository.put_index(object).await?;
    }
    for (id, ..) in &small {
        repository.store.delete(&index_key(*id)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(times: &[&str]) -> Vec<SnapshotId> {
        times.iter().map(|time| format!("{time}-00000000").parse().unwrap()).collect()
    }

    fn kept_times(times: &[&str], newest: usize, retention: &Retention) -> Vec<String> {
        let ids = ids(times);
        let now = "2026-03-10T12:00:00+00:00[UTC]".parse().unwrap();
        let all: Vec<&SnapshotId> = ids.iter().collect();
        let kept = kept(&all, newest, retention, &now);
        let mut kept: Vec<String> = kept.into_iter().map(|id| id.as_str()[..13].to_owned()).collect();
        kept.sort();
        kept
    }

    const TIMES: [&str; 6] = [
        "2026-01-05T08-00-00Z",
        "2026-02-01T08-00-00Z",
        "2026-03-08T08-00-00Z",
        "2026-03-09T08-00-00Z",
        "2026-03-09T20-00-00Z",
        "2026-03-10T08-00-00Z",
    ];

    #[test]
    fn the_newest_are_kept() {
        assert_eq!(kept_times(&TIMES, 2, &Retention::default()), ["2026-03-09T20", "2026-03-10T08"]);
        assert_eq!(kept_times(&TIMES, 99, &Retention::default()).len(), 6);
    }

    #[test]
    fn days_and_months_keep_their_newest_until_they_are_too_old() {
        let retention = Retention { daily: 3, monthly: 9, ..Retention::default() };
        let days_and_months = ["2026-01-05T08", "2026-02-01T08", "2026-03-08T08", "2026-03-09T20", "2026-03-10T08"];
        assert_eq!(kept_times(&TIMES, 1, &retention), days_and_months);
        let young = Retention { max_age_days: Some(30), ..retention };
        assert_eq!(kept_times(&TIMES, 1, &young), days_and_months[2..]);
    }
}
