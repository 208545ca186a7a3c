//! Packs: frames of chunks, compressed then sealed, gathered into objects of about 16 MiB.
//!
//! A frame is the unit of compression, so that small chunks compress as well as big ones; a pack is the unit of upload.
//! A pack describes itself: from the master key alone all its chunks can be found again, so that a lost index costs
//! time only.

use std::fmt::Display;
use std::io::Cursor;

use zstd::zstd_safe::{CParameter, Strategy, compress_bound, get_frame_content_size};

use super::chunk::MAX_CHUNK;
use super::id::{ChunkId, PackId, random};
use super::index::{FrameEntry, PackEntry};
use super::seal::{ChunkHasher, HEADER_LENGTH, Header, MasterKey, Role, Sealer, TAG_LENGTH};
use crate::error::{Error, Result};

/// A frame is closed once it holds this many bytes of chunks. What repeats within a frame costs nothing, and a gateway repeats
/// itself: after 20 turns the new pages of its database, 1.7 MB, compressed to 131 kB in frames of 1 MiB and to 106 kB in one of these.
pub const FRAME_TARGET: usize = 2 << 20;
/// A pack is closed once it holds this many bytes.
pub const PACK_TARGET: usize = 16 << 20;
/// The most that a frame's chunks may add up to; readers refuse more, so that no stored byte can make them take more memory.
pub const MAX_FRAME: usize = MAX_CHUNK + (256 << 10);
/// The largest pack that a reader accepts.
pub const MAX_PACK: u64 = (PACK_TARGET + 2 * MAX_FRAME) as u64;
/// The most chunks in a frame: all of them as small as content can be cut, one byte.
pub(super) const MAX_FRAME_CHUNKS: usize = 1 << 16;

/// zstd's level: 3 compresses a state's JSON and text to within 3 % of level 9 in a fifth of the time.
const COMPRESSION_LEVEL: i32 = 3;
/// The level of a frame that follows one which hardly compressed, as of embeddings: it gives 0.6 % more bytes of them than level
/// 3, in 0.6 of the time. (Of prose, code and JSON it would be 3 to 6 % more, in 0.75.)
const LEVEL_WHERE_LITTLE_REPEATS: i32 = 2;
/// The level of a frame in haste, with a table of 512 KiB where it would have one of 256: of a state's JSON and text it gives 1.5 %
/// more bytes than level 3, in 0.77 of the time. (Of prose and code it is 4 to 6 % more.)
const LEVEL_IN_HASTE: i32 = 2;
const HASH_LOG_IN_HASTE: u32 = 17;
/// What makes zstd find nearly as much as level 9 does, in tables of 1 MiB instead of 10: what was new after 20 turns of a gateway, on
/// three days, took 3.8 % fewer bytes than with level 3 (and 3.7 with level 9), and 5 ms more for each MiB of it.
const THOROUGH: [CParameter; 5] = [
    CParameter::Strategy(Strategy::ZSTD_lazy2),
    CParameter::HashLog(18),
    CParameter::ChainLog(17),
    CParameter::SearchLog(3),
    CParameter::MinMatch(5),
];
const STORED: u8 = 0;
const ZSTD: u8 = 1;

/// The key of the object that holds a pack.
#[must_use]
pub fn pack_key(id: PackId) -> String {
    let id = id.to_string();
    format!("packs/{}/{id}", &id[..2])
}

/// Room for what a frame begins with: how many chunks it has, and the length of each.
const LENGTHS_ROOM: usize = 4 + 4 * MAX_FRAME_CHUNKS;

/// Chunks on their way into a frame.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    chunks: Vec<(ChunkId, u32)>,
    /// Nothing yet, or [`LENGTHS_ROOM`] and the chunks behind it: so that the lengths can be put right before them at the end.
    bytes: Vec<u8>,
}

impl FrameBuilder {
    /// Whether a chunk of `length` bytes may be added, so that the frame stays one that readers accept.
    #[must_use]
    pub fn has_room_for(&self, length: usize) -> bool {
        self.len() + length <= MAX_FRAME
    }

