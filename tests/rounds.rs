//! Whole rounds of commands over a repository in a local directory: what was pushed comes back.

#![cfg(unix)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use common::{Bench, Gateway, Node, SHARED, Tree, assert_same, code, noise, tree};
use openclaw_b2_backup::commands::rollback::{self, restore_if_empty};
use openclaw_b2_backup::commands::{Operation, OtherMachine, RollbackOptions, list, prune, status};
use openclaw_b2_backup::repository::id::hex;
use openclaw_b2_backup::repository::open::{IfMissing, Repository};
use sha2::{Digest, Sha256};

fn populate(bench: &Bench) {
    bench.write("openclaw.json", "{}");
    bench.write("workspace/SOUL.md", "# Soul\n");
    bench.write("workspace/empty.md", "");
    bench.write("workspace/one byte", "x");
    bench.write("workspace/größe 'n\n\".md", "odd name");
    bench.write("workspace/big.bin", noise(300_000, 7));
    bench.write("workspace/big-again.bin", noise(300_000, 7));
    bench.write("agents/main/log.jsonl", "{\"role\":\"user\"}\n".repeat(40_000));
    bench.write("workspace/run.sh", "#!/bin/sh\n");
    fs::set_permissions(bench.state("workspace/run.sh"), fs::Permissions::from_mode(0o4750)).unwrap();
    fs::create_dir_all(bench.state("workspace/empty/deeper")).unwrap();
    fs::set_permissions(bench.state("workspace/empty/deeper"), fs::Permissions::from_mode(0o500)).unwrap();
    symlink("SOUL.md", bench.state("workspace/link")).unwrap();
    symlink("/nowhere/at all", bench.state("workspace/dangling")).unwrap();
}

#[test]
fn a_snapshot_comes_back_whole_on_a_machine_that_has_only_the_configuration() {
    for fields in [serde_json::json!({}), serde_json::json!({ "encrypt": false })] {
        let bench = Bench::new(fields);
        populate(&bench);
        let mut expected = bench.tree();
        let report = bench.push();
        assert_eq!(report.files, 9 - u64::from(!bench.target.encrypt));
        if !bench.target.encrypt {
            expected.remove("openclaw.json");
            assert_eq!(report.exceptions.len(), 1, "{:?}", report.exceptions);
        }
        assert_same(&tree(&bench.pull(&report.snapshot.unwrap())), &expected);
        assert!(bench.problems().is_empty());
    }
}

#[test]
fn a_file_tree_whose_lists_lie_beside_it_is_asked_for_once() {
    let bench = Bench::default();
    for number in 0..600 {
        bench.write(&format!("workspace/{number}.md"), format!("{number}"));
    }
    bench.push();
    bench.run(async {
        let operation = Operation::default();
        let opened = Repository::open(&bench.target, None, IfMissing::ReadAsEmpty, &operation).await;
        let mut repository = opened.unwrap();
        let tree = repository.summary(&repository.contents.snapshots[0].0.clone()).await.unwrap().tree;
        assert!(tree.depth > 0);
        let index = Arc::new(repository.load_index().await.unwrap());
        let before = repository.stats().requests;
        let (entries, own) = repository.read_tree(&index, &tree, &operation).await.unwrap();
        assert!(entries.len() > 600 && own.len() > tree.chunks.len());
        assert_eq!(repository.stats().requests - before, 1);
    });
}

#[test]
fn with_nothing_changed_there_is_no_new_snapshot() {
    let bench = Bench::default();
    populate(&bench);
    bench.push();
    let again = bench.push();
    assert_eq!((again.snapshot, again.uploaded_bytes, again.changed_files), (None, 0, 0));
    assert!(again.requests <= 4, "{}", again.requests);
    // The times of directories change whenever a gateway makes and removes a temporary file.
    bench.write("workspace/x.tmp", "");
    fs::remove_file(bench.state("workspace/x.tmp")).unwrap();
    assert_eq!(bench.push().snapshot, None);
    bench.write("workspace/SOUL.md", "# Changed\n");
    assert!(bench.push().snapshot.is_some());
    assert_eq!(bench.list().len(), 2);
}

#[test]
fn a_part_can_be_pulled_by_globs() {
    let bench = Bench::default();
    populate(&bench);
    bench.push();
    let to = bench.root.path().join("part");
    let report = bench.try_pull_as(&bench.target, "latest", &to, &["workspace/*.md", "agents"]).unwrap();
    assert_eq!(report.files, 4);
    let mut expected = bench.tree();
    expected.retain(|path, _| {
        let is_note = path.starts_with("workspace/") && Path::new(path).extension().is_some_and(|end| end == "md");
        path.starts_with("agents") || path == "workspace" || is_note
    });
    assert_same(&tree(&to), &expected);
    let nothing = bench.try_pull_as(&bench.target, "latest", &bench.root.path().join("none"), &["nothing/*"]);
    assert_eq!(code(&nothing.unwrap_err()), "NOT_FOUND");
    assert!(!bench.root.path().join("none").exists());
}

#[test]
fn a_pull_that_was_killed_is_no_obstacle_for_the_next() {
    let bench = Bench::default();
    populate(&bench);
    bench.push();
    let to = bench.root.path().join("to");
    fs::create_dir_all(to.join(".openclaw-b2-backup-partial/workspace")).unwrap();
    fs::write(to.join(".openclaw-b2-backup-partial/workspace/SOUL.md"), "half").unwrap();
    bench.try_pull_as(&bench.target, "latest", &to, &[]).unwrap();
    assert_same(&tree(&to), &bench.tree());
}

