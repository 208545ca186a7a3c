//! SQLite databases: consistent copies of them, and putting one back, be it under whoever has it open. Which rows of
//! OpenClaw's stay home, or are kept, is in `database/own_rows.rs`, and whether they hold anything yet in `database/content.rs`.
//!
//! A copy is made by `VACUUM INTO`, inside one read transaction: it is consistent whoever writes meanwhile, holds
//! nothing of what free pages remember, keeps every rowid (plain `VACUUM` renumbers tables that have neither an INTEGER
//! PRIMARY KEY nor an index), and has no write-ahead log beside it.

mod content;
mod indexes;
mod own_rows;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::private::create_private_file;
use super::scan::Signature;
use crate::error::{Code, Error, Result};

pub use content::{holds_agent_content, seeded_files};
pub use indexes::make_again as make_indexes_again;
pub use own_rows::{check_version, keep_rows_of_this_machine, move_to};
use own_rows::{keep_leases, remove_rows_that_stay_home};

/// How every SQLite database starts (<https://sqlite.org/fileformat2.html>, section 1.3).
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How long to wait for a writer that holds a database exclusively.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// What findings say that concern rows and the words in a full-text index, and not where they lie: those of SQLite's `pragma.c`,
/// `fts3.c` and `fts5_main.c`.
const CONTRADICTIONS: [&str; 6] = [
    "NULL value in ",
    "CHECK constraint failed in ",
    "non-unique entry in index ",
    " value in ",
    "malformed inverted index for FTS",
    "unable to validate the inverted index for FTS",
];
/// How long between two attempts where SQLite does not wait by itself.
const BUSY_STEP: Duration = Duration::from_millis(20);

/// OpenClaw's databases by name; the tables above mean nothing in anyone else's.
#[must_use]
pub fn is_openclaws(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with("openclaw") && name.contains(".sqlite"))
}

fn failed(what: &str, path: &Path) -> impl Fn(rusqlite::Error) -> Error {
    let (what, path) = (what.to_owned(), path.to_owned());
    move |error| {
        let code = match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Code::Locked,
            _ => Code::Io,
        };
        let failure = Error::new(code, format!("cannot {what} the database {}: {error}", path.display()));
        failure.at_path(path.display().to_string()).because(error)
    }
}

/// Whether what `source` gives starts as databases do.
///
/// # Errors
/// Those of reading.
pub fn starts_like_one(source: &mut impl Read) -> io::Result<bool> {
    let mut start = Vec::with_capacity(MAGIC.len());
    source.take(MAGIC.len() as u64).read_to_end(&mut start)?;
    Ok(start == MAGIC)
}

/// Whether there is a file that starts as databases do.
#[must_use]
pub fn has_magic(path: &Path) -> bool {
    File::open(path).and_then(|mut file| starts_like_one(&mut file)).unwrap_or(false)
}

/// The size of a database's pages, in bytes; afterwards `file` is at its start.
///
/// # Errors
/// Those of reading.
pub fn page_size(file: &mut File) -> io::Result<u32> {
    // <https://sqlite.org/fileformat2.html>, section 1.3.2.
    let mut header = [0; 18];
    file.read_exact(&mut header)?;
    file.rewind()?;
    let size = u32::from(u16::from_be_bytes([header[16], header[17]]));
    Ok(if size == 1 { 1 << 16 } else { size })
}

/// Makes a private copy of the database at `source` in the new file `copy`; of OpenClaw's without the rows that must stay
/// home, and without indexes that [`make_indexes_again`] makes from the tables.
///
/// # Errors
/// `IO` when it cannot be read or copied; `LOCKED` when a writer holds it for too long.
pub fn copy_for_snapshot(source: &Path, copy: &Path) -> Result<()> {
    vacuum_into(source, copy)?;
    // Both, whatever the first says.
    if is_openclaws(source) && (remove_rows_that_stay_home(copy)? | indexes::leave_out(copy)?) {
        // Deleted rows live on in free pages until the file is written anew.
        let first = copy.with_extension("stripped");
        std::fs::rename(copy, &first).map_err(|error| Error::io("rename", copy, error))?;
        let vacuumed = vacuum_into(&first, copy);
        std::fs::remove_file(&first).map_err(|error| Error::io("remove", &first, error))?;
        vacuumed?;
    }
    Ok(())
}

