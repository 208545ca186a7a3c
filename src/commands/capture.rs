//! Reads the state into a file tree, and its content into chunks: what `push`, `rollback`, `diff` and a plan
//! have in common.

use std::collections::hash_map::Entry::{Occupied, Vacant};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::prune::Size;
use super::workplace::Workplace;
use super::{Exception, Meter, Operation, unmounted};
use crate::cache::{Cache, CachedFile};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::chunk::{ChunkSizes, Chunker};
use crate::repository::id::{ChunkId, hex};
use crate::repository::open::Repository;
use crate::repository::pages;
use crate::repository::read::{MAX_TREE, tree_cache_key};
use crate::repository::restore::sha256_of;
use crate::repository::seal::MasterKey;
use crate::repository::tree::{Content, Entry, Kind, ROOT_CHUNKS, Root, TreeStream, join_ids};
use crate::repository::write::{Sink, Writer};
use crate::state::database;
use crate::state::places::Places;
use crate::state::rules::Rules;
use crate::state::scan::{Found, FoundKind, Scan, Signature, mode, mtime, scan};
use crate::task::blocking;

/// A file whose times lie this close to the scan may change again without its times showing it (coarse clocks of file
/// systems), so that it is read again the next time.
const RACY: Duration = Duration::from_secs(2);
/// Chunks of a file tree that the cache is asked for at once, and that are in memory until then.
const TREE_BATCH: usize = 2048;
/// How often a file that changes while it is read is read anew.
const READ_ATTEMPTS: usize = 3;
/// The coarsest clock by which Linux dates changes ticks a hundred times a second; a change within the tick of the one
/// before shows in no time.
const TICK: Duration = Duration::from_millis(20);

/// The state as it was read.
#[derive(Debug)]
pub(super) struct Captured {
    /// The tree, ordered by path.
    pub(super) entries: Vec<Entry>,
    /// Where the stored tree starts; `None` when it was stored before.
    pub(super) root: Option<Root>,
    /// The chunks of that tree, as far as it was stored now.
    pub(super) tree_chunks: Vec<ChunkId>,
    /// What tells this tree from the last one; see [`digest`].
    pub(super) digest: String,
    /// Files and databases.
    pub(super) files: u64,
    /// Bytes of their content.
    pub(super) bytes: u64,
    /// How many of them are not as the cache remembers them.
    pub(super) changed_files: u64,
    /// How many pieces that the store had lost it has again.
    pub(super) healed: u64,
    /// What could not be read.
    pub(super) exceptions: Vec<Exception>,
    /// Those of them that this machine could read before.
    pub(super) dropped: Vec<Exception>,
    /// How each file was seen, by path.
    pub(super) seen: HashMap<String, Seen>,
    gone: Vec<String>,
}

impl Captured {
    /// How much the state holds.
    pub(super) const fn size(&self) -> Size {
        Size { files: self.files, bytes: self.bytes }
    }

    /// Remembers what was read, so that it need not be read again while it does not change.
    ///
    /// # Errors
    /// `IO`.
    pub(super) fn remember(&self, cache: &Cache) -> Result<()> {
        let reread = self.entries.iter().filter_map(|entry| {
            let Seen { signature, settled, reread } = self.seen.get(&entry.path)?;
            // An unsettled one is still worth remembering, under a signature that no file has.
            reread.then_some((if *settled { &signature[..] } else { &[] }, entry))
        });
        cache.update_files(reread, &self.gone)
    }
}

/// What became of one file.
enum Outcome {
    /// It is in the tree.
    Kept(Box<Kept>),
    /// It vanished since the scan, as if it had been deleted before.
    Vanished,
    /// It cannot be in the tree.
    Excepted(Exception),
}

struct Kept {
    entry: Entry,
    seen: Seen,
    /// What belongs to it and is not in the tree.
    without: Option<Exception>,
}

/// How a file was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// As it was before its content was read.
    pub(super) signature: Vec<u8>,
    /// Whether it would show by the signature, should the file have changed since.
    settled: bool,
    /// Whether the content was read, or taken over from the cache.
    reread: bool,
}

