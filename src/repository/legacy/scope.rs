//! What 0.1.x kept of a state directory. Whatever it did not is no part of its snapshots, and a rollback to one leaves it
//! alone: that it is absent there does not mean that it was not there.

use std::collections::{HashMap, HashSet};

use crate::error::Result;
use crate::repository::restore::parents;
use crate::repository::tree::{Entry, Kind};
use crate::state::database;
use crate::state::rules::glob_set;

/// What it kept: regular files alone, no links, no empty directories.
const KEPT: &[&str] = &[
    "openclaw.json",
    "openclaw.json.bak*",
    "agents/*/sessions/*.jsonl",
    "agents/*/sessions/sessions.json",
    "agents/*/memory/*.sqlite",
    "agents/*/agent/**",
    "workspace/**",
    "workspace-*/**",
    "cron/**",
    "hooks/**",
];

/// Except these.
const NOT_KEPT: &[&str] =
    &["agents/*/agent/auth-profiles.json", "**/*.lock", "**/*.tmp", "**/*-wal", "**/*-shm", "**/.DS_Store"];

/// The tree of a snapshot of 0.1.x as it would be, had it been taken of the state `live` by this version: it has the modes
/// of today, which it does not know better, and as exceptions all of today that it could not have held.
///
/// # Errors
/// None in practice: the globs are constants.
pub fn complete(entries: &[Entry], live: &[Entry]) -> Result<Vec<Entry>> {
    let (kept, not_kept) = (glob_set("rules", KEPT)?, glob_set("rules", NOT_KEPT)?);
    let by_path: HashMap<&str, &Entry> = live.iter().map(|entry| (entry.path.as_str(), entry)).collect();
    let mut tree: Vec<Entry> = entries.to_vec();
    for entry in &mut tree {
        let Some(known) = by_path.get(entry.path.as_str()) else { continue };
        match (entry.kind, known.kind) {
            (Kind::Directory, Kind::Directory) => (entry.mode, entry.mtime) = (known.mode, known.mtime),
            (Kind::File | Kind::Database, Kind::File | Kind::Database) => {
                entry.mode = known.mode;
                if entry.sha256 == known.sha256 {
                    entry.mtime = known.mtime;
                }
            }
            _ => {}
        }
    }
    let paths: HashSet<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    let entered: HashSet<&str> = live.iter().flat_map(|entry| parents(&entry.path)).collect();
    let could_hold = |entry: &Entry| match entry.kind {
        Kind::File | Kind::Database => {
            // Databases of OpenClaw hold this machine's credentials, which would go with them.
            kept.is_match(&entry.path)
                && !not_kept.is_match(&entry.path)
                && !entry.path.contains(|c: char| c < ' ')
                && !database::is_openclaws(entry.path.as_ref())
        }
        // One that is empty by now goes with what was in it.
        Kind::Directory => entered.contains(entry.path.as_str()),
        Kind::Symlink | Kind::Exception => false,
    };
    let others = live.iter().filter(|entry| !paths.contains(entry.path.as_str()) && !could_hold(entry));
    let reason = "0.1.x did not keep it";
    tree.extend(others.map(|entry| Entry::new(entry.path.as_str(), Kind::Exception, 0, 0).with_target(reason)));
    tree.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::tree::Content;

    fn file(path: &str, mode: u32, mtime: i64, content: u8) -> Entry {
        let content = Content { size: 1, sha256: [content; 32], chunks: Vec::new() };
        Entry::new(path, Kind::File, mode, mtime).with_content(&content)
    }

    #[test]
    fn what_it_says_nothing_of_is_as_today() {
        let old = [
            Entry::new("workspace", Kind::Directory, 0o700, 1),
            file("workspace/changed", 0o600, 1, 1),
            file("workspace/gone", 0o600, 1, 1),
            file("workspace/same", 0o600, 1, 1),
        ];
        let live = [
            Entry::new("workspace", Kind::Directory, 0o755, 9),
            file("workspace/changed", 0o755, 9, 2),
            file("workspace/same", 0o644, 9, 1),
        ];
        let expected = [live[0].clone(), file("workspace/changed", 0o755, 1, 1), old[2].clone(), live[2].clone()];
        assert_eq!(complete(&old, &live).unwrap(), expected);
    }

    #[test]
    fn what_it_could_not_have_held_is_an_exception() {
        let live = [
            file("agents/main/agent/openclaw-agent.sqlite", 0o600, 9, 1),
            file("agents/main/agent/new.json", 0o600, 9, 1),
            file("openclaw.json.last-good", 0o600, 9, 1),
            file("state/openclaw.sqlite", 0o600, 9, 1),
            Entry::new("workspace", Kind::Directory, 0o755, 9),
            file("workspace/Cargo.lock", 0o600, 9, 1),
            Entry::new("workspace/empty", Kind::Directory, 0o755, 9),
            Entry::new("workspace/link", Kind::Symlink, 0o777, 9).with_target("new.md"),
            file("workspace/line\nbreak", 0o600, 9, 1),
            file("workspace/new.md", 0o600, 9, 1),
        ];
        let exceptions: Vec<_> = complete(&[], &live).unwrap().into_iter().map(|entry| entry.path).collect();
        let expected = [
            "agents/main/agent/openclaw-agent.sqlite",
            "openclaw.json.last-good",
            "state/openclaw.sqlite",
            "workspace/Cargo.lock",
            "workspace/empty",
            "workspace/line\nbreak",
            "workspace/link",
        ];
        assert_eq!(exceptions, expected);
    }
}
