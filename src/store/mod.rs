//! Where a repository's bytes go: an S3 bucket or a local directory.
//!
//! A store keeps immutable, uniquely named objects. Nothing here knows what the bytes mean. Keys are relative to the
//! repository's root (the configured `prefix`), use `/` between segments, and are made by this crate only.

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::Result;

/// One stored object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// The key below the repository's root.
    pub key: String,
    /// Stored size in bytes.
    pub size: u64,
    /// When the store finished writing the object, by the store's own clock.
    pub modified: SystemTime,
}

/// One page-complete answer to [`Store::list`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The objects, ordered by key.
    pub objects: Vec<ObjectMeta>,
}

/// A place that keeps objects.
///
/// Implementations make a single attempt per call and say by [`crate::Error::is_retryable`] whether another may help;
/// `retry::Retrying` repeats. A `put` that returned an error may still have taken effect.
#[async_trait]
pub trait Store: Send + Sync + std::fmt::Debug {
    /// Every object whose key starts with `prefix` (which may be empty), ordered by key.
    ///
    /// # Errors
    /// `AUTH`, `BUCKET_NOT_FOUND`, `NETWORK`, `IO`. A repository that does not exist yet is an empty listing.
    async fn list(&self, prefix: &str) -> Result<Listing>;

    /// The whole object.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such object, `CORRUPT` when fewer bytes arrive than announced, and those of
    /// [`Store::list`].
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// `length` bytes of the object from `offset` on.
    ///
    /// # Errors
    /// Those of [`Store::get`]; `CORRUPT` when the object ends before the range does.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// Stores an object, durably and completely or not at all. Keys are never reused for other bytes, so that writing
    /// one twice is harmless.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Removes an object. Removing what is not there succeeds.
    ///
    /// # Errors
    /// Those of [`Store::list`]; `AUTH` when the credentials may not delete.
    async fn delete(&self, key: &str) -> Result<()>;

    /// The store's clock, as far as it is known: the last answer's date moved on by the time since. Machines whose
    /// own clocks differ agree by it.
    fn now(&self) -> SystemTime;

    /// Where this is, for people: scheme, host, bucket and prefix, or a directory. Never a secret.
    fn location(&self) -> String;
}

/// A store that any part of the program may hold.
pub type SharedStore = Arc<dyn Store>;
