//! Reads chunks: plans which bytes of which packs to ask for, and opens the frames they come in.

use std::collections::hash_map::Entry::Vacant;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use tokio::sync::Semaphore;

use super::id::ChunkId;
use super::index::Index;
use super::keyring::Keyring;
use super::open::Repository;
use super::pack::{PackOpener, pack_key};
use super::restore::parents;
use super::tree::{Entries, Entry, Kind, Root, split_ids};
use crate::commands::Operation;
use crate::error::{Code, Error, Result};
use crate::store::Pieces;
use crate::task::{Threads, blocking, in_parallel};

/// Frames with fewer unwanted bytes between them are read in one request: what another request costs in time is worth
/// more bytes than this on all but the slowest lines.
const MAX_GAP: u64 = 512 << 10;
/// Packs read at once. Each holds a frame and some pieces of the next one in memory.
const PARALLEL_READS: usize = 3;
/// Requests under way beyond those: the first bytes of a pack are there when its turn comes, whatever the line's latency is.
const READS_AHEAD: usize = 3;
/// So many frames are kept whole while the lists of a file tree are read: what a list names mostly lies beside it, and asking for
/// the same bytes again would take the line's latency for each list.
const KEPT_FRAMES: usize = 4;
/// The most bytes that a file tree or a list of its chunks may take in memory.
pub const MAX_TREE: u64 = 1 << 30;

/// Chunks of file trees, put together: each is small, and memory of its own for each would not be given back.
#[derive(Debug, Default)]
struct KnownChunks {
    content: Vec<u8>,
    places: HashMap<ChunkId, Range<usize>>,
}

impl KnownChunks {
    fn insert(&mut self, id: ChunkId, content: &[u8]) {
        if let Vacant(place) = self.places.entry(id) {
            let start = self.content.len();
            self.content.extend_from_slice(content);
            place.insert(start..self.content.len());
        }
    }

    fn get(&self, id: ChunkId) -> Option<&[u8]> {
        self.places.get(&id).map(|place| &self.content[place.clone()])
    }
}

/// What shows that a chunk is what it is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Its name.
    Name,
    /// The seal of the frame that it is in, for a caller that checks what it makes of the chunks: names take 7 % of the
    /// processor time of a restore. In a pack without a seal, its name.
    Seal,
}

/// Whose turn it is to open packs.
#[derive(Debug, Clone)]
struct Turns {
    permits: Arc<Semaphore>,
    threads: Threads,
}

/// One request: a range of a pack, and what is wanted of it.
#[derive(Debug)]
struct Read {
    pack: u32,
    offset: u64,
    length: u64,
    /// Frame number, and the numbers of the wanted chunks in the frame.
    frames: Vec<(u32, Vec<u32>)>,
}

fn plan(index: &Index, wanted: impl IntoIterator<Item = ChunkId>) -> Result<Vec<Read>> {
    let mut by_frame: BTreeMap<(u32, u32), Vec<u32>> = BTreeMap::new();
    for id in wanted {
        let at = index.find(id).ok_or_else(|| missing(id))?;
        by_frame.entry((at.pack, at.frame)).or_default().push(at.chunk);
    }
    let mut reads: Vec<Read> = Vec::new();
    for ((pack, frame), chunks) in by_frame {
        let place = &index.packs[pack as usize].entry.frames[frame as usize];
        let end = place.offset + u64::from(place.length);
        match reads.last_mut() {
            Some(read)
                if read.pack == pack
                    && place.offset.checked_sub(read.offset + read.length).is_some_and(|gap| gap <= MAX_GAP) =>
            {
                read.length = end - read.offset;
                read.frames.push((frame, chunks));
            }
            _ => reads.push(Read {
                pack,
                offset: place.offset,
                length: u64::from(place.length),
                frames: vec![(frame, chunks)],
            }),
        }
    }
    Ok(reads)
}

/// Everything in the frames of these chunks, if those are no more than `most`.
fn beside(index: &Index, chunks: &HashSet<ChunkId>, most: usize) -> impl Iterator<Item = ChunkId> {
    let frame_of = |id| index.find(id).map(|at| (at.pack, at.frame));
    let frames: BTreeSet<(u32, u32)> = chunks.iter().filter_map(|id| frame_of(*id)).collect();
    let kept = if frames.len() <= most { frames } else { BTreeSet::new() };
    kept.into_iter().flat_map(move |frame @ (pack, number)| {
        let entry = &index.packs[pack as usize].entry.frames[number as usize];
        // What is also elsewhere may be read from there.
        entry.chunk_ids().filter(move |id| frame_of(*id) == Some(frame))
    })
}

