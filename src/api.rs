//! The native functions as JavaScript sees them: convert, call, map the error. No logic.
//!
//! Every function returns a promise. A failure rejects it with an `Error` that has `code`, `retryable` and `context`;
//! a panic inside a command does so too. Only a call with arguments of the wrong JavaScript type throws at once.

#![allow(clippy::needless_pass_by_value)] // napi hands arguments over by value
#![allow(clippy::trivially_copy_pass_by_ref)] // and the environment by reference

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use napi::bindgen_prelude::{
    Either, FnArgs, Function, JsObjectValue, Object, ObjectRef, PromiseRaw, ToNapiValue, Unknown,
};
use napi::bindgen_prelude::{FunctionRef, JsValue};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi::{Env, Status};
use napi_derive::{module_init, napi};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use crate::commands::{self, Operation};
use crate::config::{self, Resolve};
use crate::error::{Error, Result};
use crate::memory;
use crate::state::openclaw_config::Environment;
use crate::store::Deletion;
use crate::task::{self, blocking};

#[module_init]
fn loaded() {
    memory::return_what_is_freed();
}

/// Weak, so that it does not keep the process alive; short of room it drops events.
type OnProgress = ThreadsafeFunction<Progress, Unknown<'static>, Progress, Status, false, true, 8>;

/// What to back up, and where: the resolved configuration of the plugin and the state directory it applies to.
/// Secrets are plain strings here; nothing of them is ever in a message or a result.
#[napi(object)]
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Target {
    /// The `OpenClaw` state directory, absolute.
    pub state_dir: String,
    /// B2 application key id, or S3 access key id. Not needed for a `file://` endpoint.
    pub key_id: Option<String>,
    /// B2 application key, or S3 secret access key. It also encrypts what is stored.
    pub application_key: Option<String>,
    /// Bucket name. Not needed for a `file://` endpoint.
    pub bucket: Option<String>,
    /// Region, for example `us-west-004`. Default: asked of B2.
    pub region: Option<String>,
    /// Folder in the bucket. Default: `openclaw-backup`.
    pub prefix: Option<String>,
    /// `daily`, `weekly`, a duration such as `6h`, or a cron expression. Default: `daily`.
    pub schedule: Option<String>,
    /// Whether what is stored is encrypted. Default: true.
    pub encrypt: Option<bool>,
    /// How many regular snapshots of this machine are kept, at least 1. Default: 10.
    pub keep_snapshots: Option<f64>,
    /// Base URL of another S3 service, or `file:///dir`. Default: Backblaze B2.
    pub endpoint: Option<String>,
    /// A further secret that opens the repository.
    pub passphrase: Option<String>,
    /// A file whose content is a further secret that opens the repository.
    pub key_file: Option<String>,
    /// The repository's recovery code, for a machine that has no other secret.
    pub recovery_code: Option<String>,
    /// What is kept beyond the newest snapshots.
    pub retention: Option<Retention>,
    /// Globs over snapshot paths that are added to the scope although a rule leaves them out.
    pub include: Option<Vec<String>>,
    /// Globs over snapshot paths that are left out.
    pub exclude: Option<Vec<String>>,
    /// Further files and directories outside the state directory, absolute.
    pub extra_paths: Option<Vec<String>>,
    /// Whether the agent's rollbacks wait for the owner's approval. Default: true.
    pub confirm_rollback: Option<bool>,
    /// Whether the owner is told of a failed backup. Default: true.
    pub notify_on_failure: Option<bool>,
    /// Whether a snapshot is restored once a week to try it. Default: true.
    pub restore_drill: Option<bool>,
    /// How many cores a backup that nobody waits for may keep busy, at least 1. Default: half of them.
    pub max_cpu: Option<f64>,
    /// How long to wait for what.
    pub timeouts: Option<Timeouts>,
    /// Where the bucket's name stands in a request to another S3 service. Default: as the service is known to need it.
    #[napi(ts_type = "'path' | 'virtual'")]
    pub addressing: Option<String>,
    /// Whether `endpoint` may be plain HTTP to another machine. Default: false.
    pub allow_insecure_endpoint: Option<bool>,
    /// For how many days S3's Object Lock keeps what is written from being deleted. Default: not at all.
    pub object_lock_days: Option<f64>,
    /// Where `b2_authorize_account` is answered; for tests.
    pub authorize_url: Option<String>,
}

/// How many days, weeks and months keep their newest snapshot.
#[napi(object)]
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Retention {
    /// Days that keep a snapshot.
    pub daily: Option<f64>,
    /// Weeks that keep a snapshot.
    pub weekly: Option<f64>,
    /// Months that keep a snapshot.
    pub monthly: Option<f64>,
    /// Days after which a snapshot is not kept by these counts.
    pub max_age_days: Option<f64>,
}

/// How long to wait for what, in milliseconds.
#[allow(clippy::struct_field_names)] // JavaScript has no durations: the names carry the unit
#[napi(object)]
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Timeouts {
    /// To open a connection.
    pub connect_ms: Option<f64>,
    /// Without a single byte of progress in either direction.
    pub stall_ms: Option<f64>,
    /// For one operation of the store with all its repetitions, as long as none makes progress.
    pub operation_ms: Option<f64>,
}

/// How far an operation has come. Totals may still grow while `phase` is `scan`.
#[napi(object, object_from_js = false)]
pub struct Progress {
    /// What is being done.
    #[napi(ts_type = "'scan' | 'upload' | 'download' | 'stage' | 'apply' | 'verify'")]
    pub phase: String,
    /// Files finished.
    pub files_done: f64,
    /// Files known so far.
    pub files_total: f64,
    /// Bytes of content finished.
    pub bytes_done: f64,
    /// Bytes of content known so far.
    pub bytes_total: f64,
    /// Stored bytes sent or received so far.
    pub transferred_bytes: f64,
}

impl From<commands::Progress> for Progress {
    fn from(progress: commands::Progress) -> Self {
        Self {
            phase: progress.phase.into(),
            files_done: number(progress.files_done),
            files_total: number(progress.files_total),
            bytes_done: number(progress.bytes_done),
            bytes_total: number(progress.bytes_total),
            transferred_bytes: number(progress.transferred_bytes),
        }
    }
}

/// Something of the state that a snapshot does not hold, and why.
#[napi(object, object_from_js = false)]
pub struct SnapshotException {
    /// Path as the snapshot names it.
    pub path: String,
    /// Why it is not in the snapshot.
    pub reason: String,
}

impl From<commands::Exception> for SnapshotException {
    fn from(exception: commands::Exception) -> Self {
        Self { path: exception.path, reason: exception.reason }
    }
}

