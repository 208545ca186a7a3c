//! The names of things in a repository: 16 random bytes for keys, packs and index objects, 16 keyed-hash bytes for
//! chunks, and the readable ids of snapshots.

use std::fmt;
use std::str::FromStr;

use crate::error::{Code, Error, Result};

/// 16 bytes, written as 32 lowercase hexadecimal digits.
macro_rules! id16 {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                unhex(text).map(Self).ok_or_else(|| {
                    Error::new(Code::Corrupt, concat!("not a ", stringify!($name), ": 32 hexadecimal digits expected"))
                })
            }
        }
    };
}

id16!(
    /// Names a master key.
    MasterKeyId
);
id16!(
    /// Names a key slot.
    SlotId
);
id16!(
    /// Names a pack.
    PackId
);
id16!(
    /// Names an index object.
    IndexId
);
id16!(
    /// Names a chunk: the first 16 bytes of its keyed BLAKE3 hash. 128 bits are enough because nobody without the key
    /// can search for collisions, and a restore also compares the SHA-256 of the whole file.
    ChunkId
);
id16!(
    /// Names a machine for retention; random, kept beside the local cache.
    MachineId
);

impl MasterKeyId {
    /// What stands in place of a master key's id in an unencrypted repository.
    pub const NONE: Self = Self([0; 16]);
}

/// Lowercase hexadecimal digits of `bytes`.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]).map(|digit| DIGITS[usize::from(digit)]).collect()
}

/// The bytes of `text`, if it is exactly `2 * N` lowercase hexadecimal digits.
#[must_use]
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// `N` bytes from the operating system's random number generator.
///
/// # Errors
/// `IO` when the operating system has none to give.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(Code::Io, format!("the operating system gives no random numbers: {error}")))?;
    Ok(bytes)
}

const SAFETY_PREFIX: &str = "safety-";

/// A snapshot's id: `2026-02-19T00-00-00Z-7f3a91c2`, or the same after `safety-`.
///
/// The time is by the store's clock, so that machines whose own clocks differ agree on the order. The suffix is random:
/// two machines that push in the same second write different manifests.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SnapshotId(String);

impl SnapshotId {
    /// A new id for a snapshot taken at `time`.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn generate(time: jiff::Timestamp, safety: bool) -> Result<Self> {
        let suffix = hex(&random::<4>()?);
        let prefix = if safety { SAFETY_PREFIX } else { "" };
        Ok(Self(format!("{prefix}{}-{suffix}", time.strftime("%Y-%m-%dT%H-%M-%SZ"))))
    }

    /// The id itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the snapshot was taken before a rollback, so that retention leaves it alone.
    #[must_use]
    pub fn is_safety(&self) -> bool {
        self.0.starts_with(SAFETY_PREFIX)
    }

    /// The key of its manifest.
    #[must_use]
    pub fn manifest_key(&self) -> String {
        format!("{}/manifest.json", self.0)
    }

    /// When the snapshot was taken, to the second, by the store's clock.
    ///
    /// # Panics
    /// Never: an id with an impossible time is refused when it is parsed.
    #[must_use]
    pub fn time(&self) -> jiff::Timestamp {
        self.parsed_time().expect("checked when the id was made")
    }

    fn parsed_time(&self) -> Option<jiff::Timestamp> {
        let (date, time) = self.order().get(..20)?.split_once('T')?;
        format!("{date}T{}", time.replace('-', ":")).parse().ok()
    }

    /// What orders snapshots: the time part, then the suffix.
    #[must_use]
    pub fn order(&self) -> &str {
        self.0.strip_prefix(SAFETY_PREFIX).unwrap_or(&self.0)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let rest = text.strip_prefix(SAFETY_PREFIX).unwrap_or(text);
        let shape = b"dddd-dd-ddTdd-dd-ddZ-hhhhhhhh";
        let fits = rest.len() == shape.len()
            && rest.bytes().zip(shape).all(|(byte, shape)| match shape {
                b'd' => byte.is_ascii_digit(),
                b'h' => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                _ => byte == *shape,
            });
        let id = Self(text.to_owned());
        if fits && id.parsed_time().is_some() {
            Ok(id)
        } else {
            Err(Error::new(Code::NotFound, format!("{text:?} is not a snapshot id")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_generated_snapshot_id_parses_and_knows_its_kind() {
        for safety in [false, true] {
            let id = SnapshotId::generate(jiff::Timestamp::UNIX_EPOCH, safety).unwrap();
            assert_eq!(id.as_str().parse::<SnapshotId>().unwrap(), id);
            assert_eq!(id.is_safety(), safety);
            assert!(id.order().starts_with("1970-01-01T00-00-00Z-"));
        }
    }

    #[test]
    fn what_is_not_a_snapshot_id_is_refused() {
        for text in
            ["", "latest", "2026-02-19T00-00-00Z", "2026-02-19T00-00-00Z-7F3A91C2", "../../etc/passwd-00-00-00Z"]
        {
            assert!(text.parse::<SnapshotId>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_one_spelling_and_nothing_else_is_an_id(bytes in any::<[u8; 16]>(), text in "\\PC{0,40}|[0-9a-fA-F]{30,34}") {
            prop_assert_eq!(ChunkId(bytes).to_string().parse::<ChunkId>().unwrap(), ChunkId(bytes));
            if let Ok(id) = text.parse::<ChunkId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }

        #[test]
        fn a_snapshot_id_is_taken_as_it_is_or_not_at_all(
            text in "(safety-){0,2}[0-9é]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]-[0-6][0-9]-[0-6][0-9]Z-[0-9a-g]{7,9}|\\PC{0,40}",
        ) {
            if let Ok(id) = text.parse::<SnapshotId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert_eq!(id.order().len(), 29);
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
            }
        }
    }
}
