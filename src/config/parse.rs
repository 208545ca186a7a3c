//! Turns the resolved configuration into a [`Target`]. Strict: every bad value is an error that names its field.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Map, Value};
use url::Url;

use super::{Addressing, Endpoint, PLUGIN_ID, Retention, Secret, Target, Timeouts, Variables};
use crate::error::{Error, Result};
use crate::repository::recovery_code::RecoveryCode;
use crate::state::openclaw_config::reference_name;

const FIELDS: [&str; 26] = [
    "keyId",
    "applicationKey",
    "bucket",
    "region",
    "prefix",
    "schedule",
    "encrypt",
    "keepSnapshots",
    "endpoint",
    "passphrase",
    "keyFile",
    "recoveryCode",
    "retention",
    "include",
    "exclude",
    "extraPaths",
    "confirmRollback",
    "notifyOnFailure",
    "restoreDrill",
    "maxCpu",
    "timeouts",
    "addressing",
    "allowInsecureEndpoint",
    "objectLockDays",
    "authorizeUrl",
    "stateDir",
];
/// Names that other backup tools, or other versions of this one, give to a field.
const ALIASES: [(&str, &str); 9] = [
    ("applicationKeyId", "keyId"),
    ("accessKeyId", "keyId"),
    ("secretAccessKey", "applicationKey"),
    ("appKey", "applicationKey"),
    ("bucketName", "bucket"),
    ("path", "prefix"),
    ("password", "passphrase"),
    ("keep", "keepSnapshots"),
    ("encryption", "encrypt"),
];

const DEFAULT_PREFIX: &str = "openclaw-backup";
const DEFAULT_SCHEDULE: &str = "daily";
const DEFAULT_KEEP_SNAPSHOTS: u32 = 10;
const DEFAULT_AUTHORIZE_URL: &str = "https://api.backblazeb2.com/b2api/v3/b2_authorize_account";
/// S3 keys end at 1024 bytes; what follows the prefix needs its share.
const MAX_PREFIX_BYTES: usize = 512;
/// Far more than anybody writes; a bound for a list that came from a mistake.
const MAX_LIST_ITEMS: usize = 1000;
const MAX_TIMEOUT: Duration = Duration::from_hours(24);
/// Nobody can shorten a lock: a slip of the pen must not bind anybody for decades.
const MAX_OBJECT_LOCK_DAYS: u32 = 365;
/// Services that answer, or promise to answer, requests in path style no longer. The others know path style at least.
const VIRTUAL_HOST_SERVICES: [&str; 4] = [".amazonaws.com", ".amazonaws.com.cn", ".aliyuncs.com", ".myqcloud.com"];

impl Target {
    /// Checks the resolved configuration: the fields of `plugins.entries.openclaw-b2-backup.config` and `stateDir`.
    ///
    /// # Errors
    /// `CONFIG`, naming the field, what is wrong with it and what to do.
    pub fn from_json(value: &Value) -> Result<Self> {
        let Value::Object(object) = value else {
            return Err(Error::config("config", format!("expected an object with fields, found {}", kind(value))));
        };
        let fields = Fields { object, parent: "" };
        fields.only(&FIELDS)?;

        let allow_insecure_endpoint = fields.boolean("allowInsecureEndpoint", false)?;
        let endpoint = match fields.text("endpoint")? {
            Some(text) => endpoint(&text, allow_insecure_endpoint)?,
            None => Endpoint::BackblazeB2,
        };
        let needs_bucket = !matches!(endpoint, Endpoint::Directory(_));
        let encrypt = fields.boolean("encrypt", true)?;
        let key_id = fields.credential("keyId")?;
        let application_key = fields.credential("applicationKey")?.map(Secret::new);
        let bucket = fields.text("bucket")?;
        if let Some(name) = &bucket {
            check_bucket(name)?;
        }
        if needs_bucket {
            require("keyId", key_id.is_some(), "B2_APPLICATION_KEY_ID")?;
            require("applicationKey", application_key.is_some(), "B2_APPLICATION_KEY")?;
            require("bucket", bucket.is_some(), "B2_BUCKET_NAME")?;
        }
        let passphrase = fields.secret("passphrase")?;
        let key_file = fields.text("keyFile")?.map(|text| absolute("keyFile", &text)).transpose()?;
        let recovery_code = fields.secret("recoveryCode")?;
        if let Some(code) = &recovery_code {
            RecoveryCode::parse(code.expose())?;
        }
        let opens = application_key.is_some() || passphrase.is_some() || key_file.is_some() || recovery_code.is_some();
        if encrypt && !opens {
            return Err(Error::config("applicationKey", "missing, and nothing else is there to encrypt with")
                .advise("set applicationKey or passphrase, or set encrypt to false"));
        }
        let region = fields.text("region")?.map(check_region).transpose()?;
        // B2 by its own name is B2 all the same.
        let (endpoint, region) = match backblaze_region(&endpoint) {
            Some(own) if region.as_ref().is_none_or(|region| *region == own) => (Endpoint::BackblazeB2, Some(own)),
            _ => (endpoint, region),
        };

        Ok(Self {
            state_dir: fields
                .text("stateDir")?
                .ok_or_else(|| Error::config("stateDir", "missing"))
                .and_then(|text| absolute("stateDir", &text))?,
            key_id,
            application_key,
            bucket,
            region,
            addressing: addressing(&fields, &endpoint)?,
            allow_insecure_endpoint,
            object_lock: object_lock(&fields, &endpoint)?,
            endpoint,
            prefix: fields.text("prefix")?.map_or(Ok(DEFAULT_PREFIX.into()), |text| prefix(&text))?,
            encrypt,
            passphrase,
            recovery_code,
            keep_snapshots: keep_snapshots(&fields)?,
            include: fields.globs("include")?,
            exclude: fields.globs("exclude")?,
            key_file,
            schedule: fields.text("schedule")?.map_or(Ok(DEFAULT_SCHEDULE.into()), |text| schedule(&text))?,
            retention: retention(&fields)?,
            extra_paths: fields
                .list("extraPaths")?
                .iter()
                .enumerate()
                .map(|(index, text)| absolute(&format!("extraPaths[{index}]"), text))
                .collect::<Result<_>>()?,
            confirm_rollback: fields.boolean("confirmRollback", true)?,
            notify_on_failure: fields.boolean("notifyOnFailure", true)?,
            restore_drill: fields.boolean("restoreDrill", true)?,
            max_cpu: max_cpu(&fields)?,
            authorize_url: match fields.text("authorizeUrl")? {
                Some(text) => service_url("authorizeUrl", &text, PlainHttp::Loopback)?,
                None => DEFAULT_AUTHORIZE_URL.into(),
            },
            timeouts: timeouts(&fields)?,
            variables: Variables::default(),
        })
    }
}

