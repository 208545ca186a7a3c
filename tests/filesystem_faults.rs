//! Every call of `push`, `pull` and `rollback` that changes a file fails in turn, or is the last of its process: those of
//! SQLite, too.
//!
//! The commands run in a process of their own under `common/faults.c`, which sees system calls, so that it does not matter
//! who makes them. What a power cut does to bytes that were never synced is not shown here.
//!
//! `FAULTS=all cargo test --test filesystem_faults -- --ignored --nocapture` fails each call in every way; the normal run
//! takes some calls.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::process::{self, Task};
use common::{Bench, Node, Tree, assert_same, tree};
use openclaw_b2_backup::commands::rollback;

/// What a pull that is under way has in its directory.
const PARTIAL: &str = ".openclaw-b2-backup-partial";
const MOVING: &str = ".openclaw-b2-backup-moving";

#[test]
#[ignore = "the process whose calls the other tests fail"]
fn the_faulty_command() {
    process::perform();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Done,
    Failed,
    Crashed,
}

/// What a command runs on, how it looked at the start, and what must come of it.
struct Stage {
    bench: Bench,
    /// The whole of it, to begin again from.
    copy: tempfile::TempDir,
    /// The snapshot that is restored.
    first: String,
    models: BTreeMap<String, Tree>,
    old: Tree,
    library: PathBuf,
}

