//! The content of one snapshot of 0.1.x: fetched object by object, opened, and checked against the manifest's hashes.
//!
//! Files are written as they arrive, piece by piece, into a folder that nobody uses yet, and count only once tag and hash
//! fit. Memory is bounded whatever their size.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::LegacyId;
use super::b2en::{HEADER_LENGTH, Header, Opener};
use super::catalog::Catalog;
use super::manifest::File;
use crate::commands::{Meter, Operation};
use crate::config::{Secret, Target};
use crate::error::{Code, Error, Result};
use crate::repository::open::Repository;
use crate::repository::restore::Target as Writing;
use crate::repository::tree::{Entry, Kind};
use crate::state::database;
use crate::store::SharedStore;
use crate::task::{Threads, blocking, in_parallel};

/// Files fetched at once. Each holds at most two pieces in memory, and 16 MiB while scrypt works.
const PARALLEL_FILES: usize = 3;
/// A larger object is asked for in pieces of this size.
const PIECE: u64 = 8 << 20;
/// So many paths are named in an error.
const NAMED: usize = 10;

/// Where the content of a file may lie.
#[derive(Debug, Clone)]
pub struct Place {
    /// The snapshot in whose folder it is.
    pub folder: LegacyId,
    /// The path below that folder.
    pub path: String,
    /// Stored bytes.
    pub size: u64,
}

/// Places by the SHA-256 of the plain content.
pub type Places = HashMap<[u8; 32], Vec<Place>>;

/// Whether files are taken that are stored unencrypted. Whoever can write to the bucket can make them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// No: the repository is encrypted, and accepts nothing plain.
    Refused,
    /// Yes: it is not, or the owner has said so.
    Accepted,
}

impl Plain {
    /// What a configuration says.
    #[must_use]
    pub fn of(target: &Target) -> Self {
        if target.encrypt { Self::Refused } else { Self::Accepted }
    }
}

/// The way to the content of one snapshot.
#[derive(Debug)]
pub struct Source {
    id: LegacyId,
    store: SharedStore,
    places: Places,
    application_key: Option<Secret>,
    plain: Plain,
    /// Whether any file was opened, so that the key is the right one.
    opened: AtomicBool,
    /// Where files are written.
    threads: Threads,
}

impl Source {
    /// The file tree of snapshot `id`, which is taken out of the catalog, ordered by path, and the way to its content.
    ///
    /// # Errors
    /// Those of [`Catalog::take`]; `UNSAFE_PATH`.
    pub(crate) fn open(
        catalog: &mut Catalog,
        repository: &Repository,
        target: &Target,
        id: &LegacyId,
        plain: Plain,
    ) -> Result<(Vec<Entry>, Self)> {
        let (manifest, places) = catalog.take(id)?;
        let (store, application_key) = (Arc::clone(&repository.store), target.application_key.clone());
        let (opened, threads) = (AtomicBool::new(false), Threads::default());
        let source = Self { id: id.clone(), store, places, application_key, plain, opened, threads };
        let entries = manifest.tree(id, |file| source.size_of(file)).map_err(|error| error.in_snapshot(id.as_str()))?;
        Ok((entries, source))
    }

    /// A file's bytes, as far as they can be known before it is read: the manifest's number may be wrong, and the object's
    /// size does not say whether it is encrypted.
    fn size_of(&self, file: &File) -> u64 {
        let header = HEADER_LENGTH as u64;
        match self.places.get(&file.sha256).and_then(|places| places.first()) {
            Some(place) if place.size != file.size && place.size >= header => place.size - header,
            Some(place) => place.size,
            None => file.size,
        }
    }

    /// Refuses entries whose content is nowhere, and names them.
    ///
    /// # Errors
    /// `NOT_FOUND`.
    pub fn check_available(&self, entries: &[Entry]) -> Result<()> {
        let is_there = |entry: &Entry| entry.size == 0 || self.places_of(entry).is_some();
        let lacking: Vec<String> =
            entries.iter().filter(|entry| entry.has_content() && !is_there(entry)).map(|e| e.path.clone()).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let problem = format!("{} lacks the content of {}", self.id, named(&lacking));
        Err(Error::new(Code::NotFound, problem)
            .at_path(&lacking[0])
            .in_snapshot(self.id.as_str())
            .advise("0.1.x has removed it together with an older snapshot; name other paths to restore the rest"))
    }