#[test]
fn a_rollback_restores_removes_and_can_itself_be_rolled_back() {
    let bench = Bench::default();
    populate(&bench);
    bench.write("workspace/node_modules/left-pad/index.js", "rebuilt by npm");
    bench.write("credentials/token", "this machine's own");
    let before = bench.tree();
    let first = bench.push().snapshot.unwrap();

    bench.write("workspace/SOUL.md", "# Somebody else\n");
    bench.write("workspace/planted/deep/file.md", "new");
    fs::remove_dir_all(bench.state("agents")).unwrap();
    fs::remove_file(bench.state("workspace/link")).unwrap();
    fs::create_dir(bench.state("workspace/link")).unwrap();
    bench.write("workspace/link/inside", "a directory where a link was");
    fs::remove_dir_all(bench.state("workspace/empty")).unwrap();
    bench.write("workspace/empty", "a file where a directory was");
    fs::set_permissions(bench.state("workspace/run.sh"), fs::Permissions::from_mode(0o600)).unwrap();
    let damaged = bench.tree();

    let plan = bench.try_rollback("latest", &[], true).unwrap();
    assert_same(&bench.tree(), &damaged);
    assert_eq!(bench.list(), std::slice::from_ref(&first), "a plan stores nothing");

    let report = bench.rollback("latest");
    assert_same(&bench.tree(), &before);
    assert_eq!((&plan.restored, &plan.deleted), (&report.restored, &report.deleted));
    assert_eq!(
        report.deleted,
        ["workspace/planted", "workspace/planted/deep", "workspace/planted/deep/file.md"],
        "{report:?}"
    );
    assert!(report.warnings.is_empty(), "{report:?}");
    assert!(!bench.state("b2-backup/rollback").exists());

    // The safety snapshot undoes it, and is itself no regular snapshot.
    let safety = report.safety_snapshot.unwrap();
    assert!(safety.starts_with("safety-"));
    assert_eq!(bench.rollback(&safety).snapshot, safety);
    assert_same(&bench.tree(), &damaged);
    assert_eq!(bench.rollback("latest").snapshot, first);
    assert_same(&bench.tree(), &before);
    let nothing = bench.rollback("latest");
    assert_eq!((nothing.safety_snapshot, nothing.restored, nothing.deleted), (None, vec![], vec![]));
}

#[test]
fn a_rollback_of_a_part_leaves_the_rest_alone() {
    let bench = Bench::default();
    populate(&bench);
    let before = bench.tree();
    bench.push();
    bench.write("workspace/SOUL.md", "changed");
    bench.write("agents/main/log.jsonl", "changed too");
    bench.write("workspace/new.md", "new");
    let mut expected = bench.tree();
    expected.insert("workspace/SOUL.md".into(), before["workspace/SOUL.md"].clone());
    expected.remove("workspace/new.md");
    let report = bench.try_rollback("latest", &["workspace/*.md"], false).unwrap();
    assert_eq!((report.restored, report.deleted), (vec!["workspace/SOUL.md".into()], vec!["workspace/new.md".into()]));
    assert_same(&bench.tree(), &expected);
}

#[test]
fn what_no_snapshot_holds_is_set_aside_not_destroyed() {
    let bench = Bench::default();
    bench.write("workspace/notes", "text");
    let before = bench.tree();
    bench.push();
    // Now there is a directory in its place, with something in it that no snapshot holds.
    fs::remove_file(bench.state("workspace/notes")).unwrap();
    bench.write("workspace/notes/node_modules/precious.js", "only here");
    let report = bench.rollback("latest");
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert_same(&bench.tree(), &before);
    let kept = bench.state("b2-backup/set-aside").join(report.safety_snapshot.unwrap());
    assert_eq!(fs::read_to_string(kept.join("workspace/notes/node_modules/precious.js")).unwrap(), "only here");
}

#[test]
fn files_left_out_by_todays_configuration_are_left_alone() {
    let mut bench = Bench::default();
    populate(&bench);
    bench.push();
    bench.target.exclude = vec!["agents".into()];
    bench.write("agents/main/log.jsonl", "changed, but excluded now");
    bench.write("workspace/SOUL.md", "changed");
    let report = bench.rollback("latest");
    assert_eq!(report.restored, ["workspace/SOUL.md"]);
    assert_eq!(report.warnings.len(), 1, "{report:?}");
    assert_eq!(fs::read_to_string(bench.state("agents/main/log.jsonl")).unwrap(), "changed, but excluded now");
}

