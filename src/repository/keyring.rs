//! The master keys of a repository that the configured secrets open.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::Zeroizing;

use super::id::{MasterKeyId, SlotId};
use super::seal::{Header, MasterKey};
use super::slot::{Slot, SlotKind};
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
        let key_file = target.key_file.as_deref().map(read_key_file).transpose()?.map(|key| (SlotKind::KeyFile, key));
        let secrets = application_key.into_iter().chain(passphrase).chain(key_file).collect();
        Ok(Self { encrypt: target.encrypt, secrets })
    }

    /// No secret at all: for slots that are open already.
    #[must_use]
    pub const fn none() -> Self {
        Self { encrypt: true, secrets: Vec::new() }
    }

    /// Those that a new repository gets a slot for, each with its kind. The storage service knows the application key, so
    /// that a slot for it protects from everybody but the service. Whoever configures a secret of their own wants more.
    pub fn for_new_slots(&self) -> impl Iterator<Item = &(SlotKind, Secret)> {
        let own = self.secrets.iter().any(|(kind, _)| *kind != SlotKind::ApplicationKey);
        self.secrets.iter().filter(move |(kind, _)| !own || *kind != SlotKind::ApplicationKey)
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
    /// Keys that exist but that no configured secret opens.
    closed: Vec<MasterKeyId>,
}

impl Keyring {
    /// The keyring of an unencrypted repository.
    #[must_use]
    pub fn plain() -> Self {
        let key = MasterKey::plain();
        Self { writing: key.id, keys: HashMap::from([(key.id, key)]), closed: Vec::new() }
    }

    /// A keyring of one new key.
    #[must_use]
    pub fn single(key: MasterKey) -> Self {
        Self { writing: key.id, keys: HashMap::from([(key.id, key)]), closed: Vec::new() }
    }

    /// Opens what the secrets open. `slots` are in the order of their making, by the store's clock, then by id: the first
    /// master key in that order is the one that everybody writes with. `opened` holds keys that were unwrapped before.
    ///
    /// # Errors
    /// `WRONG_KEY` when no slot opens, `CORRUPT` when all are damaged.
    pub fn open(
        secrets: &Secrets,
        slots: &[(SlotId, Result<Slot>)],
        mut opened: HashMap<SlotId, MasterKey>,
    ) -> Result<Self> {
        let mut keys = HashMap::new();
        let mut writing = None;
        let mut closed = Vec::new();
        let mut damage = None;
        for (id, slot) in slots {
            let Ok(slot) = slot else {
                damage = damage.or(slot.as_ref().err().map(ToString::to_string));
                continue;
            };
            let master = slot.master_key()?;
            if keys.contains_key(&master) {
                continue;
            }
            let key = match opened.remove(id) {
                Some(key) => Some(key),
                None => secrets.open(slot)?,
            };
            if let Some(key) = key {
                writing = writing.or(Some(key.id));
                keys.insert(key.id, key);
            } else {
                closed.push(master);
            }
        }
        closed.retain(|id| !keys.contains_key(id));
        match (writing, damage) {
            (Some(writing), _) => Ok(Self { keys, writing, closed }),
            (None, Some(damage)) if closed.is_empty() => Err(Error::new(Code::Corrupt, damage)),
            (None, _) => Err(Error::new(Code::WrongKey, "none of the configured secrets opens this repository")
                .advise("its backups were made with another applicationKey or passphrase; configure that one")),
        }
    }

    /// The key that new objects are sealed with.
    ///
    /// # Panics
    /// Never: it is one of the keys by construction.
    #[must_use]
    pub fn writing(&self) -> &MasterKey {
        self.keys.get(&self.writing).expect("the writing key is on the ring")
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
        } else if self.closed.contains(&id) {
            Err(Error::new(Code::WrongKey, format!("{name} is sealed with a key that no configured secret opens"))
                .at_key(name)
                .advise("it was made with another applicationKey or passphrase"))
        } else {
            Err(Error::corrupt(name, "it is sealed with a key that this repository does not hold"))
        }
    }
}
