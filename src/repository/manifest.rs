//! Manifests: a snapshot exists if and only if its manifest does, which is written last.
//!
//! A manifest is a small JSON object of constant size: a plain header and a body with the summary and the root of the file
//! tree, sealed like everything else (in an unencrypted repository: with a checksum).

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use super::id::{MachineId, MasterKeyId, SnapshotId, hex, unhex};
use super::seal::{Header, MasterKey, Role, Sealer};
use super::tree::{MAX_DEPTH, ROOT_CHUNKS, Root};
use crate::commands::{Exception, Trigger};
use crate::error::{Error, Result};

/// The largest manifest that a reader accepts, in bytes.
pub const MAX_MANIFEST: u64 = 1 << 20;
/// How many exceptions a manifest spells out; the tree has them all.
pub const LISTED_EXCEPTIONS: usize = 20;

/// What a snapshot is, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// RFC 3339, UTC, whole seconds, by the store's clock: the time that is in the snapshot's id.
    pub created_at: jiff::Timestamp,
    /// Why it was taken.
    pub trigger: Trigger,
    /// Which machine took it: retention counts per machine.
    #[serde(with = "machine_id")]
    pub machine: MachineId,
    /// That machine's host name, for people.
    pub host: String,
    /// The state directory's path on that machine, if it is text: settings that name something in it are adapted on another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_dir: Option<String>,
    /// The names of the places outside the state directory that it was to hold, whether there was anything or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<String>,
    /// Version of this software that wrote it.
    pub writer: String,
    /// Files and databases.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// How many things in scope it does not hold.
    pub exceptions: u64,
    /// The first of them.
    pub first_exceptions: Vec<Exception>,
    /// How many of them its machine could read before: retention keeps the newest snapshot with fewer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// The snapshot of 0.1.x that it was made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_from: Option<String>,
    /// Whether the state had lost most of what it held: until the owner agrees, its machine prunes nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shrunk: bool,
    /// Whether no agent had made anything yet: such a snapshot is nothing to bring to a new machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub blank: bool,
    /// Where the tree starts.
    pub tree: Root,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stored {
    format: u32,
    snapshot: String,
    created_at: jiff::Timestamp,
    master_key: String,
    salt: String,
    body: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Everything of the header that a reader may rely on, so that sealing the body seals the header with it.
fn bound_name(id: &SnapshotId, created_at: jiff::Timestamp) -> String {
    format!("{}\n{created_at}", id.manifest_key())
}

impl Summary {
    /// The stored bytes of the manifest of snapshot `id`.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    ///
    /// # Panics
    /// Never: a summary is plain data.
    pub fn to_manifest(&self, id: &SnapshotId, key: &MasterKey) -> Result<Vec<u8>> {
        let sealer = Sealer::new(key, Role::Manifest, &bound_name(id, self.created_at))?;
        let mut body = serde_json::to_vec(self).expect("a summary is plain data");
        sealer.seal(0, true, &mut body);
        let stored = Stored {
            format: 1,
            snapshot: id.to_string(),
            created_at: self.created_at,
            master_key: key.id.to_string(),
            salt: hex(&sealer.header().salt),
            body: BASE64.encode(body),
        };
        let mut bytes = serde_json::to_vec_pretty(&stored).expect("a manifest is plain data");
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a stored manifest; `key` finds a master key by the header.
    ///
    /// # Errors
    /// `CORRUPT` when it is not what was written, and what `key` gives.
    pub fn from_manifest<'k>(
        id: &SnapshotId,
        bytes: &[u8],
        key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
    ) -> Result<Self> {
        Self::read(id, bytes, key).map_err(|error| error.in_snapshot(id.as_str()))
    }

    fn read<'k>(
        id: &SnapshotId,
        bytes: &[u8],
        key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
    ) -> Result<Self> {
        let name = id.manifest_key();
        let damaged = |why: &str| Error::corrupt(&name, why);
        let stored: Stored = serde_json::from_slice(bytes)
            .map_err(|error| Error::corrupt(&name, format!("it is no manifest: {error}")))?;
        if stored.format != 1 {
            return Err(damaged("its format is unknown to this version").advise("update openclaw-b2-backup"));
        }
        if stored.snapshot != id.as_str() {
            return Err(damaged("it belongs to another snapshot"));
        }
        let salt = unhex(&stored.salt).ok_or_else(|| damaged("its salt is no salt"))?;
        let master_key: MasterKeyId = stored.master_key.parse().map_err(|_| damaged("it names no key"))?;
        let sealed = BASE64.decode(&stored.body).map_err(|_| damaged("its body is no base64"))?;
        let header = Header { role: Role::Manifest, master_key, salt };
        let key = key(&header, &name)?;
        let body = Sealer::with_header(key, header, &bound_name(id, stored.created_at))
            .open(0, true, &sealed)
            .ok_or_else(|| damaged("its bytes were changed"))?;
        let summary: Self = serde_json::from_slice(&body).map_err(|_| damaged("its body is no summary"))?;
        if summary.created_at != stored.created_at || summary.created_at != id.time() {
            return Err(damaged("its header contradicts its body"));
        }
        if summary.tree.chunks.len() > ROOT_CHUNKS || summary.tree.depth > MAX_DEPTH {
            return Err(damaged("the root of its tree is out of bounds"));
        }
        Ok(summary)
    }
}

