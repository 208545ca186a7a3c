//! Key slots: the master key, wrapped under something the owner knows or has.
//!
//! Each slot is an object of its own (`keys/<id>.json`), so that adding or removing one rewrites nothing. The wrapping
//! key comes from scrypt with parameters that the slot names; they are checked before any memory is spent on them.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::id::{MasterKeyId, SlotId, hex, random};
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
    /// A random code that the owner keeps on paper.
    RecoveryCode,
}

impl SlotKind {
    /// The stored spelling, for example `key-file`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApplicationKey => "application-key",
            Self::Passphrase => "passphrase",
            Self::KeyFile => "key-file",
            Self::RecoveryCode => "recovery-code",
        }
    }

    /// Whether it is a secret of the owner's that is configured so that it opens the repository, and for nothing else.
    #[must_use]
    pub const fn is_configured_to_open(self) -> bool {
        matches!(self, Self::Passphrase | Self::KeyFile)
    }

    /// `log2(N)` of scrypt for new slots; r = 8 and p = 1 always (RFC 7914, section 2).
    ///
    /// An application key is random (B2: 31 base64 characters), and so are a key file and a recovery code, so that N = 2^14 (16 MiB, about 20 ms) is only there
    /// to slow a search down further. A passphrase is chosen by a person: N = 2^17 (128 MiB), as OWASP's password
    /// storage cheat sheet advises.
    const fn log_n(self) -> u8 {
        match self {
            Self::ApplicationKey | Self::KeyFile | Self::RecoveryCode => 14,
            Self::Passphrase => 17,
        }
    }
}

/// The fewest bytes of a key file that opens a new slot: 128 bits, if they are random.
const MIN_KEY_FILE: usize = 16;

/// Refuses a secret that a search would find: whoever can read the bucket can try as many as they like.
///
/// A passphrase must be worth 10^10 guesses by zxcvbn's estimate (Wheeler, USENIX Security 2016; its score 4, "strong
/// protection from offline slow-hash scenario"). Random secrets are not looked at, but for the length of a key file.
fn check_strength(kind: SlotKind, secret: &Secret) -> Result<()> {
    match kind {
        SlotKind::Passphrase => {
            let estimate = zxcvbn::zxcvbn(secret.expose(), &["openclaw", "backblaze", "backup"]);
            if estimate.score() == zxcvbn::Score::Four {
                return Ok(());
            }
            // Its words, but not the part of the passphrase that they are about.
            let warning = estimate.feedback().and_then(zxcvbn::feedback::Feedback::warning);
            let reason = warning.map_or_else(String::new, |warning| {
                let warning = warning.to_string();
                format!(" ({})", warning.trim_end_matches('.'))
            });
            let guesses = estimate.guesses_log10().max(0.0).floor();
            let problem =
                format!("is too weak: it would be found after about 10^{guesses} guesses, less than 10^10{reason}");
            Err(Error::config("passphrase", problem).advise("take five or more words that nothing connects"))
        }
        // Three bytes are four characters of base64.
        SlotKind::KeyFile if secret.expose().trim_end_matches('=').len() * 3 / 4 < MIN_KEY_FILE => {
            Err(Error::config("keyFile", format!("has less than {MIN_KEY_FILE} bytes"))
                .advise("make one with `openssl rand -out <file> 32`"))
        }
        _ => Ok(()),
    }
}

/// The largest scrypt work that a slot may ask for: twice that of a passphrase, which is 256 MiB of memory, or so often a part of
/// that.
const MAX_SCRYPT_WORK: u64 = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Kdf {
    name: String,
    log_n: u8,
    r: u32,
    p: u32,
    salt: String,
}

/// What a slot says of an older master key: that its own takes the older one's place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retirement {
    master_key: String,
    proof: String,
}

impl Retirement {
    /// That `key` is retired by `successor`.
    #[must_use]
    pub fn new(key: &MasterKey, successor: MasterKeyId) -> Self {
        Self { master_key: key.id.to_string(), proof: hex(&key.retirement(successor)) }
    }

