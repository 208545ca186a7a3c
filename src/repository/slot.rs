//! Key slots: the master key, wrapped under something the owner knows or has.
//!
//! Each slot is an object of its own (`keys/<id>.json`), so that adding or removing one rewrites nothing. The wrapping
//! key comes from scrypt with parameters that the slot names; they are checked before any memory is spent on them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::{MasterKeyId, SlotId, random};
use super::seal::{Header, MasterKey, Role, Sealer, TAG_LENGTH};
use crate::config::Secret;
use crate::error::{Error, Result};

/// What opens a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// The storage service's secret access key.
    ApplicationKey,
    /// A passphrase of the owner's.
    Passphrase,
    /// The content of a file, as standard base64.
    KeyFile,
}

impl SlotKind {
    /// `log2(N)` of scrypt for new slots; r = 8 and p = 1 always (RFC 7914, section 2).
    ///
    /// An application key is random (B2: 31 base64 characters), and so is a key file, so that N = 2^14 (16 MiB, about 20 ms) is only there
    /// to slow a search down further. A passphrase is chosen by a person: N = 2^17 (128 MiB), as OWASP's password
    /// storage cheat sheet advises.
    const fn log_n(self) -> u8 {
        match self {
            Self::ApplicationKey | Self::KeyFile => 14,
            Self::Passphrase => 17,
        }
    }
}

/// The largest scrypt work that a slot may ask for: 256 MiB of memory.
const MAX_SCRYPT_MEMORY: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kdf {
    name: String,
    log_n: u8,
    r: u32,
    p: u32,
    salt: String,
}

/// A key slot as stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Slot {
    format: u32,
    id: String,
    master_key: String,
    /// What opens it.
    pub kind: SlotKind,
    kdf: Kdf,
    wrapped: String,
}

/// The key of the object that holds the slot.
#[must_use]
pub fn slot_key(id: SlotId) -> String {
    format!("keys/{id}.json")
}

impl Slot {
    /// Wraps `key` under `secret` in a new slot. Takes as long as scrypt does; not for an event loop.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    ///
    /// # Panics
    /// When `key` is that of an unencrypted repository.
    pub fn wrap(key: &MasterKey, kind: SlotKind, secret: &Secret) -> Result<(SlotId, Self)> {
        Self::wrap_with(key, kind, secret, SlotId(random()?), random()?, kind.log_n())
    }

    fn wrap_with(
        key: &MasterKey,
        kind: SlotKind,
        secret: &Secret,
        id: SlotId,
        salt: [u8; 32],
        log_n: u8,
    ) -> Result<(SlotId, Self)> {
        let kdf = Kdf { name: "scrypt".into(), log_n, r: 8, p: 1, salt: BASE64.encode(salt) };
        let mut slot =
            Self { format: 1, id: id.to_string(), master_key: key.id.to_string(), kind, kdf, wrapped: String::new() };
        let sealer = slot.sealer(secret, &salt, id)?;
        let mut wrapped = key.secret().expect("an encrypted repository's key").to_vec();
        sealer.seal(0, true, &mut wrapped);
        slot.wrapped = BASE64.encode(wrapped);
        Ok((id, slot))
    }

