//! The index: which chunk lies in which frame of which pack.
//!
//! Index objects are immutable; what is known is the union of all that exist. An object lists live packs and condemned
//! ones: a condemned pack still serves reads, but no push may rely on it, so that it can be deleted once every push
//! that might already have done so is over.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use minicbor::{Decode, Encode};

use super::id::{ChunkId, IndexId, PackId, random};
use super::pack::{self, MAX_FRAME, MAX_PACK};
use super::seal::{HEADER_LENGTH, Header, MasterKey, Role, open_object, seal_object};
use crate::error::{Error, Result};

/// The most bytes that an index object may take in memory.
const MAX_INDEX: usize = 64 << 20;
/// Chunks after which a writer starts another index object: about 1.3 MB stored. Until then it is in memory several times over.
pub const INDEX_TARGET_CHUNKS: usize = 64 << 10;

/// The key of an index object.
#[must_use]
pub fn index_key(id: IndexId) -> String {
    format!("index/{id}")
}

/// Where a frame lies in its pack, and its chunks in order.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct FrameEntry {
    /// Bytes from the pack's start to the sealed frame.
    #[n(0)]
    pub offset: u64,
    /// Sealed bytes.
    #[n(1)]
    pub length: u32,
    /// Content bytes of each chunk.
    #[cbor(n(2), with = "chunk_lengths")]
    chunk_lengths: Vec<u32>,
    /// The ids of the chunks, 16 bytes each, put together.
    #[cbor(n(3), with = "minicbor::bytes")]
    chunk_ids: Vec<u8>,
}

impl FrameEntry {
    /// A frame of these chunks.
    #[must_use]
    pub fn new(offset: u64, length: u32, chunks: &[(ChunkId, u32)]) -> Self {
        Self {
            offset,
            length,
            chunk_lengths: chunks.iter().map(|(_, length)| *length).collect(),
            chunk_ids: chunks.iter().flat_map(|(id, _)| id.0).collect(),
        }
    }

    /// The ids of its chunks, in order.
    #[must_use]
    pub fn chunk_ids(&self) -> impl ExactSizeIterator<Item = ChunkId> + '_ {
        self.chunk_ids.as_chunks().0.iter().map(|id| ChunkId(*id))
    }

    /// The id of the chunk with this number, which it must have.
    #[must_use]
    pub fn chunk_id(&self, number: u32) -> ChunkId {
        ChunkId(self.chunk_ids.as_chunks().0[number as usize])
    }

    /// The content length of the chunk with this number, which it must have.
    #[must_use]
    pub fn chunk_length(&self, number: u32) -> u32 {
        self.chunk_lengths[number as usize]
    }

    /// Its chunks with their content lengths, in order.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, u32)> + '_ {
        self.chunk_ids().zip(self.chunk_lengths.iter().copied())
    }

    fn is_sound(&self, pack_size: u64) -> bool {
        let content: u64 = self.chunk_lengths.iter().map(|length| u64::from(*length)).sum();
        self.chunk_ids.len() == 16 * self.chunk_lengths.len()
            && content <= MAX_FRAME as u64
            && self.offset >= HEADER_LENGTH as u64
            && self.offset.checked_add(u64::from(self.length)).is_some_and(|end| end <= pack_size)
    }
}

/// A pack and its frames.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PackEntry {
    /// The pack's name.
    #[cbor(n(0), with = "bytes16")]
    pub id: PackId,
    /// Stored bytes of the whole object.
    #[n(1)]
    pub size: u64,
    /// Its frames, in order, without the empty last one.
    #[n(2)]
    pub frames: Vec<FrameEntry>,
    /// The first bytes of the object, so that a frame can be opened without reading them again.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub header: Vec<u8>,
}

impl PackEntry {
    /// The ids of its chunks.
    pub fn chunk_ids(&self) -> impl Iterator<Item = ChunkId> + '_ {
        self.frames.iter().flat_map(FrameEntry::chunk_ids)
    }

    /// Whether its header names no master key.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        Header::is_plain(&self.header)
    }

    /// How many chunks it holds.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.frames.iter().map(|frame| frame.chunk_lengths.len()).sum()
    }
}

