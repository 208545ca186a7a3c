//! `rollback`: makes the state as it was in a snapshot, after a safety snapshot of how it is.
//!
//! Nothing of the state is touched before everything that is to come lies staged and checked beside it. What neither
//! the safety snapshot nor the restored one holds is left alone, or set aside where it is in the way.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::capture::{Captured, look};
use super::list::select;
use super::push::{Upload, WhenUnchanged};
use super::workplace::Workplace;
use super::{Meter, Operation, RollbackOptions, RollbackReport, Trigger};
use crate::config::Target;
use crate::error::{Code, Error, Result};
use crate::repository::id::SnapshotId;
use crate::repository::index::Index;
use crate::repository::open::{IfMissing, Repository};
use crate::repository::restore::{parents, time};
use crate::repository::tree::{Entry, Kind};
use crate::state::database::{self, Exclusive, Run};
use crate::state::openclaw_config::{self, CONFIG_FILE};
use crate::state::private::{create_private_dir, write_durably};
use crate::state::rules::{PathFilter, Rules};
use crate::state::scan::{Signature, mode, mtime};
use crate::state::swap::{
    self, Attributes, Occasion, PREPARED, SET_ASIDE, SET_ASIDE_IN_MOUNT, Step, Swap, lock_databases,
};
use crate::task::blocking;

/// Rolls back, or says what that would do, while no gateway runs on the state.
///
/// # Errors
/// `LOCKED` when a gateway or another command works on the state, `NOT_FOUND`, `CORRUPT`, `STATE_CHANGED` when a file
/// changed after it was saved, those of `push` for the safety snapshot, `IO`, `CANCELLED`. With any of them the state
/// is as it was.
pub async fn rollback(target: &Target, options: RollbackOptions, operation: &Operation) -> Result<RollbackReport> {
    let workplace = Workplace::open(target, "rollback").await?;
    let goal = Goal::find(target, &workplace, &options, operation).await?;
    if options.plan_only {
        let live = look(target, &workplace, &goal.repository, operation).await?;
        return Ok(goal.plan(target, &live, Databases::Move)?.report(goal.id.to_string(), None));
    }
    let staged = goal.stage(target, &workplace, Databases::Move, operation).await?;
    staged.apply(target).await
}

/// Does everything of a rollback that leaves the state alone: takes the safety snapshot, and stages and checks what is to
/// come. [`apply_prepared`] does the rest, be it under a running gateway.
///
/// # Errors
/// Those of [`rollback`].
pub async fn prepare(target: &Target, options: RollbackOptions, operation: &Operation) -> Result<RollbackReport> {
    let workplace = Workplace::open(target, "rollback").await?;
    discard(target, &workplace).await?;
    let goal = Goal::find(target, &workplace, &options, operation).await?;
    let staged = goal.stage(target, &workplace, Databases::Overwrite, operation).await?;
    if staged.plan.is_empty() {
        staged.swap.discard();
        return Ok(staged.report());
    }
    let report = staged.report();
    let prepared = Prepared { snapshot: report.snapshot.clone(), paths: options.paths };
    let bytes = serde_json::to_vec(&prepared).map_err(|error| Error::new(Code::Io, error.to_string()))?;
    write_durably(&workplace.folder.path(PREPARED), &bytes)?;
    Ok(report)
}

/// Applies what [`prepare`] has prepared; `None` when there is nothing. The state of this moment is saved once more, and
/// what is staged and still fits is not read again. Databases that a gateway has open are overwritten through SQLite; it
/// has to start anew afterwards, since it remembers some of what was in them.
///
/// # Errors
/// Those of [`rollback`]. Whatever happens, nothing is prepared any more.
pub async fn apply_prepared(target: &Target, operation: &Operation) -> Result<Option<RollbackReport>> {
    let workplace = Workplace::open(target, "rollback").await?;
    operation.check()?;
    let Some(Prepared { snapshot, paths }) = Prepared::read(&workplace) else { return Ok(None) };
    // Should this run not come to its end, the next one finds a journal or nothing.
    let options = RollbackOptions { snapshot, paths, plan_only: false };
    let goal = Goal::find(target, &workplace, &options, operation).await?;
    let staged = goal.stage(target, &workplace, Databases::Overwrite, operation).await;
    let _ = fs::remove_file(workplace.folder.path(PREPARED));
    staged?.apply(target).await.map(Some)
}