/// Options that every function takes.
#[napi(object, object_to_js = false)]
pub struct OperationOptions<'env> {
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// Options of `push`.
#[napi(object, object_to_js = false)]
pub struct PushOptions<'env> {
    /// Why the snapshot is taken; recorded in it. Default: `manual`.
    #[napi(ts_type = "'schedule' | 'catch_up' | 'before_compaction' | 'gateway_stop' | 'manual'")]
    pub trigger: Option<String>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What a push did.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct PushResult {
    /// The new snapshot's id; null when nothing had changed since the last one.
    pub snapshot: Option<String>,
    /// Whether nothing had changed.
    pub unchanged: bool,
    /// Why it was taken.
    pub trigger: String,
    /// Files in the state.
    pub files: f64,
    /// Bytes of content of those files.
    pub bytes: f64,
    /// Files that are new or differ from this machine's last snapshot.
    pub changed_files: f64,
    /// Bytes sent to the store.
    pub uploaded_bytes: f64,
    /// Requests made to the store.
    pub requests: f64,
    /// What the snapshot does not hold.
    pub exceptions: Vec<SnapshotException>,
    /// The paths of those exceptions that this machine could read before. It is one of the warnings, too.
    pub dropped: Vec<String>,
    /// What failed after the snapshot was safe.
    pub warnings: Vec<String>,
    /// That the state has lost most of what it held, so that nothing is pruned until the owner agrees; null when it has not.
    pub shrunk: Option<Shrink>,
    /// The newest snapshot that this machine had seen, when neither it nor a newer one was listed any more, else null. It is one
    /// of the warnings, too.
    pub missing: Option<String>,
    /// Whose snapshots were there before, when this is the first one of this machine, else null.
    pub other_machine: Option<OtherMachine>,
    /// How long it took, in milliseconds.
    pub duration_ms: f64,
}

impl From<commands::PushReport> for PushResult {
    fn from(report: commands::PushReport) -> Self {
        Self {
            unchanged: report.snapshot.is_none(),
            snapshot: report.snapshot,
            trigger: report.trigger.as_str().into(),
            files: number(report.files),
            bytes: number(report.bytes),
            changed_files: number(report.changed_files),
            uploaded_bytes: number(report.uploaded_bytes),
            requests: number(report.requests),
            exceptions: convert(report.exceptions),
            dropped: report.dropped,
            warnings: report.warnings,
            shrunk: report.shrunk.map(Into::into),
            missing: report.missing,
            other_machine: report.other_machine.map(Into::into),
            duration_ms: milliseconds(report.duration),
        }
    }
}

/// Another machine with snapshots in the same repository.
#[napi(object, object_from_js = false)]
pub struct OtherMachine {
    /// Its newest snapshot that has something of agents.
    pub snapshot: String,
    /// Its host name.
    pub host: String,
    /// Whether no agent has made anything on this machine, so that it is restored when its gateway starts.
    pub restores_itself: bool,
}

impl From<commands::OtherMachine> for OtherMachine {
    fn from(other: commands::OtherMachine) -> Self {
        Self { snapshot: other.snapshot, host: other.host, restores_itself: other.restores_itself }
    }
}

/// A state that holds less than half of the files that a snapshot of it holds, or less than a quarter of the bytes.
#[napi(object, object_from_js = false)]
pub struct Shrink {
    /// The snapshot that holds the most.
    pub snapshot: String,
    /// How many files it holds.
    pub files_before: f64,
    /// How many files the state holds.
    pub files: f64,
    /// How many bytes are in those of the snapshot.
    pub bytes_before: f64,
    /// How many bytes are in those of the state.
    pub bytes: f64,
}

impl From<commands::Shrink> for Shrink {
    fn from(shrink: commands::Shrink) -> Self {
        Self {
            snapshot: shrink.snapshot,
            files_before: number(shrink.files_before),
            files: number(shrink.files),
            bytes_before: number(shrink.bytes_before),
            bytes: number(shrink.bytes),
        }
    }
}

/// One snapshot.
#[napi(object, object_from_js = false)]
pub struct SnapshotInfo {
    /// The id, which is also the folder's name in the bucket.
    pub id: String,
    /// When it was taken: RFC 3339, UTC, by the store's clock; for a legacy one by that of the machine that took it.
    pub created_at: String,
    /// A safety snapshot is taken before a rollback and never pruned automatically. A legacy one was written by 0.1.x, is
    /// never pruned either, and is selected by its id alone.
    #[napi(ts_type = "'regular' | 'safety' | 'legacy'")]
    pub kind: String,
    /// Why it was taken; `unknown` for a legacy one, unless it was taken before a restore.
    pub trigger: String,
    /// Host name of the machine that took it; `unknown` for a legacy one.
    pub host: String,
    /// Files it holds.
    pub files: f64,
    /// Bytes of content it holds.
    pub bytes: f64,
    /// Whether it holds everything that was in scope.
    pub complete: bool,
    /// How many things it does not hold; for a legacy one, how many files whose content is not stored any more.
    pub exceptions: f64,
    /// The first 20 of them; of a legacy one none.
    pub first_exceptions: Vec<SnapshotException>,
    /// Whether the state had lost most of what it held when it was taken.
    pub shrunk: bool,
}

impl From<commands::SnapshotInfo> for SnapshotInfo {
    fn from(info: commands::SnapshotInfo) -> Self {
        Self {
            id: info.id,
            created_at: info.created_at,
            kind: info.kind.as_str().into(),
            trigger: info.trigger,
            host: info.host,
            files: number(info.files),
            bytes: number(info.bytes),
            complete: info.complete,
            exceptions: number(info.exceptions),
            first_exceptions: convert(info.first_exceptions),
            shrunk: info.shrunk,
        }
    }
}

/// What `list` found.
#[napi(object, object_from_js = false)]
pub struct ListResult {
    /// Readable snapshots, newest first.
    pub snapshots: Vec<SnapshotInfo>,
    /// Snapshots that cannot be read: `path` is the id.
    pub unreadable: Vec<SnapshotException>,
    /// What the owner should look after: that the newest snapshot that this machine has seen is not listed any more.
    pub warnings: Vec<String>,
}

impl From<commands::ListReport> for ListResult {
    fn from(report: commands::ListReport) -> Self {
        Self { snapshots: convert(report.snapshots), unreadable: convert(report.unreadable), warnings: report.warnings }
    }
}