    /// Adds a chunk. The caller closes the frame before it when there is no room, and after it when
    /// [`FrameBuilder::is_full`].
    pub fn add(&mut self, id: ChunkId, content: &[u8]) {
        self.begin();
        self.chunks.push((id, content.len() as u32));
        self.bytes.extend_from_slice(content);
    }

    /// Leaves the room for the lengths, if that was not done.
    fn begin(&mut self) {
        if self.bytes.is_empty() {
            // What is not used of it takes no memory; growing by doubling would.
            self.bytes.reserve_exact(LENGTHS_ROOM + MAX_FRAME);
            self.bytes.resize(LENGTHS_ROOM, 0);
        }
    }

    /// Whether the frame should be closed.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= FRAME_TARGET || self.chunks.len() >= MAX_FRAME_CHUNKS
    }

    /// Whether nothing was added yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Bytes of the chunks that were added.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len().saturating_sub(LENGTHS_ROOM)
    }

    /// Takes over the chunks of `other`, if this frame stays one that readers accept.
    pub fn absorb(&mut self, other: &mut Self) -> bool {
        let fits = self.has_room_for(other.len()) && self.chunks.len() + other.chunks.len() <= MAX_FRAME_CHUNKS;
        if fits && !other.is_empty() {
            self.begin();
            self.chunks.append(&mut other.chunks);
            self.bytes.extend(other.bytes.drain(LENGTHS_ROOM..));
        }
        fits
    }

    /// Compresses what was added and starts over.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn finish(&mut self, compressor: &mut Compressor) -> Result<Frame> {
        self.begin();
        let Self { chunks, bytes } = self;
        let start = LENGTHS_ROOM - 4 - 4 * chunks.len();
        let lengths = chunks.iter().map(|(_, length)| *length);
        let numbers = std::iter::once(chunks.len() as u32).chain(lengths);
        for (place, number) in bytes[start..LENGTHS_ROOM].chunks_exact_mut(4).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let plain = &bytes[start..];
        let mut payload = compressor.compress(plain)?;
        if payload.len() > plain.len() {
            payload.clear();
            payload.push(STORED);
            payload.extend_from_slice(plain);
        }
        bytes.truncate(LENGTHS_ROOM);
        Ok(Frame { chunks: std::mem::take(chunks), payload })
    }
}

/// A zstd context that is kept between frames.
pub struct Compressor {
    context: zstd::bulk::Compressor<'static>,
    /// Of the next frame: what a thread compresses next is mostly of the same file.
    level: i32,
    in_haste: bool,
}

impl Compressor {
    /// A context that is quick.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn new() -> Result<Self> {
        let context = zstd::bulk::Compressor::new(COMPRESSION_LEVEL).map_err(|error| no_memory(&error))?;
        Ok(Self { context, level: COMPRESSION_LEVEL, in_haste: false })
    }

    /// A context that searches longer for what repeats, and takes three times as long: for what is little.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn thorough() -> Result<Self> {
        let mut compressor = Self::new()?;
        for parameter in THOROUGH {
            compressor.context.set_parameter(parameter).map_err(|error| no_memory(&error))?;
        }
        Ok(compressor)
    }

    /// Whether the next frames are wanted soon, rather than small. Not for a thorough one.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn make_haste(&mut self, in_haste: bool) -> Result<()> {
        if in_haste != self.in_haste {
            // To zstd, 0 is what goes with the level.
            let hash_log = CParameter::HashLog(if in_haste { HASH_LOG_IN_HASTE } else { 0 });
            self.context.set_parameter(hash_log).map_err(|error| no_memory(&error))?;
            self.in_haste = in_haste;
        }
        Ok(())
    }

    /// A byte that says `zstd`, then the compressed bytes.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn compress(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        let Self { context, level, in_haste } = self;
        let now = if *in_haste { LEVEL_IN_HASTE } else { *level };
        context.set_compression_level(now).map_err(|error| no_memory(&error))?;
        let mut payload = Vec::with_capacity(1 + compress_bound(plain.len()) + TAG_LENGTH);
        payload.push(ZSTD);
        let mut behind = Cursor::new(payload);
        behind.set_position(1);
        let length = context.compress_to_buffer(plain, &mut behind).map_err(|error| no_memory(&error))?;
        *level = if length > plain.len() / 2 { LEVEL_WHERE_LITTLE_REPEATS } else { COMPRESSION_LEVEL };
        Ok(behind.into_inner())
    }
}

