//! Finds the configuration where no host hands it over: on the command line, maybe on an empty machine.
//!
//! `OpenClaw`'s own ways are followed for the files, the environment and secret references. References that need
//! `OpenClaw` itself (`exec`, `store`) are refused with a reason, not guessed at.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{PLUGIN_ID, Target};
use crate::error::{Code, Error, Result};
use crate::state::openclaw_config::{
    CONFIG_FILE, Environment, home_dir, lay_over, load, load_dotenv, read_bounded, reference_name, user_path,
};

/// Fields that may be secret references, or `$NAME` for short.
const SECRET_FIELDS: [&str; 4] = ["keyId", "applicationKey", "passphrase", "recoveryCode"];
/// Variables that stand in for fields that the configuration does not have; those of 0.1.x have its names.
const FALLBACKS: [(&str, &str); 8] = [
    ("keyId", "B2_APPLICATION_KEY_ID"),
    ("applicationKey", "B2_APPLICATION_KEY"),
    ("bucket", "B2_BUCKET_NAME"),
    ("region", "B2_REGION"),
    ("endpoint", "B2_ENDPOINT"),
    ("passphrase", "OPENCLAW_B2_PASSPHRASE"),
    ("keyFile", "OPENCLAW_B2_KEY_FILE"),
    ("recoveryCode", "OPENCLAW_B2_RECOVERY_CODE"),
];
/// A file of secrets may be this large, in bytes; the bound is `OpenClaw`'s default.
const MAX_SECRET_FILE_BYTES: u64 = 1 << 20;

/// What a command line knows before it has read anything.
#[derive(Debug, Clone, Default)]
pub struct Resolve {
    /// `openclaw.json`; by default `OPENCLAW_CONFIG_PATH`, or the one in the state directory.
    pub config_path: Option<PathBuf>,
    /// The state directory; by default `OPENCLAW_STATE_DIR`, or `~/.openclaw`.
    pub state_dir: Option<PathBuf>,
    /// The environment.
    pub env: Environment,
}

/// The validated configuration that `request` leads to.
///
/// # Errors
/// `CONFIG` when a file, a reference or a field is wrong, `IO` when a file cannot be read.
pub fn resolve(request: &Resolve) -> Result<Target> {
    Target::from_json(&request.fields()?)
}

impl Resolve {
    /// The configuration's fields with secrets and `stateDir` filled in, as [`Target::from_json`] takes them. They
    /// are not checked yet.
    ///
    /// # Errors
    /// Those of [`resolve`], for files and references.
    pub fn fields(&self) -> Result<Value> {
        let variable = |name: &str| self.env.get(name).filter(|value| !value.trim().is_empty());
        let state_dir = match self.state_dir.as_deref().or(variable("OPENCLAW_STATE_DIR").map(Path::new)) {
            Some(path) => self.absolute(path)?,
            None => self.home()?.join(".openclaw"),
        };
        let named = self.config_path.as_deref().or(variable("OPENCLAW_CONFIG_PATH").map(Path::new));
        let path = match named {
            Some(path) => self.absolute(path)?,
            None => state_dir.join(CONFIG_FILE),
        };
        let env = lay_over(load_dotenv(&state_dir.join(".env"))?, &self.env);
        let config = load(&path, &env)?;
        if config.is_none() && self.config_path.is_some() {
            let error = Error::config("--config", format!("{} does not exist", path.display()));
            return Err(error.at_path(path.display().to_string()));
        }
        let config = config.unwrap_or_default();
        let mut fields = plugin_fields(&config, &path)?;
        let secrets = Secrets { config: &config, env: &env, request: self };
        for field in SECRET_FIELDS {
            if let Some(value) = fields.get_mut(field) {
                secrets.resolve(field, value)?;
            }
        }
        for (field, name) in FALLBACKS {
            if !fields.contains_key(field)
                && let Some(value) = env.get(name)
            {
                // A passphrase is what it is, to the last space.
                let value = if field == "passphrase" { value } else { value.trim() };
                fields.insert(field.into(), value.into());
            }
        }
        let shown = state_dir.to_str().ok_or_else(|| {
            Error::config("stateDir", format!("{} is not UTF-8", state_dir.display())).advise("rename the directory")
        })?;
        fields.insert("stateDir".into(), shown.into());
        Ok(Value::Object(fields))
    }

    fn home(&self) -> Result<PathBuf> {
        home_dir(&self.env)
            .ok_or_else(|| Error::config("stateDir", "there is no home directory").advise("name it with --state-dir"))
    }

    fn absolute(&self, path: &Path) -> Result<PathBuf> {
        user_path(path, &self.env)
    }
}

