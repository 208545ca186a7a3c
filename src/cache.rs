//! What this machine remembers of a repository, so that nothing is downloaded or read twice.
//!
//! Losing or damaging the cache costs time only: every row carries a checksum, a damaged file is made anew, and nothing
//! in it decides that a chunk exists without the store's own listing agreeing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OptionalExtension};

use crate::error::{Code, Error, Result};
use crate::repository::id::PackId;
use crate::repository::index::PackEntry;
use crate::repository::tree::Entry;
use crate::state::private::{create_private_file, remove_file};

/// Changing it makes every cache start over.
const LAYOUT: &str = "1";

/// A file as it was when it was last read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedFile {
    /// The signature that its content had, see [`Signature`](crate::state::scan::Signature).
    pub signature: Vec<u8>,
    /// Its tree entry.
    pub entry: Entry,
}

/// The cache of one repository in one state directory.
#[derive(Debug)]
pub struct Cache {
    connection: Mutex<Connection>,
}

impl Cache {
    /// Opens the cache at `path` for the repository `identity`; starts over when it is damaged or another's. It holds what nothing
    /// else tells, such as slots that have vanished from the bucket, so that it does not for any other reason.
    ///
    /// # Errors
    /// `IO` when it cannot be opened, or not even an empty one can be made.
    pub fn open(path: &Path, identity: &str) -> Result<Self> {
        use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase, Unknown};
        if path.is_file() {
            match Self::try_existing(path, identity) {
                Ok(Some(cache)) => return Ok(cache),
                // Its tables are of another layout when SQLite says no more than that it cannot.
                Err(error)
                    if !matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase | Unknown) | None) =>
                {
                    return Err(failed(&error));
                }
                _ => {}
            }
        }
        let identity = format!("{LAYOUT} {identity}");
        for file in [path.to_owned()].into_iter().chain(crate::state::database::side_files(path)) {
            remove_file(&file)?;
        }
        create_private_file(path)?;
        let connection = prepare(path).map_err(|error| failed(&error))?;
        connection
            .execute("INSERT OR REPLACE INTO meta VALUES ('identity', ?1)", [identity])
            .map_err(|error| failed(&error))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// A cache that nothing outlasts.
    ///
    /// # Errors
    /// `IO` when there is no memory for it.
    pub fn in_memory() -> Result<Self> {
        let connection = prepare(Path::new(":memory:")).map_err(|error| failed(&error))?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// The cache at `path`, if there is a sound one for the repository `identity`.
    #[must_use]
    pub fn open_existing(path: &Path, identity: &str) -> Option<Self> {
        if !path.is_file() {
            return None;
        }
        Self::try_existing(path, identity).ok().flatten()
    }

    fn try_existing(path: &Path, identity: &str) -> rusqlite::Result<Option<Self>> {
        let connection = prepare(path)?;
        let is_its = known_identity(&connection)?.is_some_and(|known| known == format!("{LAYOUT} {identity}"));
        Ok(is_its.then(|| Self { connection: Mutex::new(connection) }))
    }

    /// Writes what may as well stay unwritten: a cache that fails costs time only, and is only spoken of in the log.
    pub fn attempt(&self, note: impl FnOnce(&Self) -> Result<()>) {
        if let Err(error) = note(self) {
            tracing::warn!(%error, "the local cache could not be written");
        }
    }

    fn with<T>(&self, action: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T> {
        let mut connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        action(&mut connection).map_err(|error| failed(&error))
    }

    /// A small immutable object of the repository, as it was decrypted. `None` also when the row is damaged.
    #[must_use]
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        let mut object = None;
        self.visit_objects([key.to_owned()], |_, body| object = body.map(<[u8]>::to_vec));
        object
    }

    /// Looks up many objects, and hands each of `keys` to `visit`, in order, with what [`Cache::object`] would give.
    pub fn visit_objects(&self, keys: impl IntoIterator<Item = String>, mut visit: impl FnMut(&str, Option<&[u8]>)) {
        let mut keys = keys.into_iter();
        let looked_up = self.with(|connection| {
            // In one transaction: each of its own would lock the file anew.
            let transaction = connection.transaction()?;
            let mut statement = transaction.prepare_cached("SELECT body FROM objects WHERE key = ?1")?;
            for key in keys.by_ref() {
                let found = statement.query_row([&key], |row| {
                    visit(&key, unprotect(&key, row.get_ref(0)?.as_blob()?));
                    Ok(())
                });
                if found.is_err() {
                    visit(&key, None);
                }
            }
            Ok(())
        });
        if looked_up.is_err() {
            keys.for_each(|key| visit(&key, None));
        }
    }

    /// Every object whose key starts with `prefix`, without the damaged ones.
    #[must_use]
    pub fn objects(&self, prefix: &str) -> HashMap<String, Vec<u8>> {
        let objects = self.with(|connection| {
            let mut statement = connection.prepare("SELECT key, body FROM objects WHERE substr(key, 1, ?1) = ?2")?;
            let mut rows = statement.query((prefix.len().cast_signed(), prefix))?;
            let mut objects = HashMap::new();
            while let Some(row) = rows.next()? {
                let key: String = row.get(0)?;
                if let Some(body) = unprotect(&key, row.get_ref(1)?.as_blob()?) {
                    objects.insert(key, body.to_vec());
                }
            }
            Ok(objects)
        });
        objects.unwrap_or_default()
    }

    /// Remembers small immutable objects.
    ///
    /// # Errors
    /// `IO`.
    pub fn put_objects<'o>(&self, objects: impl IntoIterator<Item = (String, &'o [u8])>) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2)")?;
                for (key, body) in objects {
                    insert.execute((&key, protect(&key, body)))?;
                }
            }
            transaction.commit()
        })
    }

    /// Forgets the objects for which `keep` says no.
    ///
    /// # Errors
    /// `IO`.
    pub fn retain_objects(&self, keep: impl Fn(&str) -> bool) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut select = transaction.prepare("SELECT key FROM objects")?;
                let mut delete = transaction.prepare("DELETE FROM objects WHERE key = ?1")?;
                for key in select.query_map([], |row| row.get::<_, String>(0))? {
                    let key = key?;
                    if !keep(&key) {
                        delete.execute([key])?;
                    }
                }
            }
            transaction.commit()
        })
    }

    /// Every file as it was last read, without the damaged rows.
    #[must_use]
    pub fn files(&self) -> HashMap<String, CachedFile> {
        let files = self.with(|connection| {
            let mut statement = connection.prepare("SELECT path, signature, entry FROM files")?;
            let mut rows = statement.query([])?;
            let mut files = HashMap::new();
            while let Some(row) = rows.next()? {
                let (path, signature): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let entry = unprotect(&file_context(&path, &signature), row.get_ref(2)?.as_blob()?);
                if let Some(entry) = entry.and_then(|bytes| minicbor::decode::<Entry>(bytes).ok()) {
                    files.insert(path, CachedFile { signature, entry });
                }
            }
            Ok(files)
        });
        files.unwrap_or_default()
    }

    /// Remembers files, by the signature that the content of each had, and forgets those that are gone.
    ///
    /// # Errors
    /// `IO`.
    pub fn update_files<'f>(
        &self,
        changed: impl IntoIterator<Item = (&'f [u8], &'f Entry)>,
        gone: &[String],
    ) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            {
                let mut insert = transaction.prepare("INSERT OR REPLACE INTO files VALUES (?1, ?2, ?3)")?;
                for (signature, entry) in changed {
                    let mut bytes = Vec::new();
                    entry.write(&mut bytes);
                    insert.execute((&entry.path, signature, protect(&file_context(&entry.path, signature), &bytes)))?;
                }
                let mut delete = transaction.prepare("DELETE FROM files WHERE path = ?1")?;
                for path in gone {
                    delete.execute([path])?;
                }
            }
            transaction.commit()
        })
    }

    /// Remembers a pack that was uploaded and is in no index object yet: should this run be interrupted, the next one
    /// finds it and sends nothing again.
    ///
    /// # Errors
    /// `IO`.
    pub fn add_pending(&self, pack: &PackEntry) -> Result<()> {
        let id = pack.id.to_string();
        let bytes = minicbor::to_vec(pack).map_err(|error| Error::new(Code::Io, error.to_string()))?;
        self.with(|connection| {
            connection.execute("INSERT OR REPLACE INTO pending VALUES (?1, ?2)", (&id, protect(&id, &bytes)))
        })
        .map(|_| ())
    }

    /// The packs of interrupted runs.
    #[must_use]
    pub fn pending(&self) -> Vec<PackEntry> {
        let rows = self.with(|connection| {
            let mut statement = connection.prepare("SELECT pack, entry FROM pending")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        });
        rows.unwrap_or_default()
            .into_iter()
            .filter_map(|(id, entry)| minicbor::decode(unprotect(&id, &entry)?).ok())
            .collect()
    }

    /// Forgets packs that an index object names now.
    ///
    /// # Errors
    /// `IO`.
    pub fn forget_pending(&self, packs: &[PackId]) -> Result<()> {
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for pack in packs {
                transaction.execute("DELETE FROM pending WHERE pack = ?1", [pack.to_string()])?;
            }
            transaction.commit()
        })
    }

    /// Forgets all packs of interrupted runs: index objects name those that arrived.
    ///
    /// # Errors
    /// `IO`.
    pub fn clear_pending(&self) -> Result<()> {
        self.with(|connection| connection.execute("DELETE FROM pending", [])).map(|_| ())
    }
}

