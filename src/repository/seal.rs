//! How stored bytes are protected: AES-256-GCM under a key that is derived for one object alone.
//!
//! Every object starts with a 56-byte [`Header`] that names its role, its master key and a fresh random salt. The
//! object's key is HKDF-SHA-256 of the master key and that salt. What authenticates each sealed part is the header and
//! the object's own name, so that nothing can be swapped between objects, moved from another repository or turned from
//! sealed into plain. In an unencrypted repository the same layout carries a 16-byte checksum in place of the tag: it
//! finds damage, not malice.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::id::{ChunkId, MasterKeyId, random};
use crate::error::{Error, Result};

/// Bytes that sealing adds to a part.
pub const TAG_LENGTH: usize = 16;
/// Bytes of an object's header.
pub const HEADER_LENGTH: usize = 56;

const MAGIC: &[u8; 4] = b"OB2B";
const FORMAT_VERSION: u8 = 1;
/// Separates this format's derived keys from every other use of the same master key, and from later versions.
const OBJECT_KEY_INFO: &[u8] = b"openclaw-b2-backup/1 object";
const CHUNK_ID_INFO: &[u8] = b"openclaw-b2-backup/1 chunk id";
const FINGERPRINT_INFO: &[u8] = b"openclaw-b2-backup/1 local fingerprint";
const RETIREMENT_INFO: &[u8] = b"openclaw-b2-backup/1 retired by ";
const SLOT_INFO: &[u8] = b"openclaw-b2-backup/1 slot ";
const GEAR_INFO: &[u8] = b"openclaw-b2-backup/1 chunk boundaries";
/// BLAKE3's context for the checksum of unencrypted objects.
const CHECKSUM_CONTEXT: &str = "openclaw-b2-backup/1 checksum of a plain object";

/// What an object is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// Frames of chunks.
    Pack = 1,
    /// Where chunks are.
    Index = 2,
    /// A snapshot's manifest.
    Manifest = 3,
    /// A key slot: the master key, wrapped.
    Slot = 4,
    /// The mark of a removed key slot, with what the slot was.
    Removal = 5,
    /// What was stored before encryption was turned on.
    PlainList = 6,
}

/// A repository's master key: everything else is derived from it. Wiped when dropped.
#[derive(Clone)]
pub struct MasterKey {
    /// Its public name.
    pub id: MasterKeyId,
    secret: Option<Zeroizing<[u8; 32]>>,
}

impl MasterKey {
    /// What stands for the key in an unencrypted repository.
    pub const PLAIN: &'static Self = &Self::plain();

    /// A new random key.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn generate() -> Result<Self> {
        Ok(Self::from_parts(MasterKeyId(random()?), random()?))
    }

    /// A key known from its slot.
    #[must_use]
    pub fn from_parts(id: MasterKeyId, secret: [u8; 32]) -> Self {
        Self { id, secret: Some(Zeroizing::new(secret)) }
    }

    /// What stands for the key in an unencrypted repository.
    #[must_use]
    pub const fn plain() -> Self {
        Self { id: MasterKeyId::NONE, secret: None }
    }

    /// The secret bytes, for wrapping; `None` in an unencrypted repository.
    #[must_use]
    pub fn secret(&self) -> Option<&[u8; 32]> {
        self.secret.as_deref()
    }

    fn derive<const N: usize>(&self, salt: &[u8], info: &[u8]) -> Zeroizing<[u8; N]> {
        let mut output = Zeroizing::new([0; N]);
        let secret = self.secret().unwrap_or(&[0; 32]);
        Hkdf::<Sha256>::new(Some(salt), secret).expand(info, output.as_mut()).expect("N is below HKDF's 8160 bytes");
        output
    }

    /// What proves to everybody who holds this key that `successor` takes its place: nobody else can make it.
    #[must_use]
    pub fn retirement(&self, successor: MasterKeyId) -> [u8; 32] {
        *self.derive(b"", &[RETIREMENT_INFO, &successor.0].concat())
    }

    /// What proves to everybody who holds this key that a slot of that name was made by one who does.
    #[must_use]
    pub fn slot_proof(&self, name: &str) -> [u8; 32] {
        *self.derive(b"", &[SLOT_INFO, name.as_bytes()].concat())
    }

    /// Tells texts apart for the local cache, and says nothing of them to whoever lacks the key.
    #[must_use]
    pub fn fingerprint(&self, text: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.derive(b"", FINGERPRINT_INFO), text).as_bytes()
    }

    /// What names chunks.
    #[must_use]
    pub fn chunk_hasher(&self) -> ChunkHasher {
        ChunkHasher(self.derive(b"", CHUNK_ID_INFO))
    }

    /// The random table that decides where chunks end: with a table of its own, a repository's chunk lengths say
    /// nothing about known files.
    #[must_use]
    pub fn gear(&self) -> Box<[u64; 256]> {
        let seed = self.derive::<32>(b"", GEAR_INFO);
        let mut bytes = [0; 2048];
        blake3::Hasher::new_keyed(&seed).finalize_xof().fill(&mut bytes);
        let mut table = Box::new([0; 256]);
        for (value, bytes) in table.iter_mut().zip(bytes.chunks_exact(8)) {
            *value = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        table
    }
}

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterKey({})", self.id)
    }
}

