//! Whether an instance is blank: no agent has made anything in it yet, so that a snapshot may be restored there unasked.
//!
//! A new machine is no empty one. `openclaw onboard` seeds each workspace with files and a Git repository, a login or the first
//! heartbeat makes the agent's database, and all that happens before the owner comes to configure a plugin. What OpenClaw has
//! seeded it has noted, by hash; what a database holds shows in its tables. In doubt there is something.

use std::cell::LazyCell;
use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::database;
use super::places::Places;
use crate::repository::id::hex;
use crate::repository::restore::sha256_of;
use crate::repository::tree::{Entry, Kind};

/// The database that OpenClaw notes in what it has seeded, below the state directory.
const SHARED_DATABASE: &str = "state/openclaw.sqlite";
/// What a new agent is to do first. OpenClaw removes it when that is done.
const FIRST_STEPS: &str = "BOOTSTRAP.md";

/// Whether no agent has anything yet: no conversation or memory in a database, no transcript, no file in a workspace but what
/// OpenClaw has put there. The configuration, the shared database and credentials do not count.
#[must_use]
pub fn is_blank(places: &Places) -> bool {
    let seeds = LazyCell::new(|| database::seeded_files(&places.state_dir().join(SHARED_DATABASE)));
    let is_blank_workspace = |folder: &Path| files_below(folder).all(|file| is_seeded(folder, &file, &seeds));
    let is_without_agents = |folder: &Path| !files_below(folder).any(|file| is_agents(&file));
    let mut elsewhere = places.all().iter().skip(1).filter(|place| !places.config_files.contains(&place.name));
    let blank_elsewhere = elsewhere.all(|place| {
        let is_workspace = places.workspaces.contains(&place.name);
        if is_workspace { is_blank_workspace(&place.path()) } else { is_without_agents(&place.path()) }
    });
    let Ok(entries) = fs::read_dir(places.state_dir()) else { return false };
    blank_elsewhere
        && entries.into_iter().all(|entry| {
            let Ok(entry) = entry else { return false };
            match entry.file_name().to_string_lossy().as_ref() {
                "agents" | "memory" => is_without_agents(&entry.path()),
                name if is_name_of_workspace(name) => is_blank_workspace(&entry.path()),
                _ => true,
            }
        })
}

/// Whether a snapshot has something of an agent in it, by the names of its files: what is in them its manifest has to say.
#[must_use]
pub fn has_files_of_agents(entries: &[Entry]) -> bool {
    let is_file = |entry: &&Entry| entry.has_content() || entry.kind == Kind::Symlink;
    entries.iter().filter(is_file).any(|entry| {
        let name = entry.path.rsplit('/').next().unwrap_or_default();
        match entry.path.split_once('/') {
            Some(("agents" | "memory", _)) => entry.kind == Kind::Database || is_name_of_transcript(name),
            Some((folder, _)) => is_name_of_workspace(folder),
            None => false,
        }
    })
}

/// Whether a name in a file tree is that of the steps of a new agent. They are not for one that is restored.
#[must_use]
pub fn is_first_steps(path: &str) -> bool {
    path.split_once('/').is_some_and(|(folder, name)| is_name_of_workspace(folder) && name == FIRST_STEPS)
}

fn files_below(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let walk = walkdir::WalkDir::new(folder).follow_links(false).into_iter().flatten();
    walk.filter(|entry| !entry.file_type().is_dir()).map(walkdir::DirEntry::into_path)
}

/// Whether a file among an agent's own is a transcript, or a database with anything in it.
fn is_agents(file: &Path) -> bool {
    let is_empty_database = || database::is_openclaws(file) && !database::holds_agent_content(file);
    is_name_of_transcript(&file.file_name().unwrap_or_default().to_string_lossy())
        || (file.is_file() && database::has_magic(file) && !is_empty_database())
}

/// Whether a file in a workspace is as OpenClaw has put it there.
fn is_seeded(workspace: &Path, file: &Path, seeds: &HashSet<(String, String)>) -> bool {
    let Some(name) = file.strip_prefix(workspace).ok().and_then(Path::to_str) else { return false };
    if let Some(of_git) = name.strip_prefix(".git/") {
        // A repository in which nobody has stored anything.
        return !of_git.starts_with("objects/");
    }
    let is_regular = || fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file());
    let is_unchanged = || {
        let hash = File::open(file).and_then(sha256_of);
        hash.is_ok_and(|hash| seeds.contains(&(name.to_owned(), hex(&hash))))
    };
    name == FIRST_STEPS || (seeds.iter().any(|(seeded, _)| seeded == name) && is_regular() && is_unchanged())
}

fn is_name_of_transcript(name: &str) -> bool {
    name == "sessions.json" || name.contains(".jsonl")
}

fn is_name_of_workspace(name: &str) -> bool {
    name == "workspace" || name.starts_with("workspace-")
}
