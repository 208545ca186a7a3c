//! The file tree of a snapshot: one entry a path, ordered by path, written as a stream that is chunked, sealed and
//! deduplicated like the content of a file.
//!
//! The list of the stream's chunks is a stream again until it is short enough for the manifest, so that a manifest has
//! the same size for ten files and for a million.

use std::io::{self, Read};

use minicbor::{Decode, Decoder, Encode};

use super::id::ChunkId;
use super::pages;
use crate::error::{Error, Result};

/// The most chunks that a [`Root`] names itself; beyond, the list becomes a stream.
pub const ROOT_CHUNKS: usize = 32;
/// More levels than any real tree needs: 32 * (512 B / 16 B)^6 chunks.
pub const MAX_DEPTH: u8 = 6;
/// The longest path that is stored, in bytes; Linux has 4096.
pub const MAX_PATH: usize = 4096;

/// What a tree entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Kind {
    /// A regular file.
    #[n(0)]
    File,
    /// A directory.
    #[n(1)]
    Directory,
    /// A symbolic link, kept as such and never followed.
    #[n(2)]
    Symlink,
    /// A database, kept as a consistent copy without free pages and without rows that hold credentials.
    #[n(3)]
    Database,
    /// Something that is not in the snapshot; `target` says why.
    #[n(4)]
    Exception,
}

/// One path of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Entry {
    /// Relative to the state directory, `/` between segments.
    #[n(0)]
    pub path: String,
    /// What it is.
    #[n(1)]
    pub kind: Kind,
    /// Content bytes; 0 unless a file or a database.
    #[n(2)]
    pub size: u64,
    /// Permission bits (the lower 12 of `st_mode`).
    #[n(3)]
    pub mode: u32,
    /// Modification time, nanoseconds since 1970.
    #[n(4)]
    pub mtime: i64,
    /// SHA-256 of the content of a file or database, else empty.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub sha256: Vec<u8>,
    /// The ids of the content's chunks, in order, 16 bytes each.
    #[cbor(n(6), with = "minicbor::bytes")]
    chunks: Vec<u8>,
    /// A symlink's target, an exception's reason, else empty.
    #[n(7)]
    pub target: String,
    /// The size of a database's pages in bytes, where each is a chunk that was [made relative](super::pages::make_relative).
    #[n(8)]
    pub relative_pages: Option<u32>,
}

impl Entry {
    /// An entry without content.
    #[must_use]
    pub fn new(path: impl Into<String>, kind: Kind, mode: u32, mtime: i64) -> Self {
        Self {
            path: path.into(),
            kind,
            size: 0,
            mode,
            mtime,
            sha256: Vec::new(),
            chunks: Vec::new(),
            target: String::new(),
            relative_pages: None,
        }
    }

    /// Gives it content.
    #[must_use]
    pub fn with_content(mut self, content: &Content) -> Self {
        self.size = content.size;
        self.sha256 = content.sha256.to_vec();
        self.chunks = join_ids(&content.chunks);
        self
    }

    /// Gives it a link target or a reason.
    #[must_use]
    pub fn with_target(mut self, target: impl Into<String>) -> Self {
        self.target = target.into();
        self
    }

    /// Whether it has content: a file or a database.
    #[must_use]
    pub fn has_content(&self) -> bool {
        matches!(self.kind, Kind::File | Kind::Database)
    }

    /// Gives the memory of the ids of its chunks back, for who knows them otherwise.
    pub(super) fn forget_chunks(&mut self) {
        self.chunks = Vec::new();
    }

    /// The ids of its chunks, in order.
    #[must_use]
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
        split_ids(&self.chunks)
    }

    /// Why a reader must not trust this entry, if it must not. A path is only safe to use below a directory once this
    /// gave `Ok`.
    ///
    /// # Errors
    /// `UNSAFE_PATH` for a path that leads elsewhere, `CORRUPT` for fields that contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.kind == Kind::Exception {
            return Ok(());
        }
        self.check_path()?;
        let content_fits = if self.has_content() {
            self.sha256.len() == 32
                && self.chunks.len().is_multiple_of(16)
                && (self.size == 0) == self.chunks.is_empty()
        } else {
            self.sha256.is_empty() && self.chunks.is_empty() && self.size == 0
        };
        let pages_fit = self.relative_pages.is_none_or(|page| {
            let count = (self.chunks.len() / 16) as u64;
            self.kind == Kind::Database && pages::is_size(page) && Some(self.size) == count.checked_mul(u64::from(page))
        });
        if content_fits && pages_fit && self.mode <= 0o7777 {
            Ok(())
        } else {
            Err(Error::corrupt(&self.path, "the tree entry contradicts itself"))
        }
    }

    /// Whether the path is safe to use below a directory.
    ///
    /// # Errors
    /// `UNSAFE_PATH` when it leads elsewhere.
    pub fn check_path(&self) -> Result<()> {
        let unsafe_path = |why: &str| {
            Err(Error::new(
                crate::Code::UnsafePath,
                format!("the snapshot holds the path {:?}, which {why}", self.path),
            )
            .at_path(&self.path))
        };
        if self.path.len() > MAX_PATH {
            return unsafe_path("is longer than a path may be");
        }
        if self.path.contains('\0') {
            return unsafe_path("contains a NUL");
        }
        if self.path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
            return unsafe_path("would lead outside the directory");
        }
        if cfg!(windows) && self.path.contains(['\\', ':', '*', '?', '"', '<', '>', '|']) {
            return unsafe_path("cannot be a path on Windows");
        }
        Ok(())
    }

    /// Appends the entry to a tree stream.
    ///
    /// # Panics
    /// Never: writing to memory does not fail.
    pub fn write(&self, stream: &mut Vec<u8>) {
        minicbor::encode(self, stream).expect("writing to memory does not fail");
    }
}