/// The fields of one object; `parent` is the path of that object with a dot at its end.
struct Fields<'a> {
    object: &'a Map<String, Value>,
    parent: &'a str,
}

impl Fields<'_> {
    fn error(&self, field: &str, problem: impl std::fmt::Display) -> Error {
        Error::config(&format!("{}{field}", self.parent), problem)
    }

    fn wrong_type(&self, field: &str, expected: &str, value: &Value) -> Error {
        if value.is_null() {
            return self.error(field, "is null").advise(format!("remove the field, or make it {expected}"));
        }
        self.error(field, format!("expected {expected}, found {}", kind(value)))
    }

    fn only(&self, known: &[&str]) -> Result<()> {
        let Some(unknown) = self.object.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
        let shown: String = unknown.chars().filter(|c| !c.is_control()).take(40).collect();
        let error = self.error(&shown, "there is no such field");
        Err(match closest(unknown, known) {
            Some(name) => error.advise(format!("did you mean {}{name}?", self.parent)),
            None => error.advise(format!("the fields are {}", known.join(", "))),
        })
    }

    fn boolean(&self, field: &str, default: bool) -> Result<bool> {
        match self.object.get(field) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(self.wrong_type(field, "true or false", other)),
        }
    }

    fn whole(&self, field: &str) -> Result<Option<u32>> {
        let Some(value) = self.object.get(field) else { return Ok(None) };
        let Value::Number(number) = value else { return Err(self.wrong_type(field, "a whole number", value)) };
        // JSON5 and JavaScript do not tell 10 from 10.0.
        let whole = number.as_u64().or_else(|| {
            let float = number.as_f64()?;
            #[allow(clippy::cast_sign_loss)] // bounded on both sides
            (float.fract() == 0.0 && (0.0..4e9).contains(&float)).then_some(float as u64)
        });
        whole
            .and_then(|whole| u32::try_from(whole).ok())
            .map(Some)
            .ok_or_else(|| self.error(field, format!("{number} is not a whole number between 0 and {}", u32::MAX)))
    }

    /// A string that is not empty and whose `${ENV}` references are resolved.
    fn string(&self, field: &str) -> Result<Option<&str>> {
        let value = match self.object.get(field) {
            None => return Ok(None),
            Some(Value::String(text)) => text,
            Some(Value::Object(object)) if object.contains_key("source") => {
                return Err(self.error(field, "this secret reference was not resolved"));
            }
            Some(other) => return Err(self.wrong_type(field, "a string", other)),
        };
        if let Some(name) = reference_name(value)
            && value.len() == name.len() + 3
        {
            return Err(self
                .error(field, format!("the environment variable {name} is not set"))
                .advise(format!("set {name} where this program runs, or write the value itself")));
        }
        if value.is_empty() {
            return Err(self.error(field, "is empty").advise("remove the field, or give it a value"));
        }
        Ok(Some(value))
    }

    fn text(&self, field: &str) -> Result<Option<String>> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        if let Some(name) = text.match_indices("${").find_map(|(at, _)| reference_name(&text[at..])) {
            return Err(self.error(field, format!("the environment variable {name} is not set")));
        }
        if text.chars().any(char::is_control) {
            return Err(self.error(field, "holds a control character"));
        }
        if text.trim() != text {
            return Err(self.error(field, "starts or ends with a space").advise("remove it"));
        }
        Ok(Some(text.to_owned()))
    }

    /// A key or key id as a storage service issues it.
    fn credential(&self, field: &str) -> Result<Option<String>> {
        let Some(text) = self.string(field)? else { return Ok(None) };
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
            let what = if odd.is_whitespace() { "white space" } else { "a character that no key has" };
            return Err(self.error(field, format!("holds {what}")).advise("copy it again from the bucket's service"));
        }
        Ok(Some(text.to_owned()))
    }

    fn secret(&self, field: &str) -> Result<Option<Secret>> {
        Ok(self.string(field)?.map(Secret::new))
    }

    fn list(&self, field: &str) -> Result<Vec<String>> {
        let Some(value) = self.object.get(field) else { return Ok(Vec::new()) };
        let Value::Array(items) = value else { return Err(self.wrong_type(field, "an array of strings", value)) };
        if items.len() > MAX_LIST_ITEMS {
            return Err(self.error(field, format!("has more than {MAX_LIST_ITEMS} items")));
        }
        let item = |(index, item): (usize, &Value)| match item {
            Value::String(text) if text.is_empty() => Err(self.error(&format!("{field}[{index}]"), "is empty")),
            Value::String(text) if text.contains('\0') => {
                Err(self.error(&format!("{field}[{index}]"), "holds a null byte"))
            }
            Value::String(text) => Ok(text.clone()),
            other => Err(self.wrong_type(&format!("{field}[{index}]"), "a string", other)),
        };
        items.iter().enumerate().map(item).collect()
    }

    fn globs(&self, field: &str) -> Result<Vec<String>> {
        let patterns = self.list(field)?;
        for (index, pattern) in patterns.iter().enumerate() {
            globset::Glob::new(pattern).map_err(|error| {
                let problem = format!("{pattern:?} is not a glob: {}", error.kind());
                self.error(&format!("{field}[{index}]"), problem)
            })?;
        }
        Ok(patterns)
    }

    /// The fields of an object within this one.
    fn within<T>(&self, field: &str, known: &[&str], read: impl FnOnce(&Fields<'_>) -> Result<T>) -> Result<T> {
        let empty = Map::new();
        let object = match self.object.get(field) {
            None => &empty,
            Some(Value::Object(object)) => object,
            Some(other) => return Err(self.wrong_type(field, "an object", other)),
        };
        let parent = format!("{}{field}.", self.parent);
        let fields = Fields { object, parent: &parent };
        fields.only(known)?;
        read(&fields)
    }
}

