//! An opened repository: what it holds, the keys, the local cache, and reading of manifests, index and trees.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::contents::Contents;
use super::id::{IndexId, MasterKeyId, PackId, SlotId, SnapshotId};
use super::index::{Index, IndexObject, PackEntry, index_key, open_index};
use super::keyring::{Keyring, Secrets};
use super::manifest::{MAX_MANIFEST, Summary};
use super::pack::{MAX_PACK, pack_key};
use super::plain::{MAX_PLAIN_LIST, PlainObjects};
use super::seal::{Header, MasterKey, Role};
use super::slot::{Slot, SlotKind, slot_key};
use crate::cache::Cache;
use crate::commands::Operation;
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::store::{self, ObjectMeta, SharedStore, StoreStats, Traffic};
use crate::task::{all_in_parallel, blocking};

/// The largest key slot that is read.
pub(super) const MAX_SLOT: u64 = 64 << 10;
/// The largest index object that is read.
const MAX_INDEX_OBJECT: u64 = 64 << 20;
/// Key slots asked for at once.
const PARALLEL_SLOTS: usize = 8;
/// Index objects asked for at once. All of them are in memory together anyway.
const PARALLEL_INDEX_OBJECTS: usize = 4;
/// How often an index that changes under the reader is listed again before giving up.
const INDEX_ATTEMPTS: usize = 5;

/// An opened repository.
#[derive(Debug, Clone)]
pub struct Repository {
    /// Where it is.
    pub store: SharedStore,
    traffic: Arc<Traffic>,
    /// What this machine remembers of it; `None` where there is no state directory to keep it in.
    pub cache: Option<Arc<Cache>>,
    /// What it holds, as of opening or the last [`Repository::refresh`].
    pub contents: Arc<Contents>,
    /// Its keys.
    pub keyring: Keyring,
    /// Its sound slots, in the order of their making.
    pub slots: Arc<Vec<(SlotId, Slot)>>,
    /// What the owner should know of the opening, one sentence each.
    pub warnings: Vec<String>,
    founding: Founding,
}

/// What to do when there is no repository yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfMissing {
    /// Nothing: it is an empty one.
    ReadAsEmpty,
    /// Make a key for it, whose slots [`Repository::found`] stores. Where there are some, those of configured secrets that have
    /// none are made.
    Create,
}

/// What comes before the first object of a new repository.
#[derive(Debug, Clone, Default)]
struct Founding {
    /// Whether to find out if the store lets backups be made.
    checks_access: bool,
    /// The key that is to have slots, and the secrets that shall open them.
    key: Option<(MasterKey, Secrets)>,
}

/// When to read packs that no index object names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unnamed {
    /// Where index objects are damaged, or there are none.
    IfDamaged,
    /// Now.
    Read,
}

impl Repository {
    /// Opens the repository that `target` names.
    ///
    /// The listing travels while scrypt works on the slots that the cache remembers.
    ///
    /// # Errors
    /// Those of [`store::open`]; `WRONG_KEY`; `CONFIG` when `encrypt` contradicts what is stored; `CORRUPT`; `CANCELLED`.
    pub async fn open(
        target: &Target,
        cache: Option<Arc<Cache>>,
        if_missing: IfMissing,
        operation: &Operation,
    ) -> Result<Self> {
        Self::open_with(target, Secrets::of(target)?, cache, if_missing, operation).await
    }

    /// [`Repository::open`] with other secrets than those that are configured.
    ///
    /// # Errors
    /// Those of [`Repository::open`].
    pub async fn open_with(
        target: &Target,
        secrets: Secrets,
        cache: Option<Arc<Cache>>,
        if_missing: IfMissing,
        operation: &Operation,
    ) -> Result<Self> {
        let remembered = {
            let (cache, secrets) = (cache.clone(), secrets.clone());
            blocking(move || Ok(open_remembered_slots(cache.as_deref(), &secrets)))
        };
        let mut repository = Self::without_keys(target, cache, operation).await?;
        // Before the first push, so that what is missing is not found out half-way.
        repository.founding.checks_access = if_missing == IfMissing::Create && repository.contents.objects == 0;
        let (slots, opened) = remembered.await?;
        repository.open_keyring(secrets, slots, opened, if_missing, operation).await?;
        Ok(repository)
    }

