//! `push`: takes a snapshot of the state directory and stores what the repository does not have yet.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use bytes::Bytes;

use super::capture::{Captured, Survey};
use super::workplace::Workplace;
use super::{Exception, Meter, Operation, PushOptions, PushReport, Trigger, cost, newest, other_machine, prune};
use crate::config::Target;
use crate::error::{Code, Error, Result, to_json};
use crate::repository::id::SnapshotId;
use crate::repository::index::{Index, PackEntry};
use crate::repository::legacy::LegacyId;
use crate::repository::manifest::{LISTED_EXCEPTIONS, Summary};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::tree::Entry;
use crate::repository::write::Writer;
use crate::state::blank::is_blank;
use crate::store::ObjectMeta;
use crate::task::{blocking, cores, in_parallel};

/// A push that took longer than this looks again at what the store holds before it commits. Far below the grace period
/// after which other machines delete packs.
const TRUST_LISTING: Duration = Duration::from_mins(10);
/// The oldest pack of an interrupted run that is taken over; older ones may be about to be condemned as orphans.
const ADOPT_BELOW_AGE: Duration = Duration::from_hours(12);
/// Locks renewed at once.
const PARALLEL_LOCKS: usize = 8;
/// Under which name the cache remembers the last snapshot of this machine.
const LAST_SNAPSHOT: &str = "last";
/// The clocks that date snapshots differ by less than this.
const CLOCKS_DIFFER: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Takes a snapshot. With nothing changed since this machine's last one, none is made.
///
/// # Errors
/// `LOCKED`, `CONFIG`, `IO`, `CANCELLED`, and those of [`Repository::open`]. Until the manifest is written nothing of an
/// interrupted push can be seen; the next one takes over what was uploaded.
pub async fn push(target: &Target, options: PushOptions, operation: &Operation) -> Result<PushReport> {
    let started = Instant::now();
    match options.trigger {
        Trigger::BeforeRollback => {
            return Err(Error::config("trigger", "before_rollback is for the safety snapshots that a rollback takes"));
        }
        Trigger::Import => {
            return Err(Error::config("trigger", "import is for the snapshots that import-legacy makes"));
        }
        _ => {}
    }
    let workplace = Workplace::open(target, "push").await?;
    let operation = &match operation.threads {
        None if options.trigger.can_wait() => Operation { threads: Some(some_threads(target)), ..operation.clone() },
        _ => operation.clone(),
    };
    let mut upload = Upload::start(target, &workplace, WhenUnchanged::Skip, operation).await?;
    let mut warnings = std::mem::take(&mut upload.repository.warnings);
    if !upload.index.unreadable.is_empty() {
        warnings.push(format!("the repository is damaged, run verify: {}", upload.index.unreadable.join("; ")));
    }
    let missing = newest::missing(&upload.repository).await;
    warnings.extend(missing.as_ref().map(newest::warning));
    warnings.extend(upload.healing());
    let (mut shrunk, mut other_machine) = (None, None);
    let snapshot = if upload.is_unchanged() {
        upload.remember(None);
        None
    } else {
        if workplace.cache.object(LAST_SNAPSHOT).is_none() {
            other_machine = other_machine::find(&upload.repository, &workplace).await?;
        }
        shrunk = prune::find_shrink(&upload.repository, &workplace, Some(upload.captured.size()), operation).await?;
        let id = upload.commit(options.trigger, shrunk.is_some()).await?;
        // The snapshot is safe by now: what fails from here on is worth a warning, not a failure.
        match prune::apply_retention(&mut upload.repository, target, &workplace, operation).await {
            Ok(pruned) if pruned.left_to_another_key => {
                warnings.push("old snapshots stay: this key may not delete, and leaves pruning to another one".into());
            }
            Ok(_) => {}
            Err(error) if error.code() == Code::Cancelled => {}
            Err(error) => warnings.push(format!("old snapshots were not removed: {error}")),
        }
        Some(id)
    };
    warnings.extend(shrunk.as_ref().map(prune::shrink_warning));
    warnings.extend(dropped_warning(&upload.captured.dropped));
    match renew_locks(target, &upload, operation).await {
        Err(error) if error.code() != Code::Cancelled => {
            warnings.push(format!("older objects were not locked again: {error}"));
        }
        _ => {}
    }
    let stats = upload.repository.stats();
    workplace.cache.attempt(|cache| cost::remember_push(cache, options.trigger, stats));
    let Captured { files, bytes, changed_files, exceptions, dropped, .. } = upload.captured;
    Ok(PushReport {
        snapshot: snapshot.as_ref().map(ToString::to_string),
        trigger: options.trigger,
        files,
        bytes,
        changed_files,
        uploaded_bytes: stats.sent_bytes,
        requests: stats.requests,
        exceptions,
        dropped: dropped.into_iter().map(|exception| exception.path).collect(),
        warnings,
        shrunk,
        missing: missing.as_ref().map(ToString::to_string),
        other_machine,
        duration: started.elapsed(),
    })
}