fn no_memory(error: &std::io::Error) -> Error {
    Error::new(crate::Code::Io, format!("zstd failed: {error}"))
}

/// Compresses an object that is stored whole (an index, a list of chunks).
///
/// # Errors
/// `IO` when zstd has no memory.
pub fn compress(plain: &[u8]) -> Result<Vec<u8>> {
    zstd::bulk::compress(plain, COMPRESSION_LEVEL).map_err(|error| no_memory(&error))
}

/// Undoes [`compress`], taking at most `limit` bytes of memory for the result. `None` when the bytes are no such thing.
#[must_use]
pub fn decompress(compressed: &[u8], limit: usize) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    decompress_into(&mut plain, &mut zstd::bulk::Decompressor::new().ok()?, compressed, limit)?;
    Some(plain)
}

/// [`decompress`] into `plain`, whose memory is used again.
fn decompress_into(
    plain: &mut Vec<u8>,
    context: &mut zstd::bulk::Decompressor,
    compressed: &[u8],
    limit: usize,
) -> Option<()> {
    let announced = get_frame_content_size(compressed).ok().flatten()?;
    let announced = usize::try_from(announced).ok().filter(|size| *size <= limit)?;
    plain.clear();
    plain.reserve_exact(announced);
    let length = context.decompress_to_buffer(compressed, plain).ok()?;
    (length == announced).then_some(())
}

/// A compressed frame that is not part of a pack yet.
#[derive(Debug)]
pub struct Frame {
    chunks: Vec<(ChunkId, u32)>,
    payload: Vec<u8>,
}

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    id: PackId,
    sealer: Sealer,
    bytes: Vec<u8>,
    frames: Vec<FrameEntry>,
}

impl PackBuilder {
    /// An empty pack with a new name.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn new(key: &MasterKey) -> Result<Self> {
        Self::with_buffer(key, Vec::new())
    }

    /// An empty pack with a new name that is filled into `buffer`.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn with_buffer(key: &MasterKey, buffer: Vec<u8>) -> Result<Self> {
        let id = PackId(random()?);
        let sealer = Sealer::new(key, Role::Pack, &pack_key(id))?;
        let mut bytes = buffer;
        bytes.clear();
        bytes.extend_from_slice(&sealer.header().to_bytes());
        Ok(Self { id, sealer, bytes, frames: Vec::new() })
    }

    /// Seals a frame and appends it.
    pub fn append(&mut self, frame: Frame) {
        let Frame { chunks, mut payload } = frame;
        self.sealer.seal(self.frames.len() as u64, false, &mut payload);
        self.bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.frames.push(FrameEntry::new(self.bytes.len() as u64, payload.len() as u32, &chunks));
        self.bytes.extend_from_slice(&payload);
    }

    /// Stored bytes so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether no frame was appended yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Closes the pack with an empty last frame, which proves to a reader that none is missing.
    #[must_use]
    pub fn finish(mut self) -> (PackEntry, Vec<u8>) {
        let mut end = Vec::new();
        self.sealer.seal(self.frames.len() as u64, true, &mut end);
        self.bytes.extend_from_slice(&(end.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&end);
        let entry = PackEntry {
            id: self.id,
            size: self.bytes.len() as u64,
            frames: self.frames,
            header: self.sealer.header().to_bytes().to_vec(),
        };
        (entry, self.bytes)
    }
}

/// Opens the frames of one pack.
pub struct PackOpener {
    key: String,
    sealer: Sealer,
    hasher: ChunkHasher,
    decompressor: zstd::bulk::Decompressor<'static>,
    /// Memory for the frame that was opened last, decompressed.
    plain: Vec<u8>,
}