    /// Whether it is true that `key` is retired by `successor`.
    fn holds_for(&self, key: &MasterKey, successor: MasterKeyId) -> bool {
        *self == Self::new(key, successor)
    }
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
    /// Which master keys the slot's own takes the place of; one that was not rotated has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    retires: Vec<Retirement>,
    /// That it was made by one who holds the master key, be its secret known or not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    proof: String,
}

/// The key of the object that holds the slot.
#[must_use]
pub fn slot_key(id: SlotId) -> String {
    format!("keys/{id}.json")
}

impl Slot {
    /// Wraps `key`, which `retires` others, under `secret` in a new slot. Takes as long as scrypt does; not for an event
    /// loop.
    ///
    /// # Errors
    /// `CONFIG` when the secret is too weak, `IO` when there are no random numbers.
    ///
    /// # Panics
    /// When `key` is that of an unencrypted repository.
    pub fn wrap(key: &MasterKey, retires: Vec<Retirement>, kind: SlotKind, secret: &Secret) -> Result<(SlotId, Self)> {
        check_strength(kind, secret)?;
        let kdf = Kdf { name: "scrypt".into(), log_n: kind.log_n(), r: 8, p: 1, salt: BASE64.encode(random::<32>()?) };
        Self::wrap_with(key, retires, kind, secret, SlotId(random()?), kdf)
    }

