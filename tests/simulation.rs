//! Machines that work on one repository in a simulated store: every interleaving of their store operations, and every fault
//! of the store, follows from one seed.
//!
//! All machines run on one thread with a paused clock. Each store operation waits until it is called up, and one is called
//! up only when nothing else moves: every machine waits at the store or is done. What is called up, what becomes of it and
//! what its listing shows comes from the seed, and so do random bytes and what the clock of each machine shows: all of it
//! runs in a process of its own under `common/faults.c`. A model says what each snapshot has to give back.
//!
//! `SEEDS=1000 cargo test --test simulation -- --ignored --nocapture` tries more seeds, `SEEDS=5000..6000` others, and
//! `SEED=7 cargo test --test simulation -- --ignored --exact replay --nocapture` shows one, operation by operation.

#![cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use common::{Tree, assert_same, noise, process, tree};
use openclaw_b2_backup::commands::{
    Operation, PullOptions, PushOptions, RollbackOptions, StatusOptions, Trigger, VerifyOptions, diff, list, prune,
    pull, push, rollback, status, verify,
};
use openclaw_b2_backup::config::Target;
use openclaw_b2_backup::store::{Listing, ObjectMeta, Store};
use openclaw_b2_backup::{Code, Error, Result};
use tokio::sync::oneshot;

/// Longer than any delay between repetitions, so that those are over before the next operation is called up.
const TURN: Duration = Duration::from_hours(1);
const HOUR: Duration = Duration::from_hours(1);

/// Numbers that follow from a seed (SplitMix64, Steele et al., 2014).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize].clone()
    }
}

/// The clock and the random bytes of this process, see `common/faults.c`.
struct Fate {
    file: fs::File,
    /// When it began, on the clock that nobody sets.
    began: (SystemTime, Instant),
}

impl Fate {
    /// Names the file, in the process that has one.
    const FILE: &str = "FAULT_FATE";

    fn get() -> &'static Self {
        static FATE: OnceLock<Fate> = OnceLock::new();
        FATE.get_or_init(|| {
            let path = std::env::var_os(Self::FILE).expect("this runs in a process of its own");
            let file = fs::File::options().write(true).open(path).unwrap();
            Self { file, began: (SystemTime::now(), Instant::now()) }
        })
    }

    fn show(&self, time: SystemTime) {
        let now = self.began.0 + self.began.1.elapsed();
        let ahead = time.duration_since(now).map(|ahead| ahead.as_nanos() as i64);
        let off = ahead.unwrap_or_else(|behind| -(behind.duration().as_nanos() as i64));
        self.file.write_all_at(&off.to_ne_bytes(), 0).unwrap();
    }

    fn seed(&self, seed: u64) {
        self.file.write_all_at(&(seed | 1 << 63).to_ne_bytes(), 8).unwrap();
    }

    /// Runs a test of this file in a process of its own, unless this is it.
    fn run(test: &str, body: impl FnOnce()) {
        if std::env::var_os(Self::FILE).is_some() {
            return body();
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("fate");
        fs::write(&file, [0; 16]).unwrap();
        let ended = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--include-ignored", "--nocapture"])
            .env("LD_PRELOAD", process::faults(folder.path()))
            .env(Self::FILE, file)
            .status()
            .unwrap();
        assert!(ended.success(), "see above");
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Not one of the store: the machine begins.
    Begin,
    List(String),
    Get(String),
    Range(String, u64, u64),
    Put(String, Bytes),
    Delete(String),
}

impl Op {
    /// Without what differs between runs of one seed: the day on which it runs.
    fn shown(&self) -> String {
        let (verb, key) = match self {
            Self::Begin => return "begin".into(),
            Self::List(prefix) => ("list", prefix),
            Self::Get(key) => ("get", key),
            Self::Range(key, ..) => ("read", key),
            Self::Put(key, _) => ("put", key),
            Self::Delete(key) => ("delete", key),
        };
        format!("{verb} {}", key.rsplit_once("Z-").map_or(key.as_str(), |(_, key)| key))
    }

    fn order(&self) -> (String, u64) {
        (self.shown(), if let Self::Range(_, offset, _) = self { *offset } else { 0 })
    }
}

enum Answer {
    Listing(Listing),
    Bytes(Bytes),
    Nothing,
}

/// What becomes of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Done,
    /// Fails before or after it took effect; `passing` says whether another attempt is worth it.
    Fail {
        after: bool,
        passing: bool,
    },
    /// The machine ends, before or after it took effect.
    Crash {
        after: bool,
    },
}

/// A machine's operation that waits to be called up.
struct Waiting {
    machine: usize,
    op: Op,
    answer: oneshot::Sender<Result<Answer>>,
}

#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    modified: SystemTime,
    /// The number of the operation that made it.
    born: u64,
    died: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Machine {
    /// The state when its command began: what a snapshot of it has to give back.
    state: Arc<Tree>,
    /// Its clock, as far as it is off, in hours.
    skew: i64,
    /// What it knows of the store's clock.
    told: Option<SystemTime>,
    /// Its regular snapshots.
    committed: BTreeSet<String>,
    /// Those that its command made, and may take back.
    made: BTreeSet<String>,
    keep: usize,
    /// Whether a listing has kept something from its command.
    misled: bool,
}

