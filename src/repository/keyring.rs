//! The master keys of a repository that the configured secrets open.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::id::{MasterKeyId, SlotId};
use super::plain::PlainObjects;
use super::recovery_code::RecoveryCode;
use super::seal::{Header, MasterKey};
use super::slot::{Retirement, Slot, SlotKind};
use crate::config::{Secret, Target};
use crate::error::{Code, Error, Result};

/// The largest key file; keys are short, and a file named by mistake must not be read whole.
const MAX_KEY_FILE: u64 = 64 << 10;

/// What the configuration offers to open slots with.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// Whether the repository is to be encrypted at all.
    pub encrypt: bool,
    secrets: Vec<(SlotKind, Secret)>,
}

impl Secrets {
    /// Those of a configuration.
    ///
    /// # Errors
    /// `CONFIG` when the key file cannot be read or is empty.
    pub fn of(target: &Target) -> Result<Self> {
        let application_key = target.application_key.clone().map(|secret| (SlotKind::ApplicationKey, secret));
        let passphrase = target.passphrase.clone().map(|secret| (SlotKind::Passphrase, secret));
        let key_file = target.key_file.as_deref().map(key_file).transpose()?;
        let recovery_code = match &target.recovery_code {
            Some(code) => Some((SlotKind::RecoveryCode, RecoveryCode::parse(code.expose())?.secret())),
            None => None,
        };
        let secrets = application_key.into_iter().chain(passphrase).chain(key_file).chain(recovery_code).collect();
        Ok(Self { encrypt: target.encrypt, secrets })
    }

    /// No secret at all: for slots that are open already.
    #[must_use]
    pub const fn none() -> Self {
        Self { encrypt: true, secrets: Vec::new() }
    }

    /// One alone.
    #[must_use]
    pub fn only(kind: SlotKind, secret: &Secret) -> Self {
        Self::none().with([(kind, secret.clone())])
    }

    /// These, and others that are not configured.
    #[must_use]
    pub fn with(mut self, other: impl IntoIterator<Item = (SlotKind, Secret)>) -> Self {
        self.secrets.extend(other);
        self
    }

    /// Each with its kind.
    pub fn iter(&self) -> impl Iterator<Item = &(SlotKind, Secret)> {
        self.secrets.iter()
    }

    /// Those that a new repository gets a slot for. The storage service knows the application key, so that a slot for it
    /// protects from everybody but the service. Whoever configures a secret of their own wants more. A recovery code is
    /// printed for a repository that exists.
    pub fn for_new_slots(&self) -> impl Iterator<Item = &(SlotKind, Secret)> {
        let own = self.secrets.iter().any(|(kind, _)| kind.is_configured_to_open());
        let wanted =
            move |kind| if own { SlotKind::is_configured_to_open(kind) } else { kind == SlotKind::ApplicationKey };
        self.secrets.iter().filter(move |(kind, _)| wanted(*kind))
    }

