//! `rollback`: makes the state as it was in a snapshot, after a safety snapshot of how it is.
//!
//! Nothing of the state is touched before everything that is to come lies staged and checked beside it. What neither
//! the safety snapshot nor the restored one holds is left alone, or set aside where it is in the way.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::capture::{Captured, look};
use super::plan::{Databases, Plan, Saved, ThisMachine, Wanted};
use super::push::{Upload, WhenUnchanged};
use super::snapshot::Snapshot;
use super::workplace::Workplace;
use super::{Exception, Meter, Operation, RollbackOptions, RollbackReport, Trigger, other_machine};
use crate::config::Target;
use crate::error::{Code, Error, Result, to_json};
use crate::repository::open::{IfMissing, Repository};
use crate::repository::restore::lost_files;
use crate::repository::tree::{Entry, Kind};
use crate::state::blank;
use crate::state::database::Exclusive;
use crate::state::openclaw_config::CONFIG_FILE;
use crate::state::places::Places;
use crate::state::private::{create_private_dir, write_durably};
use crate::state::rules::{PathFilter, Rules};
use crate::state::swap::{self, Occasion, PREPARED, Swap, lock_databases};
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
        return Ok(goal.plan(target, &live, Databases::Move)?.report(goal.snapshot.id, None));
    }
    let staged = goal.stage(target, &workplace, Databases::Move, operation).await?;
    staged.apply().await
}

/// Does everything of a rollback that leaves the state alone: takes the safety snapshot, and stages and checks what is to
/// come. [`apply_prepared`] does the rest, be it under a running gateway.
///
/// # Errors
/// Those of [`rollback`].
pub async fn prepare(target: &Target, options: RollbackOptions, operation: &Operation) -> Result<RollbackReport> {
    let workplace = Workplace::open(target, "rollback").await?;
    discard(&workplace).await?;
    let goal = Goal::find(target, &workplace, &options, operation).await?;
    let staged = goal.stage(target, &workplace, Databases::Overwrite, operation).await?;
    if staged.plan.is_empty() {
        staged.swap.discard();
        return Ok(staged.report());
    }
    let report = staged.report();
    let prepared = Prepared { snapshot: report.snapshot.clone(), paths: options.paths, partial: options.partial };
    write_durably(&workplace.folder.path(PREPARED), &to_json(&prepared)?)?;
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
    let Some(Prepared { snapshot, paths, partial }) = Prepared::read(&workplace) else { return Ok(None) };
    // Should this run not come to its end, the next one finds a journal or nothing.
    let options = RollbackOptions { snapshot, paths, plan_only: false, partial };
    let staged = match Goal::find(target, &workplace, &options, operation).await {
        Ok(goal) => goal.stage(target, &workplace, Databases::Overwrite, operation).await,
        Err(error) => Err(error),
    };
    let _ = fs::remove_file(workplace.folder.path(PREPARED));
    staged?.apply().await.map(Some)
}

/// Drops what [`prepare`] has prepared.
///
/// # Errors
/// `LOCKED`, `IO`.
pub async fn discard_prepared(target: &Target) -> Result<()> {
    discard(&Workplace::open(target, "rollback").await?).await
}

async fn discard(workplace: &Workplace) -> Result<()> {
    let (places, folder) = (workplace.places.clone(), workplace.folder.clone());
    blocking(move || swap::drop_prepared(&places, &folder)).await
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
    discard(&workplace).await?;
    Ok(Some(RecoverReport { outcome: "discarded", snapshot: prepared.snapshot, safety_snapshot: None }))
}

/// Restores the newest snapshot where there is nothing to lose: on a machine that is [`blank`]. Should the snapshot be of such a one
/// too, it is the newest one of another machine that is not: a new machine may have taken snapshots before its gateway was
/// restarted. What is replaced nevertheless is set aside, nothing is removed, and no safety snapshot is taken.
/// `None` when there is something to lose, or nothing to restore.
///
/// # Errors
/// Those of [`rollback`]; `NOT_FOUND` when there are snapshots of 0.1.x alone, of which none is taken unasked.
pub async fn restore_if_empty(target: &Target, operation: &Operation) -> Result<Option<RollbackReport>> {
    operation.check()?;
    let searched = target.clone();
    if !blocking(move || Ok(blank::is_blank(&Places::find(&searched)))).await? {
        return Ok(None);
    }
    let workplace = Workplace::open(target, "restore").await?;
    let options = RollbackOptions { snapshot: "latest".into(), paths: Vec::new(), plan_only: false, partial: false };
    let mut goal = match Goal::find(target, &workplace, &options, operation).await {
        Err(error) if error.code() == Code::NotFound && error.context().snapshot.is_none() => return Ok(None),
        goal => goal?,
    };
    if goal.snapshot.is_blank() && !goal.go_back_to_agent_content(target, &workplace, operation).await? {
        return Ok(None);
    }
    let mut live = look(target, &workplace, &goal.repository, operation).await?;
    let mut plan = goal.plan(target, &live, Databases::Overwrite)?;
    plan.spare_everything();
    let (swap, lost) = goal.stage_plan(&workplace, &plan, operation).await?;
    if !lost.is_empty() {
        swap.discard();
        return Err(lost_files(&lost).in_snapshot(&goal.snapshot.id));
    }
    let saved = Saved::of(&mut live);
    let machine = goal.machine(target);
    let id = goal.snapshot.id;
    Staged { id, plan, swap, saved, safety: None, databases: Databases::Overwrite, machine }.apply().await.map(Some)
}

