//! How much of the memory that was freed the process keeps.

/// Has glibc give memory back: by itself it maps ever larger pieces into its heaps once some were freed, and keeps a heap for
/// each thread. Packs, frames and trees are large, and come and go: a full restore of 300 MB from a directory took 179 MB that
/// way, and takes 106 MB with this. The process is one that only makes backups, see `js/worker.js`.
///
/// Not the small change: what arrives from a store comes in pieces of some hundred KiB. Mapped, or taken from the system, for each
/// of them anew, their memory cost a tenth of the time of a restore and of a first push in page faults; kept, it is 1 to 4 MB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code)]
pub(crate) fn return_what_is_freed() {
    // glibc's default, which ends its adapting once it is set (mallopt(3)).
    const TRIM_THRESHOLD: libc::c_int = 128 << 10;
    const ARENAS: libc::c_int = 2;
    // Pieces are smaller, frames and packs larger.
    const MMAP_THRESHOLD: libc::c_int = 1 << 20;
    const TOP_PAD: libc::c_int = 1 << 20;
    // SAFETY: mallopt(3) is thread-safe, takes integers, and changes nothing of what is allocated.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD);
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD);
        libc::mallopt(libc::M_TOP_PAD, TOP_PAD);
    }
}

/// Other C libraries give it back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn return_what_is_freed() {}
