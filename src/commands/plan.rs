//! What a rollback has to do: the difference between the live state and a snapshot, as steps.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::RollbackReport;
use super::capture::{Captured, Seen};
use crate::error::{Code, Error, Result};
use crate::repository::restore::{parents, time};
use crate::repository::tree::{Entry, Kind};
use crate::state::blank::is_first_steps;
use crate::state::database::{self, owner_of_side_file};
use crate::state::openclaw_config::{self, CONFIG_FILE, Environment};
use crate::state::places::Places;
use crate::state::rules::{PathFilter, Rules};
use crate::state::scan::{Signature, mode, mtime};
use crate::state::swap::{Attributes, SET_ASIDE, SET_ASIDE_IN_VOLUME, Step, Swap};

/// How a database is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Databases {
    /// By renaming: nobody may have it open.
    Move,
    /// Through SQLite, in one transaction, under whoever has it open.
    Overwrite,
}

/// What the safety snapshot holds.
pub(super) struct Saved {
    /// How each file was seen, by path.
    seen: HashMap<String, Seen>,
    paths: HashSet<String>,
}

impl Saved {
    pub(super) fn of(captured: &mut Captured) -> Self {
        Self {
            seen: std::mem::take(&mut captured.seen),
            paths: captured.entries.iter().map(|entry| entry.path.clone()).collect(),
        }
    }
}

/// Something of the live state that has to go.
#[derive(Debug, Clone, Copy)]
struct Going {
    /// Whether the safety snapshot holds all of it.
    saved: bool,
    database: bool,
}

/// Whether a snapshot lacks something of what is in this file: the credentials in OpenClaw's databases.
fn has_more_than_a_snapshot(entry: &Entry) -> bool {
    entry.kind == Kind::Database && database::is_openclaws(Path::new(&entry.path))
}

/// What has to happen for the state to become the snapshot's.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Files, databases and links to be written.
    pub(super) stage: Vec<Entry>,
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
    pub(super) warnings: Vec<String>,
}

/// What the state is to become.
pub(super) struct Wanted<'a> {
    /// The snapshot's tree.
    pub(super) entries: &'a [Entry],
    /// The places outside the state directory that the snapshot was to hold.
    pub(super) held: &'a [String],
    /// Which part of it.
    pub(super) filter: &'a PathFilter,
}

