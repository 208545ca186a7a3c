//! Buckets of the S3 server that the tests are given, seen from outside: by the SDK and not by this crate.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

/// The base URL that a variable holds, without a slash at its end.
pub fn server(variable: &str) -> String {
    let url = std::env::var(variable).unwrap_or_default();
    assert!(!url.is_empty(), "{variable} must hold the base URL of a server; see the head of this file");
    url.trim_end_matches('/').to_owned()
}

/// A client with the credentials AK and SK.
pub fn client(server: &str) -> Client {
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .endpoint_url(server)
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("AK", "SK", None, None, "test"))
        .request_checksum_calculation(aws_sdk_s3::config::RequestChecksumCalculation::WhenRequired)
        .force_path_style(true)
        .http_client(http)
        .build();
    Client::from_conf(config)
}

/// The name of a bucket that did not exist before.
pub async fn new_bucket(server: &str) -> String {
    let name = format!("conformance-{:016x}", getrandom::u64().unwrap());
    client(server).create_bucket().bucket(&name).send().await.unwrap_or_else(|error| panic!("{server}: {error:?}"));
    name
}