/// What was found in the state, and not read yet.
pub(super) struct Survey {
    places: Places,
    /// Where copies of databases may lie.
    temporary: PathBuf,
    /// When the scan began, by this machine's clock.
    scanned_at: SystemTime,
    scan: Scan,
    cache: Arc<Cache>,
    /// What the cache remembers.
    known: HashMap<String, CachedFile>,
}

impl Survey {
    /// Starts to walk the state; the future gives what was found.
    ///
    /// # Errors
    /// `CONFIG` when a glob is malformed; the future's: `IO`, `CANCELLED`.
    pub(super) fn start(
        target: &Target,
        workplace: &Workplace,
        operation: &Operation,
    ) -> Result<impl Future<Output = Result<Self>> + Send> {
        let (rules, exceptions) = Rules::of(target, &workplace.places)?;
        let (places, operation) = (workplace.places.clone(), operation.clone());
        let (cache, folder) = (Arc::clone(&workplace.cache), workplace.folder.clone());
        Ok(blocking(move || {
            let temporary = folder.fresh_temporary_folder()?;
            let scanned_at = SystemTime::now();
            let mut scan = scan(&places, &rules, &operation)?;
            scan.exceptions.extend(exceptions);
            let known = cache.files();
            let mut unmounted = unmounted::find(&places, &known, &cache);
            unmounted.retain(|Exception { path, .. }| scan.exceptions.iter().all(|told| told.path != *path));
            scan.found.retain(|found| unmounted.iter().all(|place| found.path != place.path));
            scan.exceptions.extend(unmounted);
            Ok(Self { places, temporary, scanned_at, scan, cache, known })
        }))
    }

    /// Reads what was found and the cache does not know, and hands its chunks, named as `key` does, to `writer`. A tree
    /// with the digest `stored_digest` need not be stored, since it is.
    ///
    /// # Errors
    /// `IO`, `CANCELLED`. A file that cannot be read is an exception in the tree, not an error.
    pub(super) async fn read(
        self,
        key: &MasterKey,
        writer: Writer,
        meter: Arc<Meter>,
        stored_digest: Option<String>,
        operation: &Operation,
    ) -> Result<Captured> {
        let Self { places, temporary, scanned_at, scan, cache, known } = self;
        let (chunker, writer, operation) = (Chunker::new(key.gear()), Arc::new(writer), operation.clone());
        let capture =
            Capture { places, temporary, chunker, scanned_at, writer, meter, operation, cache, stored_digest };
        blocking(move || capture.run(scan, known)).await
    }
}

/// Reads the state without storing anything.
///
/// # Errors
/// `CONFIG`, `IO`, `CANCELLED`.
pub(super) async fn look(
    target: &Target,
    workplace: &Workplace,
    repository: &Repository,
    operation: &Operation,
) -> Result<Captured> {
    let key = repository.keyring.naming();
    let meter = Arc::new(Meter::new(operation, "scan", 0, 0));
    Survey::start(target, workplace, operation)?.await?.read(key, Writer::hashing(key), meter, None, operation).await
}

/// Everything that the threads of a capture share.
struct Capture {
    places: Places,
    temporary: PathBuf,
    chunker: Chunker,
    scanned_at: SystemTime,
    writer: Arc<Writer>,
    meter: Arc<Meter>,
    operation: Operation,
    cache: Arc<Cache>,
    stored_digest: Option<String>,
}