/// Drops what [`prepare`] has prepared.
///
/// # Errors
/// `LOCKED`, `IO`.
pub async fn discard_prepared(target: &Target) -> Result<()> {
    discard(target, &Workplace::open(target, "rollback").await?).await
}

async fn discard(target: &Target, workplace: &Workplace) -> Result<()> {
    let (state_dir, folder) = (target.state_dir.clone(), workplace.folder.clone());
    blocking(move || swap::drop_prepared(&state_dir, &folder)).await
}

/// What a start found of an earlier rollback.
#[derive(Debug, Clone)]
pub struct RecoverReport {
    /// `finished` or `undone` for one that was interrupted, `discarded` for one that was prepared and never begun.
    pub outcome: &'static str,
    /// The snapshot that it was to restore.
    pub snapshot: String,
    /// The safety snapshot taken before; `None` for one that was never begun.
    pub safety_snapshot: Option<String>,
}

/// Finishes or takes back a rollback that was interrupted, and drops one that was prepared and never begun.
///
/// # Errors
/// `LOCKED`, `IO`, `CORRUPT`.
pub async fn recover(target: &Target) -> Result<Option<RecoverReport>> {
    let workplace = Workplace::open(target, "recover").await?;
    if let Some(found) = &workplace.recovered {
        return Ok(Some(RecoverReport {
            outcome: if found.finished { "finished" } else { "undone" },
            snapshot: found.snapshot.clone(),
            safety_snapshot: Some(found.safety_snapshot.clone()),
        }));
    }
    let Some(prepared) = Prepared::read(&workplace) else { return Ok(None) };
    discard(target, &workplace).await?;
    Ok(Some(RecoverReport { outcome: "discarded", snapshot: prepared.snapshot, safety_snapshot: None }))
}

/// Restores the newest snapshot where there is nothing to lose: no agent has a database, no workspace a file. What is
/// replaced nevertheless is set aside, nothing is removed, and no safety snapshot is taken. `None` when there is something
/// to lose, or nothing to restore.
///
/// # Errors
/// Those of [`rollback`].
pub async fn restore_if_empty(target: &Target, operation: &Operation) -> Result<Option<RollbackReport>> {
    operation.check()?;
    let state_dir = target.state_dir.clone();
    if !blocking(move || Ok(has_no_agent_content(&state_dir))).await? {
        return Ok(None);
    }
    let workplace = Workplace::open(target, "restore").await?;
    let options = RollbackOptions { snapshot: "latest".into(), paths: Vec::new(), plan_only: false };
    let goal = match Goal::find(target, &workplace, &options, operation).await {
        Err(error) if error.code() == Code::NotFound => return Ok(None),
        goal => goal?,
    };
    let mut live = look(target, &workplace, &goal.repository, operation).await?;
    let mut plan = goal.plan(target, &live, Databases::Overwrite)?;
    plan.spare_everything();
    let swap = goal.stage_plan(target, &workplace, &plan, operation).await?;
    let saved = Saved::of(&mut live);
    let Goal { id, .. } = goal;
    Staged { id, plan, swap, saved, safety: None, databases: Databases::Overwrite }.apply(target).await.map(Some)
}

