//! SQLite databases: consistent copies without credentials, and putting a copy back without losing this machine's own.
//!
//! A copy is made by `VACUUM INTO`, inside one read transaction: it is consistent whoever writes meanwhile, holds
//! nothing of what free pages remember, keeps every rowid (plain `VACUUM` renumbers tables that have neither an INTEGER
//! PRIMARY KEY nor an index), and has no write-ahead log beside it.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::private::create_private_file;
use super::scan::Signature;
use crate::error::{Code, Error, Result};

/// How every SQLite database starts (<https://sqlite.org/fileformat2.html>, section 1.3).
pub const MAGIC: &[u8; 16] = b"SQLite format 3\0";

/// How long to wait for a writer that holds a database exclusively.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// How long between two attempts where SQLite does not wait by itself.
const BUSY_STEP: Duration = Duration::from_millis(20);

/// Tables whose rows are credentials or identities of this machine: never in a snapshot, kept by a rollback.
const SECRET_TABLES: &[&str] = &[
    // state/openclaw.sqlite
    "audit_identity_keys",
    "apns_registrations",
    "channel_ingress_events",
    "channel_pairing_requests",
    "clawhub_promotion_claims",
    "config_revision_keys",
    "device_auth_tokens",
    "device_bootstrap_tokens",
    "device_identities",
    "device_pairing_join_codes",
    "device_pairing_paired",
    "gateway_origin_device_tokens",
    "mcp_oauth_pending_authorizations",
    "mcp_oauth_stores",
    "native_hook_relay_bridges",
    "secret_store_entries",
    "web_push_subscriptions",
    "worker_environment_credentials",
    // agents/<id>/agent/openclaw-agent.sqlite
    "auth_profile_state",
    "auth_profile_store",
    "session_suggestions",
];

/// Tables that say who is running or what is about to be delivered: never in a snapshot, and empty after a rollback,
/// since nothing runs then.
const VOLATILE_TABLES: &[&str] = &["state_leases", "agent_database_leases", "delivery_queue_entries"];

/// Rows that would bring back what was to be gone by a certain time, by table and condition: never in a snapshot, as in
/// `OpenClaw`'s own backups.
const EXPIRING_ROWS: &[(&str, &str)] = &[("plugin_blob_entries", "expires_at IS NOT NULL")];

/// The policy for commands that agents run. With it in one JSON text is the token of this machine's approval socket.
const EXEC_APPROVALS: &str = "exec_approvals_config";
const SOCKET_TOKEN: &str = "$.socket.token";

/// Those of them that a run needs to go on.
const LEASE_TABLES: &[&str] = &["state_leases", "agent_database_leases"];

/// Rows of `config_machine_state` that are credentials, by the start of their key.
const SECRET_KEYS: &[&str] = &["authProfiles.", "nodeHost.", "webPush.vapidKeys"];

/// Rows of `config_machine_state` that are no secret but this machine's own: a rollback does not take back which plugins
/// are installed.
const MACHINE_KEYS: &[&str] = &["plugins.installedIndex"];

/// Where keyed machine state lies, and what its key column is called.
const MACHINE_STATE: &str = "config_machine_state";

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
pub fn page_size(file: &mut File) -> io::Result<usize> {
    // <https://sqlite.org/fileformat2.html>, section 1.3.2.
    let mut header = [0; 18];
    file.read_exact(&mut header)?;
    file.rewind()?;
    let size = usize::from(u16::from_be_bytes([header[16], header[17]]));
    Ok(if size == 1 { 1 << 16 } else { size })
}