fn sql(bench: &Bench, path: &str, sql: &str) -> rusqlite::Connection {
    let path = bench.state(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let connection = rusqlite::Connection::open(path).unwrap();
    connection.execute_batch(sql).unwrap();
    connection
}

fn text(bench: &Bench, path: &str, query: &str) -> String {
    rusqlite::Connection::open(bench.state(path)).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn a_database_comes_back_with_this_machines_credentials_and_without_a_foreign_log() {
    let bench = Bench::default();
    let writer = sql(
        &bench,
        SHARED,
        "PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;
         CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old');
         CREATE TABLE auth_profile_store(id TEXT PRIMARY KEY, body TEXT);
         INSERT INTO auth_profile_store VALUES ('a', 'key of old times');",
    );
    bench.push();
    writer.execute_batch("UPDATE notes SET body = 'new'; UPDATE auth_profile_store SET body = 'key of today'").unwrap();
    drop(writer);
    // A killed gateway leaves its log; a new one would apply it to whatever database lies there.
    let killed = sql(&bench, SHARED, "PRAGMA wal_autocheckpoint=0; INSERT INTO notes VALUES ('in the log only')");
    let (main, log) =
        (fs::read(bench.state(SHARED)).unwrap(), fs::read(bench.state("state/openclaw.sqlite-wal")).unwrap());
    assert!(!log.is_empty());
    drop(killed);
    fs::write(bench.state(SHARED), main).unwrap();
    fs::write(bench.state("state/openclaw.sqlite-wal"), log).unwrap();

    let report = bench.rollback("latest");
    assert!(report.restart_required);
    assert!(!bench.state("state/openclaw.sqlite-wal").exists());
    assert_eq!(text(&bench, SHARED, "SELECT group_concat(body) FROM notes"), "old");
    assert_eq!(text(&bench, SHARED, "SELECT body FROM auth_profile_store"), "key of today");
    let pulled = bench.pull("latest");
    let elsewhere = rusqlite::Connection::open(pulled.join(SHARED)).unwrap();
    let credentials: i64 =
        elsewhere.query_row("SELECT count(*) FROM auth_profile_store", [], |row| row.get(0)).unwrap();
    assert_eq!(credentials, 0);
    // The safety snapshot has what was in the log.
    bench.rollback(&report.safety_snapshot.unwrap());
    assert_eq!(text(&bench, SHARED, "SELECT group_concat(body) FROM notes"), "new,in the log only");
}

#[test]
fn what_several_threads_have_read_is_compressed_together() {
    let bench = Bench::default();
    for number in 0..40 {
        bench.write(&format!("workspace/{number}.md"), noise(10_000, number));
    }
    bench.push();
    let mut packs = tree(&bench.repository().join("packs")).into_values();
    let Some(Node::File { content: pack, .. }) = packs.find(|node| matches!(node, Node::File { .. })) else { panic!() };
    assert!(!packs.any(|node| matches!(node, Node::File { .. })), "more than one pack");
    // docs/format.md, section 6: behind a header of 56 bytes, frames that have their lengths before them, and an end of 16 bytes.
    let (mut at, mut lengths) = (56, Vec::new());
    while at < pack.len() {
        lengths.push(u32::from_le_bytes(pack[at..at + 4].try_into().unwrap()) as usize);
        at += 4 + lengths[lengths.len() - 1];
    }
    let [content, tree, 16] = lengths[..] else { panic!("{lengths:?}") };
    assert!(content > 400_000 && tree < 10_000, "{lengths:?}");
}

#[test]
fn indexes_of_openclaws_databases_cost_nothing_and_come_back() {
    const EVENTS: &str = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s LIMIT 20000)
         INSERT INTO events SELECT hex(randomblob(16)), n FROM s;";
    const INDEXES: &str = "SELECT group_concat(sql, char(10)) FROM (SELECT sql FROM sqlite_schema ORDER BY name)";
    let bench = Bench::default();
    let tables = "CREATE TABLE events(run TEXT, n INTEGER); CREATE UNIQUE INDEX one ON events(n);";
    drop(sql(&bench, SHARED, &format!("{tables} {EVENTS}")));
    let without = bench.push();
    let length = |path: std::path::PathBuf| path.metadata().unwrap().len();
    let small = length(bench.state(SHARED));
    drop(sql(&bench, SHARED, "CREATE INDEX by_run ON events(run, n); CREATE INDEX by_size ON events(length(run))"));
    let with = bench.push();
    assert!(length(bench.state(SHARED)) > small * 3 / 2);
    assert!(with.uploaded_bytes * 10 < without.uploaded_bytes, "{} bytes of indexes", with.uploaded_bytes);

    let indexes = text(&bench, SHARED, INDEXES);
    assert!(indexes.contains("by_run") && indexes.contains("by_size"));
    let modified = bench.state(SHARED).metadata().unwrap().modified().unwrap();
    let pulled = bench.pull("latest").join(SHARED);
    assert_eq!(pulled.metadata().unwrap().modified().unwrap(), modified);
    drop(sql(&bench, SHARED, "DROP INDEX by_run; UPDATE events SET run = 'changed'"));
    bench.rollback("latest");
    for path in [pulled, bench.state(SHARED)] {
        let path = path.to_str().unwrap();
        assert_eq!(text(&bench, path, INDEXES), indexes);
        assert_eq!(text(&bench, path, "PRAGMA integrity_check"), "ok");
        assert_eq!(text(&bench, path, "SELECT count(*) || '' FROM events WHERE run = 'changed'"), "0");
    }
}

#[test]
fn an_index_that_cannot_be_made_again_is_told_of_and_stops_nothing() {
    let bench = Bench::default();
    let definitions = "CREATE TABLE openclaw_b2_backup_indexes(name TEXT, definition TEXT);
         INSERT INTO openclaw_b2_backup_indexes VALUES ('lost', 'CREATE INDEX lost ON nowhere(a)');";
    let notes = "CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old');";
    drop(sql(&bench, SHARED, &format!("{notes} {definitions}")));
    bench.push();
    let to = bench.root.path().join("pulled");
    let pulled = bench.try_pull_as(&bench.other_machine("other"), "latest", &to, &[]).unwrap();
    drop(sql(&bench, SHARED, "UPDATE notes SET body = 'new'"));
    let rolled_back = bench.rollback("latest");
    for (path, warnings) in [(to.join(SHARED), pulled.warnings), (bench.state(SHARED), rolled_back.warnings)] {
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let start =
            "state/openclaw.sqlite: its index lost could not be made again, and some queries will take longer: ";
        assert!(warnings[0].starts_with(start), "{warnings:?}");
        assert_eq!(text(&bench, path.to_str().unwrap(), "SELECT body FROM notes"), "old");
    }
}

#[test]
fn a_database_that_somebody_has_open_is_not_replaced() {
    let bench = Bench::default();
    drop(sql(
        &bench,
        SHARED,
        "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old')",
    ));
    bench.push();
    drop(sql(&bench, SHARED, "UPDATE notes SET body = 'new'"));
    let path = bench.state(SHARED);
    // Another process, as a gateway is: a lock of this process would not hold against itself.
    let script = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM notes').fetchall(); \
                  print('open', flush=True); sys.stdin.read()";
    let mut gateway = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Read::read_exact(gateway.stdout.as_mut().unwrap(), &mut [0; 4]).unwrap();
    let error = bench.try_rollback("latest", &[], false).unwrap_err();
    assert_eq!(code(&error), "LOCKED", "{error}");
    assert!(!bench.state("b2-backup/rollback").exists());
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert_eq!(text(&bench, SHARED, "SELECT body FROM notes"), "new");
    bench.rollback("latest");
    assert_eq!(text(&bench, SHARED, "SELECT body FROM notes"), "old");
}

#[test]
fn retention_keeps_the_newest_and_every_safety_snapshot() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 2 }));
    let mut trees = Vec::new();
    for round in 0..5 {
        bench.write("workspace/day.md", format!("day {round}"));
        bench.write("workspace/noise.bin", noise(100_000, round));
        trees.push(bench.tree());
        bench.push();
    }
    let listed = bench.list();
    assert_eq!(listed.len(), 2);
    let report = bench.rollback(&listed[1]);
    assert_same(&bench.tree(), &trees[3]);
    assert_eq!(bench.list().len(), 3);
    let packs = || {
        walkdir::WalkDir::new(bench.repository().join("openclaw-backup/packs")).into_iter().count()
            + walkdir::WalkDir::new(bench.repository().join("packs")).into_iter().count()
    };
    let before = packs();
    let (first, second) = bench.prune_now();
    assert!(first.condemned_packs > 0 && second.deleted_packs > 0 && packs() < before, "{first:?} {second:?}");
    assert!(second.freed_bytes > 250_000, "{second:?}");
    assert!(bench.problems().is_empty());
    assert_same(&tree(&bench.pull(&listed[0])), &trees[4]);
    assert_same(&tree(&bench.pull(&listed[1])), &trees[3]);
    assert_same(&tree(&bench.pull(&report.safety_snapshot.unwrap())), &trees[4]);
}

#[test]
fn machines_do_not_age_out_each_others_snapshots() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 1 }));
    bench.write("workspace/a", "first machine");
    bench.push();
    let mut other = Bench::new(serde_json::json!({ "keepSnapshots": 1 }));
    other.target = bench.other_machine("other");
    for round in 0..3 {
        other.write("workspace/a", format!("second machine, {round}"));
        other.push();
    }
    assert_eq!(bench.list().len(), 2);
}