/// With Object Lock, locks again what the newest snapshot needs of older objects, for as long as a new object: the packs in
/// use, the key slots and, with nothing changed, the snapshot's own manifest. Each once in half of that time, as this
/// machine remembers it. What an index object says can be read from the packs.
async fn renew_locks(target: &Target, upload: &Upload<'_>, operation: &Operation) -> Result<()> {
    let Some(lock) = target.object_lock else { return Ok(()) };
    let (contents, cache) = (&upload.repository.contents, &upload.workplace.cache);
    let now = upload.repository.store.now();
    let live = upload.index.packs.iter().filter(|pack| !pack.condemned).map(|pack| pack.entry.id);
    let packs = live.filter_map(|id| contents.packs.get(&id));
    let slots = contents.slots.iter().map(|(_, meta)| meta);
    let newest = contents.snapshots.last().map(|(_, meta)| meta);
    let due = |meta: &&ObjectMeta| {
        let renewed =
            cache.object(&lock_record(&meta.key)).and_then(|at| Some(u64::from_le_bytes(at.try_into().ok()?)));
        let renewed = renewed.map_or(meta.modified, |at| meta.modified.max(UNIX_EPOCH + Duration::from_secs(at)));
        now.duration_since(renewed).is_ok_and(|age| age >= lock / 2)
    };
    let due: Vec<String> = packs.chain(slots).chain(newest).filter(due).map(|meta| meta.key.clone()).collect();
    let at = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().to_le_bytes();
    let renewals = due.into_iter().map(|key| {
        let store = Arc::clone(&upload.repository.store);
        async move { (store.renew_lock(&key).await, key) }
    });
    in_parallel(PARALLEL_LOCKS, renewals, operation, |(renewed, key)| match renewed {
        // Retention or another machine was quicker.
        Err(error) if error.code() == Code::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            cache.attempt(|cache| cache.put_objects([(lock_record(&key), &at[..])]));
            Ok(())
        }
    })
    .await
}

/// Under which name the cache remembers when an object was locked again.
fn lock_record(key: &str) -> String {
    format!("lock/{key}")
}

/// What the cache remembers of this machine's last snapshot.
#[derive(serde::Serialize, serde::Deserialize)]
struct LastSnapshot {
    id: String,
    digest: String,
    /// The chunks of its tree.
    tree: Vec<String>,
}

impl LastSnapshot {
    /// What is remembered of it, if it is still listed.
    fn of(workplace: &Workplace, repository: &Repository) -> Option<Self> {
        let last: Self = serde_json::from_slice(&workplace.cache.object(LAST_SNAPSHOT)?).ok()?;
        // Once encryption is on, a plain snapshot is no reason not to take a sealed one.
        let is_as_new_ones = !repository.keyring.accepts(&format!("{}/manifest.json", last.id));
        (is_as_new_ones && repository.contents.has_snapshot(&last.id)).then_some(last)
    }

    /// Whether the store has all of its tree.
    fn has_its_tree(&self, index: &Index) -> bool {
        self.tree.iter().all(|id| id.parse().is_ok_and(|id| index.has_live(id)))
    }
}

/// The state, read and stored, but not committed: as long as no manifest names it, there is no snapshot.
pub(super) struct Upload<'w> {
    pub(super) repository: Repository,
    pub(super) captured: Captured,
    index: Arc<Index>,
    /// The keys of manifests and slots that had been cut.
    put_back: Vec<String>,
    workplace: &'w Workplace,
    operation: Operation,
}

