//! What only buckets have: versions that deleting by name leaves behind, rules that delete by themselves, and Object Lock.
//! All of it against a real server, and whole commands.
//!
//! These tests need `SeaweedFS` and are ignored without being asked for; the head of `store_conformance.rs` says how.

mod common;

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{
    BucketLifecycleConfiguration, BucketVersioningStatus, ExpirationStatus, LifecycleExpiration, LifecycleRule,
    LifecycleRuleFilter, NoncurrentVersionExpiration, VersioningConfiguration,
};
use common::s3::{client, new_bucket, server};
use common::{Bench, assert_same, code, tree};
use openclaw_b2_backup::commands::{Operation, PruneReport, StatusOptions, StatusReport, prune, status};
use openclaw_b2_backup::config::Endpoint;
use openclaw_b2_backup::store::{Deletion, Opened, open};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// The folder of the repository in its bucket.
const FOLDER: &str = "openclaw-backup/";

/// A state directory, and a bucket for its repository.
struct Scene {
    bench: Bench,
    client: Client,
    bucket: String,
}

/// What the bucket does besides keeping objects.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keeps {
    Objects,
    Versions,
    Locks,
}

impl Scene {
    fn new(keeps: Keeps) -> Self {
        let server = server("OPENCLAW_B2_TEST_S3");
        let mut bench = Bench::new(json!({ "keyId": "AK", "applicationKey": "SK", "keepSnapshots": 1 }));
        let client = client(&server);
        let bucket = bench.run(async {
            let name = format!("bucket-{:016x}", getrandom::u64().unwrap());
            match keeps {
                Keeps::Objects => return new_bucket(&server).await,
                Keeps::Locks => {
                    client.create_bucket().bucket(&name).object_lock_enabled_for_bucket(true).send().await.unwrap();
                }
                Keeps::Versions => {
                    client.create_bucket().bucket(&name).send().await.unwrap();
                    let enabled = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
                    client
                        .put_bucket_versioning()
                        .bucket(&name)
                        .versioning_configuration(enabled)
                        .send()
                        .await
                        .unwrap();
                }
            }
            name
        });
        bench.target.endpoint = Endpoint::S3(server);
        bench.target.bucket = Some(bucket.clone());
        Self { bench, client, bucket }
    }

    /// Takes a snapshot of a state that has nothing in common with those before it. Its id.
    fn push(&self, content: &str) -> String {
        self.bench.write("openclaw.json", json!({ "agents": content }).to_string());
        self.bench.write("workspace/SOUL.md", content.repeat(2_000));
        self.bench.push().snapshot.unwrap()
    }

    fn prune(&self) -> PruneReport {
        self.try_prune().unwrap()
    }

    /// As if the grace period had passed.
    fn try_prune(&self) -> openclaw_b2_backup::Result<PruneReport> {
        self.bench.run(prune::prune_after(&self.bench.target, Duration::ZERO, &Operation::default()))
    }

    fn status(&self) -> StatusReport {
        let options = StatusOptions { pushes_per_month: Some(30.0) };
        self.bench.run(status::status(&self.bench.target, &options, &Operation::default())).unwrap()
    }

    fn store(&self) -> Opened {
        self.bench.run(open(&self.bench.target, &CancellationToken::new())).unwrap()
    }

    /// The versions of everything below the repository's folder, the newest of each object first: key without the folder,
    /// version, whether it is a delete marker.
    fn versions(&self) -> Vec<(String, String, bool)> {
        let listing = self.client.list_object_versions().bucket(&self.bucket).prefix(FOLDER);
        let listing = self.bench.run(listing.send()).unwrap();
        let key = |name: &str| name.strip_prefix(FOLDER).unwrap().to_owned();
        let versions =
            listing.versions().iter().map(|v| (key(v.key().unwrap()), v.version_id().unwrap().to_owned(), false));
        let markers =
            listing.delete_markers().iter().map(|v| (key(v.key().unwrap()), v.version_id().unwrap().to_owned(), true));
        versions.chain(markers).collect()
    }

    fn delete(&self, key: &str, version: Option<&str>) -> bool {
        let request = self.client.delete_object().bucket(&self.bucket).key(format!("{FOLDER}{key}"));
        self.bench.run(request.set_version_id(version.map(Into::into)).send()).is_ok()
    }

    /// Gives the bucket one lifecycle rule for the folder.
    fn set_rule(&self, edit: impl FnOnce(aws_sdk_s3::types::builders::LifecycleRuleBuilder) -> LifecycleRule) {
        let filter = LifecycleRuleFilter::builder().prefix(FOLDER).build();
        let rule = edit(LifecycleRule::builder().id("rule").status(ExpirationStatus::Enabled).filter(filter));
        let rules = BucketLifecycleConfiguration::builder().rules(rule).build().unwrap();
        let request = self.client.put_bucket_lifecycle_configuration().bucket(&self.bucket);
        self.bench.run(request.lifecycle_configuration(rules).send()).unwrap();
    }