/// The content of one index object.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct IndexObject {
    /// Packs that pushes may rely on.
    #[n(0)]
    pub live: Vec<PackEntry>,
    /// Packs that wait for their deletion.
    #[n(1)]
    pub condemned: Vec<PackEntry>,
    /// Packs in which a reader found damage: no push relies on them, and reads take what they can from others.
    #[cbor(n(2), with = "pack_ids", has_nil)]
    pub damaged: Vec<PackId>,
    /// Packs that no object named when this one was written. They are condemned, also should one name them later.
    #[cbor(n(3), with = "pack_ids", has_nil)]
    pub orphans: Vec<PackId>,
}

impl IndexObject {
    /// The packs that wait for their deletion, by name or as orphans.
    pub fn condemned_ids(&self) -> impl Iterator<Item = PackId> + '_ {
        self.condemned.iter().map(|pack| pack.id).chain(self.orphans.iter().copied())
    }

    /// Splits packs over objects of a bounded size.
    #[must_use]
    pub fn split(live: Vec<PackEntry>, condemned: Vec<PackEntry>) -> Vec<Self> {
        let mut objects = Vec::new();
        let mut current = Self::default();
        let mut chunks = 0;
        let all = live.into_iter().map(|pack| (pack, true)).chain(condemned.into_iter().map(|pack| (pack, false)));
        for (pack, is_live) in all {
            chunks += pack.chunk_count();
            if is_live {
                current.live.push(pack);
            } else {
                current.condemned.push(pack);
            }
            if chunks >= INDEX_TARGET_CHUNKS {
                objects.push(std::mem::take(&mut current));
                chunks = 0;
            }
        }
        if current != Self::default() {
            objects.push(current);
        }
        objects
    }

    /// The plain bytes, compressed: what the local cache keeps and what is sealed for the store.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn to_compressed(&self) -> Result<Vec<u8>> {
        pack::compress(&minicbor::to_vec(self).expect("writing to memory does not fail"))
    }

    /// Undoes [`IndexObject::to_compressed`], checking every claim that a reader relies on.
    ///
    /// # Errors
    /// `CORRUPT` naming `key`.
    pub fn from_compressed(compressed: &[u8], key: &str) -> Result<Self> {
        let plain = pack::decompress(compressed, MAX_INDEX)
            .ok_or_else(|| Error::corrupt(key, "it does not decompress to an index"))?;
        let object: Self =
            minicbor::decode(&plain).map_err(|error| Error::corrupt(key, format!("it is no index: {error}")))?;
        let sound = |pack: &PackEntry| pack.size <= MAX_PACK && pack.frames.iter().all(|f| f.is_sound(pack.size));
        if object.live.iter().chain(&object.condemned).all(sound) {
            Ok(object)
        } else {
            Err(Error::corrupt(key, "it places a frame outside its pack"))
        }
    }

    /// Seals it as a new object.
    ///
    /// # Errors
    /// `IO` when there is no memory or are no random numbers.
    pub fn seal(&self, key: &MasterKey) -> Result<(IndexId, Vec<u8>, Vec<u8>)> {
        let id = IndexId(random()?);
        let compressed = self.to_compressed()?;
        let object = seal_object(key, Role::Index, &index_key(id), compressed.clone())?;
        Ok((id, object, compressed))
    }
}

/// Opens a stored index object down to the compressed bytes; `key` finds a master key by the header.
///
/// # Errors
/// `CORRUPT` when it is not what was sealed, and what `key` gives.
pub fn open_index<'k>(
    id: IndexId,
    stored: &[u8],
    key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
) -> Result<Vec<u8>> {
    open_object(stored, Role::Index, &index_key(id), key)
}

/// Where one chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Which of [`Index::packs`].
    pub pack: u32,
    /// Which frame of the pack.
    pub frame: u32,
    /// Which chunk of the frame.
    pub chunk: u32,
    /// Content bytes.
    pub length: u32,
}