/// Whether no agent has anything yet: no database or transcript, no file in a workspace. The configuration, the shared
/// database and credentials are there before anybody has said a word.
fn has_no_agent_content(state_dir: &Path) -> bool {
    let is_transcript = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name == "sessions.json" || name.contains(".jsonl") || database::has_magic(path)
    };
    let files_below = |folder: PathBuf| {
        let walk = walkdir::WalkDir::new(folder).follow_links(false).into_iter().flatten();
        walk.filter(|entry| !entry.file_type().is_dir()).map(walkdir::DirEntry::into_path)
    };
    let Ok(entries) = fs::read_dir(state_dir) else { return false };
    entries.into_iter().all(|entry| {
        let Ok(entry) = entry else { return false };
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.as_str() {
            "agents" | "memory" => !files_below(entry.path()).any(|path| is_transcript(&path)),
            _ if name == "workspace" || name.starts_with("workspace-") => files_below(entry.path()).next().is_none(),
            _ => true,
        }
    })
}

/// A rollback that [`prepare`] has prepared, in the private folder.
#[derive(serde::Serialize, serde::Deserialize)]
struct Prepared {
    snapshot: String,
    paths: Vec<String>,
}

impl Prepared {
    fn read(workplace: &Workplace) -> Option<Self> {
        serde_json::from_slice(&fs::read(workplace.folder.path(PREPARED)).ok()?).ok()
    }
}

/// How a database is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Databases {
    /// By renaming: nobody may have it open.
    Move,
    /// Through SQLite, in one transaction, under whoever has it open.
    Overwrite,
}

/// The snapshot that the state is to be made like.
struct Goal {
    repository: Repository,
    index: Arc<Index>,
    id: SnapshotId,
    wanted: Vec<Entry>,
    filter: PathFilter,
}

impl Goal {
    async fn find(
        target: &Target,
        workplace: &Workplace,
        options: &RollbackOptions,
        operation: &Operation,
    ) -> Result<Self> {
        let filter = PathFilter::new(&options.paths)?;
        let cache = Some(Arc::clone(&workplace.cache));
        let mut repository = Repository::open(target, cache, IfMissing::ReadAsEmpty, operation).await?;
        let (id, summary) = select(&repository, &options.snapshot, operation).await?;
        let index = Arc::new(repository.load_index().await?);
        let read = repository.read_tree(&index, &summary.tree, operation).await;
        let (wanted, _) = read.map_err(|error| error.in_snapshot(id.as_str()))?;
        if !filter.is_all() && !wanted.iter().any(|entry| filter.matches(&entry.path)) {
            let problem = format!("nothing in {id} matches {}", options.paths.join(", "));
            return Err(Error::new(Code::NotFound, problem).in_snapshot(id.as_str()));
        }
        Ok(Self { repository, index, id, wanted, filter })
    }

    fn plan(&self, target: &Target, live: &Captured, databases: Databases) -> Result<Plan> {
        let plan = Plan::new(target, live, &self.wanted, &self.filter, databases);
        plan.map_err(|error| error.in_snapshot(self.id.as_str()))
    }

    /// Takes the safety snapshot and stages what is to come.
    async fn stage(
        self,
        target: &Target,
        workplace: &Workplace,
        databases: Databases,
        operation: &Operation,
    ) -> Result<Staged> {
        let mut upload = Upload::start(target, workplace, WhenUnchanged::Store, operation).await?;
        let plan = self.plan(target, &upload.captured, databases)?;
        let mut safety = None;
        if !plan.is_empty() {
            if databases == Databases::Move {
                // Looked at early too: a rollback that cannot be leaves no safety snapshot behind.
                let (state_dir, steps) = (target.state_dir.clone(), plan.steps());
                let look = move || {
                    lock_databases(&state_dir, &steps).map(|locks| locks.into_iter().for_each(Exclusive::release))
                };
                blocking(look).await?;
            }
            safety = Some(upload.commit(Trigger::BeforeRollback).await?.to_string());
        }
        let swap = self.stage_plan(target, workplace, &plan, operation).await?;
        let saved = Saved::of(&mut upload.captured);
        Ok(Staged { id: self.id, plan, swap, saved, safety, databases })
    }

