//! Snapshots that openclaw-b2-backup 0.1.x has written: they are listed, restored and imported, never written or removed.
//!
//! One snapshot is a folder named after its time. Its `manifest.json` lists every file with path, SHA-256 and size, in
//! plain JSON that nothing authenticates. Beside it lie the files that had changed since the snapshot before, each an
//! object of its own ([`b2en`], or plain); the others lie in older folders, where their hash finds them ([`source`]).
//! `docs/format.md`, section 16, has the details.

pub mod b2en;
pub mod catalog;
pub mod manifest;
pub mod scope;
pub mod source;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;

use super::id::SnapshotId;
use crate::error::{Code, Error, Result};
use crate::store::ObjectMeta;

/// What the folders of its safety snapshots begin with.
const SAFETY_PREFIX: &str = "safety-";
/// How it names a time; those of early versions have no milliseconds.
const TIMES: [&[u8]; 2] = [b"dddd-dd-ddTdd-dd-ddZ", b"dddd-dd-ddTdd-dd-dd-dddZ"];

/// The folder of a snapshot of 0.1.x: `2026-02-19T00-00-00Z` or `2026-02-19T00-00-00-123Z-7f3a91c2`, the same after
/// `safety-`, or one of these in a folder `safety-2026-02-19T00-00-00Z`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegacyId {
    // First, so that ids are ordered by it.
    time: jiff::Timestamp,
    text: String,
}

impl LegacyId {
    /// When the snapshot was taken, by the clock of the machine that took it.
    #[must_use]
    pub fn time(&self) -> jiff::Timestamp {
        self.time
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it was taken before a restore.
    #[must_use]
    pub fn is_safety(&self) -> bool {
        self.text.starts_with(SAFETY_PREFIX)
    }

    /// The key of its manifest.
    #[must_use]
    pub fn manifest_key(&self) -> String {
        self.key_of("manifest.json")
    }

    /// The key of an object in its folder.
    #[must_use]
    pub fn key_of(&self, path: &str) -> String {
        format!("{}/{path}", self.text)
    }
}

impl fmt::Display for LegacyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for LegacyId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (outer, inner) = text.split_once('/').map_or((text, None), |(outer, inner)| (outer, Some(inner)));
        let outer_time = time(outer.strip_prefix(SAFETY_PREFIX).unwrap_or(outer));
        let time = match inner {
            None => outer_time,
            Some(inner) => outer_time.filter(|_| outer.starts_with(SAFETY_PREFIX)).and_then(|_| time(inner)),
        };
        // What the format of today names is never one of these.
        match time.filter(|_| outer.parse::<SnapshotId>().is_err()) {
            Some(time) => Ok(Self { time, text: text.to_owned() }),
            None => Err(Error::new(Code::NotFound, format!("{text:?} is not the id of a snapshot of 0.1.x"))),
        }
    }
}

/// The time that the name of a folder gives, whose end may be a part of a UUID.
fn time(name: &str) -> Option<jiff::Timestamp> {
    let (time, suffix) = name.split_at_checked(name.find('Z')? + 1)?;
    let is_suffix = |suffix: &str| suffix.len() == 8 && suffix.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let fits = |shape: &[u8]| {
        shape.len() == time.len()
            && time
                .bytes()
                .zip(shape)
                .all(|(byte, shape)| if *shape == b'd' { byte.is_ascii_digit() } else { byte == *shape })
    };
    if !TIMES.iter().any(|shape| fits(shape)) || !(suffix.is_empty() || suffix.strip_prefix('-').is_some_and(is_suffix))
    {
        return None;
    }
    let (date, rest) = time.split_once('T')?;
    let mut parts = rest.trim_end_matches('Z').splitn(4, '-');
    let clock = format!("{}:{}:{}", parts.next()?, parts.next()?, parts.next()?);
    let fraction = parts.next().map(|millis| format!(".{millis}")).unwrap_or_default();
    format!("{date}T{clock}{fraction}Z").parse().ok()
}

/// One folder as a listing shows it.
#[derive(Debug, Clone)]
pub struct Folder {
    /// Its manifest.
    pub manifest: ObjectMeta,
    /// The other objects, by path below the folder, with their stored sizes in bytes.
    pub files: HashMap<String, u64>,
}

/// The folders of a listing that have a manifest, ordered by time.
#[derive(Debug, Clone, Default)]
pub struct Folders(BTreeMap<LegacyId, Folder>);