    /// The repository with what is listed in it, and with the keyring of an unencrypted one.
    async fn without_keys(target: &Target, cache: Option<Arc<Cache>>, operation: &Operation) -> Result<Self> {
        let store::Opened { store, traffic } = match &operation.store {
            Some(store) => store::stand_in(target, store, &operation.cancel),
            None => store::open(target, &operation.cancel).await?,
        };
        let contents = Arc::new(Contents::of(&*store).await?);
        let (keyring, slots, warnings) = (Keyring::plain(), Arc::default(), Vec::new());
        Ok(Self { store, traffic, cache, contents, keyring, slots, warnings, founding: Founding::default() })
    }

    /// The repository with every listed slot, and the ids of those that a configured secret opens. Where none does, it has the
    /// keyring of an unencrypted one.
    ///
    /// # Errors
    /// Those of [`store::open`] and of the store.
    pub async fn look(
        target: &Target,
        cache: Option<Arc<Cache>>,
        operation: &Operation,
    ) -> Result<(Self, Vec<(SlotId, Result<Slot>)>, HashSet<SlotId>)> {
        let secrets = Secrets::of(target)?;
        let mut repository = Self::without_keys(target, cache, operation).await?;
        let slots = repository.read_slots().await?;
        let open = move || {
            let mut opened = HashMap::new();
            for (id, slot) in slots.iter().filter_map(|(id, slot)| Some((*id, slot.as_ref().ok()?))) {
                opened.extend(secrets.open(slot)?.map(|key| (id, key)));
            }
            let ids: HashSet<SlotId> = opened.keys().copied().collect();
            // What they open was just tried.
            Ok((Keyring::open(&Secrets::none(), &slots, opened), slots, ids))
        };
        let (keyring, slots, opened) = blocking(open).await?;
        match keyring {
            Ok(keyring) => repository.keyring = keyring,
            Err(error) if matches!(error.code(), Code::WrongKey | Code::Corrupt) => {}
            Err(error) => return Err(error),
        }
        Ok((repository, slots, opened))
    }

    async fn open_keyring(
        &mut self,
        secrets: Secrets,
        remembered: HashMap<SlotId, Vec<u8>>,
        opened: HashMap<SlotId, MasterKey>,
        if_missing: IfMissing,
        operation: &Operation,
    ) -> Result<()> {
        let (create, is_empty) = (if_missing == IfMissing::Create, !self.contents.holds_something());
        if !secrets.encrypt {
            if self.contents.slots.is_empty() && (is_empty || remembered.is_empty()) {
                if create && !remembered.is_empty() {
                    // Those of a repository that is gone.
                    self.forget_slots(|_| false);
                }
                return Ok(());
            }
            return Err(Error::config("encrypt", "is false, but this repository is encrypted")
                .advise("remove `encrypt: false`, or choose another prefix for unencrypted backups"));
        }
        if self.contents.slots.is_empty() {
            let is_gone = is_empty && !(create && opened.keys().any(|id| !self.contents.is_removed(*id)));
            if is_gone {
                // Without `Create` nothing can be read with the key, and nothing is there to be read.
                let key = MasterKey::generate()?;
                if create {
                    self.founding.key = Some((key.clone(), secrets));
                }
                self.keyring = Keyring::single(key);
                return self.accept_plain().await;
            }
            if remembered.is_empty() {
                self.turn_on(&secrets, if_missing, operation).await?;
                return self.accept_plain().await;
            }
            if opened.is_empty() {
                return Err(self.lost_slots());
            }
        }
        let known: HashSet<SlotId> = opened.keys().copied().collect();
        let mut hidden = self.open_slots(&secrets, &remembered, opened).await?;
        self.accept_plain().await?;
        let foreign = self.keyring.foreign().len();
        if foreign > 0 {
            self.warnings.push(format!(
                "{foreign} master keys are passed over, with all that is sealed with them: the application key alone opens \
                 them, so that the storage service or a thief of that key may have planted them; see `key list`"
            ));
        }
        if create {
            // What is about to write must have the key for it.
            self.keyring.writing()?;
            // One that somebody else has made up is not missed.
            let is_ours =
                |id: &SlotId, slot: &Slot| known.contains(id) || self.keyring.keys().any(|key| slot.is_proven_by(key));
            hidden.retain(|(id, slot)| is_ours(id, slot));
            self.put_slots_back(hidden).await?;
            let warnings = self.cover(&secrets).await?;
            self.warnings.extend(warnings);
        }
        Ok(())
    }