    async fn stage_plan(
        &self,
        target: &Target,
        workplace: &Workplace,
        plan: &Plan,
        operation: &Operation,
    ) -> Result<Swap> {
        let (state_dir, folder, wanted) = (target.state_dir.clone(), workplace.folder.clone(), plan.stage.clone());
        let (swap, lacking) = blocking(move || Swap::prepare(&state_dir, &folder, &wanted)).await?;
        let staged = fetch(&self.repository, &self.index, lacking, &swap, operation).await;
        match staged.and_then(|()| operation.check()) {
            Ok(()) => Ok(swap),
            Err(error) => {
                swap.discard();
                Err(error.in_snapshot(self.id.as_str()))
            }
        }
    }
}

/// A rollback of which only the last part is left.
struct Staged {
    id: SnapshotId,
    plan: Plan,
    swap: Swap,
    saved: Saved,
    safety: Option<String>,
    databases: Databases,
}

impl Staged {
    fn report(&self) -> RollbackReport {
        self.plan.report(self.id.to_string(), self.safety.clone())
    }

    async fn apply(self, target: &Target) -> Result<RollbackReport> {
        let mut report = self.report();
        if self.plan.is_empty() {
            self.swap.discard();
            return Ok(report);
        }
        let (state_dir, id) = (target.state_dir.clone(), self.id.clone());
        let warnings = blocking(move || self.apply_now(&state_dir)).await;
        report.warnings.extend(warnings.map_err(|error| error.in_snapshot(id.as_str()))?);
        Ok(report)
    }

    /// Swaps what is staged for what is there, once nobody is in the way and nothing has changed since it was saved. Gives
    /// warnings. Blocks.
    fn apply_now(self, state_dir: &Path) -> Result<Vec<String>> {
        let Self { id, plan, swap, saved, safety, databases } = self;
        let steps = plan.steps();
        let prepare = || {
            let warnings = plan.keep_what_is_this_machines(state_dir, &swap, databases)?;
            let locks = match databases {
                Databases::Move => lock_databases(state_dir, &steps)?,
                Databases::Overwrite => Vec::new(),
            };
            match plan.check_unchanged(state_dir, &saved) {
                Ok(()) => Ok((warnings, locks)),
                Err(error) => {
                    locks.into_iter().for_each(Exclusive::release);
                    Err(error)
                }
            }
        };
        match prepare() {
            Ok((warnings, _locks)) => {
                let occasion = Occasion {
                    safety_snapshot: safety.unwrap_or_else(|| format!("before-{id}")),
                    snapshot: id.to_string(),
                    under_gateway: databases == Databases::Overwrite,
                };
                swap.apply(occasion, steps).map(|()| warnings)
            }
            Err(error) => {
                swap.discard();
                Err(error)
            }
        }
    }
}

/// What the safety snapshot holds.
struct Saved {
    /// The signature of each file when it was read.
    signatures: HashMap<String, Vec<u8>>,
    paths: HashSet<String>,
}

impl Saved {
    fn of(captured: &mut Captured) -> Self {
        Self {
            signatures: std::mem::take(&mut captured.signatures),
            paths: captured.entries.iter().map(|entry| entry.path.clone()).collect(),
        }
    }
}

/// Something of the live state that has to go.
#[derive(Debug, Clone, Copy)]
struct Going {
    /// Whether the safety snapshot holds it.
    saved: bool,
    database: bool,
}

/// What has to happen for the state to become the snapshot's.
#[derive(Debug, Default)]
struct Plan {
    /// Files, databases and links to be written.
    stage: Vec<Entry>,
    /// Those databases among them that are overwritten where they are.
    overwrite: BTreeSet<String>,
    /// Directories to be made, the outermost first.
    make: Vec<String>,
    going: BTreeMap<String, Going>,
    /// Directories to be removed, the innermost first.
    remove: Vec<(String, Attributes)>,
    attributes: BTreeMap<String, (Option<Attributes>, Attributes)>,
    restored: Vec<String>,
    deleted: Vec<String>,
    unchanged: u64,
    bytes: u64,
    restart_required: bool,
    warnings: Vec<String>,
}