#[test]
fn a_condemned_pack_that_a_snapshot_needs_after_all_stays() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 1 }));
    bench.write("workspace/noise.bin", noise(100_000, 1));
    let first = bench.push().snapshot.unwrap();
    let (kept_manifest, manifest) = {
        let folder = walkdir::WalkDir::new(bench.repository()).into_iter().flatten();
        let path = folder
            .map(walkdir::DirEntry::into_path)
            .find(|path| path.ends_with(format!("{first}/manifest.json")))
            .unwrap();
        (path.clone(), fs::read(path).unwrap())
    };
    let expected = bench.tree();
    bench.write("workspace/noise.bin", noise(100_000, 2));
    bench.push();
    let grace = std::time::Duration::ZERO;
    let operation = Operation::default();
    let prune = || bench.run(prune::prune_after(&bench.target, grace, &operation)).unwrap();
    assert!(prune().condemned_packs > 0);
    // A push that relied on the packs commits only now. (Here: the manifest of before comes back.)
    fs::create_dir_all(kept_manifest.parent().unwrap()).unwrap();
    fs::write(&kept_manifest, manifest).unwrap();
    let target = openclaw_b2_backup::config::Target { keep_snapshots: 9, ..bench.target.clone() };
    let keeping = Bench { target, ..Bench::default() };
    for _ in 0..3 {
        keeping.prune_now();
    }
    assert!(bench.problems().is_empty());
    assert_same(&tree(&bench.pull(&first)), &expected);
    assert!(matches!(expected["workspace/noise.bin"], Node::File { .. }));
    // It is not relied on again: a prune that has not seen the snapshot may still be about to delete the pack.
    bench.write("workspace/noise.bin", noise(100_000, 1));
    assert!(keeping.push().uploaded_bytes > 100_000);
    keeping.prune_now();
    assert_same(&tree(&bench.pull(&first)), &expected);
}

/// A machine sleeps for longer than the grace period after it has stored a pack. It may name the pack when it wakes, and
/// commit, before another one that has looked at the store meanwhile does what it decided.
#[test]
fn a_pack_that_nobody_names_is_condemned_before_it_is_deleted() {
    let bench = Bench::default();
    populate(&bench);
    bench.push();
    let before = stored_names(&bench);
    bench.write("workspace/noise.bin", noise(100_000, 1));
    let expected = bench.tree();
    let snapshot = bench.push().snapshot.unwrap();
    let other = bench.other_machine("other");
    let operation = Operation::default();
    let prune = || bench.run(prune::prune_after(&other, std::time::Duration::ZERO, &operation)).unwrap();

    let new: Vec<_> = stored_names(&bench).difference(&before).cloned().collect();
    let (packs, names): (Vec<_>, Vec<_>) = new.iter().partition(|path| path.iter().any(|part| part == "packs"));
    assert!(packs.len() == 1 && names.len() == 2, "{new:?}");
    let slept: Vec<_> = names.iter().map(|path| (path, fs::read(path).unwrap())).collect();
    for path in &names {
        fs::remove_file(path).unwrap();
    }
    let pruned = prune();
    assert_eq!((pruned.condemned_packs, pruned.deleted_packs), (1, 0), "{pruned:?}");
    // Whoever reads it because the index is damaged does not rely on it either.
    let damaged = stored(&bench, "index").into_iter().find(|path| before.contains(path)).unwrap();
    let sound = fs::read(&damaged).unwrap();
    fs::write(&damaged, &sound[..sound.len() - 1]).unwrap();
    let third = Bench { target: bench.other_machine("third"), ..Bench::default() };
    third.write("workspace/noise.bin", noise(100_000, 1));
    assert!(third.push().uploaded_bytes > 100_000);
    fs::write(&damaged, sound).unwrap();
    for (path, content) in &slept {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    assert_eq!(prune().deleted_packs, 0);
    assert_eq!(prune().deleted_packs, 0);
    assert!(bench.problems().is_empty());
    assert_same(&tree(&bench.pull(&snapshot)), &expected);

    // It never wakes.
    for path in stored_names(&bench).difference(&before).filter(|path| !packs.contains(path)) {
        fs::remove_file(path).unwrap();
    }
    assert_eq!((prune().condemned_packs, prune().deleted_packs), (1, 1));
    assert_eq!(stored_names(&bench), before);
}

fn stored_names(bench: &Bench) -> BTreeSet<std::path::PathBuf> {
    let walk = walkdir::WalkDir::new(bench.repository()).into_iter().flatten();
    walk.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path).collect()
}

/// The stored files below `folder` of the repository.
fn stored(bench: &Bench, folder: &str) -> Vec<std::path::PathBuf> {
    let files = stored_names(bench).into_iter();
    files.filter(|path| path.strip_prefix(bench.repository()).unwrap().iter().any(|part| part == folder)).collect()
}

#[test]
fn a_lost_or_damaged_index_costs_time_only() {
    let bench = Bench::default();
    populate(&bench);
    let expected = bench.tree();
    let first = bench.push().snapshot.unwrap();
    for object in stored(&bench, "index") {
        fs::remove_file(object).unwrap();
    }
    assert_same(&tree(&bench.pull(&first)), &expected);
    let again = bench.push();
    assert_eq!(again.snapshot, None);
    assert!(again.uploaded_bytes < 100_000, "only a new index: {}", again.uploaded_bytes);
    assert_eq!(stored(&bench, "index").len(), 1);
    assert!(bench.problems().is_empty());

    for object in stored(&bench, "index") {
        let mut bytes = fs::read(&object).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::remove_file(&object).unwrap();
        fs::write(&object, bytes).unwrap();
    }
    fs::remove_file(bench.state("b2-backup/cache.sqlite")).unwrap();
    assert_same(&tree(&bench.pull(&first)), &expected);
    assert_eq!(bench.problems().len(), 1);
    assert_eq!(bench.push().warnings.len(), 1);
    assert_same(&tree(&bench.pull(&first)), &expected);
    // Once everything is named again, prune lets the damaged object go.
    bench.prune_now();
    assert_eq!((bench.problems().len(), bench.push().warnings.len()), (0, 0));
    assert_same(&tree(&bench.pull(&first)), &expected);
}

#[test]
fn with_a_passphrase_the_application_key_opens_nothing() {
    let bench = Bench::new(serde_json::json!({ "passphrase": "correct horse battery staple" }));
    populate(&bench);
    bench.push();
    assert_eq!(stored(&bench, "keys").len(), 1);
    let target = openclaw_b2_backup::config::Target { passphrase: None, ..bench.target.clone() };
    let without = Bench { target, ..Bench::default() };
    assert_eq!(code(&without.try_pull("latest").unwrap_err()), "WRONG_KEY");
    let target = openclaw_b2_backup::config::Target { application_key: None, ..bench.target.clone() };
    let only = Bench { target, ..Bench::default() };
    assert_same(&tree(&only.pull("latest")), &bench.tree());
}

