//! What belongs into a snapshot, as data.
//!
//! Everything below the state directory does, except what these tables name. Paths are relative to the state directory,
//! with `/` between segments. `*` stays within a segment, `**` does not.

use std::path::Path;

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use super::openclaw_config::read_bounded;
use super::places::Places;
use crate::commands::Exception;
use crate::config::Target;
use crate::error::{Error, Result};

/// Credentials of this machine, and this product's own folder with the machine's id and what a rollback is made with.
/// No configuration brings them into a snapshot, no rollback touches them. Files that the configuration says are read for
/// credentials are added to these.
const SECRETS: &[&str] = &[
    "b2-backup",
    "**/.b2-backup-rollback",
    "**/.b2-backup-set-aside",
    "credentials",
    "identity",
    "devices",
    "**/auth-profiles.json",
    "**/.env",
    "**/*.key",
    "**/codex-home/auth.json",
    "**/codex-home/.credentials.json",
    "agents/*/agent/auth.json",
    "agents/*/agent/auth-state.json",
    "agents/*/agent-dir/auth.json",
    "agents/*/agent-dir/auth-state.json",
    "exec-approvals.json",
    "gateway/tls",
    "secrets.json",
];

/// What OpenClaw makes again by itself, has no meaning elsewhere, or would be done twice if it came back. The browser's
/// profiles are caches for the most part, and logins.
const EPHEMERAL: &[&str] = &[
    // 0.1.x of this product kept these for itself.
    ".b2-backup-manifest.json",
    ".b2-backup-push.lock",
    "agents/*/agent/**/.tmp",
    "agents/*/agent/**/tmp",
    "browser",
    "cache",
    "delivery-queue",
    "dev",
    "extensions",
    "git",
    "logs",
    "media",
    "npm",
    "npm-runtime",
    "plugin-skills",
    "sandbox/skills-workspaces",
    "session-delivery-queue",
    "state/openclaw-quarantine.sqlite",
    "tmp",
    "tools",
    "**/*.update-captures",
];

/// What exists only while something runs; the databases among it are locks. The journals of databases do too, but only by their names they cannot be told
/// from others.
const TRANSIENT: &[&str] = &[
    "**/*.lock",
    "**/*.tmp",
    "**/*.sock",
    "**/*.pid",
    "**/*-lock.sqlite",
    "**/*.generation-writer.sqlite",
    "**/*.sqlite.{backup,memory-reindex,tmp}-*",
];

/// Files that end in `.lock` but are written by people's tools and belong to a project.
const LOCK_FILES_OF_PROJECTS: &[&str] = &[
    "**/Cargo.lock",
    "**/Gemfile.lock",
    "**/Pipfile.lock",
    "**/Podfile.lock",
    "**/bun.lock",
    "**/composer.lock",
    "**/deno.lock",
    "**/flake.lock",
    "**/mix.lock",
    "**/pdm.lock",
    "**/poetry.lock",
    "**/pubspec.lock",
    "**/uv.lock",
    "**/yarn.lock",
];

/// Directories that a tool fills again from what is in the snapshot.
const REBUILDABLE: &[&str] = &["**/node_modules", "**/__pycache__", "**/.venv"];

/// Files that hold credentials among other things; they stay out of a repository that is not encrypted. So does what the
/// configuration includes.
const CONFIG_WITH_SECRETS: &[&str] = &["openclaw.json", "openclaw.json.*"];

/// A file at the top of a workspace whose lines say, as those of a `.gitignore` do, what of the workspace is left out.
pub const IGNORE_FILE: &str = ".b2-backup-ignore";
/// The largest such file, in bytes.
const MAX_IGNORE_FILE: u64 = 1 << 20;

/// Why a path is not in a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Keep,
    /// It holds credentials of this machine, or is this product's own.
    Secret,
    /// OpenClaw makes it again, or it exists only while something runs.
    Ephemeral,
    /// A tool makes it again from what is in the snapshot.
    Rebuildable,
    /// The owner's `exclude` names it.
    Excluded,
    /// It may hold credentials, and the repository is not encrypted.
    NeedsEncryption,
}