/// Names chunks: keyed BLAKE3, so that a name tells nothing of the content to whoever lacks the key.
#[derive(Clone)]
pub struct ChunkHasher(Zeroizing<[u8; 32]>);

impl ChunkHasher {
    /// The id of a chunk with this content.
    #[must_use]
    pub fn id(&self, content: &[u8]) -> ChunkId {
        let hash = blake3::keyed_hash(&self.0, content);
        let mut id = [0; 16];
        id.copy_from_slice(&hash.as_bytes()[..16]);
        ChunkId(id)
    }
}

impl std::fmt::Debug for ChunkHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ChunkHasher")
    }
}

/// The first 56 bytes of an object, also the start of what authenticates its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the object is for.
    pub role: Role,
    /// Whose key seals it; [`MasterKeyId::NONE`] in an unencrypted repository.
    pub master_key: MasterKeyId,
    /// Fresh for each object.
    pub salt: [u8; 32],
}

impl Header {
    /// Whether stored bytes begin with a header that names no master key.
    #[must_use]
    pub fn is_plain(stored: &[u8]) -> bool {
        stored.get(8..24) == Some(&MasterKeyId::NONE.0[..])
    }

    /// The stored bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = FORMAT_VERSION;
        bytes[5] = self.role as u8;
        bytes[6] = u8::from(self.master_key != MasterKeyId::NONE);
        bytes[8..24].copy_from_slice(&self.master_key.0);
        bytes[24..].copy_from_slice(&self.salt);
        bytes
    }

    /// Reads the header of the object `key`, which must have the given role.
    ///
    /// # Errors
    /// `CORRUPT` naming what does not fit.
    pub fn parse(bytes: &[u8], role: Role, key: &str) -> Result<Self> {
        let bytes: &[u8; HEADER_LENGTH] = bytes
            .get(..HEADER_LENGTH)
            .and_then(|start| start.try_into().ok())
            .ok_or_else(|| Error::corrupt(key, "it is shorter than a header"))?;
        if &bytes[..4] != MAGIC {
            return Err(Error::corrupt(key, "it does not start like an object of this format"));
        }
        if bytes[4] != FORMAT_VERSION {
            return Err(Error::corrupt(key, format!("format version {} is unknown to this version", bytes[4]))
                .advise("update openclaw-b2-backup"));
        }
        let header = Self {
            role,
            master_key: MasterKeyId(bytes[8..24].try_into().expect("16 bytes")),
            salt: bytes[24..].try_into().expect("32 bytes"),
        };
        if header.to_bytes() == *bytes { Ok(header) } else { Err(Error::corrupt(key, "its header contradicts itself")) }
    }
}

/// Seals and opens the parts of one object.
pub struct Sealer {
    header: Header,
    associated_data: Vec<u8>,
    cipher: Option<Aes256Gcm>,
}