fn prepare(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS objects(key TEXT PRIMARY KEY, body BLOB);
         CREATE TABLE IF NOT EXISTS files(path TEXT PRIMARY KEY, signature BLOB, entry BLOB);
         CREATE TABLE IF NOT EXISTS pending(pack TEXT PRIMARY KEY, entry BLOB);",
    )?;
    Ok(connection)
}

fn known_identity(connection: &Connection) -> rusqlite::Result<Option<String>> {
    connection.query_row("SELECT value FROM meta WHERE name = 'identity'", [], |row| row.get(0)).optional()
}

fn failed(error: &rusqlite::Error) -> Error {
    Error::new(Code::Io, format!("the local cache failed: {error}"))
        .advise("it can be deleted at any time: <stateDir>/b2-backup/cache.sqlite")
}

const CHECKSUM: usize = 16;

fn checksum(context: &str, bytes: &[u8]) -> [u8; CHECKSUM] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(context.len() as u64).to_le_bytes()).update(context.as_bytes()).update(bytes);
    let mut sum = [0; CHECKSUM];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM]);
    sum
}

/// Binds a row's value to its key, so that a damaged page shows.
fn protect(context: &str, bytes: &[u8]) -> Vec<u8> {
    [&checksum(context, bytes)[..], bytes].concat()
}