impl PackOpener {
    /// For the pack `id` whose first bytes are `header`; `key` finds a master key by the header.
    ///
    /// # Errors
    /// `CORRUPT` when this is no header of a pack, and what `key` gives.
    pub fn new<'k>(
        id: PackId,
        header: &[u8],
        key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
    ) -> Result<Self> {
        let name = pack_key(id);
        let header = Header::parse(header, Role::Pack, &name)?;
        let master_key = key(&header, &name)?;
        let sealer = Sealer::with_header(master_key, header, &name);
        let hasher = master_key.chunk_hasher();
        let decompressor = zstd::bulk::Decompressor::new().map_err(|error| no_memory(&error))?;
        Ok(Self { key: name, sealer, hasher, decompressor, plain: Vec::new() })
    }

    /// The chunks of frame `number`, from its sealed bytes, which are decrypted where they are.
    ///
    /// # Errors
    /// `CORRUPT` when they are not what was sealed, or not what a frame may be.
    pub fn frame<'f>(&'f mut self, number: u64, sealed: &'f mut [u8]) -> Result<OpenFrame<'f>> {
        let Self { key, sealer, hasher, decompressor, plain } = self;
        let damaged = |problem: &dyn Display| Error::corrupt(key.as_str(), format!("frame {number}: {problem}"));
        if sealed.len() > MAX_FRAME * 2 {
            return Err(damaged(&"it is larger than a frame may be"));
        }
        let payload = sealer.open_in_place(number, false, sealed);
        let payload = payload.ok_or_else(|| damaged(&"its bytes were changed"))?;
        let limit = MAX_FRAME + 4 * (MAX_FRAME_CHUNKS + 1);
        let plain = match payload.split_first() {
            Some((&STORED, plain)) if plain.len() <= limit => plain,
            Some((&ZSTD, compressed)) => {
                let opened = decompress_into(plain, decompressor, compressed, limit);
                opened.ok_or_else(|| damaged(&"it does not decompress to a frame"))?;
                &plain[..]
            }
            _ => return Err(damaged(&"its compression is unknown")),
        };
        OpenFrame::parse(plain, hasher).ok_or_else(|| damaged(&"its chunk lengths contradict its size"))
    }

    /// Reads a whole pack, as stored, without an index.
    ///
    /// # Errors
    /// `CORRUPT` when a frame is damaged, or the end is missing.
    pub fn all_frames(
        &mut self,
        pack: &[u8],
        mut sink: impl FnMut(u64, u64, u32, OpenFrame<'_>) -> Result<()>,
    ) -> Result<u64> {
        let key = self.key.clone();
        let short = || Error::corrupt(&key, "it was cut");
        let mut at = HEADER_LENGTH;
        for number in 0.. {
            let length = pack.get(at..at + 4).ok_or_else(short)?;
            let length = u32::from_le_bytes(length.try_into().expect("4 bytes")) as usize;
            at += 4;
            let sealed = pack.get(at..at.saturating_add(length)).ok_or_else(short)?;
            if length == TAG_LENGTH {
                return match self.sealer.open(number, true, sealed) {
                    Some(_) if at + length == pack.len() => Ok(number),
                    _ => Err(Error::corrupt(&key, "its end is not where it says")),
                };
            }
            sink(number, at as u64, length as u32, self.frame(number, &mut sealed.to_vec())?)?;
            at += length;
        }
        unreachable!("the frames of a pack in memory are finite")
    }
}

