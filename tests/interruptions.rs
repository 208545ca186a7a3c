//! Commands that end in the middle: by SIGKILL in a process of their own, and by a step of a swap that fails.
//!
//! Killing by time hits few windows. The swap is therefore also brought, by hand, into every state that a kill could
//! leave; and processes are killed at the moment at which something has appeared on the disk.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::process::{self, Task};
use common::{Bench, Gateway, Node, Tree, assert_same, noise, tree};
use openclaw_b2_backup::commands::{Operation, RollbackOptions, rollback};
use openclaw_b2_backup::state::places::Places;
use openclaw_b2_backup::state::private::PrivateFolder;
use openclaw_b2_backup::state::swap::{Attributes, Occasion, Step, Swap, recover};

#[test]
#[ignore = "the process that the other tests kill"]
fn the_interrupted_command() {
    process::perform();
}

fn start(bench: &Bench, verb: &str, snapshot: &str) -> Child {
    Task::new(bench, verb).of(snapshot).command("the_interrupted_command").stderr(Stdio::null()).spawn().unwrap()
}

/// Runs a command and kills it `delay` after `seen` holds, or lets it finish if that comes first. Says whether it was
/// killed.
fn interrupt(bench: &Bench, (verb, snapshot): (&str, &str), seen: impl Fn() -> bool, delay: Duration) -> bool {
    let mut child = start(bench, verb, snapshot);
    let started = Instant::now();
    while !seen() {
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "{verb}: {status}");
            return false;
        }
        assert!(started.elapsed() < Duration::from_mins(2), "{verb} never comes that far");
        std::hint::spin_loop();
    }
    let until = Instant::now() + delay;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
    child.kill().unwrap();
    !child.wait().unwrap().success()
}

const PUSH: (&str, &str) = ("push", "");

/// Evenly spread over 0 to 1 without repeating soon, the same in every run.
fn spread(number: usize) -> f64 {
    (number as f64 * 0.618_033_988_75).fract()
}

fn objects(bench: &Bench, folder: &str) -> (usize, u64) {
    let all = walkdir::WalkDir::new(bench.repository()).into_iter().flatten();
    let all = all.filter(|entry| {
        entry.file_type().is_file() && entry.path().components().any(|part| part.as_os_str() == folder)
    });
    all.filter_map(|entry| entry.metadata().ok()).fold((0, 0), |(count, bytes), meta| (count + 1, bytes + meta.len()))
}