/// The tables above, compiled, together with the owner's own globs.
#[derive(Debug)]
pub struct Rules {
    secrets: GlobSet,
    ephemeral: GlobSet,
    project_locks: GlobSet,
    rebuildable: GlobSet,
    needs_encryption: GlobSet,
    exclude: GlobSet,
    include: GlobSet,
    /// The literal beginnings of the include globs: a directory that is left out is still entered on the way to them.
    include_starts: Vec<String>,
    /// The ignore files, each with the name of its workspace and a slash.
    ignored: Vec<(String, Gitignore)>,
}

impl Rules {
    /// The rules for one instance, with its configuration's `include` and `exclude` and the ignore files in its workspaces.
    /// Exceptions are lines of those that make no sense.
    ///
    /// # Errors
    /// `CONFIG` naming the field when a glob is malformed.
    pub fn of(target: &Target, places: &Places) -> Result<(Self, Vec<Exception>)> {
        let Places { secret_files, config_files, .. } = places;
        let mut rules = Self::build(&target.include, &target.exclude, target.encrypt, secret_files, config_files)?;
        let mut exceptions = Vec::new();
        for name in &places.workspaces {
            let file = format!("{name}/{IGNORE_FILE}");
            let path = places.locate(&file);
            // Like every other file of a workspace it may be an agent's: what it leads to is not read.
            if !path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
                continue;
            }
            match read_ignore_file(&path) {
                Ok(ignored) => rules.ignored.push((format!("{name}/"), ignored)),
                Err(reason) => exceptions.push(Exception { path: file, reason }),
            }
        }
        Ok((rules, exceptions))
    }

    /// The product's rules, extended by the configuration's `include` and `exclude`.
    ///
    /// # Errors
    /// `CONFIG` naming the field when a glob is malformed.
    pub fn new(include: &[String], exclude: &[String], encrypted: bool) -> Result<Self> {
        Self::build(include, exclude, encrypted, &[], &[])
    }

    fn build(
        include: &[String],
        exclude: &[String],
        encrypted: bool,
        secret_files: &[String],
        config_files: &[String],
    ) -> Result<Self> {
        // A table names directories as well as files: what is below one goes with it.
        let table_with = |globs: &[&[&str]], names: &[String]| {
            let globs = globs.iter().copied().flatten().flat_map(|glob| [(*glob).to_owned(), format!("{glob}/**")]);
            glob_set("rules", globs.chain(names.iter().map(|name| globset::escape(name))))
        };
        let table = |globs: &[&[&str]]| table_with(globs, &[]);
        Ok(Self {
            secrets: table_with(&[SECRETS], secret_files)?,
            ephemeral: table(&[EPHEMERAL, TRANSIENT])?,
            project_locks: table(&[LOCK_FILES_OF_PROJECTS])?,
            rebuildable: table(&[REBUILDABLE])?,
            needs_encryption: if encrypted {
                GlobSet::empty()
            } else {
                table_with(&[CONFIG_WITH_SECRETS], config_files)?
            },
            exclude: glob_set("exclude", exclude)?,
            include: glob_set("include", include)?,
            include_starts: include
                .iter()
                .map(|glob| {
                    glob.split(['*', '?', '[', '{']).next().unwrap_or_default().trim_end_matches('/').to_owned()
                })
                .collect(),
            ignored: Vec::new(),
        })
    }

    /// Whether `path` belongs into a snapshot, given that its parent directory does or is entered on the way to an
    /// included path.
    #[must_use]
    pub fn verdict(&self, path: &str) -> Verdict {
        if self.secrets.is_match(path) {
            return Verdict::Secret;
        }
        if self.needs_encryption.is_match(path) {
            return Verdict::NeedsEncryption;
        }
        if self.exclude.is_match(path) || self.is_ignored(path) {
            return Verdict::Excluded;
        }
        if self.include.is_match(path) {
            return Verdict::Keep;
        }
        if self.ephemeral.is_match(path) && !self.project_locks.is_match(path) {
            return Verdict::Ephemeral;
        }
        if self.rebuildable.is_match(path) {
            return Verdict::Rebuildable;
        }
        Verdict::Keep
    }

    fn is_ignored(&self, path: &str) -> bool {
        self.ignored.iter().any(|(workspace, ignored)| {
            // Whether it is a directory does not show in a path: what is meant for directories alone counts for all.
            path.strip_prefix(workspace).is_some_and(|path| ignored.matched_path_or_any_parents(path, true).is_ignore())
        })
    }

    /// Whether a scan would come to `path` and keep it.
    #[must_use]
    pub fn reaches(&self, path: &str) -> bool {
        let is_entered = |parent: &str| match self.verdict(parent) {
            Verdict::Keep => true,
            Verdict::Ephemeral => self.may_include_below(parent),
            _ => false,
        };
        self.verdict(path) == Verdict::Keep && path.match_indices('/').all(|(at, _)| is_entered(&path[..at]))
    }

    /// Whether something below the left-out directory `path` may be included all the same.
    #[must_use]
    pub fn may_include_below(&self, path: &str) -> bool {
        self.include_starts.iter().any(|start| {
            start.is_empty()
                || start.starts_with(&format!("{path}/"))
                || path == start
                || path.starts_with(&format!("{start}/"))
        })
    }
}