    fn assert_restores(&self, snapshot: &str) {
        assert_same(&tree(&self.bench.pull(snapshot)), &self.bench.tree());
        assert_eq!(self.bench.problems(), Vec::<String>::new());
    }
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn pruned_objects_leave_no_version_behind() {
    let scene = Scene::new(Keeps::Versions);
    let first = scene.push("first");
    let last = scene.push("last");
    scene.prune();
    scene.prune();
    let versions = scene.versions();
    assert!(versions.iter().all(|(key, ..)| !key.starts_with(&first)), "{versions:?}");
    let listed = scene.bench.run(scene.store().store.list("")).unwrap().objects;
    assert_eq!(versions.len(), listed.len(), "one version of each object, and no marker: {versions:?}");
    assert_eq!(versions.iter().filter(|(key, ..)| key.starts_with("packs/")).count(), 1, "{versions:?}");
    assert_eq!(scene.status().hidden.unwrap().bytes, 0);
    scene.assert_restores(&last);
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn a_put_that_was_repeated_is_deleted_in_both_its_versions() {
    let scene = Scene::new(Keeps::Versions);
    let store = scene.store().store;
    scene.bench.run(async {
        for key in ["packs/00/twice", "packs/00/twice", "packs/00/twice-and-more"] {
            store.put(key, vec![7; 1000].into()).await.unwrap();
        }
        let hidden = store.hidden().await.unwrap().unwrap();
        assert_eq!((hidden.versions, hidden.bytes, hidden.deleted.len()), (1, 1000, 0));
        assert_eq!(store.deletion().await.unwrap(), Deletion::Untried);
        store.delete("packs/00/twice").await.unwrap();
        assert_eq!(store.deletion().await.unwrap(), Deletion::ForGood);
    });
    assert_eq!(scene.versions().iter().map(|(key, ..)| key.as_str()).collect::<Vec<_>>(), ["packs/00/twice-and-more"]);
}

/// A key that may write and not delete can still hide everything. Whoever prunes with a better key must not finish the work.
#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn what_a_stolen_key_has_hidden_is_neither_freed_nor_lost() {
    let scene = Scene::new(Keeps::Versions);
    let snapshot = scene.push("precious");
    let key = format!("{snapshot}/manifest.json");
    assert!(scene.delete(&key, None));
    assert_eq!(scene.bench.list(), Vec::<String>::new());

    let error = scene.try_prune().unwrap_err();
    assert_eq!(code(&error), "CORRUPT");
    assert!(error.to_string().contains(&snapshot) && error.to_string().contains("delete markers"), "{error}");
    let status = scene.status();
    assert!(status.hidden.as_ref().unwrap().bytes > 0);
    assert!(
        status.warnings.iter().any(|warning| warning.starts_with("1 snapshots were hidden")),
        "{:?}",
        status.warnings
    );

    let marker = scene.versions().into_iter().find(|(at, _, is_marker)| *at == key && *is_marker).unwrap();
    assert!(scene.delete(&key, Some(&marker.1)));
    scene.prune();
    scene.assert_restores(&snapshot);
    assert_eq!(scene.status().warnings, Vec::<String>::new());
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn a_bucket_whose_rule_removes_backups_is_refused_before_the_first_push() {
    let scene = Scene::new(Keeps::Versions);
    scene.set_rule(|rule| rule.expiration(LifecycleExpiration::builder().days(30).build()).build().unwrap());
    let error = scene.bench.try_push().unwrap_err();
    assert_eq!(code(&error), "CONFIG");
    assert!(error.to_string().contains("30 days after their upload"), "{error}");
    assert_eq!(scene.versions(), []);
    assert!(scene.status().warnings[0].contains("30 days"));

    // One that deletes what is hidden is welcome.
    let hidden = NoncurrentVersionExpiration::builder().noncurrent_days(7).build();
    scene.set_rule(|rule| rule.noncurrent_version_expiration(hidden).build().unwrap());
    let snapshot = scene.push("kept");
    let lifecycle = scene.bench.run(scene.store().store.lifecycle()).unwrap().unwrap();
    assert_eq!((lifecycle.expires_after, lifecycle.deletes_hidden_after), (None, Some(7)));
    scene.assert_restores(&snapshot);
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3, and waits until locks have ended"]
fn what_is_locked_stays_until_it_may_go() {
    let mut scene = Scene::new(Keeps::Locks);
    scene.bench.target.object_lock = Some(Duration::from_secs(20));
    let first = scene.push("first");
    let last = scene.push("last");
    let versions = scene.versions();
    for folder in ["packs/", "index/", "keys/", first.as_str(), last.as_str()] {
        let (key, version, _) = versions.iter().find(|(key, ..)| key.starts_with(folder)).expect(folder);
        assert!(!scene.delete(key, Some(version)), "the server refuses to delete {key}");
    }
    let (removed, locked) = {
        let report = scene.prune();
        (report.removed_snapshots, report.locked_objects)
    };
    assert_eq!(removed, Vec::<String>::new());
    assert!(locked > 0);
    assert_eq!(scene.bench.list(), [last.clone(), first.clone()]);
    assert_eq!(scene.versions().len(), versions.len(), "and prune adds nothing that would be locked in turn");

    let store = scene.store().store;
    let all_free = async || {
        for object in store.list("").await.unwrap().objects {
            if store.locked_until(&object.key).await.unwrap().is_some() {
                return false;
            }
        }
        true
    };
    scene.bench.run(async {
        while !all_free().await {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    });
    // What prune itself writes need not be locked for this.
    scene.bench.target.object_lock = None;
    assert_eq!(scene.prune().removed_snapshots, [first]);
    assert_eq!(scene.prune().deleted_packs, 1);
    scene.assert_restores(&last);
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3, and waits until locks are half over"]
fn what_the_newest_snapshot_needs_is_locked_again_in_time() {
    let mut scene = Scene::new(Keeps::Locks);
    let lock = Duration::from_secs(10);
    scene.bench.target.object_lock = Some(lock);
    let snapshot = scene.push("unchanging");
    let store = scene.store().store;
    let ends = || {
        scene.bench.run(async {
            let mut ends = Vec::new();
            for object in store.list("").await.unwrap().objects {
                ends.push((object.key.clone(), store.locked_until(&object.key).await.unwrap()));
            }
            ends
        })
    };
    let before = ends();
    assert!(before.iter().all(|(_, end)| end.is_some()), "{before:?}");
    std::thread::sleep(lock / 2 + Duration::from_secs(1));
    assert_eq!(scene.bench.push().snapshot, None, "nothing has changed");
    for ((key, before), (_, after)) in before.iter().zip(ends()) {
        // What an index object says can be read from the packs.
        let is_renewed = after > *before;
        assert_eq!(is_renewed, !key.starts_with("index/"), "{key}: {before:?} {after:?}");
    }
    assert_eq!(scene.bench.list(), [snapshot]);
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn a_bucket_without_object_lock_is_a_configuration_error() {
    let mut scene = Scene::new(Keeps::Versions);
    scene.bench.target.object_lock = Some(Duration::from_hours(24));
    let error = scene.bench.try_push().unwrap_err();
    assert_eq!(code(&error), "CONFIG", "{error}");
    assert!(error.to_string().starts_with("objectLockDays: "), "{error}");
    assert_eq!(scene.bench.list(), Vec::<String>::new());
}

#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn the_cost_of_a_month_follows_from_what_was_measured() {
    let scene = Scene::new(Keeps::Objects);
    assert_eq!(scene.status().cost.unwrap().measured_pushes, 0);
    scene.push("first");
    scene.push("second");
    let status = scene.status();
    let cost = status.cost.unwrap();
    assert_eq!((cost.measured_pushes, cost.billed_bytes), (2, status.stored_bytes));
    // Asked for by hand, twice in what counts as one day, besides those of the schedule.
    assert!((cost.pushes_per_month - 90.0).abs() < 1e-9, "{cost:?}");
    assert!(cost.class_c.per_month >= 90.0 && cost.class_c.per_month < 75_000.0, "{cost:?}");
    assert!(cost.usd.abs() < 1e-9, "within the free allowances: {cost:?}");
}

/// `0.0.0.0` is not a loopback address, and leads to this machine all the same.
#[test]
#[ignore = "needs SeaweedFS: OPENCLAW_B2_TEST_S3"]
fn plain_http_to_another_machine_is_for_those_who_ask_for_it() {
    let mut scene = Scene::new(Keeps::Objects);
    let Endpoint::S3(url) = &scene.bench.target.endpoint else { unreachable!("it is a bucket") };
    scene.bench.target.endpoint = Endpoint::S3(url.replace("127.0.0.1", "0.0.0.0"));
    assert_eq!(code(&scene.bench.try_push().unwrap_err()), "CONFIG");
    scene.bench.target.allow_insecure_endpoint = true;
    let snapshot = scene.push("over a cable between two machines");
    scene.assert_restores(&snapshot);
}