/// What to say of a chunk that nothing holds.
#[must_use]
pub fn missing(id: ChunkId) -> Error {
    Error::new(Code::Corrupt, format!("the repository lacks the chunk {id}"))
        .advise("run `verify` to see which snapshots are affected; the next push adds what this machine still has")
}

impl Repository {
    /// Reads chunks, each named once, in whatever order is fastest. `sink` is called once for each of them with its content,
    /// from threads that may block, several at once. `damaged` is told which cannot be had, and why, and may end it.
    ///
    /// # Errors
    /// `CORRUPT` when a chunk is in no index object, those of `sink` and `damaged`, those of the store, `CANCELLED`.
    pub async fn read_chunks<S, D>(
        &self,
        index: &Arc<Index>,
        wanted: impl IntoIterator<Item = ChunkId> + Send,
        proof: Proof,
        operation: &Operation,
        sink: Arc<S>,
        damaged: Arc<D>,
    ) -> Result<()>
    where
        S: Fn(&[(ChunkId, &[u8])]) -> Result<()> + Send + Sync + 'static,
        D: Fn(&[ChunkId], Error) -> Result<()> + Send + Sync + 'static,
    {
        let turns = Turns { permits: Arc::new(Semaphore::new(PARALLEL_READS)), threads: Threads::default() };
        let read = |read| {
            let (repository, index, turns) = (self.clone(), Arc::clone(index), turns.clone());
            let (sink, damaged) = (Arc::clone(&sink), Arc::clone(&damaged));
            async move { repository.read(&index, read, proof, &turns, sink, damaged).await }
        };
        let reads = plan(index, wanted)?.into_iter().map(read);
        let ended = in_parallel(PARALLEL_READS + READS_AHEAD, reads, operation, |result| result).await;
        // Where one has failed, others may still be opening a frame: from here on nothing calls `sink`.
        turns.threads.ended().await;
        ended
    }

    async fn read<S, D>(
        &self,
        index: &Arc<Index>,
        read: Read,
        proof: Proof,
        turns: &Turns,
        sink: Arc<S>,
        damaged: Arc<D>,
    ) -> Result<()>
    where
        S: Fn(&[(ChunkId, &[u8])]) -> Result<()> + Send + Sync + 'static,
        D: Fn(&[ChunkId], Error) -> Result<()> + Send + Sync + 'static,
    {
        let key = pack_key(index.packs[read.pack as usize].entry.id);
        let (offset, length) = (read.offset, read.length);
        let (pieces, mut arriving) = Pieces::new();
        let (keyring, index, losing) = (self.keyring.clone(), Arc::clone(index), Arc::clone(&damaged));
        let receiving = async {
            let arrived = self.store.stream_range(&key, offset, length, &pieces).await;
            drop(pieces);
            arrived
        };
        let opening = async {
            // Until something has come, no thread waits for it.
            let mut first = arriving.recv().await;
            let next = move || first.take().or_else(|| arriving.blocking_recv());
            let turn = Arc::clone(&turns.permits).acquire_owned().await.expect("it is never closed");
            let open = move || {
                // It ends with the thread's work, not with who waits for that.
                let _turn = turn;
                open_frames(&keyring, &index, &read, proof, next, &*sink, &*losing)
            };
            turns.threads.blocking(open).await
        };
        let (arrived, without) = tokio::join!(receiving, opening);
        // If opening ended first, what was to arrive was cancelled, and is not the reason.
        let without: Vec<ChunkId> = without?;
        match arrived {
            Err(error) if matches!(error.code(), Code::NotFound | Code::Corrupt) => {
                damaged(&without, Error::corrupt(&key, "it was removed, or cut").because(error))
            }
            arrived => arrived,
        }
    }