mod machine_id {
    use super::MachineId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(id: &MachineId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MachineId, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::ChunkId;
    use super::*;
    use proptest::prelude::*;

    fn summary() -> Summary {
        Summary {
            created_at: "2026-02-19T00:00:00Z".parse().unwrap(),
            trigger: Trigger::Schedule,
            machine: MachineId([5; 16]),
            host: "kestrel".into(),
            state_dir: None,
            places: Vec::new(),
            writer: "0.2.0".into(),
            files: 3,
            bytes: 4,
            exceptions: 1,
            dropped: 0,
            first_exceptions: vec![Exception { path: "a".into(), reason: "b".into() }],
            imported_from: None,
            shrunk: true,
            blank: true,
            tree: Root { depth: 0, chunks: vec![ChunkId([6; 16])] },
        }
    }

    fn id() -> SnapshotId {
        "2026-02-19T00-00-00Z-7f3a91c2".parse().unwrap()
    }

    #[test]
    fn a_manifest_reads_back_and_belongs_to_one_snapshot_of_one_repository() {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        for key in [key, MasterKey::plain()] {
            let bytes = summary().to_manifest(&id(), &key).unwrap();
            assert_eq!(Summary::from_manifest(&id(), &bytes, |_, _| Ok(&key)).unwrap(), summary());
            let other: SnapshotId = "2026-02-19T00-00-00Z-aaaaaaaa".parse().unwrap();
            assert!(Summary::from_manifest(&other, &bytes, |_, _| Ok(&key)).is_err());
            let renamed = String::from_utf8(bytes).unwrap().replace(id().as_str(), other.as_str());
            let moved = Summary::from_manifest(&other, renamed.as_bytes(), |_, _| Ok(&key));
            assert!(moved.is_err());
        }
    }

    /// Sealed by the second implementation in Python that `docs/format.md` describes.
    #[test]
    fn a_known_manifest_is_read() {
        let key = MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32]);
        let sealed = "c6D+GbXVx3SKl/XZge/nUAbtpDKTCvv7N2wfKsfZ4F08J505/QlGh1Uos2QdF5s5P1lAe5lokQ/g1kk3IlPZcKPVPmjanUZA\
                      6AVp0TM+/8Sd9yPpPSXOPH25t2lRcKFpnmj828gl6PR8B3TN0xWBWMjQpt2iEKJW7BRJrFQaERaoaZdbbmPz+0s4NT4Osb4r\
                      9r+HwxYqitNdr8BFZyjMPFtI72IuOXBvsi8vIZ5tt3tEJilmE9z2sG918BeMtHuNQ3igS3tB8KtM7OvIdIl+eKcNkFj+AMQC\
                      0Hj3dWN69ENSkufUbCZUAsL0T3Mq+XZoHkYvHU3M802s9OWE8vQ8zTNzyhl49c8AGSEi5RwFhNI=";
        let manifest = serde_json::json!({
            "format": 1, "snapshot": id().as_str(), "createdAt": "2026-02-19T00:00:00Z",
            "masterKey": "11".repeat(16), "salt": "33".repeat(32), "body": sealed,
        });
        let read = Summary::from_manifest(&id(), manifest.to_string().as_bytes(), |_, _| Ok(&key)).unwrap();
        let expected = Summary {
            trigger: Trigger::Manual,
            files: 1,
            bytes: 14,
            exceptions: 0,
            first_exceptions: Vec::new(),
            shrunk: false,
            blank: false,
            tree: Root { depth: 0, chunks: vec![key.chunk_hasher().id(b"attack")] },
            ..summary()
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn another_time_in_the_header_is_found_out() {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let text = String::from_utf8(summary().to_manifest(&id(), &key).unwrap()).unwrap();
        let later = text.replace("2026-02-19T00:00:00Z", "2027-02-19T00:00:00Z");
        assert_ne!(later, text);
        assert!(Summary::from_manifest(&id(), later.as_bytes(), |_, _| Ok(&key)).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_byte_never_passes(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            for key in [MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]), MasterKey::plain()] {
                let mut bytes = summary().to_manifest(&id(), &key).unwrap();
                let at = at.index(bytes.len());
                prop_assume!(bytes[at] != byte);
                bytes[at] = byte;
                if let Ok(read) = Summary::from_manifest(&id(), &bytes, |_, _| Ok(&key)) {
                    prop_assert_eq!(read, summary());
                }
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let key = MasterKey::plain();
            let _ = Summary::from_manifest(&id(), &bytes, |_, _| Ok(&key));
        }
    }
}