/// What `value` is, without repeating it: it may be a secret in the wrong place.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn require(field: &str, present: bool, variable: &str) -> Result<()> {
    if present {
        return Ok(());
    }
    let advice = format!("set plugins.entries.{PLUGIN_ID}.config.{field} in openclaw.json, or {variable}");
    Err(Error::config(field, "missing").advise(advice))
}

fn keep_snapshots(fields: &Fields<'_>) -> Result<u32> {
    match fields.whole("keepSnapshots")? {
        None => Ok(DEFAULT_KEEP_SNAPSHOTS),
        Some(0) => Err(fields
            .error("keepSnapshots", "0 would remove every snapshot as soon as it is taken")
            .advise("set it to at least 1, or disable the plugin to take none")),
        Some(count) => Ok(count),
    }
}

fn max_cpu(fields: &Fields<'_>) -> Result<Option<NonZeroUsize>> {
    let Some(cores) = fields.whole("maxCpu")? else { return Ok(None) };
    let cores = NonZeroUsize::new(cores as usize)
        .ok_or_else(|| fields.error("maxCpu", "0 cores cannot do anything").advise("set it to at least 1"))?;
    Ok(Some(cores))
}

fn retention(fields: &Fields<'_>) -> Result<Retention> {
    fields.within("retention", &["daily", "weekly", "monthly", "maxAgeDays"], |fields| {
        let max_age_days = fields.whole("maxAgeDays")?;
        if max_age_days == Some(0) {
            return Err(fields.error("maxAgeDays", "0 would keep nothing").advise("remove the field for no limit"));
        }
        Ok(Retention {
            daily: fields.whole("daily")?.unwrap_or(0),
            weekly: fields.whole("weekly")?.unwrap_or(0),
            monthly: fields.whole("monthly")?.unwrap_or(0),
            max_age_days,
        })
    })
}

fn timeouts(fields: &Fields<'_>) -> Result<Timeouts> {
    fields.within("timeouts", &["connectMs", "stallMs", "operationMs"], |fields| {
        let duration = |field: &str, default: Duration| match fields.whole(field)? {
            None => Ok(default),
            Some(0) => Err(fields.error(field, "0 leaves no time at all").advise("give the time in milliseconds")),
            Some(ms) if Duration::from_millis(ms.into()) > MAX_TIMEOUT => {
                Err(fields.error(field, "is longer than a day").advise("give the time in milliseconds"))
            }
            Some(ms) => Ok(Duration::from_millis(ms.into())),
        };
        let default = Timeouts::default();
        Ok(Timeouts {
            connect: duration("connectMs", default.connect)?,
            stall: duration("stallMs", default.stall)?,
            operation: duration("operationMs", default.operation)?,
        })
    })
}

fn check_bucket(name: &str) -> Result<()> {
    if let Some((scheme, rest)) = name.split_once("://") {
        let bucket = rest.split('/').next().unwrap_or_default();
        return Err(Error::config("bucket", format!("{name:?} is a URL, not a name"))
            .advise(format!("remove {scheme}://; the name is {bucket:?}, a folder goes into prefix")));
    }
    if let Some(odd) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || "-._".contains(*c))) {
        return Err(Error::config("bucket", format!("{name:?} holds {odd:?}, which no bucket's name has")));
    }
    if !(3..=255).contains(&name.len()) {
        return Err(Error::config("bucket", format!("{name:?} is too short or too long for a bucket's name")));
    }
    Ok(())
}

