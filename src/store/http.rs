//! The one HTTP client of the crate: hyper with rustls, wrapped so that time limits apply to progress and not to whole
//! objects, the server's clock is remembered, and traffic is counted. It knows nothing of S3 or B2, follows no
//! redirects and repeats nothing.

use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_smithy_async::time::TimeSource;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::tls::{self, TrustStore};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_runtime_api::http::Headers;
use aws_smithy_types::DateTime;
use aws_smithy_types::body::{Error as BodyError, SdkBody};
use aws_smithy_types::date_time::Format;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant as Moment, Sleep, sleep_until};

use super::traffic::{CallClass, Traffic};
use crate::config::{Timeouts, is_localhost};
use crate::error::{Code, Error};

/// Bytes of a request body handed to hyper at a time. hyper asks for more when these are on their way, which is what
/// makes progress visible; a whole pack at once would look like one step followed by silence.
const STEP: usize = 16 * 1024;

/// Linux lets a send buffer grow to about twice what is on its way, so that what waits in it was handed on in no less
/// than half the time that it needs.
const DRAIN: u32 = 2;
/// The silence after a body is never longer than this many times `Timeouts.stall`.
const LONGEST_DRAIN: u32 = 10;

/// A `Date` header outside 2020..2100 is not believed.
const BELIEVABLE_SECONDS: std::ops::Range<i64> = 1_577_836_800..4_102_444_800;

/// The system's resolver, and this machine for the names below `localhost`, which not every system knows: a bucket of a
/// server on this machine may be addressed as `bucket.localhost`.
#[derive(Debug, Clone)]
struct Resolver;

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let name = if is_localhost(name) { "localhost" } else { name };
            let found = tokio::net::lookup_host((name, 0)).await.map_err(ResolveDnsError::new)?;
            Ok(found.map(|address| address.ip()).collect())
        })
    }
}

/// The delay that an answer asks for: seconds, or a date by the server's clock.
pub(super) fn retry_after(headers: &Headers, now: SystemTime) -> Option<Duration> {
    let text = headers.get("retry-after")?.trim();
    text.parse().ok().map(Duration::from_secs).or_else(|| {
        let date = DateTime::from_str(text, Format::HttpDate).ok()?;
        SystemTime::try_from(date).ok()?.duration_since(now).ok()
    })
}

/// The text of an error and of its causes, each said once.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = cause.source();
    }
    text
}

/// The error for an attempt that got no answer; `what` says what it wanted.
pub(super) fn no_answer(what: &str, failure: &ConnectorError) -> Error {
    let causes = chain(failure);
    if causes.contains("certificate") {
        return Error::new(Code::Network, format!("{what}: the server's certificate is not accepted: {causes}"))
            .advise("check endpoint, this machine's clock and its CA certificates")
            .because(causes);
    }
    let error = if let Some(stalled) = find::<Stalled>(failure) {
        Error::new(Code::Network, format!("{what}: {stalled}")).advise("check the network connection")
    } else if failure.is_timeout() {
        Error::new(Code::Network, format!("{what}: no connection in time"))
            .advise("check endpoint and the network connection")
    } else {
        Error::new(Code::Network, format!("{what}: the server cannot be reached: {causes}"))
            .advise("check endpoint and the network connection")
    };
    let error = error.because(causes);
    if failure.is_user() { error } else { error.retryable() }
}

/// The error for an answer whose body broke off.
pub(super) fn broken_answer(what: &str, failure: &(dyn std::error::Error + 'static)) -> Error {
    let causes = chain(failure);
    Error::new(Code::Network, format!("{what}: the answer broke off: {causes}")).because(causes).retryable()
}

fn find<'error, E: std::error::Error + 'static>(error: &'error (dyn std::error::Error + 'static)) -> Option<&'error E> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

/// No byte moved in either direction for as long as [`Timeouts::stall`] allows.
#[derive(Debug, thiserror::Error)]
#[error("nothing was sent or received for {0:?}")]
struct Stalled(Duration);

/// The server's clock as its answers tell it. Before the first answer it is this machine's. Clones show the same time.
#[derive(Debug, Clone, Default)]
pub(super) struct ServerClock {
    last: Arc<Mutex<Option<(SystemTime, Instant)>>>,
}

impl ServerClock {
    pub(super) fn now(&self) -> SystemTime {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.and_then(|(date, seen)| date.checked_add(seen.elapsed())).unwrap_or_else(SystemTime::now)
    }

