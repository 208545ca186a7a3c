//! Every parser of stored bytes as a function of bytes, for the targets in `fuzz/` and the property test of this file.
//!
//! Each takes whatever bytes there are, and panics where something is accepted that may not be: finding no panic is the test.
//! Bytes that are parsed only after they were opened are sealed first, as somebody who has the key could.

use std::time::SystemTime;

use crate::repository::contents::Contents;
use crate::repository::id::{ChunkId, IndexId, MasterKeyId, PackId, SlotId, SnapshotId};
use crate::repository::index::{Index, IndexObject, PackEntry, open_index};
use crate::repository::manifest::Summary;
use crate::repository::pack::{MAX_FRAME, MAX_PACK, PackOpener, compress, decompress, pack_key};
use crate::repository::pages::{make_absolute, make_relative};
use crate::repository::read::check_parents;
use crate::repository::seal::{Header, MasterKey, Role, Sealer};
use crate::repository::slot::Slot;
use crate::repository::tree::{Entries, Entry, Kind};
use crate::state::swap;
use crate::store::{Listing, ObjectMeta};

/// A target: its name in `fuzz/fuzz_targets/`, what it does with bytes, and bytes that are worth starting from.
pub type Target = (&'static str, fn(&[u8]), fn() -> Vec<u8>);

/// All of them.
pub const TARGETS: [Target; 9] = [
    ("slot", slot, || b"{\"format\":1,\"id\":\"00000000000000000000000000000000\"}".to_vec()),
    ("manifest", manifest, a_manifest),
    ("index", index, an_index),
    ("pack", pack, a_pack),
    ("frame", frame, || [&[0, 1, 0, 0, 0, 2, 0, 0, 0][..], b"hi"].concat()),
    ("tree", tree, a_tree),
    ("page", page, a_page),
    ("names", names, || b"packs/aa/x\nindex/y\n2026-02-19T00-00-00Z-7f3a91c2/manifest.json".to_vec()),
    ("journal", journal, || b"{\"format\":1,\"undo\":false,\"mounts\":[],\"steps\":[]}".to_vec()),
];

fn keys() -> [MasterKey; 2] {
    [MasterKey::plain(), MasterKey::from_parts(MasterKeyId([1; 16]), [2; 32])]
}

fn snapshot() -> SnapshotId {
    "2026-02-19T00-00-00Z-7f3a91c2".parse().expect("it is one")
}

/// A key slot.
pub fn slot(bytes: &[u8]) {
    if let Ok(slot) = Slot::parse(bytes, SlotId([0; 16])) {
        let _ = slot.master_key();
        assert!(Slot::parse(&slot.to_bytes(), SlotId([0; 16])).is_ok());
    }
}

/// A manifest, and the sealed body of one.
pub fn manifest(bytes: &[u8]) {
    use base64::Engine;
    for key in keys() {
        let _ = Summary::from_manifest(&snapshot(), bytes, |_, _| Ok(&key));
        let time = snapshot().time();
        let header = Header { role: Role::Manifest, master_key: key.id, salt: [0; 32] };
        let mut body = bytes.to_vec();
        Sealer::with_header(&key, header, &format!("{}\n{time}", snapshot().manifest_key())).seal(0, true, &mut body);
        let body = base64::engine::general_purpose::STANDARD.encode(body);
        let (salt, key_id) = ("00".repeat(32), key.id);
        let stored = format!(
            r#"{{"format":1,"snapshot":"{}","createdAt":"{time}","masterKey":"{key_id}","salt":"{salt}","body":"{body}"}}"#,
            snapshot()
        );
        if let Ok(summary) = Summary::from_manifest(&snapshot(), stored.as_bytes(), |_, _| Ok(&key)) {
            assert!(summary.tree.chunks.len() <= 32 && summary.created_at == time);
        }
    }
}

/// An index object: as stored, as compressed, and as CBOR.
pub fn index(bytes: &[u8]) {
    for key in keys() {
        let _ = open_index(IndexId([0; 16]), bytes, |_, _| Ok(&key));
    }
    let _ = IndexObject::from_compressed(bytes, "index/x");
    let compressed = compress(bytes).unwrap_or_default();
    let Ok(object) = IndexObject::from_compressed(&compressed, "index/x") else { return };
    for pack in object.live.iter().chain(&object.condemned) {
        assert!(pack.size <= MAX_PACK);
        for frame in &pack.frames {
            assert!(frame.offset + u64::from(frame.length) <= pack.size);
            assert_eq!(frame.chunk_ids().len(), frame.chunks().count());
        }
    }
    let ids: Vec<ChunkId> = object.live.iter().flat_map(PackEntry::chunk_ids).collect();
    let index = Index::new([object], |_| true);
    assert!(ids.iter().all(|id| index.find(*id).is_some()));
}

/// A pack, read without an index, and against an index entry of its own.
pub fn pack(bytes: &[u8]) {
    let id = PackId([0; 16]);
    for key in keys() {
        if let Ok(entry) = PackEntry::of_pack(id, bytes, |_, _| Ok(&key)) {
            assert!(entry.lacking(bytes, |_, _| Ok(&key)).is_empty());
        }
    }
}

/// A frame's payload, and the frame in it compressed.
pub fn frame(payload: &[u8]) {
    let _ = decompress(payload, MAX_FRAME);
    let mut packed = vec![1];
    packed.extend(compress(payload).unwrap_or_default());
    for key in keys() {
        let id = PackId([0; 16]);
        let header = Header { role: Role::Pack, master_key: key.id, salt: [0; 32] };
        let bytes = header.to_bytes();
        let Ok(mut opener) = PackOpener::new(id, &bytes, |_, _| Ok(&key)) else { panic!("the header is one") };
        for payload in [payload.to_vec(), packed.clone()] {
            let mut sealed = payload;
            Sealer::with_header(&key, Header { role: Role::Pack, master_key: key.id, salt: [0; 32] }, &pack_key(id))
                .seal(0, false, &mut sealed);
            if let Ok(frame) = opener.frame(0, &mut sealed) {
                let content: usize = (0..frame.len()).filter_map(|chunk| frame.content(chunk)).map(<[u8]>::len).sum();
                assert!(content <= MAX_FRAME + 4 && frame.content(frame.len()).is_none());
            }
        }
    }
}

/// A tree stream. What passes stays inside, whatever it is written to.
pub fn tree(bytes: &[u8]) {
    let Ok(entries) = Entries::new(bytes).collect::<crate::Result<Vec<Entry>>>() else { return };
    for pair in entries.windows(2) {
        assert!(pair[0].path < pair[1].path);
    }
    for entry in entries.iter().filter(|entry| entry.kind != Kind::Exception) {
        let is_plain = |part| matches!(part, std::path::Component::Normal(_));
        assert!(std::path::Path::new(&entry.path).components().all(is_plain), "{:?}", entry.path);
        assert!(!entry.path.contains('\0') && entry.mode <= 0o7777);
        assert_eq!(entry.has_content() && entry.size > 0, entry.chunks().len() > 0);
    }
    let _ = check_parents(&entries);
}

/// A page of a database, stored with relative numbers.
pub fn page(bytes: &[u8]) {
    for number in [1, 2, 3, u32::MAX] {
        let mut page = bytes.to_vec();
        make_absolute(&mut page, number);
        assert_eq!(page.len(), bytes.len());
        make_relative(&mut page, number);
        assert_eq!(page.len(), bytes.len());
    }
}

/// The names in a listing, one a line. What is known is known by its own name.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let object = |key: &str| ObjectMeta { key: key.into(), size: 1, modified: SystemTime::UNIX_EPOCH };
    let contents = Contents::new(Listing { objects: text.lines().map(object).collect() });
    for id in contents.packs.keys() {
        assert!(text.lines().any(|line| line == pack_key(*id)));
    }
    for (id, _) in &contents.snapshots {
        assert!(text.lines().any(|line| line == id.manifest_key()));
        let _ = (id.time(), id.order(), id.is_safety());
    }
}