    /// Unwraps the master key of a slot; `None` when no secret fits. Takes as long as scrypt does.
    ///
    /// # Errors
    /// `CORRUPT` when the slot makes no sense.
    pub fn open(&self, slot: &Slot) -> Result<Option<MasterKey>> {
        for (kind, secret) in &self.secrets {
            if *kind == slot.kind
                && let Some(key) = slot.unwrap(secret)?
            {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }
}

/// The content of a key file, as what opens a slot.
///
/// # Errors
/// `CONFIG` when it cannot be read, is empty or too large.
pub fn key_file(path: &Path) -> Result<(SlotKind, Secret)> {
    read_key_file(path).map(|secret| (SlotKind::KeyFile, secret))
}

fn read_key_file(path: &Path) -> Result<Secret> {
    let refused = |problem: String| {
        Error::config("keyFile", format!("{}: {problem}", path.display())).at_path(path.display().to_string())
    };
    let mut content = Zeroizing::new(Vec::new());
    let read = File::open(path).and_then(|file| file.take(MAX_KEY_FILE + 1).read_to_end(&mut content));
    match read {
        Err(error) => Err(refused(error.to_string())),
        Ok(0) => Err(refused("it is empty".into())),
        Ok(length) if length as u64 > MAX_KEY_FILE => Err(refused(format!("it is larger than {MAX_KEY_FILE} bytes"))),
        Ok(_) => Ok(Secret::new(BASE64.encode(&content))),
    }
}

/// The keys that were opened.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: HashMap<MasterKeyId, MasterKey>,
    writing: MasterKeyId,
    /// Whether another key has taken the place of the one for writing, and is not on the ring.
    is_retired: bool,
    /// Keys that exist but that no configured secret opens.
    closed: Vec<MasterKeyId>,
    /// Keys that the application key alone opens, which the storage service knows, where a secret of the owner's opens another
    /// one, and that nobody with that one has put beside it.
    foreign: Vec<MasterKeyId>,
    /// What was stored before encryption was turned on.
    plain: Arc<PlainObjects>,
}

impl Keyring {
    /// The keyring of an unencrypted repository.
    #[must_use]
    pub fn plain() -> Self {
        Self::single(MasterKey::plain())
    }

    /// A keyring of one key.
    #[must_use]
    pub fn single(key: MasterKey) -> Self {
        let (writing, keys) = (key.id, HashMap::from([(key.id, key)]));
        Self { writing, keys, is_retired: false, closed: Vec::new(), foreign: Vec::new(), plain: Arc::default() }
    }

    /// Opens what the secrets open. `slots` are in the order of their making, by the store's clock, then by id: of the
    /// master keys that none has retired, the first in that order is the one that everybody writes with. `opened` holds
    /// keys that were unwrapped before.
    ///
    /// The storage service knows the application key, and can make up slots that it opens. Where a secret of the owner's opens a
    /// key, one that the application key alone opens counts only if the one has retired the other.
    ///
    /// # Errors
    /// `WRONG_KEY` when no slot opens, `CORRUPT` when all are damaged.
    pub fn open(
        secrets: &Secrets,
        slots: &[(SlotId, Result<Slot>)],
        mut opened: HashMap<SlotId, MasterKey>,
    ) -> Result<Self> {
        let mut keys: HashMap<MasterKeyId, MasterKey> = HashMap::new();
        let mut order = Vec::new();
        let mut sound_slots = Vec::with_capacity(slots.len());
        let mut damage = None;
        for (id, slot) in slots {
            match slot {
                Err(error) => damage = damage.or(Some(error.to_string())),
                Ok(slot) => {
                    let master = slot.master_key()?;
                    if !order.contains(&master) {
                        order.push(master);
                    }
                    sound_slots.push((*id, master, slot));
                }
            }
        }
        // Which secret opens a key matters only where there are several.
        if order.len() > 1 {
            sound_slots.sort_by_key(|(_, _, slot)| slot.kind == SlotKind::ApplicationKey);
        }
        let mut opening: Vec<&Slot> = Vec::new();
        for (id, master, slot) in &sound_slots {
            if keys.contains_key(master) {
                continue;
            }
            let key = match opened.remove(id) {
                Some(key) => Some(key),
                None => secrets.open(slot)?,
            };
            if let Some(key) = key {
                keys.insert(key.id, key);
                opening.push(slot);
            }
        }
        let every_slot: Vec<&Slot> = sound_slots.iter().map(|(_, _, slot)| *slot).collect();
        let foreign = take_foreign_keys(&mut keys, &opening, &every_slot);
        let is_closed = |id: &MasterKeyId| !keys.contains_key(id) && !foreign.contains(id);
        let closed: Vec<MasterKeyId> = order.iter().copied().filter(is_closed).collect();
        let is_retired = |key: &MasterKey| every_slot.iter().any(|slot| slot.retires_key(key));
        let mut ring = order.iter().filter_map(|id| keys.get(id));
        let current = ring.clone().find(|key| !is_retired(key)).map(|key| (key.id, false));
        match (current.or(ring.next().map(|key| (key.id, true))), damage) {
            (Some((writing, is_retired)), _) => {
                Ok(Self { keys, writing, is_retired, closed, foreign, plain: Arc::default() })
            }
            (None, Some(damage)) if closed.is_empty() => Err(Error::new(Code::Corrupt, damage)),
            (None, _) => Err(wrong_key(&every_slot.iter().map(|slot| slot.kind).collect::<Vec<_>>())),
        }
    }