impl Capture {
    fn run(self, scan: Scan, mut known: HashMap<String, CachedFile>) -> Result<Captured> {
        let Scan { found, mut exceptions, .. } = scan;
        let mut entries = Vec::with_capacity(found.len());
        let mut outcomes = Vec::with_capacity(found.len());
        let mut to_read = Vec::new();
        for found in found {
            match &found.kind {
                FoundKind::Directory => entries.push(Entry::new(found.path, Kind::Directory, found.mode, found.mtime)),
                FoundKind::Symlink(target) => {
                    let link = Entry::new(found.path.as_str(), Kind::Symlink, found.mode, found.mtime);
                    entries.push(link.with_target(target));
                }
                FoundKind::File => {
                    let unchanged = known.get(&found.path).is_some_and(|known| self.is_unchanged(&found, known));
                    // Moved: with nothing changed, the chunks of all files are most of what is in memory.
                    match unchanged.then(|| known.remove(&found.path)).flatten() {
                        Some(CachedFile { signature, entry }) => {
                            let seen = Seen { signature, settled: true, reread: false };
                            outcomes.push(Outcome::Kept(Box::new(Kept { entry, seen, without: None })));
                        }
                        None => to_read.push(found),
                    }
                }
            }
        }
        self.meter.expect(to_read.len() as u64, to_read.iter().map(|found| found.size).sum());
        outcomes.extend(self.read_all(to_read, &known)?);

        let (mut files, mut bytes, mut changed_files) = (0, 0, 0);
        let mut seen_files = HashMap::with_capacity(outcomes.len());
        for outcome in outcomes {
            match outcome {
                Outcome::Kept(kept) => {
                    let Kept { entry, seen, without } = *kept;
                    exceptions.extend(without);
                    files += 1;
                    bytes += entry.size;
                    let changed = seen.reread && known.get(&entry.path).is_none_or(|known| known.entry != entry);
                    changed_files += u64::from(changed);
                    seen_files.insert(entry.path.clone(), seen);
                    entries.push(entry);
                }
                Outcome::Vanished => {}
                Outcome::Excepted(exception) => exceptions.push(exception),
            }
        }
        let present: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        // Of what cannot be read now, what was read before is still known the next time.
        let (dropped, spared) = dropped(&exceptions, &known, &present);
        let gone =
            known.into_keys().filter(|path| !present.contains(path.as_str()) && !spared.contains(path)).collect();
        add_exceptions(&mut entries, &exceptions);
        entries.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        let digest = digest(&entries);
        let mut tree_chunks = Vec::new();
        let root = if self.stored_digest.as_ref() == Some(&digest) {
            None
        } else {
            Some(self.write_tree(&entries, &mut tree_chunks)?)
        };
        self.heal_trees()?;
        let healed = self.writer.healed();
        let writer =
            Arc::into_inner(self.writer).ok_or_else(|| Error::new(Code::Io, "internal error: a sink is left"))?;
        writer.finish()?;
        Ok(Captured {
            entries,
            root,
            tree_chunks,
            digest,
            files,
            bytes,
            changed_files,
            healed,
            exceptions,
            dropped,
            seen: seen_files,
            gone,
        })
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
            None => path.contains(".sqlite") || Path::new(path).extension().is_some_and(|extension| extension == "db"),
        };
        to_read.sort_by_key(|found| !was_database(&found.path));
        let next = AtomicUsize::new(0);
        let outcomes = Mutex::new(Vec::with_capacity(to_read.len()));
        let threads = self.operation.threads().min(to_read.len());
        let work = || -> Result<()> {
            let mut reader = Reader { job: self, open: HashMap::new(), sink: self.writer.sink()?, buffer: Vec::new() };
            let mut own = Vec::new();
            while let Some(found) = to_read.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.operation.check()?;
                own.push(reader.read(found, known.get(&found.path))?);
                self.meter.files(1);
            }
            reader.sink.finish()?;
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
        self.writer.flush()?;
        Ok(outcomes.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stores again what the store has lost of the file trees of earlier snapshots and this machine remembers. (What it has
    /// lost of files was read and stored again with the files.)
    fn heal_trees(&self) -> Result<()> {
        let mut sink = self.writer.sink()?;
        for id in self.writer.lost() {
            if let Some(chunk) = self.cache.object(&tree_cache_key(id)) {
                sink.add(&chunk)?;
            }
        }
        sink.flush()
    }

    /// Stores the tree stream, then the list of its chunks, until the list is short. `all` gets the chunks of each of them.
    fn write_tree(&self, entries: &[Entry], all: &mut Vec<ChunkId>) -> Result<Root> {
        let mut sink = self.writer.sink()?;
        let mut chunks = self.write_stream(&mut TreeStream::of(entries), &mut sink)?;
        all.extend(&chunks);
        let mut depth = 0;
        while chunks.len() > ROOT_CHUNKS {
            chunks = self.write_stream(&mut &join_ids(&chunks)[..], &mut sink)?;
            all.extend(&chunks);
            depth += 1;
        }
        sink.flush()?;
        Ok(Root { depth, chunks })
    }

    fn write_stream(&self, stream: &mut dyn Read, sink: &mut Sink) -> Result<Vec<ChunkId>> {
        let (mut ids, mut batch) = (Vec::new(), Vec::new());
        let mut length = 0;
        self.chunker.split(stream, ChunkSizes::TREE, &mut Vec::new(), |chunk| {
            length += chunk.len() as u64;
            if length > MAX_TREE {
                let problem =
                    format!("the state has so many files that their list takes more than {} MiB", MAX_TREE >> 20);
                return Err(Error::new(Code::Config, problem).advise("leave some of it out with `exclude`"));
            }
            let id = sink.add(chunk)?;
            ids.push(id);
            batch.push((id, chunk.to_vec()));
            if batch.len() == TREE_BATCH {
                self.remember_tree(&batch);
                batch.clear();
            }
            Ok::<_, Error>(())
        })?;
        self.remember_tree(&batch);
        Ok(ids)
    }

    /// Puts chunks of a file tree into the cache that are not there.
    fn remember_tree(&self, chunks: &[(ChunkId, Vec<u8>)]) {
        let (mut contents, mut new) = (chunks.iter().map(|(_, content)| &content[..]), Vec::new());
        self.cache.visit_objects(chunks.iter().map(|(id, _)| tree_cache_key(*id)), |key, known| {
            let content = contents.next();
            if known.is_none() {
                new.extend(content.map(|content| (key.to_owned(), content)));
            }
        });
        self.cache.attempt(|cache| cache.put_objects(new));
    }
}

/// Reads files on one thread.
struct Reader<'j> {
    job: &'j Capture,
    /// The directories of places, as they were when something was first read in each.
    open: HashMap<&'j Path, File>,
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

impl<'j> Reader<'j> {
    fn read(&mut self, found: &'j Found, known: Option<&CachedFile>) -> Result<Outcome> {
        match self.read_file(found, known) {
            // With the key of an object it is the store's.
            Err(error)
                if error.code() == Code::Io && error.context().path.is_none() && error.context().key.is_none() =>
            {
                let source = std::error::Error::source(&error).and_then(|error| error.downcast_ref::<io::Error>());
                if source.is_some_and(|error| error.kind() == io::ErrorKind::NotFound) {
                    return Ok(Outcome::Vanished);
                }
                Ok(Outcome::Excepted(Exception { path: found.path.clone(), reason: error.to_string() }))
            }
            result => result,
        }
    }

    fn read_file(&mut self, found: &'j Found, known: Option<&CachedFile>) -> Result<Outcome> {
        let path = self.job.places.locate(&found.path);
        // The signature comes first: should the file be replaced in between, what is read is newer than it says.
        let mut before = Signature::of(&path)?;
        let mut file = self.open(&found.path)?;
        let mut without = None;
        if database::starts_like_one(&mut file)? {
            drop(file);
            if let Some(outcome) = self.read_database(&path, found, known)? {
                return Ok(outcome);
            }
            without = database::log_with_content(&path).then(|| {
                let reason =
                    format!("it belongs to {}, which SQLite cannot copy, so that only that file is kept", found.path);
                Exception { path: format!("{}-wal", found.path), reason }
            });
            before = Signature::of(&path)?;
            file = self.open(&found.path)?;
        } else if database::is_openclaws(&path) && file.metadata()?.len() > 0 {
            // Its credentials cannot be taken out.
            let reason = "it has the name of a database of OpenClaw, and is damaged or none".into();
            return Ok(Outcome::Excepted(Exception { path: found.path.clone(), reason }));
        }
        for attempt in 1..=READ_ATTEMPTS {
            match self.read_once(&mut file)? {
                Attempt::Consistent(content) => {
                    let meta = file.metadata()?;
                    let entry =
                        Entry::new(found.path.as_str(), Kind::File, mode(&meta), mtime(&meta)).with_content(&content);
                    return Ok(self.kept(entry, before, without));
                }
                Attempt::Grew(content) if attempt == READ_ATTEMPTS && starts_with(&mut file, &content)? => {
                    // Somebody appends faster than it can be read: what was there at one moment is a file they had.
                    let entry =
                        Entry::new(found.path.as_str(), Kind::File, found.mode, found.mtime).with_content(&content);
                    return Ok(self.kept(entry, before, without));
                }
                Attempt::Grew(_) | Attempt::Changed => {
                    before = Signature::of(&path)?;
                    file = self.open(&found.path)?;
                }
            }
        }
        let reason = "it kept changing while it was read".into();
        Ok(Outcome::Excepted(Exception { path: found.path.clone(), reason }))
    }

    /// Opens what the scan saw as a file, and nothing else: no symlink is followed, no FIFO waited for.
    fn open(&mut self, name: &'j str) -> Result<File> {
        let (place, path) = self.job.places.find_place(name);
        let directory = match self.open.entry(&place.directory) {
            Occupied(opened) => opened.into_mut(),
            Vacant(missing) => missing.insert(File::open(&place.directory)?),
        };
        let file = open_below(directory, &place.directory, path)?;
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::other("it is no longer a regular file").into())
        }
    }

