//! What only Backblaze B2 has: finding a key's S3 endpoint, and what the key may do, by `b2_authorize_account`.
//!
//! Everything else of B2's native API is left alone; objects go through [`super::s3`].

use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::body::SdkBody;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Bucket;
use super::http::{self, ProgressClient};
use super::s3::Place;
use crate::error::{Code, Error, Result};

/// What a backup cannot do without. `deleteFiles` is only needed to prune, and a key without it is a choice.
const NEEDED: [&str; 3] = ["listFiles", "readFiles", "writeFiles"];
/// An answer is some kilobytes; a larger one is not B2's.
const LARGEST_ANSWER: usize = 1 << 20;
/// For error messages.
const ATTEMPT: &str = "cannot ask Backblaze B2 for the account's endpoint";

/// The S3 endpoint of a region that the user named.
///
/// # Errors
/// `CONFIG` when that cannot be a region.
pub(super) fn place_in(region: &str) -> Result<Place> {
    let plausible = !region.is_empty() && region.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if !plausible {
        return Err(Error::config("region", format!("{region:?} is not a region, such as us-west-004")));
    }
    Ok(Place { endpoint: format!("https://s3.{region}.backblazeb2.com"), region: region.to_owned() })
}

/// Asks for the endpoint of the key's account, and checks that the key fits the bucket, the prefix and a backup. One
/// attempt.
///
/// # Errors
/// `AUTH` when the key is refused, lacks a capability or is the master key; `CONFIG` when it is restricted to another
/// bucket or prefix; `NETWORK`.
pub(super) async fn authorize(http: &ProgressClient, url: &str, bucket: &Bucket) -> Result<Place> {
    let url = http::credential_safe_url("endpoint", url)?;
    let answer = ask(http, &url, bucket).await?;
    let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else {
        let message = format!("{ATTEMPT}: {url} answered something else than B2 does");
        return Err(Error::new(Code::Network, message).advise("check the network connection, or set region"));
    };
    check(&answer, bucket)?;
    place_of(&answer)
}

async fn ask(http: &ProgressClient, url: &str, bucket: &Bucket) -> Result<Vec<u8>> {
    let unusable = |_| Error::config("keyId", "cannot be sent: it holds control characters");
    let pair = Zeroizing::new(format!("{}:{}", bucket.key_id, bucket.application_key.expose()));
    let credentials = Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    let mut request = HttpRequest::new(SdkBody::empty());
    request.set_method("GET").map_err(unusable)?;
    request.set_uri(url).map_err(|_| Error::config("endpoint", "is not a URL"))?;
    request.headers_mut().try_insert("authorization", credentials.to_string()).map_err(unusable)?;

    let response = http.call(request).await.map_err(|failure| http::no_answer(ATTEMPT, &failure))?;
    let status = response.status().as_u16();
    let delay = http::retry_after(response.headers(), http.clock().now());
    let body = match bounded(response.into_body()).await {
        // The status says enough; the words of a refusal are a courtesy.
        Err(_) if status != 200 => Vec::new(),
        body => body?,
    };
    if status == 200 {
        return Ok(body);
    }
    let refusal = format!("{ATTEMPT}: it answered {status} {}", code_of(&body));
    Err(match status {
        401 => Error::new(Code::Auth, format!("Backblaze B2 does not accept the key: {status} {}", code_of(&body)))
            .advise("check keyId and applicationKey"),
        403 => Error::new(Code::Auth, refusal).advise("check the limits and the state of the B2 account"),
        408 | 429 | 500.. => Error::new(Code::Network, refusal).retry_after(delay).retryable(),
        _ => Error::new(Code::Network, refusal).advise("check keyId and applicationKey, or set region"),
    })
}

async fn bounded(body: SdkBody) -> Result<Vec<u8>> {
    let mut body = aws_smithy_types::byte_stream::ByteStream::new(body);
    let mut bytes = Vec::new();
    while let Some(some) = body.next().await {
        let some = some.map_err(|failure| http::broken_answer(ATTEMPT, &failure))?;
        if bytes.len() + some.len() > LARGEST_ANSWER {
            return Err(Error::new(Code::Network, format!("{ATTEMPT}: the answer is too long to be one of B2")));
        }
        bytes.extend_from_slice(&some);
    }
    Ok(bytes)
}

/// B2's short word for a refusal. Nothing else of such an answer is shown: it might echo the credentials.
fn code_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        code: String,
    }
    let code = serde_json::from_slice(body).map(|refusal: Refusal| refusal.code).unwrap_or_default();
    let plain = code.len() <= 40 && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    if plain { code } else { String::new() }
}

