//! Keys through the front door: what opens a repository after its application key was replaced, on a new machine, after a
//! removal and after a rotation; and encryption that is turned on later, or off.

#![cfg(unix)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use common::{Bench, assert_same, code, noise, tree};
use openclaw_b2_backup::Result;
use openclaw_b2_backup::commands::key::{self, KeyAddOptions, KeyInfo};
use openclaw_b2_backup::commands::{Operation, PushOptions, PushReport, Trigger, list, prune, push};
use openclaw_b2_backup::config::{Secret, Target};
use openclaw_b2_backup::repository::slot::SlotKind;

const PASSPHRASE: &str = "sommer regen wolke tisch";

fn secret(text: &str) -> Secret {
    Secret::new(text)
}

/// A repository with one snapshot, and a state with content.
fn bench(fields: serde_json::Value) -> Bench {
    let bench = Bench::new(fields);
    bench.write("openclaw.json", "{}");
    bench.write("workspace/notes.md", "remember the milk");
    bench.push();
    bench
}

fn push_as(bench: &Bench, target: &Target) -> Result<PushReport> {
    bench.run(push::push(target, PushOptions { trigger: Trigger::Manual }, &Operation::default()))
}

/// A push that has something to store.
fn push_something(bench: &Bench, target: &Target) -> PushReport {
    let path = target.state_dir.join("workspace/changes");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let before = fs::read_to_string(&path).unwrap_or_default();
    fs::write(path, before + "x").unwrap();
    let report = push_as(bench, target).unwrap();
    assert!(report.snapshot.is_some());
    report
}

/// Restores on a machine that has nothing but the configuration.
fn restore(bench: &Bench, target: &Target, snapshot: &str) -> Result<PathBuf> {
    let elsewhere = Target { state_dir: bench.root.path().join("no-state"), ..target.clone() };
    let to = tempfile::tempdir_in(bench.root.path()).unwrap().keep();
    bench.try_pull_as(&elsewhere, snapshot, &to, &[]).map(|_| to)
}

/// A key file: what it opens is opened quickly.
fn key_file(bench: &Bench) -> PathBuf {
    let file = bench.root.path().join("key file");
    fs::write(&file, [9; 32]).unwrap();
    file
}

fn slots(bench: &Bench, target: &Target) -> Vec<KeyInfo> {
    bench.run(key::list(target, &Operation::default())).unwrap().slots
}

fn kinds(bench: &Bench) -> Vec<&'static str> {
    let mut kinds: Vec<_> = slots(bench, &bench.target).iter().map(|slot| slot.kind.unwrap().as_str()).collect();
    kinds.sort_unstable();
    kinds
}

fn add(bench: &Bench, target: &Target, options: KeyAddOptions) -> Result<Vec<String>> {
    let report = bench.run(key::add(target, options, &Operation::default()))?;
    Ok(report.added.into_iter().map(|slot| slot.id).collect())
}

fn remove(bench: &Bench, target: &Target, id: &str) -> Result<()> {
    bench.run(key::remove(target, &[id.to_owned()], &Operation::default())).map(|_| ())
}

fn recovery_code(bench: &Bench, target: &Target) -> Secret {
    bench.run(key::recovery_code(target, &Operation::default())).unwrap().code
}

fn with_recovery_code(target: &Target, code: &Secret) -> Target {
    Target { recovery_code: Some(code.clone()), ..target.clone() }
}

fn replaced(target: &Target) -> Target {
    Target { application_key: Some(secret("K005-the-new-application-key")), ..target.clone() }
}

fn id_of(bench: &Bench, kind: SlotKind) -> String {
    slots(bench, &bench.target).into_iter().find(|slot| slot.kind == Some(kind)).unwrap().id
}

#[test]
fn a_push_with_another_secret_makes_the_slot_of_a_replaced_application_key() {
    let bench = bench(serde_json::json!({}));
    let with_file = Target { key_file: Some(key_file(&bench)), ..bench.target.clone() };
    assert_eq!(push_as(&bench, &with_file).unwrap().warnings, Vec::<String>::new());
    assert_eq!(kinds(&bench), ["application-key", "key-file"]);
    push_as(&bench, &replaced(&with_file)).unwrap();
    assert_eq!(kinds(&bench), ["application-key", "application-key", "key-file"]);
    for target in [bench.target.clone(), replaced(&bench.target), Target { application_key: None, ..with_file }] {
        assert_same(&tree(&restore(&bench, &target, "latest").unwrap()), &bench.tree());
    }
    // And no more with every push.
    push_as(&bench, &replaced(&bench.target)).unwrap();
    assert_eq!(slots(&bench, &bench.target).len(), 3);
}

