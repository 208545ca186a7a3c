//! Writes chunks: finds out which are new, gathers them into frames and packs, and uploads while others are being filled.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};

use super::id::{ChunkId, PackId};
use super::index::{FrameEntry, INDEX_TARGET_CHUNKS, Index, IndexObject, PackEntry};
use super::open::Repository;
use super::pack::{Compressor, Frame, FrameBuilder, MAX_FRAME, PACK_TARGET, PackBuilder, pack_key};
use super::seal::{ChunkHasher, MasterKey};
use crate::cache::Cache;
use crate::commands::{Meter, Operation};
use crate::error::{Error, Result};
use crate::task;

/// Packs that exist at once, being filled, waiting or being uploaded: this bounds the memory that they take to 48 MiB.
const PACKS_IN_MEMORY: usize = 3;
/// On a slow line packs are made smaller, so that one takes about this long and an interruption loses no more.
const UPLOAD_TIME_TARGET: Duration = Duration::from_secs(8);
/// But not smaller than this: each costs a request.
const SMALLEST_PACK_TARGET: usize = 2 << 20;
/// While nothing is known of the line: some of these are filled before the first has arrived.
const FIRST_PACK_TARGET: usize = 4 << 20;
/// Frames that begin within so many bytes of new chunks are compressed thoroughly: most pushes have no more, and in a large one
/// a few bytes in a hundred are not worth the time.
const THOROUGH_BYTES: usize = 2 << 20;
/// Packs are entered into an index object at least this often, and as soon as they fill one: so that other machines find them
/// too should this one not finish.
const INDEX_INTERVAL: Duration = Duration::from_mins(2);

/// Takes chunks from several threads and sees to it that each new one reaches the store once.
#[derive(Debug)]
pub struct Writer {
    key: MasterKey,
    hasher: ChunkHasher,
    index: Arc<Index>,
    /// Chunks that this run has taken on, beyond those of the index.
    taken: Mutex<HashSet<ChunkId>>,
    /// Chunks that did not fill a frame of a sink.
    rest: Mutex<FrameBuilder>,
    /// Bytes of chunks that were compressed.
    compressed: AtomicUsize,
    pack: Mutex<Option<(PackBuilder, Place)>>,
    /// Bytes at which a pack is closed; the uploader adapts it to the line.
    pack_target: Arc<AtomicUsize>,
    /// Whether somebody waits for the snapshot.
    awaited: bool,
    /// Where full packs go; `None` when chunks are only to be named.
    outlet: Option<Outlet>,
}

#[derive(Debug)]
struct Outlet {
    full: mpsc::UnboundedSender<FullPack>,
    /// One for each pack that may exist; closed when an upload has failed.
    places: Arc<Semaphore>,
    /// The memory of packs that were uploaded, for the next ones. Given back to the allocator it would be cut up, and new
    /// memory taken in its stead: a first push of 300 MB took 171 MB that way, and 119 MB with this.
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    runtime: tokio::runtime::Handle,
}

/// The right to have one pack in memory, and where to leave the memory.
#[derive(Debug)]
struct Place {
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
    _permit: OwnedSemaphorePermit,
}

/// The bytes of a pack that is being uploaded.
#[derive(Debug)]
struct PackBytes {
    bytes: Vec<u8>,
    place: Place,
}

impl AsRef<[u8]> for PackBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for PackBytes {
    fn drop(&mut self) {
        // Before the permit: whoever waits for it finds the memory.
        lock(&self.place.buffers).push(std::mem::take(&mut self.bytes));
    }
}

#[derive(Debug)]
struct FullPack {
    entry: PackEntry,
    bytes: Bytes,
}

