//! A repository in a bucket behind the S3 protocol. Every call is one attempt.
//!
//! Settings and mapping follow what Backblaze B2 accepts and answers: path style, no checksum headers, plain bodies with
//! a signed hash, deletes one by one. Conditional requests and multipart uploads are not used.
//!
//! A bucket may keep versions, as every bucket of B2 does: what is deleted there by its name alone is hidden, and billed
//! on. So an object is deleted version by version, and only where the credentials may not do that, and a lifecycle rule
//! of the bucket deletes what is hidden, by its name.

mod refusal;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    EncodingType, ExpirationStatus, LifecycleRule, NoncurrentVersionExpiration, Object, ObjectLockMode,
    ObjectLockRetention, ObjectLockRetentionMode,
};
use aws_smithy_types::DateTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use md5::{Digest, Md5};
use tokio::sync::OnceCell;

use super::b2::{self, Account};
use super::http::{self, ProgressClient, ServerClock};
use super::{
    Bucket, Deletion, Hidden, Lifecycle, Listing, MOST_LISTED, ObjectMeta, Page, Pieces, Store, all_pages,
    ends_before_range,
};
use crate::config::Addressing;
use crate::error::{Code, Error, Result};

use refusal::{Operation, is_unsupported};

/// An announced length is trusted for memory up to this; what really arrives decides beyond it.
const TRUSTED_LENGTH: u64 = 32 << 20;
/// No object of a repository is larger: an index object of the format's largest size.
const MAX_OBJECT: u64 = 128 << 20;

/// Where the service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Base URL, without a final slash.
    pub(super) endpoint: String,
    /// The region that requests are signed for.
    pub(super) region: String,
    /// Where the bucket's name stands.
    pub(super) addressing: Addressing,
}

/// The store over a bucket.
#[derive(Debug)]
pub(super) struct S3Store {
    client: Client,
    place: Place,
    bucket: Bucket,
    clock: ServerClock,
    /// B2's own API, where it is B2.
    account: Option<Account>,
    /// How long what is written is locked.
    lock: Option<Duration>,
    /// Whether the bucket can lock at all; asked once.
    locks: OnceCell<bool>,
    /// What the bucket's rules do; asked once.
    lifecycle: OnceCell<Option<Lifecycle>>,
    /// How deletions work, as far as it is known.
    deletion: Mutex<Option<Deletion>>,
}

/// One version of an object, or the marker that hides those before it.
#[derive(Debug)]
struct Version {
    key: String,
    id: String,
    /// `None` for a marker.
    size: Option<u64>,
    is_latest: bool,
}

