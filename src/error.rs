//! The one error of the crate: what failed, on which path or key, why, and what to do about it.
//!
//! Errors carry a stable [`Code`] that programs may match on; the text is for people and may change. No error carries
//! a secret: constructors take names and paths, never key material or credentials.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// The result of every fallible operation of the crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure this is. The spelling of [`Code::as_str`] is part of the product's contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The storage service refused the credentials, or they lack a capability that is needed.
    Auth,
    /// The bucket does not exist or is not visible to these credentials.
    BucketNotFound,
    /// The storage service could not be reached, or gave up answering.
    Network,
    /// None of the configured keys opens the repository.
    WrongKey,
    /// Stored bytes are damaged, were tampered with, or are missing.
    Corrupt,
    /// The named snapshot, path or object does not exist.
    NotFound,
    /// Another process works on this state directory, or has its databases open.
    Locked,
    /// The state directory changed while it was being replaced; nothing was touched.
    StateChanged,
    /// A stored name would lead outside the directory it belongs to.
    UnsafePath,
    /// The configuration or an argument is wrong.
    Config,
    /// The local file system refused an operation.
    Io,
    /// The caller cancelled the operation.
    Cancelled,
}

impl Code {
    /// Every code, for documentation and tests that must not miss one.
    pub const ALL: [Self; 12] = [
        Self::Auth,
        Self::BucketNotFound,
        Self::Network,
        Self::WrongKey,
        Self::Corrupt,
        Self::NotFound,
        Self::Locked,
        Self::StateChanged,
        Self::UnsafePath,
        Self::Config,
        Self::Io,
        Self::Cancelled,
    ];

    /// The stable spelling, for example `BUCKET_NOT_FOUND`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "AUTH",
            Self::BucketNotFound => "BUCKET_NOT_FOUND",
            Self::Network => "NETWORK",
            Self::WrongKey => "WRONG_KEY",
            Self::Corrupt => "CORRUPT",
            Self::NotFound => "NOT_FOUND",
            Self::Locked => "LOCKED",
            Self::StateChanged => "STATE_CHANGED",
            Self::UnsafePath => "UNSAFE_PATH",
            Self::Config => "CONFIG",
            Self::Io => "IO",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// What it means and what to do about it, for people, in Markdown. docs/troubleshooting.md is made of these.
    #[must_use]
    pub const fn explanation(self) -> (&'static str, &'static str) {
        match self {
            Self::Auth => (
                "The storage service refused the credentials, or the key lacks a capability that the message names.",
                "Check `keyId` and `applicationKey`; [providers.md](providers.md#the-key) says what the key must be allowed. \
                 If it names the clock, set this machine's.",
            ),
            Self::BucketNotFound => (
                "There is no such bucket, or this key may not see it.",
                "Check `bucket`, and `region` and `endpoint` where they are set. The bucket is never made by this program.",
            ),
            Self::Network => (
                "The storage service was not reached, or did not answer in time, also after repetitions.",
                "Nothing: the next run goes on where this one was cut. If it stays, check line, proxy and firewall; on a very \
                 slow line raise `timeouts`.",
            ),
            Self::WrongKey => (
                "None of the configured secrets opens the repository.",
                "Configure one that does: the old `passphrase` or `keyFile`, or `--recovery-code`. After the application key was \
                 replaced, see [Keys](security.md#keys-slots-and-recovery-codes).",
            ),
            Self::Corrupt => (
                "Something stored is damaged, was changed, or is missing. It was not used.",
                "Run `openclaw-b2-backup verify --read-data`, then `push`, which stores again what this machine still has. \
                 What is lost is named file by file; `--partial` restores the rest.",
            ),
            Self::NotFound => (
                "There is no such snapshot, no such path in it, or no such key slot. Or the newest snapshot that this machine has \
                 seen is not listed any more.",
                "`openclaw-b2-backup list` shows what there is; check `prefix`, which must be that of the machine that pushed. Where \
                 the newest snapshot is missing, see [Replay](security.md#replay-of-an-old-repository-state).",
            ),
            Self::Locked => (
                "Another command works on this state directory, or a gateway has its databases open. The message names it.",
                "Try again when it is done. For a rollback from the command line stop the gateway, or use `/b2 restore` in chat.",
            ),
            Self::StateChanged => (
                "A file changed after the safety snapshot had saved it. Nothing was touched.",
                "Try again while nothing writes to the state directory or the workspaces.",
            ),
            Self::UnsafePath => (
                "A stored name, or a link on this machine, would lead outside the directory that is written to. Nothing was written.",
                "If it is a link in the state directory, remove it. If it is in the snapshot, do not trust that snapshot.",
            ),
            Self::Config => (
                "A field of the configuration or an argument is wrong. The message names it.",
                "Correct it; [configuration.md](configuration.md) has every field.",
            ),
            Self::Io => (
                "This machine's file system refused something, and the message names the path; or a part of the installation is missing.",
                "Free space, check owner and permissions, or the disk; install again, with optional dependencies.",
            ),
            Self::Cancelled => (
                "It was interrupted, or the question was not answered with yes.",
                "Nothing: the state is as it was, and the next run goes on.",
            ),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an error is about. Each field is set only where it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Context {
    /// A path on this machine, or inside a snapshot.
    pub path: Option<String>,
    /// An object's key below the repository's prefix.
    pub key: Option<String>,
    /// A snapshot's id.
    pub snapshot: Option<String>,
}

/// A failure, with its code, its subject, its cause and an advice.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    code: Code,
    message: String,
    advice: Option<String>,
    retryable: bool,
    retry_after: Option<Duration>,
    context: Context,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of kind `code`; `message` says what failed and why, as a sentence without a final stop.
    #[must_use]
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            inner: Box::new(Inner {
                code,
                message: message.into(),
                advice: None,
                retryable: false,
                retry_after: None,
                context: Context::default(),
                source: None,
            }),
        }
    }