impl PackEntry {
    /// Reads the entry of the pack `id` from its stored bytes, as an index would have it; `key` finds a master key by the
    /// header.
    ///
    /// # Errors
    /// `CORRUPT` when a frame is damaged or the end is missing, and what `key` gives.
    pub fn of_pack<'k>(
        id: PackId,
        bytes: &[u8],
        key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>,
    ) -> Result<Self> {
        let mut opener = PackOpener::new(id, bytes, key)?;
        let mut frames = Vec::new();
        opener.all_frames(bytes, |_, offset, length, frame| {
            let contents = (0..frame.len()).filter_map(|number| frame.content(number));
            let chunks: Vec<_> = contents.map(|content| (frame.hasher.id(content), content.len() as u32)).collect();
            frames.push(FrameEntry::new(offset, length, &chunks));
            Ok(())
        })?;
        Ok(Self { id, size: bytes.len() as u64, frames, header: bytes[..HEADER_LENGTH].to_vec() })
    }

    /// The chunks of this entry that the stored bytes of its pack do not give; `key` finds a master key by the header.
    pub fn lacking<'k>(&self, bytes: &[u8], key: impl FnOnce(&Header, &str) -> Result<&'k MasterKey>) -> Vec<ChunkId> {
        let Ok(mut opener) = PackOpener::new(self.id, &self.header, key) else { return self.chunk_ids().collect() };
        let mut lacking = Vec::new();
        for (number, place) in self.frames.iter().enumerate() {
            let start = usize::try_from(place.offset).unwrap_or(usize::MAX);
            let mut sealed = bytes.get(start..start.saturating_add(place.length as usize)).map(<[u8]>::to_vec);
            let frame = sealed.as_mut().and_then(|sealed| opener.frame(number as u64, sealed).ok());
            let is_there =
                |(chunk, id): &(usize, ChunkId)| frame.as_ref().is_some_and(|frame| frame.chunk(*chunk, *id).is_some());
            lacking.extend(place.chunk_ids().enumerate().filter(|chunk| !is_there(chunk)).map(|(_, id)| id));
        }
        lacking
    }
}

/// A frame's chunks, in the clear.
#[derive(Debug)]
pub struct OpenFrame<'f> {
    hasher: &'f ChunkHasher,
    plain: &'f [u8],
    /// Where each chunk starts in `plain`, and the end.
    bounds: Vec<u32>,
}

impl<'f> OpenFrame<'f> {
    fn parse(plain: &'f [u8], hasher: &'f ChunkHasher) -> Option<Self> {
        let count = u32::from_le_bytes(plain.get(..4)?.try_into().ok()?) as usize;
        if count > MAX_FRAME_CHUNKS {
            return None;
        }
        let mut at = 4 + 4 * count;
        let lengths = plain.get(4..at)?;
        let mut bounds = Vec::with_capacity(count + 1);
        bounds.push(at as u32);
        for length in lengths.chunks_exact(4) {
            at = at.checked_add(u32::from_le_bytes(length.try_into().ok()?) as usize)?;
            bounds.push(u32::try_from(at).ok()?);
        }
        (at == plain.len()).then_some(Self { hasher, plain, bounds })
    }

    /// How many chunks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bounds.len() - 1
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Chunk `number` of the frame, if there is one and its content has the name `id`.
    #[must_use]
    pub fn chunk(&self, number: usize, id: ChunkId) -> Option<&[u8]> {
        self.content(number).filter(|content| self.hasher.id(content) == id)
    }

    /// Chunk `number` of the frame, if there is one.
    #[must_use]
    pub fn content(&self, number: usize) -> Option<&[u8]> {
        let (start, end) = (*self.bounds.get(number)?, *self.bounds.get(number + 1)?);
        self.plain.get(start as usize..end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::{MasterKeyId, hex};
    use super::*;
    use proptest::prelude::*;

    fn key() -> MasterKey {
        MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32])
    }

    fn pack_of(key: &MasterKey, frames: &[Vec<Vec<u8>>]) -> (PackEntry, Vec<u8>) {
        let hasher = key.chunk_hasher();
        let mut compressors = [Compressor::thorough().unwrap(), Compressor::new().unwrap()];
        let mut pack = PackBuilder::new(key).unwrap();
        for (number, chunks) in frames.iter().enumerate() {
            let mut frame = FrameBuilder::default();
            for chunk in chunks {
                frame.add(hasher.id(chunk), chunk);
            }
            pack.append(frame.finish(&mut compressors[number % 2]).unwrap());
        }
        pack.finish()
    }