/// The parts of the answer that matter here. Version 3 nests them in `apiInfo.storageApi`, version 2 has the URL at
/// the top and the rest in `allowed`, version 4 has both nestings.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    account_id: Option<String>,
    api_info: Option<ApiInfo>,
    s3_api_url: Option<String>,
    allowed: Option<Allowed>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ApiInfo {
    storage_api: Option<StorageApi>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StorageApi {
    s3_api_url: Option<String>,
    allowed: Option<Allowed>,
    #[serde(flatten)]
    own: Allowed,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Allowed {
    capabilities: Option<Vec<String>>,
    bucket_id: Option<String>,
    bucket_name: Option<String>,
    buckets: Option<Vec<NamedBucket>>,
    name_prefix: Option<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct NamedBucket {
    name: Option<String>,
}

impl Answer {
    fn storage(&self) -> Option<&StorageApi> {
        self.api_info.as_ref()?.storage_api.as_ref()
    }

    fn allowed(&self) -> Option<&Allowed> {
        let storage = self.storage();
        storage
            .and_then(|storage| storage.allowed.as_ref())
            .or_else(|| storage.map(|storage| &storage.own).filter(|own| own.capabilities.is_some()))
            .or(self.allowed.as_ref())
    }
}

fn check(answer: &Answer, bucket: &Bucket) -> Result<()> {
    if answer.account_id.as_ref() == Some(&bucket.key_id) {
        return Err(Error::new(
            Code::Auth,
            "keyId is the master key of the account, which B2's S3 service does not accept",
        )
        .advise("create an application key for this bucket and use that"));
    }
    let Some(allowed) = answer.allowed() else { return Ok(()) };
    let has = |needed: &&str| allowed.capabilities.iter().flatten().any(|capability| capability == needed);
    let missing: Vec<_> = NEEDED.into_iter().filter(|needed| !has(needed)).collect();
    if !missing.is_empty() {
        return Err(Error::new(Code::Auth, format!("the key lacks the capabilities {}", missing.join(", ")))
            .advise("create an application key that may read and write, and use that"));
    }
    check_bucket(allowed, &bucket.name)?;
    let restriction = allowed.name_prefix.as_deref().unwrap_or_default();
    if !bucket.name_of("").starts_with(restriction) {
        let problem = format!("{:?} is not below {restriction:?}, to which the key is restricted", bucket.prefix);
        return Err(Error::config("prefix", problem));
    }
    Ok(())
}

fn check_bucket(allowed: &Allowed, bucket: &str) -> Result<()> {
    let names: Vec<&str> = match &allowed.buckets {
        Some(buckets) => buckets.iter().filter_map(|bucket| bucket.name.as_deref()).collect(),
        None => allowed.bucket_name.as_deref().into_iter().collect(),
    };
    // A bucket that was deleted has an id and no name.
    let restricted = allowed.bucket_id.is_some() || allowed.buckets.is_some() || !names.is_empty();
    if !restricted || names.contains(&bucket) {
        return Ok(());
    }
    let only = if names.is_empty() { "one that no longer exists".to_owned() } else { format!("{names:?}") };
    Err(Error::config("bucket", format!("the key does not open {bucket:?}: it is restricted to {only}")))
}

fn place_of(answer: &Answer) -> Result<Place> {
    let url = answer.storage().and_then(|storage| storage.s3_api_url.as_ref()).or(answer.s3_api_url.as_ref());
    let Some(url) = url else {
        return Err(Error::new(Code::Network, format!("{ATTEMPT}: the answer names none")).advise("set region"));
    };
    let endpoint = http::credential_safe_url("endpoint", url).map_err(|error| {
        Error::new(Code::Network, format!("{ATTEMPT}: the answer names one that cannot be used"))
            .advise("set region")
            .because(error.to_string())
    })?;
    let region = endpoint.strip_prefix("https://s3.").and_then(|rest| rest.strip_suffix(".backblazeb2.com"));
    Ok(Place { region: region.unwrap_or("us-east-1").to_owned(), endpoint })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use proptest::prelude::*;

    fn bucket() -> Bucket {
        Bucket {
            key_id: "004fa1b2c3d4e5f0000000001".into(),
            application_key: Secret::new("secret"),
            name: "mine".into(),
            prefix: "openclaw-backup".into(),
        }
    }

    fn judged(answer: &serde_json::Value) -> Result<Place> {
        let answer = serde_json::from_value(answer.clone()).unwrap();
        check(&answer, &bucket())?;
        place_of(&answer)
    }

    const URL: &str = "https://s3.us-west-004.backblazeb2.com";

    fn version_3(more: &serde_json::Value) -> serde_json::Value {
        let mut storage = serde_json::json!({
            "s3ApiUrl": URL, "bucketId": null, "bucketName": null, "namePrefix": null,
            "capabilities": ["listFiles", "readFiles", "writeFiles", "listBuckets"],
        });
        for (field, value) in more.as_object().unwrap() {
            storage[field] = value.clone();
        }
        serde_json::json!({ "accountId": "fa1b2c3d4e5f", "apiInfo": { "storageApi": storage, "groupsApi": {} } })
    }

    #[test]
    fn every_version_of_the_answer_names_endpoint_and_region() {
        let capabilities = serde_json::json!(["listFiles", "readFiles", "writeFiles"]);
        let version_2 =
            serde_json::json!({ "s3ApiUrl": URL, "allowed": { "capabilities": capabilities, "bucketName": "mine" } });
        let version_4 = serde_json::json!({ "apiInfo": { "storageApi": { "s3ApiUrl": URL, "allowed": {
            "capabilities": capabilities, "buckets": [{ "id": "1", "name": "mine" }], "namePrefix": "openclaw-backup/" } } } });
        for answer in [version_2, version_3(&serde_json::json!({})), version_4] {
            let place = judged(&answer).unwrap();
            assert_eq!(place, Place { endpoint: URL.into(), region: "us-west-004".into() });
        }
        assert_eq!(place_in("us-west-004").unwrap(), Place { endpoint: URL.into(), region: "us-west-004".into() });
    }

    #[test]
    fn a_missing_capability_is_named() {
        let error =
            judged(&version_3(&serde_json::json!({ "capabilities": ["listFiles", "shareFiles"] }))).unwrap_err();
        assert_eq!(error.code(), Code::Auth);
        assert!(
            error.to_string().contains("readFiles, writeFiles") && !error.to_string().contains("listFiles"),
            "{error}"
        );
    }

    #[test]
    fn a_key_that_cannot_delete_is_enough_for_backups() {
        judged(&version_3(&serde_json::json!({ "capabilities": ["listFiles", "readFiles", "writeFiles"] }))).unwrap();
    }

    #[test]
    fn a_restriction_that_does_not_fit_names_the_field() {
        for (restriction, field) in [
            (serde_json::json!({ "bucketId": "1", "bucketName": "other" }), "bucket"),
            (serde_json::json!({ "bucketId": "1", "bucketName": null }), "bucket"),
            (serde_json::json!({ "namePrefix": "elsewhere/" }), "prefix"),
            (serde_json::json!({ "namePrefix": "openclaw-backup/deeper/" }), "prefix"),
        ] {
            let error = judged(&version_3(&restriction)).unwrap_err();
            assert_eq!(error.code(), Code::Config, "{restriction}");
            assert!(error.to_string().starts_with(&format!("{field}: ")), "{error}");
        }
        for fits in [
            serde_json::json!({ "bucketId": "1", "bucketName": "mine" }),
            serde_json::json!({ "namePrefix": "openclaw-backup/" }),
            serde_json::json!({ "namePrefix": "openclaw" }),
            serde_json::json!({ "namePrefix": "" }),
        ] {
            judged(&version_3(&fits)).unwrap();
        }
    }

    #[test]
    fn the_master_key_is_recognised() {
        let mut answer = version_3(&serde_json::json!({}));
        answer["accountId"] = bucket().key_id.into();
        assert_eq!(judged(&answer).unwrap_err().code(), Code::Auth);
    }

    #[test]
    fn an_endpoint_that_would_expose_backups_is_refused() {
        for url in ["http://s3.us-west-004.backblazeb2.com", "file:///etc", "https://user@host", "", "://"] {
            let error = judged(&version_3(&serde_json::json!({ "s3ApiUrl": url }))).unwrap_err();
            assert_eq!(error.code(), Code::Network, "{url}");
        }
        assert!(judged(&serde_json::json!({})).is_err());
    }

    #[test]
    fn a_region_cannot_smuggle_in_another_host() {
        for region in ["", "evil.example/", "us west", "x@evil", "us-west-004.evil"] {
            assert_eq!(place_in(region).unwrap_err().code(), Code::Config, "{region}");
        }
    }

    #[test]
    fn a_refusal_shows_only_a_code() {
        assert_eq!(code_of(br#"{"code":"bad_auth_token","message":"secret"}"#), "bad_auth_token");
        for body in [&b"secret"[..], br#"{"code":"Basic c2VjcmV0"}"#, b"{}", b""] {
            assert_eq!(code_of(body), "");
        }
    }

    proptest! {
        #[test]
        fn a_place_that_is_taken_from_an_answer_is_encrypted(
            url in "(https?://)?(s3\\.)?[a-z0-9.@:/?#-]{0,20}(\\.backblazeb2\\.com)?|\\PC{0,20}",
            field in prop::sample::select(vec!["s3ApiUrl", "capabilities", "bucketId", "bucketName", "namePrefix", "buckets"]),
            value in prop::sample::select(vec![
                serde_json::json!(null), serde_json::json!(7), serde_json::json!([]), serde_json::json!(["listFiles", null]),
                serde_json::json!([{}]), serde_json::json!("x"), serde_json::json!({}),
            ]),
        ) {
            let mut answer = version_3(&serde_json::json!({ "s3ApiUrl": url }));
            if let Ok(answer) = serde_json::from_value::<Answer>(answer.clone())
                && let Ok(place) = place_of(&answer)
            {
                prop_assert!(place.endpoint.starts_with("https://") || place.endpoint.starts_with("http://localhost")
                    || place.endpoint.starts_with("http://127."), "{}", place.endpoint);
            }
            answer["apiInfo"]["storageApi"][field] = value;
            if let Ok(answer) = serde_json::from_slice::<Answer>(answer.to_string().as_bytes()) {
                let _ = check(&answer, &bucket()).and_then(|()| place_of(&answer));
            }
        }
    }
}
