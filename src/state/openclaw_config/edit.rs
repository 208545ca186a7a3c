//! Changes of a configuration file: what a rollback gives a restored one of this machine. Includes and references stay as
//! they are written.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{CONFIG_FILE, MAX_FILE_BYTES, parse, read_bounded};
use crate::error::{Error, Result};

/// Settings that are this machine's own: how to reach its backups, and who may reach its gateway.
const OWN_SETTINGS: &[&[&str]] = &[
    &["plugins", "entries", crate::config::PLUGIN_ID],
    &["plugins", "load"],
    &["gateway", "auth"],
    &["gateway", "port"],
];

/// Gives a staged configuration, about to replace `live`, the settings that are this machine's own. Where they are the
/// same, or one of the files makes no sense, the staged one stays as it is to the byte; otherwise comments are lost.
///
/// # Errors
/// `IO`.
pub fn keep_own_settings(live: &Path, staged: &Path) -> Result<()> {
    let Some(own) = read_object(live)? else { return Ok(()) };
    edit(staged, |staged| {
        for path in OWN_SETTINGS {
            set_at(staged, path, path.iter().try_fold(&own, |value, name| value.get(name)).cloned());
        }
    })
    .map(|_| ())
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