/// The other end of a [`Writer`]: uploads what it fills.
#[derive(Debug)]
pub struct Uploads {
    task: JoinHandle<Result<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Starts writing into `repository`, which is founded first, and whose index is `index`. `adopted` are packs of an interrupted
    /// run that no index object names yet.
    ///
    /// # Errors
    /// `WRONG_KEY` when the configured secrets do not open the key for writing.
    pub(crate) fn start(
        repository: &Repository,
        index: Arc<Index>,
        adopted: Vec<PackEntry>,
        operation: &Operation,
        meter: Arc<Meter>,
    ) -> Result<(Self, Uploads)> {
        let (full, queue) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(PACKS_IN_MEMORY));
        // Nothing is known of the line yet.
        let pack_target = Arc::new(AtomicUsize::new(FIRST_PACK_TARGET));
        let taken = adopted.iter().flat_map(|pack| &pack.frames).flat_map(FrameEntry::chunk_ids).collect();
        let key = repository.keyring.writing()?.clone();
        let writer = Self {
            hasher: key.chunk_hasher(),
            key,
            index,
            taken: Mutex::new(taken),
            rest: Mutex::default(),
            compressed: AtomicUsize::new(0),
            pack: Mutex::new(None),
            pack_target: Arc::clone(&pack_target),
            awaited: operation.is_awaited(),
            outlet: Some(Outlet {
                full,
                places: Arc::clone(&places),
                buffers: Arc::default(),
                runtime: tokio::runtime::Handle::current(),
            }),
        };
        let uploader = Uploader {
            repository: repository.clone(),
            operation: operation.clone(),
            pack_target,
            meter,
            done: adopted,
        };
        let task = async move {
            let result = uploader.run(queue).await;
            places.close();
            result
        };
        Ok((writer, Uploads { task: tokio::spawn(task) }))
    }

    /// A writer that names chunks as `key` does and keeps none: to compare a state with a snapshot.
    #[must_use]
    pub(crate) fn hashing(key: &MasterKey) -> Self {
        Self {
            hasher: key.chunk_hasher(),
            key: key.clone(),
            index: Arc::default(),
            taken: Mutex::default(),
            rest: Mutex::default(),
            compressed: AtomicUsize::new(0),
            pack: Mutex::default(),
            pack_target: Arc::default(),
            awaited: false,
            outlet: None,
        }
    }

    /// A place for one thread to put its chunks.
    ///
    /// # Errors
    /// `IO` when zstd has no memory.
    pub fn sink(self: &Arc<Self>) -> Result<Sink> {
        Ok(Sink { writer: Arc::clone(self), frame: FrameBuilder::default(), compressor: Compressor::new()? })
    }

    /// Whether a chunk needs no upload: the store has it, or this run has taken it on.
    #[must_use]
    pub fn has(&self, id: ChunkId) -> bool {
        self.outlet.is_none() || self.index.has_live(id) || lock(&self.taken).contains(&id)
    }

    /// Chunks that the store has lost, and that this run has not taken on yet.
    #[must_use]
    pub fn lost(&self) -> Vec<ChunkId> {
        let taken = lock(&self.taken);
        self.index.lost.iter().filter(|id| !taken.contains(id)).copied().collect()
    }

    /// How many chunks that the store had lost it will have again.
    #[must_use]
    pub fn healed(&self) -> u64 {
        let taken = lock(&self.taken);
        self.index.lost.iter().filter(|id| taken.contains(id)).count() as u64
    }

    /// Closes the frame that the sinks of several threads have filled together, so that what comes next is read without it.
    ///
    /// # Errors
    /// `CANCELLED` when an upload has failed, `IO`.
    pub fn flush(&self) -> Result<()> {
        let mut rest = std::mem::take(&mut *lock(&self.rest));
        self.close(&mut rest, &mut Compressor::new()?)
    }

    /// Compresses what a frame has been given, if anything, and starts it over.
    fn close(&self, frame: &mut FrameBuilder, compressor: &mut Compressor) -> Result<()> {
        if frame.is_empty() {
            return Ok(());
        }
        let before = self.compressed.fetch_add(frame.len(), Ordering::Relaxed);
        let compressed = if before < THOROUGH_BYTES {
            // Made for the frame: few are worth it, and what it takes is given back.
            Compressor::thorough().and_then(|mut thorough| frame.finish(&mut thorough))
        } else {
            compressor.make_haste(self.compression_is_late()).and_then(|()| frame.finish(compressor))
        };
        // With a key: it is not the fault of the file that is being read.
        compressed.and_then(|frame| self.append(frame)).map_err(|error| error.at_key("packs/"))
    }

    /// Whether somebody waits, and the line for what is compressed: it has turned out to carry the largest packs, and could take
    /// another one.
    fn compression_is_late(&self) -> bool {
        let line_is_quick = self.pack_target.load(Ordering::Relaxed) == PACK_TARGET;
        let line_is_free = self.outlet.as_ref().is_some_and(|outlet| outlet.places.available_permits() > 0);
        self.awaited && line_is_quick && line_is_free
    }

    fn append(&self, frame: Frame) -> Result<()> {
        let Some(outlet) = &self.outlet else { return Ok(()) };
        let mut pack = lock(&self.pack);
        let (mut open, place) = if let Some(open) = pack.take() {
            open
        } else {
            let place = outlet.place()?;
            (PackBuilder::with_buffer(&self.key, place.buffer())?, place)
        };
        open.append(frame);
        if open.len() < self.pack_target.load(Ordering::Relaxed) {
            *pack = Some((open, place));
            return Ok(());
        }
        drop(pack);
        outlet.upload(open, place)
    }

    /// Hands over the last pack. Blocks; every sink, and what they left, must have been closed before.
    ///
    /// # Errors
    /// `CANCELLED` when an upload has failed.
    pub fn finish(self) -> Result<()> {
        match (&self.outlet, lock(&self.pack).take()) {
            (Some(outlet), Some((pack, place))) => outlet.upload(pack, place),
            _ => Ok(()),
        }
    }
}

