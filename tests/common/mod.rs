//! What the tests of whole commands share: a state directory, a repository in a local directory, and a way to compare.

#![allow(dead_code)] // each test file uses its part

pub mod legacy;
pub mod process;
pub mod s3;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use openclaw_b2_backup::commands::{
    Operation, PruneReport, PullOptions, PullReport, PushOptions, PushReport, RollbackOptions, RollbackReport, Trigger,
    VerifyOptions, prune, pull, push, rollback, verify,
};
use openclaw_b2_backup::config::Target;
use openclaw_b2_backup::{Error, Result};

/// The database of a whole gateway.
pub const SHARED: &str = "state/openclaw.sqlite";

/// A state directory and a repository, both gone at the end.
pub struct Bench {
    pub root: tempfile::TempDir,
    pub target: Target,
    /// What `target` was made of.
    pub config: serde_json::Value,
    pub runtime: tokio::runtime::Runtime,
}

impl Default for Bench {
    fn default() -> Self {
        Self::new(serde_json::json!({}))
    }
}

impl Bench {
    /// `fields` are added to the configuration.
    pub fn new(fields: serde_json::Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("state")).unwrap();
        let mut config = serde_json::json!({
            "stateDir": root.path().join("state"),
            "endpoint": format!("file://{}", root.path().join("repository").display()),
            "applicationKey": "K005-key-of-a-test",
        });
        let serde_json::Value::Object(fields) = fields else { panic!("fields are an object") };
        config.as_object_mut().unwrap().extend(fields);
        let target = Target::from_json(&config).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { root, target, config, runtime }
    }

    /// The same repository seen from another machine with an empty state directory.
    pub fn other_machine(&self, name: &str) -> Target {
        let state_dir = self.root.path().join(name);
        fs::create_dir_all(&state_dir).unwrap();
        Target { state_dir, ..self.target.clone() }
    }

    pub fn state(&self, path: &str) -> PathBuf {
        self.target.state_dir.join(path)
    }

    pub fn repository(&self) -> PathBuf {
        self.root.path().join("repository")
    }

    pub fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.state(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub fn try_push(&self) -> Result<PushReport> {
        let options = PushOptions { trigger: Trigger::Manual };
        self.run(push::push(&self.target, options, &Operation::default()))
    }

    pub fn push(&self) -> PushReport {
        self.try_push().unwrap()
    }

    pub fn try_pull_as(&self, target: &Target, snapshot: &str, to: &Path, paths: &[&str]) -> Result<PullReport> {
        let paths = paths.iter().map(ToString::to_string).collect();
        let options = PullOptions { snapshot: snapshot.into(), directory: to.into(), paths, partial: false };
        self.run(pull::pull(target, options, &Operation::default()))
    }

    /// Pulls as a machine that has only the configuration.
    pub fn try_pull(&self, snapshot: &str) -> Result<PathBuf> {
        let to = self.root.path().join(format!("pulled-{snapshot}-{}", rand()));
        let elsewhere = Target { state_dir: self.root.path().join("no-state"), ..self.target.clone() };
        self.try_pull_as(&elsewhere, snapshot, &to, &[]).map(|_| to)
    }

    pub fn pull(&self, snapshot: &str) -> PathBuf {
        self.try_pull(snapshot).unwrap()
    }

    pub fn try_rollback(&self, snapshot: &str, paths: &[&str], plan_only: bool) -> Result<RollbackReport> {
        let paths = paths.iter().map(ToString::to_string).collect();
        let options = RollbackOptions { snapshot: snapshot.into(), paths, plan_only, partial: false };
        self.run(rollback::rollback(&self.target, options, &Operation::default()))
    }

    pub fn try_partial_rollback(&self, snapshot: &str) -> Result<RollbackReport> {
        let options = RollbackOptions { snapshot: snapshot.into(), paths: Vec::new(), plan_only: false, partial: true };
        self.run(rollback::rollback(&self.target, options, &Operation::default()))
    }

    pub fn rollback(&self, snapshot: &str) -> RollbackReport {
        self.try_rollback(snapshot, &[], false).unwrap()
    }

    /// Prunes twice as if the grace period had passed: once to condemn, once to delete.
    pub fn prune_now(&self) -> (PruneReport, PruneReport) {
        let prune = || self.run(prune::prune_after(&self.target, Duration::ZERO, &Operation::default())).unwrap();
        (prune(), prune())
    }

    pub fn problems(&self) -> Vec<String> {
        let options = VerifyOptions { read_data: Some(100) };
        self.run(verify::verify(&self.target, options, &Operation::default())).unwrap().problems
    }

    /// Snapshot ids, newest first.
    pub fn list(&self) -> Vec<String> {
        let report = self.run(openclaw_b2_backup::commands::list::list(&self.target, &Operation::default())).unwrap();
        report.snapshots.into_iter().map(|snapshot| snapshot.id).collect()
    }

    /// What the state holds, without the product's own folder.
    pub fn tree(&self) -> Tree {
        tree(&self.target.state_dir)
    }
}