/// The store, and what is known of everything in it.
#[derive(Clone)]
struct World {
    now: SystemTime,
    operations: u64,
    /// The number of the last operation that is so long ago that every listing shows it.
    settled: u64,
    objects: BTreeMap<String, Object>,
    gone: Vec<(String, Object)>,
    machines: Vec<Machine>,
    models: BTreeMap<String, Arc<Tree>>,
    /// How often, in percent, a listing keeps back what is new or shows what is gone.
    hides: u64,
    /// How often, in a thousand, much time passes during an operation.
    sleeps: u64,
    random: Random,
}

impl World {
    fn meta(&self, key: &str, object: &Object) -> ObjectMeta {
        let _ = self;
        ObjectMeta { key: key.into(), size: object.bytes.len() as u64, modified: object.modified }
    }

    fn list(&mut self, machine: usize, prefix: &str) -> Listing {
        /// Operations after which every listing shows what happened.
        const FRESH: u64 = 12;
        let hides = self.hides;
        let (lagging, losing) = (self.random.percent(hides), self.random.percent(hides));
        let lag = if lagging { self.random.below(FRESH) } else { 0 };
        let as_of = self.operations.saturating_sub(lag).max(self.settled);
        let mut objects = Vec::new();
        let mut misled = false;
        for (key, object) in self.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let is_fresh = object.born > self.settled && object.born + FRESH > self.operations;
            if object.born > as_of || (losing && is_fresh && self.random.percent(50)) {
                misled = true;
                continue;
            }
            objects.push(self.meta(key, object));
        }
        for (key, object) in self.gone.iter().filter(|(key, _)| key.starts_with(prefix)) {
            if object.born <= as_of && object.died.is_some_and(|died| died > as_of) && !self.objects.contains_key(key) {
                misled = true;
                objects.push(self.meta(key, object));
            }
        }
        objects.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        objects.dedup_by(|a, b| a.key == b.key);
        self.machines[machine].misled |= misled;
        Listing { objects }
    }

    fn take_effect(&mut self, machine: usize, op: &Op) -> Result<Answer> {
        let find = |key: &str| {
            let object = self.objects.get(key).ok_or_else(|| Error::new(Code::NotFound, "no such object").at_key(key));
            object.map(|object| object.bytes.clone())
        };
        match op {
            Op::Begin => Ok(Answer::Nothing),
            Op::List(prefix) => Ok(Answer::Listing(self.list(machine, prefix))),
            Op::Get(key) => find(key).map(Answer::Bytes),
            Op::Range(key, offset, length) => {
                let bytes = find(key)?;
                let end = (offset + length) as usize;
                if end > bytes.len() {
                    return Err(Error::corrupt(key, "it ends before the range"));
                }
                Ok(Answer::Bytes(bytes.slice(*offset as usize..end)))
            }
            Op::Put(key, bytes) => {
                let object = Object { bytes: bytes.clone(), modified: self.now, born: self.operations, died: None };
                if let Some(before) = self.objects.insert(key.clone(), object) {
                    assert_eq!(before.bytes, bytes, "{key} is used again for other bytes");
                }
                if let Some(id) = key.strip_suffix("/manifest.json") {
                    self.models.entry(id.into()).or_insert_with(|| Arc::clone(&self.machines[machine].state));
                    self.machines[machine].made.insert(id.into());
                    if !id.starts_with("safety-") {
                        self.machines[machine].committed.insert(id.into());
                    }
                }
                Ok(Answer::Nothing)
            }
            Op::Delete(key) => {
                if let Some(id) = key.strip_suffix("/manifest.json") {
                    let own = &mut self.machines[machine];
                    if own.made.contains(id) {
                        own.committed.remove(id);
                    } else {
                        assert!(own.committed.contains(id), "machine {machine} removes {id} of another");
                    }
                }
                if let Some(mut object) = self.objects.remove(key) {
                    object.died = Some(self.operations);
                    self.gone.push((key.clone(), object));
                }
                Ok(Answer::Nothing)
            }
        }
    }

    /// One operation, in the time that it takes.
    fn perform(&mut self, machine: usize, op: &Op, verdict: Verdict, random: &mut Random) -> Result<Answer> {
        self.operations += 1;
        self.now += Duration::from_millis(random.below(3_000));
        // The machines sleep, or the line is that slow: before it takes effect, or before its answer arrives.
        let sleep = (random.below(1_000) < self.sleeps)
            .then(|| Duration::from_mins(random.pick(&[1, 8, 15, 300, 3_000, 9_000])));
        let (before, after) = if self.operations.is_multiple_of(2) { (sleep, None) } else { (None, sleep) };
        self.pass(before.unwrap_or_default());
        let takes_effect = !matches!(verdict, Verdict::Fail { after: false, .. } | Verdict::Crash { after: false });
        let result = if takes_effect { self.take_effect(machine, op) } else { Ok(Answer::Nothing) };
        self.machines[machine].told = Some(self.now);
        self.pass(after.unwrap_or_default());
        self.show_clock_of(machine);
        result
    }

    /// Moves the clock on.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        // No store keeps anything from a listing for longer.
        if time > Duration::from_mins(10) {
            self.settled = self.operations;
        }
    }

    /// Sets the clock to what it shows on a machine.
    fn show_clock_of(&self, machine: usize) {
        let skew = self.machines[machine].skew;
        let off = HOUR * u32::try_from(skew.unsigned_abs()).unwrap();
        Fate::get().show(if skew < 0 { self.now - off } else { self.now + off });
    }

    fn listed(&self) -> Vec<String> {
        self.objects.keys().filter_map(|key| key.strip_suffix("/manifest.json")).map(Into::into).collect()
    }
}

