//! Indexes of OpenClaw's databases: left out of snapshots, and made again from the tables when they come back.
//!
//! The keys of a gateway's events are random, so that each new row changes another page of every index: of the compressed bytes
//! that were new after 20 turns, in databases of 800 turns, these indexes made up a third, and they hold nothing that the tables do not.
//! Only indexes that make queries faster go. Those that keep rows unique, or back a key, stay: what is stored is a whole
//! database, which means the same with them and without.

use std::fmt::Display;
use std::path::Path;
use std::{fs, io};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::own_rows::{has_table, open_copy};
use super::{failed, has_magic, is_openclaws, is_wal};
use crate::error::{Error, Result};

/// The table that keeps the definitions of what was left out, in the order in which they were made.
const DEFINITIONS: &str = "openclaw_b2_backup_indexes";
/// How the definition of such an index begins: SQLite writes it that way itself, whatever it was given
/// (<https://sqlite.org/schematab.html>). One that keeps rows unique begins otherwise, and that of a key has none.
const START: &str = "CREATE INDEX ";
/// What to say of an index that does not come back.
const NOT_MADE: &str = "could not be made again, and some queries will take longer";

/// Removes the definitions of indexes from a copy, and keeps them in a table; says whether there was anything. The pages of the
/// indexes belong to nothing afterwards: the copy must be vacuumed.
pub(super) fn leave_out(copy: &Path) -> Result<bool> {
    let leave_out = || -> rusqlite::Result<bool> {
        let connection = open_copy(copy)?;
        connection.pragma_update(None, "writable_schema", true)?;
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let is_one = format!("type = 'index' AND sql GLOB '{START}*'");
        // It may be there already: a snapshot that was put back by hand.
        connection.execute_batch(&format!(
            "CREATE TABLE IF NOT EXISTS {DEFINITIONS}(name TEXT NOT NULL, definition TEXT NOT NULL) STRICT;
             DELETE FROM {DEFINITIONS} WHERE name IN (SELECT name FROM sqlite_schema WHERE {is_one});
             INSERT INTO {DEFINITIONS} SELECT name, sql FROM sqlite_schema WHERE {is_one} ORDER BY rowid;"
        ))?;
        let removed = connection.execute(&format!("DELETE FROM sqlite_schema WHERE {is_one}"), [])?;
        // Reads the schema anew, as it is within the transaction.
        connection.execute_batch("PRAGMA writable_schema = RESET")?;
        // One that uses a function or collation of its owner's could not be made again.
        let can_be_made = definitions(&connection)?.iter().all(|(_, sql)| connection.prepare(sql).is_ok());
        let leaves_out = removed > 0 && can_be_made;
        connection.execute_batch(if leaves_out { "COMMIT" } else { "ROLLBACK" })?;
        connection.close().map_err(|(_, error)| error)?;
        Ok(leaves_out)
    };
    match leave_out() {
        // A database is worth more with its indexes than not at all. What was begun was rolled back.
        Err(error) if !is_of_the_disk(&error) => {
            tracing::warn!(%error, path = %copy.display(), "the indexes of a database are stored with it");
            Ok(false)
        }
        left_out => left_out.map_err(failed("leave out the indexes of", copy)),
    }
}

/// Whether the error is about the file or the memory, not about what is in the database.
fn is_of_the_disk(error: &rusqlite::Error) -> bool {
    use ErrorCode::{CannotOpen, DiskFull, OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure};
    let code = error.sqlite_error_code();
    code.is_some_and(|code| {
        matches!(code, CannotOpen | DiskFull | OutOfMemory | PermissionDenied | ReadOnly | SystemIoFailure)
    })
}

/// Makes the indexes of the database at `path` again, from the definitions that a snapshot kept, if it is one of OpenClaw's; its
/// time and permissions stay. Gives what cannot be made, with the reason: queries are slower then, and right.
///
/// # Errors
/// `IO` when it cannot be written.
pub fn make_again(path: &Path) -> Result<Vec<String>> {
    let attributes = |error| Error::io("set the attributes of", path, error);
    if !is_openclaws(path) || !path.is_file() {
        return Ok(Vec::new());
    }
    let before = fs::metadata(path).map_err(attributes)?;
    let changed = make_accessible(path, before.permissions()).map_err(attributes)?;
    let mut problems = Vec::new();
    if keeps_definitions(path) {
        problems = match make(path) {
            Err(error) if !is_of_the_disk(&error) => vec![format!("its indexes {NOT_MADE}: {error}")],
            made => made.map_err(|error| {
                failed("make the indexes of", path)(error)
                    .advise("check the space and the permissions there, and try again")
            })?,
        };
        let modified = before.modified().map_err(attributes)?;
        let file = fs::OpenOptions::new().write(true).open(path);
        file.and_then(|file| file.set_modified(modified)).map_err(attributes)?;
    }
    if changed {
        fs::set_permissions(path, before.permissions()).map_err(attributes)?;
    }
    Ok(problems)
}

