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
}

/// The running counters behind [`StoreStats`]. They may be read at any time from any thread.
#[derive(Debug, Default)]
pub struct Traffic {
    requests: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
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
        }
    }

    pub(super) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
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