    /// The key that new objects are sealed with.
    ///
    /// # Errors
    /// `WRONG_KEY` when the keys were rotated and the configured secrets open the old ones alone.
    pub fn writing(&self) -> Result<&MasterKey> {
        if self.is_retired {
            return Err(Error::new(Code::WrongKey, "the keys of this repository were rotated, and none of the configured secrets opens the new one")
                .advise("configure a secret that `key list` shows for the new key on another machine, or run `key add` there for one of this machine"));
        }
        Ok(self.naming())
    }

    /// The key that names chunks, where nothing is written.
    ///
    /// # Panics
    /// Never: it is one of the keys by construction.
    #[must_use]
    pub fn naming(&self) -> &MasterKey {
        self.keys.get(&self.writing).expect("the writing key is on the ring")
    }

    /// Keys that are not taken for those of this repository; see [`Keyring::open`].
    #[must_use]
    pub fn foreign(&self) -> &[MasterKeyId] {
        &self.foreign
    }

    /// Every key on the ring.
    pub fn keys(&self) -> impl Iterator<Item = &MasterKey> {
        self.keys.values()
    }

    /// What slots of `key` have to say of the other keys on the ring that it takes the place of.
    #[must_use]
    pub fn retirements_by<'s>(
        &self,
        key: MasterKeyId,
        slots: impl Iterator<Item = &'s Slot> + Clone,
    ) -> Vec<Retirement> {
        let by_key = slots.filter(|slot| slot.master_key().is_ok_and(|id| id == key));
        let retired = self.keys.values().filter(|other| by_key.clone().any(|slot| slot.retires_key(other)));
        retired.map(|other| Retirement::new(other, key)).collect()
    }

    /// Whether this is the keyring of an unencrypted repository.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.writing == MasterKeyId::NONE
    }

    /// Accepts these plain objects besides sealed ones.
    pub fn accept(&mut self, plain: PlainObjects) {
        Arc::make_mut(&mut self.plain).extend(plain);
    }

    /// Whether an object of that name was stored before encryption was turned on.
    #[must_use]
    pub fn accepts(&self, name: &str) -> bool {
        self.plain.names(name)
    }

    /// The key that an object's header names.
    ///
    /// # Errors
    /// `CORRUPT` for a plain object in an encrypted repository, or a key that no slot holds; `WRONG_KEY` for one that
    /// the configured secrets do not open.
    pub fn find(&self, header: &Header, name: &str) -> Result<&MasterKey> {
        let id = header.master_key;
        if let Some(key) = self.keys.get(&id) {
            Ok(key)
        } else if id == MasterKeyId::NONE {
            Err(Error::corrupt(name, "it is not encrypted, in an encrypted repository"))
        } else if self.foreign.contains(&id) {
            Err(Error::new(Code::WrongKey, format!("{name} is sealed with a key that the application key alone opens, and no key of the owner's vouches for"))
                .at_key(name)
                .advise("somebody may have planted it; if it is yours, configure the application key alone to read it"))
        } else if self.closed.contains(&id) {
            Err(Error::new(Code::WrongKey, format!("{name} is sealed with a key that no configured secret opens"))
                .at_key(name)
                .advise("it was made with another applicationKey or passphrase"))
        } else {
            Err(Error::corrupt(name, "it is sealed with a key that this repository does not hold"))
        }
    }

    /// [`Keyring::find`] for a manifest or an index object, which may also be one of those that were there before
    /// encryption was turned on.
    ///
    /// # Errors
    /// Those of [`Keyring::find`].
    pub fn find_for(&self, header: &Header, name: &str, stored: &[u8]) -> Result<&MasterKey> {
        if header.master_key == MasterKeyId::NONE && self.plain.holds(name, stored) {
            return Ok(MasterKey::PLAIN);
        }
        self.find(header, name)
    }

    /// [`Keyring::find`] for a pack whose header an index object has, which may also be a plain one: what the index
    /// object says was accepted, and a chunk's id proves its content.
    ///
    /// # Errors
    /// Those of [`Keyring::find`].
    pub fn find_for_pack(&self, header: &Header, name: &str) -> Result<&MasterKey> {
        if header.master_key == MasterKeyId::NONE && !self.plain.is_empty() {
            return Ok(MasterKey::PLAIN);
        }
        self.find(header, name)
    }
}