/// What cannot be read as a database that does is one that does not.
fn keeps_definitions(path: &Path) -> bool {
    // What was vacuumed has no log, and a reader of one that has leaves files beside it.
    if !has_magic(path) || is_wal(path) {
        return false;
    }
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(path, flags).is_ok_and(|connection| {
        has_table(&connection, "main", DEFINITIONS).unwrap_or_default() && definitions(&connection).is_ok()
    })
}

fn make(path: &Path) -> rusqlite::Result<Vec<String>> {
    let connection = open_copy(path)?;
    let mut problems = Vec::new();
    connection.execute_batch("BEGIN IMMEDIATE")?;
    for (name, sql) in definitions(&connection)? {
        let failed = |why: &dyn Display| format!("its index {name} {NOT_MADE}: {why}");
        // Nothing but an index is made by what begins like this; several statements are refused.
        if !sql.starts_with(START) {
            problems.push(failed(&"that is not how an index is defined"));
            continue;
        }
        match connection.prepare(&sql).and_then(|mut statement| statement.execute([])) {
            Ok(_) => {}
            Err(error) if is_of_the_disk(&error) => return Err(error),
            Err(error) => problems.push(failed(&error)),
        }
    }
    connection.execute_batch(&format!("DROP TABLE {DEFINITIONS}; COMMIT"))?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(problems)
}

/// Names and definitions of indexes that are not there.
fn definitions(connection: &Connection) -> rusqlite::Result<Vec<(String, String)>> {
    connection
        .prepare(&format!(
            "SELECT name, definition FROM {DEFINITIONS} WHERE name NOT IN (SELECT name FROM sqlite_schema) ORDER BY rowid"
        ))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect()
}