fn unprotect<'r>(context: &str, row: &'r [u8]) -> Option<&'r [u8]> {
    let (sum, bytes) = row.split_at_checked(CHECKSUM)?;
    (checksum(context, bytes) == sum).then_some(bytes)
}

fn file_context(path: &str, signature: &[u8]) -> String {
    format!("{path}\n{}", crate::repository::id::hex(signature))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A full disk, a file that somebody else holds: what the cache alone remembers must outlast that.
    #[test]
    fn a_cache_that_cannot_be_opened_at_the_moment_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        Cache::open(&path, "here").unwrap().put_objects([("keys/x".into(), &b"slot"[..])]).unwrap();
        let holder = Connection::open(&path).unwrap();
        holder.pragma_update(None, "locking_mode", "EXCLUSIVE").unwrap();
        holder.execute_batch("BEGIN EXCLUSIVE").unwrap();
        assert_eq!(Cache::open(&path, "here").unwrap_err().code(), Code::Io);
        drop(holder);
        assert_eq!(Cache::open(&path, "here").unwrap().object("keys/x").unwrap(), b"slot");
        // Of another repository, it is.
        assert_eq!(Cache::open(&path, "elsewhere").unwrap().object("keys/x"), None);
    }
    use crate::repository::tree::Kind;

    fn file(path: &str) -> CachedFile {
        CachedFile { signature: vec![1, 2], entry: Entry::new(path, Kind::File, 0o644, 5) }
    }

    fn remember(cache: &Cache, files: &[CachedFile]) {
        let files = files.iter().map(|CachedFile { signature, entry }| (&signature[..], entry));
        cache.update_files(files, &[]).unwrap();
    }

    #[test]
    fn what_was_remembered_is_there_after_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        let cache = Cache::open(&path, "here").unwrap();
        cache.put_objects([("index/a".to_owned(), &b"one"[..]), ("keys/b".to_owned(), &b"two"[..])]).unwrap();
        remember(&cache, &[file("a"), file("b")]);
        cache.update_files([], &["b".into()]).unwrap();
        drop(cache);
        let cache = Cache::open(&path, "here").unwrap();
        assert_eq!(cache.object("index/a").unwrap(), b"one");
        assert_eq!(cache.objects("index/").len(), 1);
        assert_eq!(cache.files().into_iter().collect::<Vec<_>>(), [("a".to_owned(), file("a"))]);
        cache.retain_objects(|key| key.starts_with("keys/")).unwrap();
        assert!(cache.object("index/a").is_none());
    }

    #[test]
    fn another_repository_or_a_damaged_file_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        Cache::open(&path, "here").unwrap().put_objects([("k".to_owned(), &b"v"[..])]).unwrap();
        assert!(Cache::open(&path, "there").unwrap().object("k").is_none());
        std::fs::write(&path, "not a database at all, but long enough to be looked at").unwrap();
        let cache = Cache::open(&path, "there").unwrap();
        cache.put_objects([("k".to_owned(), &b"v"[..])]).unwrap();
        assert_eq!(cache.object("k").unwrap(), b"v");
    }

    #[test]
    fn a_damaged_row_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        let cache = Cache::open(&path, "here").unwrap();
        cache.put_objects([("k".to_owned(), &b"value"[..])]).unwrap();
        remember(&cache, &[file("a")]);
        cache
            .with(|connection| {
                connection.execute("UPDATE objects SET body = substr(body, 1, 18)", [])?;
                connection.execute("UPDATE files SET signature = x'0103'", [])
            })
            .unwrap();
        assert!(cache.object("k").is_none());
        assert!(cache.files().is_empty());
    }
}
