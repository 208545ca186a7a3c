//! Reads `openclaw.json` as `OpenClaw` itself does: JSON5, `$include`, `${ENV}`.
//!
//! The result is one merged JSON value; what its fields mean is for the caller. The rules are those of `OpenClaw`'s
//! page "Configuration: environment, secrets, and includes". The input is hand-written and may be hostile, therefore
//! every size, depth and count is bounded, and nothing outside the configuration's own directory is read.

mod edit;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Code, Error, Result};

pub use edit::{keep_own_settings, move_paths, set};

/// Environment variables by name, given by the caller so that tests need not change the process's own.
pub type Environment = BTreeMap<String, String>;

/// The configuration file may be this large, in bytes.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// An included file may be this large, in bytes; the bound is `OpenClaw`'s.
const MAX_INCLUDE_BYTES: u64 = 2 << 20;
/// All files together, in bytes. `OpenClaw` has no such bound; a file that includes its neighbour twice, ten levels
/// deep, needs one.
const MAX_TOTAL_BYTES: u64 = 32 << 20;
/// So many files may be read for one configuration, counting repetitions.
const MAX_FILES: usize = 512;
/// Includes may be nested this deep; the bound is `OpenClaw`'s.
const MAX_INCLUDE_DEPTH: usize = 10;
/// An include's path, also after resolution, is shorter than this; the bound is `OpenClaw`'s.
const MAX_INCLUDE_PATH: usize = 4096;
/// Objects and arrays in one file may be nested this deep.
const MAX_VALUE_DEPTH: usize = 128;
/// A merged value may be nested this deep, so that walking it recursively is safe.
const MAX_MERGED_DEPTH: usize = 512;

/// The merged configuration in `path`, with its includes resolved and its `${ENV}` references substituted.
///
/// `None` when the file does not exist. References to variables that are unset or empty stay as they are written.
///
/// # Errors
/// `CONFIG` for anything in a file that is not as it should be, `IO` when one cannot be read.
pub fn load(path: &Path, env: &Environment) -> Result<Option<Value>> {
    Ok(load_with_files(path, env)?.map(|loaded| loaded.value))
}

/// A merged configuration.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// Its fields.
    pub value: Value,
    /// The files that it includes, absolute, each once.
    pub files: Vec<PathBuf>,
}

/// [`load`], with the files that were included.
///
/// # Errors
/// Those of [`load`].
pub fn load_with_files(path: &Path, env: &Environment) -> Result<Option<Loaded>> {
    load_as_if(path, env, &|path| path.to_owned())
}

/// [`load_with_files`] as it will be once files that are still elsewhere are in place: `staged` says where each is.
///
/// # Errors
/// Those of [`load`].
pub fn load_as_if(path: &Path, env: &Environment, staged: &dyn Fn(&Path) -> PathBuf) -> Result<Option<Loaded>> {
    let mut loaded = merge_files(path, env, staged)?;
    if let Some(Loaded { value, .. }) = &mut loaded {
        let variables = with_config_variables(env, value);
        substitute(value, &variables);
    }
    Ok(loaded)
}

/// [`load_as_if`] with `${ENV}` references as they are written.
fn merge_files(path: &Path, env: &Environment, staged: &dyn Fn(&Path) -> PathBuf) -> Result<Option<Loaded>> {
    let path = std::path::absolute(path).map_err(|error| Error::io("resolve", path, error))?;
    let mut loader = Loader::new(&path, env, staged);
    let Some(text) = loader.read(&path, MAX_FILE_BYTES)? else { return Ok(None) };
    let value = parse(&text).map_err(|problem| syntax_error(&path, &problem))?;
    let mut chain = vec![normalize(&path)];
    let value = loader.expand(value, &mut chain, 0)?;
    Ok(Some(Loaded { value, files: loader.included }))
}

