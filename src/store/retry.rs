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
use super::{Deletion, Hidden, Lifecycle, Listing, Page, Pieces, Store, all_pages};
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
pub(super) struct Retrying<S: ?Sized> {
    inner: Arc<S>,
    repeat: Repeat,
}

impl<S: Store + ?Sized> Retrying<S> {
    pub(super) fn new(inner: Arc<S>, repeat: Repeat) -> Self {
        Self { inner, repeat }
    }
}

#[async_trait]
impl<S: Store + ?Sized> Store for Retrying<S> {
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

    async fn stream_range(&self, key: &str, offset: u64, length: u64, pieces: &Pieces) -> Result<()> {
        // It goes on where it broke off: what has been handed on cannot be taken back.
        let before = pieces.sent();
        let rest = || {
            let done = pieces.sent() - before;
            self.inner.stream_range(key, offset + done, length - done, pieces)
        };
        self.repeat.run(rest).await
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        self.repeat.run(|| self.inner.put(key, body.clone())).await
    }

    async fn delete(&self, key: &str) -> Result<()> {
        self.repeat.run(|| self.inner.delete(key)).await
    }

    async fn check_access(&self) -> Result<()> {
        self.repeat.run(|| self.inner.check_access()).await
    }

    async fn deletion(&self) -> Result<Deletion> {
        self.repeat.run(|| self.inner.deletion()).await
    }

    async fn lifecycle(&self) -> Result<Option<Lifecycle>> {
        self.repeat.run(|| self.inner.lifecycle()).await
    }

    async fn hidden(&self) -> Result<Option<Hidden>> {
        self.repeat.run(|| self.inner.hidden()).await
    }

    async fn locked_until(&self, key: &str) -> Result<Option<SystemTime>> {
        self.repeat.run(|| self.inner.locked_until(key)).await
    }

    async fn renew_lock(&self, key: &str) -> Result<()> {
        self.repeat.run(|| self.inner.renew_lock(key)).await
    }

    fn now(&self) -> SystemTime {
        self.inner.now()
    }