impl Outlet {
    /// Waits until another pack may exist.
    fn place(&self) -> Result<Place> {
        // A closed semaphore or channel means that an upload failed; `Uploads::finish` says how.
        let permit = self.runtime.block_on(Arc::clone(&self.places).acquire_owned());
        let permit = permit.map_err(|_| Error::cancelled())?;
        Ok(Place { buffers: Arc::clone(&self.buffers), _permit: permit })
    }

    fn upload(&self, pack: PackBuilder, place: Place) -> Result<()> {
        let (entry, bytes) = pack.finish();
        let bytes = Bytes::from_owner(PackBytes { bytes, place });
        self.full.send(FullPack { entry, bytes }).map_err(|_| Error::cancelled())
    }
}

impl Place {
    fn buffer(&self) -> Vec<u8> {
        // All at once: growing by doubling would take twice as much for a moment.
        lock(&self.buffers).pop().unwrap_or_else(|| Vec::with_capacity(PACK_TARGET + MAX_FRAME))
    }
}

/// Where one thread puts its chunks. Consecutive ones share a frame and compress together.
pub struct Sink {
    writer: Arc<Writer>,
    frame: FrameBuilder,
    compressor: Compressor,
}

impl Sink {
    /// Sees to it that the store will have this chunk, and names it. May block while uploads catch up.
    ///
    /// # Errors
    /// `CANCELLED` when an upload has failed, `IO`.
    pub fn add(&mut self, content: &[u8]) -> Result<ChunkId> {
        let id = self.writer.hasher.id(content);
        if self.writer.outlet.is_some() && !self.writer.index.has_live(id) && lock(&self.writer.taken).insert(id) {
            if !self.frame.has_room_for(content.len()) {
                self.flush()?;
            }
            self.frame.add(id, content);
            if self.frame.is_full() {
                self.flush()?;
            }
        }
        Ok(id)
    }

    /// Closes the current frame, so that what comes next is read without what came before.
    ///
    /// # Errors
    /// `CANCELLED` when an upload has failed, `IO`.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.close(&mut self.frame, &mut self.compressor)
    }

    /// Leaves what has not filled a frame to [`Writer::flush`], to compress it together with what other threads leave.
    ///
    /// # Errors
    /// `CANCELLED` when an upload has failed, `IO`.
    pub fn finish(mut self) -> Result<()> {
        let mut rest = lock(&self.writer.rest);
        if rest.absorb(&mut self.frame) {
            return Ok(());
        }
        std::mem::swap(&mut *rest, &mut self.frame);
        drop(rest);
        self.flush()
    }
}

impl Uploads {
    /// Waits until every pack is stored and entered into an index object.
    ///
    /// # Errors
    /// The first failed upload's.
    pub async fn finish(self) -> Result<()> {
        self.task.await.map_err(task::failed)?
    }
}

struct Uploader {
    repository: Repository,
    operation: Operation,
    pack_target: Arc<AtomicUsize>,
    meter: Arc<Meter>,
    /// Stored packs that no index object names yet.
    done: Vec<PackEntry>,
}