#[test]
fn without_another_secret_the_error_says_what_to_do_and_one_command_does_it() {
    let bench = bench(serde_json::json!({}));
    let target = replaced(&bench.target);
    let error = push_as(&bench, &target).unwrap_err();
    assert_eq!(code(&error), "WRONG_KEY");
    let said = error.to_string();
    assert!(
        said.contains("what opens it is an application key; ") && said.contains("`key add --old-application-key-env"),
        "{said}"
    );
    assert!(!said.contains("K005"), "{said}");
    assert!(slots(&bench, &target).iter().all(|slot| !slot.opens && !slot.writing && slot.kind.is_some()));

    let wrong = KeyAddOptions { old_application_key: Some(secret("K005-yet-another")), ..KeyAddOptions::default() };
    assert_eq!(code(&add(&bench, &target, wrong).unwrap_err()), "WRONG_KEY");
    let old =
        || KeyAddOptions { old_application_key: bench.target.application_key.clone(), ..KeyAddOptions::default() };
    assert_eq!(add(&bench, &target, old()).unwrap().len(), 1);
    assert_eq!(add(&bench, &target, old()).unwrap().len(), 0, "it is there already");
    assert_same(&tree(&restore(&bench, &target, "latest").unwrap()), &bench.tree());
    push_something(&bench, &target);
}

#[test]
fn where_the_application_key_opens_nothing_a_new_one_does_not_either() {
    let mut bench = Bench::default();
    bench.target.key_file = Some(key_file(&bench));
    bench.write("openclaw.json", "{}");
    bench.push();
    push_something(&bench, &replaced(&bench.target));
    let code = recovery_code(&bench, &bench.target);
    let with_code = with_recovery_code(&Target { key_file: None, ..replaced(&bench.target) }, &code);
    push_something(&bench, &with_code);
    assert_eq!(kinds(&bench), ["key-file", "recovery-code"]);
    let explicit = KeyAddOptions { application_key: true, ..KeyAddOptions::default() };
    assert_eq!(add(&bench, &with_code, explicit).unwrap().len(), 1);
    assert_eq!(kinds(&bench), ["application-key", "key-file", "recovery-code"]);
}

#[test]
fn a_new_machine_restores_and_goes_on_with_the_recovery_code_or_the_passphrase() {
    let bench = bench(serde_json::json!({}));
    let code = recovery_code(&bench, &bench.target);
    let own = KeyAddOptions { passphrase: Some(secret(PASSPHRASE)), ..KeyAddOptions::default() };
    assert_eq!(add(&bench, &bench.target, own).unwrap().len(), 1);

    let new = replaced(&bench.other_machine("new"));
    assert_eq!(common::code(&restore(&bench, &new, "latest").unwrap_err()), "WRONG_KEY");
    let typed = Secret::new(code.expose().to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l"));
    let with_passphrase = Target { passphrase: Some(secret(PASSPHRASE)), ..new.clone() };
    for target in [with_recovery_code(&new, &typed), with_passphrase] {
        assert_same(&tree(&restore(&bench, &target, "latest").unwrap()), &bench.tree());
    }
    push_something(&bench, &with_recovery_code(&new, &code));
    // From then on its own application key is enough.
    push_something(&bench, &new);
    restore(&bench, &new, "latest").unwrap();

    let mistyped = with_recovery_code(&new, &Secret::new(code.expose().replace(&code.expose()[..1], "U")));
    let error = restore(&bench, &mistyped, "latest").unwrap_err();
    assert_eq!(common::code(&error), "CONFIG");
    let mut other = String::new();
    while other.is_empty() || other == code.expose() {
        other = recovery_code(&bench, &bench.target).expose().to_owned();
    }
    assert!(restore(&bench, &with_recovery_code(&bench.other_machine("third"), &Secret::new(other)), "latest").is_ok());
}

/// The state is read while the first slot is on its way: what nobody could open must not arrive before it.
#[test]
fn nothing_is_stored_before_the_key_that_opens_it() {
    let bench = Bench::default();
    // More than the first pack holds.
    for number in 0..3 {
        bench.write(&format!("workspace/{number}.bin"), noise(3 << 19, number));
    }
    let in_the_way = bench.repository().join("keys");
    fs::create_dir_all(bench.repository()).unwrap();
    fs::write(&in_the_way, "").unwrap();
    let error = bench.try_push().unwrap_err();
    assert!(code(&error) == "IO" && error.to_string().contains("/keys: "), "{error}");
    for folder in ["packs", "index"] {
        assert!(!bench.repository().join(folder).exists(), "{folder}");
    }
    fs::remove_file(in_the_way).unwrap();
    assert!(bench.push().snapshot.is_some());
}

#[test]
fn a_weak_passphrase_is_refused_when_its_slot_is_made() {
    let weak = Bench::new(serde_json::json!({ "passphrase": "openclaw2026" }));
    weak.write("openclaw.json", "{}");
    let error = weak.try_push().unwrap_err();
    assert_eq!(code(&error), "CONFIG");
    assert!(error.to_string().starts_with("passphrase: is too weak: "), "{error}");
    assert!(!weak.repository().join("keys").exists());

    // Where another secret opens the repository, the backup is taken all the same.
    let bench = bench(serde_json::json!({}));
    let target = Target { passphrase: Some(secret("openclaw2026")), ..bench.target.clone() };
    for _ in 0..2 {
        let warnings = push_something(&bench, &target).warnings;
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("passphrase: is too weak"), "{warnings:?}");
    }
    let option = KeyAddOptions { passphrase: Some(secret("openclaw2026")), ..KeyAddOptions::default() };
    assert_eq!(code(&add(&bench, &bench.target, option).unwrap_err()), "CONFIG");
    let file = bench.root.path().join("short");
    fs::write(&file, "short").unwrap();
    let option = KeyAddOptions { key_file: Some(file), ..KeyAddOptions::default() };
    assert_eq!(code(&add(&bench, &bench.target, option).unwrap_err()), "CONFIG");
    assert_eq!(kinds(&bench), ["application-key"]);
}