/// What all index objects say together.
#[derive(Debug, Default)]
pub struct Index {
    /// The packs, each once: first the live ones, then the condemned, then those in which damage was found; each of these
    /// ordered by id.
    pub packs: Vec<IndexedPack>,
    by_pack: HashMap<PackId, u32>,
    chunks: Chunks,
    /// Live packs that the store does not have, or not whole.
    pub absent: Vec<PackId>,
    /// Chunks that only an absent or a damaged pack holds: a push that meets one stores it anew.
    pub lost: HashSet<ChunkId>,
    /// What is wrong with index objects that could not be read, one sentence each, and with packs that were read in their
    /// stead.
    pub unreadable: Vec<String>,
    /// Those index objects among them whose bytes are not what was sealed.
    pub damaged_objects: Vec<IndexId>,
    /// Packs whose entries were read from the packs themselves, because index objects were lost.
    pub recovered: Vec<PackId>,
    /// Packs that were condemned while no object named them.
    pub orphans: HashSet<PackId>,
    /// Whether plain packs serve reads alone: the repository is encrypted by now.
    pub sealed: bool,
}

/// A pack as the index knows it.
#[derive(Debug)]
pub struct IndexedPack {
    /// Its frames.
    pub entry: PackEntry,
    /// Whether some index object condemns it: then it serves reads alone.
    pub condemned: bool,
    /// Whether a reader found damage in it: then it serves reads where nothing else does.
    pub damaged: bool,
}

impl IndexedPack {
    /// Whether a push may rely on it.
    #[must_use]
    pub fn is_reliable(&self) -> bool {
        !self.condemned && !self.damaged
    }
}

impl Index {
    /// Puts together what all objects say. `usable` tells whether the store has a pack, whole.
    ///
    /// A pack that any object condemns is condemned, and one that any object calls damaged is damaged. A chunk is found in
    /// a live pack if one has it, and of several in the one with the smallest id: every machine sees the same, whatever the
    /// order of the objects.
    #[must_use]
    pub fn new(objects: impl IntoIterator<Item = IndexObject>, usable: impl Fn(&PackEntry) -> bool) -> Self {
        let mut packs: BTreeMap<PackId, IndexedPack> = BTreeMap::new();
        let (mut absent, mut damaged, mut orphans) = (BTreeSet::new(), HashSet::new(), HashSet::new());
        let mut lost = HashSet::new();
        for object in objects {
            damaged.extend(object.damaged);
            orphans.extend(object.orphans);
            let live = object.live.into_iter().map(|entry| (entry, false));
            let condemned = object.condemned.into_iter().map(|entry| (entry, true));
            for (entry, condemned) in live.chain(condemned) {
                if usable(&entry) {
                    let pack = packs.entry(entry.id).or_insert(IndexedPack { entry, condemned, damaged: false });
                    pack.condemned |= condemned;
                } else if !condemned {
                    lost.extend(entry.chunk_ids());
                    absent.insert(entry.id);
                }
            }
        }
        let absent = absent.into_iter().collect();
        let mut index = Self { packs: packs.into_values().collect(), absent, ..Self::default() };
        for pack in index.packs.iter_mut().filter(|pack| damaged.contains(&pack.entry.id)) {
            pack.damaged = true;
            lost.extend(pack.entry.chunk_ids());
        }
        for pack in index.packs.iter_mut().filter(|pack| orphans.contains(&pack.entry.id)) {
            pack.condemned = true;
        }
        index.packs.sort_by_key(|pack| (pack.damaged, pack.condemned));
        index.by_pack = index.packs.iter().enumerate().map(|(number, pack)| (pack.entry.id, number as u32)).collect();
        index.chunks = Chunks::of(&index.packs);
        lost.retain(|chunk| !index.has_live(*chunk));
        (index.lost, index.orphans) = (lost, orphans);
        index
    }

    /// Where a chunk can be read.
    #[must_use]
    pub fn find(&self, id: ChunkId) -> Option<Location> {
        self.chunks.find(id, &self.packs)
    }

    /// Whether a push may rely on the chunk being there.
    #[must_use]
    pub fn has_live(&self, id: ChunkId) -> bool {
        self.find(id).is_some_and(|at| self.is_live(&self.packs[at.pack as usize]))
    }