/// Takes those keys off the ring that the storage service may have made up; see [`Keyring::open`]. `opening` are those of the
/// slots that opened the keys.
fn take_foreign_keys(
    keys: &mut HashMap<MasterKeyId, MasterKey>,
    opening: &[&Slot],
    slots: &[&Slot],
) -> Vec<MasterKeyId> {
    fn of_key<'s>(slots: &'s [&Slot], id: MasterKeyId) -> impl Iterator<Item = &'s Slot> {
        slots.iter().copied().filter(move |slot| slot.master_key().is_ok_and(|own| own == id))
    }
    let own = opening.iter().filter(|slot| slot.kind != SlotKind::ApplicationKey);
    let mut trusted: Vec<MasterKeyId> = own.filter_map(|slot| slot.master_key().ok()).collect();
    if trusted.is_empty() {
        return Vec::new();
    }
    let is_vouched_for = |key: &MasterKey, trusted: &[MasterKeyId]| {
        trusted.iter().any(|id| {
            // Only who holds the older key can make the proof of that; what a slot says of other keys counts if it opened.
            let takes_its_place =
                keys.get(id).is_some_and(|old| of_key(slots, key.id).any(|slot| slot.retires_key(old)));
            takes_its_place || of_key(opening, *id).any(|slot| slot.retires_key(key))
        })
    };
    while let Some(key) = keys.values().find(|key| !trusted.contains(&key.id) && is_vouched_for(key, &trusted)) {
        trusted.push(key.id);
    }
    let foreign = keys.keys().copied().filter(|id| !trusted.contains(id)).collect();
    keys.retain(|id, _| trusted.contains(id));
    foreign
}

/// None of the configured secrets opens a slot: what does, and what to do.
fn wrong_key(kinds: &[SlotKind]) -> Error {
    let all = [
        (SlotKind::ApplicationKey, "an application key"),
        (SlotKind::Passphrase, "a passphrase"),
        (SlotKind::KeyFile, "a key file"),
        (SlotKind::RecoveryCode, "a recovery code"),
    ];
    let names: Vec<&str> = all.iter().filter(|(kind, _)| kinds.contains(kind)).map(|(_, name)| *name).collect();
    let mut ways = Vec::new();
    if kinds.contains(&SlotKind::ApplicationKey) {
        ways.push(
            "if the application key was replaced, put the old one into an environment variable and run \
                   `key add --old-application-key-env <its name>` with the new one configured",
        );
    }
    if kinds.iter().any(|kind| kind.is_configured_to_open()) {
        ways.push("configure the passphrase or keyFile that was in use");
    }
    if kinds.contains(&SlotKind::RecoveryCode) {
        ways.push("set OPENCLAW_B2_RECOVERY_CODE to the recovery code");
    }
    let problem =
        format!("none of the configured secrets opens this repository; what opens it is {}", names.join(" or "));
    Error::new(Code::WrongKey, problem).advise(ways.join("; or "))
}
