//! `key`: which secrets open the repository, and changes of them. None of these needs the state directory.
//!
//! A push makes slots for what is configured by itself (`repository/keys.rs`). The verbs are for everything else.

use std::path::PathBuf;
use std::sync::Arc;

use super::Operation;
use super::workplace::cache_for_reading;
use crate::cache::Cache;
use crate::config::{Secret, Target};
use crate::error::{Code, Error, Result};
use crate::repository::id::SlotId;
use crate::repository::keyring::{Secrets, key_file};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::recovery_code::RecoveryCode;
use crate::repository::slot::SlotKind;

/// One slot, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySlot {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What kind of secret opens it.
    pub kind: SlotKind,
}

impl KeySlot {
    fn of((id, kind): (SlotId, SlotKind)) -> Self {
        Self { id: id.to_string(), kind }
    }
}

/// One slot as `key list` shows it.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What kind of secret opens it; `None` for a damaged slot.
    pub kind: Option<SlotKind>,
    /// When it was made: RFC 3339, UTC, by the store's clock.
    pub created_at: String,
    /// The id of the master key in it; `None` for a damaged slot.
    pub master_key: Option<String>,
    /// Whether new snapshots are sealed with that master key; never when none of the configured secrets opens one.
    pub writing: bool,
    /// Whether a configured secret opens it.
    pub opens: bool,
    /// Whether its removal was begun and not finished.
    pub removing: bool,
    /// Why it is of no use: it is damaged, or its master key is passed over.
    pub problem: Option<String>,
}

/// What `key list` found.
#[derive(Debug, Clone, Default)]
pub struct KeyListReport {
    /// The slots in the order of their making. An unencrypted repository has none.
    pub slots: Vec<KeyInfo>,
}

/// Options of `key add`. Without any of the first three, slots are made for what is configured.
#[derive(Debug, Clone, Default)]
pub struct KeyAddOptions {
    /// A passphrase that is to open the repository.
    pub passphrase: Option<Secret>,
    /// A key file that is to open it.
    pub key_file: Option<PathBuf>,
    /// Whether the configured application key is to open it.
    pub application_key: bool,
    /// An application key that opens it and is not configured any more.
    pub old_application_key: Option<Secret>,
    /// A passphrase that opens it and is not configured any more.
    pub old_passphrase: Option<Secret>,
}

/// What `key add` did.
#[derive(Debug, Clone)]
pub struct KeyAddReport {
    /// The new slots, one for each secret and master key; empty when every one was there.
    pub added: Vec<KeySlot>,
}

/// What `key remove` did.
#[derive(Debug, Clone)]
pub struct KeyRemoveReport {
    /// The slots that are gone.
    pub removed: Vec<String>,
}

/// What `key rotate` did.
#[derive(Debug, Clone)]
pub struct KeyRotateReport {
    /// The id of the new master key.
    pub master_key: String,
    /// Its slots.
    pub added: Vec<KeySlot>,
    /// Slots of the key before whose secrets were not at hand. They open older snapshots, and none that is taken from now on.
    pub left_behind: Vec<KeySlot>,
}

/// A new recovery code.
#[derive(Debug, Clone)]
pub struct RecoveryCodeReport {
    /// The code itself, for paper. It is kept nowhere.
    pub code: Secret,
    /// Its slots, one for each master key.
    pub added: Vec<KeySlot>,
    /// Slots of earlier recovery codes, which still open the repository.
    pub earlier: Vec<KeySlot>,
}