#[test]
fn reading_a_database_leaves_nothing_beside_it() {
    let bench = Bench::default();
    drop(sql(
        &bench,
        SHARED,
        "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old')",
    ));
    let before = bench.tree();
    bench.push();
    assert_same(&bench.tree(), &before);
    drop(sql(&bench, SHARED, "UPDATE notes SET body = 'new'"));
    let before = bench.tree();
    bench.try_rollback("latest", &[], true).unwrap();
    assert_same(&bench.tree(), &before);
    bench.rollback("latest");
    assert_eq!(bench.tree().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert_eq!(text(&bench, SHARED, "SELECT body FROM notes"), "old");
}

/// A file system of its own in the state directory, as containers mount a workspace; unmounted at the end.
struct Mount(std::path::PathBuf);

impl Mount {
    /// `None` where this user may not mount.
    fn new(at: std::path::PathBuf) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        Self::mounted(&["-t", "tmpfs", "tmpfs"], at)
    }

    /// A single file, as containers mount a configuration.
    fn of_file(file: &std::path::Path, at: std::path::PathBuf) -> Option<Self> {
        fs::write(&at, "").unwrap();
        Self::mounted(&["--bind", file.to_str().unwrap()], at)
    }

    fn mounted(arguments: &[&str], at: std::path::PathBuf) -> Option<Self> {
        let mounted = std::process::Command::new("mount").args(arguments).arg(&at).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_workspace_in_a_volume_of_its_own_is_rolled_back_too() {
    let bench = Bench::default();
    let Some(_mount) = Mount::new(bench.state("workspace")) else { return };
    populate(&bench);
    let before = bench.tree();
    bench.push();
    bench.write("workspace/SOUL.md", "changed");
    bench.write("workspace/new/file.md", "new");
    bench.write("agents/main/log.jsonl", "changed too");
    fs::remove_file(bench.state("workspace/link")).unwrap();
    let damaged = bench.tree();
    let report = bench.rollback("latest");
    assert_same(&bench.tree(), &before);
    bench.rollback(&report.safety_snapshot.unwrap());
    assert_same(&bench.tree(), &damaged);
    bench.write("workspace/SOUL.md", "changed again");
    assert!(bench.push().snapshot.is_some());
}

#[test]
fn neither_a_file_that_is_mounted_nor_a_mount_point_that_the_snapshot_lacks_stands_in_the_way() {
    let bench = Bench::default();
    populate(&bench);
    let file = bench.root.path().join("mounted.md");
    fs::write(&file, "from outside").unwrap();
    let Some(_file) = Mount::of_file(&file, bench.state("workspace/mounted.md")) else { return };
    let before = bench.tree();
    bench.push();
    bench.write("workspace/SOUL.md", "changed");
    let Some(_folder) = Mount::new(bench.state("workspace/data")) else { return };
    bench.write("workspace/data/file", "on it");
    bench.rollback("latest");
    let mut after = bench.tree();
    // It can be emptied, not removed.
    assert!(after.remove("workspace/data").is_some());
    assert_same(&after, &before);
    // What would have to be replaced itself says so, and nothing is changed.
    fs::write(&file, "from outside, later").unwrap();
    bench.write("workspace/SOUL.md", "changed again");
    let error = bench.try_rollback("latest", &[], false).unwrap_err();
    assert!(
        error.to_string().contains("mounted.md") && !error.to_string().contains("taking it back failed"),
        "{error}"
    );
    assert_eq!(fs::read(bench.state("workspace/SOUL.md")).unwrap(), b"changed again");
}

#[test]
fn what_was_prepared_is_applied_under_a_gateway_that_has_the_databases_open() {
    let bench = Bench::default();
    populate(&bench);
    drop(sql(
        &bench,
        SHARED,
        "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old');
         CREATE TABLE state_leases(name TEXT); INSERT INTO state_leases VALUES ('before');
         CREATE INDEX notes_by_body ON notes(body);
         CREATE TABLE auth_profile_store(id TEXT PRIMARY KEY, body TEXT);",
    ));
    let mut gateway = Gateway::open(&bench.state(SHARED));
    gateway.ask("UPDATE state_leases SET name = 'of this run'");
    bench.push();
    bench.write("workspace/SOUL.md", "# Somebody else\n");
    bench.write("workspace/planted.md", "new");
    gateway.ask("UPDATE notes SET body = 'new'");
    gateway.ask("INSERT INTO auth_profile_store VALUES ('a', 'key of today')");

    let options = RollbackOptions { snapshot: "latest".into(), paths: Vec::new(), plan_only: false, partial: false };
    let prepared = bench.run(rollback::prepare(&bench.target, options, &Operation::default())).unwrap();
    assert_eq!(prepared.deleted, ["workspace/planted.md"]);
    assert_eq!(fs::read_to_string(bench.state("workspace/SOUL.md")).unwrap(), "# Somebody else\n");
    // The conversation in which it was asked for goes on, and is in the last safety snapshot; so is a push in between.
    gateway.ask("INSERT INTO notes VALUES ('roll back, please')");
    bench.push();
    let applied = bench.run(rollback::apply_prepared(&bench.target, &Operation::default())).unwrap().unwrap();
    assert_ne!(applied.safety_snapshot, prepared.safety_snapshot);
    assert_eq!(gateway.ask("SELECT body FROM notes"), "[('old',)]");
    assert_eq!(gateway.ask("SELECT name FROM state_leases"), "[('of this run',)]");
    assert_eq!(gateway.ask("SELECT body FROM auth_profile_store"), "[('key of today',)]");
    assert_eq!(gateway.ask("PRAGMA integrity_check"), "[('ok',)]");
    assert_eq!(gateway.ask("SELECT name FROM sqlite_schema WHERE name LIKE 'notes_%'"), "[('notes_by_body',)]");
    assert_eq!(fs::read_to_string(bench.state("workspace/SOUL.md")).unwrap(), "# Soul\n");
    assert!(!bench.state("workspace/planted.md").exists());
    assert!(!bench.state("b2-backup/rollback").exists() && !bench.state("b2-backup/prepared.json").exists());
    assert!(bench.run(rollback::apply_prepared(&bench.target, &Operation::default())).unwrap().is_none());

    // And back again, to the moment before it was applied.
    let options = RollbackOptions {
        snapshot: applied.safety_snapshot.unwrap(),
        paths: Vec::new(),
        plan_only: false,
        partial: false,
    };
    bench.run(rollback::prepare(&bench.target, options, &Operation::default())).unwrap();
    bench.run(rollback::apply_prepared(&bench.target, &Operation::default())).unwrap().unwrap();
    assert_eq!(gateway.ask("SELECT body FROM notes"), "[('new',), ('roll back, please',)]");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn pages_of_a_database_that_have_only_moved_are_not_stored_again() {
    let bench = Bench::default();
    let path = "memory/main.sqlite";
    let tables = "CREATE TABLE files(path TEXT); CREATE TABLE chunks(id TEXT PRIMARY KEY, body BLOB, embedding BLOB)";
    let database = sql(&bench, path, tables);
    for number in 0..300 {
        let (id, body) = (format!("{number}"), common::noise(1500, number));
        database.execute("INSERT INTO chunks VALUES(?, ?, ?)", (id, body, common::noise(9000, 1000 + number))).unwrap();
    }
    let first = bench.push();
    // In the copy, it is before the table that has all the content.
    for number in 0..500 {
        database.execute("INSERT INTO files VALUES(?)", [format!("notes/{number}.md")]).unwrap();
    }
    let second = bench.push();
    assert!(first.uploaded_bytes > 3_000_000 && second.uploaded_bytes < 200_000, "{first:?} {second:?}");
    assert_eq!(bench.problems(), Vec::<String>::new());
    let pulled = bench.pull("latest");
    let copy = rusqlite::Connection::open(pulled.join(path)).unwrap();
    assert_eq!(copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)), Ok("ok".to_owned()));
    let sums = "SELECT (SELECT count(*) FROM files), (SELECT sum(length(body) + length(embedding)) FROM chunks)";
    let sums_of = |database: &rusqlite::Connection| {
        database.query_row(sums, [], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap()
    };
    assert_eq!(sums_of(&copy), (500, 300 * 10_500));
}

#[test]
fn a_machine_without_agent_content_restores_itself_and_one_with_content_does_not() {
    let bench = Bench::default();
    populate(&bench);
    bench.write(
        "openclaw.json",
        r#"{ "a": 1, "gateway": { "auth": { "token": "old" } }, "plugins": { "entries": { "x": {} } } }"#,
    );
    drop(sql(
        &bench,
        SHARED,
        "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('old');
         CREATE TABLE cron_jobs(store_key TEXT, id TEXT); INSERT INTO cron_jobs VALUES ('/elsewhere/.openclaw/cron/jobs.json', 'a')",
    ));
    bench.push();
    assert!(bench.run(restore_if_empty(&bench.target, &Operation::default())).unwrap().is_none());

    let fresh = Bench { target: bench.other_machine("fresh"), ..Bench::default() };
    fresh.write("openclaw.json", r#"{ "gateway": { "auth": { "token": "new" } } }"#);
    fresh.write("agents/main/agent/auth-profiles.json", "the owner has logged in already");
    drop(sql(
        &fresh,
        SHARED,
        "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('first start')",
    ));
    let mut gateway = Gateway::open(&fresh.state(SHARED));
    let report = fresh.run(restore_if_empty(&fresh.target, &Operation::default())).unwrap().unwrap();
    assert_eq!(report.safety_snapshot, None);
    assert_eq!(gateway.ask("SELECT body FROM notes"), "[('old',)]");
    let aside = format!("b2-backup/set-aside/before-{}/{SHARED}", report.snapshot);
    assert_eq!(text(&fresh, &aside, "SELECT body FROM notes"), "first start");
    let jobs = fresh.state("cron/jobs.json");
    assert_eq!(gateway.ask("SELECT store_key FROM cron_jobs"), format!("[('{}',)]", jobs.display()));
    let config: serde_json::Value = serde_json::from_slice(&fs::read(fresh.state("openclaw.json")).unwrap()).unwrap();
    let expected =
        serde_json::json!({ "a": 1, "gateway": { "auth": { "token": "new" } }, "plugins": { "entries": { "x": {} } } });
    assert_eq!(config, expected);
    let (mut found, mut expected) = (fresh.tree(), bench.tree());
    for tree in [&mut found, &mut expected] {
        let is_own = |path: &String| path.starts_with("state/") || path.starts_with("agents/main/agent");
        tree.retain(|path, _| !is_own(path) && path != "openclaw.json");
    }
    assert_same(&found, &expected);
    assert!(fresh.run(restore_if_empty(&fresh.target, &Operation::default())).unwrap().is_none());
    assert_eq!(bench.list().len(), 1);
}

/// Its gateway runs while the owner configures the plugin, which takes snapshots from then on; it is restarted later.
#[test]
fn a_new_machine_that_has_saved_itself_already_is_restored_from_another_one() {
    let bench = Bench::default();
    populate(&bench);
    let full = bench.push().snapshot.unwrap();
    let fresh = Bench { target: bench.other_machine("fresh"), ..Bench::default() };
    fresh.write("openclaw.json", "{}");
    for job in ["one", "two"] {
        fresh.write("cron/jobs.json", job);
        fresh.push();
    }
    let restored = fresh.run(restore_if_empty(&fresh.target, &Operation::default())).unwrap().unwrap();
    assert_eq!(restored.snapshot, full);
    assert!(fresh.state("workspace/SOUL.md").exists());

    // One that was emptied and has saved that is as its owner left it.
    fs::set_permissions(bench.state("workspace/empty/deeper"), fs::Permissions::from_mode(0o700)).unwrap();
    for folder in ["agents", "workspace"] {
        fs::remove_dir_all(bench.state(folder)).unwrap();
    }
    bench.push();
    assert!(bench.run(restore_if_empty(&bench.target, &Operation::default())).unwrap().is_none());
    assert!(!bench.state("workspace").exists());
}

/// `openclaw onboard` seeds the workspace, a login or the first heartbeat makes the agent's database.
#[test]
fn a_new_machine_that_was_set_up_is_blank_until_an_agent_has_made_something() {
    const OWN: &str = "agents/main/agent/openclaw-agent.sqlite";
    const SCHEMA: &str = "PRAGMA journal_mode=WAL;
        CREATE TABLE schema_meta(version INT); INSERT INTO schema_meta VALUES (23);
        CREATE TABLE auth_profile_store(key TEXT); CREATE TABLE session_nodes(id INTEGER PRIMARY KEY AUTOINCREMENT, title TEXT);
        CREATE TABLE transcript_events(event TEXT); CREATE VIRTUAL TABLE transcript_fts USING fts5(event);";
    let bench = Bench::default();
    populate(&bench);
    drop(sql(&bench, OWN, &format!("{SCHEMA} INSERT INTO transcript_events VALUES ('hello')")));
    let full = bench.push().snapshot.unwrap();

    let set_up = |name: &str| {
        let fresh = Bench { target: bench.other_machine(name), ..Bench::default() };
        fresh.write("openclaw.json", "{}");
        drop(sql(&fresh, OWN, &format!("{SCHEMA} INSERT INTO auth_profile_store VALUES ('a login')")));
        drop(sql(
            &fresh,
            SHARED,
            "PRAGMA journal_mode=WAL;
             CREATE TABLE workspace_generated_bootstrap_hashes(workspace_key TEXT, filename TEXT, sha256 TEXT)",
        ));
        for name in ["AGENTS.md", "SOUL.md"] {
            fresh.write(&format!("workspace/{name}"), name);
            let hash = hex(&Sha256::digest(name));
            let note = format!("INSERT INTO workspace_generated_bootstrap_hashes VALUES ('a', '{name}', '{hash}')");
            drop(sql(&fresh, SHARED, &note));
        }
        fresh.write("workspace/BOOTSTRAP.md", "Who are you?");
        fresh.write("workspace/.git/HEAD", "ref: refs/heads/main");
        fresh
    };
    let restored = |fresh: &Bench| {
        let report = fresh.run(restore_if_empty(&fresh.target, &Operation::default())).unwrap();
        report.map(|report| report.snapshot)
    };

    // Not from what it has saved of itself either.
    let fresh = set_up("fresh");
    let listed = bench.run(list::list(&bench.target, &Operation::default())).unwrap();
    let host = listed.snapshots[0].host.clone();
    let other = |restores_itself| Some(OtherMachine { snapshot: full.clone(), host: host.clone(), restores_itself });
    assert_eq!(fresh.push().other_machine, other(true));
    fresh.write("cron/jobs.json", "{}");
    assert_eq!(fresh.push().other_machine, None, "its owner knows by now");
    assert_eq!(restored(&fresh).as_ref(), Some(&full));
    assert_eq!(text(&fresh, OWN, "SELECT event FROM transcript_events"), "hello");
    assert_eq!(text(&fresh, OWN, "SELECT key FROM auth_profile_store"), "a login");
    assert_eq!(
        fs::read(fresh.state("workspace/SOUL.md")).unwrap(),
        fs::read(bench.state("workspace/SOUL.md")).unwrap()
    );
    let aside = fresh.state(&format!("b2-backup/set-aside/before-{full}"));
    assert_eq!(fs::read(aside.join("workspace/SOUL.md")).unwrap(), b"SOUL.md");
    assert_eq!(fs::read(aside.join("workspace/BOOTSTRAP.md")).unwrap(), b"Who are you?");
    assert!(!fresh.state("workspace/BOOTSTRAP.md").exists());
    assert_eq!(fs::read(fresh.state("workspace/AGENTS.md")).unwrap(), b"AGENTS.md", "nothing is removed");
    assert_eq!(restored(&fresh), None);

    let fresh = set_up("said");
    drop(sql(&fresh, OWN, "INSERT INTO session_nodes(title) VALUES ('a first word')"));
    assert_eq!(restored(&fresh), None);
    let moved = set_up("moved");
    assert_eq!(restored(&moved).as_ref(), Some(&full));
    assert_eq!(fresh.push().other_machine, other(false));
    assert_eq!(moved.push().other_machine, None, "it has taken over");
    let written = [
        ("workspace/SOUL.md", "curious"),
        ("workspace/notes.md", "milk"),
        ("workspace/.git/objects/ab/cdef", "a blob"),
        ("agents/main/sessions/1.jsonl", "{}"),
        (OWN, "SQLite format 3\0, and damaged"),
    ];
    for (number, (path, content)) in written.into_iter().enumerate() {
        let fresh = set_up(&format!("written-{number}"));
        fresh.write(path, content);
        assert_eq!(restored(&fresh), None, "{path}");
    }
}

#[test]
fn no_log_that_was_left_behind_lies_beside_a_restored_database() {
    const OWN: &str = "agents/main/agent/openclaw-agent.sqlite";
    let bench = Bench::default();
    let writer =
        sql(&bench, OWN, "PRAGMA journal_mode=WAL; CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('kept');");
    let log = fs::read(bench.state(&format!("{OWN}-wal"))).unwrap();
    writer.execute_batch("UPDATE notes SET body = 'pushed'").unwrap();
    drop(writer);
    bench.push();
    let fresh = Bench { target: bench.other_machine("fresh"), ..Bench::default() };
    fresh.write(&format!("{OWN}-wal"), &log);
    let report = fresh.run(restore_if_empty(&fresh.target, &Operation::default())).unwrap().unwrap();
    assert!(!fresh.state(&format!("{OWN}-wal")).exists());
    assert_eq!(text(&fresh, OWN, "SELECT body FROM notes"), "pushed");
    let aside = fresh.state(&format!("b2-backup/set-aside/before-{}/{OWN}-wal", report.snapshot));
    assert_eq!(fs::read(aside).unwrap(), log);
}

#[test]
fn an_emptied_state_prunes_nothing_until_its_owner_agrees() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 2 }));
    populate(&bench);
    let expected = bench.tree();
    let good = bench.push().snapshot.unwrap();
    let marked = || {
        let listed = bench.run(list::list(&bench.target, &Operation::default())).unwrap().snapshots;
        listed.into_iter().map(|snapshot| snapshot.shrunk).collect::<Vec<_>>()
    };
    let status = || {
        bench
            .run(status::status(
                &bench.target,
                &openclaw_b2_backup::commands::StatusOptions::default(),
                &Operation::default(),
            ))
            .unwrap()
            .shrunk
    };
    assert_eq!(status(), None);
    fs::remove_dir_all(bench.state("workspace")).unwrap();
    for round in 0..4 {
        bench.write("agents/main/log.jsonl", format!("round {round}"));
        let report = bench.push();
        let shrunk = report.shrunk.unwrap();
        assert_eq!((shrunk.snapshot, shrunk.files_before, shrunk.files), (good.clone(), 9, 2));
        assert_eq!(report.warnings.len(), 1, "{:?}", report.warnings);
    }
    assert_eq!(marked(), [true, true, true, true, false]);
    let (pruned, _) = bench.prune_now();
    assert!(pruned.shrunk.is_some() && pruned.removed_snapshots.is_empty(), "{pruned:?}");
    assert_same(&tree(&bench.pull(&good)), &expected);
    assert_eq!(status(), pruned.shrunk);

    // A machine that shares the repository is not concerned.
    let other = Bench { target: bench.other_machine("other"), ..Bench::default() };
    other.write("workspace/own.md", "own");
    assert!(other.push().shrunk.is_none());

    let accept = || bench.run(prune::accept_shrink(&bench.target, &Operation::default())).unwrap();
    assert_eq!(accept(), pruned.shrunk);
    assert_eq!((accept(), status()), (None, None));
    let (pruned, _) = bench.prune_now();
    assert_eq!(pruned.removed_snapshots.len(), 3, "{pruned:?}");
    assert_eq!(bench.list().len(), 3);
    bench.write("agents/main/log.jsonl", "and it goes on");
    let report = bench.push();
    assert_eq!((report.shrunk, report.warnings.len()), (None, 0), "{:?}", report.warnings);
}

