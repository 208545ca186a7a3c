//! A repository in a bucket behind the S3 protocol. Every call is one attempt.
//!
//! Settings and mapping follow what Backblaze B2 accepts and answers: path style, no checksum headers, plain bodies with
//! a signed hash, deletes one by one. Conditional requests and multipart uploads are not used.

use std::fmt;
use std::time::SystemTime;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{EncodingType, Object};
use bytes::{Bytes, BytesMut};

use super::http::{self, ProgressClient, ServerClock};
use super::{Bucket, Listing, ObjectMeta, Page, Store, all_pages};
use crate::error::{Code, Error, Result};

/// An announced length is trusted for memory up to this; what really arrives decides beyond it.
const TRUSTED_LENGTH: u64 = 32 << 20;
/// No object of a repository is larger: an index object of the format's largest size.
const MAX_OBJECT: u64 = 128 << 20;
/// Characters of a server's own words that go into an error.
const QUOTED: usize = 200;

/// Where the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Base URL, without a final slash.
    pub(super) endpoint: String,
    /// The region that requests are signed for.
    pub(super) region: String,
}

/// The store over a bucket.
#[derive(Debug)]
pub(super) struct S3Store {
    client: Client,
    place: Place,
    bucket: Bucket,
    clock: ServerClock,
}

/// A request of the protocol, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    List,
    Read,
    Write,
    Delete,
}

impl Operation {
    /// What B2 calls the capability that the key needs.
    const fn capability(self) -> &'static str {
        match self {
            Self::List => "listFiles",
            Self::Read => "readFiles",
            Self::Write => "writeFiles",
            Self::Delete => "deleteFiles",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
        })
    }
}

impl S3Store {
    pub(super) fn new(place: Place, bucket: Bucket, http: &ProgressClient) -> Self {
        let secret = bucket.application_key.expose();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .endpoint_url(&place.endpoint)
            .region(Region::new(place.region.clone()))
            .credentials_provider(Credentials::new(&bucket.key_id, secret, None, None, "openclaw-b2-backup"))
            .http_client(http.clone())
            // The clock of the store does this, also for the authorize call and for retention.
            .time_source(http.clock().clone())
            .disable_clock_skew_correction(true)
            .force_path_style(true)
            .disable_s3_express_session_auth(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // `retry`, `Timeouts.stall` and `Timeouts.operation` take the place of these three.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Self { client: Client::from_conf(config), place, bucket, clock: http.clock().clone() }
    }

    /// What an error says was tried.
    fn attempt(&self, operation: Operation, key: Option<&str>) -> String {
        match key {
            Some(key) => format!("cannot {operation} {key} in bucket {:?}", self.bucket.name),
            None => format!("cannot {operation} bucket {:?}", self.bucket.name),
        }
    }

    fn failed<E>(&self, operation: Operation, key: Option<&str>, failure: &SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let attempt = self.attempt(operation, key);
        let error = match failure {
            SdkError::ServiceError(refusal) => {
                let refusal = Refusal {
                    operation,
                    code: refusal.err().code().unwrap_or_default(),
                    message: refusal.err().message().unwrap_or_default(),
                    response: refusal.raw(),
                };
                self.refused(&attempt, &refusal)
            }
            // The head of an answer came, the rest did not.
            SdkError::ResponseError(_) => http::broken_answer(&attempt, failure),
            SdkError::DispatchFailure(failure) => match failure.as_connector_error() {
                Some(failure) => http::no_answer(&attempt, failure),
                None => Error::new(Code::Network, format!("{attempt}: no answer")).retryable(),
            },
            SdkError::TimeoutError(_) => Error::new(Code::Network, format!("{attempt}: no answer in time")).retryable(),
            _ => Error::config("bucket or endpoint", format!("{attempt}: {}", http::chain(failure))),
        };
        match key {
            Some(key) => error.at_key(key),
            None => error,
        }
    }

    /// What a refusal means. Codes are those of the S3 API reference, "Error responses", and of B2's S3-compatible API.
    fn refused(&self, attempt: &str, refusal: &Refusal<'_>) -> Error {
        let Refusal { operation, code, response, .. } = *refusal;
        let bucket = &self.bucket.name;
        let status = response.status().as_u16();
        match (status, code) {
            (_, "NoSuchBucket") => self.no_such_bucket(attempt),
            (404, _) if matches!(operation, Operation::List | Operation::Write) => self.no_such_bucket(attempt),
            (_, "NoSuchKey") | (404, _) => Error::new(Code::NotFound, format!("{attempt}: there is no such object")),
            (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "InvalidRegion") | (301 | 307 | 308, _) => {
                let elsewhere = match response.headers().get("x-amz-bucket-region") {
                    Some(region) => format!(", which is in region {:?}", quoted(region)),
                    None => String::new(),
                };
                let region = &self.place.region;
                Error::config(
                    "region",
                    format!("{region:?} is not the region of bucket {bucket:?}{elsewhere}; {refusal}"),
                )
            }
            (_, "InvalidBucketName") => Error::config("bucket", format!("{bucket:?} is not a bucket name; {refusal}")),
            // Answers tell the server's time, so that the next attempt is signed with it.
            (_, "RequestTimeTooSkewed") => {
                let error = Error::new(Code::Auth, format!("{attempt}: this machine's clock is wrong; {refusal}"))
                    .advise("set the clock of this machine");
                if response.headers().get("date").is_some() { error.retryable() } else { error }
            }
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch") | (401, _) => {
                Error::new(Code::Auth, format!("{attempt}: the credentials are not accepted; {refusal}"))
                    .advise("check keyId and applicationKey, and region or endpoint if they are set")
            }
            (403, _) | (_, "AccessDenied") => {
                let capability = operation.capability();
                Error::new(Code::Auth, format!("{attempt}: access is denied; {refusal}")).advise(format!(
                    "check keyId and applicationKey, and that this key may use the bucket and has the capability {capability}"
                ))
            }
            (200..=299, _) => Error::new(Code::Network, format!("{attempt}: {refusal}")).advise("check endpoint"),
            (416, _) | (_, "InvalidRange") => Error::new(Code::Corrupt, format!("{attempt}: it ends before the range")),
            _ => {
                let error = Error::new(Code::Network, format!("{attempt}: {refusal}"));
                if !may_pass(status, code) {
                    return error;
                }
                let delay = http::retry_after(response.headers(), self.clock.now());
                error.advise("the storage service may be busy; try again later").retry_after(delay).retryable()
            }
        }
    }

