//! Files as 0.1.x encrypted them, opened piece by piece.
//!
//! One file is one AES-256-GCM message (NIST SP 800-38D) without associated data, under a key that scrypt makes of the
//! application key and the file's own salt. The `aes-gcm` crate wants a message whole in memory; a file of gigabytes must
//! not be. So the same crates that it is made of (AES, counter mode, GHASH) are put together here, and the tests hold the
//! result against it. What comes out is worth nothing until [`Opener::finish`] has said that the tag fits.

use aes::Aes256;
use aes::cipher::{KeyInit, KeyIvInit, StreamCipher};
use ctr::Ctr32BE;
use ghash::GHash;
use ghash::universal_hash::UniversalHash;
use zeroize::Zeroizing;

use crate::config::Secret;
use crate::error::{Code, Error, Result};

/// Bytes before the ciphertext: magic, salt, nonce, tag.
pub const HEADER_LENGTH: usize = 64;
/// The longest message that GCM allows, in bytes (SP 800-38D, section 5.2.1.1).
pub const MAX_CONTENT: u64 = (1 << 36) - 32;

const MAGIC: &[u8; 4] = b"B2EN";
const BLOCK: usize = 16;
/// scrypt as 0.1.x has it: N = 2^14, r = 8, p = 1.
const LOG_N: u8 = 14;
const R: u32 = 8;
const P: u32 = 1;

/// How an encrypted file starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    salt: [u8; 32],
    nonce: [u8; 12],
    tag: [u8; BLOCK],
}

impl Header {
    /// The header at the start of `object`; `None` when it is not encrypted. Shorter objects never are: that is the rule
    /// of 0.1.x.
    #[must_use]
    pub fn parse(object: &[u8]) -> Option<Self> {
        let (header, _) = object.split_first_chunk::<HEADER_LENGTH>()?;
        let rest = header.strip_prefix(MAGIC)?;
        let (salt, rest) = rest.split_first_chunk()?;
        let (nonce, rest) = rest.split_first_chunk()?;
        let (tag, _) = rest.split_first_chunk()?;
        Some(Self { salt: *salt, nonce: *nonce, tag: *tag })
    }
}

/// Decrypts one file and finds out whether it is what was encrypted.
pub struct Opener {
    stream: Ctr32BE<Aes256>,
    hash: GHash,
    /// The end of the ciphertext so far that does not fill a block.
    rest: Vec<u8>,
    length: u64,
    tag: [u8; BLOCK],
    /// The first block of the key stream, which covers the tag.
    mask: [u8; BLOCK],
}

impl Opener {
    /// Takes as long as scrypt does, about 20 ms, and 16 MiB meanwhile.
    ///
    /// # Errors
    /// `IO` when scrypt refuses its parameters, which are constants.
    pub fn new(header: &Header, application_key: &Secret) -> Result<Self> {
        let failed = |_| Error::new(Code::Io, "internal error: scrypt refuses the parameters of 0.1.x");
        let params = scrypt::Params::new(LOG_N, R, P).map_err(failed)?;
        let mut key = Zeroizing::new([0; 32]);
        scrypt::scrypt(application_key.expose().as_bytes(), &header.salt, &params, key.as_mut())
            .map_err(|_| Error::new(Code::Io, "internal error: scrypt refuses the length of a key"))?;
        // The counter starts at 1; that block covers the tag, and the content begins with the next (section 7.2).
        let mut counter = [0; BLOCK];
        counter[..12].copy_from_slice(&header.nonce);
        counter[15] = 1;
        let mut stream = Ctr32BE::<Aes256>::new((&*key).into(), &counter.into());
        let mut mask = [0; BLOCK];
        stream.apply_keystream(&mut mask);
        let mut hash_key = Zeroizing::new([0; BLOCK]);
        aes::cipher::BlockCipherEncrypt::encrypt_block(
            &<Aes256 as KeyInit>::new((&*key).into()),
            (&mut *hash_key).into(),
        );
        let hash = GHash::new((&*hash_key).into());
        Ok(Self { stream, hash, rest: Vec::with_capacity(BLOCK), length: 0, tag: header.tag, mask })
    }

    /// Decrypts the next piece of the ciphertext in place. Pieces may have any length.
    pub fn update(&mut self, piece: &mut [u8]) {
        self.length += piece.len() as u64;
        let missing = if self.rest.is_empty() { 0 } else { (BLOCK - self.rest.len()).min(piece.len()) };
        let (start, blocks) = piece.split_at(missing);
        self.rest.extend_from_slice(start);
        if self.rest.len() == BLOCK {
            self.hash.update_padded(&self.rest);
            self.rest.clear();
        }
        let (blocks, rest) = blocks.split_at(blocks.len() - blocks.len() % BLOCK);
        self.hash.update_padded(blocks);
        self.rest.extend_from_slice(rest);
        self.stream.apply_keystream(piece);
    }

