//! One file per verb. Each takes a validated [`Target`](crate::config::Target), its options and an [`Operation`], and returns a report.

mod capture;
pub mod cost;
pub mod diff;
pub mod drill;
pub mod import_legacy;
pub mod key;
pub mod list;
mod newest;
mod other_machine;
mod plan;
pub mod prune;
pub mod pull;
pub mod push;
pub mod rollback;
mod snapshot;
pub mod status;
mod unmounted;
pub mod verify;
mod workplace;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::store::{Deletion, Hidden, SharedStore};
use crate::task::cores;

/// How far an operation has come. Counts only grow within a phase; totals may still grow while `phase` is `scan`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// `scan`, `upload`, `download`, `stage`, `apply` or `verify`.
    pub phase: &'static str,
    /// Files finished.
    pub files_done: u64,
    /// Files known so far.
    pub files_total: u64,
    /// Bytes of content finished.
    pub bytes_done: u64,
    /// Bytes of content known so far.
    pub bytes_total: u64,
    /// Stored bytes sent or received so far.
    pub transferred_bytes: u64,
}

/// What a caller hands to a running command: a way to cancel it and a place to report to.
#[derive(Clone, Default)]
pub struct Operation {
    /// Cancelled by the caller; the command then stops at the next safe point with `CANCELLED`.
    pub cancel: CancellationToken,
    /// Called at most about ten times a second, from any thread.
    pub on_progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// Stands in for the store that the target names: how tests show faults that no real server shows on demand. Nothing
    /// but a test sets it.
    pub store: Option<SharedStore>,
    /// How many threads read, compress and encrypt at once; `None` is one for each core.
    pub threads: Option<NonZeroUsize>,
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operation").field("cancelled", &self.cancel.is_cancelled()).finish_non_exhaustive()
    }
}

impl Operation {
    /// `CANCELLED` once the caller has cancelled.
    ///
    /// # Errors
    /// Only that one.
    pub fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Whether somebody waits for the result: then the whole machine is used.
    pub(crate) fn is_awaited(&self) -> bool {
        self.threads.is_none()
    }

    /// How many threads read, compress and encrypt at once.
    pub(crate) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(cores).get()
    }
}

/// Counts what threads do and tells the caller about it, at most ten times a second.
#[derive(Debug)]
pub(crate) struct Meter {
    operation: Operation,
    phase: &'static str,
    started: Instant,
    last_report_ms: AtomicU64,
    files_total: AtomicU64,
    files_done: AtomicU64,
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    transferred: AtomicU64,
}

impl Meter {
    const INTERVAL_MS: u64 = 100;

    pub(crate) fn new(operation: &Operation, phase: &'static str, files_total: u64, bytes_total: u64) -> Self {
        Self {
            operation: operation.clone(),
            phase,
            started: Instant::now(),
            last_report_ms: AtomicU64::new(0),
            files_total: AtomicU64::new(files_total),
            files_done: AtomicU64::new(0),
            bytes_total: AtomicU64::new(bytes_total),
            bytes_done: AtomicU64::new(0),
            transferred: AtomicU64::new(0),
        }
    }

    /// Adds to the totals.
    pub(crate) fn expect(&self, files: u64, bytes: u64) {
        self.files_total.fetch_add(files, Ordering::Relaxed);
        self.bytes_total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn files(&self, count: u64) {
        self.files_done.fetch_add(count, Ordering::Relaxed);
        self.report();
    }

    pub(crate) fn bytes(&self, count: u64) {
        self.bytes_done.fetch_add(count, Ordering::Relaxed);
        self.report();
    }

    pub(crate) fn transferred(&self, total: u64) {
        self.transferred.store(total, Ordering::Relaxed);
        self.report();
    }

    fn report(&self) {
        let Some(report) = &self.operation.on_progress else { return };
        let now = self.started.elapsed().as_millis() as u64;
        let last = self.last_report_ms.load(Ordering::Relaxed);
        let due = now >= last + Self::INTERVAL_MS;
        // Whoever moves the time on reports; the others go on with their work.
        if due && self.last_report_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            report(Progress {
                phase: self.phase,
                files_done: self.files_done.load(Ordering::Relaxed),
                files_total: self.files_total.load(Ordering::Relaxed),
                bytes_done: self.bytes_done.load(Ordering::Relaxed),
                bytes_total: self.bytes_total.load(Ordering::Relaxed),
                transferred_bytes: self.transferred.load(Ordering::Relaxed),
            });
        }
    }
}