impl<'w> Upload<'w> {
    /// Reads the state and stores what the repository does not have yet.
    ///
    /// # Errors
    /// Those of [`push`].
    pub(super) async fn start(
        target: &Target,
        workplace: &'w Workplace,
        when_unchanged: WhenUnchanged,
        operation: &Operation,
    ) -> Result<Self> {
        let surveying = Survey::start(target, workplace, operation)?;
        let opened = Repository::open(target, Some(Arc::clone(&workplace.cache)), IfMissing::Create, operation).await;
        let survey = surveying.await?;
        let mut repository = opened?;
        operation.check()?;

        let put_back = repository.put_back_what_was_cut().await?;
        let mut index = repository.load_index().await?;
        let last = LastSnapshot::of(workplace, &repository);
        if last.as_ref().is_some_and(|last| !last.has_its_tree(&index)) {
            // An index object may have been lost: then its packs are there, and are entered into another.
            index = repository.recover_index().await?;
        }
        let index = Arc::new(index);
        let mut adopted = packs_to_adopt(&repository, &index, workplace.cache.pending());
        // Entered into a new index object, they need not be read as a whole the next time.
        let recovered = index.recovered.iter().filter_map(|id| index.pack(*id)).filter(|pack| index.is_live(pack));
        adopted.extend(recovered.map(|pack| pack.entry.clone()));
        let meter = Arc::new(Meter::new(operation, "upload", 0, 0));
        let (writer, uploads) = Writer::start(&repository, Arc::clone(&index), adopted, operation, Arc::clone(&meter))?;
        let stored_digest = match when_unchanged {
            WhenUnchanged::Skip => last.filter(|last| last.has_its_tree(&index)).map(|last| last.digest),
            WhenUnchanged::Store => None,
        };
        let read = survey.read(repository.keyring.naming(), writer, meter, stored_digest, operation).await;
        let uploaded = uploads.finish().await;
        // A failed upload stops the work with CANCELLED; the upload's own error says why.
        let captured = match (read, uploaded) {
            (Ok(captured), Ok(())) => captured,
            (Err(error), Ok(())) | (_, Err(error)) => return Err(error),
        };
        operation.check()?;
        Ok(Self { repository, captured, index, put_back, workplace, operation: operation.clone() })
    }

    /// Whether this machine's last snapshot is there and holds the very same, so that there is nothing to commit.
    pub(super) fn is_unchanged(&self) -> bool {
        self.captured.root.is_none()
    }

    /// What to say of what the store has lost: how much of it this machine could store again.
    fn healing(&self) -> impl Iterator<Item = String> {
        let cut = self.put_back.iter().map(|key| format!("{key} had been cut, and was stored again"));
        let lost = self.index.lost.len() as u64;
        let lost = (lost > 0).then(|| {
            let healed = self.captured.healed;
            let rest = match lost - healed {
                0 => String::new(),
                rest => {
                    format!("; {rest} are not on this machine any more, run verify to see which files are affected")
                }
            };
            format!("packs were damaged or missing: {healed} of the {lost} pieces in them were stored again{rest}")
        });
        cut.chain(lost)
    }

    /// Writes the manifest: from here on the snapshot exists. `shrunk` marks a state that has lost most of what it held.
    ///
    /// # Errors
    /// Those of the store; a retryable `NETWORK` when another machine deleted meanwhile what this push relied on.
    pub(super) async fn commit(&mut self, trigger: Trigger, shrunk: bool) -> Result<SnapshotId> {
        let id = self.write(&Origin::Taken(trigger), shrunk).await?;
        newest::note_own(&self.repository, &id).await;
        self.remember(Some(&id));
        Ok(id)
    }

    /// Writes the manifest of what was read not of the state but of a snapshot of 0.1.x.
    ///
    /// # Errors
    /// Those of [`Upload::commit`].
    pub(super) async fn commit_import(&mut self, from: &LegacyId) -> Result<SnapshotId> {
        self.write(&Origin::Imported(from), false).await
    }