/// The home directory as `OpenClaw` sees it.
#[must_use]
pub fn home_dir(env: &Environment) -> Option<PathBuf> {
    let homes = ["OPENCLAW_HOME", "HOME", "USERPROFILE"];
    homes.iter().find_map(|name| env.get(*name).filter(|value| !value.is_empty())).map(PathBuf::from)
}

/// A path as a person writes it: `~` is the home directory.
///
/// # Errors
/// `CONFIG` when there is no home directory, `IO` when there is no working directory.
pub fn user_path(path: impl AsRef<Path>, env: &Environment) -> Result<PathBuf> {
    let path = path.as_ref();
    if let Ok(rest) = path.strip_prefix("~") {
        let missing =
            || Error::config("HOME", "there is no home directory").advise("set HOME, or write absolute paths");
        // Of its own: with an empty rest `join` would add a slash.
        return Ok(home_dir(env).ok_or_else(missing)?.join(rest).components().collect());
    }
    std::path::absolute(path).map_err(|error| Error::io("resolve", path, error))
}

/// What `OpenClaw` calls its configuration, in the state directory.
pub const CONFIG_FILE: &str = "openclaw.json";

/// The variables of a `.env` file, as far as its lines can be read; an empty map when there is none.
///
/// # Errors
/// `IO` when the file exists and cannot be read, `CONFIG` when it is too large or not text.
pub fn load_dotenv(path: &Path) -> Result<Environment> {
    let Some(text) = read_bounded(path, MAX_INCLUDE_BYTES)? else { return Ok(Environment::new()) };
    Ok(text.lines().filter_map(dotenv_line).collect())
}

/// The variables of `env` that are not empty, and below them those of `below`.
#[must_use]
pub fn lay_over(mut below: Environment, env: &Environment) -> Environment {
    below.extend(env.iter().filter(|(_, value)| !value.is_empty()).map(|(k, v)| (k.clone(), v.clone())));
    below
}

fn dotenv_line(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (name, value) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    if !is_variable_name(name) {
        return None;
    }
    let quoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote).and_then(|rest| rest.split_once(quote)).map(|(inner, _)| inner));
    let value = quoted.unwrap_or_else(|| value.split(" #").next().unwrap_or_default().trim_end());
    Some((name.to_owned(), value.to_owned()))
}

fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `env` and, below it, what the configuration's own `env.vars` and `env.<NAME>` set.
fn with_config_variables(env: &Environment, config: &Value) -> Environment {
    let mut variables = Environment::new();
    if let Some(Value::Object(section)) = config.get("env") {
        let nested = section.get("vars").and_then(Value::as_object);
        for (name, value) in section.iter().chain(nested.into_iter().flatten()) {
            if let Value::String(text) = value
                && is_variable_name(name)
            {
                variables.insert(name.clone(), text.clone());
            }
        }
    }
    lay_over(variables, env)
}

/// Parses JSON5 text, refusing what is nested too deeply to be walked recursively.
///
/// # Errors
/// The parser's description of the problem, with line and column.
pub fn parse(text: &str) -> std::result::Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut deserializer = json5::Deserializer::from_str(text);
    Bounded(MAX_VALUE_DEPTH).deserialize(&mut deserializer).map_err(|error| error.to_string())
}

fn syntax_error(path: &Path, problem: &str) -> Error {
    Error::new(Code::Config, format!("{} is not valid JSON5: {problem}", path.display()))
        .at_path(path.display().to_string())
        .advise("correct the file, or restore openclaw.json.bak beside it")
}

/// Builds a [`Value`] of at most this many further levels. The json5 crate has no bound of its own.
#[derive(Clone, Copy)]
struct Bounded(usize);

impl Bounded {
    fn inner<E: serde::de::Error>(self) -> std::result::Result<Self, E> {
        self.0.checked_sub(1).map(Self).ok_or_else(|| E::custom("nested too deeply"))
    }
}

impl<'de> DeserializeSeed<'de> for Bounded {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON5 value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    // `NaN` and the infinities have no JSON form; they become null, which no field accepts.
    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: serde::Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let inner = self.inner()?;
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            object.insert(key, entries.next_value_seed(inner)?);
        }
        Ok(Value::Object(object))
    }
}

