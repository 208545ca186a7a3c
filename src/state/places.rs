//! Where the parts of an instance lie: in the state directory, and where its configuration puts them.
//!
//! A snapshot knows names, not paths. What lies in the state directory is named by its path there. An agent's workspace is
//! called `workspace` or `workspace-<agent>` wherever it lies, as it is by default in the state directory, so that a snapshot
//! of one machine fits another one that keeps it elsewhere. Where things are is said by `OpenClaw`'s pages "Multi-agent
//! routing" and "Agent workspace".

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::openclaw_config::{self, CONFIG_FILE, Environment, home_dir, user_path};
use crate::commands::Exception;
use crate::config::Target;
use crate::repository::restore::parents;
use crate::repository::tree::{Entry, Kind};

/// What is added to the name of a place for what lies under that name in the state directory all the same.
const LEFT_BEHIND: &str = ".left-in-state-directory";
/// Where `extraPaths` and configuration files from outside go, by their path below the home directory or the root.
const EXTRA: &str = "outside-state-directory";
/// Directories of OpenClaw in the state directory that may be links, to another disk for instance; so may one in the first of
/// them be, for a single agent.
const MAY_BE_LINKED: &[&str] = &[AGENTS, "cron", "hooks", "memory", "skills", "state"];
const AGENTS: &str = "agents";
/// The agent that there is without any configured.
const IMPLICIT_AGENT: &str = "main";

/// One directory with all below it, or one file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Place {
    /// How the names of what is in it begin; empty for the state directory.
    pub name: String,
    /// The directory, absolute; for a file the one it is in.
    pub directory: PathBuf,
    /// The name of the file, if it is one.
    pub file: Option<String>,
}

impl Place {
    fn directory(name: impl Into<String>, directory: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), directory: directory.into(), file: None }
    }

    fn file(name: impl Into<String>, path: &Path) -> Self {
        match (path.parent(), path.file_name().and_then(|name| name.to_str())) {
            (Some(parent), Some(file)) => Self { name: name.into(), directory: parent.into(), file: Some(file.into()) },
            _ => Self::directory(name, path),
        }
    }

    /// Its own path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.file.as_ref().map_or_else(|| self.directory.clone(), |file| self.directory.join(file))
    }

    /// The path below [`Place::directory`] of what is called `name`, empty for that directory; `None` if it is elsewhere.
    #[must_use]
    pub fn below<'n>(&'n self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_prefix(self.name.as_str())?;
        match &self.file {
            Some(file) => rest.is_empty().then_some(file),
            None if rest.is_empty() || self.name.is_empty() => Some(rest),
            None => rest.strip_prefix('/'),
        }
    }
}

/// All places of an instance on this machine.
#[derive(Debug, Clone)]
pub struct Places {
    /// The state directory, then all others.
    all: Vec<Place>,
    /// The names of the files that the configuration consists of.
    pub config_files: Vec<String>,
    /// The names of files that the configuration reads credentials from.
    pub secret_files: Vec<String>,
    /// Agents' workspaces, by name.
    pub workspaces: Vec<String>,
    /// What could not be found.
    pub exceptions: Vec<Exception>,
    /// Why the configuration could not be read, so that there may be other places.
    pub problem: Option<String>,
}

impl Places {
    /// The state directory alone.
    #[must_use]
    pub fn within(state_dir: &Path) -> Self {
        Self {
            all: vec![Place::directory("", state_dir)],
            config_files: vec![CONFIG_FILE.into()],
            secret_files: Vec::new(),
            workspaces: Vec::new(),
            exceptions: Vec::new(),
            problem: None,
        }
    }