fn database(bench: &Bench, path: &str, sql: &str) {
    let path = bench.state(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// Plain copies of databases, wherever they may lie below the state directory besides the databases themselves.
fn plain_copies(bench: &Bench) -> Vec<PathBuf> {
    let own = bench.state("b2-backup");
    let all = walkdir::WalkDir::new(own).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    all.map(walkdir::DirEntry::into_path)
        .filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with("cache.sqlite"))
        .filter(|path| fs::read(path).is_ok_and(|content| content.starts_with(b"SQLite format 3\0")))
        .collect()
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_killed_push_shows_nothing_and_the_next_sends_only_what_had_not_arrived() {
    const FILES: u64 = 60;
    let populate = |bench: &Bench| {
        for seed in 0..FILES {
            bench.write(&format!("workspace/{seed}.bin"), noise(1 << 20, seed));
        }
        database(bench, "state/openclaw.sqlite", "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(3000000))");
    };
    let plain = || Bench::new(serde_json::json!({ "encrypt": false }));
    let whole = plain();
    populate(&whole);
    let began = Instant::now();
    let single = whole.push().uploaded_bytes;
    let took = began.elapsed();

    let bench = plain();
    populate(&bench);
    let mut killed = 0;
    for number in 0..14 {
        let _ = fs::remove_dir_all(bench.repository());
        let _ = fs::remove_dir_all(bench.state("b2-backup"));
        let at = spread(number);
        let was_killed = match number % 4 {
            // When that many packs have arrived, and a bit later.
            0 | 1 => {
                let packs = number % 5;
                interrupt(&bench, PUSH, || objects(&bench, "packs").0 >= packs, took.mul_f64(at * 0.1))
            }
            2 => interrupt(&bench, PUSH, || objects(&bench, "index").0 > 0, took.mul_f64(at * 0.01)),
            _ => interrupt(&bench, PUSH, || bench.state("b2-backup/tmp").exists(), took.mul_f64(at)),
        };
        killed += usize::from(was_killed);
        let listed = bench.list();
        for id in &listed {
            assert_same(&without_databases(tree(&bench.pull(id))), &without_databases(bench.tree()));
        }
        let (packs, arrived) = objects(&bench, "packs");
        let report = bench.push();
        assert!(plain_copies(&bench).is_empty(), "{:?}", plain_copies(&bench));
        let total = arrived + report.uploaded_bytes;
        eprintln!(
            "{number}: killed {was_killed}, {packs} packs had arrived; both sent {:.2} of one push",
            total as f64 / single as f64
        );
        assert!(total as f64 <= 1.3 * single as f64, "{arrived} + {} bytes, {single} of one", report.uploaded_bytes);
        // Killed after it wrote the manifest and before it remembered that it did: then there are two of the same.
        assert!(bench.list().len() <= listed.len() + 1);
        assert_same(&without_databases(tree(&bench.pull("latest"))), &without_databases(bench.tree()));
        assert_eq!(bench.problems(), Vec::<String>::new());
    }
    assert!(killed >= 5, "only {killed} were killed");
}

fn without_databases(mut tree: Tree) -> Tree {
    tree.retain(|path, _| !path.contains(".sqlite"));
    tree
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_push_that_is_killed_at_any_moment_leaves_nothing_to_repair() {
    let bench = Bench::default();
    database(&bench, "state/openclaw.sqlite", "CREATE TABLE t(x); INSERT INTO t VALUES ('row')");
    bench.write("workspace/first", "first");
    bench.push();
    bench.write("workspace/first", "second");
    let began = Instant::now();
    assert!(start(&bench, "push", "").wait().unwrap().success());
    let took = began.elapsed();
    let mut models = BTreeMap::new();
    bench.list().into_iter().for_each(|id| _ = models.insert(id, bench.tree()));
    let mut killed = 0;
    for number in 0..25 {
        bench.write(&format!("workspace/{}", number % 7), noise(20_000, number as u64));
        database(&bench, "state/openclaw.sqlite", "INSERT INTO t VALUES (randomblob(9000))");
        killed += usize::from(interrupt(&bench, PUSH, || true, took.mul_f64(spread(number))));
        let report = bench.push();
        for id in bench.list() {
            models.entry(id).or_insert_with(|| bench.tree());
        }
        assert!(report.snapshot.is_none_or(|id| models.contains_key(&id)));
        assert!(plain_copies(&bench).is_empty());
    }
    assert!(killed >= 8, "only {killed} were killed");
    for id in bench.list().iter().rev().skip(2) {
        assert_same(&without_databases(tree(&bench.pull(id))), &without_databases(models[id].clone()));
    }
    assert_eq!(bench.problems(), Vec::<String>::new());
}

const ROWS: &str = "SELECT coalesce(group_concat(x, ','), '') FROM t";

/// The state, with rows in place of databases.
fn observed(bench: &Bench) -> Tree {
    let mut found = bench.tree();
    found.retain(|path, _| !["-wal", "-shm", "-journal"].iter().any(|side| path.ends_with(side)));
    for (path, node) in &mut found {
        if let Node::File { content, mtime, .. } = node
            && path.ends_with(".sqlite")
        {
            let open = rusqlite::Connection::open(bench.state(path)).unwrap();
            *content = open.query_row(ROWS, [], |row| row.get::<_, String>(0)).unwrap().into_bytes();
            *mtime = 0;
        }
    }
    found
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_killed_rollback_leaves_the_old_state_or_the_new_one() {
    let bench = Bench::new(serde_json::json!({ "encrypt": false, "keepSnapshots": 100 }));
    let old_files = |bench: &Bench| {
        let _ = fs::remove_dir_all(bench.state("workspace"));
        let _ = fs::remove_dir_all(bench.state("state"));
        for number in 0..120 {
            bench.write(&format!("workspace/kept/{}/{number}", number % 9), format!("new state, {number}"));
        }
        bench.write("workspace/shape", "a file");
        bench.write("workspace/folder/inside/deep", "deep");
        fs::set_permissions(bench.state("workspace/folder"), fs::Permissions::from_mode(0o700)).unwrap();
        database(bench, "state/openclaw.sqlite", "CREATE TABLE t(x); INSERT INTO t VALUES ('new state')");
    };
    old_files(&bench);
    let new = observed(&bench);
    let first = bench.push().snapshot.unwrap();
    let (mut killed, mut finished, mut undone) = (0, 0, 0);
    for number in 0..44 {
        // Away from the snapshot's state in every way.
        old_files(&bench);
        for file in 0..120 {
            match file % 3 {
                0 => fs::remove_file(bench.state(&format!("workspace/kept/{}/{file}", file % 9))).unwrap(),
                1 => bench.write(&format!("workspace/kept/{}/{file}", file % 9), format!("old state, round {number}")),
                _ => bench.write(&format!("workspace/planted/{}/{file}", file % 5), "only in the old state"),
            }
        }
        fs::remove_file(bench.state("workspace/shape")).unwrap();
        bench.write("workspace/shape/now a directory/file", format!("{number}"));
        bench.write("workspace/shape/node_modules/unsaved", format!("unsaved of round {number}"));
        fs::remove_dir_all(bench.state("workspace/folder")).unwrap();
        bench.write("workspace/folder", format!("a file, {number}"));
        database(&bench, "state/openclaw.sqlite", "UPDATE t SET x = 'old state'");
        let old = observed(&bench);
        let safety_before: Vec<String> = bench.list().into_iter().filter(|id| id.starts_with("safety-")).collect();

        let journal = bench.state("b2-backup/rollback/journal.json");
        let was_killed = if number % 4 == 0 {
            interrupt(&bench, ("rollback", &first), || bench.state("b2-backup/rollback").exists(), Duration::ZERO)
        } else {
            let delay = Duration::from_secs_f64(spread(number) * 0.009);
            interrupt(&bench, ("rollback", &first), || journal.exists(), delay)
        };
        killed += usize::from(was_killed);
        // Any command that changes something recovers first.
        let pushed = bench.push();
        assert!(!bench.state("b2-backup/rollback").exists());
        let now = observed(&bench);
        if now.get("workspace/shape") == new.get("workspace/shape") {
            finished += 1;
            assert_same(&now, &new);
            let safety: Vec<String> = bench
                .list()
                .into_iter()
                .filter(|id| id.starts_with("safety-") && !safety_before.contains(id))
                .collect();
            assert_eq!(safety.len(), 1, "{pushed:?}");
            let saved = tree(&bench.pull(&safety[0]));
            let mut expected = without_databases(old);
            expected.retain(|path, _| !path.contains("node_modules"));
            assert_same(&without_databases(saved), &expected);
            let aside = bench.state("b2-backup/set-aside").join(&safety[0]).join("workspace/shape");
            let unsaved = fs::read_to_string(aside.join("node_modules/unsaved")).unwrap();
            assert_eq!(unsaved, format!("unsaved of round {number}"));
        } else {
            undone += 1;
            assert_same(&now, &old);
        }
        assert!(plain_copies(&bench).is_empty());
    }
    eprintln!("{killed} killed; {finished} came out new, {undone} old");
    assert!(killed >= 30 && undone > 0 && finished > 0, "{killed} killed; {finished} new, {undone} old");
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_rollback_killed_under_a_gateway_leaves_the_old_state_or_the_new_one() {
    const DATABASES: [&str; 2] = ["state/openclaw.sqlite", "agents/main/agent/openclaw-agent.sqlite"];
    let bench = Bench::new(serde_json::json!({ "encrypt": false, "keepSnapshots": 100 }));
    for path in DATABASES {
        let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
                    INSERT INTO t SELECT 'new state' FROM n";
        let lease = "CREATE TABLE state_leases(owner TEXT); INSERT INTO state_leases VALUES ('of the first run')";
        database(&bench, path, &format!("PRAGMA journal_mode=WAL; CREATE TABLE t(x); {rows}; {lease}"));
    }
    bench.write("workspace/file", "new state");
    let mut gateways = DATABASES.map(|path| Gateway::open(&bench.state(path)));
    let first = bench.push().snapshot.unwrap();
    let (mut killed, mut finished, mut undone) = (0, 0, 0);
    for number in 0..36 {
        let old = format!("old state {number}");
        for gateway in &mut gateways {
            gateway.ask(&format!("UPDATE t SET x = '{old}'"));
        }
        bench.write("workspace/file", &old);
        bench.write("workspace/planted", &old);
        let options = RollbackOptions { snapshot: first.clone(), paths: Vec::new(), plan_only: false, partial: false };
        bench.run(rollback::prepare(&bench.target, options, &Operation::default())).unwrap();
        let journal = bench.state("b2-backup/rollback/journal.json");
        let delay = Duration::from_secs_f64(spread(number) * 0.03);
        let begun = || number % 4 == 0 || journal.exists();
        killed += usize::from(interrupt(&bench, ("apply", ""), begun, delay));
        for gateway in &mut gateways {
            gateway.ask(&format!("UPDATE state_leases SET owner = 'of run {number}'"));
        }

        let recovered = bench.run(rollback::recover(&bench.target)).unwrap();
        let state = fs::read_to_string(bench.state("workspace/file")).unwrap();
        if state == "new state" {
            finished += 1;
            assert!(recovered.is_none_or(|report| report.outcome == "finished"));
        } else {
            undone += 1;
            assert_eq!(state, old);
            assert_eq!(recovered.unwrap().outcome, "discarded");
        }
        assert_eq!(bench.state("workspace/planted").exists(), state == old);
        for gateway in &mut gateways {
            assert_eq!(
                gateway.ask("SELECT count(*), min(x), max(x) FROM t"),
                format!("[(3000, '{state}', '{state}')]")
            );
            assert_eq!(gateway.ask("SELECT owner FROM state_leases"), format!("[('of run {number}',)]"));
            assert_eq!(gateway.ask("PRAGMA integrity_check"), "[('ok',)]");
        }
        assert!(!bench.state("b2-backup/rollback").exists() && !bench.state("b2-backup/prepared.json").exists());
        assert!(plain_copies(&bench).is_empty());
    }
    eprintln!("{killed} killed; {finished} came out new, {undone} old");
    assert!(killed >= 10 && undone > 0, "{killed} killed; {finished} new, {undone} old");
    assert_eq!(bench.problems(), Vec::<String>::new());
}

/// A state, and a swap that does everything that a swap can do to it.
struct Rig {
    root: tempfile::TempDir,
    steps: Vec<Step>,
}

const SAFETY: &str = "safety-2026-02-19T00-00-00Z-00000000";

fn write(root: &Path, path: &str, content: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

impl Rig {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [
            ("a/changed", "old"),
            ("a/gone", "old"),
            ("a/gone too/deep/er", "old"),
            ("b/file becomes directory", "old"),
            ("b/directory becomes file/x", "old"),
            ("b/directory becomes file/unsaved", "old"),
            ("b/deep/file becomes deep", "old"),
            ("c/database.sqlite", "old"),
            ("c/database.sqlite-wal", "old log"),
            ("c/only its mode", "same"),
        ] {
            write(root.path(), path, content);
        }
        fs::set_permissions(root.path().join("a/gone too"), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(root.path().join("a/changed"), fs::Permissions::from_mode(0o640)).unwrap();
        let attributes = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            let meta = fs::metadata(root.path().join(path)).unwrap();
            Attributes { mode: meta.mode() & 0o7777, mtime: meta.mtime() * 1_000_000_000 + meta.mtime_nsec() }
        };
        let after = |mode| Attributes { mode, mtime: 1_600_000_000_000_000_000 };
        let take = |path: &str, saved| Step::TakeAway { path: path.into(), saved, database: false };
        let remove = |path: &str| Step::RemoveDirectory { path: path.into(), before: attributes(path) };
        let steps = vec![
            take("a/changed", true),
            take("a/gone", true),
            take("a/gone too/deep/er", true),
            take("b/deep/file becomes deep", true),
            take("b/directory becomes file", false),
            take("b/file becomes directory", true),
            // With its log.
            Step::TakeAway { path: "c/database.sqlite".into(), saved: true, database: true },
            remove("a/gone too/deep"),
            remove("a/gone too"),
            Step::MakeDirectory("b/deep/file becomes deep".into()),
            Step::MakeDirectory("b/deep/file becomes deep/er".into()),
            Step::MakeDirectory("b/file becomes directory".into()),
            Step::MakeDirectory("new".into()),
            Step::MakeDirectory("new/empty".into()),
            Step::PutIn("a/changed".into()),
            Step::PutIn("b/deep/file becomes deep/er/file".into()),
            Step::PutIn("b/directory becomes file".into()),
            Step::PutIn("b/file becomes directory/file".into()),
            Step::PutIn("c/database.sqlite".into()),
            Step::PutIn("new/file".into()),
            Step::SetAttributes { path: "new/empty".into(), before: None, after: after(0o500) },
            Step::SetAttributes { path: "new".into(), before: None, after: after(0o750) },
            Step::SetAttributes {
                path: "c/only its mode".into(),
                before: Some(attributes("c/only its mode")),
                after: after(0o4700),
            },
            Step::SetAttributes { path: "a".into(), before: Some(attributes("a")), after: after(0o701) },
        ];
        Self { root, steps }
    }

    fn folder(&self) -> PrivateFolder {
        PrivateFolder::open(self.root.path()).unwrap()
    }

    fn stage(&self) -> Swap {
        let (swap, _) = Swap::prepare(&Places::within(self.root.path()), &self.folder(), &[]).unwrap();
        for step in &self.steps {
            if let Step::PutIn(path) = step {
                write(&swap.staging_of(path), path, "new");
            }
        }
        swap
    }

    fn own(&self, path: &str) -> PathBuf {
        self.root.path().join("b2-backup").join(path)
    }

    fn away(&self, path: &str, saved: bool) -> PathBuf {
        let below = if saved { "rollback/old".into() } else { format!("set-aside/{SAFETY}") };
        self.own(&below).join(path)
    }

    /// What a step does, as a kill right after it leaves it.
    fn perform(&self, step: &Step) {
        let at = |path: &str| self.root.path().join(path);
        match step {
            Step::TakeAway { path, saved, database } => {
                let away = self.away(path, *saved);
                fs::create_dir_all(away.parent().unwrap()).unwrap();
                if *database {
                    fs::rename(at(&format!("{path}-wal")), self.away(&format!("{path}-wal"), *saved)).unwrap();
                }
                fs::rename(at(path), away).unwrap();
            }
            Step::Overwrite(_) => unreachable!("no gateway runs here"),
            Step::MakeDirectory(path) => fs::create_dir(at(path)).unwrap(),
            Step::PutIn(path) => fs::rename(self.own("rollback/new").join(path), at(path)).unwrap(),
            Step::RemoveDirectory { path, .. } => fs::remove_dir(at(path)).unwrap(),
            Step::SetAttributes { path, after, .. } => set(&at(path), *after),
        }
    }

    /// What taking a performed step back does.
    fn take_back(&self, step: &Step) {
        let at = |path: &str| self.root.path().join(path);
        match step {
            Step::TakeAway { path, saved, database } => {
                if *database {
                    fs::rename(self.away(&format!("{path}-wal"), *saved), at(&format!("{path}-wal"))).unwrap();
                }
                fs::rename(self.away(path, *saved), at(path)).unwrap();
            }
            Step::Overwrite(_) => unreachable!("no gateway runs here"),
            Step::MakeDirectory(path) => fs::remove_dir(at(path)).unwrap(),
            Step::PutIn(path) => fs::rename(at(path), self.own("rollback/new").join(path)).unwrap(),
            Step::RemoveDirectory { path, .. } => fs::create_dir(at(path)).unwrap(),
            Step::SetAttributes { .. } => {}
        }
    }

    fn write_journal(&self, undo: bool) {
        let place = serde_json::json!({ "name": "", "directory": self.root.path(), "file": null });
        let volume = serde_json::json!({ "place": place, "isMount": false });
        let journal = serde_json::json!({
            "format": 1, "occasion": occasion(), "undo": undo, "volumes": [volume], "steps": self.steps
        });
        fs::write(self.own("rollback/journal.json"), journal.to_string()).unwrap();
    }

    fn tree(&self) -> Tree {
        tree(self.root.path())
    }

    fn set_aside(&self) -> Tree {
        if !self.own("set-aside").exists() {
            return Tree::new();
        }
        let mut found = tree(&self.own("set-aside"));
        found.retain(|_, node| matches!(node, Node::File { .. }));
        found
    }
}

fn occasion() -> Occasion {
    Occasion { snapshot: "2026-02-19T00-00-00Z-7f3a91c2".into(), safety_snapshot: SAFETY.into(), under_gateway: false }
}

fn set(path: &Path, attributes: Attributes) {
    fs::set_permissions(path, fs::Permissions::from_mode(attributes.mode)).unwrap();
    let time = std::time::UNIX_EPOCH + Duration::from_nanos(attributes.mtime.cast_unsigned());
    fs::File::open(path).unwrap().set_modified(time).unwrap();
}

/// Times of new files, which are written at another moment in each run, do not count.
fn ageless(mut tree: Tree, old: &Tree) -> Tree {
    for (path, node) in &mut tree {
        if let Node::File { mtime, .. } = node
            && old.get(path).is_none_or(|old| !matches!(old, Node::File { mtime: known, .. } if known == mtime))
            && *mtime != 1_600_000_000_000_000_000
        {
            *mtime = 0;
        }
    }
    tree
}

fn new_tree() -> Tree {
    let rig = Rig::new();
    let old = rig.tree();
    let steps = rig.steps.clone();
    rig.stage().apply(occasion(), steps).unwrap();
    ageless(rig.tree(), &old)
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_swap_that_was_interrupted_after_any_step_is_finished() {
    let expected = new_tree();
    assert!(expected.contains_key("b/file becomes directory/file") && !expected.contains_key("a/gone too"));
    for done in 0..=Rig::new().steps.len() {
        let rig = Rig::new();
        let old = rig.tree();
        rig.stage();
        rig.write_journal(false);
        rig.steps[..done].iter().for_each(|step| rig.perform(step));
        recover(rig.root.path(), &rig.folder()).unwrap_or_else(|error| panic!("after {done} steps: {error}"));
        assert_same(&ageless(rig.tree(), &old), &expected);
        assert!(!rig.own("rollback").exists());
        assert_eq!(rig.set_aside().len(), 2, "what is in no snapshot is kept");
        recover(rig.root.path(), &rig.folder()).unwrap();
        assert_same(&ageless(rig.tree(), &old), &expected);
    }
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_swap_that_was_being_taken_back_ends_with_the_old_state() {
    let count = Rig::new().steps.len();
    for done in 0..=count {
        for back in 0..=done {
            let rig = Rig::new();
            let old = rig.tree();
            rig.stage();
            rig.write_journal(true);
            rig.steps[..done].iter().for_each(|step| rig.perform(step));
            rig.steps[done - back..done].iter().rev().for_each(|step| rig.take_back(step));
            recover(rig.root.path(), &rig.folder())
                .unwrap_or_else(|error| panic!("after {done} steps, {back} of them taken back: {error}"));
            assert_same(&rig.tree(), &old);
            assert!(!rig.own("rollback").exists());
            assert!(rig.set_aside().is_empty());
        }
    }
}

/// A start without the disk that a part of the state lies on.
#[test]
fn a_rollback_that_was_interrupted_waits_for_the_disk_that_a_part_of_it_lies_on() {
    let rig = Rig::new();
    rig.stage();
    let disk = rig.root.path().join("disk");
    write(&disk, "notes.md", "old");
    write(&disk, ".b2-backup-rollback/new/workspace/notes.md", "new");
    let volume = |name: &str, directory: &Path| {
        let place = serde_json::json!({ "name": name, "directory": directory, "file": null });
        serde_json::json!({ "place": place, "isMount": false })
    };
    let path = "workspace/notes.md".to_owned();
    let steps = [
        Step::TakeAway { path: path.clone(), saved: true, database: false },
        Step::PutIn(path),
        Step::TakeAway { path: "a/gone".into(), saved: true, database: false },
    ];
    let journal = serde_json::json!({
        "format": 1, "occasion": occasion(), "undo": false, "steps": steps,
        "volumes": [volume("", rig.root.path()), volume("workspace", &disk)],
    });
    fs::write(rig.own("rollback/journal.json"), journal.to_string()).unwrap();
    let unplugged = rig.root.path().join("unplugged");
    fs::rename(&disk, &unplugged).unwrap();
    for is_mount_point in [false, true] {
        if is_mount_point {
            fs::create_dir(&disk).unwrap();
        }
        let error = recover(rig.root.path(), &rig.folder()).unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("disk/.b2-backup-rollback"), "{error}");
        assert!(rig.root.path().join("a/gone").exists(), "nothing is done by half");
    }
    fs::remove_dir(&disk).unwrap();
    fs::rename(&unplugged, &disk).unwrap();
    assert!(recover(rig.root.path(), &rig.folder()).unwrap().unwrap().finished);
    assert_eq!(fs::read_to_string(disk.join("notes.md")).unwrap(), "new");
    assert!(!rig.root.path().join("a/gone").exists() && !disk.join(".b2-backup-rollback").exists());
}

/// Makes a file one that cannot be renamed, not even by root. `None` where that is not possible.
struct Immutable(PathBuf);

impl Immutable {
    fn new(path: &Path) -> Option<Self> {
        let chattr = Command::new("chattr").arg("+i").arg(path).stderr(Stdio::null()).status();
        chattr.is_ok_and(|status| status.success()).then(|| Self(path.to_owned()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let _ = Command::new("chattr").arg("-i").arg(&self.0).status();
    }
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_step_that_fails_anywhere_in_a_swap_leaves_the_old_state() {
    for at in 0..=Rig::new().steps.len() {
        let mut rig = Rig::new();
        write(rig.root.path(), "z/stuck", "cannot be moved");
        let Some(_stuck) = Immutable::new(&rig.root.path().join("z/stuck")) else {
            eprintln!("skipped: no file can be made immutable here");
            return;
        };
        let old = rig.tree();
        let swap = rig.stage();
        rig.steps.insert(at, Step::TakeAway { path: "z/stuck".into(), saved: true, database: false });
        let error = swap.apply(occasion(), rig.steps.clone()).unwrap_err();
        assert!(!error.to_string().contains("taking it back failed"), "at {at}: {error}");
        assert_same(&rig.tree(), &old);
        assert!(!rig.own("rollback").exists());
        assert!(rig.set_aside().is_empty());
        // Neither does one that was interrupted before it came to that step.
        rig.stage();
        rig.write_journal(false);
        rig.steps[..at].iter().for_each(|step| rig.perform(step));
        recover(rig.root.path(), &rig.folder()).unwrap_or_else(|error| panic!("after {at} steps: {error}"));
        assert_same(&rig.tree(), &old);
    }
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_rollback_with_a_file_that_cannot_be_moved_changes_nothing() {
    let bench = Bench::new(serde_json::json!({ "encrypt": false }));
    let populate = |content: &str| {
        for name in ["a", "m", "z"] {
            bench.write(&format!("workspace/{name}/file"), content);
        }
    };
    populate("new");
    bench.write("workspace/becomes a directory/file", "new");
    bench.write("workspace/was a directory", "new");
    bench.push();
    populate("old");
    fs::remove_dir_all(bench.state("workspace/becomes a directory")).unwrap();
    bench.write("workspace/becomes a directory", "old");
    fs::remove_file(bench.state("workspace/was a directory")).unwrap();
    bench.write("workspace/was a directory/file", "old");
    bench.write("workspace/planted/file", "old");
    let old = bench.tree();
    for name in ["a", "m", "z"] {
        let path = bench.state(&format!("workspace/{name}/file"));
        let Some(stuck) = Immutable::new(&path) else {
            eprintln!("skipped: no file can be made immutable here");
            return;
        };
        let error = bench.try_rollback("latest", &[], false).unwrap_err();
        assert_eq!(common::code(&error), "IO", "{error}");
        assert!(!error.to_string().contains("taking it back failed"), "{error}");
        assert_same(&bench.tree(), &old);
        assert!(!bench.state("b2-backup/rollback").exists());
        drop(stuck);
    }
    assert_eq!(bench.list().iter().filter(|id| id.starts_with("safety-")).count(), 3);
    // Nothing stands in its way now. `latest` is the newest snapshot that was not taken for a rollback.
    bench.rollback("latest");
    assert_eq!(fs::read_to_string(bench.state("workspace/z/file")).unwrap(), "new");
}