struct Loader<'a> {
    /// Where the content of a file is read.
    staged: &'a dyn Fn(&Path) -> PathBuf,
    /// What was included so far.
    included: Vec<PathBuf>,
    /// Directories that included files must lie in, as written and with symlinks resolved.
    roots: Vec<(PathBuf, PathBuf)>,
    files: usize,
    bytes: u64,
}

impl<'a> Loader<'a> {
    fn new(path: &Path, env: &Environment, staged: &'a dyn Fn(&Path) -> PathBuf) -> Self {
        let directory = path.parent().unwrap_or(path).to_path_buf();
        let listed = env.get("OPENCLAW_INCLUDE_ROOTS").map(std::env::split_paths);
        let roots = std::iter::once(directory)
            .chain(listed.into_iter().flatten().filter(|root| root.is_absolute()))
            .map(|root| (normalize(&root), root.canonicalize().unwrap_or_else(|_| normalize(&root))))
            .collect();
        Self { staged, included: Vec::new(), roots, files: 0, bytes: 0 }
    }

    fn read(&mut self, path: &Path, limit: u64) -> Result<Option<String>> {
        self.files += 1;
        if self.files > MAX_FILES {
            return Err(include_error(path, format!("more than {MAX_FILES} files are included")));
        }
        let text = read_bounded(&(self.staged)(path), limit)?;
        self.bytes += text.as_ref().map_or(0, |text| text.len() as u64);
        if self.bytes > MAX_TOTAL_BYTES {
            return Err(include_error(path, format!("the included files exceed {} MiB", MAX_TOTAL_BYTES >> 20)));
        }
        Ok(text)
    }

    /// Replaces every `$include` in `value`. `chain` names the files that led here; its last is the one `value` is from.
    fn expand(&mut self, value: Value, chain: &mut Vec<PathBuf>, level: usize) -> Result<Value> {
        if level > MAX_MERGED_DEPTH {
            return Err(include_error(&chain[chain.len() - 1], "the merged configuration is nested too deeply"));
        }
        match value {
            Value::Array(items) => {
                let items = items.into_iter().map(|item| self.expand(item, chain, level + 1));
                Ok(Value::Array(items.collect::<Result<_>>()?))
            }
            Value::Object(mut object) => {
                let directive = object.remove("$include");
                let rest = object
                    .into_iter()
                    .map(|(key, item)| Ok((key, self.expand(item, chain, level + 1)?)))
                    .collect::<Result<Map<_, _>>>()?;
                let Some(directive) = directive else { return Ok(Value::Object(rest)) };
                let included = self.include(directive, chain, level)?;
                if rest.is_empty() {
                    return Ok(included);
                }
                if !included.is_object() {
                    return Err(include_error(
                        &chain[chain.len() - 1],
                        "keys beside $include need an included file that holds an object",
                    ));
                }
                Ok(merge(included, Value::Object(rest)))
            }
            other => Ok(other),
        }
    }

    fn include(&mut self, directive: Value, chain: &mut Vec<PathBuf>, level: usize) -> Result<Value> {
        match directive {
            Value::String(name) => self.include_file(&name, chain, level),
            Value::Array(names) => {
                let mut merged = Value::Object(Map::new());
                for name in names {
                    let Value::String(name) = name else {
                        return Err(include_error(&chain[chain.len() - 1], "$include takes file names, as strings"));
                    };
                    merged = merge(merged, self.include_file(&name, chain, level)?);
                }
                Ok(merged)
            }
            _ => Err(include_error(&chain[chain.len() - 1], "$include takes a file name or an array of them")),
        }
    }