/// Takes from a private copy of a database what [`copy_for_snapshot`] leaves out: it comes from a snapshot of 0.1.x, which
/// kept it.
///
/// # Errors
/// `IO` when it cannot be written; `CORRUPT` when it is no database, so that its credentials cannot be taken out.
pub fn strip(copy: &Path) -> Result<()> {
    if copy.metadata().is_ok_and(|meta| meta.len() == 0) {
        return Ok(());
    }
    if !has_magic(copy) {
        return Err(Error::corrupt(
            &copy.display().to_string(),
            "it has the name of a database of OpenClaw and is none",
        ));
    }
    // The name tells whose database it is.
    let mut first = copy.as_os_str().to_owned();
    first.push(".raw");
    let first = PathBuf::from(first);
    std::fs::rename(copy, &first).map_err(|error| Error::io("rename", copy, error))?;
    let stripped = copy_for_snapshot(&first, copy);
    for file in [first.clone()].into_iter().chain(side_files(&first)).filter(|file| file.exists()) {
        std::fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
    }
    stripped.map_err(|error| {
        let source = std::error::Error::source(&error).and_then(|error| error.downcast_ref::<rusqlite::Error>());
        if source.is_some_and(is_damage) { Error::corrupt(&copy.display().to_string(), error) } else { error }
    })
}

/// Whether a copy failed for want of a place to put it: nothing is written but the copy, and `folder` is where it lies.
#[must_use]
pub fn is_no_place_for_copies(folder: &Path, error: &Error) -> bool {
    use rusqlite::ffi::{
        SQLITE_FULL, SQLITE_IOERR_DELETE, SQLITE_IOERR_DIR_FSYNC, SQLITE_IOERR_FSYNC, SQLITE_IOERR_TRUNCATE,
        SQLITE_IOERR_WRITE,
    };
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref::<rusqlite::Error>());
    let code = source.and_then(rusqlite::Error::sqlite_error).map(|error| error.extended_code);
    let writing = [
        SQLITE_FULL,
        SQLITE_IOERR_DELETE,
        SQLITE_IOERR_DIR_FSYNC,
        SQLITE_IOERR_FSYNC,
        SQLITE_IOERR_TRUNCATE,
        SQLITE_IOERR_WRITE,
    ];
    if code.is_some_and(|code| writing.contains(&code)) {
        return true;
    }
    // Named at random: several threads copy.
    let probe = tempfile::NamedTempFile::new_in(folder);
    let written = probe.and_then(|mut probe| std::io::Write::write_all(&mut probe, &vec![0; 64 << 10])).is_ok();
    !written
}

fn vacuum_into(source: &Path, copy: &Path) -> Result<()> {
    create_private_file(copy)?;
    let target = copy.to_str().ok_or_else(|| Error::config("stateDir", "the path is not valid UTF-8"))?;
    if rests(source) && vacuum_at_rest(source, target) {
        return Ok(());
    }
    let attempt = |flags| {
        let connection = Connection::open_with_flags(source, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        vacuum(&connection, target)
    };
    // Reading alone never checkpoints or recovers the owner's files. A database left with a hot rollback journal cannot
    // be read that way: SQLite has to roll it back first, as the next program to open it would.
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    match attempt(flags) {
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::ReadOnly) => {
            attempt(OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE)
        }
        // The schema needs a collation or function of its owner's: only page by page can it be copied.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::Unknown) => copy_pages(source, copy),
        result => result,
    }
    .map_err(failed("copy", source))
}

fn vacuum(connection: &Connection, target: &str) -> rusqlite::Result<()> {
    // The copy lives for seconds; what is durable is what reaches the store.
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.execute("VACUUM INTO ?1", [target]).map(|_| ())
}

/// Whether the database is in WAL mode and nobody has it open: then a mere reader would leave a log and an index of it
/// beside it, which nobody cleans up.
fn rests(source: &Path) -> bool {
    is_wal(source) && side_files(source).iter().all(|file| !file.exists())
}