    /// Reads chunks into one stream, in order. Those that are `known`, or that the cache remembers, are not asked for. Others are
    /// known afterwards, with all that lies beside them in up to `kept_frames` frames.
    async fn read_stream(
        &self,
        index: &Arc<Index>,
        ids: &[ChunkId],
        known: &mut KnownChunks,
        kept_frames: usize,
        operation: &Operation,
    ) -> Result<Vec<u8>> {
        let mut length = 0;
        for id in ids {
            length += u64::from(index.find(*id).ok_or_else(|| missing(*id))?.length);
        }
        if length > MAX_TREE {
            return Err(Error::new(Code::Corrupt, format!("a file tree of {length} bytes is not credible")));
        }
        let mut uncached: HashSet<ChunkId> = ids.iter().copied().collect();
        if let Some(cache) = &self.cache {
            let mut asked = ids.iter();
            cache.visit_objects(ids.iter().map(|id| tree_cache_key(*id)), |_, content| {
                if let (Some(id), Some(content)) = (asked.next(), content) {
                    known.insert(*id, content);
                    uncached.remove(id);
                }
            });
        }
        let needed: HashSet<ChunkId> = uncached.iter().filter(|id| known.get(**id).is_none()).copied().collect();
        if !needed.is_empty() {
            let wanted: HashSet<ChunkId> = beside(index, &needed, kept_frames).chain(needed.iter().copied()).collect();
            let knowing = Arc::new(Mutex::new(std::mem::take(known)));
            let collecting = Arc::clone(&knowing);
            let sink = move |chunks: &[(ChunkId, &[u8])]| {
                let mut known = collecting.lock().unwrap_or_else(PoisonError::into_inner);
                for (id, content) in chunks {
                    known.insert(*id, content);
                }
                Ok(())
            };
            let damaged = move |chunks: &[ChunkId], error| {
                if chunks.iter().any(|id| needed.contains(id)) { Err(error) } else { Ok(()) }
            };
            self.read_chunks(index, wanted, Proof::Name, operation, Arc::new(sink), Arc::new(damaged)).await?;
            *known = std::mem::take(&mut *knowing.lock().unwrap_or_else(PoisonError::into_inner));
        }
        if let Some(cache) = self.cache.as_ref().filter(|_| !uncached.is_empty()) {
            let objects = uncached.iter().filter_map(|id| Some((tree_cache_key(*id), known.get(*id)?)));
            cache.attempt(|cache| cache.put_objects(objects));
        }
        let mut stream = Vec::with_capacity(length as usize);
        for id in ids {
            stream.extend_from_slice(known.get(*id).ok_or_else(|| missing(*id))?);
        }
        Ok(stream)
    }

    /// The index, of which `attempt` is what [`Repository::attempt_index`] gave, and the file tree below `root`. Where the index
    /// lacks something of the snapshot, an index object may have been lost: then packs that none names are read for what they
    /// hold.
    ///
    /// # Errors
    /// Those of [`Repository::read_tree`]. That content of files is missing is none.
    pub async fn read_snapshot(
        &mut self,
        attempt: Result<Index>,
        root: &Root,
        operation: &Operation,
    ) -> Result<(Arc<Index>, Vec<Entry>)> {
        let index = match attempt {
            Err(error) if error.code() == Code::NotFound => {
                self.refresh().await?;
                self.load_index().await
            }
            attempt => attempt,
        };
        let index = Arc::new(index?);
        let read = self.read_tree(&index, root, operation).await;
        let is_whole = |entries: &[Entry]| entries.iter().flat_map(Entry::chunks).all(|id| index.find(id).is_some());
        match read {
            Ok((entries, _)) if is_whole(&entries) => return Ok((index, entries)),
            Err(error) if error.code() != Code::Corrupt => return Err(error),
            _ if self.contents.packs.keys().all(|id| index.pack(*id).is_some()) => {
                return read.map(|(entries, _)| (index, entries));
            }
            _ => {}
        }
        let index = Arc::new(self.recover_index().await?);
        let (entries, _) = self.read_tree(&index, root, operation).await?;
        Ok((index, entries))
    }

