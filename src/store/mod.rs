//! Where a repository's bytes go: an S3 bucket or a local directory.
//!
//! A store keeps immutable, uniquely named objects. Nothing here knows what the bytes mean. Keys are relative to the
//! repository's root (the configured `prefix`), use `/` between segments, and are made by this crate only.
//!
//! [`open`] is the way in: it puts a local directory or a bucket behind [`Store`], repeats what may pass when tried
//! again, and counts what goes over the wire.

mod b2;
mod http;
mod local;
mod retry;
mod s3;
mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::{Endpoint, PlainHttp, Secret, Target, service_url};
use crate::error::{Code, Error, Result};

pub use traffic::{StoreStats, Traffic};

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

/// A part of a listing, and where it goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Some of the objects, in the order the store gives them.
    pub objects: Vec<ObjectMeta>,
    /// What to pass to get the next part; `None` when this is the last.
    pub next: Option<String>,
}

/// What becomes of what [`Store::delete`] deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Its bytes are gone.
    ForGood,
    /// It is hidden: the credentials may do no more. A lifecycle rule of the bucket deletes it so many days later.
    ByLifecycle {
        /// Days from hiding to deleting.
        days: u32,
    },
    /// Nothing is deleted: the credentials may not, and no lifecycle rule would follow.
    Denied,
    /// As `ForGood`, if the credentials may; the service tells only when it is tried.
    Untried,
}

/// What the rules of the bucket do by themselves to what is stored. Days count from the upload, or from the hiding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifecycle {
    /// After how many days some of the repository's objects are hidden or deleted, needed or not.
    pub expires_after: Option<u32>,
    /// After how many days every hidden object of the repository is deleted.
    pub deletes_hidden_after: Option<u32>,
}

impl Lifecycle {
    /// Adds a rule for the objects whose names start with `rule`; `folder` is where the repository is.
    fn add(&mut self, folder: &str, rule: &str, expires_after: Option<u32>, deletes_hidden_after: Option<u32>) {
        let sooner = |known: Option<u32>, days: Option<u32>| known.into_iter().chain(days).min();
        let covers_all = folder.starts_with(rule);
        if covers_all || rule.starts_with(folder) {
            self.expires_after = sooner(self.expires_after, expires_after);
        }
        if covers_all {
            self.deletes_hidden_after = sooner(self.deletes_hidden_after, deletes_hidden_after);
        }
    }
}

/// What a bucket keeps of the repository besides what a listing shows: older versions, and those of deleted objects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hidden {
    /// How many versions these are.
    pub versions: u64,
    /// Their bytes, which are billed.
    pub bytes: u64,
    /// Keys of the objects that were deleted without their versions, ordered.
    pub deleted: std::collections::BTreeSet<String>,
}

/// Bytes that a store without a stream of its own reads at once.
const PIECE: u64 = 256 << 10;
/// Pieces that may wait to be taken.
const WAITING_PIECES: usize = 1;

fn ends_before_range(key: &str, offset: u64, length: u64) -> Error {
    Error::corrupt(key, format!("it ends before the {length} bytes at {offset} do"))
}

/// Where [`Store::stream_range`] puts what arrives. It waits while too much of it has not been taken.
#[derive(Debug)]
pub struct Pieces {
    taker: mpsc::Sender<Bytes>,
    sent: AtomicU64,
}