/// A command of one machine.
#[derive(Debug, Clone)]
enum Action {
    Push,
    Prune,
    Rollback(String),
    Pull(String),
    Verify,
    List,
    Diff(String),
    Status,
}

/// How a command ended.
#[derive(Debug)]
enum Outcome {
    Done,
    Failed(Error),
    Crashed,
}

#[derive(Default)]
struct Queue(Mutex<Vec<Waiting>>);

/// One machine's way to the store.
struct Remote {
    machine: usize,
    queue: Arc<Queue>,
    world: Arc<Mutex<World>>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("machine", &self.machine).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Remote {
    async fn ask(&self, op: Op) -> Result<Answer> {
        let (answer, answered) = oneshot::channel();
        lock(&self.queue.0).push(Waiting { machine: self.machine, op, answer });
        match answered.await {
            Ok(answer) => answer,
            // The machine has ended; what of it still runs here has no way to the store.
            Err(_) => std::future::pending().await,
        }
    }

    async fn bytes(&self, op: Op) -> Result<Bytes> {
        match self.ask(op).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => unreachable!("reading gives bytes"),
        }
    }
}

#[async_trait]
impl Store for Remote {
    async fn list(&self, prefix: &str) -> Result<Listing> {
        match self.ask(Op::List(prefix.into())).await? {
            Answer::Listing(listing) => Ok(listing),
            _ => unreachable!("listing gives a listing"),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.bytes(Op::Get(key.into())).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.bytes(Op::Range(key.into(), offset, length)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.ask(Op::Put(key.into(), body)).await.map(|_| ())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.ask(Op::Delete(key.into())).await.map(|_| ())
    }

    /// As the contract has it: what the last answer said, and before the first one the machine's own clock.
    fn now(&self) -> SystemTime {
        lock(&self.world).machines[self.machine].told.unwrap_or_else(SystemTime::now)
    }

    fn location(&self) -> String {
        "a simulated store".into()
    }
}

/// The machines, their state directories and the store.
struct Simulation {
    root: tempfile::TempDir,
    world: Arc<Mutex<World>>,
    runtime: tokio::runtime::Runtime,
    config: serde_json::Value,
    /// Every operation and what became of it.
    trace: Vec<String>,
    faults: u64,
    edits: u64,
}

impl Simulation {
    fn new(seed: u64, machines: &[(usize, i64)], encrypt: bool) -> Self {
        Fate::get().seed(seed);
        // To the second, as what is random must not depend on less.
        let since = Fate::get().began.0.duration_since(UNIX_EPOCH).unwrap();
        let today = UNIX_EPOCH + Duration::from_secs(since.as_secs());
        let world = World {
            now: today,
            operations: 0,
            settled: 0,
            objects: BTreeMap::new(),
            gone: Vec::new(),
            machines: machines
                .iter()
                .map(|(keep, skew)| Machine { keep: *keep, skew: *skew, ..Machine::default() })
                .collect(),
            models: BTreeMap::new(),
            hides: 0,
            sleeps: 0,
            random: Random(seed ^ 0x5eed),
        };
        let root = tempfile::tempdir().unwrap();
        for machine in 0..machines.len() {
            fs::create_dir(root.path().join(format!("state-{machine}"))).unwrap();
        }
        Self {
            root,
            world: Arc::new(Mutex::new(world)),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap(),
            config: serde_json::json!({ "applicationKey": "K005-key-of-a-test", "encrypt": encrypt }),
            trace: Vec::new(),
            faults: 0,
            edits: 0,
        }
    }

    /// The same once more, in directories of its own.
    fn copy(&self) -> Self {
        let root = tempfile::tempdir().unwrap();
        let from = format!("{}/.", self.root.path().display());
        let copied = std::process::Command::new("cp").args(["-a", &from]).arg(root.path()).status().unwrap();
        assert!(copied.success());
        Self {
            root,
            world: Arc::new(Mutex::new(lock(&self.world).clone())),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap(),
            config: self.config.clone(),
            trace: Vec::new(),
            faults: 0,
            edits: self.edits,
        }
    }

    fn state_dir(&self, machine: usize) -> PathBuf {
        self.root.path().join(format!("state-{machine}"))
    }

    fn target(&self, machine: usize, state_dir: &Path) -> Target {
        let mut config = self.config.clone();
        config["stateDir"] = serde_json::json!(state_dir);
        // Named, so that nobody asks where it is; the simulated store stands in for it.
        config["endpoint"] = serde_json::json!(format!("file://{}/nowhere", self.root.path().display()));
        config["keepSnapshots"] = serde_json::json!(lock(&self.world).machines[machine].keep);
        Target::from_json(&config).unwrap()
    }

    /// Changes some files of a machine's state. All machines draw on few contents, so that they share chunks.
    fn edit(&mut self, machine: usize, random: &mut Random) {
        const NAMES: [&str; 9] = [
            "workspace/a",
            "workspace/b",
            "workspace/c/d",
            "workspace/c/e",
            "agents/main/log.jsonl",
            "cron/jobs.txt",
            "memory/x",
            "memory/y/z",
            "top",
        ];
        let state = self.state_dir(machine);
        for _ in 0..=random.below(4) {
            let path = state.join(random.pick(&NAMES));
            if random.percent(20) {
                let _ = fs::remove_file(path);
                continue;
            }
            self.edits += 1;
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut content = noise(random.pick(&[0, 12, 3_000, 9_000, 60_000]), random.below(6));
            if random.percent(40) {
                content.extend(self.edits.to_le_bytes());
            }
            fs::write(&path, content).unwrap();
            // Two edits in one tick of the file system's clock would look like one to the machine.
            let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.edits);
            fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }

    /// Gives directories that changed a time which follows from the seed: it is stored, and what chunks a file tree is cut into
    /// depends on it.
    fn date_directories(&self, machine: usize) {
        let edited = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.edits);
        let is_state = |entry: &walkdir::DirEntry| entry.file_name() != "b2-backup";
        for entry in walkdir::WalkDir::new(self.state_dir(machine)).into_iter().filter_entry(is_state) {
            let entry = entry.unwrap();
            if entry.file_type().is_dir() && entry.metadata().unwrap().modified().unwrap() > edited {
                fs::File::open(entry.path()).unwrap().set_modified(edited).unwrap();
            }
        }
    }

    /// Runs commands side by side until all have ended. `judge` says what becomes of an operation, by the number that it
    /// has among those of its machine.
    fn run(
        &mut self,
        commands: Vec<(usize, Action)>,
        random: &mut Random,
        mut judge: impl FnMut(&mut Random, usize, u64) -> Verdict,
    ) -> Vec<Outcome> {
        let queue = Arc::new(Queue::default());
        let mut tasks = BTreeMap::new();
        for (machine, action) in &commands {
            let state = self.state_dir(*machine);
            let target = self.target(*machine, &state);
            let remote = Remote { machine: *machine, queue: Arc::clone(&queue), world: Arc::clone(&self.world) };
            self.date_directories(*machine);
            {
                let mut world = lock(&self.world);
                let known = &mut world.machines[*machine];
                (known.state, known.told, known.misled) = (Arc::new(tree(&state)), None, false);
                known.made.clear();
            }
            let remote = Arc::new(remote);
            let operation = Operation { store: Some(Arc::clone(&remote) as Arc<dyn Store>), ..Operation::default() };
            let to = self.root.path().join(format!("pulled-{machine}"));
            let action = action.clone();
            let task = async move {
                remote.ask(Op::Begin).await?;
                perform(target, action, to, operation).await
            };
            tasks.insert(*machine, self.runtime.spawn(task));
        }
        let mut counts: BTreeMap<usize, u64> = BTreeMap::new();
        let (world, trace, faults) = (&self.world, &mut self.trace, &mut self.faults);
        let crashed = self.runtime.block_on(async {
            let mut crashed = BTreeSet::new();
            let mut idle = 0;
            while tasks.values().any(|task| !task.is_finished()) {
                // Over only when nothing else moves.
                tokio::time::sleep(TURN).await;
                let mut waiting = lock(&queue.0);
                waiting.retain(|waiting| !crashed.contains(&waiting.machine) && !waiting.answer.is_closed());
                waiting.sort_by_key(|waiting| (waiting.machine, waiting.op.order()));
                if waiting.is_empty() {
                    idle += 1;
                    assert!(idle < 50, "nobody moves, and somebody is not done");
                    continue;
                }
                idle = 0;
                let chosen = random.below(waiting.len() as u64) as usize;
                let Waiting { machine, op, answer } = waiting.remove(chosen);
                drop(waiting);
                let verdict = if let Op::Begin = op {
                    Verdict::Done
                } else {
                    let number = counts.entry(machine).or_default();
                    *number += 1;
                    judge(random, machine, *number - 1)
                };
                trace.push(format!(
                    "{machine} {} {}",
                    op.shown(),
                    if verdict == Verdict::Done { String::new() } else { format!("{verdict:?}") }
                ));
                *faults += u64::from(verdict != Verdict::Done);
                let result = lock(world).perform(machine, &op, verdict, random);
                match verdict {
                    Verdict::Done => _ = answer.send(result),
                    Verdict::Fail { passing, .. } => {
                        let error = Error::new(if passing { Code::Network } else { Code::Auth }, "a simulated fault");
                        let _ = answer.send(Err(if passing { error.retryable() } else { error }));
                    }
                    Verdict::Crash { .. } => {
                        crashed.insert(machine);
                        tasks[&machine].abort();
                    }
                }
            }
            crashed
        });
        let mut outcomes = Vec::new();
        for (machine, action) in commands {
            let result = self.runtime.block_on(tasks.remove(&machine).unwrap());
            self.trace.push(format!("{machine} {action:?}: {result:?}"));
            let outcome = match result {
                Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
                Err(_) => Outcome::Crashed,
                Ok(Err(error)) => Outcome::Failed(error),
                Ok(Ok(done)) => {
                    self.check_done(machine, &action, done);
                    Outcome::Done
                }
            };
            assert_eq!(crashed.contains(&machine), matches!(outcome, Outcome::Crashed));
            self.check_state(machine, &action, &outcome);
            outcomes.push(outcome);
        }
        outcomes
    }

    fn check_done(&self, machine: usize, action: &Action, done: Done) {
        let world = lock(&self.world);
        match (action, done) {
            (Action::Push, Done::Pushed(Some(id))) => assert!(world.models.contains_key(&id), "{id} was never stored"),
            (Action::Push, Done::Pushed(None)) => {
                let models = &world.models;
                let own = world.machines[machine].committed.iter().filter_map(|id| models.get(id));
                assert!(
                    own.into_iter().any(|model| *model == world.machines[machine].state),
                    "unchanged, but never pushed"
                );
            }
            (Action::Pull(_), Done::Pulled(id, pulled)) => assert_same(&pulled, &world.models[&id]),
            (Action::Verify, Done::Verified(problems)) if !world.machines[machine].misled => {
                assert_eq!(problems, Vec::<String>::new());
            }
            _ => {}
        }
    }

    /// A rollback leaves the new state, or with a failure the old one; nothing else changes anything.
    fn check_state(&self, machine: usize, action: &Action, outcome: &Outcome) {
        let (now, world) = (tree(&self.state_dir(machine)), lock(&self.world));
        match (action, outcome) {
            (Action::Rollback(id), Outcome::Done) => assert_same(&now, &world.models[id]),
            _ => assert_same(&now, &world.machines[machine].state),
        }
        if let Outcome::Failed(error) = outcome {
            assert!(!error.to_string().contains("defect") && !error.to_string().contains("internal"), "{error:?}");
        }
        let left = self.state_dir(machine).join("b2-backup/tmp");
        let copies = fs::read_dir(left).into_iter().flatten().count();
        assert_eq!(copies, 0, "plain copies are left");
    }

    /// One command without any fault.
    fn must(&mut self, machine: usize, action: &Action) {
        let outcome = self.run(vec![(machine, action.clone())], &mut Random(1), |_, _, _| Verdict::Done);
        assert!(matches!(outcome[..], [Outcome::Done]), "{action:?}: {outcome:?}");
    }

    /// Moves the store's clock on.
    fn pass(&self, time: Duration) {
        lock(&self.world).pass(time);
    }

    /// The next run of every machine works without repair, everything listed gives back what it has to, also once all that
    /// nobody needs is gone.
    fn check_all(&mut self) {
        {
            let mut world = lock(&self.world);
            (world.hides, world.sleeps) = (0, 0);
        }
        let machines = lock(&self.world).machines.len();
        for machine in 0..machines {
            self.must(machine, &Action::Push);
        }
        self.check_listed();
        for _ in 0..3 {
            for machine in 0..machines {
                self.pass(49 * HOUR);
                self.must(machine, &Action::Prune);
            }
        }
        self.check_listed();
        let before = self.trace.len();
        self.must(0, &Action::Prune);
        let changes: Vec<&String> =
            self.trace[before..].iter().filter(|line| line.contains("put ") || line.contains("delete ")).collect();
        assert!(changes.is_empty(), "pruning never ends: {changes:?}");
    }

    fn check_listed(&mut self) {
        // As a machine that has only the configuration.
        let nowhere = self.root.path().join("no-state");
        let target = self.target(0, &nowhere);
        let world = lock(&self.world).clone();
        let mut listed = world.listed();
        for (number, machine) in world.machines.iter().enumerate() {
            for id in machine.committed.iter().rev().take(machine.keep) {
                assert!(listed.contains(id), "{id} of machine {number} is gone");
            }
        }
        listed.sort();
        let actions: Vec<Action> =
            listed.iter().cloned().map(Action::Pull).chain([Action::List, Action::Verify]).collect();
        let root = self.root.path().to_owned();
        let direct: Arc<dyn Store> = Arc::new(Direct(Arc::clone(&self.world)));
        for action in actions {
            let operation = Operation { store: Some(Arc::clone(&direct)), ..Operation::default() };
            let done = self.runtime.block_on(perform(target.clone(), action.clone(), root.join("pulled"), operation));
            match (&action, done.unwrap_or_else(|error| panic!("{action:?}: {error:?}"))) {
                (Action::Pull(id), Done::Pulled(_, pulled)) => assert_same(&pulled, &world.models[id]),
                (Action::List, Done::Listed(mut found)) => {
                    found.sort();
                    assert_eq!(found, listed);
                }
                (Action::Verify, Done::Verified(problems)) => assert_eq!(problems, Vec::<String>::new()),
                (_, done) => panic!("{action:?}: {done:?}"),
            }
        }
    }
}

/// The store without turns and faults, for who looks at the end.
#[derive(Debug)]
struct Direct(Arc<Mutex<World>>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("objects", &self.objects.len()).finish_non_exhaustive()
    }
}