fn check_region(region: String) -> Result<String> {
    if region.len() <= 64 && region.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c)) {
        return Ok(region);
    }
    Err(Error::config("region", format!("{region:?} is not the name of a region"))
        .advise("for example \"us-west-004\"; without the field it is asked of B2"))
}

fn prefix(text: &str) -> Result<String> {
    let problem = |problem: &str| Error::config("prefix", format!("{text:?} {problem}"));
    // "backups/" and "/backups" are the same folder to anybody who writes them.
    let trimmed = text.trim_matches('/');
    if trimmed.is_empty() {
        return Err(problem("names no folder").advise(format!("remove the field to use {DEFAULT_PREFIX:?}")));
    }
    if trimmed.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(problem("has an empty, \".\" or \"..\" part").advise("write it as \"folder/folder\""));
    }
    if trimmed.contains('\\') {
        return Err(problem("holds a backslash").advise("separate folders with /"));
    }
    if trimmed.len() > MAX_PREFIX_BYTES {
        return Err(Error::config("prefix", format!("is longer than {MAX_PREFIX_BYTES} bytes")));
    }
    Ok(trimmed.to_owned())
}

fn endpoint(text: &str, allow_insecure: bool) -> Result<Endpoint> {
    if !text.contains("://") {
        let host = text.split(['?', '#']).next().unwrap_or_default();
        let shown = host.rsplit('@').next().unwrap_or_default();
        return Err(Error::config("endpoint", format!("{shown:?} is not a URL"))
            .advise(format!("write it with its scheme, as \"https://{shown}\", or \"file:///dir\" for a directory")));
    }
    if !text.to_ascii_lowercase().starts_with("file:") {
        return service_url("endpoint", text, PlainHttp::to_endpoint(allow_insecure)).map(Endpoint::S3);
    }
    let url = Url::parse(text).map_err(|error| Error::config("endpoint", format!("{text:?}: {error}")))?;
    let directory = url
        .to_file_path()
        .ok()
        .filter(|path| path.is_absolute() && url.query().is_none() && url.fragment().is_none())
        .filter(|path| !path.to_string_lossy().contains(char::is_control) && path.parent().is_some());
    directory.map(Endpoint::Directory).ok_or_else(|| {
        Error::config("endpoint", format!("{text:?} does not name a directory"))
            .advise("write an absolute path after file://, as \"file:///srv/backup\"")
    })
}

/// Where to a URL may be plain `http://`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PlainHttp {
    /// To this machine itself.
    Loopback,
    /// To any machine, because the user says that the way there is safe.
    Anywhere,
}

impl PlainHttp {
    /// What the field `allowInsecureEndpoint` says of the endpoint.
    pub(crate) const fn to_endpoint(allow_insecure: bool) -> Self {
        if allow_insecure { Self::Anywhere } else { Self::Loopback }
    }
}