impl Sealer {
    /// For a new object under `name`, with a fresh salt.
    ///
    /// `name` is what the parts are bound to: the object's key, and for a manifest also its plain header.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn new(key: &MasterKey, role: Role, name: &str) -> Result<Self> {
        let salt = if key.secret().is_some() { random()? } else { [0; 32] };
        Ok(Self::with_header(key, Header { role, master_key: key.id, salt }, name))
    }

    /// For an object that exists; `key` must be the one that the header names.
    #[must_use]
    pub fn with_header(key: &MasterKey, header: Header, name: &str) -> Self {
        let mut associated_data = header.to_bytes().to_vec();
        associated_data.extend_from_slice(name.as_bytes());
        let cipher = key.secret().is_some().then(|| {
            let object_key = key.derive::<32>(&header.salt, OBJECT_KEY_INFO);
            Aes256Gcm::new((&*object_key).into())
        });
        Self { header, associated_data, cipher }
    }

    /// The object's header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Seals `part` in place and appends the tag. `number` counts an object's parts from 0, and `last` is set for the
    /// final one alone: parts can be neither dropped, repeated nor put in another order.
    ///
    /// # Panics
    /// Never for parts below AES-GCM's limit of 64 GiB.
    pub fn seal(&self, number: u64, last: bool, part: &mut Vec<u8>) {
        let nonce = nonce(number, last);
        let tag: [u8; TAG_LENGTH] = match &self.cipher {
            Some(cipher) => cipher
                .encrypt_inout_detached(&Nonce::from(nonce), &self.associated_data, part.as_mut_slice().into())
                .expect("parts are far below 64 GiB")
                .into(),
            None => self.checksum(nonce, part),
        };
        part.extend_from_slice(&tag);
    }

    /// Opens a sealed part; gives `None` when it is not what was sealed.
    #[must_use]
    pub fn open(&self, number: u64, last: bool, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut content = sealed.to_vec();
        let length = self.open_in_place(number, last, &mut content)?.len();
        content.truncate(length);
        Some(content)
    }

    /// [`Sealer::open`] where the sealed bytes are. What is there after a `None` means nothing.
    #[must_use]
    pub fn open_in_place<'s>(&self, number: u64, last: bool, sealed: &'s mut [u8]) -> Option<&'s [u8]> {
        let (content, tag) = sealed.split_at_mut_checked(sealed.len().checked_sub(TAG_LENGTH)?)?;
        let tag: [u8; TAG_LENGTH] = (&*tag).try_into().ok()?;
        let nonce = nonce(number, last);
        match &self.cipher {
            Some(cipher) => cipher
                .decrypt_inout_detached(&Nonce::from(nonce), &self.associated_data, (&mut *content).into(), &tag.into())
                .ok()?,
            None if self.checksum(nonce, content) == tag => {}
            None => return None,
        }
        Some(content)
    }

    fn checksum(&self, nonce: [u8; 12], content: &[u8]) -> [u8; TAG_LENGTH] {
        let mut hasher = blake3::Hasher::new_derive_key(CHECKSUM_CONTEXT);
        hasher.update(&nonce);
        hasher.update(&(self.associated_data.len() as u64).to_le_bytes());
        hasher.update(&self.associated_data);
        hasher.update(content);
        let mut checksum = [0; TAG_LENGTH];
        checksum.copy_from_slice(&hasher.finalize().as_bytes()[..TAG_LENGTH]);
        checksum
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Three zero bytes, a byte that is 1 for the last part, and the part's number, big-endian. It may repeat between
/// objects: each has a key of its own.
fn nonce(number: u64, last: bool) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[3] = u8::from(last);
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce
}

/// Opens an object that [`seal_object`] made; `key` finds a master key by the header.
///
/// # Errors
/// `CORRUPT` when it is not what was sealed, and what `key` gives.
pub fn open_object<'k>(
    stored: &[u8],
    role: Role,
    name: &str,
    key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
) -> Result<Vec<u8>> {
    let header = Header::parse(stored, role, name)?;
    Sealer::with_header(key(&header, name)?, header, name)
        .open(0, true, &stored[HEADER_LENGTH..])
        .ok_or_else(|| Error::corrupt(name, "it was cut, or its bytes were changed"))
}