/// Options of `pull`.
#[napi(object, object_to_js = false)]
pub struct PullOptions<'env> {
    /// An id, the unique start of one, `latest`, `before-compaction`, or a time in plain words.
    pub snapshot: String,
    /// An empty or new directory outside the live state.
    pub directory: String,
    /// Globs over snapshot paths. Default: everything.
    pub paths: Option<Vec<String>>,
    /// Do without the files that cannot be restored, instead of failing. Default: false.
    pub partial: Option<bool>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What a pull wrote.
#[napi(object, object_from_js = false)]
pub struct PullResult {
    /// The snapshot's id.
    pub snapshot: String,
    /// Files and symlinks written.
    pub files: f64,
    /// Bytes of content written.
    pub bytes: f64,
    /// What the snapshot does not hold.
    pub exceptions: Vec<SnapshotException>,
    /// Files that could not be restored as they were stored, and are not there; only with `partial`.
    pub lost: Vec<SnapshotException>,
    /// What the owner should know besides.
    pub warnings: Vec<String>,
}

impl From<commands::PullReport> for PullResult {
    fn from(report: commands::PullReport) -> Self {
        Self {
            snapshot: report.snapshot,
            files: number(report.files),
            bytes: number(report.bytes),
            exceptions: convert(report.exceptions),
            lost: convert(report.lost),
            warnings: report.warnings,
        }
    }
}

/// Options of `rollback`.
#[napi(object, object_to_js = false)]
pub struct RollbackOptions<'env> {
    /// An id, the unique start of one, `latest`, `before-compaction`, or a time in plain words.
    pub snapshot: String,
    /// Globs over snapshot paths. Default: everything.
    pub paths: Option<Vec<String>>,
    /// Only say what would be done. Default: false.
    pub plan_only: Option<bool>,
    /// Leave the files as they are that cannot be restored, instead of failing. Default: false.
    pub partial: Option<bool>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

impl<'env> RollbackOptions<'env> {
    fn split(self) -> (commands::RollbackOptions, Option<Object<'env>>) {
        let Self { snapshot, paths, plan_only, partial, signal } = self;
        let (plan_only, partial) = (plan_only.unwrap_or(false), partial.unwrap_or(false));
        (commands::RollbackOptions { snapshot, paths: paths.unwrap_or_default(), plan_only, partial }, signal)
    }
}

/// What a rollback did, or as a plan would do.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct RollbackResult {
    /// The snapshot that was restored.
    pub snapshot: String,
    /// The safety snapshot taken before; null for a plan, or when nothing had to change.
    pub safety_snapshot: Option<String>,
    /// Paths written from the snapshot.
    pub restored: Vec<String>,
    /// Paths removed because the snapshot does not have them.
    pub deleted: Vec<String>,
    /// How many paths already were as in the snapshot.
    pub unchanged: f64,
    /// Bytes of content written.
    pub bytes: f64,
    /// Whether a gateway that ran on this state must be restarted.
    pub restart_required: bool,
    /// What the owner should know besides, for example what was set aside.
    pub warnings: Vec<String>,
}

impl From<commands::RollbackReport> for RollbackResult {
    fn from(report: commands::RollbackReport) -> Self {
        Self {
            snapshot: report.snapshot,
            safety_snapshot: report.safety_snapshot,
            restored: report.restored,
            deleted: report.deleted,
            unchanged: number(report.unchanged),
            bytes: number(report.bytes),
            restart_required: report.restart_required,
            warnings: report.warnings,
        }
    }
}

/// Options of `verify`.
#[napi(object, object_to_js = false)]
pub struct VerifyOptions<'env> {
    /// Also download and check stored bytes: all of them, or a part in percent (1 to 100), each time another one.
    /// Default: false.
    pub read_data: Option<Either<bool, f64>>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What `verify` found.
#[napi(object, object_from_js = false)]
pub struct VerifyResult {
    /// Snapshots checked.
    pub snapshots: f64,
    /// Packs checked.
    pub packs: f64,
    /// Chunks that the snapshots refer to.
    pub chunks: f64,
    /// Stored bytes that were read and checked.
    pub read_bytes: f64,
    /// What is wrong. Empty means the repository is sound.
    pub problems: Vec<String>,
    /// The files that cannot be restored, as far as is known, snapshot by snapshot.
    pub lost: Vec<LostFile>,
    /// Packs in which damage was found, now or before. The next push stores their content again, as far as it can.
    pub damaged_packs: f64,
    /// What was damaged, and is sound again.
    pub healed: Vec<String>,
}

/// A file of a snapshot whose content cannot be restored.
#[napi(object, object_from_js = false)]
pub struct LostFile {
    /// The snapshot's id.
    pub snapshot: String,
    /// Path as the snapshot names it.
    pub path: String,
    /// Why not.
    pub reason: String,
}

impl From<commands::LostFile> for LostFile {
    fn from(lost: commands::LostFile) -> Self {
        Self { snapshot: lost.snapshot, path: lost.path, reason: lost.reason }
    }
}

impl From<commands::VerifyReport> for VerifyResult {
    fn from(report: commands::VerifyReport) -> Self {
        Self {
            snapshots: number(report.snapshots),
            packs: number(report.packs),
            chunks: number(report.chunks),
            read_bytes: number(report.read_bytes),
            problems: report.problems,
            lost: convert(report.lost),
            damaged_packs: number(report.damaged_packs),
            healed: report.healed,
        }
    }
}

/// Options of `drill`.
#[napi(object, object_to_js = false)]
pub struct DrillOptions<'env> {
    /// An id, the unique start of one, `latest`, `before-compaction`, or a time in plain words. Default: one is drawn.
    pub snapshot: Option<String>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What a restore drill has shown.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct DrillResult {
    /// The snapshot that was restored; empty when there is none.
    pub snapshot: String,
    /// Files and databases that came out as they were stored.
    pub files: f64,
    /// Bytes of their content.
    pub bytes: f64,
    /// Databases that were checked.
    pub databases: f64,
    /// What did not come out as it was stored. Empty means that the snapshot can be restored.
    pub problems: Vec<String>,
    /// Why nothing was restored; null when something was.
    pub skipped: Option<String>,
}

impl From<commands::DrillReport> for DrillResult {
    fn from(report: commands::DrillReport) -> Self {
        Self {
            snapshot: report.snapshot,
            files: number(report.files),
            bytes: number(report.bytes),
            databases: number(report.databases),
            problems: report.problems,
            skipped: report.skipped,
        }
    }
}