    /// What a gateway writes most of: lines that are alike and not the same.
    fn events(count: u64) -> String {
        let event = |number: u64| {
            let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            format!("{{\"id\":\"{id:016x}\",\"run\":{},\"type\":\"tool\",\"at\":{}}}\n", id >> 50, number * 1717)
        };
        (0..count).map(event).collect()
    }

    #[test]
    fn searching_longer_finds_more() {
        let events = events(20_000);
        let [fast, thorough] = [Compressor::new(), Compressor::thorough()]
            .map(|compressor| compressor.unwrap().compress(events.as_bytes()).unwrap().len());
        assert!(thorough < fast, "{thorough} and {fast} of {} bytes", events.len());
    }

    #[test]
    fn what_follows_a_frame_that_hardly_compresses_is_searched_less() {
        let events = events(20_000);
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let mut compressor = Compressor::new().unwrap();
        let [first, _, after_noise, last] = [events.as_bytes(), &noise, events.as_bytes(), events.as_bytes()]
            .map(|plain| compressor.compress(plain).unwrap().len());
        assert_ne!(after_noise, first);
        assert_eq!(last, first);
    }

    #[test]
    fn haste_leaves_no_trace() {
        let events = events(20_000);
        let mut compressor = Compressor::new().unwrap();
        let [before, in_haste, after] = [false, true, false].map(|in_haste| {
            compressor.make_haste(in_haste).unwrap();
            compressor.compress(events.as_bytes()).unwrap()
        });
        assert_ne!(in_haste, before);
        assert_eq!(after, before);
    }

    #[test]
    fn a_frame_takes_in_another_unless_that_is_too_much() {
        let id = ChunkId([7; 16]);
        let frame = |length: usize| {
            let mut frame = FrameBuilder::default();
            frame.add(id, &vec![0; length]);
            frame
        };
        let (mut first, mut second, mut third) = (frame(MAX_FRAME - 10), frame(10), frame(1));
        assert!(first.absorb(&mut second));
        assert!(second.is_empty());
        assert!(!first.absorb(&mut third));
        assert_eq!((first.len(), third.len()), (MAX_FRAME, 1));
        assert_eq!((first.chunks.len(), third.chunks.len()), (2, 1));
    }

