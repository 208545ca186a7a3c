//! Encrypted, incremental, deduplicated snapshots of one `OpenClaw` instance.
//!
//! Read from the outside in: [`commands`] has one file per verb, [`repository`] is the stored format, [`store`] is where
//! bytes go, [`state`] is what `OpenClaw` keeps on disk. `docs/format.md` gives the stored bytes.

// Not in the library's own tests: napi registers nothing there, and all of it would be dead code.
#[cfg(all(feature = "addon", not(test)))]
mod api;
pub mod cache;
pub mod commands;
pub mod config;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(all(feature = "addon", not(test)))]
mod memory;
pub mod repository;
pub mod state;
pub mod store;
mod task;

pub use error::{Code, Error, Result};