    fn include_file(&mut self, name: &str, chain: &mut Vec<PathBuf>, level: usize) -> Result<Value> {
        let from = chain[chain.len() - 1].clone();
        let path = self.resolve(name, &from)?;
        if chain.contains(&path) {
            return Err(include_error(&from, format!("$include {name:?} includes itself in a circle")));
        }
        if chain.len() > MAX_INCLUDE_DEPTH {
            let problem = format!("$include {name:?} is nested more than {MAX_INCLUDE_DEPTH} levels deep");
            return Err(include_error(&from, problem));
        }
        let Some(text) = self.read(&path, MAX_INCLUDE_BYTES)? else {
            return Err(include_error(&from, format!("$include {name:?} names a file that does not exist")));
        };
        let value = parse(&text).map_err(|problem| syntax_error(&path, &problem))?;
        if !self.included.contains(&path) {
            self.included.push(path.clone());
        }
        chain.push(path);
        let value = self.expand(value, chain, level + 1);
        chain.pop();
        value
    }

    fn resolve(&self, name: &str, from: &Path) -> Result<PathBuf> {
        if name.contains('\0') {
            return Err(include_error(from, "$include holds a null byte"));
        }
        let directory = from.parent().unwrap_or(from);
        let path = normalize(&directory.join(name));
        if name.len() >= MAX_INCLUDE_PATH || path.as_os_str().len() >= MAX_INCLUDE_PATH {
            return Err(include_error(from, format!("$include is longer than {MAX_INCLUDE_PATH} characters")));
        }
        let outside = || {
            include_error(from, format!("$include {name:?} leads outside the configuration's directory"))
                .advise("move the file there, or list its directory in OPENCLAW_INCLUDE_ROOTS")
        };
        if !self.roots.iter().any(|(root, _)| path.starts_with(root)) {
            return Err(outside());
        }
        match path.canonicalize() {
            Ok(real) if !self.roots.iter().any(|(_, root)| real.starts_with(root)) => Err(outside()),
            Ok(_) => Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path),
            Err(error) => Err(Error::io("resolve", &path, error)),
        }
    }
}

fn include_error(path: &Path, problem: impl fmt::Display) -> Error {
    Error::new(Code::Config, format!("{}: {problem}", path.display())).at_path(path.display().to_string())
}

/// `path` without `.` and `..`, by its text alone.
fn normalize(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                normal.pop();
            }
            other => normal.push(other),
        }
    }
    normal
}

/// Objects are merged, arrays joined, anything else is replaced by what comes later.
fn merge(base: Value, over: Value) -> Value {
    match (base, over) {
        (Value::Object(mut base), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match base.remove(&key) {
                    Some(old) => merge(old, value),
                    None => value,
                };
                base.insert(key, merged);
            }
            Value::Object(base)
        }
        (Value::Array(mut base), Value::Array(over)) => {
            base.extend(over);
            Value::Array(base)
        }
        (_, over) => over,
    }
}

/// The text of a regular file of at most `limit` bytes; `None` when there is no such file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<String>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read", path, error)),
    };
    let metadata = file.metadata().map_err(|error| Error::io("read", path, error))?;
    if !metadata.is_file() {
        return Err(include_error(path, "this is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > limit {
        return Err(include_error(path, format!("this file is larger than {} MiB", limit >> 20)));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| include_error(path, "this file is not UTF-8 text"))
}

/// Replaces `${NAME}` in every string by what `env` has under that name; `$${NAME}` is the literal `${NAME}`.
fn substitute(value: &mut Value, env: &Environment) {
    match value {
        Value::String(text) if text.contains("${") => *text = substitute_text(text, env),
        Value::Array(items) => items.iter_mut().for_each(|item| substitute(item, env)),
        Value::Object(object) => object.values_mut().for_each(|item| substitute(item, env)),
        _ => {}
    }
}

fn substitute_text(text: &str, env: &Environment) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, reference) = rest.split_at(start);
        result.push_str(before);
        let Some(name) = reference_name(reference) else {
            result.push_str("${");
            rest = &reference[2..];
            continue;
        };
        let whole = &reference[..name.len() + 3];
        if before.ends_with('$') {
            result.pop();
            result.push_str(whole);
        } else {
            result.push_str(env.get(name).filter(|value| !value.is_empty()).map_or(whole, String::as_str));
        }
        rest = &reference[whole.len()..];
    }
    result.push_str(rest);
    result
}