    /// Opens the keyring with the listed slots and those that this machine remembers. Gives the latter, as far as no mark that
    /// can be opened says that they were removed: somebody else has made them vanish.
    async fn open_slots(
        &mut self,
        secrets: &Secrets,
        remembered: &HashMap<SlotId, Vec<u8>>,
        opened: HashMap<SlotId, MasterKey>,
    ) -> Result<Vec<(SlotId, Slot)>> {
        let open = |slots: Vec<(SlotId, Result<Slot>)>, opened: HashMap<SlotId, MasterKey>| {
            let secrets = secrets.clone();
            blocking(move || Keyring::open(&secrets, &slots, opened).map(|keyring| (keyring, slots)))
        };
        let mut slots = self.read_slots().await?;
        let is_listed = |id: &SlotId| self.contents.slots.iter().any(|(listed, _)| listed == id);
        let unlisted = remembered.iter().filter(|(id, _)| !is_listed(id));
        let mut hidden: Vec<(SlotId, Slot)> =
            unlisted.filter_map(|(id, bytes)| Some((*id, Slot::parse(bytes, *id).ok()?))).collect();
        hidden.sort_by_key(|(id, _)| *id);
        slots.extend(hidden.iter().map(|(id, slot)| (*id, Ok(slot.clone()))));
        (self.keyring, slots) = open(slots, opened.clone()).await?;
        if hidden.is_empty() {
            return Ok(hidden);
        }
        let removed: HashSet<SlotId> = self
            .removed_slots(&self.keyring)
            .await?
            .into_iter()
            .map(|(id, _)| id)
            .filter(|id| !is_listed(id))
            .collect();
        if !removed.is_empty() {
            self.forget_slots(|id| !removed.contains(&id));
            hidden.retain(|(id, _)| !removed.contains(id));
            slots.retain(|(id, _)| !removed.contains(id));
            let opened = opened.into_iter().filter(|(id, _)| !removed.contains(id)).collect();
            (self.keyring, _) = open(slots, opened).await?;
        }
        Ok(hidden)
    }

    /// Reads the listed slots, and keeps the sound ones.
    ///
    /// # Errors
    /// Those of the store, but for slots that are damaged or gone.
    pub async fn read_slots(&mut self) -> Result<Vec<(SlotId, Result<Slot>)>> {
        let read = |(id, object): &(SlotId, ObjectMeta)| {
            let (repository, id, size) = (self.clone(), *id, object.size);
            async move {
                let parse = |bytes: &[u8]| Slot::parse(bytes, id);
                (id, repository.get_checked(&slot_key(id), size, MAX_SLOT, parse).await)
            }
        };
        // That it was cancelled, the store says by itself.
        let read = all_in_parallel(PARALLEL_SLOTS, self.contents.slots.iter().map(read), &Operation::default()).await?;
        let mut slots = Vec::with_capacity(read.len());
        for (id, slot) in read {
            match slot {
                Err(error) if !matches!(error.code(), Code::NotFound | Code::Corrupt) => return Err(error),
                slot => slots.push((id, slot)),
            }
        }
        let sound = slots.iter().filter_map(|(id, slot)| Some((*id, slot.as_ref().ok()?.clone())));
        self.slots = Arc::new(sound.collect());
        Ok(slots)
    }

    /// Makes a new repository ready to store things in: nothing may be stored before. Others are ready. Apart from opening, so that
    /// the state can be read meanwhile.
    ///
    /// # Errors
    /// `AUTH` or `CONFIG` when the store does not let backups be made, `CONFIG` when there is no secret to make a slot for, those
    /// of the store.
    pub async fn found(&mut self) -> Result<()> {
        let Founding { checks_access, key } = std::mem::take(&mut self.founding);
        if checks_access {
            self.store.check_access().await?;
        }
        match key {
            Some((key, secrets)) => self.make_slots(&key, &secrets).await,
            None => Ok(()),
        }
    }

    /// Makes the first slots of a master key.
    async fn make_slots(&self, key: &MasterKey, secrets: &Secrets) -> Result<()> {
        let made = {
            let (key, secrets) = (key.clone(), secrets.clone());
            blocking(move || {
                secrets
                    .for_new_slots()
                    .map(|(kind, secret)| Slot::wrap(&key, Vec::new(), *kind, secret))
                    .collect::<Result<Vec<_>>>()
            })
        };
        let made = made.await?;
        if made.is_empty() {
            return Err(Error::config("applicationKey", "an encrypted repository needs it, or a passphrase"));
        }
        self.put_slots(made).await
    }