impl Uploader {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<FullPack>) -> Result<()> {
        self.repository.found().await?;
        let mut under_way: JoinSet<Result<PackEntry>> = JoinSet::new();
        let mut last_index = Instant::now();
        let mut all_handed_over = false;
        let result = loop {
            tokio::select! {
                biased;
                () = self.operation.cancel.cancelled() => break Err(Error::cancelled()),
                Some(result) = under_way.join_next() => match result.map_err(task::failed).flatten() {
                    Ok(pack) => {
                        self.note(pack);
                        let chunks: usize = self.done.iter().map(PackEntry::chunk_count).sum();
                        if chunks >= INDEX_TARGET_CHUNKS || last_index.elapsed() >= INDEX_INTERVAL {
                            self.write_index().await?;
                            last_index = Instant::now();
                        }
                    }
                    Err(error) => break Err(error),
                },
                pack = queue.recv(), if !all_handed_over => match pack {
                    Some(FullPack { entry, bytes }) => {
                        // Before it is sent: if it arrives, the next run finds it, whenever this one ends.
                        self.note_in_cache(|cache| cache.add_pending(&entry));
                        let (store, target) = (Arc::clone(&self.repository.store), Arc::clone(&self.pack_target));
                        under_way.spawn(async move {
                            let started = Instant::now();
                            store.put(&pack_key(entry.id), bytes).await?;
                            adapt(&target, entry.size, started.elapsed());
                            Ok(entry)
                        });
                    }
                    None => all_handed_over = true,
                },
            }
            if all_handed_over && under_way.is_empty() {
                break Ok(());
            }
        };
        // What arrives is in the cache, for the next run. After a failure nothing more is sent.
        while let Some(result) = under_way.join_next().await {
            if let Ok(Ok(pack)) = result {
                self.note(pack);
            }
        }
        result?;
        self.write_index().await?;
        self.note_in_cache(Cache::clear_pending);
        Ok(())
    }

    fn note_in_cache(&self, note: impl FnOnce(&Cache) -> Result<()>) {
        if let Some(cache) = &self.repository.cache {
            cache.attempt(note);
        }
    }

    fn note(&mut self, pack: PackEntry) {
        self.done.push(pack);
        self.meter.transferred(self.repository.stats().sent_bytes);
    }

    async fn write_index(&mut self) -> Result<()> {
        let packs = std::mem::take(&mut self.done);
        let ids: Vec<PackId> = packs.iter().map(|pack| pack.id).collect();
        for object in IndexObject::split(packs, Vec::new()) {
            self.repository.put_index(&object).await?;
        }
        if !ids.is_empty() {
            self.note_in_cache(|cache| cache.forget_pending(&ids));
        }
        Ok(())
    }
}

/// Makes packs as large as the line carries in [`UPLOAD_TIME_TARGET`], but no more than four times as large as before: others
/// that are under way share the line.
fn adapt(target: &AtomicUsize, bytes: u64, took: Duration) {
    let per_second = bytes as f64 / took.as_secs_f64().max(0.001);
    #[allow(clippy::cast_sign_loss)] // neither bytes nor seconds are negative
    let fitting = (per_second * UPLOAD_TIME_TARGET.as_secs_f64()) as usize;
    let most = PACK_TARGET.min(4 * target.load(Ordering::Relaxed));
    target.store(fitting.clamp(SMALLEST_PACK_TARGET, most), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::super::id::MasterKeyId;
    use super::*;

    #[tokio::test]
    async fn compression_is_late_while_somebody_waits_and_a_quick_line_is_free() {
        let key = MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32]);
        let writer = |awaited, pack_target, packs| {
            let outlet = Outlet {
                full: mpsc::unbounded_channel().0,
                places: Arc::new(Semaphore::new(PACKS_IN_MEMORY - packs)),
                buffers: Arc::default(),
                runtime: tokio::runtime::Handle::current(),
            };
            let pack_target = Arc::new(AtomicUsize::new(pack_target));
            Writer { awaited, pack_target, outlet: Some(outlet), ..Writer::hashing(&key) }
        };
        assert!(writer(true, PACK_TARGET, 2).compression_is_late());
        assert!(!writer(false, PACK_TARGET, 2).compression_is_late(), "nobody waits");
        assert!(!writer(true, FIRST_PACK_TARGET, 2).compression_is_late(), "the line is not known yet");
        assert!(!writer(true, PACK_TARGET, 3).compression_is_late(), "the line is what takes time");
    }
}