    fn places_of(&self, entry: &Entry) -> Option<&Vec<Place>> {
        self.places.get(<&[u8; 32]>::try_from(&*entry.sha256).ok()?)
    }

    /// Writes `entries`, ordered by path, into the directory `root`, where none of them may be. Databases of `OpenClaw`
    /// come without the rows that hold credentials, as in any snapshot of today.
    ///
    /// # Errors
    /// `NOT_FOUND`, `CORRUPT` or `WRONG_KEY` naming what cannot be had, `IO`, those of the store, `CANCELLED`. What was
    /// written until then is left to the caller.
    pub(crate) async fn restore(
        self: &Arc<Self>,
        entries: Vec<Entry>,
        root: &Path,
        meter: Arc<Meter>,
        operation: &Operation,
    ) -> Result<()> {
        self.check_available(&entries)?;
        let (files, others): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::has_content);
        meter.expect(files.len() as u64, files.iter().map(|file| file.size).sum());
        let opening = {
            let (root, files, others) = (root.to_owned(), files.clone(), others.clone());
            blocking(move || Writing::start(&root, files, &others, meter))
        };
        let writing = Arc::new(opening.await?);
        let fetch = |(number, entry): (usize, Entry)| {
            let (source, writing) = (Arc::clone(self), Arc::clone(&writing));
            async move {
                let result = source.fetch(number, &entry, &writing).await;
                (entry.path, result)
            }
        };
        let jobs = files.into_iter().enumerate().filter(|(_, file)| file.size > 0).map(fetch);
        let mut failed = Vec::new();
        let ended = in_parallel(PARALLEL_FILES, jobs, operation, |(path, result)| match result {
            Err(error) if is_about_content(&error) => {
                failed.push((path, error));
                Ok(())
            }
            result => result,
        })
        .await;
        // Where one has failed, others may still be writing: from here on nothing does.
        self.threads.ended().await;
        ended?;
        if !failed.is_empty() {
            return Err(self.failure(failed));
        }
        // What cannot be had was an error above.
        blocking(move || writing.finish(&others).map(|_| ())).await
    }

    /// One error for all files that cannot be had.
    fn failure(&self, mut failed: Vec<(String, Error)>) -> Error {
        failed.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let keys_alone = failed.iter().all(|(_, error)| error.code() == Code::WrongKey);
        let paths: Vec<String> = failed.iter().map(|(path, _)| path.clone()).collect();
        let (first, why) = &failed[0];
        let problem = format!("{} cannot be restored: {}: {first}: {why}", self.id, named(&paths));
        if keys_alone && !self.opened.load(Ordering::Relaxed) {
            return Error::new(Code::WrongKey, problem).at_path(first).in_snapshot(self.id.as_str());
        }
        Error::new(Code::Corrupt, problem).at_path(first).in_snapshot(self.id.as_str())
    }

    /// Writes one file, from the first place that has it whole.
    async fn fetch(self: &Arc<Self>, number: usize, entry: &Entry, writing: &Arc<Writing>) -> Result<()> {
        let mut first = None;
        for place in self.places_of(entry).into_iter().flatten() {
            match self.fetch_from(place, number, entry, writing).await {
                Err(error) if is_about_content(&error) => _ = first.get_or_insert(error),
                result => return result,
            }
        }
        Err(first.unwrap_or_else(|| Error::new(Code::NotFound, format!("{} is nowhere", entry.path))))
    }

    async fn fetch_from(
        self: &Arc<Self>,
        place: &Place,
        number: usize,
        entry: &Entry,
        writing: &Arc<Writing>,
    ) -> Result<()> {
        let key = place.folder.key_of(&place.path);
        let create = {
            let (writing, entry) = (Arc::clone(writing), entry.clone());
            self.threads.blocking(move || writing.create_whole(&entry))
        };
        let (file, path) = (create.await?, writing.path_of(entry));
        let mut receiving = Receiving { file, path, key, hasher: Sha256::new(), content: None };
        let mut offset = 0;
        while offset < place.size {
            let length = PIECE.min(place.size - offset);
            let piece = if length == place.size {
                self.store.get(&receiving.key).await?
            } else {
                self.store.get_range(&receiving.key, offset, length).await?
            };
            offset += length;
            let (source, writing) = (Arc::clone(self), Arc::clone(writing));
            let take = move || {
                writing.note(length);
                receiving.take(piece, &source).map(|()| receiving)
            };
            receiving = self.threads.blocking(take).await?;
        }
        let (source, writing, entry) = (Arc::clone(self), Arc::clone(writing), entry.clone());
        let check = move || {
            let (file, sha256) = receiving.finish(&source)?;
            let holds_credentials = entry.kind == Kind::Database && database::is_openclaws(entry.path.as_ref());
            let adapt = |path: &Path| if holds_credentials { database::strip(path) } else { Ok(()) };
            writing.complete_whole(number, file, sha256, adapt)
        };
        self.threads.blocking(check).await
    }
}