/// A base URL that credentials may be sent to, without a slash at its end.
///
/// # Errors
/// `CONFIG` naming `field`, without what in the URL may be secret.
pub(crate) fn service_url(field: &str, text: &str, plain_http: PlainHttp) -> Result<String> {
    let url = Url::parse(text).map_err(|error| Error::config(field, format!("not a URL: {error}")))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::config(field, "holds a user name or a password")
            .advise("remove them; keyId and applicationKey are the credentials"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Error::config(field, "has a query or a fragment").advise("end it before ? or #"));
    }
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => is_localhost(name),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback || plain_http == PlainHttp::Anywhere => {}
        "http" if field == "endpoint" => {
            return Err(Error::config(field, format!("{text:?} is not encrypted on its way"))
                .advise("use https://, or set allowInsecureEndpoint to true where nobody else can listen"));
        }
        "http" => {
            return Err(Error::config(field, format!("{text:?} is not encrypted on its way")).advise("use https://"));
        }
        other => {
            return Err(Error::config(field, format!("{other}:// is not a scheme that is known here"))
                .advise("use https:// for an S3 service, or file:// for a directory"));
        }
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// `localhost` and the names below it, which are this machine and nothing else (RFC 6761, section 6.3).
pub(crate) fn is_localhost(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The field, or what the service of the endpoint is known to need.
fn addressing(fields: &Fields<'_>, endpoint: &Endpoint) -> Result<Addressing> {
    let given = fields.text("addressing")?;
    let Endpoint::S3(url) = endpoint else {
        return match given {
            Some(_) => Err(fields.error("addressing", "is for an endpoint of another S3 service").advise("remove it")),
            None => Ok(Addressing::Path),
        };
    };
    match given.as_deref() {
        Some("path") => Ok(Addressing::Path),
        Some("virtual") => Ok(Addressing::VirtualHost),
        Some(other) => Err(fields.error("addressing", format!("{other:?} is neither \"path\" nor \"virtual\""))),
        None => {
            let host = Url::parse(url).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default();
            let virtual_host = VIRTUAL_HOST_SERVICES.iter().any(|service| host.ends_with(service));
            Ok(if virtual_host { Addressing::VirtualHost } else { Addressing::Path })
        }
    }
}

fn object_lock(fields: &Fields<'_>, endpoint: &Endpoint) -> Result<Option<Duration>> {
    let Some(days) = fields.whole("objectLockDays")? else { return Ok(None) };
    if matches!(endpoint, Endpoint::Directory(_)) {
        return Err(fields.error("objectLockDays", "a directory has no Object Lock").advise("remove the field"));
    }
    if !(1..=MAX_OBJECT_LOCK_DAYS).contains(&days) {
        return Err(fields
            .error("objectLockDays", format!("{days} is not between 1 and {MAX_OBJECT_LOCK_DAYS}"))
            .advise("remove the field to lock nothing"));
    }
    Ok(Some(Duration::from_hours(24 * u64::from(days))))
}

/// The region in the name of B2's S3 endpoints, `s3.<region>.backblazeb2.com`.
fn backblaze_region(endpoint: &Endpoint) -> Option<String> {
    let Endpoint::S3(url) = endpoint else { return None };
    let host = url.strip_prefix("https://")?;
    let region = host.strip_prefix("s3.")?.strip_suffix(".backblazeb2.com")?;
    (!region.is_empty() && !region.contains(['.', '/', ':'])).then(|| region.to_owned())
}

/// `text` as an absolute path; `~` at its start is the home directory.
pub(super) fn absolute(field: &str, text: &str) -> Result<PathBuf> {
    if text.contains('\0') {
        return Err(Error::config(field, "holds a null byte"));
    }
    let path = match text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\'])) {
        Some(rest) => {
            let home = std::env::home_dir().ok_or_else(|| Error::config(field, "there is no home directory for ~"))?;
            home.join(rest.trim_start_matches(['/', '\\']))
        }
        None => PathBuf::from(text),
    };
    if !path.is_absolute() {
        return Err(Error::config(field, format!("{text:?} is not an absolute path")).advise("start it with / or ~/"));
    }
    Ok(Path::new(&path).components().collect())
}

fn schedule(text: &str) -> Result<String> {
    let known = ["daily", "weekly", "@hourly", "@daily", "@weekly", "@monthly"].contains(&text);
    if known || is_interval(text) || is_cron(text) {
        return Ok(text.to_owned());
    }
    Err(Error::config("schedule", format!("{text:?} is not a schedule"))
        .advise("use \"daily\", \"weekly\", a duration such as \"6h\" or \"30m\", or a cron expression"))
}

fn is_interval(text: &str) -> bool {
    let Some((at, _)) = text.char_indices().next_back() else { return false };
    let (count, unit) = text.split_at(at);
    let digits = !count.is_empty() && count.len() <= 6 && count.bytes().all(|b| b.is_ascii_digit());
    digits && count.bytes().any(|b| b != b'0') && ["m", "h", "d"].contains(&unit)
}

/// Whether it has the form of a cron expression; the scheduler of the shim knows the ranges.
fn is_cron(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    let field = |field: &&str| {
        field.starts_with(|c: char| c.is_ascii_alphanumeric() || "*?".contains(c))
            && field.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-?#".contains(c))
    };
    (5..=6).contains(&fields.len())
        && fields.iter().all(field)
        && fields.iter().any(|field| field.starts_with(|c: char| c.is_ascii_digit() || "*?".contains(c)))
}