    /// Whether a push may rely on the pack: nobody condemned it or found damage in it, and it is sealed where everything new
    /// is.
    #[must_use]
    pub fn is_live(&self, pack: &IndexedPack) -> bool {
        pack.is_reliable() && !(self.sealed && pack.entry.is_plain())
    }

    /// The pack with this name.
    #[must_use]
    pub fn pack(&self, id: PackId) -> Option<&IndexedPack> {
        self.by_pack.get(&id).map(|at| &self.packs[*at as usize])
    }

    /// How many chunks are known.
    #[must_use]
    pub fn chunk_count(&self) -> usize {
        self.chunks.numbers.len()
    }
}

/// Finds the chunks of some packs by their ids. In memory are their numbers alone, counted from the first frame of the first
/// pack on: their ids are in the frames, and a large state has hundreds of thousands.
#[derive(Debug, Default)]
struct Chunks {
    /// Of each id the first chunk that has it. That there are 2^32 would take 80 GB of entries.
    numbers: HashTable<u32>,
    frames: Vec<FirstChunk>,
    /// Not the ids themselves: where nothing is sealed, somebody may have chosen them.
    hasher: RandomState,
}

/// The number of a frame's first chunk.
#[derive(Debug, Clone, Copy)]
struct FirstChunk {
    number: u32,
    pack: u32,
    frame: u32,
}

impl Chunks {
    fn of(packs: &[IndexedPack]) -> Self {
        let count = packs.iter().map(|pack| pack.entry.chunk_count()).sum();
        // All at once: growing by doubling would take half as much again for a moment.
        let mut numbers = HashTable::with_capacity(count);
        let mut chunks = Self::default();
        let mut number = 0;
        for (pack, IndexedPack { entry, .. }) in packs.iter().enumerate() {
            for (frame, place) in entry.frames.iter().enumerate() {
                chunks.frames.push(FirstChunk { number, pack: pack as u32, frame: frame as u32 });
                for id in place.chunk_ids() {
                    let id_of = |number: &u32| chunks.chunk(*number, packs).0;
                    let hash_of = |id: ChunkId| chunks.hasher.hash_one(id);
                    let entry = numbers.entry(hash_of(id), |other| id_of(other) == id, |other| hash_of(id_of(other)));
                    if let Entry::Vacant(entry) = entry {
                        entry.insert(number);
                    }
                    number += 1;
                }
            }
        }
        Self { numbers, ..chunks }
    }

    /// The chunk with this number.
    fn chunk(&self, number: u32, packs: &[IndexedPack]) -> (ChunkId, Location) {
        let FirstChunk { number: first, pack, frame } =
            self.frames[self.frames.partition_point(|first| first.number <= number) - 1];
        let (place, chunk) = (&packs[pack as usize].entry.frames[frame as usize], number - first);
        (place.chunk_id(chunk), Location { pack, frame, chunk, length: place.chunk_length(chunk) })
    }

    fn find(&self, id: ChunkId, packs: &[IndexedPack]) -> Option<Location> {
        let mut found = None;
        self.numbers.find(self.hasher.hash_one(id), |number| {
            let (other, location) = self.chunk(*number, packs);
            found = (other == id).then_some(location);
            found.is_some()
        });
        found
    }
}

mod bytes16 {
    //! [`PackId`] as a CBOR byte string.
    use super::PackId;
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: minicbor::encode::Write>(
        id: &PackId,
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        encoder.bytes(&id.0)?.ok()
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<PackId, minicbor::decode::Error> {
        let bytes = decoder.bytes()?;
        bytes.try_into().map(PackId).map_err(|_| minicbor::decode::Error::message("a pack id has 16 bytes"))
    }
}

mod chunk_lengths {
    //! The lengths of a frame's chunks, as many as a frame may have: a few stored bytes must not become many in memory.
    use super::pack::MAX_FRAME_CHUNKS;
    use minicbor::{Decoder, Encode, Encoder};