/// The variable named by a text that starts with `${NAME}`; only upper case names are references.
pub(crate) fn reference_name(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix("${")?.split_once('}')?;
    let upper = name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    (upper && is_variable_name(name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new(files: &[(&str, &str)]) -> Self {
            let directory = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = directory.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Self(directory)
        }

        fn load(&self, env: &[(&str, &str)]) -> Result<Option<Value>> {
            let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            load(&self.0.path().join("openclaw.json"), &env)
        }

        fn value(&self) -> Value {
            self.load(&[]).unwrap().unwrap()
        }

        fn problem(&self) -> String {
            let error = self.load(&[]).unwrap_err();
            assert_eq!(error.code(), Code::Config);
            error.to_string()
        }
    }

    #[test]
    fn a_file_that_does_not_exist_is_no_configuration() {
        assert_eq!(Dir::new(&[]).load(&[]).unwrap(), None);
    }

    #[test]
    fn json5_is_understood_with_comments_and_a_byte_order_mark() {
        let dir = Dir::new(&[("openclaw.json", "\u{feff}// mine\n{ a: 'x', b: [1, +2, .5,], /* c */ c: null, }")]);
        assert_eq!(dir.value(), json!({ "a": "x", "b": [1, 2, 0.5], "c": null }));
    }

    #[test]
    fn a_syntax_error_names_the_file_and_the_place() {
        let problem = Dir::new(&[("openclaw.json", "{ a: 1,\n b: }")]).problem();
        assert!(problem.contains("openclaw.json") && problem.contains("line 2"), "{problem}");
    }

    #[test]
    fn includes_replace_their_object_and_lists_of_them_are_merged_in_order() {
        let dir = Dir::new(&[
            ("openclaw.json", "{ a: { $include: './a.json5' }, b: { $include: ['b/1.json', 'b/2.json'], own: 3 } }"),
            ("a.json5", "{ from: 'a' }"),
            ("b/1.json", "{ list: [1], own: 1, nested: { $include: './3.json' } }"),
            ("b/2.json", "{ list: [2], nested: { z: 2 } }"),
            ("b/3.json", "{ y: 1, z: 1 }"),
        ]);
        let expected = json!({ "a": { "from": "a" }, "b": { "list": [1, 2], "own": 3, "nested": { "y": 1, "z": 2 } } });
        assert_eq!(dir.value(), expected);
    }

    #[test]
    fn includes_stay_inside_the_configuration_directory() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("x.json"), "{ x: 1 }").unwrap();
        let dir = Dir::new(&[("openclaw.json", "{ $include: '../x.json' }")]);
        assert!(dir.problem().contains("outside"));
        let dir = Dir::new(&[("openclaw.json", "{ $include: 'sub/../../x.json' }")]);
        assert!(dir.problem().contains("outside"));
        let absolute = format!("{{ $include: '{}' }}", outside.path().join("x.json").display());
        let dir = Dir::new(&[("openclaw.json", &absolute)]);
        assert!(dir.problem().contains("outside"));
        let root = outside.path().to_str().unwrap();
        assert_eq!(dir.load(&[("OPENCLAW_INCLUDE_ROOTS", root)]).unwrap().unwrap(), json!({ "x": 1 }));
        #[cfg(unix)]
        {
            let dir = Dir::new(&[("openclaw.json", "{ $include: 'link.json' }")]);
            std::os::unix::fs::symlink(outside.path().join("x.json"), dir.0.path().join("link.json")).unwrap();
            assert!(dir.problem().contains("outside"));
        }
    }

    #[test]
    fn circles_and_chains_of_includes_end() {
        let dir = Dir::new(&[("openclaw.json", "{ $include: 'a.json' }"), ("a.json", "{ b: { $include: 'a.json' } }")]);
        assert!(dir.problem().contains("circle"));
        let files: Vec<_> =
            (0..12).map(|i| (format!("{i}.json"), format!("{{ $include: '{}.json' }}", i + 1))).collect();
        let mut files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        files.push(("openclaw.json", "{ $include: '0.json' }"));
        assert!(Dir::new(&files).problem().contains("levels deep"));
        let files: Vec<_> = (0..9)
            .map(|i| (format!("{i}.json"), format!("{{ $include: ['{0}.json', './{0}.json'] }}", i + 1)))
            .collect();
        let mut files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        files.extend([("openclaw.json", "{ $include: '0.json' }"), ("9.json", "{}")]);
        assert!(Dir::new(&files).problem().contains("more than"));
    }

    #[test]
    fn an_include_that_cannot_be_followed_is_an_error() {
        assert!(Dir::new(&[("openclaw.json", "{ $include: 'none.json' }")]).problem().contains("does not exist"));
        assert!(Dir::new(&[("openclaw.json", "{ $include: 7 }")]).problem().contains("file name"));
        assert!(Dir::new(&[("openclaw.json", "{ $include: [7] }")]).problem().contains("file names"));
        assert!(Dir::new(&[("openclaw.json", "{ $include: '.' }")]).problem().contains("regular file"));
        let dir = Dir::new(&[("openclaw.json", "{ $include: 'a.json', b: 1 }"), ("a.json", "[]")]);
        assert!(dir.problem().contains("beside $include"));
    }

    #[test]
    fn variables_are_substituted_as_openclaw_does() {
        let text =
            "{ env: { vars: { OWN: 'own', SET: 'no' } }, a: '${SET}/v1', b: '$${SET}', c: '${UNSET}', d: '${EMPTY}',
            e: '${lower}', f: '${OWN}${SET}', g: '$ ${', h: { $include: 'i.json' } }";
        let dir = Dir::new(&[("openclaw.json", text), ("i.json", "['${SET}']")]);
        let value = dir.load(&[("SET", "yes"), ("EMPTY", "")]).unwrap().unwrap();
        let expected = [
            ("a", json!("yes/v1")),
            ("b", json!("${SET}")),
            ("c", json!("${UNSET}")),
            ("d", json!("${EMPTY}")),
            ("e", json!("${lower}")),
            ("f", json!("ownyes")),
            ("g", json!("$ ${")),
            ("h", json!(["yes"])),
        ];
        for (key, expected) in expected {
            assert_eq!(value[key], expected, "{key}");
        }
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
        let deep = "[".repeat(2_000_000);
        assert!(Dir::new(&[("openclaw.json", &deep)]).problem().contains("nested too deeply"));
        let deep = "{a:".repeat(2_000_000);
        assert!(Dir::new(&[("openclaw.json", &deep)]).problem().contains("nested too deeply"));
    }

    #[test]
    fn a_file_that_is_too_large_is_refused() {
        let large = " ".repeat(MAX_FILE_BYTES as usize + 1);
        assert!(Dir::new(&[("openclaw.json", &large)]).problem().contains("larger than 8 MiB"));
    }

    #[test]
    fn a_dotenv_file_gives_names_and_values() {
        let dir = Dir::new(&[(".env", "# c\nA=1\nexport B = \"two # x\" # c\nC='3'\nD=four # c\nbad line\n1E=5\nF=")]);
        let variables = load_dotenv(&dir.0.path().join(".env")).unwrap();
        let expected = [("A", "1"), ("B", "two # x"), ("C", "3"), ("D", "four"), ("F", "")];
        assert_eq!(variables, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*") {
            drop(parse(&text));
        }

        #[test]
        fn no_json_like_text_makes_the_parser_panic(text in "[\\[\\]{}:,'\"\\\\/*$ a0-9.eE+\\-\n]{0,64}") {
            drop(parse(&text));
        }

        #[test]
        fn no_text_makes_substitution_panic(text in "[${}A-Zé]{0,32}") {
            substitute_text(&text, &Environment::from([("A".to_owned(), "x".to_owned())]));
        }
    }
}
