//! Snapshots that say where files go by somebody else's will: nothing is written outside the directory that was named.
//!
//! The snapshots are sealed with the repository's own key, as one who has it could.

#![cfg(unix)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use common::{Bench, Node, Tree, assert_same, code, tree};
use openclaw_b2_backup::commands::{Operation, Trigger};
use openclaw_b2_backup::repository::id::{MachineId, SnapshotId};
use openclaw_b2_backup::repository::index::{IndexObject, index_key};
use openclaw_b2_backup::repository::manifest::Summary;
use openclaw_b2_backup::repository::open::{IfMissing, Repository};
use openclaw_b2_backup::repository::pack::{Compressor, FrameBuilder, PackBuilder, pack_key};
use openclaw_b2_backup::repository::tree::{Content, Entry, Kind, Root};
use sha2::{Digest, Sha256};

const EVIL: &[u8] = b"written by a hostile snapshot";

/// Stores a snapshot of these entries as they are. Files among them hold [`EVIL`].
fn store(bench: &Bench, entries: &[Entry]) -> String {
    store_with(bench, entries, EVIL)
}

/// [`store`] with another content under the name of [`EVIL`].
fn store_with(bench: &Bench, entries: &[Entry], content: &[u8]) -> String {
    bench.run(async {
        let opened = Repository::open(&bench.target, None, IfMissing::Create, &Operation::default()).await;
        let mut repository = opened.unwrap();
        repository.found().await.unwrap();
        let key = repository.keyring.writing().unwrap();
        let hasher = key.chunk_hasher();
        let evil = hasher.id(EVIL);
        let mut stream = Vec::new();
        for entry in entries {
            let named = Content { size: EVIL.len() as u64, sha256: Sha256::digest(EVIL).into(), chunks: vec![evil] };
            let entry = if entry.has_content() { entry.clone().with_content(&named) } else { entry.clone() };
            entry.write(&mut stream);
        }
        let tree = hasher.id(&stream);
        let (mut frame, mut pack) = (FrameBuilder::default(), PackBuilder::new(key).unwrap());
        frame.add(evil, content);
        frame.add(tree, &stream);
        pack.append(frame.finish(&mut Compressor::new().unwrap()).unwrap());
        let (entry, bytes) = pack.finish();
        repository.store.put(&pack_key(entry.id), Bytes::from(bytes)).await.unwrap();
        let (index, sealed, _) = IndexObject { live: vec![entry], ..IndexObject::default() }.seal(key).unwrap();
        repository.store.put(&index_key(index), Bytes::from(sealed)).await.unwrap();
        let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second() + 5).unwrap();
        let id = SnapshotId::generate(now, false).unwrap();
        let summary = Summary {
            created_at: now,
            trigger: Trigger::Manual,
            machine: MachineId([7; 16]),
            host: "elsewhere".into(),
            state_dir: None,
            places: Vec::new(),
            writer: "none".into(),
            files: 1,
            bytes: 1,
            exceptions: 0,
            dropped: 0,
            first_exceptions: Vec::new(),
            imported_from: None,
            shrunk: false,
            blank: false,
            tree: Root { depth: 0, chunks: vec![tree] },
        };
        let manifest = summary.to_manifest(&id, key).unwrap();
        repository.store.put(&id.manifest_key(), Bytes::from(manifest)).await.unwrap();
        id.to_string()
    })
}

fn file(path: &str) -> Entry {
    Entry::new(path, Kind::File, 0o644, 0)
}

fn folder(path: &str) -> Entry {
    Entry::new(path, Kind::Directory, 0o755, 0)
}

fn link(path: &str, target: &Path) -> Entry {
    Entry::new(path, Kind::Symlink, 0o777, 0).with_target(target.to_str().unwrap())
}

/// Everything in the test's own folder besides the state, the repository and what was pulled.
fn surroundings(bench: &Bench) -> Tree {
    let mut found = tree(bench.root.path());
    found.retain(|path, node| {
        let ours = ["state", "repository", "to", "no-state"].iter().any(|own| path.split('/').next() == Some(own));
        !ours || matches!(node, Node::File { content, .. } if content == EVIL)
    });
    found
}