/// Why a snapshot was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// The configured schedule.
    Schedule,
    /// A scheduled run that was missed while the gateway was down.
    CatchUp,
    /// The host is about to compact a conversation.
    BeforeCompaction,
    /// The gateway is stopping or restarting.
    GatewayStop,
    /// The owner asked.
    Manual,
    /// The safety snapshot of a rollback.
    BeforeRollback,
    /// It was one of 0.1.x, which did not say why it took it.
    Import,
}

impl Trigger {
    /// Whether nobody waits for the snapshot: what the machine is otherwise used for comes first.
    #[must_use]
    pub const fn can_wait(self) -> bool {
        matches!(self, Self::Schedule | Self::CatchUp)
    }

    /// The stable spelling, for example `before_compaction`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Schedule => "schedule",
            Self::CatchUp => "catch_up",
            Self::BeforeCompaction => "before_compaction",
            Self::GatewayStop => "gateway_stop",
            Self::Manual => "manual",
            Self::BeforeRollback => "before_rollback",
            Self::Import => "import",
        }
    }
}

impl std::str::FromStr for Trigger {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let [schedule, catch_up, compaction] = [Self::Schedule, Self::CatchUp, Self::BeforeCompaction];
        [schedule, catch_up, compaction, Self::GatewayStop, Self::Manual, Self::BeforeRollback, Self::Import]
            .into_iter()
            .find(|trigger| trigger.as_str() == text)
            .ok_or_else(|| Error::config("trigger", format!("{text:?} is not a trigger")))
    }
}

/// Something of the state that a snapshot does not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Exception {
    /// Path as the snapshot names it; what is not UTF-8 is shown with replacement characters.
    pub path: String,
    /// Why it is not in the snapshot.
    pub reason: String,
}

/// Options of `push`.
#[derive(Debug, Clone)]
pub struct PushOptions {
    /// Recorded in the snapshot.
    pub trigger: Trigger,
}

/// What a push did.
#[derive(Debug, Clone)]
pub struct PushReport {
    /// The new snapshot's id; `None` when nothing had changed since the last one.
    pub snapshot: Option<String>,
    /// Why it was taken.
    pub trigger: Trigger,
    /// Files in the state.
    pub files: u64,
    /// Bytes of content of those files.
    pub bytes: u64,
    /// Files that are new or differ from this machine's last snapshot.
    pub changed_files: u64,
    /// Bytes sent to the store.
    pub uploaded_bytes: u64,
    /// Requests made to the store.
    pub requests: u64,
    /// What the snapshot does not hold.
    pub exceptions: Vec<Exception>,
    /// The paths of those exceptions that this machine could read before; also a warning.
    pub dropped: Vec<String>,
    /// What failed after the snapshot was safe, for example the retention that follows it.
    pub warnings: Vec<String>,
    /// That the state has lost most of what it held: nothing is pruned until the owner agrees.
    pub shrunk: Option<Shrink>,
    /// The newest snapshot that this machine had seen, when neither it nor a newer one was listed any more; also a warning.
    pub missing: Option<String>,
    /// Whose snapshots were there before, when this is the first one of this machine.
    pub other_machine: Option<OtherMachine>,
    /// How long it took.
    pub duration: Duration,
}

/// Another machine with snapshots in the same repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherMachine {
    /// Its newest snapshot that has something of agents.
    pub snapshot: String,
    /// Its host name.
    pub host: String,
    /// Whether this machine is blank, and is restored when its gateway starts.
    pub restores_itself: bool,
}

/// A state that holds less than half of the files that a snapshot of it holds, or less than a quarter of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shrink {
    /// The snapshot that holds the most.
    pub snapshot: String,
    /// How many files it holds.
    pub files_before: u64,
    /// How many files the state holds.
    pub files: u64,
    /// How many bytes are in those of the snapshot.
    pub bytes_before: u64,
    /// How many bytes are in those of the state.
    pub bytes: u64,
}

/// Whether retention may age a snapshot out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Taken by a trigger; retention applies.
    Regular,
    /// Taken before a rollback; never pruned automatically.
    Safety,
    /// Written by 0.1.x; never pruned, and selected by its id alone.
    Legacy,
}

impl SnapshotKind {
    /// `regular`, `safety` or `legacy`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Safety => "safety",
            Self::Legacy => "legacy",
        }
    }
}