fn rand() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// One path, in full: what a restore has to bring back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    File { content: Vec<u8>, mode: u32, mtime: i64 },
    Directory { mode: u32 },
    Link(PathBuf),
}

pub type Tree = BTreeMap<String, Node>;

/// Everything below `root`, without the product's own folder.
pub fn tree(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let own = root.join("b2-backup");
    let walk = walkdir::WalkDir::new(root).min_depth(1).into_iter().filter_entry(|entry| entry.path() != own);
    for entry in walk {
        let entry = entry.unwrap();
        let meta = entry.metadata().unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        let node = if meta.is_symlink() {
            Node::Link(fs::read_link(entry.path()).unwrap())
        } else if meta.is_dir() {
            Node::Directory { mode }
        } else {
            let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
            Node::File { content: fs::read(entry.path()).unwrap(), mode, mtime }
        };
        tree.insert(entry.path().strip_prefix(root).unwrap().to_str().unwrap().into(), node);
    }
    tree
}

/// Asserts that two trees are equal, and says briefly where they are not.
#[track_caller]
pub fn assert_same(found: &Tree, expected: &Tree) {
    let describe = |node: Option<&Node>| match node {
        None => "nothing".into(),
        Some(Node::File { content, mode, mtime }) => {
            format!(
                "file of {} bytes, mode {mode:o}, time {mtime}, {:?}",
                content.len(),
                &content[..content.len().min(40)]
            )
        }
        Some(other) => format!("{other:?}"),
    };
    let paths: std::collections::BTreeSet<_> = found.keys().chain(expected.keys()).collect();
    let wrong: Vec<String> = paths
        .into_iter()
        .filter(|path| found.get(*path) != expected.get(*path))
        .map(|path| format!("{path}: found {}, expected {}", describe(found.get(path)), describe(expected.get(path))))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Bytes that compress to a quarter: an unoptimised build takes long to encrypt.
pub fn letters(length: usize, seed: u64) -> Vec<u8> {
    noise(length, seed).into_iter().map(|byte| b"acgt"[usize::from(byte & 3)]).collect()
}

pub fn code(error: &Error) -> &'static str {
    error.code().as_str()
}

/// Another process that has a database open and reads from it whenever it is told to, as a gateway does.
pub struct Gateway {
    process: std::process::Child,
    answers: std::io::BufReader<std::process::ChildStdout>,
}

impl Gateway {
    pub fn open(database: &std::path::Path) -> Self {
        let script = "import sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
for query in sys.stdin:
    print(c.execute(query).fetchall(), flush=True)";
        let mut process = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(database)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let answers = std::io::BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    pub fn ask(&mut self, query: &str) -> String {
        use std::io::{BufRead, Write};
        writeln!(self.process.stdin.as_mut().unwrap(), "{query}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