/// The journal of a rollback.
pub fn journal(bytes: &[u8]) {
    let _ = swap::is_journal(bytes);
}

fn a_manifest() -> Vec<u8> {
    br#"{"createdAt":"2026-02-19T00:00:00Z","trigger":"manual","machine":"05050505050505050505050505050505","host":"h",
        "writer":"0","files":1,"bytes":14,"exceptions":0,"firstExceptions":[],"tree":{"depth":0,"chunks":[]}}"#
        .to_vec()
}

fn an_index() -> Vec<u8> {
    use crate::repository::index::FrameEntry;
    let frames = vec![FrameEntry::new(60, 100, &[(ChunkId([3; 16]), 10), (ChunkId([4; 16]), 20)])];
    let pack = PackEntry { id: PackId([1; 16]), size: 1000, frames, header: vec![0; 56] };
    let object = IndexObject {
        live: vec![pack.clone()],
        condemned: vec![pack],
        damaged: vec![PackId([1; 16])],
        orphans: vec![PackId([3; 16])],
    };
    minicbor::to_vec(object).unwrap_or_default()
}

fn a_pack() -> Vec<u8> {
    let key = MasterKey::plain();
    let header = Header { role: Role::Pack, master_key: key.id, salt: [0; 32] };
    let mut bytes = header.to_bytes().to_vec();
    let sealer = Sealer::with_header(&key, header, &pack_key(PackId([0; 16])));
    for (number, mut part) in [vec![0, 1, 0, 0, 0, 2, 0, 0, 0, b'h', b'i'], Vec::new()].into_iter().enumerate() {
        sealer.seal(number as u64, part.is_empty(), &mut part);
        bytes.extend((part.len() as u32).to_le_bytes());
        bytes.extend(part);
    }
    bytes
}