    /// A local I/O failure while doing `what` (for example `read`) on `path`.
    #[must_use]
    pub fn io(what: &str, path: &Path, source: io::Error) -> Self {
        let advice = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some("free some space and try again"),
            io::ErrorKind::PermissionDenied => Some("check the owner and the permissions of this path"),
            io::ErrorKind::ReadOnlyFilesystem => Some("the file system is mounted read-only"),
            _ => None,
        };
        let mut error = Self::new(Code::Io, format!("cannot {what} {}: {source}", path.display()))
            .at_path(path.display().to_string())
            .because(source);
        error.inner.advice = advice.map(Into::into);
        error
    }

    /// A configuration error in the named field.
    #[must_use]
    pub fn config(field: &str, problem: impl fmt::Display) -> Self {
        Self::new(Code::Config, format!("{field}: {problem}"))
    }

    /// Stored bytes under `key` that are not what they should be.
    #[must_use]
    pub fn corrupt(key: &str, problem: impl fmt::Display) -> Self {
        Self::new(Code::Corrupt, format!("{key} is damaged: {problem}")).at_key(key)
    }

    /// The caller's cancellation.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the operation was cancelled")
    }

    /// Adds what the user can do, as a phrase that follows the message.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.inner.advice = Some(advice.into());
        self
    }

    /// Names the path that the failure is about.
    #[must_use]
    pub fn at_path(mut self, path: impl Into<String>) -> Self {
        self.inner.context.path = Some(path.into());
        self
    }

    /// Names the object that the failure is about.
    #[must_use]
    pub fn at_key(mut self, key: impl Into<String>) -> Self {
        self.inner.context.key = Some(key.into());
        self
    }

    /// Names the snapshot that the failure is about.
    #[must_use]
    pub fn in_snapshot(mut self, id: impl Into<String>) -> Self {
        self.inner.context.snapshot = Some(id.into());
        self
    }

    /// Marks the failure as one that may pass when tried again.
    #[must_use]
    pub fn retryable(mut self) -> Self {
        self.inner.retryable = true;
        self
    }

    /// Records how long the server asked to wait before the next attempt.
    #[must_use]
    pub fn retry_after(mut self, delay: Option<Duration>) -> Self {
        self.inner.retry_after = delay;
        self
    }

    /// Keeps the cause for logs.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.inner.code
    }

    /// Whether the same call may succeed later without a change by the user.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.inner.retryable
    }

    /// How long the server asked to wait.
    #[must_use]
    pub fn requested_delay(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// What the failure is about.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.inner.context
    }
}

/// The JSON of plain data, which nothing stands in the way of.
pub(crate) fn to_json(data: &(impl serde::Serialize + ?Sized)) -> Result<Vec<u8>> {
    let failed =
        |error| Error::new(Code::Io, format!("internal error: data cannot be written as JSON: {error}")).because(error);
    serde_json::to_vec(data).map_err(failed)
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

impl From<io::Error> for Error {
    /// For readers that know no path; their callers add it.
    fn from(error: io::Error) -> Self {
        Self::new(Code::Io, error.to_string()).because(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        if let Some(advice) = &self.inner.advice {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("code", &self.inner.code)
            .field("message", &self.inner.message)
            .field("context", &self.inner.context)
            .field("retryable", &self.inner.retryable)
            .field("source", &self.inner.source)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was kept but not given: a file that vanished during a push counted as one that could not be read.
    #[test]
    fn the_cause_can_be_asked_for() {
        let error = Error::io("read", Path::new("x"), io::ErrorKind::NotFound.into());
        let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>());
        assert_eq!(source.map(io::Error::kind), Some(io::ErrorKind::NotFound));
    }
}
