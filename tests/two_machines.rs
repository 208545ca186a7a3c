//! Two machines that work on one repository at the same time, each with a state directory and a runtime of its own.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use common::{Tree, assert_same, tree};
use openclaw_b2_backup::commands::{
    Operation, PullOptions, PushOptions, RollbackOptions, Trigger, VerifyOptions, list, prune, pull, push, rollback,
    verify,
};
use openclaw_b2_backup::config::Target;

const MACHINES: usize = 2;

/// Bytes that do not compress, the same for the same seed.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn target(root: &Path, machine: usize, fields: &serde_json::Value) -> Target {
    let state_dir = root.join(format!("state-{machine}"));
    fs::create_dir_all(&state_dir).unwrap();
    let mut config = serde_json::json!({
        "stateDir": state_dir,
        "endpoint": format!("file://{}", root.join("repository").display()),
        "applicationKey": "K005-key-of-a-test",
    });
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Target::from_json(&config).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn write(target: &Target, path: &str, content: impl AsRef<[u8]>) {
    let path = target.state_dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

async fn pull_to(target: &Target, snapshot: &str, directory: &Path) -> openclaw_b2_backup::Result<Tree> {
    let options =
        PullOptions { snapshot: snapshot.into(), directory: directory.into(), paths: Vec::new(), partial: false };
    pull::pull(target, options, &Operation::default()).await?;
    let pulled = tree(directory);
    fs::remove_dir_all(directory).unwrap();
    Ok(pulled)
}

type Models = Arc<Mutex<BTreeMap<String, Tree>>>;

/// Checks, as a third machine that has only the configuration, that everything listed is there.
fn check_from_elsewhere(root: &Path, models: &Models, expected: usize) {
    let third = target(root, 99, &serde_json::json!({}));
    runtime().block_on(async {
        let listed = list::list(&third, &Operation::default()).await.unwrap();
        assert!(listed.unreadable.is_empty(), "{:?}", listed.unreadable);
        assert_eq!(listed.snapshots.len(), expected);
        for snapshot in &listed.snapshots {
            let pulled = pull_to(&third, &snapshot.id, &root.join("pulled")).await.unwrap();
            assert_same(&pulled, &models.lock().unwrap()[&snapshot.id]);
        }
        let verified =
            verify::verify(&third, VerifyOptions { read_data: Some(100) }, &Operation::default()).await.unwrap();
        assert_eq!(verified.problems, Vec::<String>::new());
    });
}

#[test]
#[ignore = "slow; npm test runs it"]
fn machines_that_start_a_repository_together_and_work_on_it_together_do_each_other_no_harm() {
    const ROUNDS: u64 = 6;
    const KEPT: usize = 3;
    let root = tempfile::tempdir().unwrap();
    let models: Models = Arc::default();
    let start = Arc::new(Barrier::new(MACHINES));
    let machines: Vec<_> = (0..MACHINES)
        .map(|machine| {
            let (root, models, start) = (root.path().to_owned(), Arc::clone(&models), Arc::clone(&start));
            std::thread::spawn(move || {
                let target = target(&root, machine, &serde_json::json!({ "keepSnapshots": KEPT }));
                let operation = Operation::default();
                let runtime = runtime();
                write(&target, "workspace/shared", noise(500_000, 1));
                for round in 0..ROUNDS {
                    write(&target, "workspace/own", noise(300_000, round * 2 + machine as u64 + 10));
                    write(&target, "workspace/same content on both", noise(200_000, round + 1000));
                    let now = tree(&target.state_dir);
                    start.wait();
                    let options = PushOptions { trigger: Trigger::Manual };
                    let report = runtime.block_on(push::push(&target, options, &operation)).unwrap();
                    assert_eq!(report.warnings, Vec::<String>::new());
                    models.lock().unwrap().insert(report.snapshot.clone().unwrap(), now.clone());
                    runtime.block_on(prune::prune(&target, &operation)).unwrap();
                    let listed = runtime.block_on(list::list(&target, &operation)).unwrap();
                    assert!(listed.unreadable.is_empty(), "{:?}", listed.unreadable);
                    let own = report.snapshot.unwrap();
                    assert!(listed.snapshots.iter().any(|snapshot| snapshot.id == own));
                    let to = root.join(format!("pulled-{machine}"));
                    assert_same(&runtime.block_on(pull_to(&target, &own, &to)).unwrap(), &now);
                    if round == 3 {
                        // And one of them goes back, while the other goes on.
                        let snapshot = own.clone();
                        write(&target, "workspace/own", "changed");
                        let changed = tree(&target.state_dir);
                        let options = RollbackOptions { snapshot, paths: Vec::new(), plan_only: false, partial: false };
                        let report = runtime.block_on(rollback::rollback(&target, options, &operation)).unwrap();
                        assert_same(&tree(&target.state_dir), &now);
                        models.lock().unwrap().insert(report.safety_snapshot.unwrap(), changed);
                    }
                }
            })
        })
        .collect();
    for machine in machines {
        machine.join().unwrap();
    }
    check_from_elsewhere(root.path(), &models, MACHINES * (KEPT + 1));

    // With nobody at work any more, what no snapshot needs can go at once.
    let target = target(root.path(), 0, &serde_json::json!({ "keepSnapshots": KEPT }));
    let before = stored_bytes(root.path());
    for _ in 0..2 {
        runtime().block_on(prune::prune_after(&target, Duration::ZERO, &Operation::default())).unwrap();
    }
    assert!(stored_bytes(root.path()) < before, "nothing was freed");
    check_from_elsewhere(root.path(), &models, MACHINES * (KEPT + 1));
}

/// Bytes below a directory.
fn stored_bytes(root: &Path) -> u64 {
    let all = walkdir::WalkDir::new(root.join("repository")).into_iter().flatten();
    all.filter(|entry| entry.file_type().is_file()).map(|entry| entry.metadata().unwrap().len()).sum()
}

#[test]
#[ignore = "slow; npm test runs it"]
fn whichever_master_key_comes_first_both_machines_read_everything() {
    for attempt in 0..6 {
        let root = tempfile::tempdir().unwrap();
        let models: Models = Arc::default();
        let start = Arc::new(Barrier::new(MACHINES));
        let machines: Vec<_> = (0..MACHINES)
            .map(|machine| {
                let (root, models, start) = (root.path().to_owned(), Arc::clone(&models), Arc::clone(&start));
                std::thread::spawn(move || {
                    let target = target(&root, machine, &serde_json::json!({}));
                    let (runtime, operation) = (runtime(), Operation::default());
                    for round in 0..3 {
                        write(&target, "workspace/own", format!("{machine}, round {round} of attempt {attempt}"));
                        let now = tree(&target.state_dir);
                        if round == 0 {
                            start.wait();
                            // Sometimes one is a little later, so that it meets a repository that is half made.
                            std::thread::sleep(Duration::from_millis(machine as u64 * attempt * 15));
                        }
                        let options = PushOptions { trigger: Trigger::Manual };
                        let report = runtime.block_on(push::push(&target, options, &operation)).unwrap();
                        assert_eq!(report.warnings, Vec::<String>::new());
                        models.lock().unwrap().insert(report.snapshot.unwrap(), now);
                    }
                })
            })
            .collect();
        for machine in machines {
            machine.join().unwrap();
        }
        check_from_elsewhere(root.path(), &models, MACHINES * 3);
    }
}

#[test]
fn each_machine_keeps_its_own_retention_and_a_third_one_gets_the_newest_of_all() {
    let root = tempfile::tempdir().unwrap();
    let (runtime, operation) = (runtime(), Operation::default());
    let machines = [1, 3].map(|kept| target(root.path(), kept, &serde_json::json!({ "keepSnapshots": kept })));
    let mut pushed = [Vec::new(), Vec::new()];
    for round in 0..5 {
        for (machine, target) in machines.iter().enumerate() {
            write(target, "workspace/own", format!("{machine}, round {round}"));
            let options = PushOptions { trigger: Trigger::Manual };
            let report = runtime.block_on(push::push(target, options, &operation)).unwrap();
            assert_eq!(report.warnings, Vec::<String>::new());
            pushed[machine].push(report.snapshot.unwrap());
        }
    }
    let third = target(root.path(), 99, &serde_json::json!({}));
    let listed = runtime.block_on(list::list(&third, &operation)).unwrap().snapshots;
    let mut kept: Vec<&str> = listed.iter().map(|snapshot| snapshot.id.as_str()).collect();
    let mut expected: Vec<&str> = pushed[0][4..].iter().chain(&pushed[1][2..]).map(String::as_str).collect();
    kept.sort_unstable();
    expected.sort_unstable();
    assert_eq!(kept, expected);

    let report = runtime.block_on(rollback::restore_if_empty(&third, &operation)).unwrap().unwrap();
    assert_eq!(report.snapshot, pushed[1][4]);
    assert_eq!(fs::read_to_string(third.state_dir.join("workspace/own")).unwrap(), "1, round 4");
    // Not the newest of its own, which it has none of: and what it takes from now on counts for itself.
    write(&third, "workspace/own", "third");
    runtime.block_on(push::push(&third, PushOptions { trigger: Trigger::Manual }, &operation)).unwrap();
    assert_eq!(runtime.block_on(list::list(&third, &operation)).unwrap().snapshots.len(), 5);
}