/// Options of `prune`.
#[napi(object, object_to_js = false)]
pub struct PruneOptions<'env> {
    /// The owner agrees that the state holds no more than it did at this machine's last snapshot. Default: false.
    pub accept_shrink: Option<bool>,
    /// Apply retention to every machine's snapshots, each machine's by themselves. Default: to this machine's only.
    pub all_machines: Option<bool>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What `prune` did.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct PruneResult {
    /// Why nothing was done: the state has lost most of what it held, and the owner has not agreed; null when it was.
    pub shrunk: Option<Shrink>,
    /// Ids of the snapshots removed by retention.
    pub removed_snapshots: Vec<String>,
    /// Packs taken out of use; their bytes go after the grace period.
    pub condemned_packs: f64,
    /// Packs deleted.
    pub deleted_packs: f64,
    /// Stored bytes freed.
    pub freed_bytes: f64,
    /// Objects that nothing needs any more and that Object Lock keeps for now.
    pub locked_objects: f64,
    /// Whether nothing was removed because the key may not delete: it is left to a key that may.
    pub left_to_another_key: bool,
    /// Where the key may only hide: the days after which a lifecycle rule of the bucket deletes what is hidden; else null.
    pub hidden_for_days: Option<u32>,
}

impl From<commands::PruneReport> for PruneResult {
    fn from(report: commands::PruneReport) -> Self {
        Self {
            shrunk: report.shrunk.map(Into::into),
            removed_snapshots: report.removed_snapshots,
            condemned_packs: number(report.condemned_packs),
            deleted_packs: number(report.deleted_packs),
            freed_bytes: number(report.freed_bytes),
            locked_objects: number(report.locked_objects),
            left_to_another_key: report.left_to_another_key,
            hidden_for_days: report.hidden_for_days,
        }
    }
}

/// Options of `importLegacy`.
#[napi(object, object_to_js = false)]
pub struct ImportLegacyOptions<'env> {
    /// Also take files that are stored unencrypted into an encrypted repository. Whoever can write to the bucket can have
    /// made them. Default: false.
    pub accept_plain: Option<bool>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What `importLegacy` did.
#[napi(object, object_from_js = false)]
pub struct ImportLegacyResult {
    /// Snapshots that were made, oldest first.
    pub imported: Vec<ImportedSnapshot>,
    /// How many had been imported before.
    pub present: f64,
    /// Legacy snapshots that were not imported: `path` is the id.
    pub skipped: Vec<SnapshotException>,
}

/// One imported snapshot.
#[napi(object, object_from_js = false)]
pub struct ImportedSnapshot {
    /// The id that 0.1.x gave it.
    pub from: String,
    /// The id of the snapshot that was made of it.
    pub snapshot: String,
}

impl From<commands::ImportReport> for ImportLegacyResult {
    fn from(report: commands::ImportReport) -> Self {
        let imported = report.imported.into_iter();
        Self {
            imported: imported.map(|one| ImportedSnapshot { from: one.from, snapshot: one.snapshot }).collect(),
            present: number(report.present),
            skipped: convert(report.skipped),
        }
    }
}

/// Options of `diff`.
#[napi(object, object_to_js = false)]
pub struct DiffOptions<'env> {
    /// The older side: an id, the unique start of one, `latest`, `before-compaction`, or a time in plain words.
    pub from: String,
    /// The newer side, named likewise. Default: the live state.
    pub to: Option<String>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// One difference.
#[napi(object, object_from_js = false)]
pub struct Change {
    /// Path as the snapshot names it.
    pub path: String,
    /// Going from the first side to the second.
    #[napi(ts_type = "'added' | 'removed' | 'modified'")]
    pub kind: String,
}

impl From<commands::Change> for Change {
    fn from(change: commands::Change) -> Self {
        Self { path: change.path, kind: change.kind.into() }
    }
}

/// What `diff` found.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct DiffResult {
    /// The older side's id.
    pub from: String,
    /// The newer side's id; null means the live state.
    pub to: Option<String>,
    /// The differences, ordered by path.
    pub changes: Vec<Change>,
}

impl From<commands::DiffReport> for DiffResult {
    fn from(report: commands::DiffReport) -> Self {
        Self { from: report.from, to: report.to, changes: convert(report.changes) }
    }
}

/// Where backups stand.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct StatusResult {
    /// Where the repository is, without secrets.
    pub location: String,
    /// Whether what is stored is encrypted.
    pub encrypted: bool,
    /// Snapshots that can be listed, without those of 0.1.x.
    pub snapshots: f64,
    /// Snapshots of 0.1.x.
    pub legacy_snapshots: f64,
    /// The newest one, without those of 0.1.x; null when there is none.
    pub latest: Option<SnapshotInfo>,
    /// Bytes that the repository takes in the store.
    pub stored_bytes: f64,
    /// Objects that the repository takes in the store.
    pub objects: f64,
    /// Directories of this state that are left out because they are rebuilt.
    pub left_out: Vec<String>,
    /// That the state had lost most of what it held at this machine's last snapshot; null when it had not, or the owner agreed.
    pub shrunk: Option<Shrink>,
    /// What a drill on this machine restored last; null when there was none.
    pub proven: Option<Drilled>,
    /// What a drill on this machine could not restore; null when there is nothing of that kind.
    pub failed: Option<Drilled>,
    /// Bytes that the bucket keeps and bills besides: older versions, and those of what was deleted by name; null where the
    /// service does not tell.
    pub hidden_bytes: Option<f64>,
    /// How many versions these are; null where the service does not tell.
    pub hidden_versions: Option<f64>,
    /// How what is not needed any more is deleted: its bytes are gone; it is hidden, and a lifecycle rule of the bucket
    /// deletes it; not at all, the key may not; or not tried yet.
    #[napi(ts_type = "'for_good' | 'by_lifecycle' | 'denied' | 'untried'")]
    pub deletion: String,
    /// With `by_lifecycle` the days from hiding to deleting; else null.
    pub hidden_for_days: Option<u32>,
    /// What the owner of the bucket should look after.
    pub warnings: Vec<String>,
    /// What a month costs, with `pushesPerMonth`; null without it, and for a directory.
    pub cost: Option<Cost>,
}

/// A snapshot that a drill has tried to restore.
#[napi(object, object_from_js = false)]
pub struct Drilled {
    /// The snapshot's id.
    pub snapshot: String,
    /// When, by this machine's clock: RFC 3339, UTC.
    pub at: String,
    /// What was wrong, the first of it.
    pub problems: Vec<String>,
}

impl From<commands::drill::Proven> for Drilled {
    fn from(proven: commands::drill::Proven) -> Self {
        Self { snapshot: proven.snapshot, at: proven.at.to_string(), problems: Vec::new() }
    }
}

