//! The S3 servers that `npm test` starts, with the credentials AK and SK.

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};

/// The base URL that a variable of the environment holds.
pub fn server(variable: &str) -> String {
    let url = std::env::var(variable).unwrap_or_default();
    assert!(!url.is_empty(), "{variable} must hold the base URL of a server; see the head of the test's file");
    url.trim_end_matches('/').to_owned()
}

/// A client that may do everything.
pub fn client(server: &str) -> aws_sdk_s3::Client {
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
    aws_sdk_s3::Client::from_conf(config)
}

/// A bucket of its own for one test.
pub async fn new_bucket(server: &str) -> String {
    let name = format!("test-{:016x}", getrandom::u64().unwrap());
    client(server).create_bucket().bucket(&name).send().await.unwrap_or_else(|error| panic!("{server}: {error:?}"));
    name
}