/// A rollback that [`prepare`] has prepared, in the private folder.
#[derive(serde::Serialize, serde::Deserialize)]
struct Prepared {
    snapshot: String,
    paths: Vec<String>,
    partial: bool,
}

impl Prepared {
    fn read(workplace: &Workplace) -> Option<Self> {
        serde_json::from_slice(&fs::read(workplace.folder.path(PREPARED)).ok()?).ok()
    }
}

/// Where what is in a snapshot goes on this machine.
fn places_for(snapshot: &Snapshot, workplace: &Workplace) -> Places {
    let mut places = workplace.places.clone();
    places.make_room_for(&snapshot.entries);
    places
}

/// The snapshot that the state is to be made like.
struct Goal {
    repository: Repository,
    snapshot: Snapshot,
    filter: PathFilter,
    /// Where what is in it goes on this machine.
    places: Places,
    /// Whether files that cannot be restored are left as they are.
    partial: bool,
    /// Those files.
    lost: Vec<Exception>,
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
        let snapshot = Snapshot::find(&mut repository, target, &options.snapshot, operation).await?;
        snapshot.check_chosen(&filter, &options.paths)?;
        other_machine::note_choice(workplace, &snapshot.id);
        let places = places_for(&snapshot, workplace);
        let mut goal = Self { repository, snapshot, filter, places, partial: options.partial, lost: Vec::new() };
        if goal.partial {
            let lost = goal.snapshot.lost();
            goal.do_without(lost);
        }
        Ok(goal)
    }

    /// Takes, instead of its snapshot, the newest one that holds something of agents, if that is of another machine. (One of this
    /// machine is older than its being emptied, which its owner may have done.)
    async fn go_back_to_agent_content(
        &mut self,
        target: &Target,
        workplace: &Workplace,
        operation: &Operation,
    ) -> Result<bool> {
        let snapshots = self.repository.contents.snapshots.iter().rev().map(|(id, _)| id.clone());
        for id in snapshots.filter(|id| !id.is_safety()).collect::<Vec<_>>() {
            let snapshot = Snapshot::find(&mut self.repository, target, id.as_str(), operation).await?;
            if !snapshot.is_blank() {
                self.places = places_for(&snapshot, workplace);
                self.snapshot = snapshot;
                return Ok(self.snapshot.machine != Some(workplace.machine));
            }
        }
        Ok(false)
    }

    /// Leaves these files as they are, like all that the snapshot could not hold.
    fn do_without(&mut self, lost: Vec<Exception>) {
        let reasons: HashMap<&str, &str> = lost.iter().map(|lost| (&*lost.path, &*lost.reason)).collect();
        for entry in &mut self.snapshot.entries {
            if let Some(reason) = reasons.get(entry.path.as_str()) {
                *entry = Entry::new(entry.path.as_str(), Kind::Exception, 0, 0).with_target(*reason);
            }
        }
        self.lost.extend(lost);
    }

    fn plan(&self, target: &Target, live: &Captured, databases: Databases) -> Result<Plan> {
        let (places, snapshot) = (&self.places, &self.snapshot);
        if let Some(problem) = places.problem.as_ref().filter(|_| self.filter.is_all()) {
            let problem = format!("where this machine keeps workspaces is not known: {problem}");
            return Err(Error::new(Code::Config, problem)
                .in_snapshot(&snapshot.id)
                .advise(format!("correct {CONFIG_FILE}, or roll it back alone first (--path {CONFIG_FILE})")));
        }
        let (rules, _) = Rules::of(target, places)?;
        let entries = snapshot.compared_with(&live.entries)?;
        let goal = Wanted { entries: &entries, held: &snapshot.held, filter: &self.filter };
        let mut plan = Plan::new(places, &rules, live, &goal, databases);
        snapshot.check_available(&plan.stage)?;
        // Before the others, which may be many.
        plan.warnings.splice(0..0, snapshot.caution());
        let lost = self.lost.iter().filter(|lost| self.filter.matches(&lost.path));
        let left = lost.map(|lost| format!("{} cannot be restored and is left as it is: {}", lost.path, lost.reason));
        plan.warnings.extend(left);
        Ok(plan)
    }

    fn machine(&self, target: &Target) -> ThisMachine {
        ThisMachine {
            places: self.places.clone(),
            env: target.environment(),
            config_path: target.config_path(),
            former_state_dir: self.snapshot.former_state_dir.clone(),
        }
    }

    /// Takes the safety snapshot and stages what is to come.
    async fn stage(
        mut self,
        target: &Target,
        workplace: &Workplace,
        databases: Databases,
        operation: &Operation,
    ) -> Result<Staged> {
        let mut upload = Upload::start(target, workplace, WhenUnchanged::Store, operation).await?;
        let mut plan = self.plan(target, &upload.captured, databases)?;
        let mut safety = None;
        if !plan.is_empty() {
            if databases == Databases::Move {
                // Looked at early too: a rollback that cannot be leaves no safety snapshot behind.
                let (places, steps) = (self.places.clone(), plan.steps());
                let look = move || {
                    let locks = lock_databases(&|name| places.locate(name), &steps)?;
                    locks.into_iter().for_each(Exclusive::release);
                    Ok(())
                };
                blocking(look).await?;
            }
            safety = Some(upload.commit(Trigger::BeforeRollback, false).await?.to_string());
        }
        let swap = loop {
            let (swap, lost) = self.stage_plan(workplace, &plan, operation).await?;
            if lost.is_empty() {
                break swap;
            }
            if !self.partial {
                swap.discard();
                return Err(lost_files(&lost).in_snapshot(&self.snapshot.id));
            }
            // What is staged stays; the plan has fewer files each time.
            self.do_without(lost);
            plan = self.plan(target, &upload.captured, databases)?;
        };
        let saved = Saved::of(&mut upload.captured);
        let machine = self.machine(target);
        Ok(Staged { id: self.snapshot.id, plan, swap, saved, safety, databases, machine })
    }

    /// Stages what the plan wants; gives also the files that cannot be.
    async fn stage_plan(
        &self,
        workplace: &Workplace,
        plan: &Plan,
        operation: &Operation,
    ) -> Result<(Swap, Vec<Exception>)> {
        let (places, folder, wanted) = (self.places.clone(), workplace.folder.clone(), plan.stage.clone());
        let (swap, lacking) = blocking(move || Swap::prepare(&places, &folder, &wanted)).await?;
        let staged = fetch(self, lacking, &swap, operation).await;
        match staged.and_then(|lost| operation.check().map(|()| lost)) {
            Ok(lost) => Ok((swap, lost)),
            Err(error) => {
                swap.discard();
                Err(error.in_snapshot(&self.snapshot.id))
            }
        }
    }
}

