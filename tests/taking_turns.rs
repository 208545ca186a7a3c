//! Several processes on one state directory: they take turns, or say who holds it and since when; a lock cannot outlive
//! its holder.

#![cfg(unix)]

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, assert_same, code, tree};
use openclaw_b2_backup::commands::{Operation, PushOptions, Trigger, push};
use openclaw_b2_backup::config::Target;

/// The configuration with which the process of its own pushes.
const TASK: &str = "TAKING_TURNS_TASK";

#[test]
#[ignore = "the process that the other tests start"]
fn a_push_in_a_process_of_its_own() {
    let Ok(config) = std::env::var(TASK) else { return };
    let target = Target::from_json(&serde_json::from_str(&config).unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let operation = Operation::default();
    let options = PushOptions { trigger: Trigger::Manual };
    runtime.block_on(push::push(&target, options, &operation)).unwrap();
}

fn start(bench: &Bench) -> Child {
    let config = serde_json::json!({
        "stateDir": bench.target.state_dir,
        "endpoint": format!("file://{}", bench.repository().display()),
        "applicationKey": "K005-key-of-a-test",
    });
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_push_in_a_process_of_its_own", "--ignored"])
        .env(TASK, config.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
#[ignore = "slow: waits for the lock in vain; npm test runs it"]
fn a_command_says_who_holds_the_state_directory_and_a_killed_holder_holds_nothing() {
    let bench = Bench::default();
    let noise = |seed: u64| {
        let mut bytes = vec![0; 24 << 20];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    };
    for number in 0..4 {
        bench.write(&format!("workspace/{number}.bin"), noise(number));
    }
    let mut holder = start(&bench);
    let holds = format!("push (process {}, since 20", holder.id());
    let lock = bench.state("b2-backup/lock");
    let started = Instant::now();
    while !fs::read_to_string(&lock).is_ok_and(|text| text.starts_with(&holds)) {
        assert!(holder.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_mins(2));
        std::thread::sleep(Duration::from_millis(1));
    }
    // It stays in the middle of its work, as a process on a stuck disk would.
    signal(&holder, "-STOP");
    for refused in [bench.try_push().map(|_| ()), bench.try_rollback("latest", &[], false).map(|_| ())] {
        let error = refused.unwrap_err();
        assert_eq!(code(&error), "LOCKED", "{error}");
        assert!(error.is_retryable() && error.to_string().starts_with(&holds), "{error}");
        assert!(error.to_string().contains(" UTC) is working on this state directory"), "{error}");
    }
    // Whoever only looks waits for nobody.
    assert!(bench.list().is_empty());
    holder.kill().unwrap();
    holder.wait().unwrap();
    let snapshot = bench.push().snapshot.unwrap();
    assert_same(&tree(&bench.pull(&snapshot)), &bench.tree());
}

#[test]
fn processes_on_one_state_directory_take_turns() {
    let bench = Bench::default();
    bench.write("workspace/notes.md", "one");
    let mut all: Vec<Child> = (0..4).map(|_| start(&bench)).collect();
    for child in &mut all {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(bench.list().len(), 1, "three of them found nothing changed");
    assert!(bench.problems().is_empty());
}