    fn no_such_bucket(&self, attempt: &str) -> Error {
        let message = format!("{attempt}: there is no such bucket at {}", self.place.endpoint);
        Error::new(Code::BucketNotFound, message).advise("check bucket, and region or endpoint if they are set")
    }

    /// Everything that an answer announced, or an error.
    async fn body(&self, key: &str, answer: GetObjectOutput, limit: u64) -> Result<Bytes> {
        let attempt = || self.attempt(Operation::Read, Some(key));
        let announced = answer.content_length().and_then(|length| u64::try_from(length).ok());
        let mut bytes = BytesMut::with_capacity(announced.unwrap_or_default().min(TRUSTED_LENGTH) as usize);
        let mut body = answer.body;
        while let Some(some) = body.next().await {
            let some = some.map_err(|failure| http::broken_answer(&attempt(), &failure).at_key(key))?;
            bytes.extend_from_slice(&some);
            if bytes.len() as u64 > limit {
                return Err(Error::corrupt(key, format!("{}: more than {limit} bytes came", attempt())));
            }
        }
        if announced.is_some_and(|announced| announced != bytes.len() as u64) {
            let message = format!("{}: {} bytes came, others were announced", attempt(), bytes.len());
            return Err(Error::new(Code::Network, message).at_key(key).retryable());
        }
        Ok(bytes.freeze())
    }

    /// The object as the repository sees it; `None` when it is outside.
    fn object(&self, object: &Object, encoded: bool) -> Option<ObjectMeta> {
        let name = object.key()?;
        let name = if encoded { decoded(name)? } else { name.to_owned() };
        let key = self.bucket.key_of(&name)?.to_owned();
        let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        // An object without a date is taken as new, so that nothing counts as old enough to be deleted by mistake.
        let modified = object.last_modified().and_then(|date| SystemTime::try_from(*date).ok());
        Some(ObjectMeta { key, size, modified: modified.unwrap_or_else(|| self.clock.now()) })
    }
}

#[async_trait]
impl Store for S3Store {
    async fn list(&self, prefix: &str) -> Result<Listing> {
        all_pages(self, prefix).await
    }