fn database(path: &Path, sql: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

const DATABASES: [&str; 2] = ["state/openclaw.sqlite", "memory/notes.sqlite"];

impl Stage {
    fn new() -> Self {
        let bench = Bench::new(serde_json::json!({ "encrypt": false }));
        for number in 0..6 {
            bench.write(&format!("workspace/kept/{}/{number}", number % 2), format!("new state, {number}"));
        }
        bench.write("workspace/shape", "a file");
        bench.write("workspace/folder/deep/er", "deep");
        fs::set_permissions(bench.state("workspace/folder"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("kept/0", bench.state("workspace/link")).unwrap();
        for path in DATABASES {
            let rows = "CREATE TABLE t(x); INSERT INTO t VALUES ('new state'), (hex(randomblob(6000)))";
            let secrets = "CREATE TABLE auth_profile_store(x); INSERT INTO auth_profile_store VALUES ('secret')";
            database(&bench.state(path), &format!("{rows}; {secrets}"));
        }
        let first = bench.push().snapshot.unwrap();
        let mut models = BTreeMap::from([(first.clone(), observed(&bench.target.state_dir))]);
        // Away from it in every way.
        fs::remove_file(bench.state("workspace/kept/0/0")).unwrap();
        bench.write("workspace/kept/1/1", "old state");
        bench.write("workspace/planted/file", "only in the old state");
        fs::remove_file(bench.state("workspace/shape")).unwrap();
        bench.write("workspace/shape/now a directory", "old state");
        fs::remove_dir_all(bench.state("workspace/folder")).unwrap();
        bench.write("workspace/folder", "a file");
        database(&bench.state(DATABASES[0]), "UPDATE t SET x = 'old state' WHERE x = 'new state'");
        fs::remove_file(bench.state(DATABASES[1])).unwrap();
        let old = observed(&bench.target.state_dir);
        models.insert("later".into(), old.clone());
        fs::create_dir(bench.root.path().join("tmp")).unwrap();
        let copy = tempfile::tempdir().unwrap();
        let library = process::faults(copy.path());
        let stage = Self { bench, copy, first, models, old, library };
        stage.copy_all(stage.bench.root.path(), &stage.copy.path().join("all"));
        stage
    }

    fn copy_all(&self, from: &Path, to: &Path) {
        let _ = self;
        fs::create_dir_all(to).unwrap();
        assert!(Command::new("cp").arg("-a").arg(from.join(".")).arg(to).status().unwrap().success());
    }

    /// Begins again.
    fn reset(&self) {
        for entry in fs::read_dir(self.bench.root.path()).unwrap() {
            let path = entry.unwrap().path();
            fs::remove_dir_all(&path).unwrap();
        }
        self.copy_all(&self.copy.path().join("all"), self.bench.root.path());
    }

    fn pulled(&self) -> PathBuf {
        self.bench.root.path().join("pulled/here")
    }

    /// Runs a command whose call number `at` ends as `how` says; 0 is none. Gives also what it said.
    fn run(&self, verb: &str, at: usize, how: &str) -> (Ending, String) {
        let task = Task::new(&self.bench, verb).of(&self.first).to(self.pulled());
        let output = task
            .command("the_faulty_command")
            .env("LD_PRELOAD", &self.library)
            .env("FAULT_ROOTS", self.bench.root.path())
            .env("FAULT_LOG", self.log())
            .env("FAULT_AT", at.to_string())
            .env("FAULT_HOW", how)
            .env("TMPDIR", self.bench.root.path().join("tmp"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let ending = match output.status.code() {
            Some(0) => Ending::Done,
            Some(process::FAILED) => Ending::Failed,
            Some(137) => Ending::Crashed,
            _ => panic!("{verb}: {}: {said}", output.status),
        };
        (ending, said)
    }

    fn log(&self) -> PathBuf {
        self.copy.path().join("log")
    }

    /// The calls that a command makes when none fails.
    fn calls(&self, verb: &str) -> Vec<String> {
        self.reset();
        let _ = fs::remove_file(self.log());
        assert_eq!(self.run(verb, 0, "EIO"), (Ending::Done, String::new()), "{verb}");
        let root = format!("{}/", self.bench.root.path().display());
        fs::read_to_string(self.log()).unwrap().lines().map(|line| line.replace(&root, "")).collect()
    }

    /// Fails one call, or has it be the last, and looks at what is left.
    fn check(&self, verb: &str, at: usize, how: &str) -> Ending {
        self.reset();
        let (ending, said) = self.run(verb, at, how);
        let crashed = matches!(how, "before" | "after" | "torn");
        assert!(crashed || ending != Ending::Crashed, "{said}");
        assert!(!said.contains("defect") && !said.contains("panicked"), "{said}");
        let state = &self.bench.target.state_dir;
        let new = &self.models[&self.first];
        let mut expected = self.old.clone();
        if verb == "rollback" {
            // While the disk goes on failing nothing can be taken back; the next command does.
            if crashed || how.ends_with('+') {
                self.bench.run(rollback::recover(&self.bench.target)).unwrap();
            }
            if observed(state).get("workspace/shape") == new.get("workspace/shape") {
                expected.clone_from(new);
            }
            assert!(ending != Ending::Done || expected == *new, "done, but nothing was done");
        }
        assert_same(&observed(state), &expected);
        if verb == "pull" {
            let to = self.pulled();
            let left = fs::read_dir(&to).into_iter().flatten().count();
            assert!(
                ending != Ending::Failed || how.ends_with('+') || left == 0,
                "{said} leaves {:?}",
                tree(&to).keys()
            );
            let names: Vec<_> =
                fs::read_dir(&to).into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
            let is_whole = names.iter().any(|name| name == "workspace") && !names.iter().any(|name| name == MOVING);
            if ending == Ending::Done || ending == Ending::Crashed && is_whole {
                // An empty directory; its removal is the last thing that a pull does.
                let _ = fs::remove_dir(to.join(PARTIAL));
            } else if ending != Ending::Done {
                self.bench.try_pull_as(&self.bench.target, &self.first, &to, &[]).unwrap();
            }
            assert_same(&observed(&to), new);
        }
        // The next run needs no repair.
        let report = self.bench.push();
        assert_eq!((report.warnings, report.exceptions), (Vec::new(), Vec::new()));
        assert_same(&observed(state), &expected);
        let listed = self.bench.list();
        for id in &listed {
            let pulled = self.bench.pull(id);
            if *id == self.first {
                assert_same(&observed(&pulled), new);
            } else if id.starts_with("safety-") {
                assert_same(&observed(&pulled), &self.old);
            } else {
                let found = observed(&pulled);
                assert_same(&found, if found == *new { new } else { &self.old });
            }
            fs::remove_dir_all(pulled).unwrap();
        }
        assert_same(&observed(&self.bench.pull("latest")), &expected);
        let has_safety = listed.iter().any(|id| id.starts_with("safety-"));
        assert!(verb != "rollback" || expected != *new || has_safety, "no safety snapshot: {listed:?}");
        assert_eq!(self.bench.problems(), Vec::<String>::new());
        assert_eq!(self.plain_copies(), Vec::<PathBuf>::new());
        assert!(!self.bench.state("b2-backup/rollback").exists());
        ending
    }

    /// Copies of databases in the product's own folder and in the folder for temporary files.
    fn plain_copies(&self) -> Vec<PathBuf> {
        let folders = [self.bench.state("b2-backup"), self.bench.root.path().join("tmp")];
        let files = folders.iter().flat_map(|folder| walkdir::WalkDir::new(folder).into_iter().flatten());
        let files = files.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path);
        files
            .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("cache.sqlite"))
            .filter(|path| fs::read(path).is_ok_and(|content| content.starts_with(b"SQLite format 3\0")))
            .collect()
    }
}

/// The tree, with rows in place of databases and without what stays home.
fn observed(root: &Path) -> Tree {
    let mut found = tree(root);
    found.retain(|path, _| !["-wal", "-shm", "-journal"].iter().any(|side| path.ends_with(side)));
    for (path, node) in &mut found {
        if let Node::File { content, mtime, .. } = node
            && path.ends_with(".sqlite")
        {
            let database = rusqlite::Connection::open(root.join(path)).unwrap();
            let sound: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
            assert_eq!(sound, "ok");
            let rows = "SELECT coalesce(group_concat(x, ','), '') FROM t";
            *content = database.query_row(rows, [], |row| row.get::<_, String>(0)).unwrap().into_bytes();
            *mtime = 0;
        }
    }
    found
}

const WAYS: [&str; 7] = ["ENOSPC", "EIO", "EACCES", "ENOSPC+", "before", "after", "torn"];

fn fail_every_call(verb: &str) {
    let stage = Stage::new();
    let calls = stage.calls(verb);
    let all = std::env::var("FAULTS").is_ok_and(|which| which == "all");
    let mut by_ending: BTreeMap<String, usize> = BTreeMap::new();
    for at in 1..=calls.len() {
        for (number, how) in WAYS.into_iter().enumerate() {
            // In the normal run one call in five, each in another way.
            if !all && (at % 5 != 0 || (at / 5) % WAYS.len() != number) {
                continue;
            }
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stage.check(verb, at, how)));
            match checked {
                Ok(ending) => *by_ending.entry(format!("{ending:?}")).or_default() += 1,
                Err(panic) => {
                    eprintln!("{verb}: call {at} of {} ends with {how}: {}", calls.len(), calls[at - 1]);
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
    eprintln!("{verb}: {} calls; {by_ending:?}", calls.len());
    assert!(by_ending.len() == 3, "{by_ending:?}");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn whichever_call_of_a_push_fails_the_state_stays_and_the_next_push_works() {
    fail_every_call("push");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn whichever_call_of_a_pull_fails_it_leaves_nothing_or_all_of_it() {
    fail_every_call("pull");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn whichever_call_of_a_rollback_fails_the_state_is_the_old_one_or_the_new_one() {
    fail_every_call("rollback");
}
