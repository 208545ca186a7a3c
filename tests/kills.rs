//! Commands that are killed at random moments, again and again, in one repository: in a directory, and in a bucket of
//! `SeaweedFS`. After each kill the next command works without repair, and at the end all that is listed is there.
//!
//! `KILLS=300 OPENCLAW_B2_TEST_S3=http://127.0.0.1:PORT cargo test --test kills -- --ignored --nocapture` kills that many;
//! without `KILLS` it is ten in each store. `interruptions.rs` aims its kills at certain moments; these here do not.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::process::{self, Task};
use common::{Bench, Tree, assert_same, noise, s3, tree};
use openclaw_b2_backup::commands::rollback;
use serde_json::json;

#[test]
#[ignore = "the process that the other tests kill"]
fn the_killed_command() {
    process::perform();
}

fn random() -> u64 {
    getrandom::u64().unwrap()
}

/// Moves the state on: some files change, some go, and a database gets rows.
fn change(bench: &Bench, round: u64) {
    for _ in 0..6 {
        let name = format!("workspace/{}/{}", random() % 4, random() % 8);
        match random() % 4 {
            0 => _ = fs::remove_file(bench.state(&name)),
            1 => bench.write(&name, format!("round {round}")),
            _ => bench.write(&name, noise(1 + (random() % 300_000) as usize, random() % 9)),
        }
    }
    bench.write("workspace/round", format!("{round}"));
    let database = rusqlite::Connection::open(bench.state("memory.sqlite")).unwrap();
    database.execute_batch("CREATE TABLE IF NOT EXISTS t(x); INSERT INTO t VALUES (randomblob(9000))").unwrap();
}

/// The state without its database, which is stored as a copy.
fn files(bench: &Bench) -> Tree {
    without_database(bench.tree())
}

fn without_database(mut tree: Tree) -> Tree {
    tree.retain(|path, _| !path.starts_with("memory.sqlite"));
    tree
}

/// Kills commands until that many are dead; gives how many there were of each.
fn kill_again_and_again(bench: &Bench) -> BTreeMap<&'static str, usize> {
    let wanted = std::env::var("KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(20) / 2;
    let mut models: BTreeMap<String, Tree> = BTreeMap::new();
    let mut killed: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut took: BTreeMap<&'static str, Duration> = BTreeMap::new();
    // More than the others that come and go: a rollback that left less than half of the files would be worth a warning.
    for number in 0..40 {
        bench.write(&format!("workspace/kept/{number}"), "kept");
    }
    change(bench, 0);
    models.insert(bench.push().snapshot.unwrap(), files(bench));
    for round in 1.. {
        if killed.values().sum::<usize>() >= wanted {
            break;
        }
        assert!(round < 5 * wanted as u64 + 20, "too few of them live long enough to be killed: {killed:?}");
        change(bench, round);
        let verb = ["push", "prune", "rollback"][(round % 3) as usize];
        let listed = bench.list();
        let goal = &listed[random() as usize % listed.len()];
        let before = files(bench);
        let mut child =
            Task::new(bench, verb).of(goal).command("the_killed_command").stderr(Stdio::null()).spawn().unwrap();
        let started = Instant::now();
        // A little longer than the last one took that came to its end.
        let expected = took.get(verb).copied().unwrap_or(Duration::from_millis(400)).as_micros() as u64;
        let moment = Duration::from_micros(random() % (expected + expected / 10));
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                took.insert(verb, started.elapsed());
                break status;
            }
            if started.elapsed() >= moment {
                child.kill().unwrap();
                break child.wait().unwrap();
            }
            std::thread::sleep(Duration::from_micros(200));
        };
        // One that ended by itself has to have done what it should.
        assert!(status.success() || status.code().is_none(), "{verb}: {status}");
        *killed.entry(verb).or_default() += usize::from(!status.success());

        bench.run(rollback::recover(&bench.target)).unwrap();
        let now = files(bench);
        if verb == "rollback" && now.get("workspace/round") != before.get("workspace/round") {
            assert_same(&now, &models[goal]);
        } else {
            assert_same(&now, &before);
        }
        // What such a command has committed is the state before it.
        for id in bench.list() {
            models.entry(id).or_insert_with(|| before.clone());
        }
        let report = bench.push();
        assert_eq!((report.warnings, report.exceptions), (Vec::new(), Vec::new()));
        if let Some(id) = report.snapshot {
            models.insert(id, now.clone());
        }
        assert_same(&without_database(tree(&bench.pull("latest"))), &now);
        assert!(
            !bench.state("b2-backup/tmp").exists() || bench.state("b2-backup/tmp").read_dir().unwrap().count() == 0
        );
    }
    for id in bench.list() {
        assert_same(&without_database(tree(&bench.pull(&id))), &models[&id]);
    }
    assert_eq!(bench.problems(), Vec::<String>::new());
    bench.prune_now();
    assert_eq!(bench.problems(), Vec::<String>::new());
    killed
}

#[test]
#[ignore = "slow; npm test runs it"]
fn kills_in_a_directory_leave_nothing_to_repair() {
    let bench = Bench::new(json!({ "keepSnapshots": 6, "encrypt": false }));
    eprintln!("killed in a directory: {:?}", kill_again_and_again(&bench));
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn kills_in_a_bucket_leave_nothing_to_repair() {
    let server = s3::server("OPENCLAW_B2_TEST_S3");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bucket = runtime.block_on(s3::new_bucket(&server));
    let fields = json!({
        "keepSnapshots": 6, "endpoint": server, "bucket": bucket, "keyId": "AK", "applicationKey": "SK",
    });
    eprintln!("killed in a bucket: {:?}", kill_again_and_again(&Bench::new(fields)));
}