impl Direct {
    fn ask(&self, op: &Op) -> Result<Answer> {
        lock(&self.0).take_effect(0, op)
    }

    fn bytes(&self, op: &Op) -> Result<Bytes> {
        match self.ask(op)? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => unreachable!("reading gives bytes"),
        }
    }
}

#[async_trait]
impl Store for Direct {
    async fn list(&self, prefix: &str) -> Result<Listing> {
        match self.ask(&Op::List(prefix.into()))? {
            Answer::Listing(listing) => Ok(listing),
            _ => unreachable!("listing gives a listing"),
        }
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.bytes(&Op::Get(key.into()))
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.bytes(&Op::Range(key.into(), offset, length))
    }

    async fn put(&self, key: &str, _: Bytes) -> Result<()> {
        panic!("who only looks stores {key}");
    }

    async fn delete(&self, key: &str) -> Result<()> {
        panic!("who only looks removes {key}");
    }

    fn now(&self) -> SystemTime {
        lock(&self.0).now
    }

    fn location(&self) -> String {
        "a simulated store".into()
    }
}

/// What a command that succeeded says.
#[derive(Debug)]
enum Done {
    Pushed(Option<String>),
    Pulled(String, Tree),
    Verified(Vec<String>),
    Listed(Vec<String>),
    Other,
}