/// The object at `plugins.entries.openclaw-b2-backup.config`, empty when there is none.
fn plugin_fields(config: &Value, path: &Path) -> Result<Map<String, Value>> {
    let mut value = config;
    let mut name = String::new();
    for key in ["", "plugins", "entries", PLUGIN_ID, "config"] {
        if !key.is_empty() {
            name = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
            let Some(inner) = value.get(key) else { return Ok(Map::new()) };
            value = inner;
        }
        // A file that does not exist was read as null.
        if !(value.is_object() || key.is_empty() && value.is_null()) {
            let field = if name.is_empty() { CONFIG_FILE } else { &name };
            return Err(Error::config(field, "expected an object with fields").at_path(path.display().to_string()));
        }
    }
    Ok(value.as_object().cloned().unwrap_or_default())
}

struct Secrets<'a> {
    config: &'a Value,
    env: &'a Environment,
    request: &'a Resolve,
}

impl Secrets<'_> {
    /// Replaces a secret reference by what it refers to; anything else stays as it is.
    fn resolve(&self, field: &str, value: &mut Value) -> Result<()> {
        let resolved = match value {
            Value::String(text) => match text.strip_prefix('$').filter(|name| is_reference_name(name)) {
                Some(name) => self.variable(field, name)?,
                None => return Ok(()),
            },
            Value::Object(object) => self.reference(field, object)?,
            _ => return Ok(()),
        };
        *value = Value::String(resolved);
        Ok(())
    }

    fn reference(&self, field: &str, object: &Map<String, Value>) -> Result<String> {
        let text = |key: &str| match object.get(key) {
            Some(Value::String(text)) => Ok(text.as_str()),
            _ => Err(Error::config(field, format!("the secret reference has no {key:?}"))
                .advise("write it as { source: \"env\", provider: \"default\", id: \"NAME\" }")),
        };
        if let Some(unknown) = object.keys().find(|key| !["source", "provider", "id"].contains(&key.as_str())) {
            return Err(Error::config(field, format!("{unknown:?} is no part of a secret reference")));
        }
        let (source, id) = (text("source")?, text("id")?);
        let default = self.config.pointer(&format!("/secrets/defaults/{source}")).and_then(Value::as_str);
        let provider = match object.get("provider") {
            None => default.unwrap_or("default"),
            Some(_) => text("provider")?,
        };
        let entry = self.config.pointer("/secrets/providers").and_then(|providers| providers.get(provider));
        let entry = entry.filter(|entry| entry.get("source").and_then(Value::as_str) == Some(source));
        let missing = || {
            Error::config(field, format!("there is no secret provider {provider:?} for source {source:?}"))
                .advise(format!("add secrets.providers.{provider} to openclaw.json"))
        };
        match source {
            "env" => {
                if !is_reference_name(id) {
                    return Err(Error::config(field, format!("{id:?} is not the name of a variable")));
                }
                if entry.is_none() && provider != default.unwrap_or("default") {
                    return Err(missing());
                }
                if let Some(Value::Array(allowed)) = entry.and_then(|entry| entry.get("allowlist"))
                    && !allowed.iter().any(|name| name.as_str() == Some(id))
                {
                    return Err(Error::config(field, format!("secrets.providers.{provider} does not allow {id}"))
                        .advise("add it to the provider's allowlist"));
                }
                self.variable(field, id)
            }
            "file" => self.file(field, entry.ok_or_else(missing)?, provider, id),
            "exec" | "store" => Err(Error::config(
                field,
                format!("a secret reference with source {source:?} needs OpenClaw to resolve it"),
            )
            .advise("set the variable that stands in for it and name a --config file without it, or with an env or file reference")),
            other => Err(Error::config(field, format!("{other:?} is not a source of secrets"))
                .advise("the sources are env and file")),
        }
    }

    fn variable(&self, field: &str, name: &str) -> Result<String> {
        self.env.get(name).filter(|value| !value.is_empty()).cloned().ok_or_else(|| {
            Error::config(field, format!("the environment variable {name} is not set"))
                .advise(format!("set {name} where this program runs"))
        })
    }

    fn file(&self, field: &str, provider: &Value, name: &str, id: &str) -> Result<String> {
        let setting = |key: &str| provider.get(key).and_then(Value::as_str);
        let path =
            setting("path").ok_or_else(|| Error::config(field, format!("secrets.providers.{name} has no path")))?;
        let path = self.request.absolute(Path::new(path))?;
        let problem = |problem: &str| {
            Error::config(field, format!("{} {problem}", path.display())).at_path(path.display().to_string())
        };
        check_private(&path).map_err(|text| problem(&text))?;
        let limit = provider.get("maxBytes").and_then(Value::as_u64).unwrap_or(MAX_SECRET_FILE_BYTES);
        let text = read_bounded(&path, limit.min(MAX_SECRET_FILE_BYTES))?.ok_or_else(|| problem("does not exist"))?;
        match setting("mode").unwrap_or("json") {
            "singleValue" if id == "value" => {
                Ok(text.strip_suffix('\n').map_or(&*text, trim_carriage_return).to_owned())
            }
            "singleValue" => Err(Error::config(field, "the id of a singleValue file is \"value\"")),
            "json" => {
                // The parser's message could repeat a part of the file.
                let secrets: Value = serde_json::from_str(&text).map_err(|_| problem("is not valid JSON"))?;
                match secrets.pointer(id) {
                    Some(Value::String(secret)) if id.starts_with('/') => Ok(secret.clone()),
                    _ => Err(problem(&format!("has no text at {id:?}"))),
                }
            }
            other => Err(Error::new(Code::Config, format!("secrets.providers.{name}.mode: {other:?} is not a mode"))
                .advise("use json or singleValue")),
        }
    }
}