/// One snapshot as `list` shows it.
#[derive(Debug, Clone)]
pub struct SnapshotInfo {
    /// The id, which is also the folder's name in the bucket.
    pub id: String,
    /// RFC 3339, UTC, by the store's clock; for one of 0.1.x by that of the machine that took it.
    pub created_at: String,
    /// Regular, safety or legacy.
    pub kind: SnapshotKind,
    /// Why it was taken; `unknown` for one of 0.1.x, unless it was taken before a restore.
    pub trigger: String,
    /// Host name of the machine that took it; `unknown` for one of 0.1.x.
    pub host: String,
    /// Files it holds.
    pub files: u64,
    /// Bytes of content it holds.
    pub bytes: u64,
    /// Whether it holds everything that was in scope.
    pub complete: bool,
    /// How many things it does not hold; for one of 0.1.x, how many files whose content is not stored any more.
    pub exceptions: u64,
    /// The first of them; of one of 0.1.x none.
    pub first_exceptions: Vec<Exception>,
    /// Whether the state had lost most of what it held when it was taken.
    pub shrunk: bool,
}

/// What `list` found.
#[derive(Debug, Clone, Default)]
pub struct ListReport {
    /// Readable snapshots, newest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Snapshots whose manifest cannot be read, with the reason.
    pub unreadable: Vec<Exception>,
    /// What the owner should look after: that the newest snapshot that this machine has seen is not listed any more.
    pub warnings: Vec<String>,
}

/// Options of `pull`.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// An id, the unique start of one, `latest`, or a time expression.
    pub snapshot: String,
    /// An empty or new directory outside the live state.
    pub directory: std::path::PathBuf,
    /// Globs over snapshot paths; empty means everything.
    pub paths: Vec<String>,
    /// Do without the files that cannot be restored, instead of failing.
    pub partial: bool,
}

/// What a pull wrote.
#[derive(Debug, Clone)]
pub struct PullReport {
    /// The snapshot's id.
    pub snapshot: String,
    /// Files and symlinks written.
    pub files: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// What the snapshot does not hold.
    pub exceptions: Vec<Exception>,
    /// Files that could not be restored as they were stored, and are not there.
    pub lost: Vec<Exception>,
    /// What the owner should know besides.
    pub warnings: Vec<String>,
}

/// Options of `rollback`.
#[derive(Debug, Clone)]
pub struct RollbackOptions {
    /// An id, the unique start of one, `latest`, or a time expression.
    pub snapshot: String,
    /// Globs over snapshot paths; empty means everything.
    pub paths: Vec<String>,
    /// Say what would be done and do nothing.
    pub plan_only: bool,
    /// Leave the files as they are that cannot be restored, instead of failing.
    pub partial: bool,
}

/// What a rollback did, or with `plan_only` would do.
#[derive(Debug, Clone)]
pub struct RollbackReport {
    /// The snapshot that was restored.
    pub snapshot: String,
    /// The safety snapshot taken before; `None` for a plan or when nothing had to change.
    pub safety_snapshot: Option<String>,
    /// Paths written from the snapshot.
    pub restored: Vec<String>,
    /// Paths removed because the snapshot does not have them.
    pub deleted: Vec<String>,
    /// How many paths already were as in the snapshot.
    pub unchanged: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// Whether a gateway that ran on this state must be restarted.
    pub restart_required: bool,
    /// What the owner should know besides, for example what was set aside.
    pub warnings: Vec<String>,
}

/// Options of `verify`.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// Also download and check this part of the stored bytes, in percent (1 to 100): each time another one.
    pub read_data: Option<u8>,
}

/// A file of a snapshot whose content cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostFile {
    /// The snapshot's id.
    pub snapshot: String,
    /// Path as the snapshot names it.
    pub path: String,
    /// Why not.
    pub reason: String,
}

/// What `verify` found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// Snapshots checked.
    pub snapshots: u64,
    /// Packs checked.
    pub packs: u64,
    /// Chunks that the snapshots refer to.
    pub chunks: u64,
    /// Stored bytes that were read and checked.
    pub read_bytes: u64,
    /// What is wrong, each with the key or snapshot it concerns. Empty means the repository is sound.
    pub problems: Vec<String>,
    /// The files that cannot be restored, as far as is known, snapshot by snapshot.
    pub lost: Vec<LostFile>,
    /// Packs in which damage was found, now or before. The next push stores their content again, as far as it can.
    pub damaged_packs: u64,
    /// What was damaged, and is sound again.
    pub healed: Vec<String>,
}

/// Options of `drill`.
#[derive(Debug, Clone, Default)]
pub struct DrillOptions {
    /// An id, the unique start of one, `latest`, or a time expression. Default: one is drawn.
    pub snapshot: Option<String>,
}