    /// What this machine has seen encrypted has no slots any more, and may be another's by now.
    fn lost_slots(&self) -> Error {
        let problem = format!(
            "the key slots of this repository are gone from {}, and none of the configured secrets opens those that this \
             machine remembers",
            self.store.location()
        );
        Error::new(Code::WrongKey, problem).advise(
            "look at what happened in the bucket; if another repository was made there on purpose, choose another prefix",
        )
    }

    /// Turns encryption on where everything is plain: what is there now stays readable, nothing plain that comes later is.
    ///
    /// The list of what is there is written before the first slot. An interruption between the two leaves a list that
    /// nobody can open, and an unencrypted repository.
    async fn turn_on(&mut self, secrets: &Secrets, if_missing: IfMissing, operation: &Operation) -> Result<()> {
        let plain = self.plain_objects(PlainObjects::default(), operation).await?;
        if if_missing == IfMissing::ReadAsEmpty {
            return Err(Error::config("encrypt", "is true, but nothing in this repository is encrypted yet")
                .advise("the next push turns encryption on; to read it before, set `encrypt: false`"));
        }
        let key = MasterKey::generate()?;
        self.put_plain_list(&plain, &key).await?;
        self.make_slots(&key, secrets).await?;
        // A push that had begun before the first slot may have ended meanwhile.
        self.refresh().await?;
        let late = self.plain_objects(plain.clone(), operation).await?;
        self.put_plain_list(&late, &key).await?;
        self.keyring = Keyring::single(key);
        let names = self.contents.snapshots.iter().map(|(id, _)| id.manifest_key());
        let snapshots = names.filter(|name| plain.names(name) || late.names(name)).count();
        if snapshots > 0 {
            self.warnings.push(format!(
                "encryption is on from now on; snapshots that were taken before stay as they are, unencrypted: {snapshots}"
            ));
        }
        self.refresh().await
    }

    async fn put_plain_list(&self, plain: &PlainObjects, key: &MasterKey) -> Result<()> {
        if plain.is_empty() {
            return Ok(());
        }
        let (name, sealed) = plain.seal(key)?;
        self.store.put(&name, Bytes::from(sealed)).await
    }

    /// The manifests and index objects that are there and that `known` does not have, all of them plain and sound.
    async fn plain_objects(&self, known: PlainObjects, operation: &Operation) -> Result<PlainObjects> {
        let lost = || {
            Error::config("encrypt", "is true, but no key slot is left in this repository")
                .advise("the objects below keys/ are lost: push from a machine that has pushed before")
        };
        let find = |header: &Header, _: &str| {
            if header.master_key == MasterKeyId::NONE { Ok(MasterKey::PLAIN) } else { Err(lost()) }
        };
        let damaged = |error: Error| {
            let problem = format!("cannot be turned on while the repository is damaged: {error}");
            Error::config("encrypt", problem)
                .advise("set `encrypt: false`, run `verify`, remove what it names, and push once")
                .because(error)
        };
        if self.contents.indexes.is_empty() && !self.contents.snapshots.is_empty() {
            return Err(damaged(Error::new(Code::Corrupt, "its index is lost")));
        }
        let mut objects = PlainObjects::default();
        for (id, object) in &self.contents.snapshots {
            operation.check()?;
            let name = id.manifest_key();
            if known.names(&name) {
                continue;
            }
            let bytes = match self.get_bounded(&name, object.size, MAX_MANIFEST).await {
                Err(error) if error.code() == Code::NotFound => continue,
                bytes => bytes?,
            };
            match Summary::from_manifest(id, &bytes, find) {
                Err(error) if error.code() == Code::Corrupt => return Err(damaged(error)),
                summary => summary?,
            };
            objects.add(name, &bytes);
        }
        for (id, object) in &self.contents.indexes {
            operation.check()?;
            let name = index_key(*id);
            if known.names(&name) {
                continue;
            }
            let bytes = match self.get_bounded(&name, object.size, MAX_INDEX_OBJECT).await {
                Err(error) if error.code() == Code::NotFound => continue,
                bytes => bytes?,
            };
            match open_index(*id, &bytes, find) {
                Err(error) if error.code() == Code::Corrupt => return Err(damaged(error)),
                compressed => compressed?,
            };
            objects.add(name, &bytes);
        }
        Ok(objects)
    }