/// The known name that is most like `name`, if one is like it at all.
fn closest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    if let Some((_, field)) = ALIASES.iter().find(|(alias, field)| *alias == name && known.contains(field)) {
        return Some(field);
    }
    let plain =
        |text: &str| text.chars().filter(char::is_ascii_alphanumeric).take(40).collect::<String>().to_lowercase();
    let name = plain(name);
    known
        .iter()
        .map(|candidate| (distance(&name, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance * 3 <= candidate.len().max(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance between two short ASCII texts.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::Code;

    fn with(changes: &Value) -> Value {
        let mut value = json!({
            "keyId": "0040000000000000000000001", "applicationKey": "K004secret", "bucket": "my-bucket", "stateDir": "/s",
        });
        for (key, change) in changes.as_object().unwrap() {
            value[key] = change.clone();
        }
        value
    }

    fn parse(changes: &Value) -> Target {
        Target::from_json(&with(changes)).unwrap()
    }

    #[test]
    fn three_fields_are_enough() {
        let target = parse(&json!({}));
        assert_eq!(target.endpoint, Endpoint::BackblazeB2);
        assert_eq!((target.prefix.as_str(), target.schedule.as_str()), ("openclaw-backup", "daily"));
        assert_eq!((target.keep_snapshots, target.encrypt), (10, true));
        assert_eq!((target.confirm_rollback, target.notify_on_failure, target.restore_drill), (true, true, true));
        assert_eq!(target.timeouts, Timeouts::default());
        assert_eq!(target.authorize_url, "https://api.backblazeb2.com/b2api/v3/b2_authorize_account");
        assert_eq!(target.region, None);
        assert_eq!((target.object_lock, target.allow_insecure_endpoint), (None, false));
        assert_eq!(target.addressing, Addressing::Path);
    }

    #[test]
    fn every_field_is_taken_over() {
        let target = parse(&json!({
            "region": "eu-central-003", "prefix": "/a/b/", "schedule": "6h", "encrypt": false, "keepSnapshots": 3.0,
            "endpoint": "https://s3.example.org/", "passphrase": " any text ", "keyFile": "/k", "retention": { "daily": 7, "maxAgeDays": 90 },
            "include": ["media/**"], "exclude": ["*.log"], "extraPaths": ["/srv/x/"], "confirmRollback": false,
            "notifyOnFailure": false, "restoreDrill": false, "timeouts": { "stallMs": 1500 }, "authorizeUrl": "http://127.0.0.1:9000",
            "objectLockDays": 30, "addressing": "virtual", "allowInsecureEndpoint": false, "maxCpu": 3,
        }));
        assert_eq!(target.max_cpu, NonZeroUsize::new(3));
        assert_eq!(target.object_lock, Some(Duration::from_hours(720)));
        assert_eq!(target.addressing, Addressing::VirtualHost);
        assert_eq!(target.endpoint, Endpoint::S3("https://s3.example.org".into()));
        assert_eq!((target.prefix.as_str(), target.schedule.as_str()), ("a/b", "6h"));
        assert_eq!((target.keep_snapshots, target.encrypt), (3, false));
        assert_eq!(target.passphrase.unwrap().expose(), " any text ");
        assert_eq!(target.retention, Retention { daily: 7, max_age_days: Some(90), ..Retention::default() });
        assert_eq!(target.extra_paths, [PathBuf::from("/srv/x")]);
        assert_eq!(target.timeouts, Timeouts { stall: Duration::from_millis(1500), ..Timeouts::default() });
        assert_eq!((target.confirm_rollback, target.notify_on_failure, target.restore_drill), (false, false, false));
    }

    #[test]
    fn a_bad_value_is_an_error_that_names_its_field() {
        let cases = [
            (json!({ "keepSnapshots": 0 }), "keepSnapshots: 0 would remove"),
            (json!({ "keepSnapshots": -1 }), "keepSnapshots: -1 is not"),
            (json!({ "keepSnapshots": 1.5 }), "keepSnapshots: 1.5 is not"),
            (json!({ "keepSnapshots": "10" }), "keepSnapshots: expected a whole number, found a string"),
            (json!({ "encrypt": "yes" }), "encrypt: expected true or false, found a string"),
            (json!({ "encrypt": null }), "encrypt: is null"),
            (json!({ "keyId": "" }), "keyId: is empty"),
            (json!({ "keyId": 4 }), "keyId: expected a string, found a number"),
            (json!({ "applicationKey": "${B2_KEY}" }), "applicationKey: the environment variable B2_KEY is not set"),
            (json!({ "applicationKey": "K004 x" }), "applicationKey: holds white space"),
            (json!({ "applicationKey": { "source": "env", "id": "X" } }), "applicationKey: this secret reference"),
            (json!({ "bucket": "b2://my-bucket/x" }), "bucket: \"b2://my-bucket/x\" is a URL"),
            (json!({ "bucket": "my bucket" }), "bucket: \"my bucket\" holds ' '"),
            (json!({ "bucket": "x" }), "bucket: \"x\" is too short"),
            (json!({ "region": "us west" }), "region: \"us west\""),
            (json!({ "prefix": "" }), "prefix: is empty"),
            (json!({ "prefix": "///" }), "prefix: \"///\" names no folder"),
            (json!({ "prefix": "a/../b" }), "prefix: \"a/../b\" has"),
            (json!({ "prefix": "a//b" }), "prefix: \"a//b\" has"),
            (json!({ "prefix": "a\\b" }), "holds a backslash"),
            (json!({ "prefix": "a\u{7}b" }), "prefix: holds a control character"),
            (
                json!({ "endpoint": "s3.us-west-004.backblazeb2.com" }),
                "endpoint: \"s3.us-west-004.backblazeb2.com\" is not a URL; write it with its scheme",
            ),
            (json!({ "endpoint": "http://s3.example.org" }), "endpoint: \"http://s3.example.org\" is not encrypted"),
            (json!({ "endpoint": "ftp://s3.example.org" }), "endpoint: ftp://"),
            (json!({ "endpoint": "https://u:p@s3.example.org" }), "endpoint: holds a user name"),
            (json!({ "endpoint": "https://" }), "endpoint: not a URL"),
            (json!({ "endpoint": "https://s3.example.org/?a" }), "endpoint: has a query"),
            (json!({ "endpoint": "file://host/dir" }), "endpoint: \"file://host/dir\" does not name"),
            (json!({ "endpoint": "file:///" }), "endpoint: \"file:///\" does not name"),
            (json!({ "endpoint": "file:///a%00b" }), "endpoint: \"file:///a%00b\" does not name"),
            (json!({ "include": "media/**" }), "include: expected an array of strings"),
            (json!({ "include": ["ok", "a[b"] }), "include[1]: \"a[b\" is not a glob"),
            (json!({ "exclude": [""] }), "exclude[0]: is empty"),
            (json!({ "extraPaths": ["x/y"] }), "extraPaths[0]: \"x/y\" is not an absolute path"),
            (json!({ "keyFile": "key" }), "keyFile: \"key\" is not an absolute path"),
            (json!({ "stateDir": "x" }), "stateDir: \"x\" is not an absolute path"),
            (json!({ "schedule": "sometimes" }), "schedule: \"sometimes\" is not a schedule"),
            (json!({ "schedule": "0h" }), "schedule: \"0h\""),
            (json!({ "schedule": "6é" }), "schedule: \"6é\""),
            (
                json!({ "retention": { "dayly": 7 } }),
                "retention.dayly: there is no such field; did you mean retention.daily?",
            ),
            (json!({ "retention": { "maxAgeDays": 0 } }), "retention.maxAgeDays: 0 would keep nothing"),
            (json!({ "retention": 7 }), "retention: expected an object"),
            (json!({ "timeouts": { "connectMs": 0 } }), "timeouts.connectMs: 0"),
            (json!({ "timeouts": { "stallMs": 4_000_000_000_u32 } }), "timeouts.stallMs: is longer"),
            (json!({ "maxCpu": 0 }), "maxCpu: 0 cores"),
            (json!({ "maxCpu": 0.5 }), "maxCpu: 0.5 is not"),
            (json!({ "objectLockDays": 0 }), "objectLockDays: 0 is not between 1 and 365"),
            (json!({ "objectLockDays": 400 }), "objectLockDays: 400 is not between"),
            (json!({ "objectLockDays": 7, "endpoint": "file:///b" }), "objectLockDays: a directory has no Object Lock"),
            (
                json!({ "addressing": "host", "endpoint": "https://s3.example.org" }),
                "addressing: \"host\" is neither \"path\" nor \"virtual\"",
            ),
            (json!({ "addressing": "path" }), "addressing: is for an endpoint of another S3 service"),
            (json!({ "allowInsecureEndpoint": "yes" }), "allowInsecureEndpoint: expected true or false"),
            (json!({ "confirmRollback": 1 }), "confirmRollback: expected"),
            (json!({ "keepSnapshot": 1 }), "keepSnapshot: there is no such field; did you mean keepSnapshots?"),
            (json!({ "key_id": "x" }), "did you mean keyId?"),
            (json!({ "bucketName": "x" }), "did you mean bucket?"),
            (json!({ "quux": 1 }), "quux: there is no such field; the fields are keyId"),
        ];
        for (changes, expected) in cases {
            let error = Target::from_json(&with(&changes)).map(|_| changes.to_string()).unwrap_err();
            assert_eq!(error.code(), Code::Config);
            assert!(error.to_string().contains(expected), "{changes} gave: {error}");
        }
    }

    #[test]
    fn what_a_service_needs_is_asked_for_by_name() {
        for field in ["keyId", "applicationKey", "bucket"] {
            let mut value = with(&json!({}));
            value.as_object_mut().unwrap().remove(field);
            let text = Target::from_json(&value).unwrap_err().to_string();
            assert!(text.starts_with(&format!("{field}: missing; set plugins.entries.")), "{text}");
        }
    }

    #[test]
    fn a_directory_needs_no_credentials_but_something_to_encrypt_with() {
        let parse = |value: &Value| Target::from_json(value);
        let plain = json!({ "endpoint": "file:///srv/my%20backup", "stateDir": "/s", "encrypt": false });
        assert_eq!(parse(&plain).unwrap().endpoint, Endpoint::Directory("/srv/my backup".into()));
        let sealed = json!({ "endpoint": "file:///b", "stateDir": "/s", "passphrase": "x" });
        assert!(parse(&sealed).unwrap().encrypt);
        let nothing = json!({ "endpoint": "file:///b", "stateDir": "/s" });
        assert!(parse(&nothing).unwrap_err().to_string().starts_with("applicationKey: missing, and nothing else"));
    }

    #[test]
    fn the_region_follows_from_an_endpoint_of_b2() {
        let b2 = parse(&json!({ "endpoint": "https://s3.eu-central-003.backblazeb2.com/" }));
        assert_eq!((b2.region.as_deref(), b2.endpoint), (Some("eu-central-003"), Endpoint::BackblazeB2));
        let region = |url: &str| parse(&json!({ "endpoint": url })).region;
        assert_eq!(region("https://s3.example.org"), None);
        assert_eq!(region("http://localhost:9000"), None);
        assert_eq!(region("http://[::1]:9000"), None);
    }

    #[test]
    fn a_bucket_is_addressed_as_its_service_needs_it() {
        let addressing = |fields: &Value| parse(fields).addressing;
        for (url, expected) in [
            ("https://s3.eu-central-1.amazonaws.com", Addressing::VirtualHost),
            ("https://oss-cn-hangzhou.aliyuncs.com", Addressing::VirtualHost),
            ("https://cos.ap-guangzhou.myqcloud.com", Addressing::VirtualHost),
            ("https://0123456789abcdef.r2.cloudflarestorage.com", Addressing::Path),
            ("https://fra1.digitaloceanspaces.com", Addressing::Path),
            ("http://127.0.0.1:9000", Addressing::Path),
        ] {
            assert_eq!(addressing(&json!({ "endpoint": url })), expected, "{url}");
        }
        let amazon = "https://s3.eu-central-1.amazonaws.com";
        assert_eq!(addressing(&json!({ "endpoint": amazon, "addressing": "path" })), Addressing::Path);
        let minio = json!({ "endpoint": "https://minio.example.org", "addressing": "virtual" });
        assert_eq!(addressing(&minio), Addressing::VirtualHost);
    }

    #[test]
    fn plain_http_to_another_machine_has_to_be_asked_for() {
        let insecure = parse(&json!({ "endpoint": "http://nas.lan:9000", "allowInsecureEndpoint": true }));
        assert_eq!(insecure.endpoint, Endpoint::S3("http://nas.lan:9000".into()));
        let authorize = json!({ "authorizeUrl": "http://nas.lan:9000", "allowInsecureEndpoint": true });
        assert!(Target::from_json(&with(&authorize)).is_err(), "it is for the endpoint alone");
        assert!(!parse(&json!({ "endpoint": "http://bucket.localhost:9000" })).allow_insecure_endpoint);
    }

    #[test]
    fn the_documented_examples_are_configurations() {
        let examples: Vec<&str> = include_str!("../../docs/providers.md")
            .split("```json\n")
            .skip(1)
            .map(|rest| rest.split("```").next().unwrap())
            .collect();
        assert!(examples.len() >= 9, "{examples:?}");
        for example in examples {
            let mut config: Value = serde_json::from_str(example).unwrap();
            config["stateDir"] = json!("/s");
            Target::from_json(&config).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }

    /// To write a default into the configuration changes nothing.
    #[test]
    fn the_documented_defaults_are_those_of_the_program() {
        let page = include_str!("../../docs/configuration.md");
        let rows = page.lines().filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split(" | ").collect();
            Some((cells.first()?.strip_suffix('`')?, cells.get(2)?.strip_prefix('`')?.strip_suffix('`')?))
        });
        let rows: Vec<(&str, &str)> = rows.collect();
        assert!(rows.len() >= 18, "{rows:?}");
        for (field, default) in rows {
            let value = serde_json::from_str(default).unwrap_or_else(|_| json!(default));
            let fields = match field.split_once('.') {
                Some((object, field)) => json!({ object: { field: value } }),
                None => json!({ field: value }),
            };
            let debug = |fields: &Value| format!("{:?}", parse(fields));
            assert_eq!(debug(&fields), debug(&json!({})), "{field}");
        }
    }

    #[test]
    fn schedules_have_one_of_four_forms() {
        for good in ["daily", "weekly", "30m", "6h", "2d", "0 3 * * *", "*/10 0 3 * * MON-FRI", "@hourly"] {
            assert_eq!(parse(&json!({ "schedule": good })).schedule, good);
        }
    }

    #[test]
    fn no_secret_is_in_an_error_or_in_the_debug_form() {
        let target = parse(&json!({ "passphrase": "hunter2" }));
        let shown = format!("{target:?}");
        assert!(!shown.contains("K004secret") && !shown.contains("hunter2"), "{shown}");
        for value in [json!("K004 secret\n"), json!(["K004secret"]), json!({ "K004secret": 1 })] {
            let text = format!("{:?}", Target::from_json(&with(&json!({ "applicationKey": value }))).unwrap_err());
            assert!(!text.contains("secret"), "{text}");
        }
    }

    #[test]
    fn credentials_travel_encrypted_or_not_at_all() {
        let loopback = |url: &str| service_url("endpoint", url, PlainHttp::Loopback);
        for url in
            ["https://s3.us-west-004.backblazeb2.com", "http://127.0.0.1:9000", "http://localhost:1/", "http://[::1]:9"]
        {
            assert_eq!(loopback(url).unwrap(), url.trim_end_matches('/'));
        }
        for url in [
            "http://example.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://10.0.0.1:9000",
            "ftp://localhost",
            "s3.example.com",
            "https://key:secret@example.com",
            "https://example.com/?x=secret",
            "http://example.com/?x=secret",
            "https://example.com/#secret",
            "https://",
            "",
            "https://exa mple.com",
        ] {
            let error = loopback(url).unwrap_err();
            assert_eq!(error.code(), Code::Config, "{url}");
            assert!(error.to_string().starts_with("endpoint: "), "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        for url in ["key:secret@s3.example.com", "s3.example.com/?X-Amz-Signature=secret"] {
            let error = Target::from_json(&with(&json!({ "endpoint": url }))).unwrap_err().to_string();
            assert!(error.contains("https://s3.example.com") && !error.contains("secret"), "{error}");
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,12}".prop_map(Value::from),
            "(https?|file|b2)://[\\[\\]a-z0-9.:/%@?#-]{0,16}".prop_map(Value::from),
            "[~/.${}A-Z*\\[\\]]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::hash_map("\\PC{0,8}", inner, 0..6)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_json_makes_the_parser_panic(value in any_json()) {
            drop(Target::from_json(&value));
        }

        #[test]
        fn no_value_of_a_known_field_makes_the_parser_panic(
            fields in prop::collection::vec((0..FIELDS.len(), any_json()), 1..4)
        ) {
            let mut value = with(&json!({}));
            for (index, field) in fields {
                value[FIELDS[index]] = field;
            }
            if let Err(error) = Target::from_json(&value) {
                prop_assert_eq!(error.code(), Code::Config);
            }
        }
    }
}