/// What is known of a file's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// SHA-256 of all of it.
    pub sha256: [u8; 32],
    /// Its chunks, in order.
    pub chunks: Vec<ChunkId>,
}

/// Where the tree stream starts: what a manifest holds.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// How often the list of chunks was made a stream again: 0 when `chunks` are those of the tree itself.
    pub depth: u8,
    /// At most [`ROOT_CHUNKS`] chunk ids, as hexadecimal digits.
    #[serde(with = "hex_ids")]
    pub chunks: Vec<ChunkId>,
}

/// Ids put together, 16 bytes each.
#[must_use]
pub fn join_ids(ids: &[ChunkId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.0).collect()
}

/// Undoes [`join_ids`].
#[must_use]
pub fn split_ids(bytes: &[u8]) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
    bytes.chunks_exact(16).map(|id| ChunkId(id.try_into().expect("chunks of 16")))
}

/// The tree stream of entries, of which no more than one is encoded at a time.
#[derive(Debug)]
pub struct TreeStream<'e> {
    entries: std::slice::Iter<'e, Entry>,
    encoded: Vec<u8>,
    /// How much of that was read.
    at: usize,
}

impl<'e> TreeStream<'e> {
    /// Of `entries`, which are ordered by path.
    #[must_use]
    pub fn of(entries: &'e [Entry]) -> Self {
        Self { entries: entries.iter(), encoded: Vec::new(), at: 0 }
    }
}

impl Read for TreeStream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.encoded.len() {
            let Some(entry) = self.entries.next() else { return Ok(0) };
            self.encoded.clear();
            entry.write(&mut self.encoded);
            self.at = 0;
        }
        let length = (&self.encoded[self.at..]).read(buffer)?;
        self.at += length;
        Ok(length)
    }
}

/// Reads the entries of a tree stream, in order, each one checked.
#[derive(Debug)]
pub struct Entries<'s> {
    decoder: Decoder<'s>,
    previous: Option<String>,
}

impl<'s> Entries<'s> {
    /// Over a whole stream.
    #[must_use]
    pub fn new(stream: &'s [u8]) -> Self {
        Self { decoder: Decoder::new(stream), previous: None }
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.decoder.position() >= self.decoder.input().len() {
            return None;
        }
        let entry = self
            .decoder
            .decode::<Entry>()
            .map_err(|error| Error::corrupt("the file tree", error))
            .and_then(|entry| entry.check().map(|()| entry))
            .and_then(|entry| {
                let in_order = self.previous.as_ref().is_none_or(|previous| *previous < entry.path);
                self.previous = Some(entry.path.clone());
                if in_order { Ok(entry) } else { Err(Error::corrupt("the file tree", "its paths are out of order")) }
            });
        if entry.is_err() {
            self.decoder.set_position(self.decoder.input().len());
        }
        Some(entry)
    }
}