    /// Those that the configuration names at this moment. Instead of one that cannot be read, the last good one counts, as
    /// it does for `OpenClaw`.
    #[must_use]
    pub fn find(target: &Target) -> Self {
        let mut places = Self::within(&target.state_dir);
        let env = target.environment();
        let path = target.config_path();
        let config = places.load(&path, &env);
        let state = places.all[0].directory.clone();
        places.add(CONFIG_FILE, &path);
        let folder = path.parent().unwrap_or(&path);
        for file in &config.files {
            let below = |folder: &Path| file.strip_prefix(folder).ok().and_then(Path::to_str).map(str::to_owned);
            let name = below(&state).or_else(|| below(folder)).unwrap_or_else(|| outside_name(file, &env));
            places.add(&name, file);
            places.config_files.push(name);
        }
        for name in linked_directories(&state) {
            let leads_to = places.as_walked(&state.join(&name));
            // What lies in the state directory is saved where it lies.
            if !leads_to.starts_with(&state) && !state.starts_with(&leads_to) {
                places.add(&name, &leads_to);
            }
        }
        for agent in agents(&config.value, &state, &env) {
            match agent {
                Ok(agent) => {
                    places.add(&agent.workspace_name, &agent.workspace);
                    places.workspaces.push(agent.workspace_name);
                    if let Some(folder) = &agent.own_folder {
                        places.add(&own_folder_name(&agent.id), folder);
                    }
                }
                Err(exception) => places.exceptions.push(exception),
            }
        }
        for path in &target.extra_paths {
            let name = outside_name(path, &env);
            // There what is left out goes by the names that things have there.
            if places.as_walked(path).starts_with(&state) {
                let reason = "extraPaths names it, and it is in the state directory: use include".into();
                places.exceptions.push(Exception { path: name, reason });
                continue;
            }
            places.add(&name, path);
            if !path.exists() {
                let reason = format!("extraPaths names it, and {} does not exist", path.display());
                places.exceptions.push(Exception { path: name, reason });
            }
        }
        places.name_what_was_left_behind();
        let mut files = Vec::new();
        find_secret_files(&config.value, &mut files);
        let files = files.into_iter().filter_map(|file| user_path(file, &env).ok());
        places.secret_files = files.filter_map(|file| places.name_of(&places.as_walked(&file))).collect();
        places
    }

    fn load(&mut self, path: &Path, env: &Environment) -> openclaw_config::Loaded {
        for suffix in ["", ".last-good", ".bak"] {
            let mut name = path.as_os_str().to_owned();
            name.push(suffix);
            match openclaw_config::load_with_files(Path::new(&name), env) {
                Ok(Some(loaded)) => {
                    self.problem = None;
                    return loaded;
                }
                Ok(None) => {}
                Err(error) => self.problem = self.problem.take().or(Some(error.to_string())),
            }
        }
        if let Some(problem) = &self.problem {
            let reason = format!("where workspaces lie is not known: {problem}");
            self.exceptions.push(Exception { path: CONFIG_FILE.into(), reason });
        }
        openclaw_config::Loaded::default()
    }

    /// Adds a place, unless it is where its name says in the state directory, or another name has it already. A link that
    /// leads to it is followed: it is the configuration that names it, not a snapshot.
    fn add(&mut self, name: &str, path: &Path) {
        let path = self.as_walked(path);
        let state = &self.all[0].directory;
        if path == *state || path == state.join(name) || self.all.iter().any(|place| place.path() == path) {
            return;
        }
        let is_file = if path.exists() { path.is_file() } else { self.config_files.iter().any(|file| file == name) };
        self.all.push(if is_file { Place::file(name, &path) } else { Place::directory(name, path) });
    }

    /// The path without links, but through the state directory as that is configured.
    fn as_walked(&self, path: &Path) -> PathBuf {
        let state = self.state_dir();
        let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let real_state = state.canonicalize().unwrap_or_else(|_| state.to_owned());
        real.strip_prefix(&real_state).map_or_else(|_| real.clone(), |inside| state.join(inside))
    }

    /// Has places where nothing is at the moment be for what is `wanted` there: only that says whether it is a file.
    pub(crate) fn make_room_for(&mut self, wanted: &[Entry]) {
        for place in &mut self.all[1..] {
            let path = place.path();
            let entry = wanted.iter().find(|entry| entry.path == place.name).filter(|_| !path.exists());
            if let Some(entry) = entry {
                let is_directory = entry.kind == Kind::Directory;
                *place =
                    if is_directory { Place::directory(&place.name, path) } else { Place::file(&place.name, &path) };
            }
        }
    }