impl From<commands::drill::Failed> for Drilled {
    fn from(failed: commands::drill::Failed) -> Self {
        Self { snapshot: failed.snapshot, at: failed.at.to_string(), problems: failed.problems }
    }
}

/// What a month costs at the service whose prices are known.
#[napi(object, object_from_js = false)]
pub struct Cost {
    /// Whose prices these are.
    pub service: String,
    /// When they were looked up: `YYYY-MM-DD`.
    pub prices_date: String,
    /// Where.
    pub prices_source: String,
    /// Bytes that are billed: what is stored, and what is hidden.
    pub billed_bytes: f64,
    /// Bytes that are free in an account.
    pub free_bytes: f64,
    /// US dollars a month for the bytes.
    pub storage_usd: f64,
    /// Snapshots in 30 days: those of the schedule, and as many others as there were lately.
    pub pushes_per_month: f64,
    /// How many pushes of this machine were measured; without any nothing is known of calls.
    pub measured_pushes: f64,
    /// Calls of class B: downloads.
    pub class_b: CostOfCalls,
    /// Calls of class C: listings and others.
    pub class_c: CostOfCalls,
    /// US dollars a month for all of it.
    pub usd: f64,
}

/// The calls of one class in 30 days.
#[napi(object, object_from_js = false)]
pub struct CostOfCalls {
    /// As many as were measured for one push, times the pushes.
    pub per_month: f64,
    /// How many are free.
    pub free_per_month: f64,
    /// US dollars for those beyond.
    pub usd: f64,
}

impl From<commands::cost::Cost> for Cost {
    fn from(cost: commands::cost::Cost) -> Self {
        Self {
            service: cost.service,
            prices_date: cost.prices_date,
            prices_source: cost.prices_source,
            billed_bytes: number(cost.billed_bytes),
            free_bytes: number(cost.free_bytes),
            storage_usd: cost.storage_usd,
            pushes_per_month: cost.pushes_per_month,
            measured_pushes: number(cost.measured_pushes),
            class_b: cost.class_b.into(),
            class_c: cost.class_c.into(),
            usd: cost.usd,
        }
    }
}

impl From<commands::cost::Calls> for CostOfCalls {
    fn from(calls: commands::cost::Calls) -> Self {
        Self { per_month: calls.per_month, free_per_month: number(calls.free_per_month), usd: calls.usd }
    }
}

/// Options of `status`.
#[napi(object, object_to_js = false)]
pub struct StatusOptions<'env> {
    /// How often the schedule takes a snapshot in 30 days: then the result says what a month costs.
    pub pushes_per_month: Option<f64>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

impl From<commands::StatusReport> for StatusResult {
    fn from(report: commands::StatusReport) -> Self {
        let (deletion, hidden_for_days) = match report.deletion {
            Deletion::ForGood => ("for_good", None),
            Deletion::ByLifecycle { days } => ("by_lifecycle", Some(days)),
            Deletion::Denied => ("denied", None),
            Deletion::Untried => ("untried", None),
        };
        Self {
            location: report.location,
            encrypted: report.encrypted,
            snapshots: number(report.snapshots),
            legacy_snapshots: number(report.legacy_snapshots),
            latest: report.latest.map(Into::into),
            stored_bytes: number(report.stored_bytes),
            objects: number(report.objects),
            left_out: report.left_out,
            shrunk: report.shrunk.map(Into::into),
            proven: report.proven.map(Into::into),
            failed: report.failed.map(Into::into),
            hidden_bytes: report.hidden.as_ref().map(|hidden| number(hidden.bytes)),
            hidden_versions: report.hidden.as_ref().map(|hidden| number(hidden.versions)),
            deletion: deletion.into(),
            hidden_for_days,
            warnings: report.warnings,
            cost: report.cost.map(Into::into),
        }
    }
}

/// One key slot, in short.
#[napi(object, object_from_js = false)]
pub struct KeySlot {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What kind of secret opens it.
    #[napi(ts_type = "'application-key' | 'passphrase' | 'key-file' | 'recovery-code'")]
    pub kind: String,
}

impl From<commands::key::KeySlot> for KeySlot {
    fn from(slot: commands::key::KeySlot) -> Self {
        Self { id: slot.id, kind: slot.kind.as_str().into() }
    }
}

/// One key slot.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct KeyInfo {
    /// 32 hexadecimal digits.
    pub id: String,
    /// What kind of secret opens it; null for a damaged slot.
    #[napi(ts_type = "'application-key' | 'passphrase' | 'key-file' | 'recovery-code' | null")]
    pub kind: Option<String>,
    /// When it was made: RFC 3339, UTC, by the store's clock.
    pub created_at: String,
    /// The id of the master key in it; null for a damaged slot.
    pub master_key: Option<String>,
    /// Whether new snapshots are sealed with that master key.
    pub writing: bool,
    /// Whether a configured secret opens it.
    pub opens: bool,
    /// Whether its removal was begun and not finished.
    pub removing: bool,
    /// Why it is of no use: it is damaged, or its master key is passed over; null for any other slot.
    pub problem: Option<String>,
}

impl From<commands::key::KeyInfo> for KeyInfo {
    fn from(slot: commands::key::KeyInfo) -> Self {
        Self {
            id: slot.id,
            kind: slot.kind.map(|kind| kind.as_str().into()),
            created_at: slot.created_at,
            master_key: slot.master_key,
            writing: slot.writing,
            opens: slot.opens,
            removing: slot.removing,
            problem: slot.problem,
        }
    }
}

/// What `keyList` found.
#[napi(object, object_from_js = false)]
pub struct KeyListResult {
    /// The slots in the order of their making. An unencrypted repository has none.
    pub slots: Vec<KeyInfo>,
}

impl From<commands::key::KeyListReport> for KeyListResult {
    fn from(report: commands::key::KeyListReport) -> Self {
        Self { slots: convert(report.slots) }
    }
}

/// Options of `keyAdd`. Without any of the first three, slots are made for what is configured.
#[napi(object, object_to_js = false)]
pub struct KeyAddOptions<'env> {
    /// A passphrase that is to open the repository.
    pub passphrase: Option<String>,
    /// A key file that is to open it, as a path.
    pub key_file: Option<String>,
    /// Whether the configured application key is to open it. Default: false.
    pub application_key: Option<bool>,
    /// An application key that opens it and is not configured any more.
    pub old_application_key: Option<String>,
    /// A passphrase that opens it and is not configured any more.
    pub old_passphrase: Option<String>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What `keyAdd` did.