/// Whether what changes in the database is first written to a log beside it.
fn is_wal(path: &Path) -> bool {
    // The read and write versions of the header: 2 is WAL (<https://sqlite.org/fileformat2.html>, section 1.3.3).
    let mut header = [0; 20];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).is_ok() && header[18..] == [2, 2]
}

/// Reads a database as if nobody could change it; `None` when somebody did, or when it cannot be read.
fn read_at_rest<T>(path: &Path, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
    let mut uri = url::Url::from_file_path(path).ok()?;
    uri.set_query(Some("immutable=1"));
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let before = Signature::of(path).ok()?;
    let result = query(&Connection::open_with_flags(uri.as_str(), flags).ok()?).ok()?;
    (rests(path) && Signature::of(path).ok()? == before).then_some(result)
}

/// Reads a database, whoever has it open, and leaves nothing beside it.
fn read<T>(path: &Path, query: impl Fn(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    if rests(path)
        && let Some(result) = read_at_rest(path, &query)
    {
        return Ok(result);
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    query(&connection)
}

/// Copies a database as if nobody could change it; `false` when somebody did, or when it cannot be copied.
fn vacuum_at_rest(source: &Path, target: &str) -> bool {
    let copied = read_at_rest(source, |connection| vacuum(connection, target)).is_some();
    if !copied {
        // The next attempt wants it empty, as it was.
        let _ = File::options().write(true).truncate(true).open(target);
    }
    copied
}

/// Has SQLite undo what a crash left half done in the database at `path`, as the next program to open it would. What
/// cannot be undone is seen when the database is copied.
pub fn play_back_journal(path: &Path) {
    let [.., journal] = side_files(path);
    if !journal.is_file() {
        return;
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE;
    let read = Connection::open_with_flags(path, flags).and_then(|connection| {
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))
    });
    if let Err(error) = read {
        tracing::debug!(%error, path = %path.display(), "the journal of a database was not played back");
    }
}

/// Copies all pages in one step, which no writer can come between.
fn copy_pages(source: &Path, copy: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    let source = Connection::open_with_flags(source, flags)?;
    source.busy_timeout(BUSY_TIMEOUT)?;
    let mut copy = Connection::open(copy)?;
    let backup = rusqlite::backup::Backup::new(&source, &mut copy)?;
    match backup.step(-1)? {
        rusqlite::backup::StepResult::Done => Ok(()),
        _ => Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None)),
    }
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// Copies a database with its write-ahead log as they lie there.
fn copy_files(live: &Path, copy: &Path) -> Result<()> {
    let [log, ..] = side_files(live);
    let [copied_log, ..] = side_files(copy);
    for (from, to) in [(live, copy), (&log, &copied_log)] {
        if from.is_file() {
            std::fs::copy(from, to).map_err(|error| Error::io("copy", from, error))?;
        }
    }
    Ok(())
}

/// Copies a live database as it is, all pages of one moment, into a new file.
///
/// # Errors
/// `IO`; `LOCKED` when a writer holds it for too long.
pub fn copy_whole(live: &Path, copy: &Path) -> Result<()> {
    create_private_file(copy)?;
    copy_pages(live, copy).map_err(failed("copy", live))
}

/// Makes the live database `live` equal to `source`, in one transaction, under whoever has it open: they read the new
/// content from their next transaction on, and have the leases that they had.
///
/// # Errors
/// `LOCKED` when somebody holds it for too long, `IO`. Then it is as it was.
pub fn overwrite(live: &Path, source: &Path) -> Result<()> {
    keep_leases(live, source)?;
    let attempt = || -> rusqlite::Result<()> {
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE;
        let mut live = Connection::open_with_flags(live, flags)?;
        live.busy_timeout(BUSY_TIMEOUT)?;
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
        let source = Connection::open_with_flags(source, flags)?;
        let backup = rusqlite::backup::Backup::new(&source, &mut live)?;
        // A backup does not wait for locks by itself.
        for _ in 0..BUSY_TIMEOUT.as_millis() / BUSY_STEP.as_millis() {
            match backup.step(-1)? {
                rusqlite::backup::StepResult::Done => return Ok(()),
                _ => std::thread::sleep(BUSY_STEP),
            }
        }
        Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None))
    };
    attempt().map_err(failed("overwrite", live))
}

