//! A store that shows an old state of the repository, each object of it genuine, to a machine that has seen a newer one.

#![cfg(unix)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Bench, assert_same, code};
use openclaw_b2_backup::Error;
use openclaw_b2_backup::commands::{
    DrillOptions, ListReport, Operation, PruneOptions, StatusOptions, diff, drill, list, prune, status,
};
use openclaw_b2_backup::config::Target;

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

fn listed(bench: &Bench, target: &Target) -> ListReport {
    bench.run(list::list(target, &Operation::default())).unwrap()
}

fn status_warnings(bench: &Bench) -> Vec<String> {
    bench.run(status::status(&bench.target, &StatusOptions::default(), &Operation::default())).unwrap().warnings
}

fn push(bench: &Bench, content: &str) -> String {
    bench.write("workspace/file", content);
    let report = bench.push();
    assert_eq!(report.warnings, Vec::<String>::new());
    report.snapshot.unwrap()
}

/// Two snapshots, and then the repository as it was after the first.
fn replayed() -> (Bench, String, String) {
    let bench = Bench::default();
    let old = push(&bench, "old");
    let before = bench.root.path().join("before");
    copy(&bench.repository(), &before);
    let new = push(&bench, "new");
    fs::remove_dir_all(bench.repository()).unwrap();
    fs::rename(before, bench.repository()).unwrap();
    (bench, old, new)
}

#[test]
fn an_old_state_of_the_repository_is_not_taken_for_the_present_one() {
    let (bench, old, new) = replayed();
    let report = listed(&bench, &bench.target);
    assert_eq!(report.snapshots.len(), 1);
    assert!(report.warnings.len() == 1 && report.warnings[0].contains(&new), "{:?}", report.warnings);
    assert!(status_warnings(&bench).iter().any(|warning| warning.contains(&new)));

    let before = bench.tree();
    let refused = |error: Error| {
        assert_eq!((code(&error), error.context().snapshot.as_deref()), ("NOT_FOUND", Some(new.as_str())));
    };
    for text in ["latest", "now", "before-compaction"] {
        let to = bench.root.path().join("pulled");
        refused(bench.try_pull_as(&bench.target, text, &to, &[]).unwrap_err());
        assert!(!to.exists());
        refused(bench.try_rollback(text, &[], true).unwrap_err());
        refused(bench.try_rollback(text, &[], false).unwrap_err());
        refused(bench.run(diff::diff(&bench.target, text, None, &Operation::default())).unwrap_err());
    }
    assert_same(&bench.tree(), &before);
    // One that was made before the missing one is not mistaken for it.
    assert_eq!(code(&bench.try_rollback("yesterday", &[], true).unwrap_err()), "NOT_FOUND");
    // What is named is taken.
    assert_eq!(bench.try_rollback(&old, &[], false).unwrap().snapshot, old);
    assert_eq!(fs::read_to_string(bench.state("workspace/file")).unwrap(), "old");
    // A machine that has never seen the newer one cannot know.
    bench.pull("latest");
}