    pub fn encode<C, W: minicbor::encode::Write>(
        lengths: &Vec<u32>,
        encoder: &mut Encoder<W>,
        context: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        lengths.encode(encoder, context)
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<u32>, minicbor::decode::Error> {
        let lengths = decoder.array_iter::<u32>()?.take(MAX_FRAME_CHUNKS + 1).collect::<Result<Vec<_>, _>>()?;
        if (1..=MAX_FRAME_CHUNKS).contains(&lengths.len()) {
            Ok(lengths)
        } else {
            Err(minicbor::decode::Error::message("a frame has 1 to 65,536 chunks"))
        }
    }
}

mod pack_ids {
    //! Ids of packs as one CBOR byte string, 16 bytes each. An empty list at the end of an array is left out.
    use super::PackId;
    use minicbor::{Decoder, Encoder};

    pub fn encode<C, W: minicbor::encode::Write>(
        ids: &[PackId],
        encoder: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), minicbor::encode::Error<W::Error>> {
        let joined: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        encoder.bytes(&joined)?.ok()
    }

    pub fn decode<C>(decoder: &mut Decoder<'_>, _: &mut C) -> Result<Vec<PackId>, minicbor::decode::Error> {
        let (ids, rest) = decoder.bytes()?.as_chunks::<16>();
        if !rest.is_empty() {
            return Err(minicbor::decode::Error::message("a pack id has 16 bytes"));
        }
        Ok(ids.iter().map(|id| PackId(*id)).collect())
    }

    #[allow(clippy::ptr_arg)] // the derived code passes it so
    pub fn is_nil(ids: &Vec<PackId>) -> bool {
        ids.is_empty()
    }

    #[allow(clippy::unnecessary_wraps)] // that is the signature the derived code calls
    pub fn nil() -> Option<Vec<PackId>> {
        Some(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::{MasterKeyId, hex, unhex};
    use super::*;
    use proptest::prelude::*;

    fn pack(id: u8, chunks: &[u8]) -> PackEntry {
        let chunks: Vec<_> = chunks.iter().map(|chunk| (ChunkId([*chunk; 16]), 10)).collect();
        PackEntry {
            id: PackId([id; 16]),
            size: 1000,
            frames: vec![FrameEntry::new(60, 100, &chunks)],
            header: vec![0; HEADER_LENGTH],
        }
    }

    #[test]
    fn an_index_object_reads_back_when_sealed_and_when_cached() {
        let object = IndexObject {
            live: vec![pack(1, &[1, 2])],
            condemned: vec![pack(2, &[3])],
            damaged: vec![PackId([1; 16])],
            orphans: vec![PackId([3; 16])],
        };
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let (id, stored, cached) = object.seal(&key).unwrap();
        let opened = open_index(id, &stored, |_, _| Ok(&key)).unwrap();
        assert_eq!(opened, cached);
        assert_eq!(IndexObject::from_compressed(&opened, "index/x").unwrap(), object);
        for byte in 0..stored.len() {
            let mut changed = stored.clone();
            changed[byte] ^= 1;
            assert!(open_index(id, &changed, |_, _| Ok(&key)).is_err(), "byte {byte}");
        }
    }

    fn live(packs: &[PackEntry]) -> IndexObject {
        IndexObject { live: packs.to_vec(), ..IndexObject::default() }
    }

    fn condemned(packs: &[PackEntry]) -> IndexObject {
        IndexObject { condemned: packs.to_vec(), ..IndexObject::default() }
    }

    #[test]
    fn packs_are_split_over_objects_that_are_full() {
        let quarter = vec![(ChunkId([1; 16]), 10); INDEX_TARGET_CHUNKS / 4];
        let frames = vec![FrameEntry::new(60, 100, &quarter)];
        let packs: Vec<_> = (0..9).map(|id| PackEntry { frames: frames.clone(), ..pack(id, &[]) }).collect();
        let (packs_live, packs_condemned) = (packs[..6].to_vec(), packs[6..].to_vec());
        let objects = IndexObject::split(packs_live, packs_condemned);
        let counts: Vec<_> = objects.iter().map(|object| (object.live.len(), object.condemned.len())).collect();
        assert_eq!(counts, [(4, 0), (2, 2), (0, 1)]);
        let all: Vec<_> = objects.into_iter().flat_map(|object| [object.live, object.condemned]).flatten().collect();
        assert_eq!(all, packs);
    }

    /// Computed by the second implementation in Python that `docs/format.md` describes.
    #[test]
    fn an_index_object_has_the_known_bytes() {
        let key = MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32]);
        let chunks = [(key.chunk_hasher().id(b"attack"), 6), (key.chunk_hasher().id(b" at dawn"), 8)];
        let header = Header { role: Role::Pack, master_key: key.id, salt: [0x33; 32] };
        let pack = PackEntry {
            id: PackId([0xab; 16]),
            size: 123,
            frames: vec![FrameEntry::new(60, 43, &chunks)],
            header: header.to_bytes().to_vec(),
        };
        let object = IndexObject { live: vec![pack], ..IndexObject::default() };
        let known = "82818450abababababababababababababababab187b8184183c182b8206085820f6c8eb8edd5efaa58ba6b080af365b\
                     183ff1c3a721ca7f2e1aa55bcbd2d952e758384f42324201010100111111111111111111111111111111113333333333\
                     33333333333333333333333333333333333333333333333333333380";
        assert_eq!(hex(&minicbor::to_vec(&object).unwrap()), known);
        let stored: [u8; 154] = unhex(
            "4f4232420102010011111111111111111111111111111111333333333333333333333333333333333333333333333333\
             33333333333333332037b296f0c8fe13ee2282793a4985cb2ca00886b91bd2e9e15a2748d71f128682a0e1ef7af6925e\
             b2e0e04d27124897f916ff65db5018764665f30dac65841ddbc54c5ceba97664ebb05af403860fffdb98488314189a0b\
             e5825f23703319739f40",
        )
        .unwrap();
        let opened = open_index(IndexId([0xcd; 16]), &stored, |_, _| Ok(&key)).unwrap();
        assert_eq!(IndexObject::from_compressed(&opened, "index/x").unwrap(), object);
    }