impl Plan {
    fn new(
        target: &Target,
        live: &Captured,
        wanted: &[Entry],
        filter: &PathFilter,
        databases: Databases,
    ) -> Result<Self> {
        let rules = Rules::new(&target.include, &target.exclude, target.encrypt)?;
        let by_path: HashMap<&str, &Entry> = live
            .entries
            .iter()
            .filter(|entry| entry.kind != Kind::Exception)
            .map(|entry| (entry.path.as_str(), entry))
            .collect();
        let mut plan = Self::default();
        let mut out_of_scope = 0;
        // Directories of the live state that give way to something else, with all that is in them.
        let mut replaced = HashSet::new();
        for entry in wanted.iter().filter(|entry| entry.kind != Kind::Exception && filter.matches(&entry.path)) {
            match (rules.reaches(&entry.path), entry.kind) {
                (true, Kind::Directory) => plan.want_directory(target, &by_path, entry),
                (true, _) => plan.want_content(target, &by_path, entry, databases, &mut replaced),
                // Directories on the way to something included are made when that is.
                (false, Kind::Directory) => {}
                (false, _) => out_of_scope += 1,
            }
        }
        plan.make_parents(target, &by_path, wanted);
        if out_of_scope > 0 {
            plan.warnings.push(format!(
                "{out_of_scope} files of the snapshot are left out by the configuration of today and were left alone"
            ));
        }
        plan.delete(target, live, wanted, filter, &replaced);
        plan.take_orphaned_side_files(&target.state_dir);
        let restart = |path: &String| path.starts_with("openclaw.json");
        plan.restart_required = plan.going.values().any(|going| going.database)
            || plan.stage.iter().any(|entry| entry.kind == Kind::Database)
            || plan.restored.iter().chain(&plan.deleted).any(restart);
        Ok(plan)
    }

    fn want_directory(&mut self, target: &Target, live: &HashMap<&str, &Entry>, entry: &Entry) {
        let after = Attributes { mode: entry.mode, mtime: entry.mtime };
        let found = metadata(&target.state_dir, &entry.path);
        if let Some(meta) = found.as_ref().filter(|meta| meta.is_dir()) {
            let before = Attributes { mode: mode(meta), mtime: mtime(meta) };
            if before.mode != after.mode {
                self.restored.push(entry.path.clone());
            }
            // Recorded also when equal: what happens inside changes the time.
            self.attributes.insert(entry.path.clone(), (Some(before), after));
            return;
        }
        if found.is_some() {
            self.take_away(target, live, &entry.path, false);
        }
        self.make.push(entry.path.clone());
        self.attributes.insert(entry.path.clone(), (None, after));
        self.restored.push(entry.path.clone());
    }