    fn read_once(&mut self, file: &mut File) -> Result<Attempt> {
        let mut before = file.metadata()?;
        let age = before.modified().ok().and_then(|time| time.elapsed().ok());
        if let Some(rest) = age.and_then(|age| TICK.checked_sub(age)) {
            std::thread::sleep(rest);
            before = file.metadata()?;
        }
        file.rewind()?;
        let content = self.store(&mut file.take(before.len()), ChunkSizes::for_size(before.len()), None)?;
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
        // Before the signature is taken: it changes the file, but nothing that anyone would see in it.
        database::play_back_journal(path);
        let before = Signature::of(path)?;
        let attempt = || {
            let _ = std::fs::remove_file(&copy);
            database::copy_for_snapshot(path, &copy)
        };
        // What fails once may be a matter of the moment; what fails twice is the database's fault, or the disk's.
        let copied = attempt().or_else(|error| if error.code() == Code::Io { attempt() } else { Err(error) });
        let result = copied.and_then(|()| {
            let mut file = File::open(&copy).map_err(|error| Error::io("read", &copy, error))?;
            let length = file.metadata()?.len();
            let page = database::page_size(&mut file)?;
            let sizes = ChunkSizes::for_database(length, page);
            let relative = sizes.are_pages(page) && pages::are_movable(&mut file, page as usize)?;
            file.rewind()?;
            let relative = relative.then_some(page);
            Ok((self.store(&mut file, sizes, relative)?, relative))
        });
        let _ = std::fs::remove_file(&copy);
        let (content, relative) = match result {
            Ok(stored) => stored,
            Err(error) if error.code() == Code::Cancelled || error.context().key.is_some() => return Err(error),
            // Nothing is wrong with the database: a snapshot without it would push out those that have it.
            Err(error) if error.code() == Code::Io && database::is_no_place_for_copies(&self.job.temporary, &error) => {
                return Err(error.advise("check the space and the permissions of the state directory"));
            }
            Err(error) if error.code() == Code::Io && !database::is_openclaws(path) => return Ok(None),
            Err(error) => {
                return Ok(Some(Outcome::Excepted(Exception { path: found.path.clone(), reason: error.to_string() })));
            }
        };
        let meta = std::fs::symlink_metadata(path)?;
        let mut entry =
            Entry::new(found.path.as_str(), Kind::Database, mode(&meta), mtime(&meta)).with_content(&content);
        entry.relative_pages = relative;
        // The time of a database says when something was written to it, be it only a lease that is renewed each minute.
        // With the same content it stays what it was.
        if let Some(known) = known
            && known.entry.kind == Kind::Database
            && known.entry.sha256 == entry.sha256
        {
            entry.mtime = known.entry.mtime;
        }
        Ok(Some(self.kept(entry, before, None)))
    }