    async fn write(&mut self, origin: &Origin<'_>, shrunk: bool) -> Result<SnapshotId> {
        if self.took_long() && !self.all_is_live().await? {
            return Err(pruned_meanwhile());
        }
        if self.repository.keyring.is_plain() && self.repository.listed_slots().await? > 0 {
            return Err(Error::config("encrypt", "is false, but another machine has just turned encryption on")
                .advise("remove `encrypt: false`"));
        }
        let places = self.workplace.places.clone();
        let is_taken = matches!(origin, Origin::Taken(_));
        let blank = is_taken && blocking(move || Ok(is_blank(&places))).await?;
        let marks = Marks { shrunk, blank };
        let now = time_of_a_new_snapshot(&self.repository).await?;
        let (id, manifest) = manifest(&self.repository, self.workplace, origin, now, marks, &self.captured)?;
        let key = id.manifest_key();
        let stored = self.repository.store.put(&key, Bytes::from(manifest.clone())).await;
        // The machine may have slept just then; and the store may have it although it said otherwise.
        if self.took_long() {
            let checked = self.all_is_live().await;
            if !matches!(checked, Ok(true)) {
                let removed = self.repository.store.delete(&key).await;
                stored.and(removed).and(checked.map(|_| ()))?;
                return Err(pruned_meanwhile());
            }
        }
        stored?;
        self.repository.remember(key, &manifest);
        Ok(id)
    }

    /// Whether what the last listing has shown is too long ago to be relied on.
    fn took_long(&self) -> bool {
        self.repository.contents.listed_ago(self.repository.store.now()) > TRUST_LISTING
    }

    /// Whether all that the snapshot needs is still in packs that nobody is about to delete. Only a push of many minutes can
    /// find anything else.
    async fn all_is_live(&mut self) -> Result<bool> {
        self.repository.refresh().await?;
        let now = Arc::new(self.repository.load_index().await?);
        // What cannot be read may condemn.
        if now.unreadable.iter().any(|problem| !self.index.unreadable.contains(problem)) {
            return Ok(false);
        }
        let Some(root) = &self.captured.root else { return Ok(true) };
        let own = match self.repository.read_tree(&now, root, &self.operation).await {
            Ok((_, own)) => own,
            Err(error) if error.code() == Code::Corrupt => return Ok(false),
            Err(error) => return Err(error),
        };
        Ok(self.captured.entries.iter().flat_map(Entry::chunks).chain(own).all(|chunk| now.has_live(chunk)))
    }

    /// Remembers what was read, and the snapshot made of it. A cache that fails costs time only.
    pub(super) fn remember(&self, snapshot: Option<&SnapshotId>) {
        let cache = &self.workplace.cache;
        cache.attempt(|cache| {
            self.captured.remember(cache)?;
            let Some(id) = snapshot.filter(|id| !id.is_safety()) else { return Ok(()) };
            let tree = self.captured.tree_chunks.iter().map(ToString::to_string).collect();
            let last = LastSnapshot { id: id.to_string(), digest: self.captured.digest.clone(), tree };
            let bytes = to_json(&last)?;
            cache.put_objects([(LAST_SNAPSHOT.to_owned(), &bytes[..])])
        });
    }
}

/// As many threads as a push may keep busy that nobody waits for.
fn some_threads(target: &Target) -> NonZeroUsize {
    target.max_cpu.or_else(|| NonZeroUsize::new(cores().get() / 2)).unwrap_or(NonZeroUsize::MIN)
}

/// What to do when this machine's last snapshot holds the very same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenUnchanged {
    /// Nothing: there will be no snapshot.
    Skip,
    /// Store its tree all the same: there will be one.
    Store,
}

/// Packs that an interrupted run has uploaded, as far as the store has them whole and no index object names or condemns them.
fn packs_to_adopt(repository: &Repository, index: &Index, pending: Vec<PackEntry>) -> Vec<PackEntry> {
    let usable = |pack: &PackEntry| {
        index.pack(pack.id).is_none()
            && !index.orphans.contains(&pack.id)
            && pack.is_plain() == repository.keyring.is_plain()
            && repository.contents.packs.get(&pack.id).is_some_and(|stored| {
                let age = repository.store.now().duration_since(stored.modified).unwrap_or_default();
                stored.size == pack.size && age < ADOPT_BELOW_AGE
            })
    };
    pending.into_iter().filter(usable).collect()
}