/// Whether a staged database is sound, by SQLite's own checks. Gives, as it was when it was saved, what contradicts its schema:
/// that is for its owner to put right.
///
/// # Errors
/// `CORRUPT` with the first thing that SQLite found in its structure.
pub fn check_integrity(path: &Path) -> Result<Vec<String>> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    let findings = Connection::open_with_flags(path, flags).and_then(|connection| {
        let mut query = connection.prepare("PRAGMA integrity_check")?;
        query.query_map([], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()
    });
    let contradicts_schema = |finding: &String| CONTRADICTIONS.iter().any(|part| finding.contains(part));
    match findings {
        Ok(findings) if findings == ["ok"] => Ok(Vec::new()),
        Ok(findings) => match findings.iter().find(|finding| !contradicts_schema(finding)) {
            Some(finding) => Err(Error::corrupt(&path.display().to_string(), finding)),
            None => Ok(findings),
        },
        // A schema that uses a module or function of its owner's cannot be checked from here; its bytes were.
        Err(error) if ["no such", "unknown function"].iter().any(|part| error.to_string().contains(part)) => {
            Ok(Vec::new())
        }
        Err(error) => Err(Error::corrupt(&path.display().to_string(), error)),
    }
}

/// A database that nobody else has open, and that nobody can open until this is dropped.
#[derive(Debug)]
pub struct Exclusive {
    connection: Connection,
    /// Side files that came into being only by opening it.
    made: Vec<PathBuf>,
}

impl Exclusive {
    /// Lets go of a database that is still where it was. (To be dropped instead when it was moved: by then the names may
    /// belong to another.)
    pub fn release(self) {
        // While the lock is held nobody else can have these open.
        for file in &self.made {
            let _ = std::fs::remove_file(file);
        }
        drop(self.connection);
    }
}

/// Takes a live database for this process alone, without changing its files.
///
/// # Errors
/// `LOCKED` when another process has it open.
pub fn take_exclusively(path: &Path) -> Result<Exclusive> {
    if let Some(holder) = holder_of(path) {
        return Err(in_use(path, &holder));
    }
    let attempt = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::ZERO)?;
        // Closing must neither checkpoint into the file nor delete a log: by then the names belong to other files.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // In WAL mode every open connection holds a shared lock on the file for as long as it is open, so that this
        // fails while there is one; https://sqlite.org/wal.html, section 8.
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.execute_batch("BEGIN EXCLUSIVE")?;
        Ok(connection)
    };
    let mut made: Vec<PathBuf> = side_files(path).into_iter().filter(|file| !file.exists()).collect();
    match attempt() {
        Ok(connection) => {
            made.retain(|file| file.exists());
            Ok(Exclusive { connection, made })
        }
        Err(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Err(in_use(path, "another process"))
            }
            // A damaged database cannot be locked through SQLite, and is what a rollback is there to replace.
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => nothing_to_lock(path),
            // Nobody without more rights than this process can have it open for writing. It is moved, not written.
            _ if is_read_only(path) => nothing_to_lock(path),
            _ => Err(failed("lock", path)(error)),
        },
    }
}

fn nothing_to_lock(path: &Path) -> Result<Exclusive> {
    let connection = Connection::open_in_memory().map_err(failed("open", path))?;
    Ok(Exclusive { connection, made: Vec::new() })
}

/// Whether this process may read a file and not write it.
fn is_read_only(path: &Path) -> bool {
    let writable = File::options().write(true).open(path);
    File::open(path).is_ok() && writable.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}

fn in_use(path: &Path, holder: &str) -> Error {
    Error::new(Code::Locked, format!("{holder} has the database {} open", path.display()))
        .at_path(path.display().to_string())
        .advise("stop the gateway first, or ask the agent to roll back")
}

/// Another process that has the file open, for people. Linux only: elsewhere SQLite's own locks have to do, which do not
/// show an idle connection outside WAL mode.
fn holder_of(path: &Path) -> Option<String> {
    let path = std::fs::canonicalize(path).ok()?;
    let own = std::process::id().to_string();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        if id == own {
            continue;
        }
        let Ok(handles) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if handles.flatten().any(|handle| std::fs::read_link(handle.path()).is_ok_and(|target| target == path)) {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (process {id})", command.trim()));
        }
    }
    None
}

