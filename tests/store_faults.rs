//! What a server may do wrong, done by a loopback server that follows a script: each fault ends in the right error code
//! or is healed by repeating, and no error shows a secret.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use openclaw_b2_backup::config::{Endpoint, Secret, Target, Timeouts};
use openclaw_b2_backup::store::{Deletion, Opened, Pieces, open};
use openclaw_b2_backup::{Code, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

const SECRET: &str = "K004VerySecretApplicationKey";
const STALL: Duration = Duration::from_secs(2);
const LISTING: &str = r#"<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><IsTruncated>false</IsTruncated><EncodingType>url</EncodingType><Contents><Key>openclaw-backup/a+b</Key><Size>1</Size><LastModified>2026-02-19T00:00:00.000Z</LastModified></Contents><Contents><Key>elsewhere/c</Key><Size>1</Size><LastModified>2026-02-19T00:00:00.000Z</LastModified></Contents></ListBucketResult>"#;

/// What the server does with one request, after reading it.
#[derive(Debug, Clone)]
enum Act {
    /// Status line, further headers, body.
    Answer(&'static str, String, Vec<u8>),
    /// The connection is reset without an answer, also when the request took effect.
    Reset,
    /// Ten bytes are announced, four come, and the connection ends.
    Cut,
    /// Ten bytes are announced, four come, and nothing more.
    StallInBody,
    /// Nothing, ever.
    Silence,
    /// The answer comes byte by byte, and takes longer than a stall may.
    Trickle(Vec<u8>),
}

fn answer(status: &'static str, headers: &str, body: impl Into<Vec<u8>>) -> Act {
    Act::Answer(status, headers.into(), body.into())
}

fn refuse(status: &'static str, headers: &str, code: &str) -> Act {
    answer(status, headers, format!("<Error><Code>{code}</Code><Message>words of the server</Message></Error>"))
}

fn ok(body: impl Into<Vec<u8>>) -> Act {
    answer("200 OK", "", body)
}

/// One request as it came over the wire.
#[derive(Debug, Clone)]
struct Seen {
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(field, value)| field.eq_ignore_ascii_case(name).then_some(value))
    }
}

/// A server that goes through its script, one act for each request, and stays at the last.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn playing(script: impl IntoIterator<Item = Act>) -> Self {
        Self::listening(TcpListener::bind("127.0.0.1:0").await.unwrap(), script.into_iter().collect())
    }

    fn listening(listener: TcpListener, script: VecDeque<Act>) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (script, noted) = (Arc::new(Mutex::new(script)), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&noted)));
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// A store that makes a single attempt per call.
    async fn once(&self) -> Opened {
        self.store(Duration::ZERO).await
    }

    /// A store that repeats.
    async fn persistently(&self) -> Opened {
        self.store(Duration::from_mins(1)).await
    }

    async fn store(&self, operation: Duration) -> Opened {
        open(&target(Endpoint::S3(self.url.clone()), operation), &CancellationToken::new()).await.unwrap()
    }
}

