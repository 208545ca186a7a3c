//! Changes of a configuration file: what a rollback gives a restored one of this machine. Includes and references stay as
//! they are written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{CONFIG_FILE, Environment, MAX_FILE_BYTES, merge_files, parse, read_bounded};
use crate::error::{Error, Result};

/// Settings that are this machine's own: how to reach its backups, and who may reach its gateway.
const OWN_SETTINGS: &[&[&str]] = &[
    &["plugins", "entries", crate::config::PLUGIN_ID],
    &["plugins", "load"],
    &["gateway", "auth"],
    &["gateway", "port"],
];

/// Gives the configuration in `path`, for which files lie where `staged` says, the settings that are this machine's own, as
/// that of the live files says. Where they are the same, or one of the two makes no sense, it stays as it is to the byte;
/// otherwise comments are lost. Gives the settings that differ all the same: what another file brings, the main one that
/// stays where it is cannot change.
///
/// # Errors
/// `IO`.
pub fn keep_own_settings(path: &Path, env: &Environment, staged: &dyn Fn(&Path) -> PathBuf) -> Result<Vec<String>> {
    let merged = |staged| merge_files(path, env, staged).ok().flatten().map(|loaded| loaded.value);
    let (Some(own), Some(new)) = (merged(&|path| path.to_owned()), merged(staged)) else { return Ok(Vec::new()) };
    let differing: Vec<_> =
        OWN_SETTINGS.iter().filter(|setting| get_at(&own, setting) != get_at(&new, setting)).collect();
    let main = staged(path);
    if main == path {
        return Ok(differing.into_iter().map(|setting| setting.join(".")).collect());
    }
    edit(&main, |config| {
        for setting in differing {
            set_at(config, setting, get_at(&own, setting).cloned());
        }
    })
    .map(|_| Vec::new())
}

/// Sets texts in a configuration file, each at the path of its names; `false` when the file makes no sense.
///
/// # Errors
/// `IO`.
pub fn set(file: &Path, settings: &[(Vec<String>, String)]) -> Result<bool> {
    edit(file, |config| {
        for (path, text) in settings {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            set_at(config, &path, Some(text.as_str().into()));
        }
    })
}

/// Has every text of a configuration file that is a path in the directory `from` name the same in `to`.
///
/// # Errors
/// `IO`.
pub fn move_paths(file: &Path, from: &Path, to: &Path) -> Result<()> {
    fn walk(value: &mut Value, from: &Path, to: &Path) {
        match value {
            Value::String(text) => {
                if let Ok(below) = Path::new(text.as_str()).strip_prefix(from) {
                    *text = to.join(below).components().collect::<PathBuf>().display().to_string();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| walk(item, from, to)),
            Value::Object(fields) => fields.values_mut().for_each(|item| walk(item, from, to)),
            _ => {}
        }
    }
    edit(file, |config| walk(config, from, to)).map(|_| ())
}

fn read_object(path: &Path) -> Result<Option<Value>> {
    let text = read_bounded(path, MAX_FILE_BYTES)?;
    Ok(text.and_then(|text| parse(&text).ok()).filter(Value::is_object))
}

/// Changes a configuration file; one that stays the same is not written, so that its comments live. `false` when it makes no
/// sense.
fn edit(path: &Path, change: impl FnOnce(&mut Value)) -> Result<bool> {
    let Some(before) = read_object(path)? else { return Ok(false) };
    let mut after = before.clone();
    change(&mut after);
    if after != before {
        let text = serde_json::to_string_pretty(&after).map_err(|error| Error::config(CONFIG_FILE, error))?;
        std::fs::write(path, text + "\n").map_err(|error| Error::io("write", path, error))?;
    }
    Ok(true)
}

fn get_at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, name| value.get(name))
}

/// Sets or removes what is at `path`, making objects on the way as needed.
fn set_at(value: &mut Value, path: &[&str], new: Option<Value>) {
    if let (Value::Array(items), [number, rest @ ..]) = (&mut *value, path) {
        if let Some(item) = number.parse().ok().and_then(|number: usize| items.get_mut(number)) {
            set_at(item, rest, new);
        }
        return;
    }
    let Value::Object(object) = value else { return };
    match (path, new) {
        ([name], Some(new)) => _ = object.insert((*name).to_owned(), new),
        ([name], None) => _ = object.remove(*name),
        ([name, rest @ ..], Some(new)) => {
            let inner = object.entry(*name).or_insert_with(|| Value::Object(serde_json::Map::new()));
            set_at(inner, rest, Some(new));
        }
        ([name, rest @ ..], None) => {
            if let Some(inner) = object.get_mut(*name) {
                set_at(inner, rest, None);
            }
        }
        ([], _) => {}
    }
}
