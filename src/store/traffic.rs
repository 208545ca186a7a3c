//! What has gone over the wire: counted where it happens, in the HTTP connector and in the local directory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Requests and bytes since a store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Attempts, each page of a listing and each repetition among them; for a directory, calls.
    pub requests: u64,
    /// Bytes of request bodies sent, also by attempts that failed. Headers and TLS are not counted.
    pub sent_bytes: u64,
    /// Bytes of response bodies received, also by attempts that failed.
    pub received_bytes: u64,
    /// Of the requests those that B2 counts as class B: reading an object or what is said of it.
    pub class_b: u64,
    /// Of the requests those that B2 counts as class C: listing, authorizing and asking for a bucket's rules.
    pub class_c: u64,
}

/// How Backblaze B2 counts a call (<https://www.backblaze.com/cloud-storage/transaction-pricing>, read 2026-11-21).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallClass {
    /// Uploads and deletions, which have never cost anything.
    A,
    /// Downloads.
    B,
    /// Listings and everything else.
    C,
}

impl CallClass {
    /// The class of a request by its method and URL.
    pub(super) fn of(method: &str, url: &str) -> Self {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let asks = |names: &[&str]| {
            query.split('&').any(|field| names.contains(&field.split_once('=').map_or(field, |(name, _)| name)))
        };
        match method {
            _ if path.contains("/b2api/") => Self::C,
            "PUT" | "DELETE" => Self::A,
            "GET" if asks(&["list-type", "versions", "lifecycle"]) => Self::C,
            "GET" | "HEAD" => Self::B,
            _ => Self::C,
        }
    }
}

/// The running counters behind [`StoreStats`]. They may be read at any time from any thread.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    class_b: AtomicU64,
    class_c: AtomicU64,
    answered: AtomicBool,
}

impl Traffic {
    /// What has been counted so far.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            requests: self.requests.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            received_bytes: self.received_bytes.load(Ordering::Relaxed),
            class_b: self.class_b.load(Ordering::Relaxed),
            class_c: self.class_c.load(Ordering::Relaxed),
        }
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request by its class too.
    pub(super) fn call(&self, class: CallClass) {
        self.request();
        match class {
            CallClass::A => {}
            CallClass::B => _ = self.class_b.fetch_add(1, Ordering::Relaxed),
            CallClass::C => _ = self.class_c.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that the other side has answered, if only with an error.
    pub(super) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }

    /// Whether the other side has ever answered.
    pub(super) fn was_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_as_b2_counts_them() {
        let class =
            |method, rest: &str| CallClass::of(method, &format!("https://s3.us-west-004.backblazeb2.com/{rest}"));
        for (method, rest, expected) in [
            ("PUT", "bucket/p/packs/00/x?x-id=PutObject", CallClass::A),
            ("DELETE", "bucket/p/packs/00/x?versionId=1", CallClass::A),
            ("PUT", "bucket/p/packs/00/x?retention", CallClass::A),
            ("GET", "bucket/p/packs/00/x?x-id=GetObject", CallClass::B),
            ("HEAD", "bucket/p/packs/00/x", CallClass::B),
            ("GET", "bucket/?object-lock", CallClass::B),
            ("GET", "bucket/?list-type=2&prefix=p%2F", CallClass::C),
            ("GET", "bucket/?versions&prefix=p%2F", CallClass::C),
            ("GET", "bucket/?lifecycle", CallClass::C),
            ("GET", "b2api/v3/b2_authorize_account", CallClass::C),
            ("POST", "b2api/v3/b2_list_buckets", CallClass::C),
        ] {
            assert_eq!(class(method, rest), expected, "{method} {rest}");
        }
    }
}