#[test]
fn the_last_slot_and_the_last_that_opens_here_stay() {
    let bench = bench(serde_json::json!({}));
    let own = id_of(&bench, SlotKind::ApplicationKey);
    let error = remove(&bench, &bench.target, &own).unwrap_err();
    assert!(code(&error) == "CONFIG" && error.to_string().contains("is the last slot of its master key"), "{error}");
    recovery_code(&bench, &bench.target);
    let error = remove(&bench, &bench.target, &own[..8]).unwrap_err();
    assert!(code(&error) == "CONFIG" && error.to_string().contains("a secret configured here opens"), "{error}");
    assert_eq!(code(&remove(&bench, &bench.target, "no such id").unwrap_err()), "NOT_FOUND");
    assert_eq!(code(&remove(&bench, &bench.target, "").unwrap_err()), "NOT_FOUND");
    remove(&bench, &bench.target, &id_of(&bench, SlotKind::RecoveryCode)).unwrap();
    assert_eq!(kinds(&bench), ["application-key"]);
    push_something(&bench, &bench.target);
}

/// Each saw the other's slot, and each removed its own: nobody could ever restore anything again.
#[test]
#[ignore = "slow; npm test runs it"]
fn two_machines_that_remove_the_last_two_slots_at_once_leave_one() {
    const ROUNDS: usize = 6;
    let bench = bench(serde_json::json!({}));
    for _ in 0..ROUNDS {
        let code = recovery_code(&bench, &bench.target);
        let ids = [id_of(&bench, SlotKind::RecoveryCode), id_of(&bench, SlotKind::ApplicationKey)];
        // Each has the secret of the other's, so that nothing else stops it.
        let target = with_recovery_code(&bench.target, &code);
        let start = Arc::new(Barrier::new(ids.len()));
        let removed: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let (target, start) = (target.clone(), Arc::clone(&start));
                std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    start.wait();
                    runtime.block_on(key::remove(&target, &[id], &Operation::default()))
                })
            })
            .collect();
        let removed: Vec<_> = removed.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert!(removed.iter().filter(|result| result.is_ok()).count() < 2);
        assert!(removed.iter().filter_map(|result| result.as_ref().err()).all(|error| code_of(error) == "CONFIG"));
        let left = slots(&bench, &target);
        assert!(!left.is_empty() && left.iter().all(|slot| slot.opens && !slot.removing), "{left:?}");
        restore(&bench, &target, "latest").unwrap();
        if left.iter().all(|slot| slot.kind != Some(SlotKind::ApplicationKey)) {
            let again = KeyAddOptions { application_key: true, ..KeyAddOptions::default() };
            assert_eq!(add(&bench, &target, again).unwrap().len(), 1);
        }
        for slot in slots(&bench, &target).iter().filter(|slot| slot.kind == Some(SlotKind::RecoveryCode)) {
            remove(&bench, &bench.target, &slot.id).unwrap();
        }
    }
}

fn code_of(error: &openclaw_b2_backup::Error) -> &'static str {
    code(error)
}

/// What the other machine does between the first look of a removal and its end is a mark at the wrong moment.
#[test]
fn a_slot_that_another_machine_is_removing_does_not_count_as_left() {
    let bench = bench(serde_json::json!({}));
    let code = recovery_code(&bench, &bench.target);
    let target = with_recovery_code(&bench.target, &code);
    let (paper, own) = (id_of(&bench, SlotKind::RecoveryCode), id_of(&bench, SlotKind::ApplicationKey));
    let mark = bench.repository().join(format!("keys/{paper}-{}.removed", "0".repeat(32)));
    fs::write(&mark, "interrupted").unwrap();
    let error = remove(&bench, &target, &own).unwrap_err();
    assert!(error.to_string().contains("another slot is being removed"), "{error}");
    assert!(slots(&bench, &target).iter().any(|slot| slot.id == paper && slot.removing));
    // Until it is gone, it opens; and the removal can be finished.
    restore(&bench, &Target { application_key: None, ..target.clone() }, "latest").unwrap();
    remove(&bench, &target, &paper).unwrap();
    assert_eq!(kinds(&bench), ["application-key"]);
}