    /// Whether all that was decrypted is what was encrypted with this key.
    #[must_use]
    pub fn finish(mut self) -> bool {
        self.hash.update_padded(&self.rest);
        // The lengths in bits of the associated data, of which there is none, and of the ciphertext.
        let mut lengths = [0; BLOCK];
        lengths[8..].copy_from_slice(&(self.length * 8).to_be_bytes());
        self.hash.update_padded(&lengths);
        for (byte, mask) in self.tag.iter_mut().zip(self.mask) {
            *byte ^= mask;
        }
        self.length <= MAX_CONTENT && self.hash.verify(&self.tag.into()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use aes_gcm::aead::AeadInOut;
    use aes_gcm::{Aes256Gcm, Nonce};
    use proptest::prelude::*;

    use super::super::super::id::unhex;
    use super::*;

    fn secret() -> Secret {
        Secret::new("K005-key-of-a-test")
    }

    /// What 0.1.x would store.
    fn encrypt(content: &[u8], salt: [u8; 32], nonce: [u8; 12]) -> Vec<u8> {
        let mut key = [0; 32];
        let params = scrypt::Params::new(LOG_N, R, P).unwrap();
        scrypt::scrypt(secret().expose().as_bytes(), &salt, &params, &mut key).unwrap();
        let mut ciphertext = content.to_vec();
        let cipher = <Aes256Gcm as aes_gcm::KeyInit>::new(&key.into());
        let tag = cipher.encrypt_inout_detached(&Nonce::from(nonce), b"", ciphertext.as_mut_slice().into()).unwrap();
        [&MAGIC[..], &salt, &nonce, &tag, &ciphertext].concat()
    }

    fn open(object: &[u8], secret: &Secret, pieces: &[usize]) -> Option<Vec<u8>> {
        let mut opener = Opener::new(&Header::parse(object)?, secret).unwrap();
        let mut content = object[HEADER_LENGTH..].to_vec();
        let (mut rest, mut pieces) = (&mut content[..], pieces.iter().cycle());
        while !rest.is_empty() {
            let length = rest.len().min(*pieces.next().unwrap());
            let (piece, after) = rest.split_at_mut(length);
            opener.update(piece);
            rest = after;
        }
        opener.finish().then_some(content)
    }

    /// Made with node:crypto by the steps that the issue and the source of 0.1.x give.
    #[test]
    fn a_known_file_opens() {
        let known = "4232454e0707070707070707070707070707070707070707070707070707070707070707090909090909090909090909\
                     106d29d11e0d9ef1ed3d78e75912a72efb367212ddaa4ae509a4dac825e40ebbe275c1f2ffe11daf16cf826c9a7fadaf72";
        let object = unhex::<97>(known).unwrap();
        assert_eq!(open(&object, &secret(), &[5]).as_deref(), Some(&b"attack at dawn, and again at dusk"[..]));
    }

    #[test]
    fn another_key_and_any_changed_bit_are_found_out() {
        let object = encrypt(b"seventeen bytes..", [1; 32], [2; 12]);
        assert!(open(&object, &secret(), &[100]).is_some());
        assert!(open(&object, &Secret::new("another key"), &[100]).is_none());
        // Of the salt, the nonce, the tag, the content; and what is cut or appended.
        for at in [4, 40, 60, 64, object.len() - 1] {
            let mut changed = object.clone();
            changed[at] ^= 1;
            assert!(open(&changed, &secret(), &[100]).is_none(), "{at}");
        }
        assert!(open(&object[..object.len() - 1], &secret(), &[100]).is_none());
        assert!(open(&[&object[..], &[0]].concat(), &secret(), &[100]).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))] // each case takes two runs of scrypt

        #[test]
        fn it_opens_what_the_one_shot_crate_seals_in_pieces_of_any_length(
            content in prop::collection::vec(any::<u8>(), 0..400),
            pieces in prop::collection::vec(1usize..70, 1..6),
            salt in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(),
        ) {
            prop_assert_eq!(open(&encrypt(&content, salt, nonce), &secret(), &pieces), Some(content));
        }
    }

    proptest! {
        #[test]
        fn a_header_is_read_byte_by_byte_or_not_at_all(
            magic in prop::sample::select(vec![*b"B2EN", *b"b2en", *b"B2E\0"]),
            rest in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let object = [&magic[..], &rest].concat();
            let header = Header::parse(&object);
            prop_assert_eq!(header.is_some(), magic == *MAGIC && object.len() >= HEADER_LENGTH);
            if let Some(Header { salt, nonce, tag }) = header {
                prop_assert_eq!([&MAGIC[..], &salt, &nonce, &tag].concat(), &object[..HEADER_LENGTH]);
            }
        }
    }
}