    /// The file tree below `root`, each entry checked, and the ids of the chunks that it is itself made of.
    ///
    /// # Errors
    /// `CORRUPT` when it is damaged, `UNSAFE_PATH` when it leads elsewhere, those of the store, `CANCELLED`.
    pub async fn read_tree(
        &self,
        index: &Arc<Index>,
        root: &Root,
        operation: &Operation,
    ) -> Result<(Vec<Entry>, Vec<ChunkId>)> {
        let mut own = root.chunks.clone();
        let mut level = root.chunks.clone();
        let mut known = KnownChunks::default();
        for _ in 0..root.depth {
            let list = self.read_stream(index, &level, &mut known, KEPT_FRAMES, operation).await?;
            if !list.len().is_multiple_of(16) {
                return Err(Error::corrupt("the file tree", "a list of its chunks was cut"));
            }
            level = split_ids(&list).collect();
            own.extend(&level);
        }
        let stream = self.read_stream(index, &level, &mut known, 0, operation).await?;
        drop(known);
        let entries = blocking(move || {
            let entries = Entries::new(&stream).collect::<Result<Vec<_>>>()?;
            check_parents(&entries)?;
            Ok(entries)
        });
        Ok((entries.await?, own))
    }
}

/// The bytes of a range, as they arrive.
struct Arriving<N> {
    next_piece: N,
    /// What has arrived and was not taken.
    piece: Bytes,
    /// Where in the pack it begins.
    at: u64,
}

impl<N: FnMut() -> Option<Bytes>> Arriving<N> {
    /// Puts the `length` bytes from `offset` on into `taken`, which needs no more memory than that. What lies before them is
    /// passed over. `None` when less than that arrives.
    fn take(&mut self, offset: u64, length: usize, taken: &mut Vec<u8>) -> Option<()> {
        taken.clear();
        taken.reserve_exact(length);
        loop {
            self.skip(offset.saturating_sub(self.at).min(self.piece.len() as u64) as usize);
            if self.at >= offset {
                let part = self.piece.len().min(length - taken.len());
                taken.extend_from_slice(&self.piece[..part]);
                self.skip(part);
            }
            if taken.len() == length {
                return Some(());
            }
            self.piece = (self.next_piece)()?;
        }
    }

    fn skip(&mut self, length: usize) {
        self.piece.advance(length);
        self.at += length as u64;
    }
}

/// Opens the frames of `read` as their bytes arrive, and hands their chunks to `sink`. Gives the chunks for which nothing
/// arrived.
fn open_frames(
    keyring: &Keyring,
    index: &Index,
    read: &Read,
    proof: Proof,
    next_piece: impl FnMut() -> Option<Bytes>,
    sink: &impl Fn(&[(ChunkId, &[u8])]) -> Result<()>,
    damaged: &impl Fn(&[ChunkId], Error) -> Result<()>,
) -> Result<Vec<ChunkId>> {
    let pack = &index.packs[read.pack as usize].entry;
    let ids_of = |(frame, chunks): &(u32, Vec<u32>)| {
        let place = &pack.frames[*frame as usize];
        chunks.iter().map(|chunk| place.chunk_id(*chunk)).collect::<Vec<_>>()
    };
    let proof = if pack.is_plain() { Proof::Name } else { proof };
    let mut opener = PackOpener::new(pack.id, &pack.header, |header, name| keyring.find_for_pack(header, name))?;
    let mut arriving = Arriving { next_piece, piece: Bytes::new(), at: read.offset };
    let mut sealed = Vec::new();
    for (position, wanted @ (number, chunks)) in read.frames.iter().enumerate() {
        let place = &pack.frames[*number as usize];
        if arriving.take(place.offset, place.length as usize, &mut sealed).is_none() {
            return Ok(read.frames[position..].iter().flat_map(ids_of).collect());
        }
        let frame = match opener.frame(u64::from(*number), &mut sealed) {
            Ok(frame) => frame,
            Err(error) => {
                damaged(&ids_of(wanted), error)?;
                continue;
            }
        };
        let mut contents = Vec::with_capacity(chunks.len());
        for (chunk, id) in chunks.iter().zip(ids_of(wanted)) {
            let content = match proof {
                Proof::Name => frame.chunk(*chunk as usize, id),
                Proof::Seal => {
                    let length = place.chunk_length(*chunk) as usize;
                    frame.content(*chunk as usize).filter(|content| content.len() == length)
                }
            };
            if let Some(content) = content {
                contents.push((id, content));
            } else {
                let problem = format!("frame {number} does not hold the chunk {id}");
                damaged(&[id], Error::corrupt(&pack_key(pack.id), problem))?;
            }
        }
        sink(&contents)?;
    }
    Ok(Vec::new())
}