    fn want_content<'e>(
        &mut self,
        target: &Target,
        live: &HashMap<&str, &Entry>,
        entry: &'e Entry,
        databases: Databases,
        replaced: &mut HashSet<&'e str>,
    ) {
        let known = live.get(entry.path.as_str());
        let same_content = known.is_some_and(|known| {
            known.kind == entry.kind && known.sha256 == entry.sha256 && known.target == entry.target
        });
        if let Some(known) = known.filter(|_| same_content) {
            // The time of a database says when something was written to it, if only a lease.
            let same_time = entry.kind != Kind::File || known.mtime == entry.mtime;
            if entry.kind == Kind::Symlink || (known.mode == entry.mode && same_time) {
                self.unchanged += 1;
            } else {
                let before = Attributes { mode: known.mode, mtime: known.mtime };
                let after = Attributes { mode: entry.mode, mtime: entry.mtime };
                self.attributes.insert(entry.path.clone(), (Some(before), after));
                self.restored.push(entry.path.clone());
            }
            return;
        }
        let are_databases = entry.kind == Kind::Database && known.is_some_and(|known| known.kind == Kind::Database);
        if databases == Databases::Overwrite && are_databases {
            self.overwrite.insert(entry.path.clone());
        } else if let Some(meta) = metadata(&target.state_dir, &entry.path) {
            if meta.is_dir() {
                replaced.insert(entry.path.as_str());
            }
            self.take_away(target, live, &entry.path, entry.kind == Kind::Database);
        }
        self.stage.push(entry.clone());
        self.bytes += entry.size;
        self.restored.push(entry.path.clone());
    }

    /// Lets something go. A directory goes with all that is in it, and counts as saved only if all of it is.
    fn take_away(&mut self, target: &Target, live: &HashMap<&str, &Entry>, path: &str, database: bool) {
        // A link goes as a link: what it leads to is neither looked at nor touched.
        let below = walkdir::WalkDir::new(target.state_dir.join(path)).follow_root_links(false).into_iter();
        let mut going = Going { saved: true, database };
        for found in below {
            let relative = found.ok().and_then(|found| relative(&target.state_dir, found.path()));
            let is_saved_with = |path: &String| {
                owner_of_side_file(path).and_then(|owner| live.get(owner)).is_some_and(|db| db.kind == Kind::Database)
            };
            match relative.as_ref().and_then(|path| live.get(path.as_str())) {
                Some(entry) => going.database |= entry.kind == Kind::Database,
                None if relative.as_ref().is_some_and(is_saved_with) => {}
                None => going.saved = false,
            }
        }
        if !going.saved {
            self.warnings.push(format!(
                "{path} is in no snapshot; it is kept in b2-backup/{SET_ASIDE}, or {SET_ASIDE_IN_MOUNT} of its own file system"
            ));
        }
        self.going.insert(path.to_owned(), going);
    }

    /// Makes the directories above everything that is staged.
    fn make_parents(&mut self, target: &Target, live: &HashMap<&str, &Entry>, wanted: &[Entry]) {
        let by_path: HashMap<&str, &Entry> = wanted.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        let mut needed: Vec<String> =
            self.stage.iter().flat_map(|entry| parents(&entry.path)).map(str::to_owned).collect();
        needed.extend(self.make.iter().flat_map(|path| parents(path)).map(str::to_owned));
        needed.sort();
        needed.dedup();
        for path in needed {
            let is_dir = metadata(&target.state_dir, &path).is_some_and(|meta| meta.is_dir());
            if is_dir || self.make.contains(&path) {
                continue;
            }
            let made = Entry::new(path.as_str(), Kind::Directory, 0o700, 0);
            let entry = by_path.get(path.as_str()).filter(|entry| entry.kind == Kind::Directory).map_or(&made, |e| *e);
            self.want_directory(target, live, entry);
        }
        self.make.sort();
    }

    /// Lets go what the snapshot does not have, except below what it could not hold.
    fn delete(
        &mut self,
        target: &Target,
        live: &Captured,
        wanted: &[Entry],
        filter: &PathFilter,
        replaced: &HashSet<&str>,
    ) {
        let kept: HashSet<&str> = wanted.iter().map(|entry| entry.path.as_str()).collect();
        let lacking: HashSet<&str> =
            wanted.iter().filter(|entry| entry.kind == Kind::Exception).map(|entry| entry.path.as_str()).collect();
        let mut gone: HashSet<String> = HashSet::new();
        let mut folders = Vec::new();
        for entry in live.entries.iter().filter(|entry| entry.kind != Kind::Exception) {
            let path = entry.path.as_str();
            let spared = kept.contains(path)
                || !filter.matches(path)
                || parents(path).any(|parent| lacking.contains(parent) || replaced.contains(parent));
            if spared {
                continue;
            }
            if entry.kind == Kind::Directory {
                folders.push(entry);
            } else {
                self.going.insert(path.into(), Going { saved: true, database: entry.kind == Kind::Database });
                self.deleted.push(path.into());
                gone.insert(path.into());
                if entry.kind == Kind::Database {
                    gone.extend(database::SIDE_FILES.map(|suffix| format!("{path}{suffix}")));
                }
            }
        }
        // The innermost come last in the order of paths, so that each finds its children's fate decided.
        for folder in folders.into_iter().rev() {
            let path = folder.path.as_str();
            let Ok(children) = fs::read_dir(target.state_dir.join(path)) else { continue };
            let all_gone = children.into_iter().all(|child| {
                let name = child.ok().and_then(|child| child.file_name().into_string().ok());
                name.is_some_and(|name| gone.contains(&format!("{path}/{name}")))
            });
            if all_gone {
                self.remove.push((path.into(), Attributes { mode: folder.mode, mtime: folder.mtime }));
                self.deleted.push(path.into());
                gone.insert(path.into());
            }
        }
        self.deleted.sort();
    }

    /// No database is put beside the side files of one that is not there any more. (One that is there takes its own along.)
    fn take_orphaned_side_files(&mut self, state_dir: &Path) {
        for entry in self.stage.iter().filter(|entry| entry.kind == Kind::Database) {
            if self.going.contains_key(&entry.path) || self.overwrite.contains(&entry.path) {
                continue;
            }
            for suffix in database::SIDE_FILES {
                let side = format!("{}{suffix}", entry.path);
                if metadata(state_dir, &side).is_some() {
                    self.going.insert(side, Going { saved: false, database: false });
                }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.restored.is_empty() && self.deleted.is_empty()
    }

    fn report(&self, snapshot: String, safety_snapshot: Option<String>) -> RollbackReport {
        RollbackReport {
            snapshot,
            safety_snapshot,
            restored: self.restored.clone(),
            deleted: self.deleted.clone(),
            unchanged: self.unchanged,
            bytes: self.bytes,
            restart_required: self.restart_required,
            warnings: self.warnings.clone(),
        }
    }

    fn steps(&self) -> Vec<Step> {
        let going = self.going.iter().map(|(path, Going { saved, database })| Step::TakeAway {
            path: path.clone(),
            saved: *saved,
            database: *database,
        });
        let remove =
            self.remove.iter().map(|(path, before)| Step::RemoveDirectory { path: path.clone(), before: *before });
        let make = self.make.iter().map(|path| Step::MakeDirectory(path.clone()));
        let overwrite = self.overwrite.iter().map(|path| Step::Overwrite(path.clone()));
        let put_in = self.stage.iter().filter(|entry| !self.overwrite.contains(&entry.path));
        let put_in = put_in.map(|entry| Step::PutIn(entry.path.clone()));
        // The innermost first: a directory's own mode may forbid what comes after.
        let attributes = self.attributes.iter().rev().map(|(path, (before, after))| Step::SetAttributes {
            path: path.clone(),
            before: *before,
            after: *after,
        });
        overwrite.chain(going).chain(remove).chain(make).chain(put_in).chain(attributes).collect()
    }

    /// Removes nothing, and sets aside what is replaced.
    fn spare_everything(&mut self) {
        let replaced: HashSet<&str> =
            self.stage.iter().map(|entry| &entry.path).chain(&self.make).map(String::as_str).collect();
        self.going.retain(|path, _| replaced.contains(path.as_str()));
        self.going.values_mut().for_each(|going| going.saved = false);
        self.remove.clear();
        self.deleted.clear();
    }

    /// Gives what is staged this machine's own: rows of databases, and settings.
    fn keep_what_is_this_machines(&self, state_dir: &Path, swap: &Swap, databases: Databases) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        for entry in &self.stage {
            let (live, staged) = (state_dir.join(&entry.path), swap.staging_of(&entry.path).join(&entry.path));
            if entry.path == CONFIG_FILE && entry.kind == Kind::File {
                openclaw_config::keep_own_settings(&live, &staged)?;
            } else if entry.kind == Kind::Database && database::is_openclaws(&staged) {
                database::check_integrity(&staged)?;
                database::move_to(&staged, state_dir)?;
                let run = match databases {
                    Databases::Move => Run::Over,
                    Databases::Overwrite => Run::GoesOn,
                };
                if !database::keep_rows_of_this_machine(&live, &staged, run)? {
                    let problem = "was too damaged to give back this machine's credentials; log in again where needed";
                    warnings.push(format!("{} {problem}", entry.path));
                }
            } else {
                continue;
            }
            let set = fs::OpenOptions::new().write(true).open(&staged);
            set.and_then(|file| file.set_modified(time(entry.mtime)))
                .map_err(|error| Error::io("set the time of", &staged, error))?;
        }
        Ok(warnings)
    }

    fn check_unchanged(&self, state_dir: &Path, saved: &Saved) -> Result<()> {
        let changed = |path: &str| {
            Err(Error::new(Code::StateChanged, format!("{path} changed while the rollback was prepared"))
                .at_path(path)
                .advise("stop what writes to it and try again; nothing was changed")
                .retryable())
        };
        let is_as_saved = |path: &str| {
            let Some(signature) = saved.signatures.get(path) else { return true };
            Signature::of(&state_dir.join(path)).is_ok_and(|now| now.bytes == *signature)
        };
        if let Some(path) = self.going.keys().chain(self.attributes.keys()).find(|path| !is_as_saved(path)) {
            return changed(path);
        }
        // A directory goes with all that is in it by now.
        for (path, _) in self.going.iter().filter(|(_, going)| going.saved) {
            let below = walkdir::WalkDir::new(state_dir.join(path)).follow_root_links(false).min_depth(1);
            for found in below.into_iter().flatten() {
                let relative = relative(state_dir, found.path()).unwrap_or_default();
                let path = owner_of_side_file(&relative).filter(|owner| saved.paths.contains(*owner));
                let path = path.unwrap_or(&relative);
                if !saved.paths.contains(path) || !is_as_saved(path) {
                    return changed(&relative);
                }
            }
        }
        Ok(())
    }
}