fn a_tree() -> Vec<u8> {
    use crate::repository::tree::Content;
    let mut stream = Vec::new();
    let content = Content { size: 2, sha256: [7; 32], chunks: vec![ChunkId([3; 16])] };
    Entry::new("a", Kind::Directory, 0o755, 0).write(&mut stream);
    Entry::new("a/b", Kind::File, 0o644, -1).with_content(&content).write(&mut stream);
    Entry::new("c", Kind::Symlink, 0o777, 0).with_target("a").write(&mut stream);
    let pages = Content { size: 4096, ..content };
    let mut database = Entry::new("d", Kind::Database, 0o600, 0).with_content(&pages);
    database.relative_pages = Some(4096);
    database.write(&mut stream);
    stream
}

/// A leaf of a table with one row, which goes on in another page.
fn a_page() -> Vec<u8> {
    let mut page = vec![0; 512];
    page[..10].copy_from_slice(&[13, 0, 0, 0, 1, 0, 16, 0, 0, 16]);
    // 2,000 bytes in row 1, of which 476 are here.
    page[16..19].copy_from_slice(&[0x8f, 0x50, 1]);
    page[19 + 476 + 3] = 9;
    page
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_worth_starting_from_is_accepted() {
        let key = MasterKey::plain();
        assert!(PackEntry::of_pack(PackId([0; 16]), &a_pack(), |_, _| Ok(&key)).is_ok());
        assert!(IndexObject::from_compressed(&compress(&an_index()).unwrap(), "index/x").is_ok());
        assert_eq!(Entries::new(&a_tree()).collect::<crate::Result<Vec<_>>>().unwrap().len(), 4);
        let mut page = a_page();
        make_relative(&mut page, 3);
        assert_eq!(page[19 + 476..][..4], [0, 0, 0, 6]);
        for (name, target, seed) in TARGETS {
            target(&seed());
            // For scripts/fuzz.mjs.
            if let Some(corpus) = std::env::var_os("FUZZ_CORPUS") {
                std::fs::write(std::path::Path::new(&corpus).join(name).join("seed"), seed()).unwrap();
            }
        }
    }

    #[test]
    fn every_target_has_its_file_and_every_file_its_target() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap().replace(".rs", ""))
            .collect();
        files.sort();
        let mut names: Vec<&str> = TARGETS.iter().map(|(name, ..)| *name).collect();
        names.sort_unstable();
        assert_eq!(files, names);
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            for (_, target, _) in TARGETS {
                target(&bytes);
            }
        }

        #[test]
        fn whatever_is_changed_in_good_ones(
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
            cut in any::<proptest::sample::Index>(), is_cut in any::<bool>(),
        ) {
            for (_, target, seed) in TARGETS {
                let mut bytes = seed();
                for (at, byte) in &changes {
                    let at = at.index(bytes.len());
                    bytes[at] = *byte;
                }
                if is_cut {
                    bytes.truncate(cut.index(bytes.len()));
                }
                target(&bytes);
            }
        }
    }
}