#[test]
fn a_removed_slot_opens_nothing_on_a_machine_that_remembers_it_and_is_not_made_again() {
    let bench = bench(serde_json::json!({}));
    let other = Target { key_file: Some(key_file(&bench)), ..bench.other_machine("other") };
    push_something(&bench, &other);
    push_something(&bench, &other);
    remove(&bench, &bench.target, &id_of(&bench, SlotKind::KeyFile)).unwrap();

    let alone = Target { application_key: None, ..other.clone() };
    assert_eq!(code(&push_as(&bench, &alone).unwrap_err()), "WRONG_KEY");
    assert_eq!(code(&restore(&bench, &alone, "latest").unwrap_err()), "WRONG_KEY");
    for machine in [&other, &Target { key_file: Some(key_file(&bench)), ..bench.other_machine("third") }] {
        let warnings = push_something(&bench, machine).warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("key-file was removed"), "{warnings:?}");
        assert_eq!(kinds(&bench), ["application-key"]);
    }
    // Nor is it put back where a machine finds all slots lost.
    let lost = id_of(&bench, SlotKind::ApplicationKey);
    fs::remove_file(bench.repository().join(format!("keys/{lost}.json"))).unwrap();
    push_something(&bench, &other);
    assert_eq!(kinds(&bench), ["application-key"]);
    // Until somebody says so.
    assert_eq!(add(&bench, &other, KeyAddOptions::default()).unwrap().len(), 1);
    assert_eq!(push_something(&bench, &other).warnings, Vec::<String>::new());
    push_something(&bench, &alone);
}

fn master_key_of(bench: &Bench, snapshot: &str) -> String {
    let manifest = fs::read(bench.repository().join(snapshot).join("manifest.json")).unwrap();
    serde_json::from_slice::<serde_json::Value>(&manifest).unwrap()["masterKey"].as_str().unwrap().to_owned()
}

#[test]
#[ignore = "slow; npm test runs it"]
fn after_a_rotation_everybody_writes_with_the_new_key_and_reads_with_all() {
    let bench = bench(serde_json::json!({}));
    bench.write("workspace/stays", vec![7; 100_000]);
    let first = bench.push().snapshot.unwrap();
    let expected = bench.tree();
    let code = recovery_code(&bench, &bench.target);
    let other = bench.other_machine("other");
    push_something(&bench, &other);

    let mut keys = vec![master_key_of(&bench, &first)];
    for _ in 0..2 {
        let rotated = bench.run(key::rotate(&bench.target, &Operation::default())).unwrap();
        assert!(!keys.contains(&rotated.master_key));
        assert_eq!(rotated.added.len(), 1);
        let left: Vec<_> = rotated.left_behind.iter().map(|slot| slot.kind).collect();
        assert_eq!(left, if keys.len() == 1 { vec![SlotKind::RecoveryCode] } else { Vec::new() });
        keys.push(rotated.master_key.clone());
        for target in [&bench.target, &other] {
            let snapshot = push_something(&bench, target).snapshot.unwrap();
            assert_eq!(master_key_of(&bench, &snapshot), rotated.master_key);
            assert_same(&tree(&restore(&bench, &bench.target, &snapshot).unwrap()), &tree_of(target));
        }
        let writing = |slot: &&KeyInfo| slot.writing;
        assert!(
            slots(&bench, &other)
                .iter()
                .filter(writing)
                .all(|slot| slot.master_key == Some(rotated.master_key.clone()))
        );
        assert_eq!(slots(&bench, &other).iter().filter(writing).count(), 1);
    }
    assert_same(&tree(&restore(&bench, &bench.target, &first).unwrap()), &expected);
    assert_eq!(bench.problems(), Vec::<String>::new());
    bench.prune_now();
    assert_eq!(bench.problems(), Vec::<String>::new());

    // The code from before opens what there was, and nothing new: and says so.
    let paper = with_recovery_code(&replaced(&bench.other_machine("paper")), &code);
    assert_same(&tree(&restore(&bench, &paper, &first).unwrap()), &expected);
    assert_eq!(common::code(&restore(&bench, &paper, "latest").unwrap_err()), "WRONG_KEY");
    fs::write(paper.state_dir.join("openclaw.json"), "{}").unwrap();
    let error = push_as(&bench, &paper).unwrap_err();
    assert!(common::code(&error) == "WRONG_KEY" && error.to_string().contains("were rotated"), "{error}");
    // Slots for a key that was retired would look like more than they are.
    for error in [
        add(&bench, &paper, KeyAddOptions { application_key: true, ..KeyAddOptions::default() }).unwrap_err(),
        bench.run(key::recovery_code(&paper, &Operation::default())).unwrap_err(),
        bench.run(prune::prune(&paper, &Operation::default())).unwrap_err(),
    ] {
        assert!(common::code(&error) == "WRONG_KEY" && error.to_string().contains("were rotated"), "{error}");
    }
    let next = with_recovery_code(&paper, &recovery_code(&bench, &bench.target));
    for snapshot in [&first, "latest"] {
        restore(&bench, &next, snapshot).unwrap();
    }
    push_something(&bench, &next);
    // The old master key keeps its slot as long as it seals something.
    let oldest = slots(&bench, &bench.target).into_iter().filter(|slot| slot.master_key.as_ref() == Some(&keys[0]));
    let oldest: Vec<_> = oldest.map(|slot| slot.id).collect();
    assert_eq!(oldest.len(), 4);
    for (number, id) in oldest.iter().rev().enumerate() {
        assert_eq!(remove(&bench, &bench.target, id).is_ok(), number < 3);
    }
}