/// What is at a path below the state directory. Behind a link is nothing: it gives way to the snapshot's directory.
fn metadata(state_dir: &Path, path: &str) -> Option<fs::Metadata> {
    let is_dir = |parent: &str| fs::symlink_metadata(state_dir.join(parent)).is_ok_and(|meta| meta.is_dir());
    parents(path).all(is_dir).then(|| fs::symlink_metadata(state_dir.join(path)).ok()).flatten()
}

/// The database whose side file this is, by its name.
fn owner_of_side_file(path: &str) -> Option<&str> {
    database::SIDE_FILES.iter().find_map(|suffix| path.strip_suffix(suffix))
}

/// A path below the state directory as snapshots name it, if it is text.
fn relative(state_dir: &Path, path: &Path) -> Option<String> {
    Some(path.strip_prefix(state_dir).ok()?.to_str()?.replace(std::path::MAIN_SEPARATOR, "/"))
}

/// Writes what is to come into the staging folders, checked.
async fn fetch(
    repository: &Repository,
    index: &Arc<Index>,
    entries: Vec<Entry>,
    swap: &Swap,
    operation: &Operation,
) -> Result<()> {
    let meter = Arc::new(Meter::new(operation, "stage", 0, 0));
    let mut by_folder: BTreeMap<PathBuf, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        by_folder.entry(swap.staging_of(&entry.path)).or_default().push(entry);
    }
    for (folder, entries) in by_folder {
        create_private_dir(&folder)?;
        repository.restore(index, entries, &folder, Arc::clone(&meter), operation).await?;
    }
    Ok(())
}