    /// Chunks, hashes and stores what `source` gives, be it pages of a database that are made `relative`.
    fn store(&mut self, source: &mut dyn Read, sizes: ChunkSizes, relative: Option<u32>) -> Result<Content> {
        let mut content = Content { size: 0, sha256: [0; 32], chunks: Vec::new() };
        let (mut hasher, mut page) = (Sha256::new(), Vec::new());
        let (sink, job) = (&mut self.sink, self.job);
        job.chunker.split(source, sizes, &mut self.buffer, |chunk| {
            job.operation.check()?;
            hasher.update(chunk);
            let id = match relative {
                None => sink.add(chunk)?,
                Some(size) => {
                    page.clear();
                    page.extend_from_slice(chunk);
                    pages::make_relative(&mut page, pages::number_at(content.size, size));
                    sink.add(&page)?
                }
            };
            content.chunks.push(id);
            content.size += chunk.len() as u64;
            job.meter.bytes(chunk.len() as u64);
            Ok::<_, Error>(())
        })?;
        content.sha256 = hasher.finalize().into();
        Ok(content)
    }

    fn kept(&self, entry: Entry, signature: Signature, without: Option<Exception>) -> Outcome {
        let since_epoch = self.job.scanned_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let is_old = signature.latest < since_epoch.saturating_sub(RACY).as_nanos() as i64;
        // What it is without is looked at each time.
        let seen = Seen { signature: signature.bytes, settled: is_old && without.is_none(), reread: true };
        Outcome::Kept(Box::new(Kept { entry, seen, without }))
    }
}

