//! The stored format, version 1; `docs/format.md` gives its bytes.

pub mod chunk;
pub mod contents;
pub mod id;
pub mod index;
pub mod keyring;
pub mod keys;
pub mod legacy;
pub mod manifest;
pub mod open;
pub mod pack;
pub mod pages;
pub mod plain;
pub mod read;
pub mod recovery_code;
pub mod restore;
pub mod seal;
pub mod selector;
pub mod slot;
pub mod tree;
pub mod write;