    /// What still lies in the state directory under a name that now means another place is kept under a name of its own.
    fn name_what_was_left_behind(&mut self) {
        let names: Vec<String> = self.all[1..].iter().map(|place| place.name.clone()).collect();
        for name in names {
            let path = self.all[0].directory.join(&name);
            let holds_something = match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => path.read_dir().is_ok_and(|mut entries| entries.next().is_some()),
                Ok(meta) => meta.is_file(),
                Err(_) => false,
            };
            if holds_something {
                let path = path.canonicalize().unwrap_or(path);
                self.add(&format!("{name}{LEFT_BEHIND}"), &path);
            }
        }
    }

    /// The state directory.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.all[0].directory
    }

    /// All of them, the state directory first.
    #[must_use]
    pub fn all(&self) -> &[Place] {
        &self.all
    }

    /// The place that holds `name`, and the path below its directory.
    #[must_use]
    pub fn find_place<'n>(&'n self, name: &'n str) -> (&'n Place, &'n str) {
        let holding = self.all.iter().filter_map(|place| Some((place, place.below(name)?)));
        holding.max_by_key(|(place, _)| place.name.len()).unwrap_or((&self.all[0], name))
    }

    /// Where what is called `name` lies on this machine.
    #[must_use]
    pub fn locate(&self, name: &str) -> PathBuf {
        match self.find_place(name) {
            (place, "") => place.directory.clone(),
            (place, below) => place.directory.join(below),
        }
    }

    /// What a snapshot calls `path`; `None` for what is in no place or has a name that is no text.
    #[must_use]
    pub fn name_of(&self, path: &Path) -> Option<String> {
        let named = self.all.iter().filter_map(|place| Some((place, path.strip_prefix(place.path()).ok()?)));
        let (place, below) = named.max_by_key(|(place, _)| place.path().as_os_str().len())?;
        let below = below.to_str()?.replace(std::path::MAIN_SEPARATOR, "/");
        Some(join(&place.name, &below))
    }

    /// Whether there is a place on this machine that `name` belongs to.
    #[must_use]
    pub fn has_place_for(&self, name: &str) -> bool {
        !self.find_place(name).0.name.is_empty() || name.split('/').next() != Some(EXTRA)
    }

    /// If `name` is that of a whole place: whether that is a directory.
    #[must_use]
    pub fn is_directory(&self, name: &str) -> Option<bool> {
        self.all[1..].iter().find(|place| place.name == name).map(|place| place.file.is_none())
    }

    /// Whether `name` is that of a whole place.
    #[must_use]
    pub fn is_place(&self, name: &str) -> bool {
        self.all[1..].iter().any(|place| place.name == name)
    }

    /// The names of the directories above `name` that lie in the same place, from the inside out.
    pub fn parents<'n>(&'n self, name: &'n str) -> impl Iterator<Item = &'n str> {
        let (place, _) = self.find_place(name);
        parents(name).filter(|parent| place.file.is_none() && place.below(parent).is_some())
    }

    /// What in the staged configuration would look for agents' files elsewhere than they lie on this machine: the settings
    /// to change, each with its new value. `config` is read as if it were in place.
    #[must_use]
    pub fn settings_to_change(&self, config: &Value, env: &Environment) -> Vec<(Vec<String>, String)> {
        let is_there = |path: &Path, wanted: &Path| {
            path == wanted || path.canonicalize().is_ok_and(|path| wanted.canonicalize().is_ok_and(|to| to == path))
        };
        let mut settings = Vec::new();
        // Agents that share a workspace go on sharing it.
        let mut names: BTreeMap<PathBuf, String> = BTreeMap::new();
        for agent in agents(config, self.state_dir(), env).into_iter().flatten() {
            let name = names.entry(agent.workspace.clone()).or_insert_with(|| agent.workspace_name.clone());
            let wanted = self.locate(name);
            if !is_there(&agent.workspace, &wanted) {
                settings.push((agent.setting("workspace"), wanted.display().to_string()));
            }
            let wanted = self.locate(&own_folder_name(&agent.id));
            if agent.own_folder.as_ref().is_some_and(|folder| !is_there(folder, &wanted)) {
                settings.push((agent.setting("agentDir"), wanted.display().to_string()));
            }
        }
        settings
    }
}

