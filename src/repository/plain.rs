//! What a repository held before encryption was turned on: the manifests and index objects of that moment, by name and
//! hash, in a sealed list. They stay readable, and with them the packs that they lead to; nothing else plain is accepted.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::id::{hex, random, unhex};
use super::seal::{Header, MasterKey, Role, open_object, seal_object};
use crate::error::{Error, Result};

/// The largest list that is read, in bytes: about 100,000 objects.
pub const MAX_PLAIN_LIST: u64 = 16 << 20;

/// Names of plain objects, each with the SHA-256 of its stored bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlainObjects(HashMap<String, [u8; 32]>);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    objects: BTreeMap<String, String>,
}

impl PlainObjects {
    /// Adds an object as it is stored.
    pub fn add(&mut self, name: String, stored: &[u8]) {
        self.0.insert(name, Sha256::digest(stored).into());
    }

    /// Whether an object of that name is on the list, whatever its bytes.
    #[must_use]
    pub fn names(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether the object is on the list with just these bytes.
    #[must_use]
    pub fn holds(&self, name: &str, stored: &[u8]) -> bool {
        self.0.get(name).is_some_and(|hash| *hash == <[u8; 32]>::from(Sha256::digest(stored)))
    }

    /// How many objects are on the list.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes on what another list has. Where both have a name, they were made at the same moment, or one of them by
    /// somebody who changed the object: the first one counts.
    pub fn extend(&mut self, other: Self) {
        for (name, hash) in other.0 {
            self.0.entry(name).or_insert(hash);
        }
    }

    /// The key and the bytes of a new list.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    ///
    /// # Panics
    /// Never: a list is plain data.
    pub fn seal(&self, key: &MasterKey) -> Result<(String, Vec<u8>)> {
        let name = format!("plain/{}", hex(&random::<16>()?));
        let objects = self.0.iter().map(|(name, hash)| (name.clone(), hex(hash))).collect();
        let body = serde_json::to_vec(&Stored { objects }).expect("a list is plain data");
        let sealed = seal_object(key, Role::PlainList, &name, body)?;
        Ok((name, sealed))
    }

    /// Opens a stored list; `key` finds a master key by the header.
    ///
    /// # Errors
    /// `CORRUPT` when it is not what was sealed, and what `key` gives.
    pub fn open<'k>(
        name: &str,
        stored: &[u8],
        key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
    ) -> Result<Self> {
        let body = open_object(stored, Role::PlainList, name, key)?;
        let damaged = || Error::corrupt(name, "it is no list of objects");
        let Stored { objects } = serde_json::from_slice(&body).map_err(|_| damaged())?;
        let hashes = objects.into_iter().map(|(name, hash)| Some((name, unhex(&hash)?)));
        hashes.collect::<Option<_>>().map(Self).ok_or_else(damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::id::MasterKeyId;
    use super::*;

    fn key() -> MasterKey {
        MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32])
    }

    #[test]
    fn a_list_reads_back_and_knows_objects_by_their_bytes() {
        let mut list = PlainObjects::default();
        list.add("index/a".into(), b"one");
        let (name, stored) = list.seal(&key()).unwrap();
        let key = key();
        let read = PlainObjects::open(&name, &stored, |_, _| Ok(&key)).unwrap();
        assert_eq!(read, list);
        assert!(read.holds("index/a", b"one") && !read.holds("index/a", b"two") && !read.holds("index/b", b"one"));
        assert!(PlainObjects::open("plain/other", &stored, |_, _| Ok(&key)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_pass_for_a_list_that_were_not_sealed(
            start in prop::sample::select(vec![vec![], b"OB2B\x01\x06\x01\0".to_vec()]),
            rest in prop::collection::vec(any::<u8>(), 0..200), at in any::<prop::sample::Index>(), byte in any::<u8>(),
        ) {
            let key = key();
            let stored = [start, rest].concat();
            prop_assert!(PlainObjects::open("plain/x", &stored, |_, _| Ok(&key)).is_err());
            let mut list = PlainObjects::default();
            list.add("index/a".into(), b"one");
            let (name, mut stored) = list.seal(&key).unwrap();
            let at = at.index(stored.len());
            prop_assume!(stored[at] != byte);
            stored[at] = byte;
            prop_assert!(PlainObjects::open(&name, &stored, |_, _| Ok(&key)).is_err());
        }

        #[test]
        fn no_sealed_text_makes_the_parser_panic(text in "\\PC{0,40}|\\{\"objects\":\\{\"a\":\"[0-9a-f]{0,70}\"\\}\\}") {
            let key = key();
            let stored = seal_object(&key, Role::PlainList, "plain/x", text.into_bytes()).unwrap();
            let _ = PlainObjects::open("plain/x", &stored, |_, _| Ok(&key));
        }
    }
}
