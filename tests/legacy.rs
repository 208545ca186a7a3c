//! Snapshots that openclaw-b2-backup 0.1.x has written, in the same bucket and prefix: listed, restored, imported, left
//! alone by everything else.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::legacy::{OldPlugin, encrypt, sha256};
use common::{Bench, Node, assert_same, code, tree};
use openclaw_b2_backup::Result;
use openclaw_b2_backup::commands::{
    ImportOptions, ImportReport, ListReport, Operation, RollbackOptions, SnapshotInfo, SnapshotKind, StatusOptions,
    diff, import_legacy, list, rollback, status,
};
use openclaw_b2_backup::config::Target;
use serde_json::json;

const FIRST: &str = "2026-01-01T00-00-00Z";
const SECOND: &str = "2026-01-02T00-00-00-500Z-0a1b2c3d";
const THIRD: &str = "2026-01-03T00-00-00-000Z-ffffffff";
const AGENT: &str = "agents/main/agent/openclaw-agent.sqlite";
const SECRET: &str = "sk-SECRET-MUST-NOT-COME-BACK";

type Files = BTreeMap<String, Vec<u8>>;

/// Three snapshots, each with some files changed, one new, one gone; and what each holds.
fn history(bench: &Bench, encrypt: bool) -> [(&'static str, Files); 3] {
    let mut old = OldPlugin::of(bench).encrypting(encrypt);
    bench.write("openclaw.json", "{}");
    bench.write("workspace/SOUL.md", "first soul");
    bench.write("workspace/notes/gone later.md", "going");
    bench.write("workspace/empty", "");
    bench.write("agents/main/sessions/a.jsonl", "line 1\n");
    old.push(FIRST);
    let first = files(&bench.target.state_dir);
    bench.write("workspace/SOUL.md", "second soul");
    bench.write("workspace/notes/new.md", "first soul");
    fs::remove_file(bench.state("workspace/notes/gone later.md")).unwrap();
    old.push(SECOND);
    let second = files(&bench.target.state_dir);
    bench.write("agents/main/sessions/a.jsonl", "line 1\nline 2\n");
    old.push(THIRD);
    [(FIRST, first), (SECOND, second), (THIRD, files(&bench.target.state_dir))]
}

fn files(root: &Path) -> Files {
    let files = tree(root).into_iter().filter_map(|(path, node)| match node {
        Node::File { content, .. } => Some((path, content)),
        _ => None,
    });
    files.collect()
}

/// Everything that 0.1.x has stored.
fn stored(bench: &Bench) -> Files {
    let mut files = files(&bench.repository());
    files.retain(|path, _| [FIRST, SECOND, THIRD].iter().any(|id| path.split('/').next() == Some(id)));
    files
}

fn listed(bench: &Bench) -> ListReport {
    bench.run(list::list(&bench.target, &Operation::default())).unwrap()
}

fn legacy(bench: &Bench) -> Vec<SnapshotInfo> {
    let all = listed(bench).snapshots.into_iter();
    all.filter(|snapshot| snapshot.kind == SnapshotKind::Legacy).collect()
}

fn import(bench: &Bench, accept_plain: bool) -> ImportReport {
    let options = ImportOptions { accept_plain };
    bench.run(import_legacy::import_legacy(&bench.target, options, &Operation::default())).unwrap()
}

fn pull_some(bench: &Bench, snapshot: &str, paths: &[&str]) -> Result<Files> {
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("pulled");
    bench.try_pull_as(&bench.target, snapshot, &to, paths).map(|_| files(&to))
}

fn sql(path: &Path, sql: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

fn value(path: &Path, query: &str) -> String {
    rusqlite::Connection::open(path).unwrap().query_row(query, [], |row| row.get(0)).unwrap()
}

/// The database of an agent, in WAL mode as the gateway has it, with a login.
fn write_agent(bench: &Bench, login: &str, message: &str) {
    let _ = fs::remove_file(bench.state(AGENT));
    let schema = "PRAGMA journal_mode=WAL; CREATE TABLE auth_profile_store(id INTEGER PRIMARY KEY, body TEXT);
        CREATE TABLE messages(body TEXT); CREATE TABLE old(body TEXT)";
    let rows = format!(
        "INSERT INTO old VALUES ('{login}'); DROP TABLE old; INSERT INTO auth_profile_store VALUES (1, '{login}');
         INSERT INTO messages VALUES ('{message}')"
    );
    sql(&bench.state(AGENT), &format!("{schema}; {rows}"));
}

#[test]
fn every_old_snapshot_is_listed_with_its_kind_and_pulled_whole() {
    for encrypt in [true, false] {
        let bench = Bench::new(json!({ "encrypt": encrypt }));
        let history = history(&bench, encrypt);
        let listed = legacy(&bench);
        let found: Vec<_> =
            listed.iter().map(|s| (s.id.as_str(), s.created_at.as_str(), s.complete, s.files)).collect();
        let expected = [
            (THIRD, "2026-01-03T00:00:00Z", true, 5),
            (SECOND, "2026-01-02T00:00:00.5Z", true, 5),
            (FIRST, "2026-01-01T00:00:00Z", true, 5),
        ];
        assert_eq!(found, expected);
        assert_eq!((listed[0].trigger.as_str(), listed[0].host.as_str()), ("unknown", "unknown"));
        for (id, expected) in &history {
            let to = bench.pull(id);
            assert_eq!(files(&to), *expected, "{id}");
            // It keeps no modes: nobody else is shown what is the owner's.
            assert_eq!(fs::metadata(to.join("openclaw.json")).unwrap().mode() & 0o7777, 0o600);
        }
    }
}

#[test]
fn unique_starts_of_ids_find_them_and_nothing_else_does() {
    let bench = Bench::default();
    let history = history(&bench, true);
    assert_eq!(pull_some(&bench, "2026-01-02T00-00-00-5", &[]).unwrap(), history[1].1);
    assert_eq!(pull_some(&bench, &SECOND.to_lowercase(), &[]).unwrap(), history[1].1);
    assert_eq!(code(&pull_some(&bench, "2026-01-0", &[]).unwrap_err()), "NOT_FOUND");
    for text in ["latest", "yesterday", "2026-02-01 12:00", "before-compaction"] {
        let error = pull_some(&bench, text, &[]).unwrap_err();
        assert_eq!(code(&error), "NOT_FOUND", "{text}");
        if text != "before-compaction" {
            assert!(error.to_string().contains(THIRD) && error.to_string().contains("import-legacy"), "{error}");
        }
    }
    let pushed = bench.push().snapshot.unwrap();
    let plan = bench.try_rollback("latest", &[], true).unwrap();
    assert_eq!(plan.snapshot, pushed);
    let report = bench.run(status::status(&bench.target, &StatusOptions::default(), &Operation::default())).unwrap();
    assert_eq!((report.snapshots, report.legacy_snapshots, report.latest.unwrap().id), (1, 3, pushed));
}

#[test]
fn safety_snapshots_of_both_layouts_are_found() {
    let bench = Bench::default();
    history(&bench, true);
    let mut old = OldPlugin::of(&bench);
    bench.write("workspace/SOUL.md", "before a restore");
    let (flat, nested) =
        ("safety-2026-01-04T00-00-00Z", "safety-2026-01-05T00-00-00Z/2026-01-05T00-00-01-000Z-01234567");
    old.push(flat);
    old.push(nested);
    for id in [flat, nested] {
        let info = legacy(&bench).into_iter().find(|snapshot| snapshot.id == id).unwrap();
        assert_eq!((info.trigger.as_str(), info.complete), ("before_rollback", true));
        assert_eq!(pull_some(&bench, id, &[]).unwrap()["workspace/SOUL.md"], b"before a restore");
    }
}

/// More pushes than `keepSnapshots`, and 0.1.x has removed the base that the newest snapshot needs.
#[test]
fn what_was_pruned_is_named_before_anything_is_touched_and_the_rest_can_be_had() {
    let bench = Bench::default();
    let history = history(&bench, true);
    OldPlugin::of(&bench).prune(FIRST);
    let listed = legacy(&bench);
    assert_eq!(listed.iter().map(|s| (s.complete, s.exceptions)).collect::<Vec<_>>(), [(false, 1), (false, 2)]);
    let before = bench.tree();
    bench.write("workspace/SOUL.md", "today");
    let today = bench.tree();
    for result in [
        pull_some(&bench, THIRD, &[]).map(drop),
        bench.try_rollback(SECOND, &[], true).map(drop),
        bench.try_rollback(SECOND, &[], false).map(drop),
    ] {
        let error = result.unwrap_err();
        assert_eq!(code(&error), "NOT_FOUND");
    }
    // The configuration is as it was, so that only the transcript is lacking.
    let error = bench.try_rollback(SECOND, &[], false).unwrap_err();
    assert!(error.to_string().contains("1 file: agents/main/sessions/a.jsonl"), "{error}");
    let error = pull_some(&bench, SECOND, &[]).unwrap_err();
    assert!(error.to_string().contains("2 files: agents/main/sessions/a.jsonl, openclaw.json"), "{error}");
    assert_same(&bench.tree(), &today);
    assert!(listed_ids(&bench).iter().all(|id| !id.starts_with("safety")), "nothing came of the rollback");

    let some = pull_some(&bench, THIRD, &["workspace", "agents"]).unwrap();
    assert_eq!(some.len(), 4);
    bench.try_rollback(THIRD, &["workspace/SOUL.md"], false).unwrap();
    assert_eq!(files(&bench.target.state_dir), history[2].1);
    assert_eq!(before.len(), bench.tree().len());
}

fn listed_ids(bench: &Bench) -> Vec<String> {
    listed(bench).snapshots.into_iter().map(|snapshot| snapshot.id).collect()
}

#[test]
fn content_is_found_by_its_hash_also_under_another_name_and_in_a_newer_snapshot() {
    let bench = Bench::default();
    let history = history(&bench, true);
    let repository = bench.repository();
    // "first soul" is also the content of the second snapshot's new.md.
    fs::remove_file(repository.join(FIRST).join("workspace/SOUL.md")).unwrap();
    assert_eq!(pull_some(&bench, FIRST, &[]).unwrap(), history[0].1);
    // Of two objects with the content that is wanted, the sound one is taken.
    OldPlugin::of(&bench).put(&format!("{FIRST}/workspace/SOUL.md"), b"damaged");
    assert_eq!(pull_some(&bench, FIRST, &[]).unwrap(), history[0].1);
}

#[test]
fn a_rollback_brings_back_what_0_1_x_kept_and_leaves_alone_what_it_did_not() {
    let bench = Bench::default();
    let history = history(&bench, true);
    let executable = bench.state("workspace/notes/new.md");
    fs::set_permissions(&executable, fs::Permissions::from_mode(0o755)).unwrap();
    bench.write("workspace/added later.md", "new");
    bench.write("workspace/project/Cargo.lock", "locked");
    bench.write("credentials/login", "mine");
    bench.write("workspace/.env", "MINE=1");
    bench.write("memory/notes.md", "kept by this version alone");
    fs::create_dir(bench.state("workspace/empty directory")).unwrap();
    symlink("SOUL.md", bench.state("workspace/link")).unwrap();
    sql(&bench.state("state/openclaw.sqlite"), "CREATE TABLE t(a); INSERT INTO t VALUES ('today')");
    write_agent(&bench, "my login", "today");
    let today = bench.tree();

    let plan = bench.try_rollback(SECOND, &[], true).unwrap();
    assert_same(&bench.tree(), &today);
    assert_eq!(plan.restored, ["agents/main/sessions/a.jsonl"]);
    assert_eq!(plan.deleted, ["workspace/added later.md"]);
    assert!(plan.warnings.iter().any(|warning| warning.contains("nothing authenticates")), "{:?}", plan.warnings);

    let report = bench.rollback(SECOND);
    assert_eq!((&report.restored, &report.deleted), (&plan.restored, &plan.deleted));
    let now = files(&bench.target.state_dir);
    for (path, content) in &history[1].1 {
        assert_eq!(now.get(path), Some(content), "{path}");
    }
    let mut expected = today.clone();
    expected.remove("workspace/added later.md");
    let transcript = "agents/main/sessions/a.jsonl";
    expected.insert(transcript.into(), bench.tree()[transcript].clone());
    assert_same(&bench.tree(), &expected);
    // And back again.
    bench.rollback(&report.safety_snapshot.unwrap());
    assert_same(&bench.tree(), &today);
}

#[test]
fn a_rollback_that_was_prepared_under_a_gateway_is_applied() {
    let bench = Bench::default();
    bench.write("workspace/SOUL.md", "first");
    write_agent(&bench, "old login", "old message");
    OldPlugin::of(&bench).push(FIRST);
    bench.write("workspace/SOUL.md", "second");
    write_agent(&bench, "my login", "today");
    let mut gateway = common::Gateway::open(&bench.state(AGENT));
    assert_eq!(gateway.ask("SELECT body FROM messages"), "[('today',)]");
    let operation = Operation::default();
    let options = RollbackOptions { snapshot: FIRST.into(), paths: Vec::new(), plan_only: false, partial: false };
    let prepared = bench.run(rollback::prepare(&bench.target, options, &operation)).unwrap();
    assert_eq!(prepared.restored, [AGENT, "workspace/SOUL.md"]);
    assert_eq!(fs::read_to_string(bench.state("workspace/SOUL.md")).unwrap(), "second");
    let applied = bench.run(rollback::apply_prepared(&bench.target, &operation)).unwrap().unwrap();
    assert_eq!(applied.snapshot, FIRST);
    assert_eq!(gateway.ask("SELECT body FROM messages"), "[('old message',)]");
    assert_eq!(gateway.ask("SELECT body FROM auth_profile_store"), "[('my login',)]");
    assert_eq!(fs::read_to_string(bench.state("workspace/SOUL.md")).unwrap(), "first");
}

/// 0.1.x uploaded `openclaw-agent.sqlite` with the auth profiles in it.
#[test]
fn no_credential_of_an_old_snapshot_comes_back_and_this_machines_own_stay() {
    let bench = Bench::default();
    write_agent(&bench, SECRET, "old message");
    bench.write("agents/main/agent/codex-home/auth.json", SECRET);
    bench.write("workspace/.env", SECRET);
    OldPlugin::of(&bench).push(FIRST);
    let holds_secret = |root: &Path| {
        let found: Vec<String> = (files(root).into_iter())
            .filter(|(_, content)| content.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()))
            .map(|(path, _)| path)
            .collect();
        found
    };
    let pulled = bench.pull(FIRST);
    assert_eq!(holds_secret(&pulled), Vec::<String>::new());
    assert_eq!(value(&pulled.join(AGENT), "SELECT body FROM messages"), "old message");
    assert_eq!(fs::metadata(pulled.join(AGENT)).unwrap().mode() & 0o7777, 0o600);

    write_agent(&bench, "my login", "today");
    bench.write("agents/main/agent/codex-home/auth.json", "my own");
    bench.write("workspace/.env", "MINE=1");
    bench.rollback(FIRST);
    assert_eq!(value(&bench.state(AGENT), "SELECT body FROM messages"), "old message");
    assert_eq!(value(&bench.state(AGENT), "SELECT body FROM auth_profile_store"), "my login");
    assert_eq!(fs::read_to_string(bench.state("workspace/.env")).unwrap(), "MINE=1");
    assert_eq!(holds_secret(&bench.target.state_dir), Vec::<String>::new());

    // A machine that has none of its own gets none.
    let other = bench.other_machine("other");
    let options = RollbackOptions { snapshot: FIRST.into(), paths: Vec::new(), plan_only: false, partial: false };
    bench.run(rollback::rollback(&other, options, &Operation::default())).unwrap();
    assert_eq!(holds_secret(&other.state_dir), Vec::<String>::new());
    assert_eq!(value(&other.state_dir.join(AGENT), "SELECT body FROM messages"), "old message");

    let snapshot = &import(&bench, false).imported[0].snapshot;
    let pulled = bench.pull(snapshot);
    assert_eq!(holds_secret(&pulled), Vec::<String>::new());
    assert_eq!(value(&pulled.join(AGENT), "SELECT body FROM messages"), "old message");
}

#[test]
fn an_empty_machine_takes_no_old_snapshot_unasked_and_says_which_there_are() {
    let bench = Bench::default();
    history(&bench, true);
    let fresh = bench.other_machine("fresh");
    let error = bench.run(rollback::restore_if_empty(&fresh, &Operation::default())).unwrap_err();
    assert_eq!(code(&error), "NOT_FOUND");
    assert!(error.to_string().contains(THIRD), "{error}");
    assert_eq!(files(&fresh.state_dir), Files::new());

    bench.write("workspace/SOUL.md", "today");
    let pushed = bench.push().snapshot.unwrap();
    let report = bench.run(rollback::restore_if_empty(&fresh, &Operation::default())).unwrap().unwrap();
    assert_eq!(report.snapshot, pushed);
}

#[test]
fn an_encrypted_repository_takes_nothing_plain_unless_the_owner_says_so_in_an_import() {
    let bench = Bench::default();
    let history = history(&bench, false);
    bench.write("workspace/SOUL.md", "today");
    let today = bench.tree();
    for result in [pull_some(&bench, THIRD, &[]).map(drop), bench.try_rollback(THIRD, &[], false).map(drop)] {
        let error = result.unwrap_err();
        assert_eq!(code(&error), "CORRUPT");
        assert!(error.to_string().contains("not encrypted") && error.to_string().contains("--accept-plain"), "{error}");
    }
    assert_same(&bench.tree(), &today);
    let refused = import(&bench, false);
    assert_eq!((refused.imported.len(), refused.skipped.len()), (0, 3));
    assert!(refused.skipped[0].reason.contains("not encrypted"), "{:?}", refused.skipped);
    let accepted = import(&bench, true);
    assert_eq!((accepted.imported.len(), accepted.skipped.len()), (3, 0));
    for (imported, (id, expected)) in accepted.imported.iter().zip(&history) {
        assert_eq!(imported.from, *id);
        assert_eq!(files(&bench.pull(&imported.snapshot)), *expected);
    }
}

/// Somebody who can write to the bucket and has no key.
#[test]
fn a_forged_or_damaged_object_changes_nothing() {
    let bench = Bench::default();
    history(&bench, true);
    bench.write("workspace/SOUL.md", "today");
    bench.write("agents/main/sessions/a.jsonl", "today");
    let today = bench.tree();
    let repository = bench.repository();
    let soul = repository.join(SECOND).join("workspace/SOUL.md");
    let sound = fs::read(&soul).unwrap();
    let transcript = fs::read(repository.join(THIRD).join("agents/main/sessions/a.jsonl")).unwrap();
    let mut flipped = sound.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [flipped, sound[..sound.len() - 1].to_vec(), b"evil".to_vec(), transcript, Vec::new()] {
        fs::write(&soul, damaged).unwrap();
        for result in [bench.try_rollback(THIRD, &[], false).map(drop), pull_some(&bench, THIRD, &[]).map(drop)] {
            let error = result.unwrap_err();
            assert_eq!(
                (code(&error), error.context().path.as_deref()),
                ("CORRUPT", Some("workspace/SOUL.md")),
                "{error}"
            );
            assert!(error.to_string().contains("1 file: workspace/SOUL.md"), "{error}");
        }
        assert_same(&bench.tree(), &today);
    }
    fs::write(&soul, sound).unwrap();
    bench.rollback(THIRD);
}

#[test]
fn another_application_key_is_told_from_damage() {
    let bench = Bench::default();
    history(&bench, true);
    let other = Bench::new(json!({ "applicationKey": "K005-another-key" }));
    let target = Target { endpoint: bench.target.endpoint.clone(), ..other.target.clone() };
    let to = other.root.path().join("pulled");
    let error = other.try_pull_as(&target, THIRD, &to, &[]).unwrap_err();
    assert_eq!(code(&error), "WRONG_KEY", "{error}");
    assert!(error.to_string().contains("applicationKey") && !to.exists(), "{error}");
}

#[test]
fn a_manifest_with_a_path_that_leads_elsewhere_is_refused_as_a_whole() {
    let bench = Bench::default();
    let old = OldPlugin::of(&bench);
    let hash = sha256(b"evil");
    let evil_paths: [&[&str]; 5] = [
        &["../outside"],
        &["/tmp/openclaw-b2-backup-test-outside"],
        &["workspace/../../outside"],
        &["workspace/a", "workspace/a/b"],
        &["workspace//a"],
    ];
    for (number, paths) in evil_paths.iter().enumerate() {
        let id = format!("2026-01-01T00-00-0{number}Z");
        let entries = paths.iter().map(|path| ((*path).to_owned(), json!({ "hash": hash, "size": 4 })));
        let manifest = json!({ "version": 1, "files": entries.collect::<serde_json::Map<_, _>>() });
        old.put_raw(&format!("{id}/manifest.json"), manifest.to_string().as_bytes());
        old.put_raw(&format!("{id}/workspace/a"), &encrypt(b"evil", "K005-key-of-a-test"));
        for result in [pull_some(&bench, &id, &[]).map(drop), bench.try_rollback(&id, &[], false).map(drop)] {
            assert_eq!(code(&result.unwrap_err()), "UNSAFE_PATH", "{paths:?}");
        }
    }
    let report = import(&bench, true);
    assert_eq!((report.imported.len(), report.skipped.len()), (0, 5));
    assert!(!bench.root.path().join("outside").exists());
    assert!(!Path::new("/tmp/openclaw-b2-backup-test-outside").exists());
    assert_eq!(files(&bench.target.state_dir), Files::new());
}

#[test]
fn what_is_no_manifest_is_listed_as_unreadable() {
    let bench = Bench::default();
    history(&bench, true);
    OldPlugin::of(&bench).put_raw(&format!("{SECOND}/manifest.json"), b"{ \"version\": 1, \"files\": ");
    let report = listed(&bench);
    assert_eq!(report.snapshots.len(), 2);
    assert_eq!(report.unreadable.len(), 1);
    assert_eq!(report.unreadable[0].path, SECOND);
    assert_eq!(code(&pull_some(&bench, SECOND, &[]).unwrap_err()), "CORRUPT");
}

#[test]
fn nothing_of_0_1_x_is_ever_removed_or_counted() {
    let bench = Bench::new(json!({ "keepSnapshots": 1 }));
    history(&bench, true);
    let before = stored(&bench);
    assert!(before.len() > 8);
    for round in 0..3 {
        bench.write("workspace/SOUL.md", format!("round {round}"));
        assert_eq!(bench.push().warnings, Vec::<String>::new());
    }
    import(&bench, false);
    bench.write("workspace/SOUL.md", "last");
    bench.push();
    bench.prune_now();
    assert_eq!(stored(&bench), before);
    assert_eq!(listed_ids(&bench).len(), 4, "one of this version, three of 0.1.x");
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn an_import_makes_each_a_snapshot_of_today_with_its_time_once() {
    let bench = Bench::default();
    let history = history(&bench, true);
    let before = stored(&bench);
    let state = bench.tree();
    let first = import(&bench, false);
    assert_eq!((first.imported.len(), first.present, &first.skipped[..]), (3, 0, &[][..]));
    for (imported, (id, expected)) in first.imported.iter().zip(&history) {
        assert_eq!(imported.from, *id);
        assert_eq!(imported.snapshot[..10], id[..10]);
        assert_eq!(files(&bench.pull(&imported.snapshot)), *expected, "{id}");
    }
    let newest = &first.imported[2];
    let info = listed(&bench).snapshots.into_iter().find(|snapshot| snapshot.id == newest.snapshot).unwrap();
    assert_eq!((info.kind, info.trigger.as_str(), info.complete), (SnapshotKind::Regular, "import", true));
    assert_eq!(info.created_at, "2026-01-03T00:00:00Z");
    assert_eq!(bench.try_rollback("latest", &[], true).unwrap().snapshot, newest.snapshot);

    let again = import(&bench, false);
    assert_eq!((again.imported.len(), again.present), (0, 3));
    assert_eq!(stored(&bench), before);
    assert_same(&bench.tree(), &state);
    assert!(!bench.state("b2-backup/import").exists());
    // A push right after it finds nearly everything stored.
    assert!(bench.push().uploaded_bytes < 4000);
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn an_import_keeps_safety_snapshots_as_such() {
    let bench = Bench::default();
    bench.write("workspace/SOUL.md", "before a restore");
    OldPlugin::of(&bench).push("safety-2026-01-04T00-00-00Z");
    let report = import(&bench, false);
    assert!(report.imported[0].snapshot.starts_with("safety-2026-01-04T00-00-00Z-"));
    let kinds: Vec<_> = listed(&bench).snapshots.into_iter().map(|s| (s.kind, s.trigger)).collect();
    let both = [SnapshotKind::Safety, SnapshotKind::Legacy].map(|kind| (kind, "before_rollback".to_owned()));
    assert!(both.iter().all(|one| kinds.contains(one)) && kinds.len() == 2, "{kinds:?}");
}

#[test]
fn an_import_names_what_it_leaves_out_and_takes_it_when_it_can() {
    let bench = Bench::default();
    let history = history(&bench, true);
    let soul = bench.repository().join(SECOND).join("workspace/SOUL.md");
    let sound = fs::read(&soul).unwrap();
    fs::write(&soul, [&sound[..], b"x"].concat()).unwrap();
    bench.write("workspace/SOUL.md", "of the future");
    OldPlugin::of(&bench).push("2999-01-01T00-00-00Z");
    let report = import(&bench, false);
    assert_eq!(report.imported.iter().map(|one| one.from.as_str()).collect::<Vec<_>>(), [FIRST]);
    let skipped: Vec<_> = report.skipped.iter().map(|one| one.path.as_str()).collect();
    assert_eq!(skipped, [SECOND, THIRD, "2999-01-01T00-00-00Z"]);
    assert!(report.skipped[0].reason.contains("workspace/SOUL.md"), "{:?}", report.skipped);
    assert!(report.skipped[2].reason.contains("future"), "{:?}", report.skipped);
    fs::write(&soul, sound).unwrap();
    let report = import(&bench, false);
    assert_eq!((report.imported.len(), report.present), (2, 1));
    assert_eq!(files(&bench.pull(&report.imported[1].snapshot)), history[2].1);
}

#[test]
fn an_import_that_was_cancelled_goes_on_where_it_was() {
    let bench = Bench::default();
    let history = history(&bench, true);
    let operation = Operation::default();
    // Cancelled as soon as the second snapshot is being fetched.
    let downloads = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let cancelling = {
        let (token, repository) = (operation.cancel.clone(), bench.repository());
        let is_committed = move || {
            let folders = fs::read_dir(&repository).into_iter().flatten().flatten();
            folders.map(|folder| folder.file_name()).any(|name| {
                let name = name.to_string_lossy();
                name.starts_with("2026-01-01") && name != FIRST
            })
        };
        Operation {
            on_progress: Some(std::sync::Arc::new(move |_| {
                downloads.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if is_committed() {
                    token.cancel();
                }
            })),
            ..operation.clone()
        }
    };
    bench.write("workspace/slow", vec![7; 200_000]);
    let outcome = bench.run(import_legacy::import_legacy(&bench.target, ImportOptions::default(), &cancelling));
    assert!(!bench.state("b2-backup/import").exists());
    let done = match outcome {
        Err(error) => {
            assert_eq!(code(&error), "CANCELLED");
            listed_ids(&bench).len() - 3
        }
        // It was faster than its own progress.
        Ok(report) => report.imported.len(),
    };
    assert!(done >= 1);
    let report = import(&bench, false);
    assert_eq!((report.imported.len() + report.present as usize, report.present as usize), (3, done));
    for imported in &report.imported {
        let (_, expected) = history.iter().find(|(id, _)| *id == imported.from).unwrap();
        assert_eq!(files(&bench.pull(&imported.snapshot)), *expected);
    }
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn a_plain_copy_that_a_crash_left_is_removed_by_the_next_command() {
    let bench = Bench::default();
    bench.write("b2-backup/import/agents/main/agent/openclaw-agent.sqlite", SECRET);
    bench.write("workspace/SOUL.md", "today");
    bench.push();
    assert!(!bench.state("b2-backup/import").exists());
}

/// The state of 0.1.x's time had no database of the gateway's, and its own files are not the owner's.
#[test]
fn what_0_1_x_kept_for_itself_stays_out_of_snapshots() {
    let bench = Bench::default();
    bench.write("workspace/SOUL.md", "today");
    bench.write(".b2-backup-manifest.json", "{}");
    bench.write(".b2-backup-push.lock/owner.json", "{}");
    let pulled = bench.pull(&bench.push().snapshot.unwrap());
    assert_eq!(files(&pulled).into_keys().collect::<Vec<_>>(), ["workspace/SOUL.md"]);
}

#[test]
fn two_snapshots_of_0_1_x_are_compared_with_each_other_and_with_today() {
    let bench = Bench::default();
    history(&bench, true);
    let changes = |to: Option<&str>| {
        let operation = Operation::default();
        let changes = bench.run(diff::diff(&bench.target, FIRST, to, &operation)).unwrap().changes;
        changes.into_iter().map(|change| format!("{} {}", change.kind, change.path)).collect::<Vec<_>>()
    };
    let between =
        ["removed workspace/notes/gone later.md", "added workspace/notes/new.md", "modified workspace/SOUL.md"];
    let mut expected = between.map(str::to_owned).to_vec();
    expected.sort_by_key(|line| line.split_once(' ').unwrap().1.to_owned());
    assert_eq!(changes(Some(SECOND)), expected);
    expected.insert(0, "modified agents/main/sessions/a.jsonl".into());
    assert_eq!(changes(None), expected);
}

/// A 600 MB file took 0.1.x 3.7 GB of memory. Here it comes in pieces of 8 MiB; two show that they fit together.
#[test]
#[ignore = "slow; npm test runs it"]
fn a_file_of_several_pieces_is_restored() {
    let bench = Bench::new(json!({ "encrypt": false }));
    let mut content = vec![0; (8 << 20) + 100_003];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    for (id, encrypt) in [(FIRST, true), (SECOND, false)] {
        bench.write("workspace/large", &content);
        OldPlugin::of(&bench).encrypting(encrypt).push(id);
        assert!(fs::read(bench.pull(id).join("workspace/large")).unwrap() == content);
        content.reverse();
    }
}
