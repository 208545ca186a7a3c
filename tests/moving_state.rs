//! Pushes of a state that is being written to: whatever a snapshot holds was there at one moment.
//!
//! Writers leave their mark in every word they write, so that a file put together from two moments is recognised.

#![cfg(unix)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Bench, Node, tree};

const WORD: usize = 8;

/// `words` repetitions of one number.
fn stamped(generation: u64, words: usize) -> Vec<u8> {
    generation.to_le_bytes().repeat(words)
}

fn words(content: &[u8]) -> Vec<u64> {
    content.chunks_exact(WORD).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Threads that write until they are stopped.
struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<u64>>,
}

impl Writers {
    fn new() -> Self {
        Self { stop: Arc::default(), threads: Vec::new() }
    }

    /// Calls `write` with 1, 2, 3, ... and `pause` between.
    fn add(&mut self, pause: Duration, mut write: impl FnMut(u64) + Send + 'static) {
        let stop = Arc::clone(&self.stop);
        self.threads.push(std::thread::spawn(move || {
            let mut generation = 0;
            while !stop.load(Ordering::Relaxed) {
                generation += 1;
                write(generation);
                std::thread::sleep(pause);
            }
            generation
        }));
    }

    fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

const PAUSE: Duration = Duration::from_micros(700);

/// Whether such a file was there at one moment, by how its writer works; `Err` says why not.
fn check(path: &str, content: &[u8]) -> Result<(), String> {
    let words = words(content);
    let torn = |why: &str| {
        let mut runs: Vec<(u64, usize)> = Vec::new();
        for word in &words {
            match runs.last_mut() {
                Some((known, count)) if known == word => *count += 1,
                _ => runs.push((*word, 1)),
            }
        }
        runs.truncate(8);
        Err(format!("{path}, {} bytes, {why}: {runs:?}", content.len()))
    };
    match path.rsplit('/').next().unwrap().split('-').next().unwrap() {
        // The n-th word appended is n.
        "append" => match words.iter().enumerate().find(|(at, word)| *at as u64 + 1 != **word) {
            Some(_) => torn("is no beginning of what was appended"),
            None => Ok(()),
        },
        // Written from the start to the end: the start may be newer, by one, never older than what follows.
        "inplace" => {
            let falls = words.windows(2).filter(|pair| pair[0] != pair[1]).collect::<Vec<_>>();
            if falls.len() <= 1 && falls.iter().all(|pair| pair[0] == pair[1] + 1) { Ok(()) } else { torn("is torn") }
        }
        // Cut to nothing, then written from the start: any beginning of one generation.
        "rewritten" | "replaced" | "shuffled" => {
            if words.windows(2).all(|pair| pair[0] == pair[1]) {
                Ok(())
            } else {
                torn("is torn")
            }
        }
        _ => Ok(()),
    }
}

/// Pushes `rounds` times, and checks every file of every snapshot. Gives how many files were listed as exceptions.
fn push_and_check(bench: &Bench, rounds: usize, check: impl Fn(&str, &[u8]) -> Result<(), String>) -> usize {
    let mut exceptions = Vec::new();
    for _ in 0..rounds {
        let report = bench.push();
        for exception in &report.exceptions {
            let reasons = ["kept changing", "no longer a regular file", "symbolic links", "Not a directory"];
            assert!(reasons.iter().any(|reason| exception.reason.contains(reason)), "{exception:?}");
        }
        if let Some(id) = report.snapshot {
            exceptions.push((id, report.exceptions.len()));
        }
    }
    let mut wrong = Vec::new();
    for (id, _) in &exceptions {
        let pulled = bench.pull(id);
        for (path, node) in tree(&pulled) {
            if let Node::File { content, .. } = node
                && let Err(why) = check(&path, &content)
            {
                wrong.push(format!("{id}: {why}"));
            }
        }
        fs::remove_dir_all(pulled).unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(bench.problems(), Vec::<String>::new());
    exceptions.iter().map(|(_, count)| count).sum()
}

fn bench() -> Bench {
    let bench = Bench::new(serde_json::json!({ "encrypt": false, "keepSnapshots": 50 }));
    fs::create_dir(bench.state("workspace")).unwrap();
    bench
}

#[test]
#[ignore = "slow; npm test runs it"]
fn files_that_are_written_during_the_push_are_of_one_moment_each() {
    let bench = bench();
    let at = |name: &str| -> PathBuf { bench.state(&format!("workspace/{name}")) };
    let mut writers = Writers::new();
    for (number, batch) in [(0, 1u64), (1, 3000)] {
        let file = OpenOptions::new().append(true).create(true).open(at(&format!("append-{number}"))).unwrap();
        writers.add(PAUSE, move |generation| {
            let first = (generation - 1) * batch + 1;
            let bytes: Vec<u8> = (first..first + batch).flat_map(u64::to_le_bytes).collect();
            (&file).write_all(&bytes).unwrap();
        });
    }
    for (number, size) in [(0, 100), (1, 20_000), (2, 200_000)] {
        let file = open(&at(&format!("inplace-{number}")));
        file.write_all_at(&stamped(1, size), 0).unwrap();
        writers.add(PAUSE, move |generation| file.write_all_at(&stamped(generation + 1, size), 0).unwrap());
    }
    for (number, size) in [(0, 300), (1, 60_000)] {
        let path = at(&format!("rewritten-{number}"));
        // Longer by one word each time: a file that grows is not one that is only appended to.
        writers.add(PAUSE, move |generation| {
            fs::write(&path, stamped(generation, size + generation as usize)).unwrap();
        });
    }
    for (number, size) in [(0, 300), (1, 60_000)] {
        let (path, temporary) = (at(&format!("replaced-{number}")), at(&format!("replaced-{number}.tmp")));
        writers.add(PAUSE, move |generation| {
            fs::write(&temporary, stamped(generation, size)).unwrap();
            fs::rename(&temporary, &path).unwrap();
        });
    }
    let folder = at("folder");
    writers.add(PAUSE, move |generation| {
        let path = folder.join(format!("shuffled-{}", generation % 3));
        if generation % 2 == 0 {
            let _ = fs::remove_dir_all(&folder);
        } else {
            let _ = fs::create_dir_all(&folder);
            let _ = fs::write(path, stamped(generation, 400));
        }
    });
    let exceptions = push_and_check(&bench, 10, check);
    let generations = writers.stop();
    eprintln!("{exceptions} exceptions; generations {generations:?}");
    assert!(generations.iter().all(|count| *count > 20), "{generations:?}");
}

/// Directories that vanish, come back as links or files, and take over each other's names while the tree is walked. The
/// tree of a snapshot is still a tree: each path once, and nothing below what is no directory.
#[test]
#[ignore = "slow; npm test runs it"]
fn a_walk_through_changing_directories_gives_a_tree_that_can_be_read() {
    let bench = bench();
    let many = bench.state("workspace/many");
    fs::create_dir(&many).unwrap();
    for number in 0..1500 {
        fs::write(many.join(format!("a name that is not very short, number {number}")), "").unwrap();
    }
    let mut writers = Writers::new();
    // Removed and made again, a name may be listed twice by one reading of its directory.
    for part in 0..2u64 {
        let many = many.clone();
        writers.add(Duration::from_millis(5), move |generation| {
            for step in 0..50 {
                let number = (generation * 50 + step) * 2 % 1500 + part;
                let path = many.join(format!("a name that is not very short, number {number}"));
                let _ = fs::remove_file(&path);
                fs::write(&path, "").unwrap();
            }
        });
    }
    for number in 0..40 {
        let (path, away) = (bench.state(&format!("workspace/{number}")), bench.root.path().join(format!("{number}")));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        let elsewhere = bench.root.path().join(format!("elsewhere-{number}"));
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("inside"), "outside of the state").unwrap();
        if number >= 4 {
            continue;
        }
        writers.add(Duration::ZERO, move |_| {
            for _ in 0..20 {
                fs::rename(&path, &away).unwrap();
                symlink(&elsewhere, &path).unwrap();
                fs::remove_file(&path).unwrap();
                fs::rename(&away, &path).unwrap();
            }
        });
    }
    push_and_check(&bench, 8, |path, content| {
        if content.starts_with(b"outside") { Err(format!("{path} was read through a link")) } else { Ok(()) }
    });
    writers.stop();
}

#[test]
fn databases_that_are_written_during_the_push_keep_their_invariants() {
    const ACCOUNTS: i64 = 500;
    let bench = bench();
    let mut writers = Writers::new();
    for (name, mode) in [("state/openclaw.sqlite", "WAL"), ("memory/main.sqlite", "WAL"), ("memory/old.db", "DELETE")] {
        let path = bench.state(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.busy_timeout(Duration::from_mins(1)).unwrap();
        connection.query_row(&format!("PRAGMA journal_mode={mode}"), [], |_| Ok(())).unwrap();
        connection.execute_batch("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint=50").unwrap();
        connection
            .execute_batch(&format!(
                "CREATE TABLE accounts(id INTEGER PRIMARY KEY, balance INTEGER, filler BLOB);
                 CREATE INDEX balances ON accounts(balance);
                 WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {ACCOUNTS})
                   INSERT INTO accounts SELECT i, 100, randomblob(300) FROM n;"
            ))
            .unwrap();
        writers.add(Duration::from_millis(2), move |generation| {
            let generation = generation.cast_signed();
            let (from, to) = (generation * 7 % ACCOUNTS + 1, generation * 13 % ACCOUNTS + 1);
            connection
                .execute_batch(&format!(
                    "BEGIN IMMEDIATE;
                     UPDATE accounts SET balance = balance - 5, filler = randomblob(300) WHERE id = {from};
                     UPDATE accounts SET balance = balance + 5, filler = randomblob(300) WHERE id = {to};
                     COMMIT;"
                ))
                .unwrap();
        });
    }
    let exceptions = push_and_check(&bench, 10, |path, content| {
        if !content.starts_with(b"SQLite format 3\0") {
            return Ok(());
        }
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        fs::write(&copy, content).unwrap();
        let copy = rusqlite::Connection::open(copy).unwrap();
        let sound: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        let sum: (i64, i64) = copy
            .query_row("SELECT count(*), sum(balance) FROM accounts", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        if sound == "ok" && sum == (ACCOUNTS, 100 * ACCOUNTS) {
            Ok(())
        } else {
            Err(format!("{path}: {sound}, {sum:?}"))
        }
    });
    let generations = writers.stop();
    assert!(generations.iter().all(|count| *count > 20), "{generations:?}");
    assert_eq!(exceptions, 0);
}

/// A file may change within one tick of the file system's clock: its times then look as if it had not.
#[test]
fn what_changed_right_after_it_was_pushed_is_seen_by_the_next_push() {
    let bench = bench();
    let file = open(&bench.state("workspace/file"));
    file.write_all_at(&stamped(0, 100), 0).unwrap();
    let mut last = Vec::new();
    for generation in 1..25 {
        file.write_all_at(&stamped(generation, 100), 0).unwrap();
        let id = bench.push().snapshot.expect("the file changed");
        // In place, with the same length, at once.
        last.push((id, generation));
    }
    for (id, generation) in last {
        assert_eq!(fs::read(bench.pull(&id).join("workspace/file")).unwrap(), stamped(generation, 100));
    }
}
