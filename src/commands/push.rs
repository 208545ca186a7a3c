//! `push`: takes a snapshot of the state directory and stores what the repository does not have yet.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{Exception, Meter, Operation, PushOptions, PushReport, Trigger, prune};
use crate::cache::{Cache, CachedFile};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::chunk::{ChunkSizes, Chunker};
use crate::repository::id::{ChunkId, MachineId, PackId, SnapshotId, hex};
use crate::repository::index::{Index, PackEntry};
use crate::repository::manifest::{LISTED_EXCEPTIONS, Summary};
use crate::repository::open::{IfMissing, Repository, task_failed};
use crate::repository::read::tree_cache_key;
use crate::repository::tree::{Content, Entry, Kind, ROOT_CHUNKS, Root, join_ids};
use crate::repository::write::{Sink, Writer};
use crate::state::database;
use crate::state::private::{Lock, PrivateFolder};
use crate::state::rules::Rules;
use crate::state::scan::{Found, FoundKind, Scan, Signature, mode, mtime, scan};

/// A file whose times lie this close to the scan may change again without its times showing it (coarse clocks of file
/// systems), so that it is read again the next time.
const RACY: Duration = Duration::from_secs(2);
/// How often a file that changes while it is read is read anew.
const READ_ATTEMPTS: usize = 3;
/// A push that took longer than this looks again at what the store holds before it commits. Far below the grace period
/// after which other machines delete packs.
const TRUST_LISTING: Duration = Duration::from_mins(10);
/// The oldest pack of an interrupted run that is taken over; older ones may be about to be deleted as orphans.
const ADOPT_BELOW_AGE: Duration = Duration::from_hours(12);
/// Under which name the cache remembers the last snapshot of this machine.
const LAST_SNAPSHOT: &str = "last";

/// Takes a snapshot. With nothing changed since this machine's last one, none is made.
///
/// # Errors
/// `LOCKED`, `CONFIG`, `IO`, `CANCELLED`, and those of [`Repository::open`]. Until the manifest is written nothing of an
/// interrupted push can be seen; the next one takes over what was uploaded.
pub async fn push(target: &Target, options: PushOptions, operation: &Operation) -> Result<PushReport> {
    let workplace = Workplace::open(target, "push").await?;
    let (report, mut repository) = take_snapshot(target, &workplace, options.trigger, operation).await?;
    let mut report = report;
    if report.snapshot.is_some() {
        match prune::apply_retention(&mut repository, target, workplace.machine, operation).await {
            Ok(_) => {}
            Err(error) if error.code() == Code::Cancelled => return Err(error),
            Err(error) => report.warnings.push(format!("old snapshots were not removed: {error}")),
        }
        report.requests = repository.stats().requests;
    }
    Ok(report)
}

/// The lock on the product's own folder, and what is in it.
#[derive(Debug)]
pub(super) struct Workplace {
    pub(super) folder: PrivateFolder,
    pub(super) cache: Arc<Cache>,
    pub(super) machine: MachineId,
    _lock: Lock,
}

impl Workplace {
    /// Takes the lock, finishes or undoes a rollback that was interrupted, and opens the cache.
    pub(super) async fn open(target: &Target, verb: &'static str) -> Result<Self> {
        let (state_dir, identity) = (target.state_dir.clone(), target.identity());
        let open = move || {
            let folder = PrivateFolder::open(&state_dir)?;
            let lock = folder.lock(verb)?;
            super::rollback::recover(&state_dir, &folder)?;
            let cache = Arc::new(Cache::open(&folder.path("cache.sqlite"), &identity)?);
            Ok(Self { machine: folder.machine_id()?, cache, folder, _lock: lock })
        };
        tokio::task::spawn_blocking(open).await.map_err(|error| task_failed(&error))?
    }
}

/// What the cache remembers of this machine's last snapshot.
#[derive(serde::Serialize, serde::Deserialize)]
struct LastSnapshot {
    id: String,
    digest: String,
}

