//! What a gateway runs into that is not root: directories of somebody else, and modes that forbid what a command has to do.
//!
//! Root may do anything. Where these tests run as root, the commands run on threads that have given it up.

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Bench, SHARED, assert_same, code, tree};
use openclaw_b2_backup::commands::{Operation, RollbackOptions, RollbackReport, rollback};
use openclaw_b2_backup::error::Result;
use rustix::fs::{Gid, Uid};

const NOBODY: u32 = 65534;

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Does something on a thread that is not root, as are all that it starts.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let work = || {
        if is_root() {
            rustix::thread::set_thread_gid(Gid::from_raw(NOBODY)).unwrap();
            rustix::thread::set_thread_res_uid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY))
                .unwrap();
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn notes(bench: &Bench) -> rusqlite::Connection {
    fs::create_dir_all(bench.state("state")).unwrap();
    rusqlite::Connection::open(bench.state(SHARED)).unwrap()
}

/// A state with a database and a workspace, and its snapshot.
fn pushed() -> Bench {
    let bench = Bench::default();
    bench.write("openclaw.json", "{}");
    bench.write("workspace/notes/a.md", "old");
    notes(&bench).execute_batch("CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old')").unwrap();
    bench.push();
    bench
}

/// A rollback as a chat asks for it: prepared, then applied under a gateway.
fn roll_back_under_a_gateway(bench: &Bench) -> Result<RollbackReport> {
    let options = RollbackOptions { snapshot: "latest".into(), paths: Vec::new(), plan_only: false, partial: false };
    bench.run(rollback::prepare(&bench.target, options, &Operation::default()))?;
    bench.run(rollback::apply_prepared(&bench.target, &Operation::default())).map(|report| report.unwrap())
}

fn assert_nothing_is_left_over(bench: &Bench) {
    assert!(!bench.state("b2-backup/rollback").exists());
}

#[test]
fn a_directory_that_nobody_may_read_any_more_is_rolled_back() {
    as_nobody(|| {
        let bench = pushed();
        bench.write("workspace/notes/deeper/b.md", "old");
        bench.push();
        let before = bench.tree();
        set_mode(bench.state("workspace/notes"), 0o000);
        let report = bench.rollback("latest");
        assert!(report.warnings.is_empty(), "{report:?}");
        assert_same(&bench.tree(), &before);
    });
}

#[test]
fn a_database_that_may_only_be_read_is_replaced() {
    as_nobody(|| {
        let bench = pushed();
        let path = bench.state("workspace/notes.db");
        let make = |body: &str| {
            let connection = rusqlite::Connection::open(&path).unwrap();
            connection.execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE IF NOT EXISTS notes(body TEXT)").unwrap();
            connection.execute("INSERT INTO notes VALUES (?1)", [body]).unwrap();
        };
        make("first");
        bench.push();
        make("second");
        set_mode(&path, 0o444);
        bench.rollback("latest");
        let connection = rusqlite::Connection::open(&path).unwrap();
        let bodies: String =
            connection.query_row("SELECT group_concat(body) FROM notes", [], |row| row.get(0)).unwrap();
        assert_eq!(bodies, "first");
        assert_nothing_is_left_over(&bench);
    });
}

#[test]
fn read_only_directories_are_in_no_way() {
    as_nobody(|| {
        let bench = pushed();
        bench.write("workspace/file", "a file");
        bench.push();
        let before = bench.tree();
        fs::remove_file(bench.state("workspace/file")).unwrap();
        // As a cache of modules: files are to go, directories to move, others to be removed.
        for path in ["workspace/modules/x/y.go", "workspace/file/x/y.go", "workspace/notes/new.md"] {
            bench.write(path, "new");
        }
        let set_modes = |mode| {
            for path in ["modules/x", "modules", "file/x", "file", "notes"] {
                set_mode(bench.state(&format!("workspace/{path}")), mode);
            }
        };
        set_modes(0o555);
        let read_only = bench.tree();
        let report = bench.rollback("latest");
        assert_same(&bench.tree(), &before);
        bench.push();
        assert_nothing_is_left_over(&bench);
        bench.rollback(&report.safety_snapshot.unwrap());
        assert_same(&bench.tree(), &read_only);
        set_modes(0o755);
    });
}