/// Lets the owner read and write the file; says whether that changed anything.
fn make_accessible(path: &Path, mut permissions: fs::Permissions) -> io::Result<bool> {
    let before = permissions.clone();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        permissions.set_mode(permissions.mode() | 0o600);
    }
    #[cfg(not(unix))]
    permissions.set_readonly(false);
    if permissions != before {
        fs::set_permissions(path, permissions)?;
        return Ok(true);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::{check_integrity, copy_for_snapshot};
    use super::*;

    const SCHEMA: &str = "
        CREATE TABLE events(id TEXT PRIMARY KEY, run TEXT, body TEXT);
        CREATE UNIQUE INDEX one_body ON events(body);
        CREATE TABLE notes(body TEXT REFERENCES events(body));
        CREATE INDEX by_run ON events(run, id) WHERE run IS NOT NULL;
        CREATE INDEX \"by \"\"length\"\"\" ON events(length(body) DESC);
        INSERT INTO events SELECT hex(randomblob(16)), hex(randomblob(8)), value FROM generate_series(1, 500);
        INSERT INTO notes VALUES (7);
        ANALYZE;";

    /// The series, as a table: SQLite has it as an extension only.
    fn make_live(path: &Path, sql: &str) {
        let series =
            "(WITH RECURSIVE s(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM s LIMIT 500) SELECT * FROM s)";
        Connection::open(path).unwrap().execute_batch(&sql.replace("generate_series(1, 500)", series)).unwrap();
    }

    fn list(path: &Path, sql: &str) -> Vec<String> {
        let connection = Connection::open(path).unwrap();
        let mut query = connection.prepare(sql).unwrap();
        query.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// A live database with this schema and the copy of it that a snapshot would hold.
    fn make_copy(sql: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let [live, copy] = ["openclaw.sqlite", "openclaw-copy.sqlite"].map(|name| folder.path().join(name));
        make_live(&live, sql);
        copy_for_snapshot(&live, &copy).unwrap();
        (folder, live, copy)
    }

    const INDEXES: &str = "SELECT name || coalesce(sql, '') FROM sqlite_schema WHERE type = 'index' ORDER BY name";
    const ROWS: &str = "SELECT id || run || body FROM events ORDER BY id";

    #[test]
    fn indexes_that_only_make_queries_faster_stay_out_of_a_copy_and_are_made_again() {
        let (_folder, live, copy) = make_copy(SCHEMA);
        let statistics = "SELECT coalesce(idx, '') || stat FROM sqlite_stat1 ORDER BY 1";
        let before = [INDEXES, ROWS, statistics].map(|sql| list(&live, sql));
        check_integrity(&copy).unwrap();
        assert!(copy.metadata().unwrap().len() < live.metadata().unwrap().len());
        assert_eq!(
            list(&copy, "SELECT name FROM sqlite_schema WHERE type = 'index' ORDER BY name"),
            ["one_body", "sqlite_autoindex_events_1"]
        );
        assert!(list(&copy, "SELECT \"table\" FROM pragma_foreign_key_check").is_empty());
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::OpenOptions::new().write(true).open(&copy).unwrap().set_modified(time).unwrap();
        assert!(make_again(&copy).unwrap().is_empty());
        assert_eq!(copy.metadata().unwrap().modified().unwrap(), time);
        check_integrity(&copy).unwrap();
        assert_eq!([INDEXES, ROWS, statistics].map(|sql| list(&copy, sql)), before);
        assert!(list(&copy, "SELECT name FROM sqlite_schema WHERE name LIKE '%b2_backup%'").is_empty());
    }

    #[test]
    fn an_index_that_could_not_be_made_again_is_not_left_out() {
        // As from a connection that has a function of its own.
        let foreign = "PRAGMA writable_schema = ON;
            UPDATE sqlite_schema SET sql = replace(sql, 'length(body)', 'of_the_owner(body)');";
        let (_folder, _, copy) = make_copy(&format!("{SCHEMA} {foreign}"));
        let connection = Connection::open(&copy).unwrap();
        connection.pragma_update(None, "writable_schema", true).unwrap();
        let count = "SELECT count(*) FROM sqlite_schema WHERE type = 'index'";
        assert_eq!(connection.query_row(count, [], |row| row.get::<_, i64>(0)).unwrap(), 4);
        assert!(!keeps_definitions(&copy));
    }

    #[test]
    fn what_was_put_back_by_hand_is_left_out_once_more() {
        let (folder, _, first) = make_copy(SCHEMA);
        let second = folder.path().join("openclaw-second.sqlite");
        // Somebody has made one of them.
        Connection::open(&first).unwrap().execute_batch("CREATE INDEX by_run ON events(run)").unwrap();
        copy_for_snapshot(&first, &second).unwrap();
        assert!(make_again(&second).unwrap().is_empty());
        let indexes = list(&second, INDEXES);
        assert_eq!(indexes.len(), 4);
        assert!(indexes.contains(&"by_runCREATE INDEX by_run ON events(run)".to_owned()), "{indexes:?}");
    }

    #[test]
    fn a_table_of_that_name_that_is_somebody_elses_is_left_alone() {
        let theirs = format!("{SCHEMA} CREATE TABLE {DEFINITIONS}(a); INSERT INTO {DEFINITIONS} VALUES (1)");
        let (_folder, live, copy) = make_copy(&theirs);
        assert_eq!(list(&copy, INDEXES), list(&live, INDEXES));
        assert!(make_again(&copy).unwrap().is_empty());
        assert_eq!(list(&copy, &format!("SELECT a || '' FROM {DEFINITIONS}")), ["1"]);
    }

    #[test]
    fn a_definition_makes_an_index_or_nothing() {
        let (folder, _, copy) = make_copy(SCHEMA);
        let elsewhere = folder.path().join("elsewhere");
        let definitions = [
            format!("ATTACH '{}' AS other", elsewhere.display()),
            "DROP TABLE notes".to_owned(),
            "CREATE INDEX a ON events(run); DROP TABLE notes".to_owned(),
            "CREATE INDEX b ON events(load_extension('x'))".to_owned(),
            "CREATE INDEX c ON nowhere(x)".to_owned(),
            "CREATE INDEX d ON events(run".to_owned(),
        ];
        let connection = Connection::open(&copy).unwrap();
        for sql in &definitions {
            connection.execute(&format!("INSERT INTO {DEFINITIONS} VALUES (?1, ?1)"), [sql]).unwrap();
        }
        drop(connection);
        let problems = make_again(&copy).unwrap();
        assert_eq!(problems.len(), definitions.len(), "{problems:?}");
        assert!(!elsewhere.exists());
        assert_eq!(list(&copy, "SELECT body FROM notes"), ["7"]);
        assert_eq!(list(&copy, INDEXES).len(), 4);
        check_integrity(&copy).unwrap();
    }

    #[test]
    fn files_without_definitions_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("openclaw.sqlite");
        make_live(&path, &format!("PRAGMA journal_mode = WAL; {SCHEMA}"));
        for content in
            [fs::read(&path).unwrap(), [&super::super::MAGIC[..], &[7; 5000]].concat(), b"text".to_vec(), vec![]]
        {
            fs::write(&path, &content).unwrap();
            assert!(make_again(&path).unwrap().is_empty());
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
        assert!(make_again(&folder.path().join("none")).unwrap().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_stay() {
        use std::os::unix::fs::PermissionsExt;
        let (_folder, _, copy) = make_copy(SCHEMA);
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o060)).unwrap();
        assert!(make_again(&copy).unwrap().is_empty());
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o7777, 0o060);
        assert_eq!(list(&copy, INDEXES).len(), 4);
    }
}