fn read_ignore_file(path: &Path) -> std::result::Result<Gitignore, String> {
    let text = read_bounded(path, MAX_IGNORE_FILE).map_err(|error| error.to_string())?.unwrap_or_default();
    let mut builder = GitignoreBuilder::new("");
    for line in text.lines() {
        builder.add_line(None, line).map_err(|error| format!("its line {line:?} is not understood: {error}"))?;
    }
    builder.build().map_err(|error| error.to_string())
}

/// Compiles globs as this product understands them; errors name `field`.
///
/// # Errors
/// `CONFIG` when a glob is malformed.
pub fn glob_set<G: AsRef<str>>(field: &str, globs: impl IntoIterator<Item = G>) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let glob = glob.as_ref();
        let glob = GlobBuilder::new(glob)
            .literal_separator(true)
            .backslash_escape(true)
            .build()
            .map_err(|error| Error::config(field, format!("{glob:?} is not a glob: {}", error.kind())))?;
        set.add(glob);
    }
    set.build().map_err(|error| Error::config(field, error))
}

/// Chooses paths by the globs of `--path`: a path matches when it or a directory above it does. None means all.
#[derive(Debug)]
pub struct PathFilter(Option<GlobSet>);

impl PathFilter {
    /// Compiles the globs.
    ///
    /// # Errors
    /// `CONFIG` when a glob is malformed.
    pub fn new(globs: &[String]) -> Result<Self> {
        if globs.is_empty() { Ok(Self(None)) } else { glob_set("path", globs).map(|set| Self(Some(set))) }
    }