/// Takes a snapshot under a lock that is already held. A safety snapshot is made even when nothing has changed.
pub(super) async fn take_snapshot(
    target: &Target,
    workplace: &Workplace,
    trigger: Trigger,
    operation: &Operation,
) -> Result<(PushReport, Repository)> {
    let started = Instant::now();
    let rules = Rules::new(&target.include, &target.exclude, target.encrypt)?;
    let looking = {
        let (state_dir, cache, operation) = (target.state_dir.clone(), Arc::clone(&workplace.cache), operation.clone());
        tokio::task::spawn_blocking(move || {
            let now = SystemTime::now();
            scan(&state_dir, &rules, &operation).map(|scan| (scan, cache.files(), now))
        })
    };
    let opened = Repository::open(target, Some(Arc::clone(&workplace.cache)), IfMissing::Create, operation).await;
    let (scan, known, scanned_at) = looking.await.map_err(|error| task_failed(&error))??;
    let mut repository = opened?;
    operation.check()?;

    let listed_at = (Instant::now(), SystemTime::now());
    let index = Arc::new(repository.load_index().await?);
    let adopted = packs_to_adopt(&repository, &index, workplace.cache.pending());
    let meter = Arc::new(Meter::new(operation, "upload", 0, 0));
    let (writer, uploads) = Writer::start(&repository, Arc::clone(&index), adopted, operation, Arc::clone(&meter));
    let job = Job {
        state_dir: target.state_dir.clone(),
        temporary: workplace.folder.fresh_temporary_folder()?,
        chunker: Chunker::new(repository.keyring.writing().gear()),
        scanned_at,
        writer: Arc::new(writer),
        meter,
        operation: operation.clone(),
        cache: Arc::clone(&workplace.cache),
    };
    let work = tokio::task::spawn_blocking(move || job.run(scan, known));
    let worked = work.await.map_err(|error| task_failed(&error))?;
    let new_packs = uploads.finish().await;
    // A failed upload stops the work with CANCELLED; the upload's own error says why.
    let (tree, new_packs) = match (worked, new_packs) {
        (Ok(tree), Ok(new_packs)) => (tree, new_packs),
        (Err(error), Ok(_)) | (_, Err(error)) => return Err(error),
    };
    operation.check()?;

    let last: Option<LastSnapshot> =
        workplace.cache.object(LAST_SNAPSHOT).and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let unchanged = trigger != Trigger::BeforeRollback
        && last.is_some_and(|last| last.digest == tree.digest && repository.contents.has_snapshot(&last.id));
    let snapshot = if unchanged {
        None
    } else {
        if listed_at.0.elapsed() > TRUST_LISTING || listed_at.1.elapsed().is_ok_and(|took| took > TRUST_LISTING) {
            confirm_packs(&mut repository, &index, new_packs).await?;
        }
        Some(commit(&repository, workplace.machine, trigger, &tree).await?)
    };

    let report = PushReport {
        snapshot: snapshot.as_ref().map(ToString::to_string),
        trigger,
        files: tree.files,
        bytes: tree.bytes,
        changed_files: tree.changed_files,
        uploaded_bytes: repository.stats().sent_bytes,
        requests: repository.stats().requests,
        exceptions: tree.exceptions,
        warnings: Vec::new(),
        duration: started.elapsed(),
    };
    let cache = Arc::clone(&workplace.cache);
    let (changed, gone, digest) = (tree.cacheable, tree.gone, tree.digest);
    let remember = move || -> Result<()> {
        cache.update_files(&changed, &gone)?;
        if let Some(id) = snapshot {
            let last = LastSnapshot { id: id.to_string(), digest };
            let bytes = serde_json::to_vec(&last).map_err(|error| Error::new(Code::Io, error.to_string()))?;
            cache.put_objects([(LAST_SNAPSHOT.to_owned(), &bytes[..])])?;
        }
        Ok(())
    };
    if let Err(error) = tokio::task::spawn_blocking(remember).await.map_err(|error| task_failed(&error))? {
        tracing::warn!(%error, "the local cache could not be written");
    }
    Ok((report, repository))
}

/// Packs that an interrupted run has uploaded, as far as the store has them whole and no index object names them.
fn packs_to_adopt(repository: &Repository, index: &Index, pending: Vec<PackEntry>) -> Vec<PackEntry> {
    let usable = |pack: &PackEntry| {
        index.pack(pack.id).is_none()
            && repository.contents.packs.get(&pack.id).is_some_and(|stored| {
                let age = repository.store.now().duration_since(stored.modified).unwrap_or_default();
                stored.size == pack.size && age < ADOPT_BELOW_AGE
            })
    };
    pending.into_iter().filter(usable).collect()
}