/// A rollback of which only the last part is left.
struct Staged {
    id: String,
    plan: Plan,
    swap: Swap,
    saved: Saved,
    safety: Option<String>,
    databases: Databases,
    machine: ThisMachine,
}

impl Staged {
    fn report(&self) -> RollbackReport {
        self.plan.report(self.id.clone(), self.safety.clone())
    }

    async fn apply(self) -> Result<RollbackReport> {
        let mut report = self.report();
        if self.plan.is_empty() {
            self.swap.discard();
            return Ok(report);
        }
        let id = self.id.clone();
        let warnings = blocking(move || self.apply_now()).await;
        report.warnings.extend(warnings.map_err(|error| error.in_snapshot(id))?);
        Ok(report)
    }

    /// Swaps what is staged for what is there, once nobody is in the way and nothing has changed since it was saved. Gives
    /// warnings. Blocks.
    fn apply_now(self) -> Result<Vec<String>> {
        let Self { id, plan, swap, saved, safety, databases, machine } = self;
        let (places, unsaved) = (&machine.places, safety.is_none());
        let steps = plan.steps();
        let prepare = || {
            let warnings = plan.keep_what_is_this_machines(&machine, &swap)?;
            let locks = match databases {
                Databases::Move => lock_databases(&|name| places.locate(name), &steps)?,
                Databases::Overwrite => Vec::new(),
            };
            match plan.check_unchanged(places, &saved) {
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
                    snapshot: id,
                    under_gateway: databases == Databases::Overwrite,
                };
                if unsaved {
                    let copied = plan.overwritten().try_for_each(|name| swap.set_aside_copy(name, &occasion));
                    copied.inspect_err(|_| swap.discard())?;
                }
                swap.apply(occasion, steps).map(|more| [warnings, more].concat())
            }
            Err(error) => {
                swap.discard();
                Err(error)
            }
        }
    }
}

/// Writes what is to come into the staging folders, checked.
async fn fetch(goal: &Goal, entries: Vec<Entry>, swap: &Swap, operation: &Operation) -> Result<Vec<Exception>> {
    let meter = Arc::new(Meter::new(operation, "stage", 0, 0));
    let mut by_folder: BTreeMap<PathBuf, Vec<Entry>> = BTreeMap::new();
    for entry in entries {
        by_folder.entry(swap.staging_of(&entry.path)).or_default().push(entry);
    }
    let mut lost = Vec::new();
    for (folder, entries) in by_folder {
        create_private_dir(&folder)?;
        lost.extend(goal.snapshot.restore(&goal.repository, entries, &folder, Arc::clone(&meter), operation).await?);
    }
    Ok(lost)
}