async fn perform(target: Target, action: Action, to: PathBuf, operation: Operation) -> Result<Done> {
    Ok(match action {
        Action::Push => {
            let report = push::push(&target, PushOptions { trigger: Trigger::Manual }, &operation).await?;
            assert!(report.exceptions.is_empty(), "{report:?}");
            Done::Pushed(report.snapshot)
        }
        Action::Prune => {
            prune::prune(&target, &operation).await?;
            Done::Other
        }
        Action::Rollback(snapshot) => {
            let options = RollbackOptions { snapshot, paths: Vec::new(), plan_only: false, partial: false };
            rollback::rollback(&target, options, &operation).await?;
            Done::Other
        }
        Action::Pull(snapshot) => {
            let _ = fs::remove_dir_all(&to);
            let options = PullOptions { snapshot, directory: to.clone(), paths: Vec::new(), partial: false };
            let result = pull::pull(&target, options, &operation).await;
            assert!(result.is_ok() || !to.exists(), "a pull that failed leaves something");
            Done::Pulled(result?.snapshot, tree(&to))
        }
        Action::Verify => {
            Done::Verified(verify::verify(&target, VerifyOptions { read_data: Some(100) }, &operation).await?.problems)
        }
        Action::List => {
            let report = list::list(&target, &operation).await?;
            assert!(report.unreadable.is_empty(), "{report:?}");
            Done::Listed(report.snapshots.into_iter().map(|snapshot| snapshot.id).collect())
        }
        Action::Diff(from) => {
            diff::diff(&target, &from, None, &operation).await?;
            Done::Other
        }
        Action::Status => {
            status::status(&target, &StatusOptions::default(), &operation).await?;
            Done::Other
        }
    })
}