/// Checks that what this push relied on is still there. Only a push of many minutes can find anything else.
async fn confirm_packs(repository: &mut Repository, index: &Index, new_packs: u64) -> Result<()> {
    repository.refresh().await?;
    let now = repository.load_index().await?;
    let gone = index.packs.iter().filter(|pack| !pack.condemned).any(|pack| {
        let id: PackId = pack.entry.id;
        now.pack(id).is_none_or(|pack| pack.condemned)
    });
    if gone {
        return Err(Error::new(Code::Network, "another machine pruned the repository during this long push")
            .advise(format!("try again; the {new_packs} packs uploaded so far are not sent again"))
            .retryable());
    }
    Ok(())
}

/// Writes the manifest: from here on the snapshot exists.
async fn commit(repository: &Repository, machine: MachineId, trigger: Trigger, tree: &Tree) -> Result<SnapshotId> {
    let now = repository.store.now();
    let id = SnapshotId::generate(now, trigger == Trigger::BeforeRollback)?;
    let created_at = jiff::Timestamp::try_from(now)
        .and_then(|time| time.round(jiff::Unit::Second))
        .map_err(|error| Error::new(Code::Config, format!("the clock shows no usable time: {error}")))?;
    let summary = Summary {
        created_at,
        trigger,
        machine,
        host: host_name(),
        writer: env!("CARGO_PKG_VERSION").into(),
        files: tree.files,
        bytes: tree.bytes,
        exceptions: tree.exceptions.len() as u64,
        first_exceptions: tree.exceptions.iter().take(LISTED_EXCEPTIONS).cloned().collect(),
        tree: tree.root.clone(),
    };
    let manifest = summary.to_manifest(&id, repository.keyring.writing())?;
    repository.store.put(&id.manifest_key(), Bytes::from(manifest.clone())).await?;
    repository.remember(id.manifest_key(), &manifest);
    Ok(id)
}

fn host_name() -> String {
    #[cfg(unix)]
    return rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    return std::env::var("COMPUTERNAME").unwrap_or_default();
}

/// The finished tree of a snapshot.
struct Tree {
    root: Root,
    /// What tells this tree from the last one; see [`digest`].
    digest: String,
    files: u64,
    bytes: u64,
    changed_files: u64,
    exceptions: Vec<Exception>,
    cacheable: Vec<CachedFile>,
    gone: Vec<String>,
}

/// What became of one file.
enum Outcome {
    /// It is in the snapshot.
    Kept { entry: Entry, signature: Option<Vec<u8>>, reread: bool },
    /// It vanished since the scan, as if it had been deleted before.
    Vanished,
    /// It cannot be in the snapshot.
    Excepted(Exception),
}

/// Everything that the threads of a push share.
struct Job {
    state_dir: PathBuf,
    temporary: PathBuf,
    chunker: Chunker,
    scanned_at: SystemTime,
    writer: Arc<Writer>,
    meter: Arc<Meter>,
    operation: Operation,
    cache: Arc<Cache>,
}