fn tree_of(target: &Target) -> common::Tree {
    tree(&target.state_dir)
}

/// Whoever can write to the store and has no key cannot make machines go back to a key that was retired.
#[test]
fn a_slot_without_its_retirement_does_not_open() {
    let bench = bench(serde_json::json!({}));
    let rotated = bench.run(key::rotate(&bench.target, &Operation::default())).unwrap();
    let path = bench.repository().join(format!("keys/{}.json", rotated.added[0].id));
    let mut slot: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    slot.as_object_mut().unwrap().remove("retires").unwrap();
    fs::write(&path, slot.to_string()).unwrap();
    let fresh = bench.other_machine("fresh");
    assert_eq!(slots(&bench, &fresh).iter().filter(|slot| slot.opens).count(), 1);
}

#[test]
fn slots_can_be_looked_at_where_there_is_nothing_or_nothing_opens() {
    let bench = Bench::default();
    assert!(slots(&bench, &bench.target).is_empty());
    for error in [
        bench.run(key::rotate(&bench.target, &Operation::default())).unwrap_err(),
        bench.run(key::recovery_code(&bench.target, &Operation::default())).unwrap_err(),
        add(&bench, &bench.target, KeyAddOptions::default()).unwrap_err(),
    ] {
        assert_eq!(code(&error), "NOT_FOUND");
    }
    assert!(!bench.repository().exists());
    bench.write("openclaw.json", "{}");
    bench.push();
    fs::write(bench.repository().join(format!("keys/{}.json", "0".repeat(32))), "{}").unwrap();
    let listed = slots(&bench, &replaced(&bench.target));
    assert_eq!(listed.iter().filter(|slot| slot.problem.is_some()).count(), 1);
    // What is damaged can be removed.
    remove(&bench, &bench.target, &"0".repeat(32)).unwrap();
    assert_eq!(slots(&bench, &bench.target).len(), 1);
}

fn plain(target: &Target, encrypt: bool) -> Target {
    Target { encrypt, ..target.clone() }
}

fn stored_files(root: &Path, folder: &str) -> Vec<Vec<u8>> {
    let files = walkdir::WalkDir::new(root.join(folder)).into_iter().filter_map(Result::ok);
    files.filter(|file| file.file_type().is_file()).map(|file| fs::read(file.path()).unwrap()).collect()
}

