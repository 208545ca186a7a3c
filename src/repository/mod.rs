//! The stored format, version 1; `docs/format.md` gives its bytes.

pub mod chunk;
pub mod id;
pub mod index;
pub mod manifest;
pub mod pack;
pub mod seal;
pub mod slot;
pub mod tree;
