//! What is this machine's own in OpenClaw's databases: rows that stay out of snapshots, and that a rollback keeps.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension};

use super::{BUSY_TIMEOUT, copy_files, failed, is_damage, is_openclaws, side_files, vacuum_into};
use crate::error::{Code, Error, Result};

/// Tables whose rows are credentials or identities of this machine: never in a snapshot, kept by a rollback.
pub(super) const SECRET_TABLES: &[&str] = &[
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
pub(super) const VOLATILE_TABLES: &[&str] = &["state_leases", "agent_database_leases", "delivery_queue_entries"];
/// Those of them that a run needs to go on.
const LEASE_TABLES: &[&str] = &["state_leases", "agent_database_leases"];

/// Rows that would bring back what was to be gone by a certain time, by table and condition: never in a snapshot, as in
/// `OpenClaw`'s own backups.
const EXPIRING_ROWS: &[(&str, &str)] = &[("plugin_blob_entries", "expires_at IS NOT NULL")];

/// The policy for commands that agents run.
const EXEC_APPROVALS: &str = "exec_approvals_config";
/// Where in its JSON text the token of this machine's approval socket is.
const SOCKET_TOKEN: &str = "$.socket.token";

/// Rows of `config_machine_state` that are credentials, by the start of their key.
const SECRET_KEYS: &[&str] = &["authProfiles.", "nodeHost.", "webPush.vapidKeys"];

/// Rows of `config_machine_state` that are no secret but this machine's own: a rollback does not take back which plugins
/// are installed.
const MACHINE_KEYS: &[&str] = &["plugins.installedIndex"];

/// Where keyed machine state lies, and what its key column is called.
const MACHINE_STATE: &str = "config_machine_state";

/// Deletes from a copy what must not leave the machine; says whether there was anything.
pub(super) fn remove_rows_that_stay_home(copy: &Path) -> Result<bool> {
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
pub(super) fn open_copy(copy: &Path) -> rusqlite::Result<Connection> {
    let connection =
        Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
    connection.pragma_update(None, "secure_delete", true)?;
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    Ok(connection)
}

pub(super) fn has_table(connection: &Connection, schema: &str, table: &str) -> rusqlite::Result<bool> {
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

/// Gives a staged database, about to replace `live`, the rows that are this machine's own: its credentials, its
/// identities, its record of installed plugins. `false` when the live database is too damaged to give them.
///
/// # Errors
/// `IO` when the staged database does not take them.
pub fn keep_rows_of_this_machine(live: &Path, staged: &Path) -> Result<bool> {
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
        Ok(()) => copy_own_rows(&own, staged),
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

fn copy_own_rows(own: &Path, staged: &Path) -> rusqlite::Result<()> {
    let connection = open_copy(staged)?;
    connection.execute("ATTACH ?1 AS own", [own.to_string_lossy()])?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let mut taken = HashSet::new();
    for table in SECRET_TABLES {
        if take_table(&connection, table)? {
            taken.insert((*table).to_owned());
        }
    }
    if has_table(&connection, "own", MACHINE_STATE)? && !has_table(&connection, "main", MACHINE_STATE)? {
        lay_out_as_own(&connection, MACHINE_STATE)?;
    }
    if has_table(&connection, "main", EXEC_APPROVALS)? && has_table(&connection, "own", EXEC_APPROVALS)? {
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
            take_rows(&connection, MACHINE_STATE, &starts_with(&key, start))?;
        }
    }
    connection.execute_batch("COMMIT; DETACH own")?;
    connection.close().map_err(|(_, error)| error)
}

/// Gives `source`, about to overwrite the live database, the leases in that: the gateway that took them goes on, at least until it
/// has stopped in an orderly way.
///
/// # Errors
/// `LOCKED` when a writer holds it for too long, `IO`.
pub(super) fn keep_leases(live: &Path, source: &Path) -> Result<()> {
    if !is_openclaws(live) {
        return Ok(());
    }
    let take = || -> rusqlite::Result<()> {
        let connection = open_copy(source)?;
        connection.execute("ATTACH ?1 AS own", [live.to_string_lossy()])?;
        // Not at once: that would lock the live one too.
        connection.execute_batch("BEGIN")?;
        for table in LEASE_TABLES {
            take_table(&connection, table)?;
        }
        connection.execute_batch("COMMIT; DETACH own")?;
        connection.close().map_err(|(_, error)| error)
    };
    take().map_err(failed("read the leases in", live))
}

/// Takes all rows of a table over, as `own` lays it out; `false` when `own` has no such table.
fn take_table(connection: &Connection, table: &str) -> rusqlite::Result<bool> {
    let is_there = has_table(connection, "own", table)?;
    if is_there {
        if columns(connection, "main", table)? != columns(connection, "own", table)? {
            lay_out_as_own(connection, table)?;
        }
        take_rows(connection, table, "true")?;
    }
    Ok(is_there)
}

/// Replaces rows by those of `own`, as far as both have the same columns.
fn take_rows(connection: &Connection, table: &str, condition: &str) -> rusqlite::Result<()> {
    let staged_columns = columns(connection, "main", table)?;
    let common: Vec<_> = columns(connection, "own", table)?
        .into_iter()
        .filter(|column| staged_columns.contains(column))
        .map(|column| format!("\"{}\"", column.replace('"', "\"\"")))
        .collect();
    let list = common.join(", ");
    connection.execute(&format!("DELETE FROM main.\"{table}\" WHERE {condition}"), [])?;
    let sql = format!("INSERT INTO main.\"{table}\" ({list}) SELECT {list} FROM own.\"{table}\" WHERE {condition}");
    connection.execute(&sql, []).map(|_| ())
}

/// Makes a table of the staged database, empty, as this machine's `OpenClaw` has it: the snapshot's may be older, and would
/// not take all of what is in this one. (`OpenClaw` brings an older database up to date table by table, and looks first.)
fn lay_out_as_own(connection: &Connection, table: &str) -> rusqlite::Result<()> {
    let mut query = connection.prepare(
        "SELECT sql FROM own.sqlite_schema WHERE tbl_name = ?1 AND sql IS NOT NULL ORDER BY type <> 'table', name",
    )?;
    let definitions = query.query_map([table], |row| row.get::<_, String>(0))?.collect::<rusqlite::Result<Vec<_>>>()?;
    connection.execute_batch(&format!("DROP TABLE IF EXISTS main.\"{table}\""))?;
    definitions.iter().try_for_each(|definition| connection.execute_batch(definition))
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