    /// Whether the filter lets everything through.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.is_none()
    }

    /// Whether `path` is chosen.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        let Some(set) = &self.0 else { return true };
        let parents = path.match_indices('/').map(|(end, _)| &path[..end]);
        set.is_match(path) || parents.into_iter().any(|parent| set.is_match(parent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::new(&[], &[], true).unwrap()
    }

    #[test]
    fn docs_contents_md_names_every_pattern() {
        let page = include_str!("../../docs/contents.md");
        let tables = [SECRETS, EPHEMERAL, TRANSIENT, LOCK_FILES_OF_PROJECTS, REBUILDABLE];
        for pattern in tables.into_iter().flatten() {
            let named = pattern.trim_start_matches("**/");
            let named = if named.starts_with("agents/*/") { named.rsplit('/').next().unwrap() } else { named };
            let is_there = page.contains(&format!("`{named}`")) || page.contains(&format!("`{named}/`"));
            assert!(is_there, "{pattern}");
        }
    }

    #[test]
    fn what_makes_an_instance_its_owners_is_kept() {
        for path in [
            "openclaw.json",
            "openclaw.json.bak",
            "openclaw.json.last-good",
            "state/openclaw.sqlite",
            "agents/main/agent/openclaw-agent.sqlite",
            "agents/main/sessions/cold/ab.jsonl.zst",
            "agents/main/sessions/x.jsonl",
            "agents/main/memory/main.sqlite",
            "agents/main/agent/models.json",
            "memory/main.sqlite",
            "workspace/SOUL.md",
            "workspace/skills/a/SKILL.md",
            "workspace/cache/mine.txt",
            "workspace/tools/mine.txt",
            "workspace/project/Cargo.lock",
            "workspace-work/AGENTS.md",
            "cron/jobs.json",
            "hooks/a/handler.ts",
            "skills/x/SKILL.md",
        ] {
            assert_eq!(rules().verdict(path), Verdict::Keep, "{path}");
        }
    }

    #[test]
    fn credentials_stay_home_whatever_the_owner_includes() {
        let rules = Rules::new(&["**".into()], &[], true).unwrap();
        for path in [
            "b2-backup",
            "b2-backup/machine-id",
            "credentials",
            "identity",
            "devices",
            ".env",
            "workspace/.env",
            "config-journal-fingerprint.key",
            "agents/main/agent/auth-profiles.json",
            "agents/main/agent/codex-home/auth.json",
        ] {
            assert_eq!(rules.verdict(path), Verdict::Secret, "{path}");
        }
    }

    #[test]
    fn what_is_rebuilt_or_transient_is_left_out_unless_included() {
        for path in [
            "cache",
            "tmp",
            "npm",
            "extensions",
            "a/b.lock",
            "x/y.tmp",
            "delivery-queue/1.json",
            "browser/openclaw/user-data",
            "agents/main/agent/codex-home/tmp",
            "agents/main/agent/tmp/x",
            "memory/main.sqlite.tmp-0a1b",
        ] {
            assert_eq!(rules().verdict(path), Verdict::Ephemeral, "{path}");
        }
        assert_eq!(rules().verdict("workspace/app/node_modules"), Verdict::Rebuildable);
        let rules = Rules::new(&["media/inbound/**".into()], &["workspace/huge".into()], true).unwrap();
        assert_eq!(rules.verdict("media"), Verdict::Ephemeral);
        assert!(rules.may_include_below("media") && !rules.may_include_below("tmp"));
        assert_eq!(rules.verdict("media/inbound/photo.png"), Verdict::Keep);
        assert_eq!(rules.verdict("workspace/huge"), Verdict::Excluded);
    }

    #[test]
    fn configuration_with_credentials_stays_out_of_a_plain_repository() {
        let rules = Rules::new(&["**".into()], &[], false).unwrap();
        assert_eq!(rules.verdict("openclaw.json"), Verdict::NeedsEncryption);
        assert_eq!(rules.verdict("openclaw.json.bak.1"), Verdict::NeedsEncryption);
        assert_eq!(rules.verdict("workspace/openclaw.json.md"), Verdict::Keep);
    }

    #[test]
    fn a_path_filter_takes_a_directory_with_all_below_it() {
        let filter = PathFilter::new(&["workspace".into(), "agents/*/sessions/*.jsonl".into()]).unwrap();
        assert!(filter.matches("workspace") && filter.matches("workspace/memory/day.md"));
        assert!(filter.matches("agents/main/sessions/a.jsonl"));
        assert!(!filter.matches("agents/main") && !filter.matches("workspace-work/a"));
        assert_eq!(PathFilter::new(&["a[".into()]).unwrap_err().code(), crate::Code::Config);
    }
}