    fn location(&self) -> String {
        self.inner.location()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::error::Code;

    const TIMEOUTS: Timeouts =
        Timeouts { connect: Duration::from_secs(10), stall: Duration::from_mins(1), operation: Duration::from_mins(5) };

    struct Line {
        repeat: Repeat,
        cancel: CancellationToken,
        attempts: AtomicUsize,
        started: Instant,
    }

    impl Line {
        fn new() -> Self {
            let (cancel, traffic) = (CancellationToken::new(), Arc::new(Traffic::default()));
            let repeat = Repeat::new(&TIMEOUTS, cancel.clone(), traffic);
            Self { repeat, cancel, attempts: AtomicUsize::new(0), started: Instant::now() }
        }

        /// One on which the server has answered before.
        fn answered() -> Self {
            let line = Self::new();
            line.repeat.traffic.answered();
            line
        }

        /// Runs attempts that get what `attempt` gives for their number, counted from one.
        async fn run<F: Future<Output = Result<()>>>(&self, attempt: impl Fn(usize) -> F) -> Result<()> {
            self.repeat.run(|| attempt(self.attempts.fetch_add(1, Ordering::Relaxed) + 1)).await
        }

        fn attempts(&self) -> usize {
            self.attempts.load(Ordering::Relaxed)
        }
    }

    fn busy() -> Error {
        Error::new(Code::Network, "busy").retryable()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_succeeds_after_failures_that_pass() {
        let line = Line::answered();
        line.run(async |attempt| if attempt < 5 { Err(busy()) } else { Ok(()) }).await.unwrap();
        assert_eq!(line.attempts(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_pass_is_not_repeated() {
        for code in Code::ALL {
            let line = Line::answered();
            let error = line.run(async |_| Err(Error::new(code, "no"))).await.unwrap_err();
            assert_eq!((error.code(), line.attempts()), (code, 1));
            assert_eq!(line.started.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn repeating_ends_when_the_time_for_the_operation_is_spent() {
        let line = Line::answered();
        assert_eq!(line.run(async |_| Err(busy())).await.unwrap_err().code(), Code::Network);
        assert!(line.started.elapsed() <= TIMEOUTS.operation + Duration::from_secs(1), "{:?}", line.started.elapsed());
        assert!(line.started.elapsed() + LONGEST_DELAY > TIMEOUTS.operation);
        assert!(line.attempts() > 10);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_network_the_answer_comes_in_seconds() {
        let line = Line::new();
        line.run(async |_| Err(busy())).await.unwrap_err();
        assert!(line.started.elapsed() <= UNANSWERED + Duration::from_secs(1), "{:?}", line.started.elapsed());
        assert!(line.attempts() > 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_answered_once_is_given_the_whole_time() {
        let line = Line::new();
        line.run(async |attempt| {
            if attempt == 2 {
                line.repeat.traffic.answered();
            }
            Err(busy())
        })
        .await
        .unwrap_err();
        assert!(line.started.elapsed() + LONGEST_DELAY > TIMEOUTS.operation);
    }

    /// How long one repetition is waited for when the server asks for `asked`.
    async fn waited(asked: Duration) -> Duration {
        let line = Line::answered();
        let attempt = async |attempt| if attempt == 1 { Err(busy().retry_after(Some(asked))) } else { Ok(()) };
        line.run(attempt).await.unwrap();
        line.started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_delay_that_the_server_asks_for_is_kept() {
        let asked = Duration::from_secs(40);
        let waited = waited(asked).await;
        assert!(waited >= asked && waited < asked + Duration::from_secs(1), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_delay_is_cut() {
        assert!(waited(Duration::from_hours(24)).await < LONGEST_REQUESTED + Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_moved_for_long_is_still_repeated() {
        let line = Line::answered();
        line.run(async |attempt| {
            sleep(Duration::from_secs(1_000)).await;
            if attempt < 4 { Err(busy()) } else { Ok(()) }
        })
        .await
        .unwrap();
        assert_eq!(line.attempts(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_ends_an_attempt_in_the_middle() {
        let line = Line::answered();
        let (result, ()) = tokio::join!(line.run(async |_| std::future::pending().await), async {
            sleep(Duration::from_secs(5)).await;
            line.cancel.cancel();
        });
        assert_eq!(result.unwrap_err().code(), Code::Cancelled);
        assert_eq!(line.started.elapsed(), Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn cancelling_ends_the_wait_between_attempts() {
        let line = Line::answered();
        let asked = Some(Duration::from_secs(50));
        let (result, ()) = tokio::join!(line.run(async |_| Err(busy().retry_after(asked))), async {
            sleep(Duration::from_secs(5)).await;
            line.cancel.cancel();
        });
        assert_eq!(result.unwrap_err().code(), Code::Cancelled);
        assert_eq!((line.started.elapsed(), line.attempts()), (Duration::from_secs(5), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_begun_after_cancelling() {
        let line = Line::answered();
        line.cancel.cancel();
        assert_eq!(line.run(async |_| Ok(())).await.unwrap_err().code(), Code::Cancelled);
    }

    #[test]
    fn delays_are_spread_over_their_whole_range() {
        let ceiling = Duration::from_secs(1);
        let delays: Vec<_> = (0..1_000).map(|_| random_up_to(ceiling)).collect();
        assert!(delays.iter().all(|delay| *delay <= ceiling));
        assert!(
            delays.iter().any(|delay| *delay < ceiling / 10) && delays.iter().any(|delay| *delay > ceiling * 9 / 10)
        );
    }

    /// A listing in so many pages, of which every second request fails.
    #[derive(Debug)]
    struct Pages {
        number: u32,
        asked: AtomicUsize,
    }

    impl Pages {
        fn retried(number: u32) -> Retrying<Self> {
            Retrying::new(Arc::new(Self { number, asked: AtomicUsize::new(0) }), Line::answered().repeat)
        }
    }

    #[async_trait]
    impl Store for Pages {
        async fn list(&self, _: &str) -> Result<Listing> {
            unreachable!("a listing is fetched page by page")
        }

        async fn list_page(&self, _: &str, page: Option<&str>) -> Result<Page> {
            if self.asked.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
                return Err(busy());
            }
            let number: u32 = page.map_or(0, |page| page.parse().unwrap());
            let object =
                super::super::ObjectMeta { key: format!("{number}"), size: 0, modified: SystemTime::UNIX_EPOCH };
            Ok(Page { objects: vec![object], next: (number + 1 < self.number).then(|| (number + 1).to_string()) })
        }

        async fn get(&self, _: &str) -> Result<Bytes> {
            unimplemented!()
        }

        async fn get_range(&self, _: &str, _: u64, _: u64) -> Result<Bytes> {
            unimplemented!()
        }

        async fn put(&self, _: &str, _: Bytes) -> Result<()> {
            unimplemented!()
        }

        async fn delete(&self, _: &str) -> Result<()> {
            unimplemented!()
        }

        fn now(&self) -> SystemTime {
            SystemTime::UNIX_EPOCH
        }

        fn location(&self) -> String {
            String::new()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_goes_on_at_the_page_that_failed() {
        let store = Pages::retried(3);
        let listing = store.list("").await.unwrap();
        assert_eq!(listing.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["0", "1", "2"]);
        assert_eq!(store.inner.asked.load(Ordering::Relaxed), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn a_listing_whose_pages_never_end_is_an_error() {
        let error = Pages::retried(u32::MAX).list("").await.unwrap_err();
        assert_eq!((error.code(), error.is_retryable()), (Code::Network, false), "{error}");
        assert!(error.to_string().contains("without end"), "{error}");
    }
}