    /// Sets the clock by a `Date` header. Such a date is cut to the second: an estimate that agrees with it is kept, so
    /// that the clock does not jump to and fro with every answer.
    fn learn(&self, date: &str) {
        let Ok(date) = DateTime::from_str(date, Format::HttpDate) else { return };
        if !BELIEVABLE_SECONDS.contains(&date.secs()) {
            return;
        }
        let date = UNIX_EPOCH + Duration::from_secs(date.secs().unsigned_abs());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let agrees = last
            .and_then(|(date, seen)| date.checked_add(seen.elapsed()))
            .is_some_and(|estimate| estimate.duration_since(date).is_ok_and(|ahead| ahead < Duration::from_secs(2)));
        if !agrees {
            *last = Some((date, Instant::now()));
        }
    }
}

/// Signatures carry the server's time, so that a machine whose clock is days off can still back up.
impl TimeSource for ServerClock {
    fn now(&self) -> SystemTime {
        ServerClock::now(self)
    }
}

/// The client: one pool of connections, shared by the SDK and by the authorize call.
#[derive(Debug, Clone)]
pub(super) struct ProgressClient {
    connector: SharedHttpConnector,
    clock: ServerClock,
}

impl ProgressClient {
    pub(super) fn new(timeouts: &Timeouts, traffic: Arc<Traffic>) -> Self {
        let clock = ServerClock::default();
        let settings = HttpConnectorSettings::builder().connect_timeout(timeouts.connect).build();
        let connect = move |roots: TrustStore| {
            let context = tls::TlsContext::builder().with_trust_store(roots).build();
            Connector::builder()
                .connector_settings(settings.clone())
                .enable_tcp_nodelay(true)
                .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                .tls_context(context.expect("a trust store is a valid context"))
                .build_with_resolver(Resolver)
        };
        // The system's certificates are hundreds of files; a server on this machine needs none.
        let plain = connect(TrustStore::empty());
        let secure = LazyLock::new(Box::new(move || connect(TrustStore::default())) as Box<dyn FnOnce() -> _ + Send>);
        let connector = ProgressConnector { plain, secure, stall: timeouts.stall, traffic, clock: clock.clone() };
        Self { connector: SharedHttpConnector::new(connector), clock }
    }

    pub(super) fn clock(&self) -> &ServerClock {
        &self.clock
    }

    /// Sends one request that is not the SDK's.
    pub(super) async fn call(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        self.connector.call(request).await
    }
}

impl HttpClient for ProgressClient {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        self.connector.clone()
    }
}

#[derive(Debug)]
struct ProgressConnector {
    plain: Connector,
    secure: LazyLock<Connector, Box<dyn FnOnce() -> Connector + Send>>,
    stall: Duration,
    traffic: Arc<Traffic>,
    clock: ServerClock,
}

impl HttpConnector for ProgressConnector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        self.traffic.call(CallClass::of(request.method(), request.uri()));
        let progress = Arc::new(Progress::begin());
        let body = request.take_body();
        *request.body_mut() = SdkBody::from_body_1_x(Outgoing {
            body,
            taken: Bytes::new(),
            traffic: Arc::clone(&self.traffic),
            progress: Arc::clone(&progress),
        });
        let is_secure = request.uri().starts_with("https:");
        let answer = if is_secure { self.secure.call(request) } else { self.plain.call(request) };
        let (stall, traffic, clock) = (self.stall, Arc::clone(&self.traffic), self.clock.clone());
        HttpConnectorFuture::new(async move {
            let response = tokio::select! {
                biased;
                response = answer => response?,
                () = progress.stalled(stall) => return Err(ConnectorError::timeout(Stalled(stall).into())),
            };
            traffic.answered();
            if let Some(date) = response.headers().get("date") {
                clock.learn(date);
            }
            Ok(response.map(|body| {
                let traffic = Arc::clone(&traffic);
                SdkBody::from_body_1_x(Incoming { body, stall, silence: None, traffic })
            }))
        })
    }
}

/// How a request gets on.
#[derive(Debug)]
struct Progress(Mutex<Moves>);

#[derive(Debug, Clone, Copy)]
struct Moves {
    began: Moment,
    last: Moment,
    /// The whole body has been handed on.
    complete: bool,
}

impl Progress {
    fn begin() -> Self {
        let now = Moment::now();
        Self(Mutex::new(Moves { began: now, last: now, complete: false }))
    }