/// What a restore drill has shown.
#[derive(Debug, Clone, Default)]
pub struct DrillReport {
    /// The snapshot that was restored; empty when there is none.
    pub snapshot: String,
    /// Files and databases that came out as they were stored.
    pub files: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Databases that were checked.
    pub databases: u64,
    /// What did not come out as it was stored. Empty means that the snapshot can be restored.
    pub problems: Vec<String>,
    /// Why nothing was restored.
    pub skipped: Option<String>,
}

/// Options of `prune`.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneOptions {
    /// The owner agrees that the state holds no more than it did at this machine's last snapshot.
    pub accept_shrink: bool,
    /// Apply retention to every machine's snapshots, each machine's by themselves, and not to this machine's alone: for
    /// machines whose keys may not delete.
    pub all_machines: bool,
}

/// What `prune` did.
#[derive(Debug, Clone, Default)]
pub struct PruneReport {
    /// Snapshots removed by retention.
    pub removed_snapshots: Vec<String>,
    /// Why nothing was done: the state has lost most of what it held, and the owner has not agreed yet.
    pub shrunk: Option<Shrink>,
    /// Packs taken out of use; their bytes go after the grace period.
    pub condemned_packs: u64,
    /// Packs deleted.
    pub deleted_packs: u64,
    /// Stored bytes freed.
    pub freed_bytes: u64,
    /// Objects that nothing needs any more and that Object Lock keeps for now.
    pub locked_objects: u64,
    /// Whether nothing was removed because the credentials may not delete: it is left to a key that may.
    pub left_to_another_key: bool,
    /// Where the credentials may only hide: the days after which a lifecycle rule of the bucket deletes what is hidden.
    pub hidden_for_days: Option<u32>,
}

/// Options of `import-legacy`.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Also take files that are stored unencrypted into an encrypted repository. Whoever can write to the bucket can have
    /// made them.
    pub accept_plain: bool,
}

/// What `import-legacy` did.
#[derive(Debug, Clone, Default)]
pub struct ImportReport {
    /// Snapshots that were made, oldest first.
    pub imported: Vec<Imported>,
    /// How many had been imported before.
    pub present: u64,
    /// Those that were not imported, with the reason: `path` is the id.
    pub skipped: Vec<Exception>,
}

/// One imported snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The id that 0.1.x gave it.
    pub from: String,
    /// The id of the snapshot that was made of it.
    pub snapshot: String,
}

/// One difference between two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Path as the snapshot names it.
    pub path: String,
    /// `added`, `removed` or `modified`, going from the first to the second.
    pub kind: &'static str,
}

/// What `diff` found.
#[derive(Debug, Clone)]
pub struct DiffReport {
    /// The older side.
    pub from: String,
    /// The newer side; `None` means the live state.
    pub to: Option<String>,
    /// The differences, ordered by path.
    pub changes: Vec<Change>,
}

/// Where backups stand.
#[derive(Debug, Clone)]
pub struct StatusReport {
    /// Where the repository is, without secrets.
    pub location: String,
    /// Whether what is stored is encrypted.
    pub encrypted: bool,
    /// Snapshots that can be listed, without those of 0.1.x.
    pub snapshots: u64,
    /// Snapshots of 0.1.x.
    pub legacy_snapshots: u64,
    /// The newest one, without those of 0.1.x.
    pub latest: Option<SnapshotInfo>,
    /// Bytes that the repository takes in the store.
    pub stored_bytes: u64,
    /// Objects that the repository takes in the store.
    pub objects: u64,
    /// Directories that are left out by default because they are rebuilt, found in this state.
    pub left_out: Vec<String>,
    /// That the state had lost most of what it held at this machine's last snapshot: nothing is pruned until the owner agrees.
    pub shrunk: Option<Shrink>,
    /// The snapshot that a drill on this machine restored last, and when.
    pub proven: Option<drill::Proven>,
    /// A listed snapshot that a drill on this machine could not restore.
    pub failed: Option<drill::Failed>,
    /// What the bucket keeps and bills besides: older versions; `None` where the service cannot tell.
    pub hidden: Option<Hidden>,
    /// How the store deletes what is not needed any more.
    pub deletion: Deletion,
    /// What the owner of the bucket should look after.
    pub warnings: Vec<String>,
    /// What a month costs, when that was asked for and the repository is not in a directory.
    pub cost: Option<cost::Cost>,
}

/// Options of `status`.
#[derive(Debug, Clone, Default)]
pub struct StatusOptions {
    /// How often the schedule takes a snapshot in 30 days: then the report says what a month costs.
    pub pushes_per_month: Option<f64>,
}