fn pruned_meanwhile() -> Error {
    Error::new(Code::Network, "another machine pruned the repository during this long push")
        .advise("try again; what was uploaded and is still there is not sent again")
        .retryable()
}

/// How a snapshot comes to be.
#[derive(Debug)]
enum Origin<'o> {
    /// It is taken now.
    Taken(Trigger),
    /// It was taken by 0.1.x, and keeps its time and kind.
    Imported(&'o LegacyId),
}

/// What a manifest says of the state as a whole; see [`Summary`].
#[derive(Debug, Clone, Copy)]
struct Marks {
    shrunk: bool,
    blank: bool,
}

/// A new snapshot's id, and the manifest to store.
fn manifest(
    repository: &Repository,
    workplace: &Workplace,
    origin: &Origin<'_>,
    now: jiff::Timestamp,
    marks: Marks,
    captured: &Captured,
) -> Result<(SnapshotId, Vec<u8>)> {
    let tree =
        captured.root.clone().ok_or_else(|| Error::new(Code::Io, "internal error: there is nothing to commit"))?;
    let (id, trigger, host, imported_from) = match origin {
        Origin::Taken(trigger) => {
            let safety = *trigger == Trigger::BeforeRollback;
            (SnapshotId::generate(now, safety)?, *trigger, host_name(), None)
        }
        Origin::Imported(from) => {
            let trigger = if from.is_safety() { Trigger::BeforeRollback } else { Trigger::Import };
            (SnapshotId::generate(from.time(), from.is_safety())?, trigger, "unknown".into(), Some(from.to_string()))
        }
    };
    // 0.1.x did not say where it was; and it kept nothing of other places.
    let state_dir = workplace.places.state_dir().to_str().filter(|_| imported_from.is_none()).map(str::to_owned);
    // One that could not be looked into is not said to hold nothing.
    let is_held = |name: &String| captured.exceptions.iter().all(|exception| exception.path != *name);
    let places = workplace.places.all().iter().skip(1).map(|place| place.name.clone()).filter(is_held).collect();
    let summary = Summary {
        created_at: id.time(),
        trigger,
        machine: workplace.machine,
        host,
        state_dir,
        places,
        writer: env!("CARGO_PKG_VERSION").into(),
        files: captured.files,
        bytes: captured.bytes,
        exceptions: captured.exceptions.len() as u64,
        dropped: captured.dropped.len() as u64,
        first_exceptions: captured.exceptions.iter().take(LISTED_EXCEPTIONS).cloned().collect(),
        shrunk: marks.shrunk,
        blank: marks.blank,
        imported_from,
        tree,
    };
    let manifest = summary.to_manifest(&id, repository.keyring.writing()?)?;
    Ok((id, manifest))
}

/// What to say of what could be read before and not now.
fn dropped_warning(dropped: &[Exception]) -> Option<String> {
    let Exception { path, reason } = dropped.first()?;
    let others = if dropped.len() > 1 { format!(", and {} more", dropped.len() - 1) } else { String::new() };
    Some(format!(
        "{path} is in earlier snapshots and could not be read for this one: {reason}{others}; the newest snapshot that has it is \
         kept for as long"
    ))
}

/// Now, by the store's clock, in whole seconds.
async fn time_of_a_new_snapshot(repository: &Repository) -> Result<jiff::Timestamp> {
    let whole_seconds = jiff::TimestampRound::new().smallest(jiff::Unit::Second).mode(jiff::RoundMode::Trunc);
    let now = repository.now()?;
    let now = now.round(whole_seconds).unwrap_or(now);
    // Snapshots are ordered by their times, to the second: one is never made in the same second as its predecessor, nor
    // before it, should a clock have been set back.
    for (id, _) in repository.contents.snapshots.iter().rev() {
        let Ok(after) = id.time().checked_add(jiff::SignedDuration::from_secs(1)) else { continue };
        // Anybody can write a name; one of a later day counts if its manifest was sealed with a key of this repository.
        let is_near = now.duration_until(id.time()) < CLOCKS_DIFFER;
        match if is_near { Ok(()) } else { repository.summary(id).await.map(|_| ()) } {
            Ok(()) => return Ok(now.max(after)),
            Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(now)
}

fn host_name() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_default();
}