    /// Reads a stored slot.
    ///
    /// # Errors
    /// `CORRUPT` when it is none, or asks for absurd work.
    pub fn parse(bytes: &[u8], id: SlotId) -> Result<Self> {
        let key = slot_key(id);
        let slot: Self = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(&key, format!("it is no key slot: {error}")))?;
        if slot.format != 1 || slot.kdf.name != "scrypt" {
            return Err(
                Error::corrupt(&key, "its format is unknown to this version").advise("update openclaw-b2-backup")
            );
        }
        if slot.id != id.to_string() {
            return Err(Error::corrupt(&key, "it says that it is another slot"));
        }
        let Kdf { log_n, r, p, .. } = slot.kdf;
        let memory = 1u64.checked_shl(u32::from(log_n)).and_then(|n| n.checked_mul(128 * u64::from(r)));
        if log_n == 0
            || log_n > 24
            || r == 0
            || r > 64
            || p == 0
            || p > 16
            || memory.is_none_or(|m| m > MAX_SCRYPT_MEMORY)
        {
            return Err(Error::corrupt(&key, "its scrypt parameters are out of bounds"));
        }
        // Everything is looked at here, so that a slot either is damaged as a whole, and passed over, or can be tried.
        if slot.master_key().is_ok_and(|master| master != MasterKeyId::NONE) && slot.salt_and_wrapped().is_some() {
            Ok(slot)
        } else {
            Err(Error::corrupt(&key, "its fields are not what they must be"))
        }
    }

    fn salt_and_wrapped(&self) -> Option<([u8; 32], [u8; 32 + TAG_LENGTH])> {
        let salt = BASE64.decode(&self.kdf.salt).ok()?.try_into().ok()?;
        Some((salt, BASE64.decode(&self.wrapped).ok()?.try_into().ok()?))
    }

    /// The stored bytes.
    ///
    /// # Panics
    /// Never: a slot is plain data.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).expect("a slot is plain data");
        bytes.push(b'\n');
        bytes
    }

    /// The master key that the slot holds.
    ///
    /// # Errors
    /// `CORRUPT` when the slot names none.
    pub fn master_key(&self) -> Result<MasterKeyId> {
        self.master_key.parse()
    }

    /// Unwraps the master key; `None` when `secret` is not the slot's. Takes as long as scrypt does.
    ///
    /// # Errors
    /// `CORRUPT` when the slot's fields make no sense.
    pub fn unwrap(&self, secret: &Secret) -> Result<Option<MasterKey>> {
        let id: SlotId = self.id.parse()?;
        let damaged = || Error::corrupt(&slot_key(id), "its fields are not what they must be");
        let (salt, wrapped) = self.salt_and_wrapped().ok_or_else(damaged)?;
        let master = self.master_key()?;
        let opened = self.sealer(secret, &salt, id)?.open(0, true, &wrapped).map(Zeroizing::new);
        let secret = opened.and_then(|bytes| <[u8; 32]>::try_from(bytes.as_slice()).ok());
        Ok(secret.map(|secret| MasterKey::from_parts(master, secret)))
    }

    /// Binds the wrapped key to the slot's own id, its kind and the key that it names.
    fn sealer(&self, secret: &Secret, salt: &[u8; 32], id: SlotId) -> Result<Sealer> {
        let params = scrypt::Params::new(self.kdf.log_n, self.kdf.r, self.kdf.p)
            .map_err(|_| Error::corrupt(&slot_key(id), "its scrypt parameters are out of bounds"))?;
        let mut wrapping = Zeroizing::new([0; 32]);
        scrypt::scrypt(secret.expose().as_bytes(), salt, &params, wrapping.as_mut())
            .map_err(|_| Error::corrupt(&slot_key(id), "its scrypt parameters are out of bounds"))?;
        let key = MasterKey::from_parts(self.master_key()?, *wrapping);
        let kind = serde_json::to_value(self.kind).ok().and_then(|kind| kind.as_str().map(str::to_owned));
        let name = format!("{}\n{}", slot_key(id), kind.unwrap_or_default());
        Ok(Sealer::with_header(&key, Header { role: Role::Slot, master_key: key.id, salt: *salt }, &name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quick_slot(secret: &str) -> (SlotId, Slot, MasterKey) {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let (id, slot) =
            Slot::wrap_with(&key, SlotKind::Passphrase, &Secret::new(secret), SlotId([3; 16]), [4; 32], 4).unwrap();
        (id, slot, key)
    }

    /// Computed by the second implementation in Python that `docs/format.md` describes.
    #[test]
    fn wrapping_gives_the_known_answer() {
        let (_, slot, _) = quick_slot("correct horse");
        assert_eq!(slot.wrapped, "u3PpqdY/y/UElv9ke2Q6xPNPsWkIDtZcwaS52o8lpYGj+/Filj5hj2M3QeUYxZg8");
    }

    #[test]
    fn a_slot_opens_with_its_secret_and_no_other() {
        let (id, slot, key) = quick_slot("correct horse");
        let stored = Slot::parse(&slot.to_bytes(), id).unwrap();
        let opened = stored.unwrap(&Secret::new("correct horse")).unwrap().unwrap();
        assert_eq!((opened.id, opened.secret()), (key.id, key.secret()));
        assert!(stored.unwrap(&Secret::new("correct hors")).unwrap().is_none());
    }

    #[test]
    fn a_slot_is_bound_to_its_id_kind_and_master_key() {
        let (id, slot, _) = quick_slot("s");
        let swap = |from: &str, to: &str| {
            let text = String::from_utf8(slot.to_bytes()).unwrap();
            assert!(text.contains(from));
            Slot::parse(text.replace(from, to).as_bytes(), id).and_then(|slot| slot.unwrap(&Secret::new("s")))
        };
        assert!(swap("passphrase", "application-key").unwrap().is_none());
        assert!(swap(&MasterKeyId([1; 16]).to_string(), &MasterKeyId([9; 16]).to_string()).unwrap().is_none());
        assert!(swap(&id.to_string(), &SlotId([9; 16]).to_string()).is_err());
    }

    /// Such a slot used to pass for a sound one until it was tried, and then kept all others from being tried.
    #[test]
    fn a_slot_whose_fields_make_no_sense_is_damaged_as_a_whole() {
        let (id, slot, _) = quick_slot("s");
        let changes: [fn(&mut Slot); 6] = [
            |slot| slot.master_key.insert(0, 'x'),
            |slot| slot.master_key = MasterKeyId::NONE.to_string(),
            |slot| slot.kdf.salt.insert(0, '!'),
            |slot| slot.kdf.salt = BASE64.encode([4; 31]),
            |slot| slot.wrapped.insert(0, '!'),
            |slot| slot.wrapped = BASE64.encode([0; 49]),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut slot = slot.clone();
            change(&mut slot);
            assert!(Slot::parse(&slot.to_bytes(), id).is_err(), "change {number}");
        }
    }

    #[test]
    fn absurd_scrypt_parameters_are_refused_before_they_are_used() {
        let (id, slot, _) = quick_slot("s");
        for (from, to) in
            [("\"logN\": 4", "\"logN\": 63"), ("\"r\": 8", "\"r\": 4000000000"), ("\"p\": 1", "\"p\": 4000")]
        {
            let text = String::from_utf8(slot.to_bytes()).unwrap();
            assert!(text.contains(from), "{text}");
            assert!(Slot::parse(text.replace(from, to).as_bytes(), id).is_err(), "{to}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Slot::parse(&bytes, SlotId([3; 16]));
        }

        #[test]
        fn a_changed_byte_opens_as_the_same_key_or_not_at_all(at in any::<proptest::sample::Index>(), byte in 32u8..127) {
            let (id, slot, key) = quick_slot("s");
            let mut bytes = slot.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(slot) = Slot::parse(&bytes, id)
                && let Some(opened) = slot.unwrap(&Secret::new("s")).unwrap()
            {
                prop_assert_eq!((opened.id, opened.secret()), (key.id, key.secret()));
            }
        }
    }
}