/// The names of OpenClaw's directories that are links to directories. (It follows them; of any other link a snapshot has the
/// link alone.)
fn linked_directories(state: &Path) -> Vec<String> {
    let agents = state.join(AGENTS).read_dir().into_iter().flatten().flatten();
    let agents = agents.filter_map(|agent| Some(format!("{AGENTS}/{}", agent.file_name().to_str()?)));
    let is_linked = |name: &String| {
        let path = state.join(name);
        path.is_symlink() && path.is_dir()
    };
    MAY_BE_LINKED.iter().map(ToString::to_string).chain(agents).filter(is_linked).collect()
}

/// `name` as part of `parent`.
#[must_use]
pub fn join(parent: &str, name: &str) -> String {
    match (parent, name) {
        ("", name) => name.to_owned(),
        (parent, "") => parent.to_owned(),
        (parent, name) => format!("{parent}/{name}"),
    }
}

/// Where one agent keeps its files.
struct Agent {
    id: String,
    /// Where the configuration has its entry; `None` for one that it does not name.
    entry: Option<Vec<String>>,
    workspace: PathBuf,
    workspace_name: String,
    /// Its `agentDir`, if that is not the default. The default one is used beside it.
    own_folder: Option<PathBuf>,
}

impl Agent {
    fn setting(&self, name: &str) -> Vec<String> {
        let mut path =
            self.entry.clone().unwrap_or_else(|| ["agents", "defaults"].into_iter().map(str::to_owned).collect());
        path.push(name.into());
        path
    }
}

fn own_folder_name(id: &str) -> String {
    format!("agents/{id}/agent-dir")
}

/// An agent as the configuration has it.
struct Configured<'c> {
    id: String,
    /// Where the entry is; `None` for the agent that there is without any.
    setting: Option<Vec<String>>,
    fields: &'c Map<String, Value>,
}

impl<'c> Configured<'c> {
    fn new(id: &str, setting: [&str; 3], value: &'c Value) -> Option<Self> {
        let setting = Some(setting.map(str::to_owned).to_vec());
        Some(Self { id: agent_id(id), setting, fields: value.as_object()? })
    }
}

/// Everything that is configured of agents, and which of them has the default workspace: the only one, or the only one that is
/// marked where none owns its workspace explicitly.
fn roster<'c>(config: &'c Value, none: &'c Map<String, Value>) -> (Vec<Configured<'c>>, Option<String>) {
    let section = config.get("agents");
    let entries: Vec<Configured<'_>> =
        if let Some(Value::Object(entries)) = section.and_then(|agents| agents.get("entries")) {
            entries.iter().filter_map(|(key, entry)| Configured::new(key, ["agents", "entries", key], entry)).collect()
        } else if let Some(Value::Array(list)) = section.and_then(|agents| agents.get("list")) {
            let id = |entry: &'c Value| entry.get("id").and_then(Value::as_str).unwrap_or_default();
            let entry = |(number, entry): (usize, &'c Value)| {
                Configured::new(id(entry), ["agents", "list", &number.to_string()], entry)
            };
            list.iter().enumerate().filter_map(entry).collect()
        } else {
            vec![Configured { id: IMPLICIT_AGENT.into(), setting: None, fields: none }]
        };
    let is_explicit = section.and_then(|agents| agents.get("ownership")) == Some(&Value::from("explicit"));
    let mut marked = entries.iter().filter(|entry| entry.fields.get("default") == Some(&Value::Bool(true)));
    let default = match (&entries[..], marked.next(), marked.next()) {
        ([only], ..) => Some(only.id.clone()),
        (_, Some(marked), None) if !is_explicit => Some(marked.id.clone()),
        _ => None,
    };
    (entries, default)
}

