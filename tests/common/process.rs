//! Commands in a process of their own: to be killed, or to have their calls fail. A test that calls [`perform`] is started
//! again as that process.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use openclaw_b2_backup::Result;
use openclaw_b2_backup::commands::{
    Operation, PullOptions, PushOptions, RollbackOptions, Trigger, prune, pull, push, rollback,
};
use openclaw_b2_backup::config::Target;

use super::Bench;

const TASK: &str = "COMMAND_TASK";
/// How the process ends when its command has failed.
pub const FAILED: i32 = 3;

/// What the process is to do.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Task {
    config: serde_json::Value,
    /// `push`, `prune` as if the grace period had passed, `pull`, `rollback`, or `apply` of one that was prepared.
    verb: String,
    snapshot: String,
    to: PathBuf,
}

impl Task {
    pub fn new(bench: &Bench, verb: &str) -> Self {
        Self { config: bench.config.clone(), verb: verb.into(), ..Self::default() }
    }

    pub fn of(self, snapshot: &str) -> Self {
        Self { snapshot: snapshot.into(), ..self }
    }

    pub fn to(self, to: PathBuf) -> Self {
        Self { to, ..self }
    }

    /// The process, which is this program, told to run the test `entry` alone.
    pub fn command(&self, entry: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", entry, "--ignored", "--nocapture"])
            .env(TASK, serde_json::to_string(self).unwrap())
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    async fn run(self) -> Result<()> {
        let (target, operation) = (Target::from_json(&self.config)?, Operation::default());
        match self.verb.as_str() {
            "push" => push::push(&target, PushOptions { trigger: Trigger::Manual }, &operation).await.map(|_| ()),
            "prune" => prune::prune_after(&target, Duration::ZERO, &operation).await.map(|_| ()),
            "pull" => {
                let options =
                    PullOptions { snapshot: self.snapshot, directory: self.to, paths: Vec::new(), partial: false };
                pull::pull(&target, options, &operation).await.map(|_| ())
            }
            "rollback" => {
                let options =
                    RollbackOptions { snapshot: self.snapshot, paths: Vec::new(), plan_only: false, partial: false };
                rollback::rollback(&target, options, &operation).await.map(|_| ())
            }
            "apply" => rollback::apply_prepared(&target, &operation).await.map(|done| _ = done.unwrap()),
            other => panic!("{other} is no verb"),
        }
    }
}

/// Does what the environment says; nothing when it says nothing.
pub fn perform() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Task = serde_json::from_str(&task).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if let Err(error) = runtime.block_on(task.run()) {
        eprintln!("FAILED {}: {error}", error.code());
        std::process::exit(FAILED);
    }
}

/// Makes the library of `faults.c`, which a process is started with, in `folder`.
pub fn faults(folder: &Path) -> PathBuf {
    let library = folder.join("faults.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/faults.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).status();
    assert!(compiled.expect("cc, which SQLite needs too, is there").success());
    library
}