/// What SQLite appends to a database's name for its write-ahead log, the index of that, and its rollback journal.
pub const SIDE_FILES: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The database whose side file this is, by its name.
#[must_use]
pub fn owner_of_side_file(path: &str) -> Option<&str> {
    SIDE_FILES.iter().find_map(|suffix| path.strip_suffix(suffix))
}

/// The database's own side files, which belong to it and to no other.
#[must_use]
pub fn side_files(path: &Path) -> [PathBuf; 3] {
    SIDE_FILES.map(|suffix| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    })
}

/// Whether something was written to the database at `path` that is only in the log beside it.
#[must_use]
pub fn log_with_content(path: &Path) -> bool {
    let [log, ..] = side_files(path);
    log.metadata().is_ok_and(|meta| meta.len() > 0)
}

/// Whether the file at `path` is a log or journal of the database beside it, and as such part of its copy. The name alone
/// does not say: people keep a `dream-journal`.
#[must_use]
pub fn is_side_file(path: &Path) -> bool {
    let Some(path) = path.to_str() else { return false };
    owner_of_side_file(path).is_some_and(|owner| {
        let owner = Path::new(owner);
        // Those of OpenClaw's hold credentials: they stay home also when their database is damaged or gone.
        is_openclaws(owner) || std::fs::symlink_metadata(owner).is_ok_and(|meta| meta.is_file()) && has_magic(owner)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(path: &Path, sql: &str) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.execute_batch(sql).unwrap();
        connection
    }

    fn one<T: rusqlite::types::FromSql>(path: &Path, sql: &str) -> T {
        Connection::open(path).unwrap().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    const SECRET: &str = "sk-SECRET-MUST-NOT-LEAVE";

    fn openclaw_schema(key: &str) -> String {
        format!(
            "PRAGMA journal_mode=WAL;
             CREATE TABLE config_machine_state(key TEXT PRIMARY KEY, value TEXT);
             CREATE TABLE auth_profile_store(id INTEGER PRIMARY KEY, body TEXT);
             CREATE INDEX profiles_by_body ON auth_profile_store(body);
             CREATE TABLE state_leases(name TEXT);
             CREATE TABLE sessions(id TEXT, body TEXT);
             CREATE TRIGGER keep BEFORE DELETE ON auth_profile_store BEGIN SELECT RAISE(ABORT, 'append-only'); END;
             INSERT INTO config_machine_state VALUES ('authProfiles.store', '{key}'), ('plugins.installedIndex', '{key}-index'), ('theme', 'dark');
             INSERT INTO auth_profile_store VALUES (7, '{key}');
             INSERT INTO state_leases VALUES ('gateway-owner');
             INSERT INTO sessions VALUES ('s', 'hello');"
        )
    }

    #[test]
    fn a_copy_is_consistent_under_a_writer_and_leaves_the_original_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (live, copy) = (folder.path().join("x.sqlite"), folder.path().join("copy"));
        let writer = make(&live, "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        writer.execute_batch("BEGIN IMMEDIATE; INSERT INTO t VALUES (2)").unwrap();
        let before = std::fs::read(&live).unwrap();
        copy_for_snapshot(&live, &copy).unwrap();
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(one::<i64>(&copy, "SELECT count(*) FROM t"), 1);
        assert_eq!(std::fs::read(&live).unwrap(), before);
        assert!(side_files(&copy).iter().all(|file| !file.exists()));
    }

    #[test]
    fn a_copy_keeps_the_rowids_that_other_tables_point_to() {
        let folder = tempfile::tempdir().unwrap();
        let (live, copy) = (folder.path().join("x.sqlite"), folder.path().join("copy"));
        make(&live, "CREATE TABLE t(a); INSERT INTO t VALUES (1), (2), (3); DELETE FROM t WHERE a = 1")
            .close()
            .unwrap();
        copy_for_snapshot(&live, &copy).unwrap();
        assert_eq!(one::<i64>(&copy, "SELECT rowid FROM t WHERE a = 3"), 3);
    }

    #[test]
    fn copies_of_an_unchanged_database_are_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("openclaw.sqlite");
        let writer = make(&live, &openclaw_schema(SECRET));
        let (first, second) = (folder.path().join("1"), folder.path().join("2"));
        copy_for_snapshot(&live, &first).unwrap();
        writer.execute_batch("UPDATE state_leases SET name = 'renewed'").unwrap();
        copy_for_snapshot(&live, &second).unwrap();
        assert_eq!(std::fs::read(first).unwrap(), std::fs::read(second).unwrap());
    }

    #[test]
    fn no_credential_is_in_a_copy_not_even_a_deleted_one() {
        let folder = tempfile::tempdir().unwrap();
        let (live, copy) = (folder.path().join("openclaw.sqlite"), folder.path().join("copy"));
        let writer = make(&live, &openclaw_schema(SECRET));
        writer
            .execute_batch(&format!(
                "CREATE TABLE old(a); INSERT INTO old VALUES ('{SECRET}'); DROP TABLE old; PRAGMA wal_checkpoint(TRUNCATE);"
            ))
            .unwrap();
        let contains =
            |path: &Path| std::fs::read(path).unwrap().windows(SECRET.len()).any(|window| window == SECRET.as_bytes());
        writer.execute("UPDATE config_machine_state SET value = 'x' WHERE key = 'plugins.installedIndex'", []).unwrap();
        assert!(contains(&live));
        copy_for_snapshot(&live, &copy).unwrap();
        assert!(!contains(&copy));
        assert_eq!(one::<String>(&copy, "SELECT value FROM config_machine_state WHERE key = 'theme'"), "dark");
        assert_eq!(one::<i64>(&copy, "SELECT count(*) FROM state_leases"), 0);
    }

    const RELATED: &str = "PRAGMA foreign_keys = OFF;
        CREATE TABLE worker_environments(id TEXT PRIMARY KEY);
        CREATE TABLE worker_environment_credentials(id TEXT REFERENCES worker_environments ON DELETE CASCADE, hash TEXT);
        CREATE TABLE web_push_subscriptions(a TEXT, b TEXT, PRIMARY KEY (a, b));
        CREATE TABLE deliveries(id TEXT PRIMARY KEY, a TEXT, b TEXT, FOREIGN KEY (a, b) REFERENCES web_push_subscriptions);
        CREATE TABLE receipts(delivery TEXT REFERENCES deliveries(id));
        CREATE TABLE notes(text TEXT, subscription TEXT, b TEXT,
            FOREIGN KEY (subscription, b) REFERENCES web_push_subscriptions(a, b) ON DELETE SET NULL);
        CREATE TABLE strays(of TEXT REFERENCES nowhere(id), other TEXT REFERENCES worker_environments(id));
        CREATE TABLE plugin_blob_entries(key TEXT, expires_at INTEGER);
        CREATE TABLE exec_approvals_config(config_key TEXT PRIMARY KEY, raw_json TEXT, has_socket_token INTEGER);
        INSERT INTO worker_environments VALUES ('w');
        INSERT INTO worker_environment_credentials VALUES ('w', 'hash');
        INSERT INTO web_push_subscriptions VALUES ('a', 'b');
        INSERT INTO deliveries VALUES ('d', 'a', 'b'), ('other', NULL, 'b');
        INSERT INTO receipts VALUES ('d'), ('other');
        INSERT INTO notes VALUES ('kept', 'a', 'b');
        INSERT INTO strays VALUES ('gone', 'gone too');
        INSERT INTO plugin_blob_entries VALUES ('stays', NULL), ('goes', 1);
        INSERT INTO exec_approvals_config VALUES ('c', '{\"version\":1,\"socket\":{\"path\":\"p\",\"token\":\"SOCKET\"}}', 1),
            ('broken', '{ SOCKET', 1);";

    #[test]
    fn what_pointed_to_a_removed_row_goes_with_it_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let (live, copy) = (folder.path().join("openclaw.sqlite"), folder.path().join("copy"));
        make(&live, RELATED).close().unwrap();
        copy_for_snapshot(&live, &copy).unwrap();
        assert_eq!(one::<String>(&copy, "SELECT group_concat(id) FROM deliveries"), "other");
        assert_eq!(one::<String>(&copy, "SELECT group_concat(delivery) FROM receipts"), "other");
        assert_eq!(one::<String>(&copy, "SELECT text || coalesce(subscription, '-') FROM notes"), "kept-");
        assert_eq!(one::<String>(&copy, "SELECT other FROM strays"), "gone too", "it was an orphan before");
        assert_eq!(one::<String>(&copy, "SELECT group_concat(key) FROM plugin_blob_entries"), "stays");
        let approvals = "SELECT group_concat(config_key || raw_json || has_socket_token) FROM exec_approvals_config";
        assert_eq!(one::<String>(&copy, approvals), "c{\"version\":1,\"socket\":{\"path\":\"p\"}}0");

        // On the way back this machine's own return, as far as there is what they are for.
        Connection::open(&live)
            .unwrap()
            .execute_batch("INSERT INTO worker_environments VALUES ('new'); INSERT INTO worker_environment_credentials VALUES ('new', 'hash')")
            .unwrap();
        keep_rows_of_this_machine(&live, &copy).unwrap();
        assert_eq!(one::<String>(&copy, "SELECT group_concat(id) FROM worker_environment_credentials"), "w");
        assert_eq!(one::<i64>(&copy, "SELECT count(*) FROM web_push_subscriptions"), 1);
        assert_eq!(
            one::<String>(&copy, "SELECT json_extract(raw_json, '$.socket.token') FROM exec_approvals_config"),
            "SOCKET"
        );
    }

    #[test]
    fn a_database_of_a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (live, staged) = (folder.path().join("openclaw.sqlite"), folder.path().join("staged"));
        make(&live, "CREATE TABLE t(a); PRAGMA user_version = 18").close().unwrap();
        make(&staged, "CREATE TABLE t(a); PRAGMA user_version = 19").close().unwrap();
        assert_eq!(check_version(&live, &staged).unwrap_err().code(), Code::Config);
        check_version(&staged, &live).unwrap();
        check_version(&folder.path().join("none"), &staged).unwrap();
    }

    #[test]
    fn someone_elses_database_is_copied_with_all_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (live, copy) = (folder.path().join("mine.db"), folder.path().join("copy"));
        make(&live, "CREATE TABLE device_identities(a); INSERT INTO device_identities VALUES (1)").close().unwrap();
        copy_for_snapshot(&live, &copy).unwrap();
        assert_eq!(one::<i64>(&copy, "SELECT count(*) FROM device_identities"), 1);
    }

    #[test]
    fn a_staged_database_gets_this_machines_own_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (live, staged) = (folder.path().join("openclaw.sqlite"), folder.path().join("staged"));
        make(&live, &openclaw_schema("mine")).close().unwrap();
        make(&staged, &openclaw_schema("theirs").replace("WAL", "DELETE")).close().unwrap();
        keep_rows_of_this_machine(&live, &staged).unwrap();
        assert_eq!(one::<String>(&staged, "SELECT body FROM auth_profile_store"), "mine");
        let value =
            |key: &str| one::<String>(&staged, &format!("SELECT value FROM config_machine_state WHERE key = '{key}'"));
        assert_eq!(value("authProfiles.store"), "mine");
        assert_eq!(value("plugins.installedIndex"), "mine-index");
        assert_eq!(value("theme"), "dark");
        check_integrity(&staged).unwrap();
    }

    #[test]
    fn an_open_database_cannot_be_taken_and_a_taken_one_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("x.sqlite");
        let reader = make(&live, "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (1)");
        assert_eq!(take_exclusively(&live).unwrap_err().code(), Code::Locked);
        drop(reader);
        let held = take_exclusively(&live).unwrap();
        let other = Connection::open(&live).unwrap();
        other.busy_timeout(Duration::ZERO).unwrap();
        assert!(other.query_row("SELECT a FROM t", [], |row| row.get::<_, i64>(0)).is_err());
        drop(held);
        assert_eq!(one::<i64>(&live, "SELECT a FROM t"), 1);
    }

    #[test]
    fn a_damaged_database_can_be_taken_so_that_it_can_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("x.sqlite");
        std::fs::write(&live, [&MAGIC[..], &[7; 5000]].concat()).unwrap();
        take_exclusively(&live).unwrap();
    }
}