impl S3Store {
    /// `account` is there for B2; `lock` says for how long what is written is to be locked.
    pub(super) fn new(
        place: Place,
        bucket: Bucket,
        account: Option<Account>,
        lock: Option<Duration>,
        http: &ProgressClient,
    ) -> Self {
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
            .force_path_style(place.addressing == Addressing::Path)
            .disable_s3_express_session_auth(true)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            // `retry`, `Timeouts.stall` and `Timeouts.operation` take the place of these three.
            .retry_config(RetryConfig::disabled())
            .timeout_config(TimeoutConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build();
        Self {
            client: Client::from_conf(config),
            place,
            bucket,
            clock: http.clock().clone(),
            account,
            lock,
            locks: OnceCell::new(),
            lifecycle: OnceCell::new(),
            deletion: Mutex::default(),
        }
    }

    /// Everything that an answer announced, or an error.
    async fn body(&self, key: &str, answer: GetObjectOutput, limit: u64) -> Result<Bytes> {
        let mut arriving = Arriving::new(answer, limit);
        let mut bytes = BytesMut::with_capacity(arriving.announced.unwrap_or_default().min(TRUSTED_LENGTH) as usize);
        while let Some(piece) = self.next_piece(key, &mut arriving).await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    /// The next bytes of an answer; `None` when everything that it announced has come.
    async fn next_piece(&self, key: &str, arriving: &mut Arriving) -> Result<Option<Bytes>> {
        let attempt = || self.attempt(Operation::Read, Some(key));
        let Arriving { body, announced, limit, arrived } = arriving;
        let Some(piece) = body.next().await else {
            if announced.is_some_and(|announced| announced != *arrived) {
                let message = format!("{}: {arrived} bytes came, others were announced", attempt());
                return Err(Error::new(Code::Network, message).at_key(key).retryable());
            }
            return Ok(None);
        };
        let piece = piece.map_err(|failure| http::broken_answer(&attempt(), &failure).at_key(key))?;
        *arrived += piece.len() as u64;
        if *arrived > *limit {
            return Err(Error::corrupt(key, format!("{}: more than {limit} bytes came", attempt())));
        }
        Ok(Some(piece))
    }

    /// The answer to the request for a range that is not empty.
    async fn range(&self, key: &str, offset: u64, length: u64) -> Result<GetObjectOutput> {
        let last = offset.checked_add(length - 1).ok_or_else(|| ends_before_range(key, offset, length))?;
        let request = self
            .client
            .get_object()
            .bucket(&self.bucket.name)
            .key(self.bucket.name_of(key))
            .range(format!("bytes={offset}-{last}"));
        let answer = request.send().await.map_err(|failure| self.failed(Operation::Read, Some(key), &failure))?;
        if announced(&answer) > Some(length) {
            let attempt = self.attempt(Operation::Read, Some(key));
            let message = format!("{attempt}: the storage service does not answer ranges");
            return Err(Error::new(Code::Network, message).at_key(key));
        }
        Ok(answer)
    }

    /// The key as the repository sees it of a name in a listing; `None` when it is outside.
    fn listed_key(&self, name: Option<&str>, encoded: bool) -> Option<String> {
        let name = if encoded { decoded(name?)? } else { name?.to_owned() };
        self.bucket.key_of(&name).map(str::to_owned)
    }

    /// The object as the repository sees it; `None` when it is outside.
    fn object(&self, object: &Object, encoded: bool) -> Option<ObjectMeta> {
        let key = self.listed_key(object.key(), encoded)?;
        let size = object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        // An object without a date is taken as new, so that nothing counts as old enough to be deleted by mistake.
        let modified = object.last_modified().and_then(|date| SystemTime::try_from(*date).ok());
        Some(ObjectMeta { key, size, modified: modified.unwrap_or_else(|| self.clock.now()) })
    }

    /// Every version of the objects whose keys start with `prefix`, the newest of each first; `None` where the service
    /// does not list versions, or not to these credentials.
    async fn versions(&self, prefix: &str) -> Result<Option<Vec<Version>>> {
        let mut versions = Vec::new();
        let mut after: (Option<String>, Option<String>) = (None, None);
        loop {
            let request = self
                .client
                .list_object_versions()
                .bucket(&self.bucket.name)
                .prefix(self.bucket.name_of(prefix))
                .encoding_type(EncodingType::Url)
                .set_key_marker(after.0.clone())
                .set_version_id_marker(after.1.clone());
            let answer = match request.send().await {
                Err(failure) if is_unsupported(&failure) => return Ok(None),
                answer => answer.map_err(|failure| self.failed(Operation::List, None, &failure))?,
            };
            let encoded = answer.encoding_type() == Some(&EncodingType::Url);
            for version in answer.versions() {
                let Some(key) = self.listed_key(version.key(), encoded) else { continue };
                let size = version.size().and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
                let (id, is_latest) = (version.version_id().unwrap_or("null").to_owned(), version.is_latest());
                versions.push(Version { key, id, size: Some(size), is_latest: is_latest == Some(true) });
            }
            for marker in answer.delete_markers() {
                let Some(key) = self.listed_key(marker.key(), encoded) else { continue };
                let (id, is_latest) = (marker.version_id().unwrap_or("null").to_owned(), marker.is_latest());
                versions.push(Version { key, id, size: None, is_latest: is_latest == Some(true) });
            }
            if answer.is_truncated() != Some(true) {
                return Ok(Some(versions));
            }
            let next_key = match answer.next_key_marker() {
                Some(key) if encoded => decoded(key),
                key => key.map(str::to_owned),
            };
            let next = (next_key, answer.next_version_id_marker().map(str::to_owned));
            if next.0.is_none() || next == after || versions.len() > MOST_LISTED {
                let message = format!("{}: the listing of versions has no end", self.attempt(Operation::List, None));
                return Err(Error::new(Code::Network, message));
            }
            after = next;
        }
    }

    /// Deletes one version, or by the name alone; what is not there is deleted.
    async fn delete_one(&self, key: &str, version: Option<&str>) -> Result<()> {
        let name = self.bucket.name_of(key);
        let request =
            self.client.delete_object().bucket(&self.bucket.name).key(name).set_version_id(version.map(Into::into));
        match request.send().await.map_err(|failure| self.failed(Operation::Delete, Some(key), &failure)) {
            Err(error) if error.code() != Code::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete_versions(&self, key: &str) -> Result<()> {
        let Some(mut versions) = self.versions(key).await? else { return self.delete_one(key, None).await };
        // The newest goes last: should this break off, no older one comes to light in its place.
        versions.retain(|version| version.key == key);
        versions.sort_by_key(|version| (version.is_latest, version.size.is_none()));
        for Version { id, .. } in &versions {
            match self.delete_one(key, Some(id)).await {
                // A bucket without versions: to name the one there is takes a right of its own.
                Err(error) if error.code() == Code::Auth && id == "null" => self.delete_one(key, None).await?,
                deleted => deleted?,
            }
        }
        Ok(())
    }

    fn known_deletion(&self) -> Option<Deletion> {
        *self.deletion.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember_deletion(&self, deletion: Deletion) -> Deletion {
        *self.deletion.lock().unwrap_or_else(PoisonError::into_inner) = Some(deletion);
        deletion
    }

    /// Whether the bucket has Object Lock.
    async fn bucket_locks(&self) -> Result<bool> {
        if self.lock.is_some() {
            return Ok(true);
        }
        let ask = async || {
            let request = self.client.get_object_lock_configuration().bucket(&self.bucket.name);
            match request.send().await {
                Ok(answer) => Ok(answer.object_lock_configuration().is_some()),
                Err(failure) => {
                    let error = self.failed(Operation::AskRules, None, &failure);
                    // Services without it say so in many ways.
                    if error.is_retryable() { Err(error) } else { Ok(false) }
                }
            }
        };
        self.locks.get_or_try_init(ask).await.copied()
    }

    async fn ask_lifecycle(&self) -> Result<Option<Lifecycle>> {
        if let Some(account) = &self.account {
            return account.lifecycle().await;
        }
        match self.client.get_bucket_lifecycle_configuration().bucket(&self.bucket.name).send().await {
            Ok(answer) => {
                let (mut lifecycle, folder) = (Lifecycle::default(), self.bucket.name_of(""));
                answer.rules().iter().for_each(|rule| add_rule(&mut lifecycle, &folder, rule));
                Ok(Some(lifecycle))
            }
            Err(failure) if failure.code() == Some("NoSuchLifecycleConfiguration") => Ok(Some(Lifecycle::default())),
            Err(failure) if is_unsupported(&failure) => Ok(None),
            Err(failure) => Err(self.failed(Operation::AskRules, None, &failure)),
        }
    }

    fn lock_end(&self, lock: Duration) -> DateTime {
        // Not all services take fractions of a second; cut, one would be a little short.
        DateTime::from_secs(DateTime::from(self.clock.now() + lock).secs() + 1)
    }
}

/// Adds a rule of the S3 protocol to what is known of `folder`.
fn add_rule(lifecycle: &mut Lifecycle, folder: &str, rule: &LifecycleRule) {
    if rule.status() != &ExpirationStatus::Enabled {
        return;
    }
    let filter = rule.filter();
    let both = filter.and_then(|filter| filter.and());
    #[allow(deprecated)] // older rules have their prefix there
    let prefix = rule.prefix().or(filter.and_then(|filter| filter.prefix())).or(both.and_then(|both| both.prefix()));
    let picks = filter.is_some_and(|filter| {
        filter.tag().is_some()
            || filter.object_size_greater_than().is_some()
            || filter.object_size_less_than().is_some()
            || filter.and().is_some_and(|both| {
                !both.tags().is_empty()
                    || both.object_size_greater_than().is_some()
                    || both.object_size_less_than().is_some()
            })
    });
    let days = |days: i32| u32::try_from(days).unwrap_or_default();
    let expires = rule.expiration().and_then(|expiration| match (expiration.days(), expiration.date()) {
        (Some(after), _) => Some(days(after)),
        // From that date on everything goes at once.
        (None, date) => date.map(|_| 0),
    });
    // A rule that keeps some older versions, or picks some objects, does not delete all that is hidden.
    let deletes =
        rule.noncurrent_version_expiration().filter(|rule| !picks && rule.newer_noncurrent_versions().is_none());
    let deletes = deletes.and_then(NoncurrentVersionExpiration::noncurrent_days).map(days);
    lifecycle.add(folder, prefix.unwrap_or_default(), expires, deletes);
}

/// The body of an answer, on its way.
struct Arriving {
    body: ByteStream,
    announced: Option<u64>,
    /// More bytes than these are refused.
    limit: u64,
    arrived: u64,
}

/// How many bytes an answer says that it has.
fn announced(answer: &GetObjectOutput) -> Option<u64> {
    answer.content_length().and_then(|length| u64::try_from(length).ok())
}

impl Arriving {
    fn new(answer: GetObjectOutput, limit: u64) -> Self {
        Self { announced: announced(&answer), body: answer.body, limit, arrived: 0 }
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
        let answer = self.range(key, offset, length).await?;
        let bytes = self.body(key, answer, length).await?;
        if bytes.len() as u64 == length { Ok(bytes) } else { Err(ends_before_range(key, offset, length)) }
    }

    async fn stream_range(&self, key: &str, offset: u64, length: u64, pieces: &Pieces) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        let mut arriving = Arriving::new(self.range(key, offset, length).await?, length);
        while let Some(piece) = self.next_piece(key, &mut arriving).await? {
            pieces.send(piece).await?;
        }
        if arriving.arrived == length { Ok(()) } else { Err(ends_before_range(key, offset, length)) }
    }

    async fn put(&self, key: &str, body: Bytes) -> Result<()> {
        let mut request = self.client.put_object().bucket(&self.bucket.name).key(self.bucket.name_of(key));
        if let Some(lock) = self.lock {
            // S3 asks for a checksum with a lock; B2 refuses all others.
            request = request
                .object_lock_mode(ObjectLockMode::Compliance)
                .object_lock_retain_until_date(self.lock_end(lock))
                .content_md5(STANDARD.encode(Md5::digest(&body)));
        }
        let request = request.body(ByteStream::from(body));
        request.send().await.map_err(|failure| self.failed(Operation::Write, Some(key), &failure))?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<()> {
        let denied = || {
            Error::new(Code::Auth, format!("{}: the key may not", self.attempt(Operation::Delete, Some(key))))
                .at_key(key)
                .advise("leave it to another key, which has the capability deleteFiles")
        };
        match self.deletion().await? {
            Deletion::ForGood => self.delete_versions(key).await,
            Deletion::ByLifecycle { .. } => self.delete_one(key, None).await,
            Deletion::Denied => Err(denied()),
            Deletion::Untried => match self.delete_versions(key).await {
                Err(error) if error.code() == Code::Auth && self.locked_until(key).await?.is_none() => {
                    match self.remember_deletion(b2::deletion(false, self.lifecycle().await?)) {
                        Deletion::ByLifecycle { .. } => self.delete_one(key, None).await,
                        _ => Err(error),
                    }
                }
                Ok(()) => {
                    self.remember_deletion(Deletion::ForGood);
                    Ok(())
                }
                refused => refused,
            },
        }
    }

    async fn check_access(&self) -> Result<()> {
        if let Some(account) = &self.account {
            account.check_access().await?;
        }
        let lifecycle = self.lifecycle().await?;
        if let Some(days) = lifecycle.and_then(|lifecycle| lifecycle.expires_after) {
            let name = &self.bucket.name;
            let problem = format!("a lifecycle rule of {name:?} removes backups {days} days after their upload");
            return Err(Error::config("bucket", problem).advise(
                "change the rule, which may delete what is hidden, but hide nothing; or choose another prefix",
            ));
        }
        Ok(())
    }

    async fn deletion(&self) -> Result<Deletion> {
        if let Some(known) = self.known_deletion() {
            return Ok(known);
        }
        let may_delete = match &self.account {
            Some(account) => account.may_delete().await?,
            None => None,
        };
        Ok(self.remember_deletion(match may_delete {
            Some(may_delete @ true) => b2::deletion(may_delete, None),
            Some(may_delete @ false) => b2::deletion(may_delete, self.lifecycle().await?),
            None => Deletion::Untried,
        }))
    }

    async fn lifecycle(&self) -> Result<Option<Lifecycle>> {
        self.lifecycle.get_or_try_init(|| self.ask_lifecycle()).await.copied()
    }

    async fn hidden(&self) -> Result<Option<Hidden>> {
        let Some(versions) = self.versions("").await? else { return Ok(None) };
        let mut hidden = Hidden::default();
        let markers: BTreeSet<&str> =
            versions.iter().filter(|v| v.is_latest && v.size.is_none()).map(|v| v.key.as_str()).collect();
        for Version { key, size, is_latest, .. } in &versions {
            let (Some(size), false) = (size, *is_latest) else { continue };
            hidden.versions += 1;
            hidden.bytes += size;
            if markers.contains(key.as_str()) {
                hidden.deleted.insert(key.clone());
            }
        }
        Ok(Some(hidden))
    }

    async fn locked_until(&self, key: &str) -> Result<Option<SystemTime>> {
        if !self.bucket_locks().await? {
            return Ok(None);
        }
        let request = self.client.head_object().bucket(&self.bucket.name).key(self.bucket.name_of(key));
        let answer = match request.send().await.map_err(|failure| self.failed(Operation::Read, Some(key), &failure)) {
            Err(error) if error.code() == Code::NotFound => return Ok(None),
            answer => answer?,
        };
        let until = answer.object_lock_retain_until_date().and_then(|date| SystemTime::try_from(*date).ok());
        Ok(until.filter(|until| *until > self.clock.now()))
    }

    async fn renew_lock(&self, key: &str) -> Result<()> {
        let Some(lock) = self.lock else { return Ok(()) };
        let retention = ObjectLockRetention::builder()
            .mode(ObjectLockRetentionMode::Compliance)
            .retain_until_date(self.lock_end(lock))
            .build();
        let request = self
            .client
            .put_object_retention()
            .bucket(&self.bucket.name)
            .key(self.bucket.name_of(key))
            .retention(retention)
            .customize()
            .mutate_request(md5_instead_of_crc);
        request.send().await.map_err(|failure| self.failed(Operation::Lock, Some(key), &failure))?;
        Ok(())
    }

    fn now(&self) -> SystemTime {
        self.clock.now()
    }

    fn location(&self) -> String {
        format!("{}/{}/{}", self.place.endpoint, self.bucket.name, self.bucket.prefix)
    }
}

/// Where S3 asks for a checksum, the SDK sends a CRC, which B2 refuses.
fn md5_instead_of_crc(request: &mut HttpRequest) {
    let Some(digest) = request.body().bytes().map(Md5::digest) else { return };
    for header in ["x-amz-checksum-crc32", "x-amz-sdk-checksum-algorithm"] {
        request.headers_mut().remove(header);
    }
    request.headers_mut().insert("content-md5", STANDARD.encode(digest));
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

    #[test]
    fn only_enabled_rules_for_all_of_the_folder_delete_what_is_hidden() {
        use aws_sdk_s3::types::{LifecycleExpiration, LifecycleRuleAndOperator, LifecycleRuleFilter, Tag};
        let known = |rule: &LifecycleRule| {
            let mut lifecycle = Lifecycle::default();
            add_rule(&mut lifecycle, "openclaw-backup/", rule);
            (lifecycle.expires_after, lifecycle.deletes_hidden_after)
        };
        let older = |keep| {
            NoncurrentVersionExpiration::builder().noncurrent_days(7).set_newer_noncurrent_versions(keep).build()
        };
        let enabled = || LifecycleRule::builder().status(ExpirationStatus::Enabled);
        let whole = enabled().noncurrent_version_expiration(older(None));
        assert_eq!(known(&whole.clone().build().unwrap()), (None, Some(7)));
        assert_eq!(known(&whole.clone().status(ExpirationStatus::Disabled).build().unwrap()), (None, None));
        assert_eq!(known(&enabled().noncurrent_version_expiration(older(Some(2))).build().unwrap()), (None, None));
        let tag = Tag::builder().key("a").value("b").build().unwrap();
        let both = LifecycleRuleAndOperator::builder().prefix("openclaw-backup/").tags(tag).build();
        let picked = whole.filter(LifecycleRuleFilter::builder().and(both).build());
        assert_eq!(known(&picked.build().unwrap()), (None, None));
        let date = LifecycleExpiration::builder().date(DateTime::from_secs(0)).build();
        assert_eq!(known(&enabled().expiration(date).build().unwrap()), (Some(0), None));
        #[allow(deprecated)]
        let elsewhere = enabled().prefix("other/").expiration(LifecycleExpiration::builder().days(1).build());
        assert_eq!(known(&elsewhere.build().unwrap()), (None, None));
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