impl Job {
    fn run(self, scan: Scan, known: HashMap<String, CachedFile>) -> Result<Tree> {
        let Scan { found, mut exceptions, .. } = scan;
        let mut entries = Vec::with_capacity(found.len());
        let mut kept = Vec::with_capacity(found.len());
        let mut to_read = Vec::new();
        for found in found {
            match &found.kind {
                FoundKind::Directory => entries.push(Entry::new(found.path, Kind::Directory, found.mode, found.mtime)),
                FoundKind::Symlink(target) => {
                    entries.push(Entry::new(found.path.as_str(), Kind::Symlink, found.mode, found.mtime).with_target(target));
                }
                FoundKind::File => match known.get(&found.path).filter(|known| self.is_unchanged(&found, known)) {
                    Some(known) => {
                        let signature = Some(known.signature.clone());
                        kept.push(Outcome::Kept { entry: known.entry.clone(), signature, reread: false });
                    }
                    None => to_read.push(found),
                },
            }
        }
        self.meter.expect(to_read.len() as u64, to_read.iter().map(|found| found.size).sum());
        kept.extend(self.read_all(to_read, &known)?);

        let mut tree = Tree {
            root: Root { depth: 0, chunks: Vec::new() },
            digest: String::new(),
            files: 0,
            bytes: 0,
            changed_files: 0,
            exceptions: Vec::new(),
            cacheable: Vec::new(),
            gone: Vec::new(),
        };
        for outcome in kept {
            match outcome {
                Outcome::Kept { entry, signature, reread } => {
                    tree.files += 1;
                    tree.bytes += entry.size;
                    let previous = known.get(&entry.path);
                    tree.changed_files += u64::from(previous.is_none_or(|known| known.entry != entry));
                    match signature {
                        Some(signature) if reread => tree.cacheable.push(CachedFile { signature, entry: entry.clone() }),
                        Some(_) => {}
                        // Its entry is still worth remembering, under a signature that no file has.
                        None => tree.cacheable.push(CachedFile { signature: Vec::new(), entry: entry.clone() }),
                    }
                    entries.push(entry);
                }
                Outcome::Vanished => {}
                Outcome::Excepted(exception) => exceptions.push(exception),
            }
        }
        let present: std::collections::HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        tree.gone = known.into_keys().filter(|path| !present.contains(path.as_str())).collect();
        add_exceptions(&mut entries, &mut exceptions);
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        tree.exceptions = exceptions;
        tree.digest = digest(&entries);
        tree.root = self.write_tree(&entries)?;
        let writer = Arc::into_inner(self.writer).ok_or_else(|| Error::new(Code::Io, "internal error: a sink is left"))?;
        writer.finish()?;
        Ok(tree)
    }

    /// Whether the file can be taken over without reading it: same signature, and the store still has all of it.
    fn is_unchanged(&self, found: &Found, known: &CachedFile) -> bool {
        known.signature == found.signature.bytes
            && known.entry.mode == found.mode
            && known.entry.chunks().all(|id| self.writer.has(id))
    }

    /// Reads files on as many threads as there are cores. Databases come first: each is copied as a whole before its
    /// first chunk can go out.
    fn read_all(&self, mut to_read: Vec<Found>, known: &HashMap<String, CachedFile>) -> Result<Vec<Outcome>> {
        let was_database = |path: &str| match known.get(path) {
            Some(known) => known.entry.kind == Kind::Database,
            None => path.contains(".sqlite") || path.ends_with(".db"),
        };
        to_read.sort_by_key(|found| !was_database(&found.path));
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::with_capacity(to_read.len()));
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(to_read.len());
        let work = || -> Result<()> {
            let mut reader = Reader { job: self, sink: self.writer.sink()?, buffer: Vec::new() };
            let mut own = Vec::new();
            while let Some(found) = to_read.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.operation.check()?;
                own.push(reader.read(found, known.get(&found.path))?);
                self.meter.files(1);
            }
            reader.sink.flush()?;
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).append(&mut own);
            Ok(())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::new(Code::Io, "internal error: a thread panicked")))
            });
            // All are waited for; the first real error wins over the cancellations that follow from it.
            let errors: Vec<Error> = joined.filter_map(Result::err).collect();
            errors.into_iter().min_by_key(|error| error.code() == Code::Cancelled).map_or(Ok(()), Err)
        })?;
        Ok(outcomes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores the tree stream, then the list of its chunks, until the list is short.
    fn write_tree(&self, entries: &[Entry]) -> Result<Root> {
        let mut sink = self.writer.sink()?;
        let mut stream = Vec::new();
        entries.iter().for_each(|entry| entry.write(&mut stream));
        let mut chunks = self.write_stream(&stream, &mut sink)?;
        let mut depth = 0;
        while chunks.len() > ROOT_CHUNKS {
            chunks = self.write_stream(&join_ids(&chunks), &mut sink)?;
            depth += 1;
        }
        sink.flush()?;
        Ok(Root { depth, chunks })
    }

    fn write_stream(&self, stream: &[u8], sink: &mut Sink) -> Result<Vec<ChunkId>> {
        let mut ids = Vec::new();
        let mut new = Vec::new();
        let mut at = 0;
        self.chunker.split(&mut &*stream, ChunkSizes::for_size(0), &mut Vec::new(), |chunk| {
            let id = sink.add(chunk)?;
            ids.push(id);
            let key = tree_cache_key(id);
            if self.cache.object(&key).is_none() {
                new.push((key, at..at + chunk.len()));
            }
            at += chunk.len();
            Ok::<_, Error>(())
        })?;
        if let Err(error) = self.cache.put_objects(new.into_iter().map(|(key, range)| (key, &stream[range]))) {
            tracing::warn!(%error, "the local cache could not be written");
        }
        Ok(ids)
    }
}