    #[test]
    fn a_pack_that_any_object_condemns_serves_reads_alone() {
        for order in [[live, condemned], [condemned, live]] {
            let index = Index::new(order.map(|object| object(&[pack(1, &[1])])), |_| true);
            assert!(index.find(ChunkId([1; 16])).is_some());
            assert!(!index.has_live(ChunkId([1; 16])));
        }
    }

    #[test]
    fn a_chunk_in_a_live_and_a_condemned_pack_is_live() {
        for (dead, alive) in [(1, 2), (2, 1)] {
            let objects = [live(&[pack(1, &[7])]), live(&[pack(2, &[7])]), condemned(&[pack(dead, &[7])])];
            let index = Index::new(objects, |_| true);
            let at = index.find(ChunkId([7; 16])).unwrap();
            assert_eq!(index.packs[at.pack as usize].entry.id, PackId([alive; 16]));
            assert!(index.has_live(ChunkId([7; 16])));
        }
    }

    #[test]
    fn a_pack_that_was_condemned_unnamed_is_condemned_when_it_is_named() {
        let marks = IndexObject { orphans: vec![PackId([1; 16]), PackId([3; 16])], ..IndexObject::default() };
        for objects in
            [[marks.clone(), live(&[pack(1, &[7]), pack(2, &[8])])], [live(&[pack(1, &[7]), pack(2, &[8])]), marks]]
        {
            let index = Index::new(objects, |_| true);
            assert!(!index.has_live(ChunkId([7; 16])) && index.has_live(ChunkId([8; 16])));
            assert!(index.find(ChunkId([7; 16])).is_some(), "it serves reads");
            assert_eq!(index.orphans, HashSet::from([PackId([1; 16]), PackId([3; 16])]));
        }
    }

    #[test]
    fn a_damaged_pack_is_read_only_where_no_other_has_the_chunk_and_is_never_relied_on() {
        let marks = IndexObject { damaged: vec![PackId([1; 16])], ..IndexObject::default() };
        let index =
            Index::new([marks, live(&[pack(1, &[7, 8]), pack(2, &[7])]), condemned(&[pack(3, &[8])])], |_| true);
        let holder = |chunk: u8| index.packs[index.find(ChunkId([chunk; 16])).unwrap().pack as usize].entry.id;
        assert_eq!((holder(7), holder(8)), (PackId([2; 16]), PackId([3; 16])));
        assert!(index.has_live(ChunkId([7; 16])) && !index.has_live(ChunkId([8; 16])));
        assert_eq!(index.lost, HashSet::from([ChunkId([8; 16])]));
    }

