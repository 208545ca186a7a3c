//! What OpenClaw's databases say of how much has happened yet.

use std::collections::HashSet;
use std::path::Path;

use rusqlite::Connection;

use super::own_rows::{SECRET_TABLES, VOLATILE_TABLES, has_table};
use super::read;

/// Tables of an agent's database that have rows before anybody has said a word, or that can be made again.
const BOOKKEEPING_TABLES: &[&str] =
    &["cache_entries", "memory_index_meta", "memory_index_state", "schema_meta", "session_key_contract"];
/// Where OpenClaw notes the files that it has put into workspaces, by name and SHA-256 in hexadecimal digits.
const SEEDED_FILES: &str = "workspace_generated_bootstrap_hashes";

/// Whether an agent's database holds more than OpenClaw's bookkeeping and what is this machine's own; also when nobody can say.
#[must_use]
pub fn holds_agent_content(path: &Path) -> bool {
    let is_content =
        |name: &str| [SECRET_TABLES, VOLATILE_TABLES, BOOKKEEPING_TABLES].iter().all(|tables| !tables.contains(&name));
    let has_content = |connection: &Connection| {
        // Virtual tables index others, which count themselves.
        let sql = "SELECT name FROM pragma_table_list
                   WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
        let mut query = connection.prepare(sql)?;
        let names = query.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
        for name in names.iter().filter(|name| is_content(name)) {
            let quoted = name.replace('"', "\"\"");
            if connection.prepare(&format!("SELECT 1 FROM \"{quoted}\" LIMIT 1"))?.exists([])? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    read(path, has_content).unwrap_or(true)
}

/// The files that OpenClaw has put into workspaces, as the shared database at `path` says: names, and SHA-256 in hexadecimal
/// digits. None when it does not say.
#[must_use]
pub fn seeded_files(path: &Path) -> HashSet<(String, String)> {
    let seeded = |connection: &Connection| {
        if !has_table(connection, "main", SEEDED_FILES)? {
            return Ok(HashSet::new());
        }
        let mut query = connection.prepare(&format!("SELECT filename, sha256 FROM {SEEDED_FILES}"))?;
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    };
    read(path, seeded).unwrap_or_default()
}
