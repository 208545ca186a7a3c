//! Changes of the keys: slots for what is configured, further ones, their removal, and a new master key.
//!
//! Whoever opens a master key can make a slot for it. A removed slot leaves a mark, a sealed copy of it: so that two
//! machines never remove the last two slots at once, and no machine makes a slot again for the secret that was removed.

use std::sync::Arc;

use bytes::Bytes;

use super::contents::Contents;
use super::id::{MasterKeyId, SlotId, hex, random};
use super::keyring::{Keyring, Secrets};
use super::open::{MAX_SLOT, Repository};
use super::seal::{HEADER_LENGTH, MasterKey, Role, TAG_LENGTH, open_object, seal_object};
use super::slot::{Retirement, Slot, SlotKind, slot_key};
use crate::config::Secret;
use crate::error::{Code, Error, Result};
use crate::task::blocking;

/// Under which name the cache remembers that every configured secret has its slots.
const COVERED: &str = "covered";

/// Slots with their ids.
type Slots = Vec<(SlotId, Slot)>;

/// What the work on slots needs of an opened repository; scrypt is not for an event loop.
struct Work {
    keyring: Keyring,
    slots: Arc<Slots>,
    removed: Slots,
}

impl Work {
    fn slots_of(&self, key: MasterKeyId) -> impl Iterator<Item = &Slot> + Clone {
        self.slots.iter().map(|(_, slot)| slot).filter(move |slot| slot.master_key().is_ok_and(|id| id == key))
    }

    /// Slots for those master keys on the ring that the secret has none for.
    fn missing(&self, kind: SlotKind, secret: &Secret) -> Result<Slots> {
        let mut made = Vec::new();
        for key in self.keyring.keys() {
            if !any_opens(self.slots_of(key.id), &Secrets::only(kind, secret))? {
                let retires = self.keyring.retirements_by(key.id, self.slots.iter().map(|(_, slot)| slot));
                made.push(Slot::wrap(key, retires, kind, secret)?);
            }
        }
        Ok(made)
    }