/// Seals `content` as the only part of a new object.
///
/// # Errors
/// `IO` when there are no random numbers.
pub fn seal_object(key: &MasterKey, role: Role, name: &str, mut content: Vec<u8>) -> Result<Vec<u8>> {
    let sealer = Sealer::new(key, role, name)?;
    sealer.seal(0, true, &mut content);
    let mut object = sealer.header().to_bytes().to_vec();
    object.append(&mut content);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::super::id::hex;
    use super::*;
    use proptest::prelude::*;

    fn known_key() -> MasterKey {
        MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32])
    }

    fn known_sealer(key: &MasterKey) -> Sealer {
        let salt = if key.secret().is_some() { [0x33; 32] } else { [0; 32] };
        Sealer::with_header(key, Header { role: Role::Pack, master_key: key.id, salt }, "packs/aa/bb")
    }

    /// Known answers, computed once with Python's `cryptography` and `blake3` (see `docs/format.md`).
    #[test]
    fn derivation_and_sealing_give_the_known_answers() {
        let key = known_key();
        let mut part = b"attack at dawn".to_vec();
        known_sealer(&key).seal(7, true, &mut part);
        assert_eq!(hex(&part), "eb4ad29c37324d4570a9a0f6548d2aa6b5dc01006537abcb1e6d193817e2");
        assert_eq!(key.chunk_hasher().id(b"attack at dawn").to_string(), "845de10b912fa38fe25a452db42628a9");
        assert_eq!(format!("{:016x}", key.gear()[255]), "c0ff49bda5e73afe");
        let mut part = b"attack at dawn".to_vec();
        known_sealer(&MasterKey::plain()).seal(7, true, &mut part);
        assert_eq!(hex(&part), "61747461636b206174206461776ee598aa5c60184672372945f895bc166e");
        assert_eq!(
            hex(&key.retirement(MasterKeyId([0x44; 16]))),
            "0f8b97d970f0a26291a8ffc69ec2ee05d6467bc02f65fee1a30e3c8bf041bbc7"
        );
        let header = known_sealer(&key).header().to_bytes();
        let start = ["4f42324201010100", &"11".repeat(16)].concat();
        assert_eq!(hex(&header), [start, "33".repeat(32)].concat());
    }

    #[test]
    fn a_part_opens_only_as_what_it_was_sealed() {
        for key in [known_key(), MasterKey::plain()] {
            let sealer = known_sealer(&key);
            let mut part = b"content".to_vec();
            sealer.seal(1, false, &mut part);
            assert_eq!(sealer.open(1, false, &part).unwrap(), b"content");
            assert!(sealer.open(0, false, &part).is_none(), "another number");
            assert!(sealer.open(1, true, &part).is_none(), "another end");
            let elsewhere = Sealer::with_header(&key, sealer.header().clone(), "packs/aa/cc");
            assert!(elsewhere.open(1, false, &part).is_none(), "another name");
            for bit in 0..part.len() * 8 {
                let mut flipped = part.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(sealer.open(1, false, &flipped).is_none(), "bit {bit}");
            }
            for length in 0..part.len() {
                assert!(sealer.open(1, false, &part[..length]).is_none(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_header_reads_back_and_nothing_else_passes_for_one() {
        let header = Header { role: Role::Index, master_key: MasterKeyId([7; 16]), salt: [9; 32] };
        let bytes = header.to_bytes();
        assert_eq!(Header::parse(&bytes, Role::Index, "k").unwrap(), header);
        assert!(Header::parse(&bytes, Role::Pack, "k").is_err());
        for byte in 0..8 {
            let mut changed = bytes;
            changed[byte] ^= 0x40;
            assert!(Header::parse(&changed, Role::Index, "k").is_err(), "byte {byte}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_for_a_header_is_written_the_same(
            role in prop::sample::select(vec![Role::Pack, Role::Index, Role::Manifest, Role::Slot, Role::Removal, Role::PlainList]),
            start in prop::sample::select(vec![vec![], b"OB2B".to_vec(), b"OB2B\x01\x02\x01\0".to_vec(), b"OB2B\x01\x02\0\0".to_vec()]),
            rest in prop::collection::vec(prop::sample::select(vec![0, 0, 0, 1, 2, 255]), 0..80),
        ) {
            let bytes = [start, rest].concat();
            if let Ok(header) = Header::parse(&bytes, role, "k") {
                prop_assert_eq!(&header.to_bytes()[..], &bytes[..HEADER_LENGTH]);
            }
        }

        #[test]
        fn no_bytes_open_that_were_not_sealed(
            sealed in prop::collection::vec(any::<u8>(), 0..100), number in any::<u64>(), last in any::<bool>(),
        ) {
            for key in [known_key(), MasterKey::plain()] {
                prop_assert!(known_sealer(&key).open(number, last, &sealed).is_none());
            }
        }
    }
}