fn any_action(random: &mut Random, listed: &[String]) -> Action {
    if listed.is_empty() {
        return Action::Push;
    }
    let which = random.pick(listed);
    match random.below(100) {
        0..45 => Action::Push,
        45..62 => Action::Prune,
        62..77 => Action::Rollback(which),
        77..84 => Action::Verify,
        84..91 => Action::Pull(which),
        91..94 => Action::List,
        94..97 => Action::Diff(which),
        _ => Action::Status,
    }
}

/// Everything that follows from a seed.
fn simulate(seed: u64) -> Simulation {
    let mut random = Random(seed);
    let machines: Vec<(usize, i64)> =
        (0..2 + random.below(2)).map(|_| (1 + random.below(3) as usize, random.below(97).cast_signed() - 48)).collect();
    // scrypt takes most of the time of an encrypted one.
    let encrypt = random.percent(5);
    let mut simulation = Simulation::new(seed, &machines, encrypt);
    let faults = random.pick(&[0, 2, 8]);
    {
        let mut world = lock(&simulation.world);
        (world.hides, world.sleeps) = (random.pick(&[0, 0, 15]), random.pick(&[0, 0, 30]));
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..4 + random.below(5) {
            let listed = lock(&simulation.world).listed();
            let mut commands = Vec::new();
            for machine in 0..machines.len() {
                if random.percent(8) {
                    for side in ["", "-wal", "-shm"] {
                        let _ = fs::remove_file(
                            simulation.state_dir(machine).join(format!("b2-backup/cache.sqlite{side}")),
                        );
                    }
                }
                simulation.edit(machine, &mut random);
                commands.push((machine, any_action(&mut random, &listed)));
            }
            let outcomes = simulation.run(commands.clone(), &mut random, |random, _, _| {
                if !random.percent(faults) {
                    return Verdict::Done;
                }
                let after = random.percent(50);
                match random.below(10) {
                    0..6 => Verdict::Fail { after, passing: true },
                    6..8 => Verdict::Fail { after, passing: false },
                    _ => Verdict::Crash { after },
                }
            });
            for ((machine, action), outcome) in commands.iter().zip(outcomes) {
                let (misled, sleeps) = {
                    let world = lock(&simulation.world);
                    (world.machines[*machine].misled, world.sleeps > 0)
                };
                if let Outcome::Failed(error) = outcome
                    && faults == 0
                    && !misled
                {
                    // What it was about may have been removed by the machine that it belongs to.
                    let removed = matches!(action, Action::Rollback(_) | Action::Pull(_) | Action::Diff(_))
                        && error.code() == Code::NotFound;
                    // A push that slept while another machine pruned takes its snapshot back, and is to be repeated.
                    let overslept = sleeps && error.code() == Code::Network && error.is_retryable();
                    assert!(removed || overslept, "{action:?} fails without a fault: {error:?}");
                }
            }
            simulation.pass(random.pick(&[Duration::ZERO, HOUR / 2, 13 * HOUR, 49 * HOUR, 100 * HOUR]));
        }
        simulation.check_all();
    }));
    if let Err(panic) = result {
        eprintln!("{}", simulation.trace.join("\n"));
        eprintln!(
            "seed {seed} fails; this shows it again:\n  SEED={seed} cargo test --test simulation -- --ignored --exact replay --nocapture"
        );
        std::panic::resume_unwind(panic);
    }
    simulation
}

