//! A rollback never costs this machine its credentials, its identities or the way to its backups.

mod common;

use std::fs;
use std::path::Path;

use common::{Bench, SHARED};
use rusqlite::Connection;
use serde_json::{Value, json};

const AGENT: &str = "agents/writer/agent/openclaw-agent.sqlite";

fn sql(bench: &Bench, path: &str, sql: &str) {
    let path = bench.state(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn text(path: &Path, query: &str) -> String {
    Connection::open(path).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

/// What lies at `path` below one of the folders of what was set aside.
fn set_aside(bench: &Bench, path: &str) -> std::path::PathBuf {
    let folders = fs::read_dir(bench.state("b2-backup/set-aside")).unwrap();
    let found: Vec<_> = folders.map(|folder| folder.unwrap().path().join(path)).filter(|path| path.exists()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

#[test]
fn a_database_that_the_snapshot_lacks_is_set_aside_with_its_credentials() {
    let bench = Bench::default();
    bench.write("workspace/notes.md", "before there was a writer");
    let before = bench.push().snapshot.unwrap();
    sql(
        &bench,
        AGENT,
        "CREATE TABLE auth_profile_store(id TEXT PRIMARY KEY, body TEXT);
         INSERT INTO auth_profile_store VALUES ('a', 'the only login');
         CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('chapter one');",
    );
    bench.push();

    let report = bench.rollback(&before);
    assert!(report.deleted.iter().any(|path| path == AGENT), "{report:?}");
    assert!(!bench.state(AGENT).exists());
    let warned = report.warnings.iter().any(|warning| warning.starts_with(AGENT) && warning.contains("set-aside"));
    assert!(warned, "{:?}", report.warnings);
    assert_eq!(text(&set_aside(&bench, AGENT), "SELECT body FROM auth_profile_store"), "the only login");
    // Taking it back gives the login back, too.
    bench.rollback(&report.safety_snapshot.unwrap());
    assert_eq!(text(&bench.state(AGENT), "SELECT body FROM auth_profile_store"), "the only login");
    assert_eq!(text(&bench.state(AGENT), "SELECT body FROM notes"), "chapter one");
}

#[test]
fn a_folder_with_databases_that_gives_way_to_a_file_is_set_aside_with_their_credentials() {
    let bench = Bench::default();
    bench.write("agents/writer", "a file, for once");
    let before = bench.push().snapshot.unwrap();
    fs::remove_file(bench.state("agents/writer")).unwrap();
    sql(
        &bench,
        AGENT,
        "CREATE TABLE auth_profile_store(body TEXT); INSERT INTO auth_profile_store VALUES ('the only login')",
    );
    bench.rollback(&before);
    assert_eq!(fs::read(bench.state("agents/writer")).unwrap(), b"a file, for once");
    assert_eq!(text(&set_aside(&bench, AGENT), "SELECT body FROM auth_profile_store"), "the only login");
}

#[test]
fn credentials_in_tables_that_an_older_snapshot_lacks_or_has_otherwise_are_kept() {
    let bench = Bench::default();
    sql(
        &bench,
        SHARED,
        "PRAGMA user_version = 1;
         CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old');
         CREATE TABLE device_identities(id TEXT PRIMARY KEY, legacy TEXT NOT NULL);
         CREATE TABLE secret_store_entries(name TEXT PRIMARY KEY, value TEXT);",
    );
    let old = bench.push().snapshot.unwrap();
    // As an update of OpenClaw leaves it.
    sql(
        &bench,
        SHARED,
        "PRAGMA user_version = 2; UPDATE notes SET body = 'new';
         DROP TABLE device_identities;
         CREATE TABLE device_identities(id TEXT PRIMARY KEY, body TEXT);
         INSERT INTO device_identities VALUES ('d', 'identity');
         CREATE INDEX device_identities_by_body ON device_identities(body);
         ALTER TABLE secret_store_entries ADD COLUMN allowed_hosts TEXT;
         INSERT INTO secret_store_entries VALUES ('s', 'secret', 'example.org only');
         CREATE TABLE mcp_oauth_stores(store_key TEXT PRIMARY KEY, store_json TEXT);
         INSERT INTO mcp_oauth_stores VALUES ('m', 'token');
         CREATE TABLE config_machine_state(state_key TEXT PRIMARY KEY, value TEXT);
         INSERT INTO config_machine_state VALUES ('nodeHost.token', 'node'), ('theme', 'dark');",
    );

    bench.rollback(&old);
    let shared = bench.state(SHARED);
    assert_eq!(text(&shared, "SELECT body FROM notes"), "old");
    assert_eq!(text(&shared, "SELECT body FROM device_identities"), "identity");
    assert_eq!(text(&shared, "SELECT allowed_hosts FROM secret_store_entries"), "example.org only");
    assert_eq!(text(&shared, "SELECT store_json FROM mcp_oauth_stores"), "token");
    assert_eq!(text(&shared, "SELECT group_concat(state_key) FROM config_machine_state"), "nodeHost.token");
    assert_eq!(text(&shared, "SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL"), {
        "device_identities_by_body"
    });
    assert_eq!(text(&shared, "PRAGMA integrity_check"), "ok");
}

fn config(bench: &Bench, path: &str) -> Value {
    serde_json::from_slice(&fs::read(bench.state(path)).unwrap()).unwrap()
}

#[test]
fn own_settings_that_an_included_file_holds_are_kept() {
    let bench = Bench::default();
    let plugins =
        |key: &str| json!({ "entries": { "openclaw-b2-backup": { "config": { "keyId": key } } } }).to_string();
    bench.write("openclaw.json", json!({ "plugins": { "$include": "./plugins.json" }, "theme": "old" }).to_string());
    bench.write("plugins.json", plugins("first"));
    let first = bench.push().snapshot.unwrap();
    let written = fs::read(bench.state("openclaw.json")).unwrap();

    // Another key, in the included file; and a token that was in the main one all the time.
    bench.write("plugins.json", plugins("second"));
    bench.write(
        "openclaw.json",
        json!({ "plugins": { "$include": "./plugins.json" }, "gateway": { "$include": "./gateway.json" } }).to_string(),
    );
    bench.write("gateway.json", json!({ "auth": { "token": "${GATEWAY_TOKEN}" } }).to_string());
    bench.push();
    let report = bench.rollback(&first);
    let restored = config(&bench, "openclaw.json");
    assert_eq!(restored["theme"], "old");
    assert_eq!(restored["plugins"]["entries"]["openclaw-b2-backup"]["config"]["keyId"], "second", "{restored}");
    assert_eq!(restored["gateway"]["auth"]["token"], "${GATEWAY_TOKEN}", "{restored}");
    assert_eq!(restored["plugins"]["$include"], "./plugins.json", "{restored}");
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);

    // With the same settings not a byte is changed, whichever file they are in.
    bench.write("openclaw.json", &written);
    bench.write("plugins.json", plugins("first"));
    bench.push();
    bench.write("openclaw.json", json!({ "plugins": { "$include": "./plugins.json" }, "theme": "new" }).to_string());
    bench.rollback("latest");
    assert_eq!(fs::read(bench.state("openclaw.json")).unwrap(), written);

    // A file that is restored alone brings what it holds, and that is said.
    bench.write("plugins.json", plugins("third"));
    let report = bench.try_rollback(&first, &["plugins.json"], false).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("plugins.entries.openclaw-b2-backup")), "{report:?}");
}