#[test]
fn a_database_that_has_lost_most_of_its_bytes_prunes_nothing_either() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 2 }));
    populate(&bench);
    bench.write("agents/main/sessions/all.jsonl", vec![b'x'; 8 << 20]);
    let good = bench.push().snapshot.unwrap();
    for round in 0..3 {
        bench.write("agents/main/sessions/all.jsonl", format!("truncated {round}"));
        let shrunk = bench.push().shrunk.unwrap();
        assert_eq!((shrunk.snapshot, shrunk.files_before), (good.clone(), shrunk.files));
        assert!(shrunk.bytes_before > 8 << 20 && shrunk.bytes < 2 << 20, "{} {}", shrunk.bytes_before, shrunk.bytes);
    }
    assert!(bench.list().contains(&good));
}

/// Retention would else push out the last good copy while nobody can make another one.
#[test]
fn the_newest_snapshots_that_have_what_can_no_longer_be_read_are_kept() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 2 }));
    populate(&bench);
    // What nobody can keep is not missed.
    std::os::unix::net::UnixListener::bind(bench.state("workspace/socket")).unwrap();
    drop(sql(&bench, SHARED, "CREATE TABLE notes(body TEXT); INSERT INTO notes VALUES ('first')"));
    bench.push();
    drop(sql(&bench, SHARED, "UPDATE notes SET body = 'good'"));
    let report = bench.push();
    assert_eq!((report.exceptions.len(), report.dropped.len()), (1, 0), "{report:?}");
    let good = report.snapshot.unwrap();
    let sound = fs::read(bench.state(SHARED)).unwrap();
    bench.write(SHARED, "SQLite format 3, or what is left of it");
    for round in 0..4 {
        bench.write("agents/main/log.jsonl", format!("round {round}"));
        let report = bench.push();
        assert_eq!(report.dropped, [SHARED], "{report:?}");
        assert!(report.warnings.iter().any(|warning| warning.starts_with(SHARED)), "{report:?}");
    }
    // Something else goes, and comes back.
    let (link, kept) = (bench.state("workspace/link-to-be"), bench.state("workspace/SOUL.md"));
    fs::rename(&kept, &link).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &kept, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    let with_soul = bench.list()[0].clone();
    for round in 4..8 {
        bench.write("agents/main/log.jsonl", format!("round {round}"));
        assert_eq!(bench.push().dropped.len(), 2);
    }
    let listed = bench.list();
    assert_eq!(listed.len(), 4, "{listed:?}");
    assert_eq!(&listed[2..], [with_soul, good.clone()]);
    bench.prune_now();
    assert_eq!(bench.list(), listed);
    let pulled = bench.pull(&good);
    let body: String = rusqlite::Connection::open(pulled.join(SHARED))
        .unwrap()
        .query_row("SELECT body FROM notes", [], |row| row.get(0))
        .unwrap();
    assert_eq!(body, "good");

    fs::remove_file(&kept).unwrap();
    fs::rename(&link, &kept).unwrap();
    bench.write(SHARED, sound);
    assert!(bench.push().dropped.is_empty());
    bench.write("agents/main/log.jsonl", "sound again");
    bench.push();
    assert_eq!(bench.list().len(), 2);
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn a_state_that_grows_again_prunes_again() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 2 }));
    populate(&bench);
    bench.push();
    fs::rename(bench.state("workspace"), bench.root.path().join("aside")).unwrap();
    bench.write("agents/main/log.jsonl", "emptied");
    assert!(bench.push().shrunk.is_some());
    bench.write("agents/main/log.jsonl", "emptied still");
    assert!(bench.push().shrunk.is_some());
    fs::rename(bench.root.path().join("aside"), bench.state("workspace")).unwrap();
    let report = bench.push();
    assert_eq!((report.shrunk, report.warnings.len()), (None, 0), "{:?}", report.warnings);
    assert_eq!(bench.list().len(), 2);
}