async fn serve(mut stream: TcpStream, script: Arc<Mutex<VecDeque<Act>>>, seen: Arc<Mutex<Vec<Seen>>>) {
    while let Some(request) = read_request(&mut stream).await {
        seen.lock().unwrap().push(request);
        let act = {
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front() } else { script.front().cloned() }
        };
        let length = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        match act.expect("a script has an act") {
            Act::Answer(status, headers, body) => {
                let length = body.len();
                let length =
                    if status.starts_with("204") { String::new() } else { format!("content-length: {length}\r\n") };
                let head = format!("HTTP/1.1 {status}\r\n{length}{headers}\r\n");
                stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
            }
            Act::Reset => {
                // Closing with a linger of zero sends RST.
                stream.set_zero_linger().unwrap();
                return;
            }
            Act::Cut => return stream.write_all((length(10) + "four").as_bytes()).await.unwrap(),
            Act::StallInBody => {
                stream.write_all((length(10) + "four").as_bytes()).await.unwrap();
                std::future::pending::<()>().await;
            }
            Act::Silence => std::future::pending().await,
            Act::Trickle(body) => {
                stream.write_all(length(body.len()).as_bytes()).await.unwrap();
                let pause = STALL * 3 / 2 / body.len() as u32;
                for byte in body {
                    tokio::time::sleep(pause).await;
                    stream.write_all(&[byte]).await.unwrap();
                }
            }
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        match stream.read_buf(&mut bytes).await {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut seen = Seen { head, body: bytes.split_off(end + 4) };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while seen.body.len() < length {
        if stream.read_buf(&mut seen.body).await.ok()? == 0 {
            return None;
        }
    }
    Some(seen)
}

fn target(endpoint: Endpoint, operation: Duration) -> Target {
    let base = serde_json::json!({ "stateDir": "/nonexistent", "endpoint": "file:///nonexistent", "encrypt": false });
    let base = Target::from_json(&base).unwrap();
    Target {
        key_id: Some("004key".into()),
        application_key: Some(Secret::new(SECRET)),
        bucket: Some("my-bucket".into()),
        endpoint,
        authorize_url: String::new(),
        timeouts: Timeouts { connect: Duration::from_secs(5), stall: STALL, operation },
        ..base
    }
}

fn expect(error: &Error, code: Code, retryable: bool, words: &[&str]) {
    assert_eq!((error.code(), error.is_retryable()), (code, retryable), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word:?} is not in: {error}");
    }
    for shown in [error.to_string(), format!("{error:?}")] {
        assert!(!shown.contains(SECRET), "{shown}");
        assert!(!shown.contains('\n'), "{shown}");
    }
}

#[tokio::test]
async fn a_request_is_plain_signed_and_in_path_style() {
    let server = Server::playing([ok("")]).await;
    let store = server.once().await.store;
    store.put("packs/00/x y", Bytes::from(vec![7; 100_000])).await.unwrap();
    let seen = &server.seen()[0];
    assert!(seen.head.starts_with("PUT /my-bucket/openclaw-backup/packs/00/x%20y"), "{}", seen.head);
    assert_eq!(seen.header("content-length"), Some("100000"));
    assert_eq!(seen.body, vec![7; 100_000]);
    assert_eq!(seen.header("x-amz-content-sha256").unwrap().len(), 64);
    assert!(seen.header("authorization").unwrap().contains("/us-east-1/s3/aws4_request"));
    for header in ["content-encoding", "transfer-encoding", "expect", "if-none-match", "x-amz-sdk-checksum-algorithm"] {
        assert_eq!(seen.header(header), None, "{header}");
    }
    assert!(!seen.head.to_lowercase().contains("x-amz-checksum"), "{}", seen.head);
    assert!(!seen.head.contains(SECRET));
}

/// S3 asks for a checksum wherever there is a lock; of all that there are, B2 knows MD5 alone.
#[tokio::test]
async fn a_lock_is_sent_with_an_md5_and_no_other_checksum() {
    let server = Server::playing([ok("")]).await;
    let target = Target {
        object_lock: Some(Duration::from_hours(24)),
        ..target(Endpoint::S3(server.url.clone()), Duration::ZERO)
    };
    let store = open(&target, &CancellationToken::new()).await.unwrap().store;
    store.put("packs/00/x", Bytes::from_static(b"hello")).await.unwrap();
    store.renew_lock("packs/00/x").await.unwrap();
    let [put, renewal] = &server.seen()[..] else { panic!("{:?}", server.seen()) };
    assert_eq!(put.header("content-md5"), Some("XUFAKrxLKna5cZ2REBfFkg=="));
    assert_eq!(put.header("x-amz-object-lock-mode"), Some("COMPLIANCE"));
    assert!(put.header("x-amz-object-lock-retain-until-date").is_some());
    assert!(renewal.head.starts_with("PUT /my-bucket/openclaw-backup/packs/00/x?retention"), "{}", renewal.head);
    assert_eq!(renewal.header("content-md5").map(str::len), Some(24));
    for seen in [put, renewal] {
        assert!(!seen.head.to_lowercase().contains("x-amz-checksum"), "{}", seen.head);
        assert!(!seen.head.to_lowercase().contains("x-amz-sdk-checksum"), "{}", seen.head);
    }
}

/// SeaweedFS has no such right of its own; Amazon and MinIO do.
#[tokio::test]
async fn a_key_that_may_not_delete_versions_is_found_out_by_trying() {
    let versions = r#"<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Version><Key>openclaw-backup/x</Key><VersionId>v1</VersionId><IsLatest>true</IsLatest><Size>1</Size></Version></ListVersionsResult>"#;
    let rules = r#"<LifecycleConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><NoncurrentVersionExpiration><NoncurrentDays>3</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>"#;
    let denied = || refuse("403 Forbidden", "", "AccessDenied");
    let no_lock = || refuse("404 Not Found", "", "ObjectLockConfigurationNotFoundError");
    let no_rules = refuse("404 Not Found", "", "NoSuchLifecycleConfiguration");

    let server =
        Server::playing([ok(versions), denied(), no_lock(), ok(rules), answer("204 No Content", "", "")]).await;
    let store = server.once().await.store;
    assert_eq!(store.deletion().await.unwrap(), Deletion::Untried);
    store.delete("x").await.unwrap();
    assert_eq!(store.deletion().await.unwrap(), Deletion::ByLifecycle { days: 3 });
    assert!(server.seen()[1].head.contains("versionId=v1") && !server.seen()[4].head.contains("versionId"));

    let server = Server::playing([ok(versions), denied(), no_lock(), no_rules]).await;
    let store = server.once().await.store;
    expect(&store.delete("x").await.unwrap_err(), Code::Auth, false, &["deleteFiles"]);
    assert_eq!(store.deletion().await.unwrap(), Deletion::Denied);
    expect(&store.delete("y").await.unwrap_err(), Code::Auth, false, &["leave it to another key"]);
    assert_eq!(server.seen().len(), 4, "and is not tried again");
}

#[tokio::test]
async fn a_service_without_versions_deletes_by_name() {
    let unknown = refuse("501 Not Implemented", "", "NotImplemented");
    let server = Server::playing([unknown.clone(), answer("204 No Content", "", "")]).await;
    let store = server.once().await.store;
    store.delete("x").await.unwrap();
    assert!(server.seen()[1].head.starts_with("DELETE /my-bucket/openclaw-backup/x?x-id=DeleteObject "));
    let server = Server::playing([unknown]).await;
    assert_eq!(server.once().await.store.hidden().await.unwrap(), None);
}

#[tokio::test]
async fn a_listing_is_asked_for_below_the_prefix_and_read_without_strangers() {
    let server = Server::playing([ok(LISTING)]).await;
    let listing = server.once().await.store.list("a").await.unwrap();
    assert_eq!(listing.objects.iter().map(|object| object.key.as_str()).collect::<Vec<_>>(), ["a b"]);
    assert!(server.seen()[0].head.contains("prefix=openclaw-backup%2Fa"), "{}", server.seen()[0].head);
}

#[tokio::test]
async fn a_listing_that_never_ends_is_an_error() {
    let page =
        LISTING.replace("<IsTruncated>false", "<NextContinuationToken>same</NextContinuationToken><IsTruncated>true");
    let server = Server::playing([ok(page)]).await;
    expect(&server.once().await.store.list("").await.unwrap_err(), Code::Network, false, &["repeats"]);
    let page = LISTING.replace("<IsTruncated>false", "<IsTruncated>true");
    let server = Server::playing([ok(page)]).await;
    expect(&server.once().await.store.list("").await.unwrap_err(), Code::Network, false, &["no end"]);
}

#[tokio::test]
async fn a_busy_server_is_retryable_and_its_delay_is_known() {
    for (status, code) in [
        ("503 Slow Down", "SlowDown"),
        ("500 Internal Server Error", "InternalError"),
        ("502 Bad Gateway", ""),
        ("504 Gateway Timeout", ""),
        ("429 Too Many Requests", "TooManyRequests"),
        ("408 Request Timeout", ""),
        ("400 Bad Request", "RequestTimeout"),
    ] {
        let server = Server::playing([refuse(status, "retry-after: 7\r\n", code)]).await;
        let opened = server.once().await;
        for error in [opened.store.get("x").await.unwrap_err(), opened.store.put("x", Bytes::new()).await.unwrap_err()]
        {
            expect(&error, Code::Network, true, &[&status[..3], code, "\"my-bucket\""]);
            assert_eq!(error.requested_delay(), Some(Duration::from_secs(7)));
        }
    }
}

#[tokio::test]
#[ignore = "slow; npm test runs it"]
async fn a_busy_server_is_asked_again() {
    let busy = refuse("503 Slow Down", "retry-after: 1\r\n", "SlowDown");
    let server = Server::playing([busy.clone(), Act::Reset, Act::Cut, busy, ok("bytes")]).await;
    let opened = server.persistently().await;
    assert_eq!(opened.store.get("x").await.unwrap(), "bytes");
    assert!(opened.traffic.stats().requests >= 5);
}

#[tokio::test]
async fn a_stream_goes_on_where_it_broke_off() {
    let busy = refuse("503 Slow Down", "", "SlowDown");
    let rest = answer("206 Partial Content", "", "ty-two");
    let server = Server::playing([Act::Reset, Act::Cut, busy, Act::Reset, rest]).await;
    let opened = server.persistently().await;
    let (pieces, mut arriving) = Pieces::new();
    let receiving = async {
        opened.store.stream_range("x", 5, 10, &pieces).await.unwrap();
        assert_eq!(pieces.sent(), 10);
        drop(pieces);
    };
    let mut whole = Vec::new();
    let taking = async {
        while let Some(piece) = arriving.recv().await {
            whole.extend_from_slice(&piece);
        }
    };
    tokio::join!(receiving, taking);
    assert_eq!(whole, b"fourty-two");
    let ranges: Vec<_> = server.seen().iter().map(|seen| seen.header("range").unwrap().to_owned()).collect();
    assert!(ranges.starts_with(&["bytes=5-14".into(), "bytes=5-14".into()]), "{ranges:?}");
    assert!(ranges.ends_with(&["bytes=9-14".into(), "bytes=9-14".into()]), "{ranges:?}");
}

#[tokio::test]
async fn a_stream_that_nobody_takes_ends() {
    let server = Server::playing([ok("0123456789")]).await;
    let (pieces, arriving) = Pieces::new();
    drop(arriving);
    let error = server.persistently().await.store.stream_range("x", 0, 10, &pieces).await.unwrap_err();
    expect(&error, Code::Cancelled, false, &[]);
}

#[tokio::test]
async fn a_reset_connection_is_retryable() {
    let server = Server::playing([Act::Reset]).await;
    let opened = server.once().await;
    expect(&opened.store.list("").await.unwrap_err(), Code::Network, true, &["check endpoint and the network"]);
    let large = Bytes::from(vec![0; 1 << 20]);
    expect(&opened.store.put("x", large).await.unwrap_err(), Code::Network, true, &["cannot write x"]);
}

#[tokio::test]
async fn a_cut_body_is_retryable() {
    let server = Server::playing([Act::Cut]).await;
    let opened = server.once().await;
    expect(&opened.store.get("x").await.unwrap_err(), Code::Network, true, &["cannot read x", "broke off"]);
    expect(&opened.store.get_range("x", 0, 10).await.unwrap_err(), Code::Network, true, &[]);
    expect(&opened.store.list("").await.unwrap_err(), Code::Network, true, &["cannot list", "broke off"]);
}

#[tokio::test]
async fn a_stalled_body_ends_as_retryable() {
    let server = Server::playing([Act::StallInBody]).await;
    let opened = server.once().await;
    let words = ["cannot read x", "nothing was sent or received"];
    expect(&opened.store.get("x").await.unwrap_err(), Code::Network, true, &words);
    assert_eq!(opened.traffic.stats().received_bytes, 4);
}

#[tokio::test]
async fn a_server_that_never_answers_ends_as_retryable() {
    let server = Server::playing([Act::Silence]).await;
    let opened = server.once().await;
    let (list, put) = tokio::join!(opened.store.list(""), opened.store.put("x", Bytes::from_static(b"x")));
    for error in [list.unwrap_err(), put.unwrap_err()] {
        expect(&error, Code::Network, true, &["nothing was sent or received for 2s"]);
    }
}

#[tokio::test]
#[ignore = "slow; npm test runs it"]
async fn a_body_that_moves_slowly_is_not_stalled() {
    let server = Server::playing([Act::Trickle(b"thirty bytes, one after another".to_vec())]).await;
    let opened = server.once().await;
    assert_eq!(opened.store.get("x").await.unwrap(), "thirty bytes, one after another");
}

#[tokio::test]
#[ignore = "slow; npm test runs it"]
async fn an_upload_that_moves_slowly_is_not_stalled() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let size = 24 << 20;
    let slow = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 512 << 10];
        let mut received = 0;
        while received < size {
            stream.read_exact(&mut buffer).await.unwrap();
            received += buffer.len();
            tokio::time::sleep(STALL * 2 / 48).await;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let _ = stream.read(&mut buffer).await;
    });
    let opened = open(&target(Endpoint::S3(url), Duration::ZERO), &CancellationToken::new()).await.unwrap();
    opened.store.put("x", Bytes::from(vec![0; size])).await.unwrap();
    assert_eq!(opened.traffic.stats().sent_bytes, size as u64);
    drop(opened);
    slow.await.unwrap();
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_sent_again() {
    let server = Server::playing([Act::Reset, ok("")]).await;
    let opened = server.persistently().await;
    opened.store.put("packs/00/x", Bytes::from_static(b"bytes")).await.unwrap();
    let bodies: Vec<_> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies, [b"bytes", b"bytes"]);
    assert_eq!(opened.traffic.stats().sent_bytes, 10);
}