impl Folders {
    /// Sorts out the objects that nothing else knows.
    #[must_use]
    pub fn new(objects: Vec<ObjectMeta>) -> Self {
        let mut files: HashMap<LegacyId, HashMap<String, u64>> = HashMap::new();
        let mut folders = BTreeMap::new();
        for object in objects {
            let Some((id, path)) = split(&object.key) else { continue };
            if path == "manifest.json" {
                folders.insert(id, Folder { manifest: object, files: HashMap::new() });
            } else {
                let (path, size) = (path.to_owned(), object.size);
                files.entry(id).or_default().insert(path, size);
            }
        }
        for (id, files) in files {
            // What has no manifest was not finished.
            if let Some(folder) = folders.get_mut(&id) {
                folder.files = files;
            }
        }
        Self(folders)
    }

    /// The ids and folders, oldest first.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&LegacyId, &Folder)> {
        self.0.iter()
    }

    /// Whether there is a snapshot of this id.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        id.parse().is_ok_and(|id| self.0.contains_key(&id))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The folder that a key lies in, and the path below it.
fn split(key: &str) -> Option<(LegacyId, &str)> {
    let (first, rest) = key.split_once('/')?;
    if let Some((second, rest)) = rest.split_once('/')
        && let Ok(id) = format!("{first}/{second}").parse()
    {
        return Some((id, rest));
    }
    Some((first.parse().ok()?, rest)).filter(|(_, path)| !path.is_empty())
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_name_that_0_1_x_gave_is_known_with_its_time() {
        for (text, expected) in [
            ("2026-02-19T01-02-03Z", "2026-02-19T01:02:03Z"),
            ("2026-02-19T01-02-03-456Z-7f3a91c2", "2026-02-19T01:02:03.456Z"),
            ("safety-2026-02-19T01-02-03Z", "2026-02-19T01:02:03Z"),
            ("safety-2026-02-19T01-02-03Z/2026-02-19T01-02-04Z", "2026-02-19T01:02:04Z"),
            ("safety-2026-02-19T01-02-03Z/2026-02-19T01-02-04-001Z-00000000", "2026-02-19T01:02:04.001Z"),
        ] {
            let id: LegacyId = text.parse().unwrap();
            assert_eq!((id.as_str(), id.time().to_string().as_str()), (text, expected));
            assert_eq!(id.is_safety(), text.starts_with("safety"));
        }
    }

    #[test]
    fn a_snapshot_of_today_is_none_of_0_1_x_nor_is_anything_else() {
        for text in [
            "2026-02-19T00-00-00Z-7f3a91c2",
            "safety-2026-02-19T00-00-00Z-7f3a91c2",
            "2026-13-19T00-00-00Z",
            "2026-02-19T00-00-00Z-7F3A91C2",
            "2026-02-19T00-00-00Z/2026-02-19T00-00-00Z",
            "safety-2026-02-19T00-00-00Z/workspace",
            "safety-safety-2026-02-19T00-00-00Z",
            "latest",
            "keys",
            "",
        ] {
            assert!(text.parse::<LegacyId>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_folder_without_a_manifest_is_no_snapshot() {
        let object = |key: &str| ObjectMeta { key: key.into(), size: 1, modified: SystemTime::UNIX_EPOCH };
        let folders = Folders::new(
            [
                "2026-02-19T00-00-00Z/workspace/a",
                "2026-02-19T00-00-00Z/manifest.json",
                "2026-02-20T00-00-00Z/workspace/a",
                "safety-2026-02-21T00-00-00Z/2026-02-21T00-00-01Z/manifest.json",
                "safety-2026-02-21T00-00-00Z/2026-02-21T00-00-01Z/openclaw.json",
                "somebody/elses",
            ]
            .map(object)
            .into(),
        );
        let found: Vec<_> = folders.iter().map(|(id, folder)| (id.as_str(), folder.files.len())).collect();
        assert_eq!(found, [("2026-02-19T00-00-00Z", 1), ("safety-2026-02-21T00-00-00Z/2026-02-21T00-00-01Z", 1)]);
    }

    proptest! {
        #[test]
        fn an_id_is_taken_as_it_is_or_not_at_all_and_its_keys_lead_back_to_it(
            text in "(safety-)?[0-9é]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]-[0-6][0-9]-[0-6][0-9](-[0-9]{2,4})?Z(-[0-9a-g]{7,9})?(/[0-9]{4}-01-01T00-00-00Z)?|\\PC{0,40}",
            path in "[a-z./-]{1,20}",
        ) {
            if let Ok(id) = text.parse::<LegacyId>() {
                prop_assert_eq!(id.as_str(), &text);
                prop_assert!(text.parse::<SnapshotId>().is_err());
                prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'/'));
                let key = id.key_of(&path);
                prop_assert_eq!(split(&key), Some((id, path.as_str())));
            }
        }
    }
}