#[napi(object, object_from_js = false)]
pub struct KeyAddResult {
    /// The new slots, one for each secret and master key; empty when every one was there.
    pub added: Vec<KeySlot>,
}

impl From<commands::key::KeyAddReport> for KeyAddResult {
    fn from(report: commands::key::KeyAddReport) -> Self {
        Self { added: convert(report.added) }
    }
}

/// Options of `keyRemove`.
#[napi(object, object_to_js = false)]
pub struct KeyRemoveOptions<'env> {
    /// The slots, each by its id or the unique start of one.
    pub slots: Vec<String>,
    /// Cancels the operation at its next safe point; the promise then rejects with `CANCELLED`.
    #[napi(ts_type = "AbortSignal")]
    pub signal: Option<Object<'env>>,
}

/// What `keyRemove` did.
#[napi(object, object_from_js = false)]
pub struct KeyRemoveResult {
    /// The ids of the slots that are gone.
    pub removed: Vec<String>,
}

impl From<commands::key::KeyRemoveReport> for KeyRemoveResult {
    fn from(report: commands::key::KeyRemoveReport) -> Self {
        Self { removed: report.removed }
    }
}

/// What `keyRotate` did.
#[napi(object, object_from_js = false)]
pub struct KeyRotateResult {
    /// The id of the new master key.
    pub master_key: String,
    /// Its slots.
    pub added: Vec<KeySlot>,
    /// Slots of the key before whose secrets were not at hand: they open no snapshot that is taken from now on.
    pub left_behind: Vec<KeySlot>,
}

impl From<commands::key::KeyRotateReport> for KeyRotateResult {
    fn from(report: commands::key::KeyRotateReport) -> Self {
        let (added, left_behind) = (convert(report.added), convert(report.left_behind));
        Self { master_key: report.master_key, added, left_behind }
    }
}

/// A new recovery code.
#[napi(object, object_from_js = false)]
pub struct KeyRecoveryCodeResult {
    /// The code itself, for paper. It is kept nowhere.
    pub recovery_code: String,
    /// Its slots, one for each master key.
    pub added: Vec<KeySlot>,
    /// Slots of earlier recovery codes, which still open the repository.
    pub earlier: Vec<KeySlot>,
}

impl From<commands::key::RecoveryCodeReport> for KeyRecoveryCodeResult {
    fn from(report: commands::key::RecoveryCodeReport) -> Self {
        let (added, earlier) = (convert(report.added), convert(report.earlier));
        Self { recovery_code: report.code.expose().into(), added, earlier }
    }
}

/// Options of `resolveTarget`.
#[napi(object, object_to_js = false)]
pub struct ResolveOptions {
    /// `openclaw.json`. Default: `OPENCLAW_CONFIG_PATH`, or the one in the state directory. It must exist when given.
    pub config_path: Option<String>,
    /// The state directory. Default: `OPENCLAW_STATE_DIR`, or `~/.openclaw`.
    pub state_dir: Option<String>,
    /// The environment. Default: this process's.
    pub env: Option<HashMap<String, String>>,
}

/// Takes a snapshot of the state and applies retention afterwards.
#[napi(catch_unwind)]
pub fn push<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<PushOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, PushResult>> {
    let (trigger, signal) = options.map_or((None, None), |options| (options.trigger, options.signal));
    let target = Call::target(env, target);
    Call::new(signal, on_progress).start(env, async move |operation| {
        let trigger = trigger.as_deref().unwrap_or("manual").parse()?;
        commands::push::push(&target?, commands::PushOptions { trigger }, &operation).await
    })
}

/// Every snapshot, newest first.
#[napi(catch_unwind)]
pub fn list<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, ListResult>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), on_progress)
        .start(env, async move |operation| commands::list::list(&target?, &operation).await)
}

/// Writes a snapshot's files into an empty or new directory, never into the live state.
#[napi(catch_unwind)]
pub fn pull<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: PullOptions<'env>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, PullResult>> {
    let target = Call::target(env, target);
    let PullOptions { snapshot, directory, paths, partial, signal } = options;
    Call::new(signal, on_progress).start(env, async move |operation| {
        let paths = paths.unwrap_or_default();
        let partial = partial.unwrap_or(false);
        let options = commands::PullOptions { snapshot, directory: directory.into(), paths, partial };
        commands::pull::pull(&target?, options, &operation).await
    })
}

/// Makes the state as it was in a snapshot, after a safety snapshot of how it is.
#[napi(catch_unwind)]
pub fn rollback<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: RollbackOptions<'env>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, RollbackResult>> {
    let target = Call::target(env, target);
    let (options, signal) = options.split();
    Call::new(signal, on_progress)
        .start(env, async move |operation| commands::rollback::rollback(&target?, options, &operation).await)
}

/// Does everything of a rollback that leaves the state alone: takes the safety snapshot, stages and checks what is to come.
#[napi(catch_unwind)]
pub fn prepare_rollback<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: RollbackOptions<'env>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, RollbackResult>> {
    let target = Call::target(env, target);
    let (options, signal) = options.split();
    Call::new(signal, on_progress)
        .start(env, async move |operation| commands::rollback::prepare(&target?, options, &operation).await)
}

/// Applies what `prepareRollback` has prepared, also under a running gateway, which then has to restart. Null when nothing is
/// prepared.
#[napi(catch_unwind)]
pub fn apply_rollback<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, Option<RollbackResult>>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), on_progress).start_with(
        env,
        or_null,
        async move |operation| commands::rollback::apply_prepared(&target?, &operation).await,
    )
}

/// Drops what `prepareRollback` has prepared.
#[napi(catch_unwind)]
pub fn discard_rollback<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
) -> napi::Result<PromiseRaw<'env, ()>> {
    let target = Call::target(env, target);
    Call::new(None, None).start(env, async move |_| commands::rollback::discard_prepared(&target?).await)
}

/// What a start found of an earlier rollback.
#[napi(object, object_from_js = false, use_nullable = true)]
pub struct RecoverResult {
    /// What became of it: `discarded` was prepared and never begun.
    #[napi(ts_type = "'finished' | 'undone' | 'discarded'")]
    pub outcome: String,
    /// The snapshot that it was to restore.
    pub snapshot: String,
    /// The safety snapshot taken before; null for one that was never begun.
    pub safety_snapshot: Option<String>,
}

impl From<commands::rollback::RecoverReport> for RecoverResult {
    fn from(report: commands::rollback::RecoverReport) -> Self {
        Self { outcome: report.outcome.into(), snapshot: report.snapshot, safety_snapshot: report.safety_snapshot }
    }
}

