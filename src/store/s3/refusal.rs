//! What failed requests of the S3 protocol mean to users.

use std::fmt;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::S3Store;
use crate::error::{Code, Error};
use crate::store::http;

/// Characters of a server's own words that go into an error.
const QUOTED: usize = 200;

/// A request of the protocol, for messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    List,
    Read,
    Write,
    Delete,
    Lock,
    AskRules,
}

impl Operation {
    /// What B2 calls the capability that the key needs.
    const fn capability(self) -> &'static str {
        match self {
            Self::List => "listFiles",
            Self::Read => "readFiles",
            Self::Write => "writeFiles",
            Self::Delete => "deleteFiles",
            Self::Lock => "writeFileRetentions",
            Self::AskRules => "readBuckets",
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
            Self::Lock => "lock",
            Self::AskRules => "read the rules of",
        })
    }
}

impl S3Store {
    /// What an error says was tried.
    pub(super) fn attempt(&self, operation: Operation, key: Option<&str>) -> String {
        match key {
            Some(key) => format!("cannot {operation} {key} in bucket {:?}", self.bucket.name),
            None => format!("cannot {operation} bucket {:?}", self.bucket.name),
        }
    }

    pub(super) fn failed<E>(
        &self,
        operation: Operation,
        key: Option<&str>,
        failure: &SdkError<E, HttpResponse>,
    ) -> Error
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
            (400, "InvalidRequest") if operation == Operation::Write && self.lock.is_some() => {
                Error::config("objectLockDays", format!("the bucket {bucket:?} locks nothing; {refusal}"))
                    .advise("Object Lock has to be enabled in the bucket; or remove the field")
            }
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
                .advise("set region to the one that the bucket is in")
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
            _ if is_cap(status, code, refusal.message) => {
                Error::new(Code::Network, format!("{attempt}: a limit of the account is reached; {refusal}")).advise(
                    "raise the limit (Backblaze: the page \"Caps & Alerts\"), wait until it begins anew, or free space",
                )
            }
            (403, _) | (_, "AccessDenied") => {
                let capability = match operation {
                    Operation::Write if self.lock.is_some() => "writeFiles, and for objectLockDays writeFileRetentions",
                    _ => operation.capability(),
                };
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
}

/// Whether a refusal says that the service, or these credentials, cannot do something that is not needed. One for this moment only,
/// or for a limit, does not: who would then delete without asking for versions would only hide what is to go.
pub(super) fn is_unsupported<E>(failure: &SdkError<E, HttpResponse>) -> bool
where
    E: ProvideErrorMetadata,
{
    let Some(status) = failure.raw_response().map(|answer| answer.status().as_u16()) else { return false };
    let words = failure.as_service_error().map(ProvideErrorMetadata::meta);
    let code = words.and_then(|words| words.code()).unwrap_or_default();
    let message = words.and_then(|words| words.message()).unwrap_or_default();
    let passes = may_pass(status, code) || code == "RequestTimeTooSkewed" || is_cap(status, code, message);
    matches!(status, 400 | 403 | 404 | 405 | 501) && !passes
}

/// Whether a limit of storage, traffic or calls is reached that the account's owner, or the service, has set.
fn is_cap(status: u16, code: &str, message: &str) -> bool {
    let says = |words: &str| code.contains(words) || message.contains(words);
    status == 507 || ["cap exceeded", "cap_exceeded", "CapExceeded", "QuotaExceeded"].into_iter().any(says)
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
    // 501: not implemented, 505: version; 507, no space, is a limit.
    matches!(status, 408 | 425 | 429 | 500 | 502..=504 | 506 | 508..) || moment.contains(&code)
}