/// Whoever can write to the bucket can write a name; nobody without the key what belongs below it.
#[test]
fn a_planted_newer_name_hides_no_missing_snapshot() {
    let (bench, old, new) = replayed();
    let manifest = fs::read(bench.repository().join(&old).join("manifest.json")).unwrap();
    for (planted, content) in [("00000000", "{}".as_bytes()), ("11111111", &manifest)] {
        let folder = bench.repository().join(format!("2099-01-01T00-00-00Z-{planted}"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("manifest.json"), content).unwrap();
    }
    let warnings = listed(&bench, &bench.target).warnings;
    assert!(warnings.iter().any(|warning| warning.contains(&new)), "{warnings:?}");
    let error = bench.try_rollback("now", &[], true).unwrap_err();
    assert_eq!((code(&error), error.context().snapshot.as_deref()), ("NOT_FOUND", Some(new.as_str())));
}

#[test]
fn a_push_says_that_the_newest_snapshot_is_missing_and_takes_another_one() {
    let (bench, old, missing) = replayed();
    // Nothing has changed, but what is as in the missing snapshot is not stored any more.
    let report = bench.push();
    assert!(report.warnings.iter().any(|warning| warning.contains(&missing)), "{:?}", report.warnings);
    assert_eq!(report.missing.as_ref(), Some(&missing));
    let again = report.snapshot.unwrap();
    assert_eq!(bench.list(), [again.clone(), old]);
    assert_eq!((listed(&bench, &bench.target).warnings.len(), status_warnings(&bench).len()), (0, 0));
    assert_eq!(bench.push().warnings, Vec::<String>::new());
    assert_same(&common::tree(&bench.pull("latest")), &bench.tree());
    // From now on this one must not go missing.
    fs::remove_dir_all(bench.repository().join(again)).unwrap();
    assert_eq!(listed(&bench, &bench.target).warnings.len(), 1);
}

#[test]
fn a_repository_that_is_gone_is_missed() {
    let bench = Bench::default();
    let only = push(&bench, "only");
    fs::remove_dir_all(bench.repository()).unwrap();
    assert!(listed(&bench, &bench.target).warnings[0].contains(&only));
    assert_eq!(code(&bench.try_rollback("latest", &[], true).unwrap_err()), "NOT_FOUND");
    assert!(bench.push().warnings.iter().any(|warning| warning.contains(&only)));
    bench.rollback("latest");
}

/// What other machines may do by themselves is no reason for a warning: nothing that they remove is the newest.
#[test]
fn retention_by_any_machine_raises_no_alarm() {
    let bench = Bench::new(serde_json::json!({ "keepSnapshots": 1 }));
    let other = Bench { target: bench.other_machine("other"), ..Bench::new(serde_json::json!({})) };
    let looks = |bench: &Bench| assert_eq!(listed(bench, &bench.target).warnings, Vec::<String>::new());
    for round in 0..2 {
        push(&bench, &format!("one {round}"));
        looks(&other);
        push(&bench, &format!("two {round}"));
        looks(&other);
        bench.prune_now();
        looks(&other);
        push(&other, &format!("other {round}"));
        looks(&bench);
        let of_all = PruneOptions { all_machines: true, ..PruneOptions::default() };
        let report = other.run(prune::prune_with(&other.target, of_all, &Operation::default())).unwrap();
        assert!(report.shrunk.is_none());
        looks(&bench);
        looks(&other);
    }
    assert_eq!(bench.list().len(), 2);
    // A safety snapshot may be removed by its owner at any time.
    bench.write("workspace/file", "before a rollback");
    let safety = bench.rollback("latest").safety_snapshot.unwrap();
    looks(&other);
    fs::remove_dir_all(bench.repository().join(safety)).unwrap();
    looks(&bench);
    looks(&other);
}

/// Whoever can write to the bucket, and has no key, must not be able to block `latest` by a name that is never kept.
#[test]
fn only_what_was_authenticated_is_remembered() {
    let bench = Bench::default();
    let own = push(&bench, "own");
    let planted = bench.repository().join("2099-01-01T00-00-00Z-00000000");
    fs::create_dir(&planted).unwrap();
    fs::copy(bench.repository().join(&own).join("manifest.json"), planted.join("manifest.json")).unwrap();
    assert_eq!(listed(&bench, &bench.target).unreadable.len(), 1);
    assert_eq!(code(&bench.try_rollback("latest", &[], true).unwrap_err()), "CORRUPT");
    fs::remove_dir_all(planted).unwrap();
    assert_eq!(listed(&bench, &bench.target).warnings, Vec::<String>::new());
    assert_eq!(bench.rollback("latest").snapshot, own);
}

#[test]
fn a_drill_tries_what_is_there_as_a_new_machine_does() {
    let (bench, old, _) = replayed();
    let drill = |snapshot: Option<&str>| {
        let options = DrillOptions { snapshot: snapshot.map(Into::into) };
        bench.run(drill::drill(&bench.target, options, &Operation::default()))
    };
    for snapshot in [None, Some("latest"), Some(old.as_str())] {
        assert_eq!(drill(snapshot).unwrap().snapshot, old);
    }
}