impl From<io::Error> for Error {
    /// For readers inside the chunker; callers add the path.
    fn from(error: io::Error) -> Self {
        Self::new(Code::Io, error.to_string()).because(error)
    }
}

/// Reads files on one thread.
struct Reader<'j> {
    job: &'j Job,
    sink: Sink,
    buffer: Vec<u8>,
}

/// How one attempt to read a file ended.
enum Attempt {
    /// The content is that of one moment.
    Consistent(Content),
    /// It grew; what was there at the start of the attempt was read.
    Grew(Content),
    /// It changed.
    Changed,
}

impl Reader<'_> {
    fn read(&mut self, found: &Found, known: Option<&CachedFile>) -> Result<Outcome> {
        match self.read_file(found, known) {
            Err(error) if error.code() == Code::Io && error.context().path.is_none() => {
                let source = std::error::Error::source(&error).and_then(|error| error.downcast_ref::<io::Error>());
                if source.is_some_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    return Ok(Outcome::Vanished);
                }
                Ok(Outcome::Excepted(Exception { path: found.path.clone(), reason: error.to_string() }))
            }
            result => result,
        }
    }

    fn read_file(&mut self, found: &Found, known: Option<&CachedFile>) -> Result<Outcome> {
        let path = self.job.state_dir.join(&found.path);
        let mut file = open_regular(&path)?;
        if starts_like_a_database(&mut file)? {
            drop(file);
            if let Some(outcome) = self.read_database(&path, found, known)? {
                return Ok(outcome);
            }
            file = open_regular(&path)?;
        }
        for attempt in 1..=READ_ATTEMPTS {
            let before = Signature::of(&path)?;
            match self.read_once(&mut file)? {
                Attempt::Consistent(content) => {
                    let meta = file.metadata()?;
                    let entry = Entry::new(found.path.as_str(), Kind::File, mode(&meta), mtime(&meta)).with_content(content);
                    let signature = self.cacheable(&before);
                    return Ok(Outcome::Kept { entry, signature, reread: true });
                }
                Attempt::Grew(content) if attempt == READ_ATTEMPTS => {
                    // Somebody appends faster than it can be read: what was there at one moment is a file they had.
                    let entry = Entry::new(found.path.as_str(), Kind::File, found.mode, found.mtime).with_content(content);
                    return Ok(Outcome::Kept { entry, signature: None, reread: true });
                }
                Attempt::Grew(_) | Attempt::Changed => file = open_regular(&path)?,
            }
        }
        let reason = "it kept changing while it was read".into();
        Ok(Outcome::Excepted(Exception { path: found.path.clone(), reason }))
    }

    fn read_once(&mut self, file: &mut File) -> Result<Attempt> {
        let before = file.metadata()?;
        file.rewind()?;
        let content = self.store(&mut file.take(before.len()), before.len())?;
        let after = file.metadata()?;
        let same = |field: fn(&std::fs::Metadata) -> i64| field(&before) == field(&after);
        Ok(if content.size == before.len() && after.len() == before.len() && same(mtime) {
            Attempt::Consistent(content)
        } else if content.size == before.len() && after.len() > before.len() {
            Attempt::Grew(content)
        } else {
            Attempt::Changed
        })
    }

    /// A database goes in as a private copy. `None` when it only starts like one: then it is a file.
    fn read_database(&mut self, path: &Path, found: &Found, known: Option<&CachedFile>) -> Result<Option<Outcome>> {
        let name = hex(&blake3::hash(found.path.as_bytes()).as_bytes()[..8]);
        let copy = self.job.temporary.join(format!("{name}.sqlite"));
        let before = Signature::of(path)?;
        let copied = database::copy_for_snapshot(path, &copy);
        let result = match copied {
            Ok(()) => File::open(&copy).map_err(Error::from).and_then(|mut file| {
                let length = file.metadata()?.len();
                self.store(&mut file, length)
            }),
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_file(&copy);
        let content = match result {
            Ok(content) => content,
            Err(error) if error.code() == Code::Cancelled => return Err(error),
            Err(error) if error.code() == Code::Io && !database::is_openclaws(path) && !path_is_full(&error) => return Ok(None),
            Err(error) => {
                return Ok(Some(Outcome::Excepted(Exception { path: found.path.clone(), reason: error.to_string() })));
            }
        };
        let meta = std::fs::symlink_metadata(path)?;
        let mut entry = Entry::new(found.path.as_str(), Kind::Database, mode(&meta), mtime(&meta)).with_content(content);
        // The time of a database says when something was written to it, be it only a lease that is renewed each minute.
        // With the same content it stays what it was.
        if let Some(known) = known
            && known.entry.kind == Kind::Database
            && known.entry.sha256 == entry.sha256
        {
            entry.mtime = known.entry.mtime;
        }
        let signature = self.cacheable(&before);
        Ok(Some(Outcome::Kept { entry, signature, reread: true }))
    }

    /// Chunks, hashes and stores what `source` gives.
    fn store(&mut self, source: &mut dyn Read, size: u64) -> Result<Content> {
        let mut content = Content { size: 0, sha256: [0; 32], chunks: Vec::new() };
        let mut hasher = Sha256::new();
        let (sink, job) = (&mut self.sink, self.job);
        job.chunker.split(source, ChunkSizes::for_size(size), &mut self.buffer, |chunk| {
            job.operation.check()?;
            hasher.update(chunk);
            content.size += chunk.len() as u64;
            content.chunks.push(sink.add(chunk)?);
            job.meter.bytes(chunk.len() as u64);
            Ok::<_, Error>(())
        })?;
        content.sha256 = hasher.finalize().into();
        Ok(content)
    }

    /// The signature to remember, unless the file is so young that it might change again unnoticed.
    fn cacheable(&self, signature: &Signature) -> Option<Vec<u8>> {
        let since_epoch = self.job.scanned_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let settled = since_epoch.saturating_sub(RACY).as_nanos() as i64;
        (signature.latest < settled).then(|| signature.bytes.clone())
    }
}