#[test]
fn encryption_that_is_turned_on_later_seals_what_is_new_and_keeps_what_is_old() {
    let bench = bench(serde_json::json!({ "encrypt": false }));
    bench.write("workspace/stays", vec![7; 100_000]);
    let old = bench.push().snapshot.unwrap();
    let expected = tree(&bench.pull(&old));
    let (on, third) = (plain(&bench.target, true), plain(&bench.other_machine("third"), true));
    // Looking does not turn it on.
    let error = restore(&bench, &on, &old).unwrap_err();
    assert!(code(&error) == "CONFIG" && error.to_string().contains("next push turns encryption on"), "{error}");

    let files: Vec<_> = walkdir::WalkDir::new(bench.repository())
        .into_iter()
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path)
        .collect();
    let report = push_as(&bench, &on).unwrap();
    assert!(
        report
            .warnings
            .iter()
            .any(|warning| warning.contains("encryption is on from now on")
                && warning.ends_with('2'.to_string().as_str())),
        "{report:?}"
    );
    let new = report.snapshot.expect("a sealed snapshot, though nothing has changed");
    for entry in walkdir::WalkDir::new(bench.repository()).into_iter().filter_map(Result::ok) {
        let content = if entry.file_type().is_file() && !files.contains(&entry.path().to_owned()) {
            fs::read(entry.path()).unwrap()
        } else {
            continue;
        };
        let (sealed, name) = (b"OB2B\x01", entry.path().display());
        match content.get(..4) {
            Some(b"OB2B") => assert_eq!((&content[..5], content[6]), (&sealed[..], 1), "{name}"),
            _ => assert!(String::from_utf8(content).unwrap().contains("masterKey"), "{name}"),
        }
    }
    assert_ne!(master_key_of(&bench, &new), "0".repeat(32));
    // All of it is sealed: not one chunk is taken over from what is plain.
    let packs = stored_files(&bench.repository(), "packs");
    assert!(packs.iter().filter(|pack| pack[6] == 1).map(Vec::len).sum::<usize>() > 100, "{}", packs.len());

    for target in [&on, &third] {
        let listed = bench.run(list::list(target, &Operation::default())).unwrap();
        assert_eq!((listed.snapshots.len(), listed.unreadable.len()), (3, 0), "{listed:?}");
        assert_same(&tree(&restore(&bench, target, &old).unwrap()), &expected);
        assert_same(&tree(&restore(&bench, target, &new).unwrap()), &bench.tree());
    }
    let bench = Bench { target: on, ..bench };
    assert_eq!(bench.problems(), Vec::<String>::new());
    assert!(push_something(&bench, &bench.target).warnings.is_empty());
    bench.rollback(&old);

    // The new snapshot needs nothing of the old ones, which can go.
    let bench = Bench { target: Target { keep_snapshots: 1, ..bench.target.clone() }, ..bench };
    bench.prune_now();
    bench.prune_now();
    assert!(!bench.list().contains(&old));
    assert!(stored_files(&bench.repository(), "packs").iter().all(|pack| pack[6] == 1));
    assert_eq!(bench.problems(), Vec::<String>::new());
    let latest = bench.list().remove(0);
    bench.pull(&latest);
}

/// Copies those stored files of one repository into another of which `which` says so, and gives where they are.
fn smuggle(from: &Bench, into: &Bench, which: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut copied = Vec::new();
    for entry in walkdir::WalkDir::new(from.repository()).into_iter().filter_map(Result::ok) {
        let to = into.repository().join(entry.path().strip_prefix(from.repository()).unwrap());
        if entry.file_type().is_file() && which(&to) {
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(entry.path(), &to).unwrap();
            copied.push(to);
        }
    }
    copied
}

/// A push that had begun before has stored packs and an index object since, and found that it may not commit.
#[test]
fn what_a_plain_push_leaves_while_encryption_is_turned_on_does_not_keep_prune_from_its_work() {
    let bench = bench(serde_json::json!({ "encrypt": false }));
    let on = plain(&bench.target, true);
    push_as(&bench, &on).unwrap();
    let elsewhere = self::bench(serde_json::json!({ "encrypt": false }));
    let left = smuggle(&elsewhere, &bench, |to| !to.ends_with("manifest.json"));
    assert!(left.len() > 1, "{left:?}");
    let bench = Bench { target: on, ..bench };
    push_something(&bench, &bench.target);
    bench.prune_now();
    bench.prune_now();
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
    assert_eq!(bench.problems(), Vec::<String>::new());
    let latest = bench.list().remove(0);
    assert_same(&tree(&bench.pull(&latest)), &bench.tree());
}

#[test]
fn nothing_else_plain_is_accepted_once_encryption_is_on() {
    let bench = bench(serde_json::json!({ "encrypt": false }));
    bench.write("workspace/more", "more");
    let old = bench.push().snapshot.unwrap();
    // A plain repository elsewhere has what somebody would like to smuggle in.
    let elsewhere = self::bench(serde_json::json!({ "encrypt": false }));
    let foreign = elsewhere.list().remove(0);
    let on = plain(&bench.target, true);
    let new = push_as(&bench, &on).unwrap().snapshot.unwrap();
    smuggle(&elsewhere, &bench, |to| !to.exists());
    let fresh = plain(&bench.other_machine("fresh"), true);
    let listed = bench.run(list::list(&fresh, &Operation::default())).unwrap();
    assert_eq!(listed.unreadable.iter().map(|found| found.path.as_str()).collect::<Vec<_>>(), [foreign.as_str()]);
    assert_eq!(code(&restore(&bench, &fresh, &foreign).unwrap_err()), "CORRUPT");
    for snapshot in [&old, &new] {
        restore(&bench, &fresh, snapshot).unwrap();
    }
    // Nor is a plain manifest that was exchanged, although its name is on the list.
    let manifest = bench.repository().join(&old).join("manifest.json");
    let changed = fs::read_to_string(&manifest).unwrap().replace("\"format\": 1", "\"format\":  1");
    fs::write(&manifest, changed).unwrap();
    assert_eq!(code(&restore(&bench, &fresh, &old).unwrap_err()), "CORRUPT");
    assert_eq!(code(&push_as(&bench, &bench.target).unwrap_err()), "CONFIG");
}