/// Makes a private copy of the database at `source` in the new file `copy`, without the rows that must stay home.
///
/// # Errors
/// `IO` when it cannot be read or copied; `LOCKED` when a writer holds it for too long.
pub fn copy_for_snapshot(source: &Path, copy: &Path) -> Result<()> {
    vacuum_into(source, copy)?;
    if is_openclaws(source) && remove_rows_that_stay_home(copy)? {
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
    // The read and write versions of the header: 2 is WAL (<https://sqlite.org/fileformat2.html>, section 1.3.3).
    let mut header = [0; 20];
    let is_wal = File::open(source).and_then(|mut file| file.read_exact(&mut header)).is_ok() && header[18..] == [2, 2];
    is_wal && side_files(source).iter().all(|file| !file.exists())
}

/// Copies a database as if nobody could change it; `false` when somebody did, or when it cannot be copied.
fn vacuum_at_rest(source: &Path, target: &str) -> bool {
    let attempt = || -> Option<()> {
        let mut uri = url::Url::from_file_path(source).ok()?;
        uri.set_query(Some("immutable=1"));
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
        let before = Signature::of(source).ok()?;
        vacuum(&Connection::open_with_flags(uri.as_str(), flags).ok()?, target).ok()?;
        (rests(source) && Signature::of(source).ok()? == before).then_some(())
    };
    let copied = attempt().is_some();
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

/// Deletes from a copy what must not leave the machine; says whether there was anything.
fn remove_rows_that_stay_home(copy: &Path) -> Result<bool> {
    let remove = || -> rusqlite::Result<bool> {
        let connection = open_copy(copy)?;
        let mut removed = 0;
        let mut emptied = HashSet::new();
        let whole = SECRET_TABLES.iter().chain(VOLATILE_TABLES).map(|table| (*table, "true"));
        for (table, condition) in whole.chain(EXPIRING_ROWS.iter().copied()) {
            if has_table(&connection, "main", table)? {
                removed += connection.execute(&format!("DELETE FROM \"{table}\" WHERE {condition}"), [])?;
                emptied.insert(table.to_owned());
            }
        }
        if let Some(key) = machine_state_key(&connection, "main")? {
            for start in SECRET_KEYS {
                let sql = format!("DELETE FROM {MACHINE_STATE} WHERE {}", starts_with(&key, start));
                removed += connection.execute(&sql, [])?;
            }
        }
        if has_table(&connection, "main", EXEC_APPROVALS)? {
            // One that is no JSON says nothing to OpenClaw, and may hold the token anywhere.
            removed +=
                connection.execute(&format!("DELETE FROM {EXEC_APPROVALS} WHERE NOT json_valid(raw_json)"), [])?;
            let sql = format!(
                "UPDATE {EXEC_APPROVALS} SET raw_json = json_remove(raw_json, ?1), has_socket_token = 0
                 WHERE json_extract(raw_json, ?1) IS NOT NULL"
            );
            removed += connection.execute(&sql, [SOCKET_TOKEN])?;
        }
        if removed > 0 {
            remove_orphans(&connection, emptied)?;
        }
        connection.close().map_err(|(_, error)| error)?;
        Ok(removed > 0)
    };
    remove().map_err(failed("clean a copy of", copy))
}

/// Deletes rows that point to what is not there, as `SQLite` would have done with foreign keys on, if the table of one or
/// the other is among `changed`. What does not come from these changes stays as it is.
fn remove_orphans(connection: &Connection, mut changed: HashSet<String>) -> rusqlite::Result<()> {
    struct Reference {
        table: String,
        parent: String,
        sets_null: bool,
        /// Pairs of columns.
        columns: Vec<(String, String)>,
    }
    let mut references: BTreeMap<(String, i64), Reference> = BTreeMap::new();
    // Without the name of a column the parent's primary key is meant, part by part.
    let mut query = connection.prepare(
        "SELECT t.name, f.id, f.\"table\", f.on_delete, f.\"from\",
                coalesce(f.\"to\", (SELECT name FROM pragma_table_info(f.\"table\") WHERE pk = f.seq + 1))
         FROM main.sqlite_schema t, pragma_foreign_key_list(t.name, 'main') f
         WHERE t.type = 'table' ORDER BY t.name, f.id, f.seq",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let (table, id, parent): (String, i64, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (action, from): (String, String) = (row.get(3)?, row.get(4)?);
        // A parent that is no table has no key.
        let Some(to) = row.get::<_, Option<String>>(5)? else { continue };
        let reference = references.entry((table.clone(), id)).or_insert_with(|| Reference {
            table,
            parent,
            sets_null: action == "SET NULL",
            columns: Vec::new(),
        });
        reference.columns.push((from, to));
    }
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    loop {
        let mut removed_from = Vec::new();
        for Reference { table, parent, sets_null, columns } in references.values() {
            let is_known = has_table(connection, "main", parent)?;
            if !is_known || !(changed.contains(table) || changed.contains(parent)) {
                continue;
            }
            let each = |part: &dyn Fn(&String, &String) -> String, between: &str| {
                columns.iter().map(|(from, to)| part(from, to)).collect::<Vec<_>>().join(between)
            };
            let child = quoted(table);
            let is_set = each(&|from, _| format!("{child}.{} IS NOT NULL", quoted(from)), " AND ");
            let equal = each(&|from, to| format!("parent.{} = {child}.{}", quoted(to), quoted(from)), " AND ");
            let orphaned =
                format!("{is_set} AND NOT EXISTS (SELECT 1 FROM {} AS parent WHERE {equal})", quoted(parent));
            let sql = if *sets_null {
                let nothing = each(&|from, _| format!("{} = NULL", quoted(from)), ", ");
                format!("UPDATE main.{child} SET {nothing} WHERE {orphaned}")
            } else {
                format!("DELETE FROM main.{child} WHERE {orphaned}")
            };
            if connection.execute(&sql, [])? > 0 && !sets_null {
                removed_from.push(table.clone());
            }
        }
        // What pointed to these rows is next.
        if removed_from.is_empty() {
            return Ok(());
        }
        changed.extend(removed_from);
    }
}

/// Opens a private copy for changes that must not set off the database's own triggers or foreign keys.
fn open_copy(copy: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

fn has_table(connection: &Connection, schema: &str, table: &str) -> rusqlite::Result<bool> {
    let sql = format!("SELECT 1 FROM {schema}.sqlite_schema WHERE type = 'table' AND name = ?1");
    Ok(connection.query_row(&sql, [table], |_| Ok(())).optional()?.is_some())
}

fn columns(connection: &Connection, schema: &str, table: &str) -> rusqlite::Result<Vec<String>> {
    // Hidden and generated columns cannot be inserted; `table_xinfo` marks them.
    connection
        .prepare("SELECT name FROM pragma_table_xinfo(?1, ?2) WHERE hidden = 0")?
        .query_map([table, schema], |row| row.get(0))?
        .collect()
}

/// The column of `config_machine_state` that holds the key: the first of its primary key.
fn machine_state_key(connection: &Connection, schema: &str) -> rusqlite::Result<Option<String>> {
    connection
        .query_row(
            "SELECT name FROM pragma_table_info(?1, ?2) WHERE pk > 0 ORDER BY pk LIMIT 1",
            [MACHINE_STATE, schema],
            |row| row.get(0),
        )
        .optional()
}

/// A condition for rows whose column begins with a constant of this file. (`LIKE` would ignore case.)
fn starts_with(column: &str, start: &str) -> String {
    format!("substr(\"{column}\", 1, {}) = '{start}'", start.len())
}

/// Whether the gateway run that wrote the live database goes on with the one that takes its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// It is over: nobody holds a lease.
    Over,
    /// It goes on, at least until it has stopped in an orderly way: its leases are kept.
    GoesOn,
}

/// Gives a staged database, about to replace `live`, the rows that are this machine's own: its credentials, its
/// identities, its record of installed plugins. `false` when the live database is too damaged to give them.
///
/// # Errors
/// `IO` when the staged database does not take them.
pub fn keep_rows_of_this_machine(live: &Path, staged: &Path, run: Run) -> Result<bool> {
    if !is_openclaws(live) || !live.is_file() {
        return Ok(true);
    }
    // The live file is read through a copy, so that no connection to it outlives this call and holds a lock.
    let own = staged.with_extension("own");
    let copied = match vacuum_into(live, &own) {
        // What is left of a damaged database may still give its small tables.
        Err(error) if error.code() != Code::Locked => copy_files(live, &own),
        result => result,
    };
    let kept = match copied {
        Ok(()) => copy_own_rows(&own, staged, run),
        Err(error) => return Err(error),
    };
    for file in [own.clone()].into_iter().chain(side_files(&own)).filter(|file| file.exists()) {
        std::fs::remove_file(&file).map_err(|error| Error::io("remove", &file, error))?;
    }
    match kept {
        Ok(()) => Ok(true),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(failed("keep this machine's credentials in", staged)(error)),
    }
}

/// Has a staged database of `OpenClaw` speak of this state directory: scheduled jobs are filed under an absolute path, and
/// those of another directory are not seen.
///
/// # Errors
/// `IO`.
pub fn move_to(staged: &Path, state_dir: &Path) -> Result<()> {
    let file = |folder: &str| format!("{folder}/cron/jobs.json");
    let own = file(&state_dir.to_string_lossy());
    let rewrite = || -> rusqlite::Result<()> {
        let connection = open_copy(staged)?;
        if columns(&connection, "main", "cron_jobs")?.iter().any(|column| column == "store_key") {
            let sql = "UPDATE OR IGNORE cron_jobs SET store_key = ?1 WHERE store_key LIKE ?2 AND store_key <> ?1";
            connection.execute(sql, [&own, &file("%")])?;
        }
        connection.close().map_err(|(_, error)| error)
    };
    rewrite().map_err(failed("adapt", staged))
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

fn copy_own_rows(own: &Path, staged: &Path, run: Run) -> rusqlite::Result<()> {
    let connection = open_copy(staged)?;
    connection.execute("ATTACH ?1 AS own", [own.to_string_lossy()])?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let take = |table: &str, condition: &str| -> rusqlite::Result<()> {
        let staged_columns = columns(&connection, "main", table)?;
        let common: Vec<_> = columns(&connection, "own", table)?
            .into_iter()
            .filter(|column| staged_columns.contains(column))
            .map(|column| format!("\"{}\"", column.replace('"', "\"\"")))
            .collect();
        let list = common.join(", ");
        connection.execute(&format!("DELETE FROM main.\"{table}\" WHERE {condition}"), [])?;
        connection.execute(
            &format!("INSERT INTO main.\"{table}\" ({list}) SELECT {list} FROM own.\"{table}\" WHERE {condition}"),
            [],
        )?;
        Ok(())
    };
    let of_the_run: &[&str] = if run == Run::GoesOn { LEASE_TABLES } else { &[] };
    let mut taken = HashSet::new();
    let in_both = |table: &str| -> rusqlite::Result<bool> {
        Ok(has_table(&connection, "main", table)? && has_table(&connection, "own", table)?)
    };
    for table in SECRET_TABLES.iter().chain(of_the_run) {
        if in_both(table)? {
            take(table, "true")?;
            taken.insert((*table).to_owned());
        }
    }
    if in_both(EXEC_APPROVALS)? {
        let sql = format!(
            "UPDATE main.{EXEC_APPROVALS} AS staged
             SET raw_json = json_set(staged.raw_json, ?1, json_extract(live.raw_json, ?1)), has_socket_token = 1
             FROM own.{EXEC_APPROVALS} AS live
             WHERE live.config_key = staged.config_key AND json_valid(live.raw_json) AND json_valid(staged.raw_json)
               AND json_extract(live.raw_json, ?1) IS NOT NULL"
        );
        connection.execute(&sql, [SOCKET_TOKEN])?;
    }
    // A credential for something that the snapshot does not know is one for nothing.
    remove_orphans(&connection, taken)?;
    let keys = (machine_state_key(&connection, "main")?, machine_state_key(&connection, "own")?);
    if let (Some(key), Some(own_key)) = keys
        && key == own_key
    {
        for start in SECRET_KEYS.iter().chain(MACHINE_KEYS) {
            take(MACHINE_STATE, &starts_with(&key, start))?;
        }
    }
    connection.execute_batch("COMMIT; DETACH own")?;
    connection.close().map_err(|(_, error)| error)
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
/// content from their next transaction on.
///
/// # Errors
/// `LOCKED` when somebody holds it for too long, `IO`. Then it is as it was.
pub fn overwrite(live: &Path, source: &Path) -> Result<()> {
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

/// Whether a staged database is sound, by SQLite's own checks.
///
/// # Errors
/// `CORRUPT` with the first thing that SQLite found.
pub fn check_integrity(path: &Path) -> Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    let verdict = Connection::open_with_flags(path, flags)
        .and_then(|connection| connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0)));
    match verdict {
        Ok(verdict) if verdict == "ok" => Ok(()),
        Ok(verdict) => Err(Error::corrupt(&path.display().to_string(), verdict)),
        // A schema that uses a module or function of its owner's cannot be checked from here; its bytes were.
        Err(error) if error.to_string().contains("no such") => Ok(()),
        Err(error) => Err(Error::corrupt(&path.display().to_string(), error)),
    }
}

/// Whether `OpenClaw`'s staged database is of a schema that this machine's `OpenClaw` knows: no newer one than that of the
/// live database, which it has brought up to date.
///
/// # Errors
/// `CONFIG` when it is newer.
pub fn check_version(live: &Path, staged: &Path) -> Result<()> {
    let version = |path: &Path| -> Option<i64> {
        let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(path, flags).ok()?;
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).ok()
    };
    match (version(live), version(staged)) {
        (Some(here), Some(there)) if there > here && here > 0 => {
            let problem =
                format!("{} in the snapshot has schema {there}, and this OpenClaw uses {here}", live.display());
            Err(Error::new(Code::Config, problem).at_path(live.display().to_string()).advise(
                "update OpenClaw to the version that the snapshot was taken with, and start it once; then try again",
            ))
        }
        _ => Ok(()),
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
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                Connection::open_in_memory()
                    .map(|connection| Exclusive { connection, made: Vec::new() })
                    .map_err(failed("open", path))
            }
            _ => Err(failed("lock", path)(error)),
        },
    }
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
        keep_rows_of_this_machine(&live, &copy, Run::Over).unwrap();
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
        keep_rows_of_this_machine(&live, &staged, Run::Over).unwrap();
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