/// Compares the live state with what is wanted, and writes down what differs.
struct Planner<'a> {
    places: &'a Places,
    /// What the live state holds, by path.
    live: HashMap<&'a str, &'a Entry>,
    wanted: &'a Wanted<'a>,
    databases: Databases,
    /// Directories of the live state that give way to something else, with all that is in them.
    replaced: HashSet<&'a str>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn want_all(&mut self, rules: &Rules) {
        let (mut out_of_scope, mut without_place) = (0, 0);
        let Wanted { entries, filter, .. } = self.wanted;
        for entry in entries.iter().filter(|entry| entry.kind != Kind::Exception && filter.matches(&entry.path)) {
            if !self.places.has_place_for(&entry.path) {
                without_place += u64::from(entry.kind != Kind::Directory);
                continue;
            }
            if let Some(is_directory) = self.places.is_directory(&entry.path)
                && is_directory != (entry.kind == Kind::Directory)
            {
                let problem =
                    "is something else in the snapshot than where the configuration puts it, and was left alone";
                self.plan.warnings.push(format!("{} {problem}", entry.path));
                continue;
            }
            match (rules.reaches(&entry.path), entry.kind) {
                (true, Kind::Directory) => self.want_directory(entry),
                (true, _) => self.want_content(entry),
                // Directories on the way to something included are made when that is.
                (false, Kind::Directory) => {}
                (false, _) => out_of_scope += 1,
            }
        }
        self.make_parents();
        if out_of_scope > 0 {
            self.plan.warnings.push(format!(
                "{out_of_scope} files of the snapshot are left out by the configuration of today and were left alone"
            ));
        }
        if without_place > 0 {
            self.plan.warnings.push(format!(
                "{without_place} files of the snapshot lie outside the state directory where this machine's extraPaths names \
                 nothing; pull brings them"
            ));
        }
    }

    fn want_directory(&mut self, entry: &Entry) {
        let after = Attributes { mode: entry.mode, mtime: entry.mtime };
        let found = metadata(self.places, &entry.path);
        if let Some(meta) = found.as_ref().filter(|meta| meta.is_dir()) {
            let before = Attributes { mode: mode(meta), mtime: mtime(meta) };
            if before.mode != after.mode {
                self.plan.restored.push(entry.path.clone());
            }
            // Recorded also when equal: what happens inside changes the time.
            self.plan.attributes.insert(entry.path.clone(), (Some(before), after));
            return;
        }
        if found.is_some() {
            self.take_away(&entry.path, false);
        }
        self.plan.make.push(entry.path.clone());
        self.plan.attributes.insert(entry.path.clone(), (None, after));
        self.plan.restored.push(entry.path.clone());
    }

    fn want_content(&mut self, entry: &'a Entry) {
        let known = self.live.get(entry.path.as_str()).copied();
        let same_content = known.is_some_and(|known| {
            known.kind == entry.kind && known.sha256 == entry.sha256 && known.target == entry.target
        });
        if let Some(known) = known.filter(|_| same_content) {
            // The time of a database says when something was written to it, if only a lease.
            let same_time = entry.kind != Kind::File || known.mtime == entry.mtime;
            if entry.kind == Kind::Symlink || (known.mode == entry.mode && same_time) {
                self.plan.unchanged += 1;
            } else {
                let before = Attributes { mode: known.mode, mtime: known.mtime };
                let after = Attributes { mode: entry.mode, mtime: entry.mtime };
                self.plan.attributes.insert(entry.path.clone(), (Some(before), after));
                self.plan.restored.push(entry.path.clone());
            }
            return;
        }
        let are_databases = entry.kind == Kind::Database && known.is_some_and(|known| known.kind == Kind::Database);
        if self.databases == Databases::Overwrite && are_databases {
            self.plan.overwrite.insert(entry.path.clone());
        } else if let Some(meta) = metadata(self.places, &entry.path) {
            if meta.is_dir() {
                self.replaced.insert(entry.path.as_str());
            }
            self.take_away(&entry.path, entry.kind == Kind::Database);
        }
        self.plan.stage.push(entry.clone());
        self.plan.bytes += entry.size;
        self.plan.restored.push(entry.path.clone());
    }

    /// Lets something go. A directory goes with all that is in it, and counts as saved only if all of it is.
    fn take_away(&mut self, path: &str, database: bool) {
        // A link goes as a link: what it leads to is neither looked at nor touched.
        let below = walkdir::WalkDir::new(self.places.locate(path)).follow_root_links(false).into_iter();
        // One that SQLite could not copy is saved as a file, without its log.
        let is_copied = self.live.get(path).is_none_or(|entry| entry.kind == Kind::Database);
        let saved = !database || is_copied || !database::log_with_content(&self.places.locate(path));
        let mut going = Going { saved, database };
        for found in below {
            let name = found.ok().and_then(|found| self.places.name_of(found.path()));
            let is_saved_with = |path: &String| {
                owner_of_side_file(path)
                    .and_then(|owner| self.live.get(owner))
                    .is_some_and(|owner| owner.kind == Kind::Database)
            };
            match name.as_ref().and_then(|path| self.live.get(path.as_str())) {
                Some(entry) => {
                    going.database |= entry.kind == Kind::Database;
                    // The database that takes its place gets the credentials.
                    going.saved &= database || !has_more_than_a_snapshot(entry);
                }
                None if name.as_ref().is_some_and(is_saved_with) => {}
                None => going.saved = false,
            }
        }
        if !going.saved {
            self.warn_of_what_is_set_aside(path, "is in no snapshot as a whole");
        }
        self.plan.going.insert(path.to_owned(), going);
    }

    fn warn_of_what_is_set_aside(&mut self, path: &str, reason: &str) {
        self.plan.warnings.push(format!(
            "{path} {reason}; it is kept in b2-backup/{SET_ASIDE}, or {SET_ASIDE_IN_VOLUME} of its own place or file system"
        ));
    }

    /// Makes the directories above everything that is staged.
    fn make_parents(&mut self) {
        let by_path: HashMap<&str, &Entry> =
            self.wanted.entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        let names = self.plan.stage.iter().map(|entry| &entry.path).chain(&self.plan.make);
        let mut needed: Vec<String> = names.flat_map(|name| self.places.parents(name)).map(str::to_owned).collect();
        needed.sort();
        needed.dedup();
        for path in needed {
            let is_dir = metadata(self.places, &path).is_some_and(|meta| meta.is_dir());
            if is_dir || self.plan.make.contains(&path) {
                continue;
            }
            let made = Entry::new(path.as_str(), Kind::Directory, 0o700, 0);
            let entry = by_path.get(path.as_str()).filter(|entry| entry.kind == Kind::Directory).map_or(&made, |e| *e);
            self.want_directory(entry);
        }
        self.plan.make.sort();
    }

    /// Lets go what the snapshot does not have, except below what it could not hold, and in places that it knows nothing of.
    fn delete(&mut self, live: &Captured) {
        let Wanted { entries, held, filter } = self.wanted;
        let kept: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let exceptions = entries.iter().filter(|entry| entry.kind == Kind::Exception);
        let lacking: HashSet<&str> = exceptions.map(|entry| entry.path.as_str()).collect();
        let is_unknown = |path: &str| {
            let place = &self.places.find_place(path).0.name;
            !place.is_empty() && !held.contains(place)
        };
        let mut gone: HashSet<String> = HashSet::new();
        let mut folders = Vec::new();
        for entry in live.entries.iter().filter(|entry| entry.kind != Kind::Exception) {
            let path = entry.path.as_str();
            let spared = kept.contains(path)
                || !filter.matches(path)
                || is_unknown(path)
                || self.places.is_directory(path) == Some(true)
                || parents(path).any(|parent| lacking.contains(parent) || self.replaced.contains(parent));
            if spared {
                continue;
            }
            if entry.kind == Kind::Directory {
                folders.push(entry);
            } else {
                let going = Going { saved: !has_more_than_a_snapshot(entry), database: entry.kind == Kind::Database };
                if !going.saved {
                    self.warn_of_what_is_set_aside(path, "holds credentials, which are in no snapshot");
                }
                self.plan.going.insert(path.into(), going);
                self.plan.deleted.push(path.into());
                gone.insert(path.into());
                if entry.kind == Kind::Database {
                    gone.extend(database::SIDE_FILES.map(|suffix| format!("{path}{suffix}")));
                }
            }
        }
        // The innermost come last in the order of paths, so that each finds its children's fate decided.
        for folder in folders.into_iter().rev() {
            let path = folder.path.as_str();
            let Ok(children) = fs::read_dir(self.places.locate(path)) else { continue };
            let all_gone = children.into_iter().all(|child| {
                let name = child.ok().and_then(|child| child.file_name().into_string().ok());
                name.is_some_and(|name| gone.contains(&format!("{path}/{name}")))
            });
            if all_gone {
                self.plan.remove.push((path.into(), Attributes { mode: folder.mode, mtime: folder.mtime }));
                self.plan.deleted.push(path.into());
                gone.insert(path.into());
            }
        }
        self.plan.deleted.sort();
    }

    /// No database is put beside the side files of one that is not there any more. (One that is there takes its own along.)
    fn take_orphaned_side_files(&mut self) {
        let plan = &mut self.plan;
        for entry in plan.stage.iter().filter(|entry| entry.kind == Kind::Database) {
            if plan.going.contains_key(&entry.path) || plan.overwrite.contains(&entry.path) {
                continue;
            }
            for suffix in database::SIDE_FILES {
                let side = format!("{}{suffix}", entry.path);
                if metadata(self.places, &side).is_some() {
                    plan.going.insert(side, Going { saved: false, database: false });
                }
            }
        }
    }
}