/// Every slot, also where none of the configured secrets opens one.
///
/// # Errors
/// Those of the store.
pub async fn list(target: &Target, operation: &Operation) -> Result<KeyListReport> {
    let (repository, slots, opened) = Repository::look(target, cache_for_reading(target).await, operation).await?;
    let writing = repository.keyring.writing().ok().filter(|_| !repository.keyring.is_plain()).map(|key| key.id);
    let made = |id: SlotId| {
        let listed = repository.contents.slots.iter().find(|(slot, _)| *slot == id);
        let time = listed.and_then(|(_, object)| jiff::Timestamp::try_from(object.modified).ok());
        time.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let slots = slots.into_iter().map(|(id, slot)| {
        let (kind, master_key, problem) = match slot {
            Ok(slot) => {
                let master_key = slot.master_key().ok();
                let is_foreign = master_key.is_some_and(|key| repository.keyring.foreign().contains(&key));
                let problem = is_foreign.then(|| {
                    format!("{id} is passed over: the application key alone opens its master key, so that anybody who knows it may have planted it")
                });
                (Some(slot.kind), master_key, problem)
            }
            Err(error) => (None, None, Some(error.to_string())),
        };
        KeyInfo {
            id: id.to_string(),
            kind,
            created_at: made(id),
            writing: writing.is_some() && master_key == writing,
            master_key: master_key.map(|id| id.to_string()),
            opens: opened.contains(&id),
            removing: repository.contents.is_removed(id),
            problem,
        }
    });
    Ok(KeyListReport { slots: slots.collect() })
}

/// Makes slots: for what is configured, or for another secret.
///
/// # Errors
/// `CONFIG` for a weak passphrase, and where there are no keys; those of [`Repository::open`] and of the store.
pub async fn add(target: &Target, options: KeyAddOptions, operation: &Operation) -> Result<KeyAddReport> {
    let KeyAddOptions { passphrase, key_file: file, application_key, old_application_key, old_passphrase } = options;
    let configured = Secrets::of(target)?;
    let old = [(SlotKind::ApplicationKey, old_application_key), (SlotKind::Passphrase, old_passphrase)];
    let old = old.into_iter().filter_map(|(kind, secret)| Some((kind, secret?)));
    let repository = open(target, configured.clone().with(old), operation).await?;
    let mut wanted: Vec<(SlotKind, Secret)> = Vec::new();
    wanted.extend(passphrase.map(|secret| (SlotKind::Passphrase, secret)));
    wanted.extend(file.as_deref().map(key_file).transpose()?);
    if application_key {
        let missing = || Error::config("applicationKey", "is not configured");
        wanted.push((SlotKind::ApplicationKey, target.application_key.clone().ok_or_else(missing)?));
    }
    if wanted.is_empty() {
        wanted.extend(configured.iter().filter(|(kind, _)| repository.wants_slots(*kind)).cloned());
    }
    let mut added = Vec::new();
    for (kind, secret) in wanted {
        operation.check()?;
        let ids = repository.add_slots(kind, &secret).await?;
        added.extend(ids.into_iter().map(|id| KeySlot::of((id, kind))));
    }
    Ok(KeyAddReport { added })
}

/// Removes slots, each named by its id or the unique start of one.
///
/// # Errors
/// `NOT_FOUND`; `CONFIG` for the last slot of a master key, or the last one that opens it here; those of
/// [`Repository::open`] and of the store.
pub async fn remove(target: &Target, names: &[String], operation: &Operation) -> Result<KeyRemoveReport> {
    let secrets = Secrets::of(target)?;
    let mut repository = open(target, secrets.clone(), operation).await?;
    let mut ids = Vec::new();
    for name in names {
        let id = select(&repository, name)?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mut removed = Vec::new();
    for id in ids {
        operation.check()?;
        repository.remove_slot(id, &secrets).await?;
        removed.push(id.to_string());
    }
    Ok(KeyRemoveReport { removed })
}

fn select(repository: &Repository, name: &str) -> Result<SlotId> {
    let ids = repository.contents.slots.iter().map(|(id, _)| *id);
    let matching: Vec<SlotId> = ids.filter(|id| !name.is_empty() && id.to_string().starts_with(name)).collect();
    match matching[..] {
        [id] => Ok(id),
        [] => Err(Error::new(Code::NotFound, format!("no key slot has an id that starts with {name:?}"))
            .advise("`key list` shows them")),
        _ => {
            Err(Error::config("slot", format!("{name:?} is the start of {} ids", matching.len()))
                .advise("give more of it"))
        }
    }
}

/// Makes a new master key for everything that is written from now on.
///
/// # Errors
/// Those of [`Repository::rotate`] and [`Repository::open`].
pub async fn rotate(target: &Target, operation: &Operation) -> Result<KeyRotateReport> {
    let secrets = Secrets::of(target)?;
    let mut repository = open(target, secrets.clone(), operation).await?;
    let rotation = repository.rotate(&secrets).await?;
    Ok(KeyRotateReport {
        master_key: rotation.master_key.to_string(),
        added: rotation.slots.into_iter().map(KeySlot::of).collect(),
        left_behind: rotation.left_behind.into_iter().map(KeySlot::of).collect(),
    })
}

/// Makes a recovery code and its slots.
///
/// # Errors
/// Those of [`Repository::open`] and of the store; `IO`.
pub async fn recovery_code(target: &Target, operation: &Operation) -> Result<RecoveryCodeReport> {
    let repository = open(target, Secrets::of(target)?, operation).await?;
    let code = RecoveryCode::generate()?;
    let kind = SlotKind::RecoveryCode;
    let earlier = repository.slots.iter().filter(|(_, slot)| slot.kind == kind);
    let earlier = earlier.map(|(id, _)| KeySlot::of((*id, kind))).collect();
    let added = repository.add_slots(kind, &code.secret()).await?;
    let added = added.into_iter().map(|id| KeySlot::of((id, kind))).collect();
    Ok(RecoveryCodeReport { code: Secret::new(code.to_string()), added, earlier })
}

/// Opens an encrypted repository that exists.
async fn open(target: &Target, secrets: Secrets, operation: &Operation) -> Result<Repository> {
    if !target.encrypt {
        return Err(Error::config("encrypt", "is false: an unencrypted repository has no keys"));
    }
    let cache: Option<Arc<Cache>> = cache_for_reading(target).await;
    let repository = Repository::open_with(target, secrets, cache, IfMissing::ReadAsEmpty, operation).await?;
    if repository.contents.slots.is_empty() {
        return Err(
            Error::new(Code::NotFound, "there is no repository yet").advise("the first push makes one, and its keys")
        );
    }
    // A slot for a key that was retired would open nothing that is taken from now on.
    repository.keyring.writing()?;
    Ok(repository)
}