/// Finishes or takes back a rollback that was interrupted, and drops one that was prepared and never begun. Null when there
/// was none.
#[napi(catch_unwind)]
pub fn recover<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
) -> napi::Result<PromiseRaw<'env, Option<RecoverResult>>> {
    let target = Call::target(env, target);
    Call::new(None, None).start_with(env, or_null, async move |_| commands::rollback::recover(&target?).await)
}

/// Restores the newest snapshot on a machine without agent content. Null when there is content, or nothing to restore.
#[napi(catch_unwind)]
pub fn restore_if_empty<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, Option<RollbackResult>>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), on_progress).start_with(
        env,
        or_null,
        async move |operation| commands::rollback::restore_if_empty(&target?, &operation).await,
    )
}

/// How two snapshots, or a snapshot and the live state, differ.
#[napi(catch_unwind)]
pub fn diff<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: DiffOptions<'env>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, DiffResult>> {
    let target = Call::target(env, target);
    let DiffOptions { from, to, signal } = options;
    Call::new(signal, on_progress)
        .start(env, async move |operation| commands::diff::diff(&target?, &from, to.as_deref(), &operation).await)
}

/// Checks that every snapshot can be restored.
#[napi(catch_unwind)]
pub fn verify<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<VerifyOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, VerifyResult>> {
    let target = Call::target(env, target);
    let (read_data, signal) = options.map_or((None, None), |options| (options.read_data, options.signal));
    Call::new(signal, on_progress).start(env, async move |operation| {
        let read_data = match read_data {
            None | Some(Either::A(false)) => None,
            Some(Either::A(true)) => Some(100),
            Some(Either::B(percent)) => Some(whole(percent)),
        };
        commands::verify::verify(&target?, commands::VerifyOptions { read_data }, &operation).await
    })
}

/// Proves that a snapshot can be restored by restoring one to a private folder, which is removed again.
#[napi(catch_unwind)]
pub fn drill<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<DrillOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, DrillResult>> {
    let target = Call::target(env, target);
    let (snapshot, signal) = options.map_or((None, None), |options| (options.snapshot, options.signal));
    Call::new(signal, on_progress).start(env, async move |operation| {
        commands::drill::drill(&target?, commands::DrillOptions { snapshot }, &operation).await
    })
}

/// Applies retention and frees what no snapshot needs.
#[napi(catch_unwind)]
pub fn prune<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<PruneOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, PruneResult>> {
    let target = Call::target(env, target);
    let PruneOptions { accept_shrink, all_machines, signal } =
        options.unwrap_or(PruneOptions { accept_shrink: None, all_machines: None, signal: None });
    let options = commands::PruneOptions {
        accept_shrink: accept_shrink.unwrap_or(false),
        all_machines: all_machines.unwrap_or(false),
    };
    Call::new(signal, on_progress)
        .start(env, async move |operation| commands::prune::prune_with(&target?, options, &operation).await)
}

/// Makes snapshots of this format of those that 0.1.x has written, which stay as they are.
#[napi(catch_unwind)]
pub fn import_legacy<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<ImportLegacyOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, ImportLegacyResult>> {
    let target = Call::target(env, target);
    let (accept_plain, signal) = options.map_or((None, None), |options| (options.accept_plain, options.signal));
    Call::new(signal, on_progress).start(env, async move |operation| {
        let options = commands::ImportOptions { accept_plain: accept_plain.unwrap_or(false) };
        commands::import_legacy::import_legacy(&target?, options, &operation).await
    })
}

/// Where backups stand: the repository, its newest snapshot, its size.
#[napi(catch_unwind)]
pub fn status<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<StatusOptions<'env>>,
    #[napi(ts_arg_type = "(progress: Progress) => void")] on_progress: Option<OnProgress>,
) -> napi::Result<PromiseRaw<'env, StatusResult>> {
    let target = Call::target(env, target);
    let (pushes_per_month, signal) = options.map_or((None, None), |options| (options.pushes_per_month, options.signal));
    Call::new(signal, on_progress).start(env, async move |operation| {
        commands::status::status(&target?, &commands::StatusOptions { pushes_per_month }, &operation).await
    })
}

/// The key slots of the repository, also where none of the configured secrets opens one.
#[napi(catch_unwind)]
pub fn key_list<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
) -> napi::Result<PromiseRaw<'env, KeyListResult>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), None)
        .start(env, async move |operation| commands::key::list(&target?, &operation).await)
}

/// Makes key slots: for what is configured, or for another secret.
#[napi(catch_unwind)]
pub fn key_add<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<KeyAddOptions<'env>>,
) -> napi::Result<PromiseRaw<'env, KeyAddResult>> {
    let target = Call::target(env, target);
    let (options, signal) = options.map_or_else(Default::default, |options| {
        let secret = |text: Option<String>| text.map(config::Secret::new);
        let add = commands::key::KeyAddOptions {
            passphrase: secret(options.passphrase),
            key_file: options.key_file.map(Into::into),
            application_key: options.application_key.unwrap_or(false),
            old_application_key: secret(options.old_application_key),
            old_passphrase: secret(options.old_passphrase),
        };
        (add, options.signal)
    });
    Call::new(signal, None).start(env, async move |operation| commands::key::add(&target?, options, &operation).await)
}

/// Removes key slots. The last one of a master key, and the last one that opens it here, are refused.
#[napi(catch_unwind)]
pub fn key_remove<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: KeyRemoveOptions<'env>,
) -> napi::Result<PromiseRaw<'env, KeyRemoveResult>> {
    let target = Call::target(env, target);
    let KeyRemoveOptions { slots, signal } = options;
    Call::new(signal, None).start(env, async move |operation| commands::key::remove(&target?, &slots, &operation).await)
}

/// Makes a new master key for everything that is written from now on.
#[napi(catch_unwind)]
pub fn key_rotate<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
) -> napi::Result<PromiseRaw<'env, KeyRotateResult>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), None)
        .start(env, async move |operation| commands::key::rotate(&target?, &operation).await)
}

/// Makes a recovery code. The result is the only place where it ever is.
#[napi(catch_unwind)]
pub fn key_recovery_code<'env>(
    env: &'env Env,
    #[napi(ts_arg_type = "Target")] target: Object<'env>,
    options: Option<OperationOptions<'env>>,
) -> napi::Result<PromiseRaw<'env, KeyRecoveryCodeResult>> {
    let target = Call::target(env, target);
    Call::new(options.and_then(|options| options.signal), None)
        .start(env, async move |operation| commands::key::recovery_code(&target?, &operation).await)
}