/// Two machines with some snapshots each, and more than they keep.
fn two_machines(pushes: usize, keep: usize) -> Simulation {
    let mut random = Random(7);
    let mut simulation = Simulation::new(7, &[(keep, 40), (2, -40)], false);
    for _ in 0..pushes {
        for machine in 0..2 {
            simulation.edit(machine, &mut random);
            simulation.must(machine, &Action::Push);
        }
        simulation.pass(HOUR);
    }
    simulation
}

/// Every command, each in a repository in which it has all the work that it can have.
fn scenes() -> Vec<(&'static str, Simulation, Action)> {
    let edited = |mut simulation: Simulation| {
        let mut random = Random(8);
        (0..3).for_each(|_| simulation.edit(0, &mut random));
        simulation
    };
    let later = |simulation: Simulation| {
        simulation.pass(49 * HOUR);
        simulation
    };
    let oldest = |simulation: &Simulation| lock(&simulation.world).listed().remove(0);
    let base = two_machines(4, 2);
    let id = oldest(&base);
    let first = edited(Simulation::new(9, &[(2, 40), (2, -40)], true));
    let mut interrupted = edited(base.copy());
    interrupted.run(vec![(0, Action::Push)], &mut Random(1), |_, _, number| match number {
        2 => Verdict::Crash { after: true },
        _ => Verdict::Done,
    });
    let mut condemned = later(base.copy());
    condemned.must(1, &Action::Prune);
    let mut many = two_machines(6, 2);
    many.pass(49 * HOUR);
    many.edit(0, &mut Random(3));
    vec![
        ("the first push", first, Action::Push),
        ("a push that removes old snapshots", edited(later(base.copy())), Action::Push),
        ("a push after one that was interrupted", interrupted, Action::Push),
        ("a prune that condemns", later(base.copy()), Action::Prune),
        ("a prune that deletes", later(condemned), Action::Prune),
        ("a prune that merges", many, Action::Prune),
        ("a rollback", edited(base.copy()), Action::Rollback(id.clone())),
        ("a pull", base.copy(), Action::Pull(id.clone())),
        ("a verify", base.copy(), Action::Verify),
        ("a list", base.copy(), Action::List),
        ("a diff", base.copy(), Action::Diff(id)),
        ("a status", base, Action::Status),
    ]
}