    fn wrap_with(
        key: &MasterKey,
        retires: Vec<Retirement>,
        kind: SlotKind,
        secret: &Secret,
        id: SlotId,
        kdf: Kdf,
    ) -> Result<(SlotId, Self)> {
        let mut slot = Self {
            format: 1,
            id: id.to_string(),
            master_key: key.id.to_string(),
            kind,
            kdf,
            wrapped: String::new(),
            retires,
            proof: String::new(),
        };
        slot.proof = hex(&key.slot_proof(&slot.name(id)));
        let salt = slot.salt().ok_or_else(|| Error::corrupt(&slot_key(id), "its salt is no salt"))?;
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
            || memory.is_none_or(|memory| memory * u64::from(p) > MAX_SCRYPT_WORK)
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

    fn salt(&self) -> Option<[u8; 32]> {
        BASE64.decode(&self.kdf.salt).ok()?.try_into().ok()
    }

    fn salt_and_wrapped(&self) -> Option<([u8; 32], [u8; 32 + TAG_LENGTH])> {
        Some((self.salt()?, BASE64.decode(&self.wrapped).ok()?.try_into().ok()?))
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

    /// Whether it proves that the slot's master key takes the place of `key`.
    #[must_use]
    pub fn retires_key(&self, key: &MasterKey) -> bool {
        self.master_key().is_ok_and(|own| self.retires.iter().any(|retirement| retirement.holds_for(key, own)))
    }

    /// Whether somebody made it who holds `key`, which is the slot's master key.
    #[must_use]
    pub fn is_proven_by(&self, key: &MasterKey) -> bool {
        let id = self.id.parse().ok().filter(|_| self.master_key().is_ok_and(|own| own == key.id));
        id.is_some_and(|id| self.proof == hex(&key.slot_proof(&self.name(id))))
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

    /// Binds the wrapped key to the slot's own id, its kind, the key that it names and those that it retires.
    fn sealer(&self, secret: &Secret, salt: &[u8; 32], id: SlotId) -> Result<Sealer> {
        let params = scrypt::Params::new(self.kdf.log_n, self.kdf.r, self.kdf.p)
            .map_err(|_| Error::corrupt(&slot_key(id), "its scrypt parameters are out of bounds"))?;
        let mut wrapping = Zeroizing::new([0; 32]);
        scrypt::scrypt(secret.expose().as_bytes(), salt, &params, wrapping.as_mut())
            .map_err(|_| Error::corrupt(&slot_key(id), "its scrypt parameters are out of bounds"))?;
        let key = MasterKey::from_parts(self.master_key()?, *wrapping);
        let header = Header { role: Role::Slot, master_key: key.id, salt: *salt };
        Ok(Sealer::with_header(&key, header, &self.name(id)))
    }

    /// Everything of it that is in plain and means something.
    fn name(&self, id: SlotId) -> String {
        let mut name = format!("{}\n{}", slot_key(id), self.kind.as_str());
        for Retirement { master_key, proof } in &self.retires {
            write!(name, "\n{master_key} {proof}").expect("writing to a string does not fail");
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quick_slot(secret: &str) -> (SlotId, Slot, MasterKey) {
        let (slot, key) = quick_slot_that_retires(secret, Vec::new());
        (SlotId([3; 16]), slot, key)
    }

    fn quick_slot_that_retires(secret: &str, retires: Vec<Retirement>) -> (Slot, MasterKey) {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let kdf = Kdf { name: "scrypt".into(), log_n: 4, r: 8, p: 1, salt: BASE64.encode([4; 32]) };
        let (kind, secret) = (SlotKind::Passphrase, Secret::new(secret));
        (Slot::wrap_with(&key, retires, kind, &secret, SlotId([3; 16]), kdf).unwrap().1, key)
    }

    #[test]
    fn what_a_slot_retires_cannot_be_taken_from_it() {
        let old = MasterKey::from_parts(MasterKeyId([5; 16]), [6; 32]);
        let retirement = Retirement::new(&old, MasterKeyId([1; 16]));
        let (slot, _) = quick_slot_that_retires("s", vec![retirement.clone()]);
        let stored = Slot::parse(&slot.to_bytes(), SlotId([3; 16])).unwrap();
        assert!(stored.unwrap(&Secret::new("s")).unwrap().is_some());
        assert!(stored.retires[0].holds_for(&old, MasterKeyId([1; 16])));
        assert!(!stored.retires[0].holds_for(&old, MasterKeyId([9; 16])));
        let other = MasterKey::from_parts(MasterKeyId([5; 16]), [7; 32]);
        assert!(!stored.retires[0].holds_for(&other, MasterKeyId([1; 16])));
        for retires in [Vec::new(), vec![retirement.clone(), retirement]] {
            let changed = Slot { retires, ..slot.clone() };
            assert!(changed.unwrap(&Secret::new("s")).unwrap().is_none());
        }
    }

    #[test]
    fn a_kind_is_spelled_as_it_is_stored() {
        for kind in [SlotKind::ApplicationKey, SlotKind::Passphrase, SlotKind::KeyFile, SlotKind::RecoveryCode] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn a_weak_secret_is_refused_with_the_reason_and_without_the_secret() {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let wrap = |kind, secret: &str| Slot::wrap(&key, Vec::new(), kind, &Secret::new(secret));
        for weak in [
            "x",
            "letmein1",
            "hunter2",
            "Tr0ub4dour&3",
            "aaaaaaaaaaaaaaaaaaaaaa",
            "qwertyuiop",
            "19.02.2026",
            "openclaw",
        ] {
            let error = wrap(SlotKind::Passphrase, weak).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.code(), crate::Code::Config);
            assert!(text.starts_with("passphrase: is too weak: it would be found after about 10^"), "{text}");
            assert!(weak.len() == 1 || !text.contains(weak), "{text}");
        }
        assert!(
            wrap(SlotKind::KeyFile, &BASE64.encode([1; 15])).unwrap_err().to_string().contains("less than 16 bytes")
        );
        for length in 16..20 {
            wrap(SlotKind::KeyFile, &BASE64.encode(vec![1; length])).unwrap();
        }
        wrap(SlotKind::Passphrase, "sommer regen wolke tisch").unwrap();
        wrap(SlotKind::ApplicationKey, "x").unwrap();
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