    fn mark(&self, complete: bool) {
        let mut moves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        moves.last = Moment::now();
        moves.complete = complete;
    }

    /// Ends once nothing has moved for `stall`. The last megabytes that were handed on may still wait in the kernel on
    /// a slow line: after the end of a body the silence may be [`DRAIN`] times as long as the sending was.
    async fn stalled(&self, stall: Duration) {
        loop {
            let Moves { began, last, complete } = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let drain = if complete { ((last - began) * DRAIN).min(stall * LONGEST_DRAIN) } else { Duration::ZERO };
            let until = last + stall.max(drain);
            if Moment::now() >= until {
                return;
            }
            sleep_until(until).await;
        }
    }
}

/// What a body gives next; `None` is its end.
type NextFrame = Option<Result<Frame<Bytes>, BodyError>>;

/// A request body in steps.
struct Outgoing {
    body: SdkBody,
    /// What has been taken from `body` and not been sent.
    taken: Bytes,
    traffic: Arc<Traffic>,
    progress: Arc<Progress>,
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame> {
        if self.taken.is_empty() {
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => self.taken = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                other => return other,
            }
        }
        let length = self.taken.len().min(STEP);
        let step = self.taken.split_to(length);
        self.progress.mark(self.is_end_stream());
        self.traffic.sent(step.len());
        Poll::Ready(Some(Ok(Frame::data(step))))
    }

    fn is_end_stream(&self) -> bool {
        self.taken.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let taken = self.taken.len() as u64;
        let rest = self.body.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + taken);
        }
        hint.set_lower(rest.lower() + taken);
        hint
    }
}

/// A response body that fails when the server falls silent. Time during which nobody asks for more does not count.
struct Incoming {
    body: SdkBody,
    stall: Duration,
    silence: Option<Pin<Box<Sleep>>>,
    traffic: Arc<Traffic>,
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<NextFrame> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.silence = None;
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                self.traffic.received(data.len());
            }
            return Poll::Ready(frame);
        }
        let stall = self.stall;
        let silence = self.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep(stall)));
        match silence.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Stalled(stall).into()))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_follows_the_server_and_does_not_jump_within_a_second() {
        let clock = ServerClock::default();
        let local = SystemTime::now();
        assert!(clock.now().duration_since(local).unwrap() < Duration::from_hours(1));

        clock.learn("Sun, 06 Nov 2044 08:49:37 GMT");
        let date = UNIX_EPOCH + Duration::from_secs(2_362_034_977);
        let first = clock.now();
        assert!(first >= date && first < date + Duration::from_hours(1));
        clock.learn("Sun, 06 Nov 2044 08:49:37 GMT");
        assert!(clock.now() >= first);

        clock.learn("Sun, 06 Nov 2033 08:49:37 GMT");
        assert!(clock.now() < date, "a server whose clock is set back is followed");
    }

    #[test]
    fn a_date_that_cannot_be_is_not_believed() {
        let clock = ServerClock::default();
        for date in ["", "yesterday", "Thu, 01 Jan 1970 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            clock.learn(date);
        }
        assert!(clock.last.lock().unwrap().is_none());
    }

    #[test]
    fn a_server_asks_to_wait_in_seconds_or_until_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let asked = |text: &'static str| {
            let mut headers = Headers::new();
            headers.insert("retry-after", text);
            retry_after(&headers, now)
        };
        assert_eq!(asked("3"), Some(Duration::from_secs(3)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(7)));
        assert_eq!(asked("Sun, 06 Nov 1993 08:49:37 GMT"), None);
        assert_eq!(asked("-1"), None);
        assert_eq!(asked("soon"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_moves_is_not_stalled_and_one_that_stopped_is() {
        let stall = Duration::from_mins(1);
        let progress = Progress::begin();
        let slow_upload = async {
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(59)).await;
                progress.mark(false);
            }
        };
        tokio::select! {
            () = progress.stalled(stall) => panic!("it moved"),
            () = slow_upload => {}
        }
        let stopped = Moment::now();
        progress.stalled(stall).await;
        assert_eq!(stopped.elapsed(), stall);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_a_slow_upload_is_given_time_to_arrive() {
        let stall = Duration::from_mins(1);
        let progress = Progress::begin();
        tokio::time::sleep(Duration::from_secs(50)).await;
        progress.mark(true);
        let sent = Moment::now();
        progress.stalled(stall).await;
        assert_eq!(sent.elapsed(), Duration::from_secs(100));
    }
}