impl Pieces {
    /// An empty stream, and the end at which its pieces are taken.
    #[must_use]
    pub fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (taker, pieces) = mpsc::channel(WAITING_PIECES);
        (Self { taker, sent: AtomicU64::new(0) }, pieces)
    }

    /// Hands on what has arrived.
    ///
    /// # Errors
    /// `CANCELLED` when nobody takes it.
    pub async fn send(&self, piece: Bytes) -> Result<()> {
        let length = piece.len() as u64;
        self.taker.send(piece).await.map_err(|_| Error::cancelled())?;
        self.sent.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes handed on so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
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

    /// One part of [`Store::list`], so that a long listing is repeated part by part and not from its start. `page` is
    /// [`Page::next`] of the part before. A store without parts gives everything at once.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn list_page(&self, prefix: &str, page: Option<&str>) -> Result<Page> {
        debug_assert!(page.is_none(), "a store without parts never names a next one");
        Ok(Page { objects: self.list(prefix).await?.objects, next: None })
    }

    /// The whole object.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is no such object, a retryable `NETWORK` when fewer bytes arrive than announced, and those
    /// of [`Store::list`].
    async fn get(&self, key: &str) -> Result<Bytes>;

    /// `length` bytes of the object from `offset` on. No bytes are no request.
    ///
    /// # Errors
    /// Those of [`Store::get`]; `CORRUPT` when the object ends before the range does.
    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes>;

    /// [`Store::get_range`] for more bytes than should be in memory at once: hands them to `pieces` in order, as they
    /// arrive. After an error the pieces so far are good, and what [`Pieces::sent`] lacks can be asked for.
    ///
    /// # Errors
    /// Those of [`Store::get_range`]; `CANCELLED` when nobody takes the pieces any more.
    async fn stream_range(&self, key: &str, offset: u64, length: u64, pieces: &Pieces) -> Result<()> {
        let mut done = 0;
        while done < length {
            let step = PIECE.min(length - done);
            pieces.send(self.get_range(key, offset + done, step).await?).await?;
            done += step;
        }
        Ok(())
    }

    /// Stores an object, durably and completely or not at all. Keys are never reused for other bytes, so that writing
    /// one twice is harmless.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn put(&self, key: &str, body: Bytes) -> Result<()>;

    /// Removes an object, in the way that [`Store::deletion`] tells. Removing what is not there succeeds.
    ///
    /// # Errors
    /// Those of [`Store::list`]; `AUTH` when the credentials may not delete, or the object is locked.
    async fn delete(&self, key: &str) -> Result<()>;

    /// Checks, as far as the service can tell, that the credentials and the bucket are fit for backups.
    ///
    /// # Errors
    /// `AUTH` naming every capability that is missing; `CONFIG` when the bucket's own rules would take backups apart, or
    /// it has no Object Lock where one is configured; those of [`Store::list`].
    async fn check_access(&self) -> Result<()> {
        Ok(())
    }

    /// How [`Store::delete`] works here.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn deletion(&self) -> Result<Deletion> {
        Ok(Deletion::ForGood)
    }

    /// What the bucket's own rules do; `None` where there are none to ask for, or the credentials may not ask.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn lifecycle(&self) -> Result<Option<Lifecycle>> {
        Ok(None)
    }

    /// What is kept besides what a listing shows; `None` where the service cannot tell.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn hidden(&self) -> Result<Option<Hidden>> {
        Ok(Some(Hidden::default()))
    }

    /// Until when the store refuses to delete an object; `None` when it may go.
    ///
    /// # Errors
    /// Those of [`Store::list`].
    async fn locked_until(&self, _key: &str) -> Result<Option<SystemTime>> {
        Ok(None)
    }

    /// Locks an object from now on for as long as a new one; without a configured lock nothing.
    ///
    /// # Errors
    /// Those of [`Store::list`], `NOT_FOUND`.
    async fn renew_lock(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    /// The store's clock, as far as it is known: the last answer's date moved on by the time since. Machines whose
    /// own clocks differ agree by it.
    fn now(&self) -> SystemTime;

    /// Where this is, for people: scheme, host, bucket and prefix, or a directory. Never a secret.
    fn location(&self) -> String;
}

/// A store that any part of the program may hold.
pub type SharedStore = Arc<dyn Store>;

/// An opened store and what it has done so far.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The store; calls are repeated where that may help, and end with `CANCELLED` soon after the caller cancels.
    pub store: SharedStore,
    /// Requests and bytes since it was opened.
    pub traffic: Arc<Traffic>,
}