    async fn list_page(&self, prefix: &str, page: Option<&str>) -> Result<Page> {
        let request = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket.name)
            .prefix(self.bucket.name_of(prefix))
            // Names that older versions made may hold characters that XML cannot.
            .encoding_type(EncodingType::Url)
            .set_continuation_token(page.map(Into::into));
        let answer = request.send().await.map_err(|failure| self.failed(Operation::List, None, &failure))?;
        let encoded = answer.encoding_type() == Some(&EncodingType::Url);
        let objects = answer.contents().iter().filter_map(|object| self.object(object, encoded));
        let objects = objects.filter(|object| object.key.starts_with(prefix)).collect();
        let next = match (answer.is_truncated(), answer.next_continuation_token()) {
            (Some(true), None) => {
                let message = format!("{}: the listing has no end", self.attempt(Operation::List, None));
                return Err(Error::new(Code::Network, message));
            }
            (Some(true), token) => token.map(Into::into),
            _ => None,
        };
        Ok(Page { objects, next })
    }

    async fn get(&self, key: &str) -> Result<Bytes> {
        let request = self.client.get_object().bucket(&self.bucket.name).key(self.bucket.name_of(key));
        let answer = request.send().await.map_err(|failure| self.failed(Operation::Read, Some(key), &failure))?;
        self.body(key, answer, MAX_OBJECT).await
    }

    async fn get_range(&self, key: &str, offset: u64, length: u64) -> Result<Bytes> {
        if length == 0 {
            return Ok(Bytes::new());
        }
        let short = || Error::corrupt(key, format!("it ends before the {length} bytes at {offset} do"));
        let last = offset.checked_add(length - 1).ok_or_else(short)?;
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket.name)
            .key(self.bucket.name_of(key))
            .range(format!("bytes={offset}-{last}"));
        let answer = request.send().await.map_err(|failure| self.failed(Operation::Read, Some(key), &failure))?;
        if answer.content_length().and_then(|announced| u64::try_from(announced).ok()) > Some(length) {
            let attempt = self.attempt(Operation::Read, Some(key));
            let message = format!("{attempt}: the storage service does not answer ranges");
            return Err(Error::new(Code::Network, message).at_key(key));
        }
        let bytes = self.body(key, answer, length).await?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(short()) }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let request = self
            .client
            .put_object()
            .bucket(&self.bucket.name)
            .key(self.bucket.name_of(key))
            .body(ByteStream::from(body));
        request.send().await.map_err(|failure| self.failed(Operation::Write, Some(key), &failure))?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let request = self.client.delete_object().bucket(&self.bucket.name).key(self.bucket.name_of(key));
        match request.send().await.map_err(|failure| self.failed(Operation::Delete, Some(key), &failure)) {
            Err(error) if error.code() != Code::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn location(&self) -> String {
        format!("{}/{}/{}", self.place.endpoint, self.bucket.name, self.bucket.prefix)
    }
}

/// An answer that is not what was asked for.
struct Refusal<'answer> {
    operation: Operation,
    code: &'answer str,
    message: &'answer str,
    response: &'answer HttpResponse,
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.response.status().as_u16();
        if (200..300).contains(&status) {
            return write!(f, "the answer is not one of the S3 protocol");
        }
        write!(f, "the storage service answered {status}")?;
        for words in [self.code, self.message].into_iter().filter(|words| !words.is_empty()) {
            write!(f, " {}", quoted(words))?;
        }
        Ok(())
    }
}

/// A server's words, short and on one line.
fn quoted(words: &str) -> String {
    words.chars().take(QUOTED).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// Whether a refusal says something about this moment, and not about the request.
fn may_pass(status: u16, code: &str) -> bool {
    let moment = [
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "XAmzContentSHA256Mismatch",
    ];
    // 501: not implemented, 505: version, 507: no space.
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 506 | 508..) || moment.contains(&code)
}

/// Undoes `encoding-type=url`, which writes a space as a plus sign; `None` when the result is not UTF-8.
fn decoded(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match (first, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, tail @ ..]) => {
                let digit = |letter: u8| char::from(letter).to_digit(16);
                bytes.push((digit(*high)? * 16 + digit(*low)?) as u8);
                rest = tail;
            }
            (b'%', _) => return None,
            (letter, _) => bytes.push(*letter),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use proptest::prelude::*;

    #[test]
    fn names_in_a_listing_are_decoded() {
        assert_eq!(decoded("a/b%20c+d%2Be%C3%BC").as_deref(), Some("a/b c d+e\u{fc}"));
        for broken in ["%", "%2", "%zz", "%ff"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn a_name_comes_back_as_it_was_encoded(name in "\\PC{0,30}", escape_all in any::<bool>()) {
            let encoded: String = name.bytes().map(|byte| match byte {
                b' ' if !escape_all => "+".to_owned(),
                b'a'..=b'z' | b'/' if !escape_all => char::from(byte).to_string(),
                _ => format!("%{byte:02X}"),
            }).collect();
            prop_assert_eq!(decoded(&encoded), Some(name));
        }

        #[test]
        fn no_name_makes_decoding_panic(name in "\\PC{0,20}|[%0-9a-fA-F+é]{0,12}") {
            drop(decoded(&name));
        }

        #[test]
        fn what_a_listing_shows_lies_in_the_repository(prefix in "(a|é|a/b)?", name in "[aé/b]{0,8}") {
            let application_key = Secret::new("secret");
            let bucket = Bucket { key_id: "id".into(), application_key, name: "mine".into(), prefix };
            if let Some(key) = bucket.key_of(&name) {
                prop_assert!(!key.is_empty());
                prop_assert_eq!(bucket.name_of(key), name);
            }
        }
    }
}
