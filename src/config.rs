//! The configuration: what a user writes in `openclaw.json`, checked field by field.
//!
//! [`Target::from_json`] takes values that are already resolved, as the host hands them to the plugin. The command
//! line has no host: there [`Resolve`] finds the files, the secrets and the environment that the host would have used.
//! No message repeats the value of a field that may hold a secret.

mod parse;
mod resolve;

use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

pub(crate) use parse::{PlainHttp, is_localhost, service_url};
pub use resolve::{Resolve, resolve};

use crate::state::openclaw_config::{CONFIG_FILE, Environment, lay_over, load_dotenv, user_path};

/// The plugin's id, under which its configuration is found in `plugins.entries`.
pub const PLUGIN_ID: &str = "openclaw-b2-backup";

/// A credential. Shown as `<secret>` wherever it might be printed, wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps a credential.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The credential itself, for the one call that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// For secrets that a service answers with.
impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Where the repository is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Backblaze B2; the S3 endpoint follows from `region`, or from the authorize call when that is absent.
    BackblazeB2,
    /// Any S3 service at this base URL.
    S3(String),
    /// A directory on this machine (`file:///dir`).
    Directory(PathBuf),
}

/// Where in a request to an S3 service the bucket's name stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing {
    /// `https://host/bucket/key`.
    Path,
    /// `https://bucket.host/key`.
    VirtualHost,
}

/// A validated configuration together with the state directory it applies to.
#[allow(clippy::struct_excessive_bools)] // switches of the configuration, each its own field there
#[derive(Debug, Clone)]
pub struct Target {
    /// The `OpenClaw` state directory, absolute.
    pub state_dir: PathBuf,
    /// Access key id; `None` only for a directory.
    pub key_id: Option<String>,
    /// Secret access key. Its key slot encrypts the repository, also for a directory.
    pub application_key: Option<Secret>,
    /// Bucket name; `None` only for a directory.
    pub bucket: Option<String>,
    /// Region; `None` asks B2, or means `us-east-1` for another S3 service.
    pub region: Option<String>,
    /// Where the repository lives.
    pub endpoint: Endpoint,
    /// How a bucket of [`Endpoint::S3`] is addressed; B2 is always addressed path style.
    pub addressing: Addressing,
    /// Whether [`Endpoint::S3`] may be plain HTTP to another machine.
    pub allow_insecure_endpoint: bool,
    /// For how long the store is to refuse to delete what is written, by S3's Object Lock.
    pub object_lock: Option<Duration>,
    /// Folder in the bucket, without slashes at its ends.
    pub prefix: String,
    /// Whether what is stored is encrypted.
    pub encrypt: bool,
    /// A further secret that opens the repository.
    pub passphrase: Option<Secret>,
    /// The recovery code that was printed for the repository, for a machine that has no other secret.
    pub recovery_code: Option<Secret>,
    /// How many regular snapshots of this machine are kept, at least 1.
    pub keep_snapshots: u32,
    /// Globs over snapshot paths that are added to the scope although a rule leaves them out.
    pub include: Vec<String>,
    /// Globs over snapshot paths that are left out.
    pub exclude: Vec<String>,
    /// A file whose content is a further secret that opens the repository, absolute.
    pub key_file: Option<PathBuf>,
    /// When the host takes snapshots by itself: `daily`, `weekly`, a cron expression, or a duration such as `6h`.
    pub schedule: String,
    /// What is kept beyond the newest snapshots.
    pub retention: Retention,
    /// Further files and directories outside the state directory, absolute.
    pub extra_paths: Vec<PathBuf>,
    /// Whether the agent's rollbacks wait for the owner's approval.
    pub confirm_rollback: bool,
    /// Whether the owner is told of a failed backup.
    pub notify_on_failure: bool,
    /// Whether the host tries a restore once a week.
    pub restore_drill: bool,
    /// How many cores a scheduled push may keep busy; `None` is half of them.
    pub max_cpu: Option<NonZeroUsize>,
    /// Where `b2_authorize_account` is answered; tests point it at a stand-in.
    pub authorize_url: String,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// The environment that `openclaw.json` is found and read with.
    pub variables: Variables,
}

/// Environment variables. Some may be secrets: how they are shown says only how many there are.
#[derive(Clone, Default)]
pub struct Variables(pub Environment);

impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} variables>", self.0.len())
    }
}

impl Target {
    /// Where `openclaw.json` is: not always what `--config` names, which may have this product's fields alone.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        let named = self.variables.0.get("OPENCLAW_CONFIG_PATH").filter(|path| !path.trim().is_empty());
        let named = named.and_then(|path| user_path(path.trim(), &self.variables.0).ok());
        named.unwrap_or_else(|| self.state_dir.join(CONFIG_FILE))
    }

    /// The variables that `openclaw.json` is read with, below them those of the state directory's `.env`.
    #[must_use]
    pub fn environment(&self) -> Environment {
        // One that cannot be read leaves references unresolved; who needs them says so.
        lay_over(load_dotenv(&self.state_dir.join(".env")).unwrap_or_default(), &self.variables.0)
    }

    /// What tells this repository from others, for the local cache. Holds no secret.
    #[must_use]
    pub fn identity(&self) -> String {
        let Self { endpoint, region, bucket, prefix, .. } = self;
        format!("{endpoint:?} {region:?} {bucket:?} {prefix}")
    }
}

/// How many snapshots are kept beyond [`Target::keep_snapshots`], each count of the newest one per period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retention {
    /// Days that keep a snapshot.
    pub daily: u32,
    /// Weeks that keep a snapshot.
    pub weekly: u32,
    /// Months that keep a snapshot.
    pub monthly: u32,
    /// Days after which a snapshot is not kept by the counts; `None` means no limit.
    pub max_age_days: Option<u32>,
}

/// How long to wait for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection.
    pub connect: Duration,
    /// Without a single byte of progress in either direction.
    pub stall: Duration,
    /// For one store operation with all its repetitions, as long as none makes progress.
    pub operation: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), stall: Duration::from_mins(1), operation: Duration::from_mins(5) }
    }
}
