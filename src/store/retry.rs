//! Repeats what may pass when tried again, within bounds, until the caller cancels.
//!
//! Delays grow exponentially with full jitter (Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
//! 2015), so that machines that failed together do not come back together.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::traffic::Traffic;
use super::{Listing, Page, Store, all_pages};
use crate::config::Timeouts;
use crate::error::{Error, Result};

/// The first delay is below this; every further one below twice the bound before.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// No delay of our own choice is longer.
const LONGEST_DELAY: Duration = Duration::from_secs(20);
/// A server may ask for a longer delay, up to this.
const LONGEST_REQUESTED: Duration = Duration::from_mins(1);
/// As long as nothing has answered at all, somebody without a network waits for an error message.
const UNANSWERED: Duration = Duration::from_secs(10);

/// The rules for repeating, and the token that ends it.
#[derive(Debug, Clone)]
pub(super) struct Repeat {
    operation: Duration,
    stall: Duration,
    cancel: CancellationToken,
    traffic: Arc<Traffic>,
}

impl Repeat {
    pub(super) fn new(timeouts: &Timeouts, cancel: CancellationToken, traffic: Arc<Traffic>) -> Self {
        Self { operation: timeouts.operation, stall: timeouts.stall, cancel, traffic }
    }

    /// Runs `attempt` until it succeeds, fails for good, or the time for it is spent.
    ///
    /// An attempt is charged with at most `stall`: it can only have lasted longer because bytes moved, and a slow line
    /// must not lose its repetitions to one long upload.
    ///
    /// # Errors
    /// The last attempt's, or `CANCELLED`.
    pub(super) async fn run<T, F>(&self, attempt: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let mut spent = Duration::ZERO;
        let mut ceiling = FIRST_DELAY;
        loop {
            let started = Instant::now();
            let error = match self.or_cancelled(attempt()).await? {
                Ok(value) => return Ok(value),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => error,
            };
            spent += started.elapsed().min(self.stall);

            let bound = if self.traffic.was_answered() { self.operation } else { self.operation.min(UNANSWERED) };
            let left = bound.saturating_sub(spent);
            let requested = error.requested_delay().unwrap_or_default().min(LONGEST_REQUESTED);
            if left.is_zero() || requested >= left {
                return Err(error);
            }
            let delay = (requested + random_up_to(ceiling)).min(left);
            tracing::debug!(%error, ?delay, "trying again");
            self.or_cancelled(sleep(delay)).await?;
            spent += delay;
            ceiling = (ceiling * 2).min(LONGEST_DELAY);
        }
    }

    async fn or_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(Error::cancelled()),
            value = work => Ok(value),
        }
    }
}

/// Evenly distributed; without a source of randomness, all of it.
fn random_up_to(ceiling: Duration) -> Duration {
    let share = getrandom::u64().map_or(1.0, |random| random as f64 / u64::MAX as f64);
    ceiling.mul_f64(share)
}

/// A store whose calls are repeated.
#[derive(Debug)]
pub(super) struct Retrying<S> {
    inner: S,
    repeat: Repeat,
}

impl<S: Store> Retrying<S> {
    pub(super) fn new(inner: S, repeat: Repeat) -> Self {
        Self { inner, repeat }
    }
}

#[async_trait]
impl<S: Store> Store for Retrying<S> {
    async fn list(&self, prefix: &str) -> Result<Listing> {
        all_pages(self, prefix).await
    }

    async fn list_page(&self, prefix: &str, page: Option<&str>) -> Result<Page> {
        self.repeat.run(|| self.inner.list_page(prefix, page)).await
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        self.repeat.run(|| self.inner.get(key)).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        self.repeat.run(|| self.inner.get_range(key, offset, length)).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.repeat.run(|| self.inner.put(key, body.clone())).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.repeat.run(|| self.inner.delete(key)).await
    }

    fn now(&self) -> SystemTime {
        self.inner.now()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}