#[tokio::test]
async fn a_refused_key_names_operation_bucket_and_capability() {
    let server = Server::playing([refuse("403 Forbidden", "", "AccessDenied")]).await;
    let store = server.persistently().await.store;
    let denied: [(Error, &[&str]); 4] = [
        (store.list("").await.unwrap_err(), &["cannot list bucket \"my-bucket\"", "listFiles"]),
        (store.get("x").await.unwrap_err(), &["cannot read x in bucket \"my-bucket\"", "readFiles"]),
        (store.put("x", Bytes::new()).await.unwrap_err(), &["cannot write x", "writeFiles"]),
        (store.delete("x").await.unwrap_err(), &["cannot delete x", "deleteFiles", "words of the server"]),
    ];
    for (error, words) in &denied {
        expect(error, Code::Auth, false, words);
    }
    // The deletion also asked for versions, and then whether there is a lock, or a rule that would do the rest.
    assert_eq!(server.seen().len(), 7, "a refusal is not repeated");
}

/// Backblaze says so with the code of a key that may not.
#[tokio::test]
async fn a_limit_of_the_account_is_not_taken_for_a_wrong_key() {
    let cap = || {
        let words = "Cannot upload files, storage cap exceeded. See the Caps &amp; Alerts page to increase your cap.";
        let body = format!("<Error><Code>AccessDenied</Code><Message>{words}</Message></Error>");
        answer("403 Forbidden", "", body)
    };
    let server = Server::playing([cap()]).await;
    let store = server.persistently().await.store;
    let error = store.put("x", Bytes::new()).await.unwrap_err();
    expect(&error, Code::Network, false, &["cannot write x", "limit of the account", "Caps & Alerts"]);
    // Nor does it say that there are no versions: to delete by the name alone would only hide what is to go.
    let server = Server::playing([cap(), ok("")]).await;
    let error = server.once().await.store.delete("x").await.unwrap_err();
    expect(&error, Code::Network, false, &["limit of the account"]);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn wrong_credentials_advise_to_check_them() {
    for code in ["InvalidAccessKeyId", "SignatureDoesNotMatch"] {
        let server = Server::playing([refuse("403 Forbidden", "", code)]).await;
        let error = server.persistently().await.store.list("").await.unwrap_err();
        expect(&error, Code::Auth, false, &["check keyId and applicationKey", code]);
    }
}

#[tokio::test]
async fn a_missing_bucket_is_named_by_every_operation() {
    let server = Server::playing([refuse("404 Not Found", "", "NoSuchBucket")]).await;
    let store = server.persistently().await.store;
    for error in [
        store.list("").await.unwrap_err(),
        store.get("x").await.unwrap_err(),
        store.put("x", Bytes::new()).await.unwrap_err(),
        store.delete("x").await.unwrap_err(),
    ] {
        expect(&error, Code::BucketNotFound, false, &["\"my-bucket\"", "check bucket"]);
    }
}

#[tokio::test]
async fn a_missing_object_is_not_found_and_deleting_it_succeeds() {
    for code in ["NoSuchKey", ""] {
        let server = Server::playing([refuse("404 Not Found", "", code)]).await;
        let store = server.persistently().await.store;
        expect(&store.get("index/x").await.unwrap_err(), Code::NotFound, false, &["index/x"]);
        store.delete("index/x").await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_region_names_the_field_and_the_right_one() {
    for (status, headers, code) in [
        ("400 Bad Request", "", "AuthorizationHeaderMalformed"),
        ("301 Moved Permanently", "x-amz-bucket-region: eu-central-003\r\n", "PermanentRedirect"),
        ("307 Temporary Redirect", "location: http://example.com/\r\nx-amz-bucket-region: eu-central-003\r\n", ""),
    ] {
        let server = Server::playing([refuse(status, headers, code)]).await;
        let error = server.persistently().await.store.list("").await.unwrap_err();
        expect(&error, Code::Config, false, &["region: \"us-east-1\""]);
        assert_eq!(error.to_string().contains("eu-central-003"), !headers.is_empty(), "{error}");
    }
}

#[tokio::test]
async fn what_the_server_cannot_do_is_not_repeated() {
    for (status, code) in [("501 Not Implemented", "NotImplemented"), ("400 Bad Request", "InvalidArgument")] {
        let server = Server::playing([refuse(status, "", code)]).await;
        let error = server.persistently().await.store.put("x", Bytes::new()).await.unwrap_err();
        expect(&error, Code::Network, false, &[code]);
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_page_of_somebody_else_is_no_listing() {
    let server = Server::playing([ok("<html>log in to this network</html>")]).await;
    let error = server.persistently().await.store.list("").await.unwrap_err();
    expect(&error, Code::Network, false, &["not one of the S3 protocol", "check endpoint"]);
}

#[tokio::test]
async fn a_range_answered_short_is_damage_and_one_ignored_is_an_error() {
    let server = Server::playing([answer("206 Partial Content", "content-range: bytes 5-9/10\r\n", "56789")]).await;
    expect(&server.once().await.store.get_range("x", 5, 8).await.unwrap_err(), Code::Corrupt, false, &["x is damaged"]);
    let server = Server::playing([ok("0123456789")]).await;
    expect(&server.once().await.store.get_range("x", 5, 2).await.unwrap_err(), Code::Network, false, &["ranges"]);
}

#[tokio::test]
async fn a_machine_whose_clock_is_days_off_signs_with_the_servers_time() {
    let skewed = refuse("403 Forbidden", "date: Sun, 06 Nov 2033 08:49:37 GMT\r\n", "RequestTimeTooSkewed");
    let server = Server::playing([skewed, ok(LISTING)]).await;
    let opened = server.persistently().await;
    opened.store.list("").await.unwrap();
    let signed: Vec<_> = server.seen().iter().map(|seen| seen.header("x-amz-date").unwrap()[..8].to_owned()).collect();
    assert_eq!(signed[1], "20331106");
    let year_2033 = SystemTime::UNIX_EPOCH + Duration::from_secs(2_014_793_377);
    assert!(opened.store.now() >= year_2033);
}

#[tokio::test]
async fn an_unreachable_server_advises_to_check_endpoint_and_network() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let endpoint = Endpoint::S3(format!("http://{free}"));
    let store = open(&target(endpoint, Duration::ZERO), &CancellationToken::new()).await.unwrap().store;
    expect(
        &store.list("").await.unwrap_err(),
        Code::Network,
        true,
        &["cannot be reached", "check endpoint and the network"],
    );
    let endpoint = Endpoint::S3("https://nowhere.invalid".into());
    let store = open(&target(endpoint, Duration::ZERO), &CancellationToken::new()).await.unwrap().store;
    expect(&store.list("").await.unwrap_err(), Code::Network, true, &["check endpoint and the network"]);
}

#[tokio::test]
async fn cancelling_ends_a_request_that_waits() {
    let server = Server::playing([Act::Silence]).await;
    let cancel = CancellationToken::new();
    let opened = open(&target(Endpoint::S3(server.url.clone()), Duration::from_mins(1)), &cancel).await.unwrap();
    let request = tokio::spawn(async move { opened.store.list("").await });
    while server.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cancel.cancel();
    expect(&request.await.unwrap().unwrap_err(), Code::Cancelled, false, &[]);
}

#[tokio::test]
async fn connections_are_used_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let one_connection = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let script = Arc::new(Mutex::new(VecDeque::from([ok("bytes")])));
        serve(stream, script, Arc::default()).await;
    });
    let opened = open(&target(Endpoint::S3(url), Duration::ZERO), &CancellationToken::new()).await.unwrap();
    for _ in 0..5 {
        assert_eq!(opened.store.get("x").await.unwrap(), "bytes");
    }
    drop(opened);
    one_connection.await.unwrap();
}

#[tokio::test]
async fn plain_http_is_only_for_this_machine() {
    for endpoint in ["http://s3.example.com", "http://192.168.1.2:9000"] {
        let target = target(Endpoint::S3(endpoint.into()), Duration::ZERO);
        let error = open(&target, &CancellationToken::new()).await.unwrap_err();
        expect(&error, Code::Config, false, &["endpoint: ", "https://"]);
    }
}

#[tokio::test]
async fn a_bucket_needs_its_three_fields() {
    type Clear = fn(&mut Target);
    let fields: [(&str, Clear); 3] = [
        ("keyId", |target| target.key_id = None),
        ("applicationKey", |target| target.application_key = None),
        ("bucket", |target| target.bucket = None),
    ];
    for (field, clear) in fields {
        let mut target = target(Endpoint::BackblazeB2, Duration::ZERO);
        clear(&mut target);
        let error = open(&target, &CancellationToken::new()).await.unwrap_err();
        expect(&error, Code::Config, false, &[&format!("{field}: ")]);
    }
}

#[tokio::test]
async fn a_named_region_needs_no_authorize_call() {
    let mut target = target(Endpoint::BackblazeB2, Duration::ZERO);
    target.region = Some("eu-central-003".into());
    target.authorize_url = "http://127.0.0.1:1/".into();
    let opened = open(&target, &CancellationToken::new()).await.unwrap();
    assert_eq!(opened.store.location(), "https://s3.eu-central-003.backblazeb2.com/my-bucket/openclaw-backup");
    assert_eq!(opened.traffic.stats().requests, 0);
}

async fn authorize(server: &Server, operation: Duration) -> Result<Opened, Error> {
    let mut target = target(Endpoint::BackblazeB2, operation);
    target.authorize_url = format!("{}/b2api/v3/b2_authorize_account", server.url);
    open(&target, &CancellationToken::new()).await
}

fn authorized(s3_api_url: &str) -> Act {
    ok(format!(
        r#"{{"apiInfo":{{"storageApi":{{"s3ApiUrl":"{s3_api_url}","capabilities":["listFiles","readFiles","writeFiles"]}}}}}}"#
    ))
}

#[tokio::test]
async fn the_endpoint_of_a_key_is_asked_for_until_it_is_known() {
    let url = "https://s3.us-west-004.backblazeb2.com";
    let busy = answer("503 Service Unavailable", "retry-after: 1\r\n", r#"{"code":"service_unavailable"}"#);
    let server = Server::playing([busy, Act::Reset, Act::Cut, authorized(url)]).await;
    let opened = authorize(&server, Duration::from_mins(1)).await.unwrap();
    assert_eq!(opened.store.location(), format!("{url}/my-bucket/openclaw-backup"));
    // RFC 7617 over "004key:" and the secret.
    let sent = server.seen()[0].header("authorization").unwrap().to_owned();
    assert_eq!(sent, "Basic MDA0a2V5OkswMDRWZXJ5U2VjcmV0QXBwbGljYXRpb25LZXk=");
}

#[tokio::test]
async fn a_key_that_b2_refuses_is_told_at_once() {
    let refusal = format!(r#"{{"code":"bad_auth_token","message":"{SECRET}","status":401}}"#);
    let server = Server::playing([answer("401 Unauthorized", "", refusal)]).await;
    let error = authorize(&server, Duration::from_mins(1)).await.unwrap_err();
    expect(&error, Code::Auth, false, &["bad_auth_token", "check keyId and applicationKey"]);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_hostile_answer_of_the_authorize_call_is_refused() {
    let long = format!(r#"{{"s3ApiUrl":"{}"}}"#, "x".repeat(2 << 20));
    for hostile in
        [ok("<html>"), ok("[]"), ok("{}"), ok(long), authorized("http://evil.example"), authorized("file:///")]
    {
        let server = Server::playing([hostile]).await;
        let error = authorize(&server, Duration::from_mins(1)).await.unwrap_err();
        expect(&error, Code::Network, false, &["cannot ask Backblaze B2"]);
        assert_eq!(server.seen().len(), 1);
    }
}