mod hex_ids {
    use super::ChunkId;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(ids: &[ChunkId], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(ids.iter().map(ToString::to_string))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ChunkId>, D::Error> {
        let texts = Vec::<String>::deserialize(deserializer)?;
        texts.iter().map(|text| text.parse().map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::{MasterKeyId, hex};
    use super::super::seal::MasterKey;
    use super::*;
    use proptest::prelude::*;
    use sha2::Digest;

    fn content(size: u64, chunks: u8) -> Content {
        Content { size, sha256: [1; 32], chunks: (0..chunks).map(|n| ChunkId([n; 16])).collect() }
    }

    #[test]
    fn a_tree_reads_back() {
        let entries = [
            Entry::new("agents", Kind::Directory, 0o755, -5),
            Entry::new("agents/a", Kind::File, 0o4600, 1_700_000_000_123_456_789).with_content(&content(9000, 2)),
            Entry::new("agents/b", Kind::File, 0o600, 0).with_content(&content(0, 0)),
            Entry::new("agents/c", Kind::Symlink, 0o777, 0).with_target("../elsewhere"),
            Entry::new("agents/d", Kind::Exception, 0, 0).with_target("permission denied"),
        ];
        let (mut written, mut stream) = (Vec::new(), Vec::new());
        for entry in &entries {
            entry.write(&mut written);
        }
        TreeStream::of(&entries).read_to_end(&mut stream).unwrap();
        assert_eq!(stream, written);
        assert_eq!(Entries::new(&stream).collect::<Result<Vec<_>>>().unwrap(), entries);
    }

    /// Computed by the second implementation in Python that `docs/format.md` describes.
    #[test]
    fn entries_have_the_known_bytes() {
        let key = MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32]);
        let content = Content {
            size: 14,
            sha256: sha2::Sha256::digest(b"attack at dawn").into(),
            chunks: [&b"attack"[..], b" at dawn"].map(|chunk| key.chunk_hasher().id(chunk)).to_vec(),
        };
        let note = Entry::new("note.md", Kind::File, 0o644, 1_700_000_000_123_456_789).with_content(&content);
        let mut stream = Vec::new();
        note.write(&mut stream);
        let known = "a800676e6f74652e6d640100020e031901a4041b17979cfe3d85cd15055820d502810c71aeb17e5ea1cbf930b46b87bb\
                     645a75df45f500230d061992aeb90a065820f6c8eb8edd5efaa58ba6b080af365b183ff1c3a721ca7f2e1aa55bcbd2d9\
                     52e70760";
        assert_eq!(hex(&stream), known);
        stream.clear();
        Entry::new("old", Kind::Symlink, 0o777, -1).with_target("note.md").write(&mut stream);
        assert_eq!(hex(&stream), "a800636f6c6401020200031901ff04200540064007676e6f74652e6d64");
        stream.clear();
        let mut database = Entry::new("d", Kind::Database, 0o600, 0);
        database.relative_pages = Some(4096);
        database.write(&mut stream);
        assert_eq!(hex(&stream), "a90061640103020003190180040005400640076008191000");
    }

    #[test]
    fn a_path_that_leads_elsewhere_is_refused() {
        for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/./b", "a/", "a\0b", &"x/".repeat(3000)] {
            let mut stream = Vec::new();
            Entry::new(path, Kind::Directory, 0o755, 0).write(&mut stream);
            let error = Entries::new(&stream).next().unwrap().unwrap_err();
            assert_eq!(error.code(), crate::Code::UnsafePath, "{path:?}");
        }
    }

    #[test]
    fn paths_out_of_order_or_twice_are_refused() {
        for paths in [["b", "a"], ["a", "a"]] {
            let mut stream = Vec::new();
            for path in paths {
                Entry::new(path, Kind::Directory, 0o755, 0).write(&mut stream);
            }
            assert!(Entries::new(&stream).any(|entry| entry.is_err()), "{paths:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Entries::new(&bytes).count() <= bytes.len() + 1);
        }

        #[test]
        fn whatever_is_read_stays_below_the_directory(
            path in "[a/.\\\\\0]{0,8}",
            kind in prop::sample::select(vec![Kind::File, Kind::Directory, Kind::Symlink, Kind::Database]),
            size in prop_oneof![0_u64..3, Just(4096)], mode in any::<u32>(), mtime in any::<i64>(),
            sha256 in prop::sample::select(vec![vec![], vec![1; 32], vec![1; 33]]),
            chunks in prop::sample::select(vec![vec![], vec![2; 16], vec![2; 17]]),
            relative_pages in prop::sample::select(vec![None, Some(0), Some(1), Some(4096), Some(4097), Some(u32::MAX)]),
        ) {
            let entry = Entry { path, kind, size, mode, mtime, sha256, chunks, target: String::new(), relative_pages };
            let mut stream = Vec::new();
            entry.write(&mut stream);
            let read: Vec<_> = Entries::new(&stream).collect();
            prop_assert_eq!(read.len(), 1);
            if let Ok(read) = &read[0] {
                prop_assert_eq!(read, &entry);
                let below = std::path::Path::new(&entry.path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
                prop_assert!(below && !entry.path.contains('\0') && entry.mode <= 0o7777);
                prop_assert_eq!(entry.chunks().len() > 0, entry.size > 0);
                prop_assert!(matches!((relative_pages, kind, size), (None, ..) | (Some(4096), Kind::Database, 0 | 4096)));
            }
        }

        #[test]
        fn a_changed_byte_leaves_order_and_checks_in_place(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            let mut stream = Vec::new();
            for path in ["a", "a/b", "c"] {
                Entry::new(path, Kind::File, 0o644, 5).with_content(&content(7, 1)).write(&mut stream);
            }
            let at = at.index(stream.len());
            stream[at] = byte;
            let read: Vec<_> = Entries::new(&stream).map_while(Result::ok).collect();
            prop_assert!(read.is_sorted_by(|a, b| a.path < b.path));
            prop_assert!(read.iter().all(|entry| entry.check().is_ok()));
        }
    }
}