/// As a store can pretend that it was never encrypted, to a machine that knows better and whose secret was replaced meanwhile.
#[test]
fn a_plain_repository_in_the_place_of_an_encrypted_one_is_not_adopted() {
    let bench = bench(serde_json::json!({}));
    let elsewhere = self::bench(serde_json::json!({ "encrypt": false }));
    fs::remove_dir_all(bench.repository()).unwrap();
    smuggle(&elsewhere, &bench, |_| true);
    let before = stored_files(&bench.repository(), "");
    bench.write("workspace/new", "new");
    let other_secret = replaced(&bench.target);
    let error = push_as(&bench, &other_secret).unwrap_err();
    assert!(code(&error) == "WRONG_KEY" && error.to_string().contains("slots"), "{error}");
    let foreign = elsewhere.list().remove(0);
    for (target, expected) in [(&bench.target, "CORRUPT"), (&other_secret, "WRONG_KEY")] {
        let pulled = bench.try_pull_as(target, &foreign, &bench.root.path().join("pulled"), &[]);
        assert_eq!(code(&pulled.unwrap_err()), expected);
    }
    assert_eq!(stored_files(&bench.repository(), ""), before, "nothing is written");
    // With the secret that opened it the slots come back, and what is plain is still not accepted.
    push_as(&bench, &bench.target).unwrap();
    assert_eq!(code(&restore(&bench, &bench.target, &foreign).unwrap_err()), "CORRUPT");
}

fn slot_files(bench: &Bench) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = fs::read_dir(bench.repository().join("keys")).unwrap().map(|file| file.unwrap().path());
    files.map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

/// Whoever knows the application key, as the service does, can make a whole repository of their own.
#[test]
fn what_a_thief_of_the_application_key_plants_is_passed_over_where_a_passphrase_is_set() {
    let bench = bench(serde_json::json!({ "passphrase": PASSPHRASE }));
    let own = bench.list().remove(0);
    let true_key = master_key_of(&bench, &own);
    let thief = self::bench(serde_json::json!({}));
    thief.write("hooks/evil.js", "evil");
    let evil = thief.push().snapshot.unwrap();
    smuggle(&thief, &bench, |to| !to.exists());
    // The older a slot, the more it counts: the thief stores the owner's anew.
    for (file, content) in slot_files(&bench) {
        if content.windows(10).any(|bytes| bytes == b"passphrase") {
            fs::remove_file(&file).unwrap();
            fs::write(&file, content).unwrap();
        }
    }
    let fresh = bench.other_machine("fresh");
    for target in [&bench.target, &fresh] {
        let listed = bench.run(list::list(target, &Operation::default())).unwrap();
        assert!(listed.unreadable.iter().any(|found| found.path == evil), "{listed:?}");
        assert_eq!(code(&restore(&bench, target, &evil).unwrap_err()), "WRONG_KEY");
    }
    bench.write("workspace/new", "new");
    let report = bench.push();
    assert!(report.warnings.iter().any(|warning| warning.contains("planted")), "{report:?}");
    let new = report.snapshot.unwrap();
    assert_eq!(master_key_of(&bench, &new), true_key);
    let told: Vec<_> = slots(&bench, &bench.target).into_iter().filter(|slot| slot.problem.is_some()).collect();
    assert!(told.len() == 1 && told[0].kind == Some(SlotKind::ApplicationKey) && !told[0].writing, "{told:?}");
    let with_the_key_alone = Target { passphrase: None, ..fresh };
    assert_eq!(code(&restore(&bench, &with_the_key_alone, &new).unwrap_err()), "WRONG_KEY");
    for snapshot in [&own, &new] {
        restore(&bench, &bench.target, snapshot).unwrap();
    }
}

#[test]
fn a_made_up_slot_gets_the_application_key_no_slot() {
    let bench = bench(serde_json::json!({ "passphrase": PASSPHRASE }));
    let (file, slot) = slot_files(&bench).pop_first().unwrap();
    let forge = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut forged: serde_json::Value = serde_json::from_slice(&slot).unwrap();
        change(&mut forged);
        forged["kind"] = "application-key".into();
        let id = forged["id"].as_str().unwrap().to_owned();
        fs::write(file.with_file_name(format!("{id}.json")), forged.to_string()).unwrap();
    };
    forge(&|slot| slot["id"] = "ab".repeat(16).into());
    forge(&|slot| {
        slot["id"] = "cd".repeat(16).into();
        slot["masterKey"] = "ef".repeat(16).into();
    });
    for _ in 0..2 {
        push_something(&bench, &bench.target);
        assert_eq!(slot_files(&bench).len(), 3);
    }
    let with_the_key_alone = Target { passphrase: None, ..bench.other_machine("fresh") };
    assert_eq!(code(&restore(&bench, &with_the_key_alone, "latest").unwrap_err()), "WRONG_KEY");
}