fn trim_carriage_return(text: &str) -> &str {
    text.strip_suffix('\r').unwrap_or(text)
}

/// Whether `name` is an upper case variable name, as references have them.
fn is_reference_name(name: &str) -> bool {
    !name.starts_with('_') && name.len() <= 128 && reference_name(&format!("${{{name}}}")) == Some(name)
}

/// What is wrong with a file of secrets that is not this user's alone, as a phrase after its name.
fn check_private(path: &Path) -> std::result::Result<(), String> {
    // What cannot be looked at cannot be read either; reading says why.
    let Ok(metadata) = path.symlink_metadata() else { return Ok(()) };
    if !metadata.is_file() {
        return Err("is not a regular file; secrets are not read through links".into());
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if metadata.mode() & 0o077 != 0 {
            return Err("can be read by others; run chmod 600 on it".into());
        }
        if metadata.nlink() > 1 {
            return Err("has a second name (a hard link); copy it to a file of its own".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::Endpoint;

    struct Home(tempfile::TempDir);

    impl Home {
        fn new(config: &str) -> Self {
            let home = tempfile::tempdir().unwrap();
            fs::create_dir(home.path().join(".openclaw")).unwrap();
            fs::write(home.path().join(".openclaw/openclaw.json"), config).unwrap();
            Self(home)
        }

        fn plugin(config: &str, rest: &str) -> Self {
            Self::new(&format!(
                "{{ plugins: {{ entries: {{ 'openclaw-b2-backup': {{ config: {config} }} }} }}, {rest} }}"
            ))
        }

        fn request(&self, env: &[(&str, &str)]) -> Resolve {
            let mut variables: Environment = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            variables.insert("HOME".into(), self.0.path().to_str().unwrap().into());
            Resolve { env: variables, ..Resolve::default() }
        }

        fn resolve(&self, env: &[(&str, &str)]) -> Target {
            resolve(&self.request(env)).unwrap()
        }

        fn problem(&self, env: &[(&str, &str)]) -> String {
            let error = resolve(&self.request(env)).unwrap_err();
            assert_eq!(error.code(), Code::Config);
            error.to_string()
        }

        fn secret_file(&self, text: &str) -> PathBuf {
            let path = self.0.path().join("secrets");
            fs::write(&path, text).unwrap();
            #[cfg(unix)]
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            path
        }
    }

    const B2: [(&str, &str); 3] =
        [("B2_APPLICATION_KEY_ID", "id-env"), ("B2_APPLICATION_KEY", "key-env"), ("B2_BUCKET_NAME", "bucket-env")];

    fn key(target: &Target) -> &str {
        target.application_key.as_ref().unwrap().expose()
    }

    #[test]
    fn an_empty_machine_is_configured_by_the_environment_alone() {
        let home = tempfile::tempdir().unwrap();
        let mut env: Environment = B2.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        env.insert("HOME".into(), home.path().to_str().unwrap().into());
        env.insert("B2_REGION".into(), "eu-central-003".into());
        env.insert("B2_ENDPOINT".into(), "https://s3.example.org".into());
        let target = resolve(&Resolve { env, ..Resolve::default() }).unwrap();
        assert_eq!(target.state_dir, home.path().join(".openclaw"));
        assert_eq!((target.key_id.as_deref(), key(&target)), (Some("id-env"), "key-env"));
        assert_eq!(target.bucket.as_deref(), Some("bucket-env"));
        assert_eq!(target.endpoint, Endpoint::S3("https://s3.example.org".into()));
    }

    #[test]
    fn a_new_machine_takes_what_opens_the_repository_from_the_environment() {
        let home = Home::plugin("{}", "");
        let code = "0123P-89AB5-GHJKJ-RSTV1-23456-AAAAZ-ZZZZY";
        let mut env = B2.to_vec();
        env.extend([
            ("OPENCLAW_B2_PASSPHRASE", "to the last space "),
            ("OPENCLAW_B2_KEY_FILE", "/media/key"),
            ("OPENCLAW_B2_RECOVERY_CODE", " 0123P 89AB5 GHJKJ RSTV1 23456 AAAAZ ZZZZY\n"),
        ]);
        let target = home.resolve(&env);
        assert_eq!(target.passphrase.unwrap().expose(), "to the last space ");
        assert_eq!(target.key_file.unwrap(), Path::new("/media/key"));
        assert_eq!(target.recovery_code.unwrap().expose().replace(' ', "-"), code);
        env.last_mut().unwrap().1 = "0123P-89AB5";
        let problem = home.problem(&env);
        assert!(
            problem.starts_with("recoveryCode: has 10 letters and digits") && !problem.contains("89AB"),
            "{problem}"
        );
        let alone = Home::plugin(
            "{ endpoint: 'file:///b', recoveryCode: { source: 'env', provider: 'default', id: 'CODE' } }",
            "",
        );
        assert!(alone.resolve(&[("CODE", code)]).recovery_code.is_some());
    }

    #[test]
    fn the_configuration_wins_over_the_environment() {
        let home = Home::plugin("{ keyId: 'id', applicationKey: '${KEY}', keepSnapshots: 3 }", "");
        let target = home.resolve(&[B2[0], B2[1], B2[2], ("KEY", "key")]);
        assert_eq!((target.key_id.as_deref(), key(&target), target.keep_snapshots), (Some("id"), "key", 3));
        assert_eq!(target.bucket.as_deref(), Some("bucket-env"));
    }

    /// Its README's example, and every field that it had; they mean the same.
    #[test]
    fn an_openclaw_json_of_0_1_x_works_unchanged() {
        let three = "{ \"keyId\": \"004a\", \"applicationKey\": \"K004\", \"bucket\": \"my-openclaw-backups\" }";
        let target = Home::plugin(three, "").resolve(&[]);
        assert_eq!((target.key_id.as_deref(), key(&target)), (Some("004a"), "K004"));
        assert_eq!((target.endpoint, target.region), (Endpoint::BackblazeB2, None));
        let defaults = (target.prefix.as_str(), target.schedule.as_str(), target.encrypt, target.keep_snapshots);
        assert_eq!(defaults, ("openclaw-backup", "daily", true, 10));

        let all =
            "{ keyId: 'id', applicationKey: 'key', bucket: 'a-bucket', region: 'us-west-004', prefix: 'my/prefix',
            schedule: '0 */6 * * *', encrypt: false, keepSnapshots: 3 }";
        let target = Home::plugin(all, "").resolve(&B2);
        assert_eq!((target.bucket.as_deref(), target.region.as_deref()), (Some("a-bucket"), Some("us-west-004")));
        let given = (target.prefix.as_str(), target.schedule.as_str(), target.encrypt, target.keep_snapshots);
        assert_eq!(given, ("my/prefix", "0 */6 * * *", false, 3));
        for schedule in ["daily", "weekly", "30 2 * * 1-5"] {
            let home = Home::plugin(&format!("{{ schedule: '{schedule}' }}"), "");
            assert_eq!(home.resolve(&B2).schedule, schedule);
        }
    }

    #[test]
    fn paths_come_from_options_then_from_the_environment() {
        let home = Home::plugin("{}", "");
        let other = Home::plugin("{ prefix: 'other' }", "");
        let other_dir = other.0.path().join(".openclaw");
        let mut env = B2.to_vec();
        env.push(("OPENCLAW_STATE_DIR", other_dir.to_str().unwrap()));
        let target = home.resolve(&env);
        assert_eq!((target.prefix.as_str(), &target.state_dir), ("other", &other_dir));
        let mut request = home.request(&env);
        request.state_dir = Some(home.0.path().join("elsewhere"));
        assert_eq!(resolve(&request).unwrap().prefix, "openclaw-backup");
        request.config_path = Some(other_dir.join("openclaw.json"));
        let target = resolve(&request).unwrap();
        assert_eq!((target.prefix.as_str(), target.state_dir), ("other", home.0.path().join("elsewhere")));
        request.config_path = Some("~/nothing.json".into());
        let error = resolve(&request).unwrap_err();
        assert!(error.to_string().contains("nothing.json does not exist"), "{error}");
    }

    #[test]
    fn a_dotenv_file_in_the_state_directory_is_below_the_environment() {
        let home = Home::plugin("{ keyId: '${A}', applicationKey: '$B', bucket: 'my-bucket' }", "");
        fs::write(home.0.path().join(".openclaw/.env"), "A=file-a\nB=file-b\n").unwrap();
        let target = home.resolve(&[("A", "process-a")]);
        assert_eq!((target.key_id.as_deref(), key(&target)), (Some("process-a"), "file-b"));
    }

    #[test]
    fn secret_references_are_resolved_from_the_environment_and_from_files() {
        let config = "{ keyId: { source: 'env', provider: 'default', id: 'ID' }, bucket: 'my-bucket',
            applicationKey: { source: 'file', provider: 'mine', id: '/b2/key~1x' },
            passphrase: { source: 'file', provider: 'one', id: 'value' } }";
        let home = Home::plugin(
            config,
            "secrets: { providers: { mine: { source: 'file', path: '~/secrets' },
                one: { source: 'file', path: '~/one', mode: 'singleValue' } } }",
        );
        fs::rename(home.secret_file("pass phrase\r\n"), home.0.path().join("one")).unwrap();
        home.secret_file("{ \"b2\": { \"key/x\": \"from-file\" } }");
        let target = home.resolve(&[("ID", "from-env")]);
        assert_eq!((target.key_id.as_deref(), key(&target)), (Some("from-env"), "from-file"));
        assert_eq!(target.passphrase.unwrap().expose(), "pass phrase");
    }

    #[test]
    fn a_secret_reference_that_cannot_be_resolved_is_an_error_that_names_the_field() {
        let cases = [
            ("{ source: 'exec', provider: 'vault', id: 'x' }", "source \"exec\" needs OpenClaw"),
            ("{ source: 'store', provider: 'default', id: 'X' }", "source \"store\" needs OpenClaw"),
            ("{ source: 'env', provider: 'default', id: 'UNSET' }", "variable UNSET is not set"),
            ("{ source: 'env', provider: 'default', id: 'lower' }", "\"lower\" is not the name"),
            ("{ source: 'env', provider: 'other', id: 'SET' }", "no secret provider \"other\""),
            ("{ source: 'env', provider: 'narrow', id: 'SET' }", "does not allow SET"),
            ("{ source: 'file', provider: 'default', id: '/x' }", "no secret provider \"default\""),
            ("{ source: 'file', provider: 'files', id: '/x' }", "does not exist"),
            ("{ source: 'env' }", "has no \"id\""),
            ("{ source: 'env', id: 'SET', more: 1 }", "\"more\" is no part"),
            ("{ source: 'magic', id: 'SET' }", "\"magic\" is not a source"),
            ("'$UNSET'", "variable UNSET is not set"),
        ];
        for (reference, expected) in cases {
            let home = Home::plugin(
                &format!("{{ keyId: 'x', bucket: 'my-bucket', applicationKey: {reference} }}"),
                "secrets: { providers: { narrow: { source: 'env', allowlist: ['OTHER'] },
                    files: { source: 'file', path: '~/none' } } }",
            );
            let problem = home.problem(&[("SET", "x")]);
            assert!(problem.starts_with("applicationKey: ") && problem.contains(expected), "{reference}: {problem}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_file_of_secrets_that_others_can_read_is_refused() {
        let home = Home::plugin(
            "{ keyId: 'x', bucket: 'my-bucket', applicationKey: { source: 'file', provider: 'files', id: 'value' } }",
            "secrets: { providers: { files: { source: 'file', path: '~/secrets', mode: 'singleValue' } } }",
        );
        let path = home.secret_file("hunter2");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        assert!(home.problem(&[]).contains("can be read by others"));
        fs::rename(&path, home.0.path().join("real")).unwrap();
        std::os::unix::fs::symlink(home.0.path().join("real"), &path).unwrap();
        assert!(home.problem(&[]).contains("not a regular file"));
    }

    #[test]
    fn a_file_without_the_expected_objects_is_refused_by_name() {
        assert!(Home::new("[]").problem(&[]).starts_with("openclaw.json: expected an object"));
        assert!(Home::new("{ plugins: 1 }").problem(&[]).starts_with("plugins: expected an object"));
        assert!(Home::plugin("true", "").problem(&[]).starts_with("plugins.entries.openclaw-b2-backup.config: "));
        assert!(Home::new("{}").problem(&[]).starts_with("keyId: missing"));
    }
}