    #[test]
    fn a_frame_outside_its_pack_is_refused() {
        let mut outside = pack(1, &[1]);
        outside.frames[0].offset = 950;
        let object = IndexObject { live: vec![outside], ..IndexObject::default() };
        assert!(IndexObject::from_compressed(&object.to_compressed().unwrap(), "index/x").is_err());
    }

    proptest! {
        #[test]
        fn each_chunk_is_found_where_it_is_first(
            packs in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..5), 0..4), 0..6),
        ) {
            let numbered = packs.iter().zip(0u8..);
            let packs: Vec<_> = numbered
                .map(|(frames, id)| {
                    let entry = |chunks: &Vec<u8>| {
                        let chunks: Vec<_> = chunks.iter().zip(10..).map(|(id, length)| (ChunkId([*id; 16]), length)).collect();
                        FrameEntry::new(60, 100, &chunks)
                    };
                    PackEntry { frames: frames.iter().map(entry).collect(), ..pack(id, &[]) }
                })
                .collect();
            let mut first = HashMap::new();
            for (pack, entry) in (0..).zip(&packs) {
                for (frame, place) in entry.frames.iter().enumerate() {
                    for (chunk, (id, length)) in place.chunks().enumerate() {
                        let (frame, chunk) = (frame as u32, chunk as u32);
                        first.entry(id).or_insert(Location { pack, frame, chunk, length });
                    }
                }
            }
            let index = Index::new([live(&packs)], |_| true);
            prop_assert_eq!(index.chunk_count(), first.len());
            for id in (0..=255).map(|byte| ChunkId([byte; 16])) {
                prop_assert_eq!(index.find(id), first.get(&id).copied());
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = IndexObject::from_compressed(&bytes, "index/x");
            let _ = IndexObject::from_compressed(&pack::compress(&bytes).unwrap(), "index/x");
            let key = MasterKey::plain();
            let _ = open_index(IndexId([0; 16]), &bytes, |_, _| Ok(&key));
        }

        #[test]
        fn what_an_index_may_say_lies_within_its_packs(
            size in prop_oneof![0u64..2000, any::<u64>()],
            offset in prop_oneof![0u64..2000, any::<u64>()],
            length in prop_oneof![0u32..2000, any::<u32>()],
            chunk_lengths in proptest::collection::vec(prop_oneof![0u32..2000, any::<u32>()], 0..4),
            chunk_ids in proptest::collection::vec(any::<u8>(), 0..65),
            whole in any::<bool>(),
        ) {
            let chunk_ids = if whole { vec![7; 16 * chunk_lengths.len()] } else { chunk_ids };
            let frame = FrameEntry { offset, length, chunk_lengths, chunk_ids };
            let pack = PackEntry { id: PackId([1; 16]), size, frames: vec![frame], header: Vec::new() };
            let object = IndexObject { condemned: vec![pack], ..IndexObject::default() };
            if let Ok(read) = IndexObject::from_compressed(&object.to_compressed().unwrap(), "index/x") {
                prop_assert_eq!(&read, &object);
                let frame = &read.condemned[0].frames[0];
                prop_assert!(frame.offset + u64::from(frame.length) <= size && size <= MAX_PACK);
                prop_assert_eq!(frame.chunk_ids().len(), frame.chunks().count());
            }
        }

        #[test]
        fn a_changed_byte_of_an_opened_index_never_panics(at in any::<proptest::sample::Index>(), byte in any::<u8>()) {
            let object = IndexObject { live: vec![pack(1, &[1, 2])], condemned: vec![pack(2, &[3])], ..IndexObject::default() };
            let object = IndexObject { orphans: vec![PackId([3; 16])], ..object };
            let mut plain = minicbor::to_vec(&object).unwrap();
            let at = at.index(plain.len());
            plain[at] = byte;
            let _ = IndexObject::from_compressed(&pack::compress(&plain).unwrap(), "index/x");
        }
    }
}