/// The layout that `OpenClaw` had before 2026.7: transcripts and registries in files, a memory index for each agent.
#[test]
fn a_state_of_the_older_layout_comes_back_whole_and_without_credentials() {
    let bench = Bench::default();
    let agents = serde_json::json!({ "agents": { "list": [{ "id": "main", "default": true }, { "id": "work" }] } });
    bench.write("openclaw.json", agents.to_string());
    for path in [
        "openclaw.json.bak",
        "agents/main/sessions/sessions.json",
        "agents/main/sessions/5f0c.jsonl",
        "agents/main/sessions/5f0c.jsonl.deleted.2026-06-01",
        "agents/work/sessions/sessions.json",
        "agents/main/agent/models.json",
        "cron/jobs.json",
        "cron/runs/job.jsonl",
        "hooks/greet/handler.ts",
        "skills/weather/SKILL.md",
        "subagents/runs.json",
        "workspace/MEMORY.md",
        "workspace-work/AGENTS.md",
    ] {
        bench.write(path, format!("content of {path}"));
    }
    let memory = bench.state("memory/main.sqlite");
    fs::create_dir(bench.state("memory")).unwrap();
    let open = rusqlite::Connection::open(&memory).unwrap();
    open.execute_batch(
        "PRAGMA journal_mode = WAL; CREATE TABLE chunks(text); INSERT INTO chunks VALUES ('remembered')",
    )
    .unwrap();
    let kept = bench.tree();
    for path in [
        "agents/main/agent/auth-profiles.json",
        "agents/main/agent/auth.json",
        "credentials/oauth.json",
        "devices/paired.json",
        "identity/device.json",
        "exec-approvals.json",
        ".env",
        "delivery-queue/1.json",
        "logs/gateway.log",
        "media/inbound/photo.png",
        "agents/main/sessions/sessions.json.lock",
    ] {
        bench.write(path, "canary");
    }
    let push = bench.push();
    assert_eq!(push.exceptions, []);
    let pulled = bench.pull(&push.snapshot.unwrap());
    let names = |tree: &Tree| -> Vec<String> {
        tree.keys().filter(|path| !path.ends_with("-wal") && !path.ends_with("-shm")).cloned().collect()
    };
    assert_eq!(names(&tree(&pulled)), names(&kept));
    for (path, node) in tree(&pulled).iter().filter(|(path, _)| *path != "memory/main.sqlite") {
        assert_eq!(node, &kept[path], "{path}");
    }
    let copy = rusqlite::Connection::open(pulled.join("memory/main.sqlite")).unwrap();
    let text: String = copy.query_row("SELECT text FROM chunks", [], |row| row.get(0)).unwrap();
    assert_eq!(text, "remembered");
}