impl Plan {
    /// What has to happen so that the state, which is as `live` says, becomes what is `wanted`.
    pub(super) fn new(
        places: &Places,
        rules: &Rules,
        live: &Captured,
        wanted: &Wanted<'_>,
        databases: Databases,
    ) -> Self {
        let present = live.entries.iter().filter(|entry| entry.kind != Kind::Exception);
        let mut planner = Planner {
            places,
            live: present.map(|entry| (entry.path.as_str(), entry)).collect(),
            wanted,
            databases,
            replaced: HashSet::new(),
            plan: Self::default(),
        };
        planner.want_all(rules);
        planner.delete(live);
        planner.take_orphaned_side_files();
        let mut plan = planner.plan;
        let changed = |path: &String| plan.restored.contains(path) || plan.deleted.contains(path);
        plan.restart_required = plan.going.values().any(|going| going.database)
            || plan.stage.iter().any(|entry| entry.kind == Kind::Database)
            || plan.restored.iter().chain(&plan.deleted).any(|path| path.starts_with(CONFIG_FILE))
            || places.config_files.iter().any(changed);
        plan
    }

    pub(super) fn is_empty(&self) -> bool {
        self.restored.is_empty() && self.deleted.is_empty()
    }

    pub(super) fn report(&self, snapshot: String, safety_snapshot: Option<String>) -> RollbackReport {
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

    /// The live databases that are overwritten.
    pub(super) fn overwritten(&self) -> impl Iterator<Item = &String> {
        self.overwrite.iter()
    }

    pub(super) fn steps(&self) -> Vec<Step> {
        let going = |(path, Going { saved, database }): (&String, &Going)| Step::TakeAway {
            path: path.clone(),
            saved: *saved,
            database: *database,
        };
        let remove =
            self.remove.iter().map(|(path, before)| Step::RemoveDirectory { path: path.clone(), before: *before });
        let make = self.make.iter().map(|path| Step::MakeDirectory(path.clone()));
        let overwrite = self.overwrite.iter().map(|path| Step::Overwrite(path.clone()));
        let put_in = self.stage.iter().filter(|entry| !self.overwrite.contains(&entry.path));
        let put_in = put_in.map(|entry| Step::PutIn(entry.path.clone()));
        let mut moves: Vec<Step> = self.going.iter().map(going).chain(remove).chain(make).chain(put_in).collect();
        // Without the configuration nothing would finish what a crash interrupts: it is missing for the moment between two steps.
        moves.sort_by_key(|step| step.path() == CONFIG_FILE);
        // The innermost first: a directory's own mode may forbid what comes after.
        let attributes = self.attributes.iter().rev().map(|(path, (before, after))| Step::SetAttributes {
            path: path.clone(),
            before: *before,
            after: *after,
        });
        overwrite.chain(moves).chain(attributes).collect()
    }

    /// Removes nothing, and sets aside what is replaced, and the first steps of agents that are restored.
    pub(super) fn spare_everything(&mut self) {
        let replaced: HashSet<&str> =
            self.stage.iter().map(|entry| &entry.path).chain(&self.make).map(String::as_str).collect();
        let is_replaced =
            |path: &str| replaced.contains(path) || owner_of_side_file(path).is_some_and(|o| replaced.contains(o));
        self.going.retain(|path, _| is_replaced(path) || is_first_steps(path));
        self.going.values_mut().for_each(|going| going.saved = false);
        self.remove.clear();
        self.deleted.clear();
    }

    /// Gives what is staged this machine's own: rows of databases, and settings.
    pub(super) fn keep_what_is_this_machines(&self, machine: &ThisMachine, swap: &Swap) -> Result<Vec<String>> {
        let places = &machine.places;
        let mut warnings = Vec::new();
        let is_config = |entry: &Entry| entry.kind == Kind::File && places.config_files.contains(&entry.path);
        for entry in &self.stage {
            let (live, staged) = (places.locate(&entry.path), swap.staged(&entry.path));
            if is_config(entry) {
                machine.adapt_config_file(&staged)?;
            } else if entry.kind == Kind::Database && database::is_openclaws(&staged) {
                let findings = database::check_integrity(&staged)?;
                warnings
                    .extend(findings.into_iter().map(|finding| format!("{}, as it was saved: {finding}", entry.path)));
                let problems = database::make_indexes_again(&staged)?;
                warnings.extend(problems.into_iter().map(|problem| format!("{}: {problem}", entry.path)));
                database::check_version(&live, &staged)?;
                database::move_to(&staged, places.state_dir())?;
                // One that an earlier rollback took away has the credentials that this one gives back.
                let own = if live.exists() { None } else { swap.newest_set_aside(&entry.path) };
                if !database::keep_rows_of_this_machine(&own.unwrap_or(live), &staged)? {
                    let problem = "was too damaged to give back this machine's credentials; log in again where needed";
                    warnings.push(format!("{} {problem}", entry.path));
                }
            } else {
                continue;
            }
            set_time(&staged, entry)?;
        }
        if self.stage.iter().any(is_config) {
            let config = self.stage.iter().find(|entry| entry.path == CONFIG_FILE);
            warnings.extend(machine.keep_settings(swap)?);
            // What the live configuration says cannot be kept if nobody can read it.
            if places.problem.is_none() {
                warnings.extend(machine.keep_places(swap, config.is_some())?);
            }
            config.map_or(Ok(()), |config| set_time(&swap.staged(CONFIG_FILE), config))?;
        }
        Ok(warnings)
    }

    pub(super) fn check_unchanged(&self, places: &Places, saved: &Saved) -> Result<()> {
        let changed = |path: &str| {
            Err(Error::new(Code::StateChanged, format!("{path} changed while the rollback was prepared"))
                .at_path(path)
                .advise("stop what writes to it and try again; nothing was changed")
                .retryable())
        };
        let is_as_saved = |path: &str| {
            let Some(seen) = saved.seen.get(path) else { return true };
            Signature::of(&places.locate(path)).is_ok_and(|now| now.bytes == seen.signature)
        };
        if let Some(path) = self.going.keys().chain(self.attributes.keys()).find(|path| !is_as_saved(path)) {
            return changed(path);
        }
        // A directory goes with all that is in it by now.
        for (path, _) in self.going.iter().filter(|(_, going)| going.saved) {
            let below = walkdir::WalkDir::new(places.locate(path)).follow_root_links(false).min_depth(1);
            for found in below.into_iter().flatten() {
                let name = places.name_of(found.path()).unwrap_or_default();
                let path = owner_of_side_file(&name).filter(|owner| saved.paths.contains(*owner)).unwrap_or(&name);
                if !saved.paths.contains(path) || !is_as_saved(path) {
                    return changed(&name);
                }
            }
        }
        Ok(())
    }
}

/// What of this machine a restored configuration has to fit.
#[derive(Debug, Clone)]
pub(super) struct ThisMachine {
    pub(super) places: Places,
    /// The variables that the configuration is read with.
    pub(super) env: Environment,
    /// Where `openclaw.json` is.
    pub(super) config_path: PathBuf,
    /// Where the state directory was when the snapshot was taken.
    pub(super) former_state_dir: Option<PathBuf>,
}

impl ThisMachine {
    /// What named something in the state directory of the snapshot names it in this one.
    fn adapt_config_file(&self, staged: &Path) -> Result<()> {
        match self.former_state_dir.as_deref().filter(|former| *former != self.places.state_dir()) {
            Some(former) => openclaw_config::move_paths(staged, former, self.places.state_dir()),
            None => Ok(()),
        }
    }