/// Fails every operation of every command in turn, before and after it takes effect.
fn fail_every_operation(kinds: impl Fn(u64) -> Vec<fn(bool) -> Verdict>, side_by_side: bool) {
    let mut failed = 0;
    for (name, scene, action) in scenes() {
        let mut operations = 0;
        let mut commands = vec![(0, action.clone())];
        if side_by_side {
            commands.push((1, Action::Push));
        }
        for number in 0.. {
            let mut reached = true;
            for (kind, verdict) in kinds(number).into_iter().enumerate() {
                for after in [false, true] {
                    let mut simulation = scene.copy();
                    if side_by_side {
                        simulation.edit(1, &mut Random(number));
                    }
                    let mut random = Random(number * 100 + kind as u64 * 10 + u64::from(after));
                    let verdict = verdict(after);
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        reached = false;
                        let lost = verdict == LOST;
                        simulation.run(commands.clone(), &mut random, |_, machine, at| {
                            let hit = machine == 0 && (at == number || lost && at > number);
                            reached |= hit;
                            if hit { verdict } else { Verdict::Done }
                        });
                        simulation.must(0, &action);
                        simulation.check_all();
                    }));
                    if let Err(panic) = result {
                        eprintln!("{}", simulation.trace.join("\n"));
                        eprintln!("{name} fails when operation {number} ends with {verdict:?}");
                        std::panic::resume_unwind(panic);
                    }
                    failed += u64::from(reached);
                }
            }
            if !reached {
                operations = number;
                break;
            }
        }
        eprintln!("{name}: {operations} operations");
    }
    eprintln!("{failed} times one was failed");
}

/// Stands for a line that is lost from then on.
const LOST: Verdict = Verdict::Fail { after: false, passing: false };

const KINDS: [fn(bool) -> Verdict; 3] = [
    |after| Verdict::Fail { after, passing: true },
    |after| Verdict::Fail { after, passing: false },
    |after| Verdict::Crash { after },
];

/// One kind of failure for each operation, before and after. `FAULTS=all` takes every kind, and has a second machine push
/// meanwhile.
#[test]
#[ignore = "slow; npm test runs it"]
fn every_store_operation_of_every_command_may_fail() {
    Fate::run("every_store_operation_of_every_command_may_fail", || {
        if std::env::var("FAULTS").is_ok_and(|which| which == "all") {
            fail_every_operation(|_| KINDS.to_vec(), false);
            fail_every_operation(|_| KINDS.to_vec(), true);
        } else {
            fail_every_operation(|number| vec![KINDS[number as usize % KINDS.len()]], false);
        }
    });
}

fn simulate_all(seeds: std::ops::Range<u64>) {
    let (mut operations, mut faults, mut count) = (0, 0, 0);
    for seed in seeds.clone() {
        let simulation = simulate(seed);
        operations += lock(&simulation.world).operations;
        faults += simulation.faults;
        count += 1;
        if count % 100 == 0 || seed + 1 == seeds.end {
            eprintln!("{count} seeds: {operations} store operations, {faults} of them failed or ended their machine");
        }
    }
}

#[test]
fn whatever_machines_and_store_do_nothing_that_is_listed_is_lost() {
    Fate::run("whatever_machines_and_store_do_nothing_that_is_listed_is_lost", || simulate_all(0..6));
}

#[test]
fn what_was_lost_once_is_lost_no_more() {
    Fate::run("what_was_lost_once_is_lost_no_more", || {
        // A machine slept between the look of its prune at the store and what it did by it: packs that another one had
        // stored meanwhile were old by then, and deleted.
        simulate_all(20_018..20_019);
        // A verify took a pack that another machine deleted meanwhile for damage.
        simulate_all(3_072..3_073);
        // A machine slept for days between its pack and the index object that names it, and another one, that had looked at
        // the store before, deleted the pack as an orphan.
        simulate_all(1_776..1_777);
    });
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_seed_gives_the_same_run_again() {
    Fate::run("a_seed_gives_the_same_run_again", || {
        for seed in 50..53 {
            let operations = || {
                let trace = simulate(seed).trace;
                trace.into_iter().filter(|line| !line.contains(": ")).collect::<Vec<_>>()
            };
            let (first, second) = (operations(), operations());
            let differs = first.iter().zip(&second).position(|(first, second)| first != second);
            let from = differs.unwrap_or(0).saturating_sub(8);
            assert!(first == second, "{seed}: {:#?}\n{:#?}", &first[from..from + 10], &second[from..from + 10]);
        }
    });
}

#[test]
#[ignore = "slow; npm test runs it"]
fn whatever_machines_and_store_do_nothing_that_is_listed_is_lost_with_more_seeds() {
    let seeds = std::env::var("SEEDS").unwrap_or_else(|_| "40".into());
    let number = |text: &str| text.parse().expect("SEEDS is a number, or a range such as 10..20");
    let seeds = match seeds.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 100..100 + number(&seeds),
    };
    let name = "whatever_machines_and_store_do_nothing_that_is_listed_is_lost_with_more_seeds";
    Fate::run(name, || simulate_all(seeds));
}

#[test]
#[ignore = "shows the one seed that SEED names"]
fn replay() {
    let Some(seed) = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()) else { return };
    Fate::run("replay", || eprintln!("{}", simulate(seed).trace.join("\n")));
}