/// Refuses a tree in which something lies below a file or a link: writing it would follow the link.
///
/// # Errors
/// `UNSAFE_PATH`.
pub(crate) fn check_parents(entries: &[Entry]) -> Result<()> {
    let solid: HashSet<&str> = entries
        .iter()
        .filter(|entry| !matches!(entry.kind, Kind::Directory | Kind::Exception))
        .map(|entry| entry.path.as_str())
        .collect();
    for entry in entries {
        if let Some(parent) = parents(&entry.path).find(|parent| solid.contains(parent)) {
            let problem = format!("the snapshot holds {:?} below {parent:?}, which is no directory", entry.path);
            return Err(Error::new(Code::UnsafePath, problem).at_path(&entry.path));
        }
    }
    Ok(())
}

/// Under which name the cache keeps a chunk of a file tree.
#[must_use]
pub fn tree_cache_key(id: ChunkId) -> String {
    format!("tree/{id}")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::json;

    use super::super::index::IndexObject;
    use super::super::open::IfMissing;
    use super::super::pack::{Compressor, FrameBuilder, PackBuilder};
    use super::super::seal::MasterKey;
    use super::*;
    use crate::config::Target;

    /// Else a caller that cleans up after an error would do so while files are still written.
    #[tokio::test]
    async fn after_an_error_nothing_is_read_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({
            "endpoint": format!("file://{}", folder.path().display()), "stateDir": "/nowhere", "encrypt": false,
        });
        let (target, operation) = (Target::from_json(&config).unwrap(), Operation::default());
        let repository = Repository::open(&target, None, IfMissing::ReadAsEmpty, &operation).await.unwrap();
        let key = MasterKey::plain();
        let (mut ids, mut packs) = (Vec::new(), Vec::new());
        for content in ["one", "two"] {
            ids.push(key.chunk_hasher().id(content.as_bytes()));
            let mut frame = FrameBuilder::default();
            frame.add(ids[ids.len() - 1], content.as_bytes());
            let mut pack = PackBuilder::new(&key).unwrap();
            pack.append(frame.finish(&mut Compressor::new().unwrap()).unwrap());
            let (entry, bytes) = pack.finish();
            repository.store.put(&pack_key(entry.id), bytes.into()).await.unwrap();
            packs.push(entry);
        }
        let objects = vec![IndexObject { live: packs, ..IndexObject::default() }];
        let index = Arc::new(Index::new(objects, |_| true));
        let (slow, ended, (begun, waiting)) = (ids[1], Arc::new(AtomicBool::new(false)), mpsc::channel());
        let (waiting, ending) = (Mutex::new(waiting), Arc::clone(&ended));
        let sink = move |chunks: &[(ChunkId, &[u8])]| {
            if chunks[0].0 == slow {
                begun.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(200));
                ending.store(true, Ordering::SeqCst);
                return Ok(());
            }
            waiting.lock().unwrap().recv_timeout(Duration::from_mins(1)).expect("both are read at once");
            Err(Error::new(Code::Io, "no room"))
        };
        let damaged = |_: &[ChunkId], error| Err(error);
        let read = repository.read_chunks(&index, ids, Proof::Name, &operation, Arc::new(sink), Arc::new(damaged));
        assert_eq!(read.await.unwrap_err().code(), Code::Io);
        assert!(ended.load(Ordering::SeqCst), "the other one is still at it");
    }

    proptest! {
        #[test]
        fn however_a_range_arrives_its_parts_are_what_was_stored(
            start in 0u64..1000,
            pieces in proptest::collection::vec(0usize..9, 0..30),
            parts in proptest::collection::vec((0u64..9, 1usize..20), 0..9),
        ) {
            let stored: Vec<u8> = (0..pieces.iter().sum::<usize>()).map(|at| at as u8).collect();
            let mut rest = Bytes::from(stored.clone());
            let mut lengths = pieces.into_iter();
            let next_piece = move || lengths.next().map(|length| rest.split_to(length));
            let mut arriving = Arriving { next_piece, piece: Bytes::new(), at: start };
            let (mut at, mut taken) = (start, Vec::new());
            for (gap, length) in parts {
                at += gap;
                let from = (at - start) as usize;
                let part = stored.get(from..from + length);
                prop_assert_eq!(arriving.take(at, length, &mut taken).map(|()| &taken[..]), part);
                if part.is_none() {
                    break;
                }
                at += length as u64;
            }
        }
    }
}