    /// Where a file lies until the swap, staged or not.
    fn staged(&self, swap: &Swap, path: &Path) -> PathBuf {
        let staged = self.places.name_of(path).map(|name| swap.staged(&name)).filter(|staged| staged.is_file());
        staged.unwrap_or_else(|| path.to_owned())
    }

    /// Gives the staged configuration the settings that are this machine's own. Gives a warning for each that it does not get.
    fn keep_settings(&self, swap: &Swap) -> Result<Vec<String>> {
        let staged = |path: &Path| self.staged(swap, path);
        let differing = openclaw_config::keep_own_settings(&self.config_path, &self.env, &staged)?;
        let warning =
            |setting| format!("{setting} is now as in the snapshot: a file that {CONFIG_FILE} includes brings it");
        Ok(differing.into_iter().map(warning).collect())
    }

    /// Has the staged configuration look for agents' files where they are on this machine. Gives a warning for each that it
    /// cannot be made to.
    fn keep_places(&self, swap: &Swap, is_staged: bool) -> Result<Vec<String>> {
        let staged = |path: &Path| self.staged(swap, path);
        // One that makes no sense is restored as it is: that is what the snapshot holds.
        let Ok(Some(config)) = openclaw_config::load_as_if(&self.config_path, &self.env, &staged) else {
            return Ok(Vec::new());
        };
        let settings = self.places.settings_to_change(&config.value, &self.env);
        let set = is_staged && !settings.is_empty() && openclaw_config::set(&swap.staged(CONFIG_FILE), &settings)?;
        let warning = |(setting, path): &(Vec<String>, String)| {
            let outcome = if set { "is now" } else { "should be" };
            format!("{} {outcome} {path}, where this machine keeps those files", setting.join("."))
        };
        Ok(settings.iter().map(warning).collect())
    }
}

fn set_time(staged: &Path, entry: &Entry) -> Result<()> {
    // Its owner may set it however it was opened; Windows wants it open for writing.
    let opened = fs::OpenOptions::new().read(true).write(cfg!(windows)).open(staged);
    opened
        .and_then(|file| file.set_modified(time(entry.mtime)))
        .map_err(|error| Error::io("set the time of", staged, error))
}

/// What is at a name. Behind a link is nothing: it gives way to the snapshot's directory.
fn metadata(places: &Places, name: &str) -> Option<fs::Metadata> {
    let is_dir = |parent: &str| fs::symlink_metadata(places.locate(parent)).is_ok_and(|meta| meta.is_dir());
    places.parents(name).all(is_dir).then(|| fs::symlink_metadata(places.locate(name)).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_missing_for_one_step_only() {
        let file = |path: &str| Entry::new(path, Kind::File, 0o600, 0);
        let going = Going { saved: true, database: false };
        let plan = Plan {
            stage: vec![file("agents/a"), file(CONFIG_FILE), file("workspace/b")],
            going: ["agents/a", CONFIG_FILE, "workspace/b", "workspace/c"].map(|path| (path.into(), going)).into(),
            ..Plan::default()
        };
        let steps = plan.steps();
        let of_config: Vec<usize> = (0..steps.len()).filter(|number| steps[*number].path() == CONFIG_FILE).collect();
        assert_eq!(of_config, [steps.len() - 2, steps.len() - 1]);
        assert!(matches!(steps[of_config[0]], Step::TakeAway { .. }) && matches!(steps[of_config[1]], Step::PutIn(_)));
        assert_eq!(steps.len(), 7);
    }
}