/// Finds and checks the configuration without `OpenClaw`: its files, secrets and the environment. The result holds
/// secrets; it is for the functions above, not for showing.
#[napi(catch_unwind)]
pub fn resolve_target(env: &Env, options: Option<ResolveOptions>) -> napi::Result<PromiseRaw<'_, Target>> {
    let (config_path, state_dir, given) =
        options.map_or((None, None, None), |options| (options.config_path, options.state_dir, options.env));
    let request = Resolve {
        config_path: config_path.map(Into::into),
        state_dir: state_dir.map(Into::into),
        env: given.map_or_else(variables, |env| env.into_iter().collect()),
    };
    let read = move || {
        let fields = request.fields()?;
        config::Target::from_json(&fields)?;
        serde_json::from_value::<Target>(fields).map_err(|error| Error::config("config", error))
    };
    Call::new(None, None).start(env, async move |_| blocking(read).await)
}

/// The environment of this process, as far as it is text.
fn variables() -> Environment {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

fn or_null<R, J: From<R>>(result: Option<R>) -> Option<J> {
    result.map(J::from)
}

/// What a call brings besides its arguments.
struct Call<'env> {
    signal: Option<Object<'env>>,
    on_progress: Option<OnProgress>,
}

impl<'env> Call<'env> {
    fn new(signal: Option<Object<'env>>, on_progress: Option<OnProgress>) -> Self {
        Self { signal, on_progress }
    }

    /// The checked target. It goes through JSON text, whose parser has a bound on nesting that a walk over
    /// JavaScript's objects, which may contain themselves, does not have.
    fn target(env: &Env, object: Object<'_>) -> Result<config::Target> {
        let text = env
            .get_global()
            .and_then(|global| global.get_named_property::<Object>("JSON"))
            .and_then(|json| json.get_named_property::<Function<Object, String>>("stringify"))
            .and_then(|stringify| stringify.call(object))
            .map_err(|_| Error::config("target", "cannot be written as JSON"))?;
        let text = Zeroizing::new(text);
        // The parser's message could repeat a part of the text.
        let value = serde_json::from_str(&text).map_err(|_| Error::config("target", "is nested too deeply"))?;
        Ok(config::Target { variables: config::Variables(variables()), ..config::Target::from_json(&value)? })
    }

    /// Runs `command` on napi's runtime, in a task of its own so that a panic ends there.
    fn start<R, J, F>(self, env: &'env Env, command: impl FnOnce(Operation) -> F) -> napi::Result<PromiseRaw<'env, J>>
    where
        R: Send + 'static,
        J: From<R> + ToNapiValue + 'static,
        F: Future<Output = Result<R>> + Send + 'static,
    {
        self.start_with(env, J::from, command)
    }

    /// [`Call::start`] with a conversion of its own.
    fn start_with<R, J, F>(
        self,
        env: &'env Env,
        convert: fn(R) -> J,
        command: impl FnOnce(Operation) -> F,
    ) -> napi::Result<PromiseRaw<'env, J>>
    where
        R: Send + 'static,
        J: ToNapiValue + 'static,
        F: Future<Output = Result<R>> + Send + 'static,
    {
        let operation = Operation {
            cancel: CancellationToken::new(),
            on_progress: self.on_progress.map(|callback| -> Arc<dyn Fn(commands::Progress) + Send + Sync> {
                Arc::new(move |progress| {
                    // An event that finds no room, or no environment, is dropped.
                    let _ = callback.call(progress.into(), ThreadsafeFunctionCallMode::NonBlocking);
                })
            }),
            ..Operation::default()
        };
        let listener = self.signal.map(|signal| Listener::add(env, signal, operation.cancel.clone())).transpose()?;
        let future = command(operation);
        let task = async move { Ok(tokio::spawn(future).await.map_err(task::failed).flatten()) };
        env.spawn_future_with_callback(task, move |env, outcome: Result<R>| {
            if let Some(listener) = listener.flatten() {
                listener.remove(env)?;
            }
            outcome.map(convert).map_err(|error| rejection(env, &error))
        })
    }
}

/// An `abort` listener on a signal, taken off again when the operation has ended.
struct Listener {
    signal: ObjectRef<false>,
    function: FunctionRef<(), ()>,
}

type Registration<'env> = Function<'env, FnArgs<(&'static str, Function<'env, (), ()>)>, ()>;

impl Listener {
    /// `None` when the signal is aborted already.
    fn add(env: &Env, signal: Object<'_>, cancel: CancellationToken) -> napi::Result<Option<Self>> {
        if signal.get_named_property::<bool>("aborted")? {
            cancel.cancel();
            return Ok(None);
        }
        let function = env.create_function_from_closure::<(), (), _>("onAbort", move |_| {
            cancel.cancel();
            Ok(())
        })?;
        let reference = function.create_ref()?;
        let register: Registration = signal.get_named_property("addEventListener")?;
        register.apply(signal, ("abort", function).into())?;
        Ok(Some(Self { signal: signal.create_ref()?, function: reference }))
    }

    fn remove(self, env: &Env) -> napi::Result<()> {
        let signal = self.signal.get_value(env)?;
        let register: Registration = signal.get_named_property("removeEventListener")?;
        register.apply(signal, ("abort", self.function.borrow_back(env)?).into())?;
        self.signal.unref(env)
    }
}

/// The JavaScript `Error` for `error`.
fn rejection(env: &Env, error: &Error) -> napi::Error {
    let build = || {
        let mut object = env.create_error(napi::Error::new(Status::GenericFailure, error.to_string()))?;
        let mut context = Object::new(env)?;
        let subject = error.context();
        for (name, value) in [("path", &subject.path), ("key", &subject.key), ("snapshot", &subject.snapshot)] {
            if let Some(value) = value {
                context.set(name, value.as_str())?;
            }
        }
        object.set("code", error.code().as_str())?;
        object.set("retryable", error.is_retryable())?;
        object.set("context", context)?;
        Ok(napi::Error::from_unknown_without_coercion(object.to_unknown()))
    };
    build().unwrap_or_else(|failure: napi::Error| failure)
}

fn convert<T, U: From<T>>(items: Vec<T>) -> Vec<U> {
    items.into_iter().map(U::from).collect()
}

/// JavaScript's numbers are exact up to 2^53, which is 9 PB.
fn number(count: u64) -> f64 {
    count as f64
}

/// A whole number from 0 to 255; what is none becomes 0, which no option takes.
#[allow(clippy::cast_sign_loss)]
fn whole(number: f64) -> u8 {
    if number.fract() == 0.0 && (0.0..=255.0).contains(&number) { number as u8 } else { 0 }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_millis() as f64
}