#[test]
fn somebody_elses_directory_keeps_its_time_and_stops_nothing() {
    if !is_root() {
        return;
    }
    let bench = as_nobody(|| {
        let bench = pushed();
        fs::create_dir(bench.state("workspace/volume")).unwrap();
        bench
    });
    std::os::unix::fs::chown(bench.state("workspace/volume"), Some(0), Some(0)).unwrap();
    set_mode(bench.state("workspace/volume"), 0o777);
    as_nobody(|| {
        bench.write("workspace/volume/a.md", "old");
        bench.push();
        bench.write("workspace/volume/a.md", "new");
        bench.write("workspace/volume/b.md", "new");
        let report = bench.rollback("latest");
        assert_eq!(fs::read_to_string(bench.state("workspace/volume/a.md")).unwrap(), "old");
        assert!(!bench.state("workspace/volume/b.md").exists());
        assert_eq!(report.warnings.len(), 1, "{report:?}");
        let start = "workspace/volume did not get its mode and time of the snapshot: ";
        assert!(report.warnings[0].starts_with(start), "{report:?}");
    });
}

#[test]
fn a_rollback_that_is_refused_by_a_directory_is_taken_back_once() {
    if !is_root() {
        return;
    }
    let bench = as_nobody(|| {
        let bench = pushed();
        bench.write("workspace/theirs/a.md", "old");
        bench.push();
        bench
    });
    for path in ["workspace/theirs/a.md", "workspace/theirs"] {
        std::os::unix::fs::chown(bench.state(path), Some(0), Some(0)).unwrap();
    }
    bench.write("workspace/theirs/a.md", "new");
    as_nobody(|| {
        let write = |body: &str| assert_eq!(notes(&bench).execute("INSERT INTO notes VALUES (?1)", [body]), Ok(1));
        write("new");
        let before = tree(&bench.state("workspace"));
        let error = roll_back_under_a_gateway(&bench).unwrap_err();
        assert_eq!(code(&error), "IO", "{error}");
        assert!(error.to_string().contains("workspace/theirs"), "{error}");
        assert_same(&tree(&bench.state("workspace")), &before);
        assert_nothing_is_left_over(&bench);
        write("later");
        bench.push();
        let all = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        let found = notes(&bench).query_row("SELECT group_concat(body) FROM notes", [], all).unwrap();
        assert_eq!(found, "old,new,later");
    });
}

#[test]
fn what_is_foreign_in_a_repository_need_not_be_readable() {
    as_nobody(|| {
        let bench = pushed();
        let foreign = bench.repository().join("lost+found");
        fs::create_dir(&foreign).unwrap();
        set_mode(&foreign, 0o000);
        bench.write("workspace/notes/a.md", "new");
        bench.push();
        assert_eq!(bench.list().len(), 2);
        // One of ours is: an index that cannot be read is not an empty one.
        set_mode(bench.repository().join("index"), 0o000);
        assert_eq!(code(&bench.try_push().unwrap_err()), "IO");
        // So that it can be removed.
        for folder in [bench.repository().join("index"), foreign] {
            set_mode(folder, 0o755);
        }
    });
}

#[test]
fn a_cache_that_cannot_be_written_stops_no_reading() {
    as_nobody(|| {
        let bench = pushed();
        let expected = tree(&bench.state("workspace"));
        let cache = bench.state("b2-backup/cache.sqlite");
        let connection = rusqlite::Connection::open(&cache).unwrap();
        connection.execute_batch("DELETE FROM objects WHERE key LIKE 'tree/%'").unwrap();
        drop(connection);
        set_mode(&cache, 0o444);
        let to = bench.root.path().join("pulled");
        bench.try_pull_as(&bench.target, "latest", &to, &[]).unwrap();
        assert_same(&tree(&to.join("workspace")), &expected);
    });
}