/// Whether a copy failed because there was no room for it, so that reading the file as it lies would hide the reason.
fn path_is_full(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref::<rusqlite::Error>());
    source.and_then(rusqlite::Error::sqlite_error_code) == Some(rusqlite::ErrorCode::DiskFull)
}

/// Opens what the scan saw as a file, and nothing else: no symlink is followed, no FIFO waited for.
fn open_regular(path: &Path) -> Result<File> {
    #[cfg(unix)]
    let file: File = {
        use rustix::fs::{Mode, OFlags};
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from)?.into()
    };
    #[cfg(not(unix))]
    let file = File::open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no longer a regular file").into()) }
}

fn starts_like_a_database(file: &mut File) -> io::Result<bool> {
    let mut start = Vec::with_capacity(database::MAGIC.len());
    file.take(database::MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == database::MAGIC)
}

/// What cannot be kept is in the tree too, so that it is known wherever the snapshot is.
fn add_exceptions(entries: &mut Vec<Entry>, exceptions: &mut [Exception]) {
    let mut taken: std::collections::HashSet<String> = entries.iter().map(|entry| entry.path.clone()).collect();
    for exception in exceptions {
        // Names that are not valid UTF-8 may look the same.
        let mut path = exception.path.clone();
        while !taken.insert(path.clone()) {
            path.push('\u{fffd}');
        }
        entries.push(Entry::new(path, Kind::Exception, 0, 0).with_target(exception.reason.as_str()));
    }
}

/// Tells a tree from the last one. The times of directories do not count: the gateway makes and removes temporary files
/// all the time, and a snapshot for each would age out those that hold something.
fn digest(entries: &[Entry]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.clear();
        if entry.kind == Kind::Directory {
            Entry { mtime: 0, ..entry.clone() }.write(&mut bytes);
        } else {
            entry.write(&mut bytes);
        }
        hasher.update(&bytes);
    }
    hex(hasher.finalize().as_bytes())
}