/// Opens a file below `root`, which is at `shown`, without following a symlink: also not one that has taken the place of
/// a directory since the scan.
fn open_below(root: &File, shown: &Path, path: &str) -> io::Result<File> {
    #[cfg(unix)]
    {
        use rustix::fs::{Mode, OFlags};
        let _ = shown;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        #[cfg(target_os = "linux")]
        {
            use rustix::fs::ResolveFlags;
            match rustix::fs::openat2(root, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
                // Before Linux 5.6, and in some containers.
                Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
                opened => return Ok(opened?.into()),
            }
        }
        Ok(rustix::fs::openat(root, path, flags, Mode::empty())?.into())
    }
    #[cfg(not(unix))]
    {
        let _ = root;
        File::open(shown.join(path))
    }
}

/// Whether the file starts with what was read of it before: it was appended to, and not written anew.
fn starts_with(file: &mut File, content: &Content) -> io::Result<bool> {
    file.rewind()?;
    Ok(sha256_of(file.take(content.size))? == content.sha256)
}

/// The exceptions that this machine could read before, and all names of that.
fn dropped(
    exceptions: &[Exception],
    known: &HashMap<String, CachedFile>,
    present: &HashSet<&str>,
) -> (Vec<Exception>, HashSet<String>) {
    if exceptions.is_empty() {
        return (Vec::new(), HashSet::new());
    }
    let known: BTreeSet<&str> = known.keys().map(String::as_str).collect();
    let mut spared = HashSet::new();
    // Of what is there all the same, an exception says something else.
    let absent = exceptions.iter().filter(|exception| !present.contains(exception.path.as_str()));
    let dropped = absent.filter(|Exception { path, .. }| {
        let below = format!("{path}/");
        let inside = known.range(below.as_str()..).copied().take_while(|name| name.starts_with(&below));
        let names: Vec<&str> = inside.chain(known.get(path.as_str()).copied()).collect();
        spared.extend(names.iter().map(|name| (*name).to_owned()));
        !names.is_empty()
    });
    (dropped.cloned().collect(), spared)
}

/// What cannot be kept is in the tree too, so that it is known wherever the snapshot is.
fn add_exceptions(entries: &mut Vec<Entry>, exceptions: &[Exception]) {
    let mut taken: HashSet<String> = entries.iter().map(|entry| entry.path.clone()).collect();
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
            Entry::new(entry.path.as_str(), Kind::Directory, entry.mode, 0).write(&mut bytes);
        } else {
            entry.write(&mut bytes);
        }
        hasher.update(&bytes);
    }
    hex(hasher.finalize().as_bytes())
}