    /// Accepts what the sealed lists name that the keys open. One that no key opens was left by an interruption.
    async fn accept_plain(&mut self) -> Result<()> {
        for object in &self.contents.plain_lists {
            let open =
                |stored: &[u8]| PlainObjects::open(&object.key, stored, |header, name| self.keyring.find(header, name));
            match self.get_checked(&object.key, object.size, MAX_PLAIN_LIST, open).await {
                Ok(plain) => self.keyring.accept(plain),
                Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::NotFound) => {
                    tracing::warn!(%error, "a list of plain objects cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Stores the slots again that this machine remembers and the store has lost: with them, what was sealed before stays
    /// readable, and a key that was retired stays so.
    async fn put_slots_back(&mut self, slots: Vec<(SlotId, Slot)>) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        self.found().await?;
        self.warnings.push(format!("{} key slots were gone from the bucket, and were put back", slots.len()));
        Arc::make_mut(&mut self.slots).extend(slots.iter().cloned());
        self.put_slots(slots).await
    }

    /// The time by the store's clock.
    ///
    /// # Errors
    /// `CONFIG` when that is no time in this calendar.
    pub fn now(&self) -> Result<jiff::Timestamp> {
        jiff::Timestamp::try_from(self.store.now()).map_err(|error| {
            Error::new(Code::Config, format!("the clock shows no usable time: {error}")).advise("set the clock")
        })
    }

    /// Requests and bytes so far.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.traffic.stats()
    }

    /// Looks again at what the repository holds.
    ///
    /// # Errors
    /// Those of [`Store::list`](crate::store::Store::list).
    pub async fn refresh(&mut self) -> Result<()> {
        self.contents = Arc::new(Contents::of(&*self.store).await?);
        Ok(())
    }

    /// What is wrong with stored key slots, by their keys. Others may open the repository all the same. A slot is never
    /// changed: one that is not as `remembered` is damaged.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn damaged_slots(&self, remembered: &HashMap<String, Vec<u8>>) -> Result<Vec<(String, Error)>> {
        let mut damaged = Vec::new();
        for (id, object) in &self.contents.slots {
            let key = slot_key(*id);
            let bytes = self.get_bounded(&key, object.size, MAX_SLOT).await;
            let slot = bytes.and_then(|bytes| match remembered.get(&key) {
                Some(known) if *known != bytes => Err(Error::corrupt(&key, "its bytes were changed")),
                _ => Slot::parse(&bytes, *id),
            });
            match slot {
                Err(error) if error.code() == Code::Corrupt => damaged.push((key, error)),
                Err(error) if error.code() != Code::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(damaged)
    }

    /// Stores again the manifests and key slots that are not as long as this machine remembers them, and gives their keys.
    /// They are never changed: they were cut. (What was changed without being cut, `verify` finds.)
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put_back_what_was_cut(&self) -> Result<Vec<String>> {
        let manifests = self.contents.snapshots.iter().map(|(id, object)| (id.manifest_key(), object.size));
        let slots = self.contents.slots.iter().map(|(id, object)| (slot_key(*id), object.size));
        let mut put_back = Vec::new();
        for (key, size) in manifests.chain(slots) {
            if let Some(bytes) = self.remembered(&key).filter(|bytes| bytes.len() as u64 != size) {
                self.store.put(&key, bytes.into()).await?;
                put_back.push(key);
            }
        }
        Ok(put_back)
    }

    /// Puts an object into the cache. A cache that fails costs time only.
    pub fn remember(&self, key: String, bytes: &[u8]) {
        if let Some(cache) = &self.cache {
            cache.attempt(|cache| cache.put_objects([(key, bytes)]));
        }
    }

    pub(super) fn remembered(&self, key: &str) -> Option<Vec<u8>> {
        self.cache.as_ref().and_then(|cache| cache.object(key))
    }

    /// A small immutable object, from the cache or the store. What is remembered are the stored bytes: they prove
    /// themselves to `check` each time.
    ///
    /// # Errors
    /// Those of `check` and of the store; `CORRUPT` when it is larger than `limit`.
    pub(super) async fn get_checked<T>(
        &self,
        key: &str,
        listed: u64,
        limit: u64,
        check: impl Fn(&[u8]) -> Result<T>,
    ) -> Result<T> {
        if let Some(bytes) = self.remembered(key)
            && let Ok(checked) = check(&bytes)
        {
            return Ok(checked);
        }
        let bytes = self.get_bounded(key, listed, limit).await?;
        let checked = check(&bytes)?;
        self.remember(key.to_owned(), &bytes);
        Ok(checked)
    }

    pub(super) async fn get_bounded(&self, key: &str, listed: u64, limit: u64) -> Result<Bytes> {
        if listed > limit {
            return Err(Error::corrupt(key, format!("it is {listed} bytes long, of which {limit} are allowed")));
        }
        let bytes = self.store.get(key).await?;
        if bytes.len() as u64 > limit {
            return Err(Error::corrupt(key, format!("it is {} bytes long, of which {limit} are allowed", bytes.len())));
        }
        Ok(bytes)
    }

    /// The summary of a listed snapshot.
    ///
    /// # Errors
    /// `CORRUPT` or `WRONG_KEY` when its manifest cannot be trusted or opened, `NOT_FOUND` when it was removed
    /// meanwhile, and those of the store.
    pub async fn summary(&self, id: &SnapshotId) -> Result<Summary> {
        let name = id.manifest_key();
        let listed = self.contents.snapshots.iter().find(|(known, _)| known == id).map_or(0, |(_, object)| object.size);
        let read =
            |bytes: &[u8]| Summary::from_manifest(id, bytes, |header, name| self.keyring.find_for(header, name, bytes));
        let summary = self.get_checked(&name, listed, MAX_MANIFEST, read).await;
        summary.map_err(|error| error.in_snapshot(id.as_str()))
    }

    /// Loads every index object. One that vanishes meanwhile was replaced by another machine: the listing is read again.
    /// One that cannot be read costs time only: what it said is read from the packs themselves.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn load_index(&mut self) -> Result<Index> {
        self.load_index_with(Unnamed::IfDamaged).await
    }

    /// [`Repository::load_index`] that reads, whatever it costs, every pack that no index object names: for where one was
    /// lost without a trace.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn recover_index(&mut self) -> Result<Index> {
        self.load_index_with(Unnamed::Read).await
    }

    /// [`Repository::load_index`] for the repository as it was listed, so that other things can be read meanwhile.
    ///
    /// # Errors
    /// Those of the store, among them `NOT_FOUND` when an index object was removed since.
    pub async fn attempt_index(&self) -> Result<Index> {
        self.try_load_index(Unnamed::IfDamaged).await
    }

    async fn load_index_with(&mut self, unnamed: Unnamed) -> Result<Index> {
        for _ in 0..INDEX_ATTEMPTS {
            match self.try_load_index(unnamed).await {
                Err(error) if error.code() == Code::NotFound => self.refresh().await?,
                result => return result,
            }
        }
        Err(Error::new(Code::Network, "the index keeps changing: other machines are pruning")
            .advise("try again in a few minutes")
            .retryable())
    }

    async fn try_load_index(&self, unnamed: Unnamed) -> Result<Index> {
        let read = |id: IndexId| {
            let repository = self.clone();
            async move { (id, repository.index_object(id).await) }
        };
        let reads = self.contents.indexes.keys().copied().map(read);
        // That it was cancelled, the store says by itself.
        let results = all_in_parallel(PARALLEL_INDEX_OBJECTS, reads, &Operation::default()).await?;
        let (mut objects, mut unreadable, mut damaged) = (Vec::new(), Vec::new(), Vec::new());
        for (id, result) in results {
            match result {
                Ok(object) => objects.push(object),
                Err(error) if matches!(error.code(), Code::Corrupt | Code::WrongKey) => {
                    tracing::warn!(%error, "an index object cannot be read");
                    damaged.extend((error.code() == Code::Corrupt).then_some(id));
                    unreadable.push(error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        let mut recovered = Vec::new();
        let is_lost = !unreadable.is_empty() || (objects.is_empty() && !self.contents.snapshots.is_empty());
        if is_lost || unnamed == Unnamed::Read {
            let packs = self.entries_of_unnamed_packs(&objects, &mut unreadable).await?;
            recovered.extend(packs.iter().map(|pack| pack.id));
            objects.push(IndexObject { live: packs, ..IndexObject::default() });
        }
        let contents = Arc::clone(&self.contents);
        let sealed = !self.keyring.is_plain();
        let keyring = self.keyring.clone();
        let usable = move |pack: &PackEntry| {
            // What the cache remembers may be of a key whose slots are gone since.
            let opens = Header::parse(&pack.header, Role::Pack, "")
                .is_ok_and(|header| keyring.find_for_pack(&header, "").is_ok());
            opens && contents.packs.get(&pack.id).is_some_and(|stored| stored.size == pack.size)
        };
        let build = move || {
            let mut index = Index::new(objects, usable);
            (index.unreadable, index.damaged_objects, index.recovered) = (unreadable, damaged, recovered);
            index.sealed = sealed;
            Ok(index)
        };
        blocking(build).await
    }

    /// Reads every pack that no index object names, whole, for its entry.
    async fn entries_of_unnamed_packs(
        &self,
        objects: &[IndexObject],
        unreadable: &mut Vec<String>,
    ) -> Result<Vec<PackEntry>> {
        let named: HashSet<PackId> =
            objects.iter().flat_map(|object| object.live.iter().chain(&object.condemned)).map(|pack| pack.id).collect();
        let mut entries = Vec::new();
        for (id, stored) in self.contents.packs.iter().filter(|(id, _)| !named.contains(id)) {
            let key = pack_key(*id);
            let bytes = match self.get_bounded(&key, stored.size, MAX_PACK).await {
                Err(error) if matches!(error.code(), Code::Corrupt | Code::NotFound) => Err(error),
                bytes => Ok(bytes?),
            };
            // Stored by a push that had begun before encryption was turned on, and that could not commit.
            if !self.keyring.is_plain() && bytes.as_ref().is_ok_and(|bytes| Header::is_plain(bytes)) {
                continue;
            }
            let (id, keyring) = (*id, self.keyring.clone());
            let read = move || PackEntry::of_pack(id, &bytes?, |header, name| keyring.find(header, name));
            match blocking(read).await {
                Ok(entry) => entries.push(entry),
                Err(error) => unreadable.push(error.to_string()),
            }
        }
        Ok(entries)
    }

    /// One index object, from the cache or the store.
    ///
    /// # Errors
    /// `CORRUPT`, `WRONG_KEY`, `NOT_FOUND`, and those of the store.
    pub async fn index_object(&self, id: IndexId) -> Result<IndexObject> {
        let key = index_key(id);
        let cached = {
            let (cache, key) = (self.cache.clone(), key.clone());
            blocking(move || {
                let bytes = cache.and_then(|cache| cache.object(&key));
                Ok(bytes.and_then(|bytes| IndexObject::from_compressed(&bytes, &key).ok()))
            })
        };
        if let Some(object) = cached.await? {
            return Ok(object);
        }
        let listed = self.contents.indexes.get(&id).map_or(0, |object| object.size);
        let stored = self.get_bounded(&key, listed, MAX_INDEX_OBJECT).await?;
        let compressed = open_index(id, &stored, |header, name| self.keyring.find_for(header, name, &stored))?;
        let object = IndexObject::from_compressed(&compressed, &key)?;
        self.remember(key, &compressed);
        Ok(object)
    }

    /// Seals and stores an index object, and remembers it.
    ///
    /// # Errors
    /// Those of the store; `IO`.
    pub async fn put_index(&self, object: &IndexObject) -> Result<IndexId> {
        let (id, sealed, compressed) = object.seal(self.keyring.writing()?)?;
        self.store.put(&index_key(id), Bytes::from(sealed)).await?;
        self.remember(index_key(id), &compressed);
        Ok(id)
    }
}

/// The slots that the cache remembers, and the keys that the secrets open in them. Takes as long as scrypt does.
fn open_remembered_slots(
    cache: Option<&Cache>,
    secrets: &Secrets,
) -> (HashMap<SlotId, Vec<u8>>, HashMap<SlotId, MasterKey>) {
    let mut slots = HashMap::new();
    let mut sound = Vec::new();
    for (key, bytes) in cache.map(|cache| cache.objects("keys/")).unwrap_or_default() {
        let id = key.strip_prefix("keys/").and_then(|name| name.strip_suffix(".json")).and_then(|id| id.parse().ok());
        let Some(id) = id else { continue };
        if secrets.encrypt
            && let Ok(slot) = Slot::parse(&bytes, id)
            && let Ok(master) = slot.master_key()
        {
            sound.push((id, master, slot));
        }
        slots.insert(id, bytes);
    }
    // In the order in which the keyring tries them.
    if sound.iter().any(|(_, master, _)| *master != sound[0].1) {
        sound.sort_by_key(|(_, _, slot)| slot.kind == SlotKind::ApplicationKey);
    }
    let mut opened: HashMap<SlotId, MasterKey> = HashMap::new();
    for (id, master, slot) in sound {
        if opened.values().all(|key| key.id != master)
            && let Ok(Some(key)) = secrets.open(&slot)
        {
            opened.insert(id, key);
        }
    }
    (slots, opened)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::super::slot::SlotKind;
    use super::*;
    use crate::config::Secret;

    async fn open(root: &Path, encrypt: bool, if_missing: IfMissing) -> Result<Repository> {
        let config = json!({
            "endpoint": format!("file://{}", root.display()), "stateDir": "/nowhere", "applicationKey": "key", "encrypt": encrypt,
        });
        let mut opened =
            Repository::open(&Target::from_json(&config)?, None, if_missing, &Operation::default()).await?;
        opened.found().await?;
        Ok(opened)
    }

    /// A push with `encrypt` switched on used to put a key slot beside plain snapshots: from then on they could be read
    /// neither with the switch on nor off. It did the same where slots had been deleted.
    #[tokio::test]
    async fn no_key_is_made_where_something_is_sealed_with_one_that_is_lost() {
        let folder = tempfile::tempdir().unwrap();
        let sealed = open(folder.path(), true, IfMissing::Create).await.unwrap();
        sealed.put_index(&IndexObject::default()).await.unwrap();
        std::fs::remove_dir_all(folder.path().join("keys")).unwrap();
        for if_missing in [IfMissing::Create, IfMissing::ReadAsEmpty] {
            let error = open(folder.path(), true, if_missing).await.unwrap_err();
            assert_eq!(error.code(), Code::Config);
            assert!(error.to_string().contains("no key slot is left"), "{error}");
        }
        assert!(!folder.path().join("keys").exists());
    }

    #[tokio::test]
    async fn only_what_writes_turns_encryption_on() {
        let folder = tempfile::tempdir().unwrap();
        let plain = open(folder.path(), false, IfMissing::Create).await.unwrap();
        let before = plain.put_index(&IndexObject::default()).await.unwrap();
        let error = open(folder.path(), true, IfMissing::ReadAsEmpty).await.unwrap_err();
        assert!(error.code() == Code::Config && error.to_string().contains("next push"), "{error}");
        assert!(!folder.path().join("keys").exists());
        open(folder.path(), true, IfMissing::Create).await.unwrap();
        let after = plain.put_index(&IndexObject::default()).await.unwrap();
        for if_missing in [IfMissing::Create, IfMissing::ReadAsEmpty] {
            let mut opened = open(folder.path(), true, if_missing).await.unwrap();
            opened.index_object(before).await.unwrap();
            assert_eq!(opened.index_object(after).await.unwrap_err().code(), Code::Corrupt);
            assert_eq!(opened.load_index().await.unwrap().unreadable.len(), 1);
        }
        assert_eq!(open(folder.path(), false, IfMissing::ReadAsEmpty).await.unwrap_err().code(), Code::Config);
    }

    /// Its id and parameters were looked at when it was read, its other fields only when it was tried; and then the error
    /// was that of the whole repository.
    #[tokio::test]
    async fn one_damaged_slot_does_not_close_a_repository_that_another_opens() {
        let folder = tempfile::tempdir().unwrap();
        let key = open(folder.path(), true, IfMissing::Create).await.unwrap().keyring.naming().clone();
        let (sound, slot) = Slot::wrap(&key, Vec::new(), SlotKind::ApplicationKey, &Secret::new("key")).unwrap();
        let text = String::from_utf8(slot.to_bytes()).unwrap();
        let damaged = folder.path().join(slot_key(SlotId([0; 16])));
        for (from, to) in [("\"masterKey\": \"", "\"masterKey\": \"x"), ("\"wrapped\": \"", "\"wrapped\": \"!")] {
            let text = text.replace(&sound.to_string(), &SlotId([0; 16]).to_string()).replace(from, to);
            std::fs::write(&damaged, text).unwrap();
            // Older than the sound one, so that it is looked at first.
            std::fs::File::options().write(true).open(&damaged).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            let opened = open(folder.path(), true, IfMissing::ReadAsEmpty).await.unwrap();
            assert_eq!(opened.keyring.naming().id, key.id);
        }
    }
}
