//! What `OpenClaw` keeps on disk: what belongs into a snapshot, how to read it while it is in use, how to replace it.

pub mod blank;
pub mod database;
pub mod openclaw_config;
pub mod places;
pub mod private;
pub mod rules;
pub mod scan;
pub mod swap;