fn bench() -> Bench {
    let bench = Bench::default();
    bench.write("workspace/file", "as it was");
    fs::create_dir_all(bench.root.path().join("outside/folder")).unwrap();
    fs::write(bench.root.path().join("outside/file"), "as it was").unwrap();
    symlink(bench.root.path().join("outside"), bench.state("workspace/link")).unwrap();
    symlink("../../outside", bench.state("workspace/relative")).unwrap();
    bench
}

/// Pulls and rolls back; both must refuse with `expected` and leave everything as it was.
fn refused(entries: &[Entry], expected: &str) {
    let bench = bench();
    let snapshot = store(&bench, entries);
    let (state, outside) = (bench.tree(), surroundings(&bench));
    let shown: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();

    let to = bench.root.path().join("to/here");
    let error = bench.try_pull_as(&bench.target, &snapshot, &to, &[]).expect_err(&format!("pull of {shown:?}"));
    assert_eq!(code(&error), expected, "pull of {shown:?}: {error}");
    assert!(!bench.root.path().join("to").exists(), "{shown:?}");
    assert_same(&surroundings(&bench), &outside);
    for plan_only in [true, false] {
        let error = bench.try_rollback(&snapshot, &[], plan_only).expect_err(&format!("rollback to {shown:?}"));
        assert_eq!(code(&error), expected, "rollback to {shown:?}: {error}");
        assert_same(&bench.tree(), &state);
        assert_same(&surroundings(&bench), &outside);
    }
    assert_eq!(bench.problems().len(), 1, "{shown:?}: {:?}", bench.problems());
    // It stands in nobody's way.
    bench.push();
    assert_same(&tree(&bench.pull(&bench.list().remove(0))), &state);
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_path_that_leads_elsewhere_is_refused() {
    for path in [
        "../escaped",
        "workspace/../../escaped",
        "/tmp/escaped by openclaw-b2-backup",
        "a//b",
        "./a",
        "..",
        "a/.",
        "a\0b",
    ] {
        refused(&[file(path)], "UNSAFE_PATH");
        refused(&[folder(path)], "UNSAFE_PATH");
        refused(&[link(path, Path::new("x"))], "UNSAFE_PATH");
    }
}

#[test]
fn a_path_that_is_there_twice_or_out_of_order_is_refused() {
    let outside = Path::new("../outside");
    refused(&[file("a"), file("a")], "CORRUPT");
    refused(&[link("a", outside), folder("a"), file("a/file")], "CORRUPT");
    refused(&[folder("a"), link("a", outside), file("a/file")], "CORRUPT");
    refused(&[file("b"), file("a")], "CORRUPT");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn what_lies_below_a_link_or_a_file_is_refused() {
    let outside = bench().root.path().join("outside");
    for target in [Path::new("../outside"), Path::new("../../outside"), outside.as_path(), Path::new(".")] {
        refused(&[folder("workspace"), link("workspace/new", target), file("workspace/new/file")], "UNSAFE_PATH");
        refused(&[link("new", target), folder("new/folder")], "UNSAFE_PATH");
        refused(&[link("new", target), link("new/folder", Path::new("x"))], "UNSAFE_PATH");
        refused(&[link("new", target), file("new/deeply/nested/file")], "UNSAFE_PATH");
    }
    refused(&[file("new"), file("new/file")], "UNSAFE_PATH");
    let database = Entry::new("new", Kind::Database, 0o600, 0);
    refused(&[database, file("new/file")], "UNSAFE_PATH");
}

/// The link is in the live state too, as it is in the snapshot, so that it is not among what is staged.
#[test]
fn what_lies_below_a_link_that_is_there_already_is_refused() {
    for (name, target) in [("workspace/link", None), ("workspace/relative", Some("../../outside"))] {
        let entries = |bench: &Bench| {
            let target = target.map_or(bench.root.path().join("outside"), Into::into);
            vec![
                folder("workspace"),
                link(name, &target),
                file(&format!("{name}/file")),
                folder(&format!("{name}/folder")),
                file(&format!("{name}/folder/new")),
            ]
        };
        let bench = bench();
        let snapshot = store(&bench, &entries(&bench));
        let (state, outside) = (bench.tree(), surroundings(&bench));
        for plan_only in [true, false] {
            let error = bench.try_rollback(&snapshot, &[], plan_only).expect_err("it is no tree");
            assert_eq!(code(&error), "UNSAFE_PATH", "{error}");
            assert_same(&bench.tree(), &state);
            assert_same(&surroundings(&bench), &outside);
        }
    }
}

/// The snapshot is a tree, but in the live state a link has taken the place of its directory.
#[test]
fn a_link_in_the_live_state_is_replaced_and_never_followed() {
    let bench = bench();
    let entries =
        [folder("workspace"), folder("workspace/link"), file("workspace/link/file"), file("workspace/relative/file")];
    let snapshot = store(&bench, &entries);
    let outside = surroundings(&bench);
    let report = bench.rollback(&snapshot);
    assert!(report.warnings.is_empty(), "{report:?}");
    for name in ["link", "relative"] {
        assert!(!bench.state(&format!("workspace/{name}")).is_symlink());
        assert_eq!(fs::read(bench.state(&format!("workspace/{name}/file"))).unwrap(), EVIL);
    }
    let mut now = surroundings(&bench);
    now.retain(|path, _| !path.starts_with("state/"));
    assert_same(&now, &outside);
}

#[test]
fn what_is_this_machines_own_is_not_overwritten() {
    let bench = bench();
    bench.write("credentials/token", "mine");
    bench.write(".env", "mine");
    bench.push();
    let machine = fs::read(bench.state("b2-backup/machine-id")).unwrap();
    let entries = [
        file(".env"),
        file("b2-backup/cache.sqlite"),
        file("b2-backup/machine-id"),
        file("b2-backup/rollback/journal.json"),
        file("b2-backup/rollback/new/x"),
        folder("credentials"),
        file("credentials/token"),
        folder("workspace"),
        file("workspace/auth-profiles.json"),
    ];
    let snapshot = store(&bench, &entries);
    bench.rollback(&snapshot);
    assert_eq!(fs::read(bench.state("b2-backup/machine-id")).unwrap(), machine);
    assert_eq!(fs::read_to_string(bench.state("credentials/token")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(bench.state(".env")).unwrap(), "mine");
    assert!(!bench.state("workspace/auth-profiles.json").exists() && !bench.state("b2-backup/rollback").exists());
    bench.push();
}

/// Whoever has the key can seal it: its name is not what a restore goes by.
/// Whoever may write to the bucket, and has no key.
#[test]
fn a_planted_name_of_a_later_day_does_not_date_snapshots() {
    let bench = bench();
    let own = bench.push().snapshot.unwrap();
    let manifest = fs::read(bench.repository().join(&own).join("manifest.json")).unwrap();
    for planted in ["9999-12-31T23-59-59Z-00000000", "2099-01-01T00-00-00Z-00000000"] {
        fs::create_dir(bench.repository().join(planted)).unwrap();
        fs::write(bench.repository().join(planted).join("manifest.json"), &manifest).unwrap();
    }
    bench.write("workspace/later", "later");
    let later = bench.push().snapshot.unwrap();
    assert_eq!(later[..4], own[..4]);
    assert!(later > own);
    assert!(bench.list().contains(&later));
}

#[test]
fn what_is_not_what_it_is_named_for_is_not_restored() {
    let same_length: Vec<u8> = EVIL.iter().rev().copied().collect();
    for content in [&same_length[..], b"shorter", &same_length.repeat(2)] {
        let bench = bench();
        let snapshot = store_with(&bench, &[file("workspace/file")], content);
        let state = bench.tree();
        let refusals = [bench.try_pull(&snapshot).map(|_| ()), bench.try_rollback(&snapshot, &[], false).map(|_| ())];
        for error in refusals.map(Result::unwrap_err) {
            assert!(code(&error) == "CORRUPT" && error.to_string().contains("workspace/file"), "{error}");
        }
        assert_same(&bench.tree(), &state);
        assert!(!bench.problems().is_empty());
    }
}