/// The agents of a configuration, the one first that has the default workspace; an exception for one whose files cannot be
/// found.
fn agents(config: &Value, state_dir: &Path, env: &Environment) -> Vec<Result<Agent, Exception>> {
    let none = Map::new();
    let (mut entries, default) = roster(config, &none);
    entries.sort_by_key(|entry| Some(&entry.id) != default.as_ref());
    let shared = text(config.pointer("/agents/defaults/workspace"));
    let variable = env.get("OPENCLAW_WORKSPACE_DIR").map(|path| path.trim()).filter(|path| !path.is_empty());
    let resolve = |setting: &str, path: &str, name: &str| {
        let resolved = if path.contains("${") {
            Err(format!("{setting} in {CONFIG_FILE} is {path:?}, and that variable is not set here"))
        } else {
            user_path(path, env).map_err(|error| error.to_string())
        };
        resolved.map_err(|reason| Exception { path: name.to_owned(), reason })
    };
    let agent = |Configured { id, setting, fields }: Configured<'_>| {
        let is_default = Some(&id) == default.as_ref();
        let workspace_name = if is_default { "workspace".to_owned() } else { format!("workspace-{id}") };
        let workspace = match (text(fields.get("workspace")), shared, variable) {
            (Some(own), ..) => resolve("an agent's workspace", own, &workspace_name)?,
            (None, Some(shared), _) => {
                let shared = resolve("agents.defaults.workspace", shared, &workspace_name)?;
                if is_default { shared } else { shared.join(&id) }
            }
            (None, None, Some(variable)) if is_default => PathBuf::from(variable),
            (None, None, _) => state_dir.join(&workspace_name),
        };
        let own_folder = text(fields.get("agentDir"));
        let own_folder = own_folder.map(|path| resolve("an agentDir", path, &own_folder_name(&id))).transpose()?;
        let is_elsewhere = |folder: &PathBuf| *folder != state_dir.join("agents").join(&id).join("agent");
        Ok(Agent { own_folder: own_folder.filter(is_elsewhere), id, entry: setting, workspace, workspace_name })
    };
    entries.into_iter().map(agent).collect()
}

fn text(value: Option<&Value>) -> Option<&str> {
    value.and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

/// Files that credentials are read from: `path` of a secret provider, and every setting whose name says so, such as
/// `tokenFile`, `passwordFile` or this plugin's `keyFile`.
fn find_secret_files<'c>(value: &'c Value, found: &mut Vec<&'c str>) {
    const WHAT: [&str; 6] = ["token", "secret", "password", "passphrase", "key", "credentials"];
    match value {
        Value::Object(fields) => {
            let is_provider = fields.get("source").and_then(Value::as_str) == Some("file");
            for (name, value) in fields {
                let lower = name.to_lowercase();
                let is_named = lower.strip_suffix("file").or(lower.strip_suffix("path"));
                let is_secret = is_named.is_some_and(|stem| WHAT.iter().any(|what| stem.ends_with(what)));
                match value {
                    Value::String(path) if is_secret || is_provider && name == "path" => found.push(path),
                    value => find_secret_files(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| find_secret_files(item, found)),
        _ => {}
    }
}

/// An agent's id as `OpenClaw` writes it in paths.
fn agent_id(text: &str) -> String {
    let is_valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
    let mut id = String::new();
    for c in text.trim().to_lowercase().chars() {
        match c {
            c if is_valid(c) => id.push(c),
            _ if !id.ends_with('-') => id.push('-'),
            _ => {}
        }
    }
    let id: String = id.trim_matches('-').chars().take(64).collect();
    if id.is_empty() { IMPLICIT_AGENT.into() } else { id }
}

/// A name for something that only its path tells from others: the same on machines with the same path below their home
/// directories.
fn outside_name(path: &Path, env: &Environment) -> String {
    let in_home = home_dir(env).and_then(|home| Some(Path::new("~").join(path.strip_prefix(home).ok()?)));
    let path = in_home.unwrap_or_else(|| path.to_owned());
    let segments = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_string_lossy().into_owned()),
        Component::Prefix(prefix) => Some(prefix.as_os_str().to_string_lossy().replace([':', '\\'], "")),
        _ => None,
    });
    std::iter::once(EXTRA.to_owned()).chain(segments).collect::<Vec<_>>().join("/")
}