/// Opens the store that `target` names. Except for B2 without a `region`, nothing is asked of the server yet.
///
/// # Errors
/// `CONFIG` when a field is missing or wrong, for a bucket key that does not fit `bucket` or `prefix`, and for an endpoint
/// that would send credentials in clear; `AUTH` and `NETWORK` from B2's authorize call; `IO`; `CANCELLED`.
pub async fn open(target: &Target, cancel: &CancellationToken) -> Result<Opened> {
    let traffic = Arc::new(Traffic::default());
    let repeat = retry::Repeat::new(&target.timeouts, cancel.clone(), Arc::clone(&traffic));
    let store: SharedStore = if let Endpoint::Directory(root) = &target.endpoint {
        let directory = local::LocalDirectory::open(root.clone(), Arc::clone(&traffic)).await?;
        Arc::new(retry::Retrying::new(Arc::new(directory), repeat))
    } else {
        let bucket = Bucket::of(target)?;
        let http = http::ProgressClient::new(&target.timeouts, Arc::clone(&traffic));
        let mut account = None;
        let place = if let Endpoint::S3(url) = &target.endpoint {
            s3::Place {
                endpoint: service_url("endpoint", url, PlainHttp::to_endpoint(target.allow_insecure_endpoint))?,
                region: target.region.clone().unwrap_or_else(|| "us-east-1".into()),
                addressing: target.addressing,
            }
        } else {
            let asked = account.insert(b2::Account::new(&http, target, &bucket));
            match &target.region {
                Some(region) => b2::place_in(region)?,
                None => repeat.run(|| asked.place()).await?,
            }
        };
        Arc::new(retry::Retrying::new(
            Arc::new(s3::S3Store::new(place, bucket, account, target.object_lock, &http)),
            repeat,
        ))
    };
    Ok(Opened { store, traffic })
}

/// Puts the repetitions of [`open`] around a store that a test made.
pub(crate) fn stand_in(target: &Target, store: &SharedStore, cancel: &CancellationToken) -> Opened {
    let traffic = Arc::new(Traffic::default());
    let repeat = retry::Repeat::new(&target.timeouts, cancel.clone(), Arc::clone(&traffic));
    Opened { store: Arc::new(retry::Retrying::new(Arc::clone(store), repeat)), traffic }
}

/// The folder of a bucket that a repository lives in, and the key that opens it.
#[derive(Debug, Clone)]
struct Bucket {
    key_id: String,
    application_key: Secret,
    name: String,
    /// Without slashes at its ends; may be empty.
    prefix: String,
}

impl Bucket {
    fn of(target: &Target) -> Result<Self> {
        let missing = |field| Error::config(field, "is required, except for a file:// endpoint");
        Ok(Self {
            key_id: target.key_id.clone().ok_or_else(|| missing("keyId"))?,
            application_key: target.application_key.clone().ok_or_else(|| missing("applicationKey"))?,
            name: target.bucket.clone().ok_or_else(|| missing("bucket"))?,
            prefix: target.prefix.trim_matches('/').to_owned(),
        })
    }

    /// The name in the bucket of the object that the repository calls `key`.
    fn name_of(&self, key: &str) -> String {
        if self.prefix.is_empty() { key.to_owned() } else { format!("{}/{key}", self.prefix) }
    }

    /// What the repository calls the object of this name; `None` for an object outside the repository.
    fn key_of<'name>(&self, name: &'name str) -> Option<&'name str> {
        let key = if self.prefix.is_empty() { name } else { name.strip_prefix(&self.prefix)?.strip_prefix('/')? };
        (!key.is_empty()).then_some(key)
    }
}

/// The most that a listing may give, so that one without end does not fill the memory: a thousand times what a large state takes.
const MOST_LISTED: usize = 5_000_000;
/// The most pages of it.
const MOST_PAGES: usize = 100_000;

/// Joins the pages of a listing.
async fn all_pages<S: Store + ?Sized>(store: &S, prefix: &str) -> Result<Listing> {
    let mut objects = Vec::new();
    let mut page: Option<String> = None;
    for number in 0.. {
        let Page { objects: mut some, next } = store.list_page(prefix, page.as_deref()).await?;
        objects.append(&mut some);
        if next.is_none() {
            break;
        }
        let endless = if next == page {
            Some("repeats one page of its listing without end")
        } else if number >= MOST_PAGES || objects.len() > MOST_LISTED {
            Some("gives a listing without end")
        } else {
            None
        };
        if let Some(endless) = endless {
            return Err(Error::new(Code::Network, format!("the storage service {endless}")).advise("check endpoint"));
        }
        page = next;
    }
    objects.sort_unstable_by(|a: &ObjectMeta, b| a.key.cmp(&b.key));
    objects.dedup_by(|later, first| later.key == first.key);
    Ok(Listing { objects })
}