    proptest! {
        #[test]
        fn what_went_into_a_pack_comes_out_by_index_and_without_one(
            frames in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 1..9), 0..6),
            sealed in any::<bool>(),
        ) {
            let key = if sealed { key() } else { MasterKey::plain() };
            let (entry, bytes) = pack_of(&key, &frames);
            let mut opener = PackOpener::new(entry.id, &bytes, |_, _| Ok(&key)).unwrap();
            prop_assert_eq!(entry.size, bytes.len() as u64);
            for (number, (chunks, place)) in frames.iter().zip(&entry.frames).enumerate() {
                let mut sealed = bytes[place.offset as usize..][..place.length as usize].to_vec();
                let frame = opener.frame(number as u64, &mut sealed).unwrap();
                prop_assert_eq!(frame.len(), chunks.len());
                for (number, (chunk, id)) in chunks.iter().zip(place.chunk_ids()).enumerate() {
                    prop_assert_eq!(frame.chunk(number, id), Some(chunk.as_slice()));
                }
            }
            let mut found = Vec::new();
            opener.all_frames(&bytes, |_, offset, length, frame| {
                found.push((offset, length, frame.len()));
                Ok(())
            }).unwrap();
            let expected: Vec<_> =
                entry.frames.iter().zip(&frames).map(|(f, chunks)| (f.offset, f.length, chunks.len())).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_changed_or_cut_or_longer_pack_is_found_out(
            at in any::<proptest::sample::Index>(), bit in 0u8..8, change in 0..3,
        ) {
            let key = key();
            let (entry, mut bytes) = pack_of(&key, &[vec![b"one".to_vec(), b"two".to_vec()], vec![b"three".to_vec()]]);
            let at = at.index(bytes.len());
            match change {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                _ => bytes[at] ^= 1 << bit,
            }
            let read = PackOpener::new(entry.id, &bytes, |header, name| {
                if header.master_key == key.id { Ok(&key) } else { Err(Error::corrupt(name, "unknown key")) }
            })
            .and_then(|mut opener| opener.all_frames(&bytes, |_, _, _, _| Ok(())));
            prop_assert!(read.is_err());
        }

        #[test]
        fn arbitrary_frame_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = OpenFrame::parse(&bytes, &MasterKey::plain().chunk_hasher());
            let _ = decompress(&bytes, 1 << 20);
        }

        #[test]
        fn a_frame_that_was_sealed_may_hold_anything(
            lengths in proptest::collection::vec(prop_oneof![0u32..20, any::<u32>()], 0..6),
            content in proptest::collection::vec(any::<u8>(), 0..60),
            count in prop_oneof![0u32..6, any::<u32>()],
            method in 0u8..3,
        ) {
            let mut plain = count.to_le_bytes().to_vec();
            plain.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
            plain.extend(content);
            let mut part = vec![method];
            part.extend(if method == ZSTD { compress(&plain).unwrap() } else { plain.clone() });
            let key = MasterKey::plain();
            let mut pack = PackBuilder::new(&key).unwrap();
            pack.append(Frame { chunks: Vec::new(), payload: part });
            let (entry, bytes) = pack.finish();
            let mut opener = PackOpener::new(entry.id, &bytes, |_, _| Ok(&key)).unwrap();
            let read = opener.all_frames(&bytes, |_, _, _, frame| {
                let sum: usize = (0..frame.len()).map(|chunk| frame.content(chunk).unwrap().len()).sum();
                assert_eq!(4 + 4 * frame.len() + sum, plain.len());
                assert!(frame.content(frame.len()).is_none());
                Ok(())
            });
            prop_assert!(read.is_err() || method != 2);
        }

        #[test]
        fn arbitrary_packs_never_panic(start in 0usize..80, bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let key = MasterKey::plain();
            let (entry, pack) = pack_of(&key, &[vec![b"one".to_vec()]]);
            let bytes = [&pack[..start.min(pack.len())], &bytes].concat();
            if let Ok(mut opener) = PackOpener::new(entry.id, &bytes, |_, _| Ok(&key)) {
                let _ = opener.all_frames(&bytes, |_, _, _, _| Ok(()));
                let _ = opener.frame(0, &mut bytes.clone());
            }
        }
    }

    /// Computed by the second implementation in Python that `docs/format.md` describes.
    #[test]
    fn a_pack_has_the_known_bytes() {
        let key = MasterKey::from_parts(MasterKeyId([0x11; 16]), [0x22; 32]);
        let encrypted = "f16a524eca9fa53d6fb3b46e7f7614f06bdfe0f095be6e54eb935794764459b134bf8ea5ff4d43ea2f6609\
                      100000006b44aff115d1019947e7e42909ecfcd4";
        let plain = "0002000000060000000800000061747461636b206174206461776eecf9f189e3cfbb5729e3ddd248db6b5f\
                     10000000727fc430dfc32d65145225d427527c6c";
        for (key, salt, known) in [(key, 0x33, encrypted), (MasterKey::plain(), 0, plain)] {
            let id = PackId([0xab; 16]);
            let header = Header { role: Role::Pack, master_key: key.id, salt: [salt; 32] };
            let bytes = header.to_bytes().to_vec();
            let sealer = Sealer::with_header(&key, header, &pack_key(id));
            let mut pack = PackBuilder { id, sealer, bytes, frames: Vec::new() };
            let mut frame = FrameBuilder::default();
            for chunk in [&b"attack"[..], b" at dawn"] {
                frame.add(key.chunk_hasher().id(chunk), chunk);
            }
            pack.append(frame.finish(&mut Compressor::new().unwrap()).unwrap());
            let (_, bytes) = pack.finish();
            assert_eq!(hex(&bytes[HEADER_LENGTH..]), ["2b000000", known].concat());
        }
    }

    #[test]
    fn a_bomb_is_refused_before_it_takes_memory() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 19).unwrap();
        assert!(bomb.len() < 10_000);
        assert!(decompress(&bomb, MAX_FRAME).is_none());
    }
}