    /// What is missing of slots for the secrets that a push makes slots for by itself, and what to say of others.
    fn missing_for(&self, secrets: &Secrets) -> Result<(Slots, Vec<String>)> {
        let (mut made, mut warnings) = (Vec::new(), Vec::new());
        for (kind, secret) in secrets.iter() {
            if !is_wanted(*kind, &self.slots, &self.keyring) {
                continue;
            }
            let own = Secrets::only(*kind, secret);
            if any_opens(self.removed.iter().map(|(_, slot)| slot), &own)? {
                if !any_opens(self.slots.iter().map(|(_, slot)| slot), &own)? {
                    let name = kind.as_str();
                    let advice = "configure another one, or allow it again with `key add`";
                    warnings.push(format!("the configured {name} was removed from this repository; {advice}"));
                }
                continue;
            }
            match self.missing(*kind, secret) {
                Ok(slots) => made.extend(slots),
                Err(error) if error.code() == Code::Config => {
                    warnings.push(format!("the configured {} does not open the backups: {error}", kind.as_str()));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((made, warnings))
    }
}

/// Whether a configured secret of that kind gets a slot without being asked for. A slot for the application key lets the
/// storage service in, so that it is only made where there is one already that the service has not made up.
fn is_wanted(kind: SlotKind, slots: &[(SlotId, Slot)], keyring: &Keyring) -> bool {
    let is_proven = |slot: &Slot| keyring.keys().any(|key| slot.is_proven_by(key));
    match kind {
        SlotKind::ApplicationKey => slots.iter().any(|(_, slot)| slot.kind == kind && is_proven(slot)),
        SlotKind::Passphrase | SlotKind::KeyFile => true,
        SlotKind::RecoveryCode => false,
    }
}

/// Whether the secrets open one of the slots. Takes as long as scrypt does.
fn any_opens<'s>(slots: impl IntoIterator<Item = &'s Slot>, secrets: &Secrets) -> Result<bool> {
    for slot in slots {
        if secrets.open(slot)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A master key that was made by a rotation.
#[derive(Debug)]
pub struct Rotation {
    /// Its id.
    pub master_key: MasterKeyId,
    /// Its slots.
    pub slots: Vec<(SlotId, SlotKind)>,
    /// Slots of the key before whose secrets were not at hand: they open what is there, and nothing new.
    pub left_behind: Vec<(SlotId, SlotKind)>,
}

impl Repository {
    /// Makes slots for the configured secrets that have none. A push does this, so that an application key may be
    /// replaced, or a passphrase set, at any time. Gives warnings.
    ///
    /// # Errors
    /// Those of the store; `IO`.
    pub(super) async fn cover(&self, secrets: &Secrets) -> Result<Vec<String>> {
        let remembered = self.cache.as_ref().and_then(|cache| cache.object(COVERED));
        if remembered.is_some_and(|covered| covered == self.covered(secrets, [])) {
            return Ok(Vec::new());
        }
        let (work, secrets) = (self.work().await?, secrets.clone());
        let (made, warnings, secrets) = blocking(move || {
            let (made, warnings) = work.missing_for(&secrets)?;
            Ok((made, warnings, secrets))
        })
        .await?;
        let ids: Vec<SlotId> = made.iter().map(|(id, _)| *id).collect();
        self.put_slots(made).await?;
        if warnings.is_empty() {
            self.remember_covered(&secrets, ids);
        }
        Ok(warnings)
    }

    /// Remembers that the secrets have their slots, `added` among them.
    pub(super) fn remember_covered(&self, secrets: &Secrets, added: impl IntoIterator<Item = SlotId>) {
        self.remember(COVERED.into(), &self.covered(secrets, added));
    }

    /// Changes with the secrets, the master keys, the slots and their removals.
    fn covered(&self, secrets: &Secrets, added: impl IntoIterator<Item = SlotId>) -> Vec<u8> {
        let mut names: Vec<String> = self.slots.iter().map(|(id, _)| *id).chain(added).map(slot_key).collect();
        names.extend(self.contents.removals.iter().map(|(_, object)| object.key.clone()));
        names.extend(self.keyring.keys().map(|key| key.id.to_string()));
        names.sort_unstable();
        let mut text = zeroize::Zeroizing::new(names.join("\n").into_bytes());
        for (kind, secret) in secrets.iter() {
            let secret = secret.expose();
            text.extend(format!("\n{} {} ", kind.as_str(), secret.len()).into_bytes());
            text.extend(secret.as_bytes());
        }
        self.keyring.naming().fingerprint(&text).to_vec()
    }

    /// Stores slots and remembers them.
    pub(super) async fn put_slots(&self, slots: Slots) -> Result<()> {
        for (id, slot) in slots {
            let bytes = slot.to_bytes();
            self.store.put(&slot_key(id), Bytes::from(bytes.clone())).await?;
            self.remember(slot_key(id), &bytes);
        }
        Ok(())
    }

    async fn work(&self) -> Result<Work> {
        let removed = self.removed_slots(&self.keyring).await?;
        Ok(Work { keyring: self.keyring.clone(), slots: Arc::clone(&self.slots), removed })
    }

    /// The slots whose removal was marked by somebody with a key on the ring.
    pub(super) async fn removed_slots(&self, keyring: &Keyring) -> Result<Slots> {
        let mut removed = Vec::new();
        for (id, object) in &self.contents.removals {
            let limit = MAX_SLOT + (HEADER_LENGTH + TAG_LENGTH) as u64;
            let open = |stored: &[u8]| {
                let find = |header: &_, name: &str| keyring.find(header, name);
                Slot::parse(&open_object(stored, Role::Removal, &object.key, find)?, *id)
            };
            match self.get_checked(&object.key, object.size, limit, open).await {
                Ok(slot) => removed.push((*id, slot)),
                // A mark that cannot be read says nothing more than its name does.
                Err(error) if matches!(error.code(), Code::NotFound | Code::Corrupt | Code::WrongKey) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    /// Makes slots for a secret, one for each master key that it does not open yet.
    ///
    /// # Errors
    /// `CONFIG` when the secret is too weak; those of the store; `IO`.
    pub async fn add_slots(&self, kind: SlotKind, secret: &Secret) -> Result<Vec<SlotId>> {
        let (work, secret) = (self.work().await?, secret.clone());
        let made = blocking(move || work.missing(kind, &secret)).await?;
        let ids = made.iter().map(|(id, _)| *id).collect();
        self.put_slots(made).await?;
        Ok(ids)
    }

    /// Whether a configured secret of that kind gets a slot without being asked for.
    #[must_use]
    pub fn wants_slots(&self, kind: SlotKind) -> bool {
        is_wanted(kind, &self.slots, &self.keyring)
    }

    /// Removes a slot, also from what is known of the repository. Two machines that each remove one of the last two slots at
    /// the same moment see each other's mark, which is written before the second look, and at least one of them stops.
    ///
    /// # Errors
    /// `CONFIG` when it is the last slot of its master key, or the last that `secrets` open; those of the store.
    pub async fn remove_slot(&mut self, id: SlotId, secrets: &Secrets) -> Result<()> {
        let key = slot_key(id);
        let stored = match self.contents.slots.iter().find(|(slot, _)| *slot == id) {
            Some((_, object)) => self.get_checked(&key, object.size, MAX_SLOT, |bytes| Ok(bytes.to_vec())).await?,
            None => return Err(Error::new(Code::NotFound, format!("there is no key slot {id}")).at_key(key)),
        };
        self.check_removal(id, secrets).await?;
        let mark = format!("keys/{id}-{}.removed", hex(&random::<16>()?));
        let sealed = seal_object(self.keyring.writing()?, Role::Removal, &mark, stored)?;
        self.store.put(&mark, Bytes::from(sealed)).await?;
        let again = async {
            self.refresh().await?;
            self.read_slots().await?;
            self.check_removal(id, secrets).await
        };
        if let Err(error) = again.await {
            // The slot stays, and with it whatever it opens; a mark that stays too only keeps others from counting on it.
            self.store.delete(&mark).await?;
            return Err(error);
        }
        self.store.delete(&key).await?;
        self.forget_slots(|listed| listed != id);
        Arc::make_mut(&mut self.contents).slots.retain(|(listed, _)| *listed != id);
        Arc::make_mut(&mut self.slots).retain(|(listed, _)| *listed != id);
        Ok(())
    }

    /// Refuses to remove a slot that something else does not stand in for.
    async fn check_removal(&self, id: SlotId, secrets: &Secrets) -> Result<()> {
        let Some((_, slot)) = self.slots.iter().find(|(slot, _)| *slot == id) else { return Ok(()) };
        let master = slot.master_key()?;
        let staying: Slots = self
            .slots
            .iter()
            .filter(|(other, slot)| *other != id && slot.master_key().is_ok_and(|key| key == master))
            .filter(|(other, _)| !self.contents.is_removed(*other))
            .cloned()
            .collect();
        let refused = |problem: String| Error::config("slot", problem).at_key(slot_key(id));
        if staying.is_empty() {
            let unfinished = self.slots.iter().any(|(other, slot)| {
                *other != id && slot.master_key().is_ok_and(|key| key == master) && self.contents.is_removed(*other)
            });
            let problem = format!(
                "{id} is the last slot of its master key: without it nobody could ever restore what that key seals"
            );
            return Err(refused(problem).advise(if unfinished {
                "another slot is being removed at this moment, or its removal was interrupted: see `key list`"
            } else {
                "add another one first, with `key add` or `key recovery-code`"
            }));
        }
        if self.keyring.keys().all(|key| key.id != master) {
            return Ok(());
        }
        let secrets = secrets.clone();
        if blocking(move || any_opens(staying.iter().map(|(_, slot)| slot), &secrets)).await? {
            return Ok(());
        }
        Err(refused(format!("{id} is the last slot that a secret configured here opens"))
            .advise("configure another secret and run `key add` first"))
    }

    /// Makes a new master key for everything that is written from now on. The ones before stay, for reading.
    ///
    /// # Errors
    /// `WRONG_KEY` when the key for writing is not open; `CONFIG` when a secret is too weak; those of the store; `IO`.
    pub async fn rotate(&mut self, secrets: &Secrets) -> Result<Rotation> {
        let before = self.keyring.writing()?.id;
        let (work, secrets) = (self.work().await?, secrets.clone());
        let wrap = move || {
            let key = MasterKey::generate()?;
            let retires: Vec<Retirement> = work.keyring.keys().map(|old| Retirement::new(old, key.id)).collect();
            let is_of_before = |slot: &Slot| slot.master_key().is_ok_and(|id| id == before);
            let mut left: Slots = work.slots.iter().filter(|(_, slot)| is_of_before(slot)).cloned().collect();
            let mut made = Vec::new();
            for (kind, secret) in secrets.iter() {
                let own = Secrets::only(*kind, secret);
                let mut others = Vec::new();
                for (id, slot) in &left {
                    if own.open(slot)?.is_none() {
                        others.push((*id, slot.clone()));
                    }
                }
                if others.len() < left.len() {
                    made.push(Slot::wrap(&key, retires.clone(), *kind, secret)?);
                }
                left = others;
            }
            let kinds = |slots: &Slots| slots.iter().map(|(id, slot)| (*id, slot.kind)).collect();
            let rotation = Rotation { master_key: key.id, slots: kinds(&made), left_behind: kinds(&left) };
            Ok((made, rotation))
        };
        let (made, rotation) = blocking(wrap).await?;
        if made.is_empty() {
            return Err(Error::new(Code::WrongKey, "no configured secret opens a slot of the key for writing"));
        }
        self.put_slots(made).await?;
        Ok(rotation)
    }

    /// Drops slots from the local cache for which `keep` says no: a removed slot opens nothing here either.
    pub(super) fn forget_slots(&self, keep: impl Fn(SlotId) -> bool) {
        let slot = |key: &str| key.strip_prefix("keys/")?.strip_suffix(".json")?.parse().ok();
        if let Some(cache) = &self.cache {
            cache.attempt(|cache| cache.retain_objects(|key| slot(key).is_none_or(&keep)));
        }
    }

    /// What is listed at this moment, as opposed to [`Repository::contents`].
    ///
    /// # Errors
    /// Those of the store.
    pub async fn listed_slots(&self) -> Result<usize> {
        Ok(Contents::new(self.store.list("keys/").await?).slots.len())
    }
}