/// Whether another object may still give what this one did not.
fn is_about_content(error: &Error) -> bool {
    matches!(error.code(), Code::Corrupt | Code::WrongKey | Code::NotFound)
}

/// `3 files: a, b, c`, the first of them.
fn named(paths: &[String]) -> String {
    let shown: Vec<_> = paths.iter().take(NAMED).map(String::as_str).collect();
    let more = if paths.len() > NAMED { format!(" and {} more", paths.len() - NAMED) } else { String::new() };
    let files = if paths.len() == 1 { "file" } else { "files" };
    format!("{} {files}: {}{more}", paths.len(), shown.join(", "))
}

/// An object on its way into a file.
struct Receiving {
    file: cap_std::fs::File,
    /// Of the file, for messages.
    path: PathBuf,
    key: String,
    hasher: Sha256,
    /// What the object is, once its start is known.
    content: Option<Content>,
}

enum Content {
    Plain,
    Encrypted(Box<Opener>),
}

impl Receiving {
    fn take(&mut self, piece: Bytes, source: &Source) -> Result<()> {
        let mut piece = BytesMut::from(piece);
        let mut start = 0;
        if self.content.is_none() {
            self.content = Some(match Header::parse(&piece) {
                Some(header) => {
                    let key = source.application_key.as_ref().ok_or_else(|| {
                        Error::config("applicationKey", "is missing, and encrypts the snapshots of 0.1.x")
                    })?;
                    start = HEADER_LENGTH;
                    Content::Encrypted(Box::new(Opener::new(&header, key)?))
                }
                None if source.plain == Plain::Refused => {
                    return Err(Error::corrupt(
                        &self.key,
                        "it is not encrypted, and anybody who can write to the bucket may \
                        have made it",
                    )
                    .advise("if you trust it, `import-legacy --accept-plain` makes a sealed snapshot of it"));
                }
                None => Content::Plain,
            });
        }
        let content = &mut piece[start..];
        if let Some(Content::Encrypted(opener)) = &mut self.content {
            opener.update(content);
        }
        self.hasher.update(&*content);
        std::io::Write::write_all(&mut self.file, content).map_err(|error| Error::io("write", &self.path, error))
    }

    /// The file and the hash of what was written to it.
    fn finish(self, source: &Source) -> Result<(cap_std::fs::File, [u8; 32])> {
        if let Some(Content::Encrypted(opener)) = self.content {
            if !opener.finish() {
                let problem =
                    "does not open with this applicationKey: it is damaged, or was encrypted with another one";
                return Err(Error::new(Code::WrongKey, format!("{} {problem}", self.key)).at_key(&self.key));
            }
            source.opened.store(true, Ordering::Relaxed);
        }
        Ok((self.file, self.hasher.finalize().into()))
    }
}