/// A delete marker is enough for that.
#[test]
fn a_slot_that_vanishes_without_a_mark_of_its_removal_is_put_back_and_its_key_stays_in_use() {
    let bench = bench(serde_json::json!({}));
    let before = slot_files(&bench);
    bench.run(key::rotate(&bench.target, &Operation::default())).unwrap();
    let rotated = master_key_of(&bench, &push_something(&bench, &bench.target).snapshot.unwrap());
    let all = slot_files(&bench);
    for file in all.keys().filter(|file| !before.contains_key(*file)) {
        fs::remove_file(file).unwrap();
    }
    let report = push_something(&bench, &bench.target);
    assert!(report.warnings.iter().any(|warning| warning.contains("put back")), "{report:?}");
    assert_eq!(master_key_of(&bench, &report.snapshot.unwrap()), rotated);
    assert_eq!(slot_files(&bench), all);
    // Nor does a mark count that nobody with a key has made.
    for file in all.keys() {
        fs::remove_file(file).unwrap();
        let id = file.file_stem().unwrap().to_str().unwrap();
        fs::write(file.with_file_name(format!("{id}-{}.removed", "ab".repeat(16))), "junk").unwrap();
    }
    let snapshot = push_something(&bench, &bench.target).snapshot.unwrap();
    let put_back = slot_files(&bench);
    assert!(all.iter().all(|(file, content)| put_back.get(file) == Some(content)));
    restore(&bench, &bench.other_machine("fresh"), &snapshot).unwrap();
}

#[test]
fn an_interruption_while_encryption_is_turned_on_loses_nothing() {
    let bench = bench(serde_json::json!({ "encrypt": false }));
    let old = bench.list().remove(0);
    let expected = tree(&bench.pull(&old));
    let on = plain(&bench.target, true);
    push_as(&bench, &on).unwrap();
    // As if it had ended after the list and before the first slot.
    let (keys, repository) = (bench.repository().join("keys"), bench.repository());
    fs::remove_dir_all(keys).unwrap();
    for folder in fs::read_dir(&repository).unwrap().map(|entry| entry.unwrap()) {
        let name = folder.file_name().into_string().unwrap();
        if name.starts_with("20") && name != old {
            fs::remove_dir_all(folder.path()).unwrap();
        }
    }
    let sealed = |file: &Path| fs::read(file).is_ok_and(|content| content.starts_with(b"OB2B\x01") && content[6] == 1);
    for folder in ["packs", "index"] {
        for entry in walkdir::WalkDir::new(repository.join(folder)).into_iter().filter_map(Result::ok) {
            if sealed(entry.path()) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    assert_eq!(stored_files(&repository, "plain").len(), 1);
    let fresh = bench.other_machine("fresh");
    assert_same(&tree(&restore(&bench, &fresh, &old).unwrap()), &expected);
    fs::write(fresh.state_dir.join("openclaw.json"), "{}").unwrap();
    push_as(&bench, &plain(&fresh, true)).unwrap();
    let third = plain(&bench.other_machine("third"), true);
    assert_same(&tree(&restore(&bench, &third, &old).unwrap()), &expected);
}

#[test]
fn encryption_that_is_turned_off_is_a_configuration_error() {
    let bench = bench(serde_json::json!({}));
    let before = stored_files(&bench.repository(), "");
    let off = plain(&bench.target, false);
    bench.write("workspace/new", "new");
    for target in [&off, &plain(&bench.other_machine("other"), false)] {
        let error = push_as(&bench, target).unwrap_err();
        assert!(code(&error) == "CONFIG" && error.to_string().starts_with("encrypt: is false"), "{error}");
        assert_eq!(code(&restore(&bench, target, "latest").unwrap_err()), "CONFIG");
        assert_eq!(code(&add(&bench, target, KeyAddOptions::default()).unwrap_err()), "CONFIG");
    }
    // Also where somebody has removed the slots.
    fs::remove_dir_all(bench.repository().join("keys")).unwrap();
    assert_eq!(code(&push_as(&bench, &off).unwrap_err()), "CONFIG");
    push_as(&bench, &bench.target).unwrap();
    assert!(stored_files(&bench.repository(), "").len() > before.len());
    // A repository that was begun anew is not the encrypted one.
    fs::remove_dir_all(bench.repository()).unwrap();
    for _ in 0..2 {
        push_something(&bench, &off);
    }
}
