//! Workspaces, agents' directories and other files that the configuration puts outside the state directory.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Bench, tree};
use openclaw_b2_backup::Code;
use openclaw_b2_backup::commands::{Operation, RollbackOptions, RollbackReport, rollback};
use openclaw_b2_backup::config::{Target, Variables};
use serde_json::{Value, json};

/// A bench, and a directory beside the state directory.
struct Outside {
    bench: Bench,
    folder: PathBuf,
}

impl Outside {
    fn new(fields: Value) -> Self {
        let bench = Bench::new(fields);
        let folder = bench.root.path().join("outside").canonicalize().unwrap_or_else(|_| {
            fs::create_dir(bench.root.path().join("outside")).unwrap();
            bench.root.path().join("outside").canonicalize().unwrap()
        });
        Self { bench, folder }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    fn write(&self, path: &str, content: &str) {
        write(&self.at(path), content);
    }

    fn configure(&self, config: &Value) {
        configure(&self.bench.target, config);
    }

    fn rollback_as(&self, target: &Target, snapshot: &str) -> openclaw_b2_backup::Result<RollbackReport> {
        let options =
            RollbackOptions { snapshot: snapshot.into(), paths: Vec::new(), plan_only: false, partial: false };
        self.bench.run(rollback::rollback(target, options, &Operation::default()))
    }
}

fn write(path: &Path, content: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path.as_ref()).unwrap_or_else(|error| panic!("{}: {error}", path.as_ref().display()))
}

fn configure(target: &Target, config: &Value) {
    write(&target.state_dir.join("openclaw.json"), &config.to_string());
}

fn config_of(target: &Target) -> Value {
    serde_json::from_str(&read(target.state_dir.join("openclaw.json"))).unwrap()
}

#[test]
fn workspaces_and_agents_directories_outside_are_saved_under_stable_names_and_rolled_back_where_they_are() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.configure(&json!({ "agents": {
        "ownership": "explicit",
        "defaults": { "workspace": outside.at("shared") },
        "entries": {
            "main": { "workspace": outside.at("home/ws") },
            "Work!": { "agentDir": outside.at("work-agent") },
            "twin": { "workspace": outside.at("home/ws") },
            "inside": { "workspace": bench.state("my-ws") },
        },
    } }));
    outside.write("home/ws/SOUL.md", "calm");
    outside.write("home/ws/memory/day.md", "sunny");
    outside.write("shared/work/AGENTS.md", "work");
    outside.write("work-agent/models.json", "{}");
    outside.write("work-agent/auth-profiles.json", "a secret");
    bench.write("agents/work/agent/notes.txt", "beside");
    bench.write("my-ws/SOUL.md", "inside");
    let push = bench.push();
    assert_eq!(push.exceptions, []);
    let id = push.snapshot.unwrap();
    let pulled = bench.pull(&id);
    assert_eq!(read(pulled.join("workspace-main/SOUL.md")), "calm");
    assert_eq!(read(pulled.join("workspace-work/AGENTS.md")), "work");
    assert_eq!(read(pulled.join("agents/work/agent-dir/models.json")), "{}");
    assert_eq!(read(pulled.join("agents/work/agent/notes.txt")), "beside");
    assert_eq!(read(pulled.join("workspace-inside/SOUL.md")), "inside");
    for absent in ["my-ws", "workspace-twin", "agents/work/agent-dir/auth-profiles.json"] {
        assert!(!pulled.join(absent).exists(), "{absent}");
    }
    assert_eq!(bench.push().snapshot, None, "nothing changed");

    let before = (bench.tree(), tree(&outside.folder));
    outside.write("home/ws/SOUL.md", "angry");
    outside.write("home/ws/new/file.md", "new");
    fs::remove_dir_all(outside.at("shared/work")).unwrap();
    fs::remove_file(bench.state("my-ws/SOUL.md")).unwrap();
    outside.write("work-agent/models.json", "{ changed }");
    outside.write("elsewhere.txt", "not ours");
    let report = bench.rollback(&id);
    assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    assert_eq!(report.deleted, ["workspace-main/new", "workspace-main/new/file.md"]);
    assert_eq!(read(outside.at("elsewhere.txt")), "not ours");
    fs::remove_file(outside.at("elsewhere.txt")).unwrap();
    assert_eq!((bench.tree(), tree(&outside.folder)), before);
    // And back again.
    bench.rollback(&report.safety_snapshot.unwrap());
    assert_eq!(read(outside.at("home/ws/new/file.md")), "new");
    assert!(!outside.at("shared/work/AGENTS.md").exists());
    assert_eq!(bench.problems(), Vec::<String>::new());
}

#[test]
fn another_machine_gets_them_where_its_own_configuration_puts_them() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.configure(&json!({ "agents": {
        "defaults": { "workspace": outside.at("a/ws") },
        "list": [{ "id": "main", "default": true }, { "id": "work", "agentDir": outside.at("a/agent") }],
    }, "skills": { "load": { "extraDirs": [bench.state("skills/own")] } } }));
    outside.write("a/ws/SOUL.md", "calm");
    outside.write("a/ws/work/AGENTS.md", "work");
    outside.write("a/agent/models.json", "{}");
    let id = bench.push().snapshot.unwrap();
    let before = tree(&outside.at("a"));

    // One whose configuration says nothing has them in its state directory.
    let plain = bench.other_machine("plain");
    configure(&plain, &json!({}));
    let report = outside.rollback_as(&plain, &id).unwrap();
    assert_eq!(read(plain.state_dir.join("workspace/SOUL.md")), "calm");
    assert_eq!(read(plain.state_dir.join("workspace-work/AGENTS.md")), "work");
    assert_eq!(read(plain.state_dir.join("agents/work/agent-dir/models.json")), "{}");
    let config = config_of(&plain);
    let agents = &config["agents"]["list"];
    assert_eq!(agents[0]["workspace"], json!(plain.state_dir.join("workspace")));
    assert_eq!(agents[1]["workspace"], json!(plain.state_dir.join("workspace-work")));
    assert_eq!(agents[1]["agentDir"], json!(plain.state_dir.join("agents/work/agent-dir")));
    assert_eq!(config["skills"]["load"]["extraDirs"], json!([plain.state_dir.join("skills/own")]));
    assert_eq!(report.warnings.len(), 3, "{:?}", report.warnings);

    // One that keeps its workspace elsewhere goes on doing so.
    let other = bench.other_machine("other");
    configure(&other, &json!({ "agents": { "defaults": { "workspace": outside.at("b/ws") } } }));
    outside.rollback_as(&other, &id).unwrap();
    assert_eq!(read(outside.at("b/ws/SOUL.md")), "calm");
    assert!(!other.state_dir.join("workspace").exists());
    assert_eq!(config_of(&other)["agents"]["list"][0]["workspace"], json!(outside.at("b/ws")));
    // What it says of its own is what it saves.
    let push = bench.run(openclaw_b2_backup::commands::push::push(
        &other,
        openclaw_b2_backup::commands::PushOptions { trigger: openclaw_b2_backup::commands::Trigger::Manual },
        &Operation::default(),
    ));
    let pulled = bench.pull(&push.unwrap().snapshot.unwrap());
    assert_eq!(read(pulled.join("workspace/SOUL.md")), "calm");
    assert_eq!(tree(&outside.at("a")), before, "the first machine's files are not touched");
}

#[test]
fn a_workspace_behind_a_link_and_what_is_left_in_the_state_directory_are_both_saved() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.write("ws/SOUL.md", "calm");
    symlink(outside.at("ws"), bench.state("workspace")).unwrap();
    let id = bench.push().snapshot.unwrap();
    assert_eq!(read(bench.pull(&id).join("workspace/SOUL.md")), "calm");
    outside.write("ws/SOUL.md", "angry");
    bench.rollback(&id);
    assert_eq!(read(outside.at("ws/SOUL.md")), "calm");
    assert!(bench.state("workspace").is_symlink());

    fs::remove_file(bench.state("workspace")).unwrap();
    bench.write("workspace/OLD.md", "left behind");
    outside.configure(&json!({ "agents": { "defaults": { "workspace": outside.at("ws") } } }));
    let id = bench.push().snapshot.unwrap();
    let pulled = bench.pull(&id);
    assert_eq!(read(pulled.join("workspace/SOUL.md")), "calm");
    assert_eq!(read(pulled.join("workspace.left-in-state-directory/OLD.md")), "left behind");
    bench.write("workspace/OLD.md", "changed");
    bench.rollback(&id);
    assert_eq!(read(bench.state("workspace/OLD.md")), "left behind");
    assert_eq!(read(outside.at("ws/SOUL.md")), "calm");
}

#[test]
fn the_configuration_and_what_it_includes_are_saved_wherever_they_lie() {
    let outside = Outside::new(json!({}));
    let config_path = outside.at("etc/openclaw.json");
    write(&config_path, r#"{ agents: { $include: "./parts/agents.json5" } }"#);
    let agents = |workspace: &str| format!("{{ defaults: {{ workspace: '{workspace}' }} }} // a comment");
    outside.write("etc/parts/agents.json5", &agents("${WS}/ws"));
    outside.write("ws/SOUL.md", "calm");
    let mut bench = outside.bench;
    let variables = [("WS", &outside.folder), ("OPENCLAW_CONFIG_PATH", &config_path)];
    let variables = variables.map(|(name, path)| (name.to_owned(), path.display().to_string()));
    bench.target.variables = Variables(variables.into());
    let id = bench.push().snapshot.unwrap();
    let pulled = bench.pull(&id);
    assert_eq!(read(pulled.join("openclaw.json")), read(&config_path));
    assert_eq!(read(pulled.join("parts/agents.json5")), agents("${WS}/ws"));
    assert_eq!(read(pulled.join("workspace/SOUL.md")), "calm");

    // The workspace has moved since: the older configuration must not look where it was.
    let folder = outside.folder;
    write(&folder.join("etc/parts/agents.json5"), &agents("${WS}/moved"));
    fs::rename(folder.join("ws"), folder.join("moved")).unwrap();
    write(&config_path, r#"{ agents: { $include: "./parts/agents.json5" }, logging: {} }"#);
    write(&folder.join("moved/SOUL.md"), "angry");
    bench.rollback(&id);
    assert_eq!(read(folder.join("moved/SOUL.md")), "calm");
    assert_eq!(read(folder.join("etc/parts/agents.json5")), agents("${WS}/ws"));
    let config: Value = serde_json::from_str(&read(&config_path)).unwrap();
    assert_eq!(config["agents"]["defaults"]["workspace"], json!(folder.join("moved")));
    assert!(!folder.join("ws").exists());
}

#[test]
fn a_variable_that_is_not_set_and_a_configuration_that_cannot_be_read_are_said() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.write("ws/SOUL.md", "calm");
    outside.configure(&json!({ "agents": { "defaults": { "workspace": "${NOWHERE}/ws" } } }));
    let push = bench.push();
    assert!(push.exceptions[0].reason.contains("variable is not set"), "{:?}", push.exceptions);
    outside.configure(&json!({ "agents": { "defaults": { "workspace": outside.at("ws") } } }));
    let id = bench.push().snapshot.unwrap();

    // The last one that OpenClaw could read says where the workspace is.
    fs::copy(bench.state("openclaw.json"), bench.state("openclaw.json.last-good")).unwrap();
    bench.write("openclaw.json", "{ agents: ");
    outside.write("ws/SOUL.md", "angry");
    assert_eq!(bench.push().exceptions, []);
    bench.rollback(&id);
    assert_eq!(read(outside.at("ws/SOUL.md")), "calm");

    // Without it nobody knows, and nothing is put where it does not belong.
    bench.write("openclaw.json", "{ agents: ");
    assert!(!bench.state("openclaw.json.last-good").exists(), "the snapshot does not have it");
    assert!(bench.push().exceptions[0].reason.contains("where workspaces lie is not known"));
    let error = bench.try_rollback(&id, &[], false).unwrap_err();
    assert_eq!(error.code(), Code::Config);
    assert!(error.to_string().contains("--path openclaw.json"), "{error}");
    bench.try_rollback(&id, &["openclaw.json"], false).unwrap();
    assert_eq!(config_of(&bench.target)["agents"]["defaults"]["workspace"], json!(outside.at("ws")));
    bench.rollback(&id);
}

#[test]
fn extra_paths_are_saved_and_rolled_back_and_go_nowhere_where_they_are_not_configured() {
    let mut outside = Outside::new(json!({}));
    outside.write("notes/a.md", "a");
    outside.write("single.txt", "one");
    outside.write("untouched.txt", "mine");
    let extra = |paths: &[&str]| paths.iter().map(|path| outside.folder.join(path)).collect::<Vec<_>>();
    let configured = extra(&["notes", "single.txt", "missing"]);
    outside.bench.target.extra_paths.clone_from(&configured);
    let bench = &outside.bench;
    bench.write("workspace/SOUL.md", "calm");
    let push = bench.push();
    assert_eq!(push.exceptions.len(), 1, "{:?}", push.exceptions);
    assert!(push.exceptions[0].reason.contains("missing does not exist"), "{:?}", push.exceptions);
    let id = push.snapshot.unwrap();

    outside.write("notes/a.md", "changed");
    outside.write("notes/b.md", "new");
    fs::remove_file(outside.at("single.txt")).unwrap();
    bench.rollback(&id);
    assert_eq!(read(outside.at("notes/a.md")), "a");
    assert!(!outside.at("notes/b.md").exists());
    assert_eq!(read(outside.at("single.txt")), "one");
    assert_eq!(read(outside.at("untouched.txt")), "mine");

    // A path that was configured after the snapshot is not emptied by it.
    let mut later = bench.target.clone();
    later.extra_paths.push(outside.at("later"));
    outside.write("later/precious.md", "precious");
    bench.write("workspace/SOUL.md", "angry");
    outside.rollback_as(&later, &id).unwrap();
    assert_eq!(read(outside.at("later/precious.md")), "precious");

    // Where they are not configured they are left out, and said.
    let before = tree(&outside.folder);
    let other = Target { extra_paths: Vec::new(), ..bench.other_machine("other") };
    let report = outside.rollback_as(&other, &id).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("extraPaths")), "{:?}", report.warnings);
    assert_eq!(fs::read_dir(&other.state_dir).unwrap().count(), 2, "the workspace and the product's own folder");
    assert_eq!(tree(&outside.folder), before);
}

#[test]
fn extra_paths_in_the_state_directory_bring_no_credentials_into_a_snapshot() {
    let root = Bench::default();
    let inside = root.state("credentials");
    root.write("credentials/whatsapp/creds.json", "a login");
    root.write("identity/device.json", "an identity");
    root.write("workspace/notes.md", "kept");
    let target = Target { extra_paths: vec![inside, root.state("identity/device.json")], ..root.target.clone() };
    let options = openclaw_b2_backup::commands::PushOptions { trigger: openclaw_b2_backup::commands::Trigger::Manual };
    let report = root.run(openclaw_b2_backup::commands::push::push(&target, options, &Operation::default())).unwrap();
    assert_eq!(report.exceptions.len(), 2, "{report:?}");
    assert!(report.exceptions.iter().all(|exception| exception.reason.contains("use include")), "{report:?}");
    assert_eq!(tree(&root.pull("latest")).into_keys().collect::<Vec<_>>(), ["workspace", "workspace/notes.md"]);
}

/// Beside a longer name of its place, what the file system takes may be too long for a snapshot.
#[test]
fn a_path_that_no_restore_would_take_is_named_and_spoils_nothing() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    let agent = "a".repeat(64);
    outside.configure(&json!({ "agents": { "ownership": "explicit", "entries": { &agent: { "workspace": outside.at("w") }, "b": {} } } }));
    let mut deep = outside.at("w");
    while deep.as_os_str().len() < 4096 - 64 {
        deep.push("d".repeat(31));
    }
    fs::create_dir_all(&deep).unwrap();
    outside.write("w/notes.md", "kept");
    let report = bench.push();
    assert!(!report.exceptions.is_empty(), "{report:?}");
    assert!(report.exceptions.iter().all(|exception| exception.reason.contains("longer")), "{report:?}");
    assert_eq!(read(bench.pull("latest").join(format!("workspace-{agent}/notes.md"))), "kept");
}

#[test]
fn directories_of_openclaw_that_are_links_are_saved_with_what_they_lead_to() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.write("agents/main/sessions/a.jsonl", "one");
    outside.write("agents/main/agent/auth-profiles.json", "a login");
    outside.write("writer/sessions/b.jsonl", "two");
    symlink(outside.at("agents"), bench.state("agents")).unwrap();
    symlink(outside.at("writer"), outside.at("agents/writer")).unwrap();
    bench.write("workspace/notes.md", "kept");
    let report = bench.push();
    assert!(report.exceptions.is_empty(), "{report:?}");
    let pulled = tree(&bench.pull("latest"));
    assert!(pulled.contains_key("agents/main/sessions/a.jsonl"), "{pulled:?}");
    assert!(!pulled.keys().any(|path| path.contains("auth-profiles")), "{pulled:?}");

    outside.write("agents/main/sessions/a.jsonl", "damaged");
    fs::remove_file(outside.at("writer/sessions/b.jsonl")).unwrap();
    let report = bench.rollback("latest");
    assert!(report.warnings.is_empty(), "{report:?}");
    assert!(bench.state("agents").is_symlink() && outside.at("agents/writer").is_symlink());
    assert_eq!(read(bench.state("agents/main/sessions/a.jsonl")), "one");
    assert_eq!(read(outside.at("writer/sessions/b.jsonl")), "two");
    assert_eq!(read(outside.at("agents/main/agent/auth-profiles.json")), "a login");
}

#[test]
fn directories_of_openclaw_that_are_links_within_the_state_are_saved_as_links() {
    let bench = Bench::default();
    bench.write("agents/main/sessions/a.jsonl", "one");
    let before = bench.push().snapshot.unwrap();
    fs::rename(bench.state("agents"), bench.state("moved")).unwrap();
    symlink(bench.state("moved"), bench.state("agents")).unwrap();
    symlink("..", bench.state("skills")).unwrap();
    let after = bench.push().snapshot.unwrap();
    let pulled = bench.pull("latest");
    assert!(pulled.join("agents").is_symlink() && pulled.join("skills").is_symlink());
    assert_eq!(read(pulled.join("moved/main/sessions/a.jsonl")), "one");

    bench.rollback(&before);
    assert!(!bench.state("agents").is_symlink() && !bench.state("moved").exists());
    assert_eq!(read(bench.state("agents/main/sessions/a.jsonl")), "one");
    bench.rollback(&after);
    assert!(bench.state("agents").is_symlink());
    assert_eq!(read(bench.state("moved/main/sessions/a.jsonl")), "one");
}

/// A start without the disk that a workspace lies on, which then is an empty mount point or nothing at all.
#[test]
fn a_workspace_whose_disk_is_not_mounted_is_told_of_and_no_rollback_empties_it() {
    use std::os::unix::fs::MetadataExt;
    let outside = Outside::new(json!({ "keepSnapshots": 1 }));
    let bench = &outside.bench;
    let Ok(other_disk) = tempfile::tempdir_in("/dev/shm") else { return };
    if fs::metadata(&other_disk).unwrap().dev() == fs::metadata(&outside.folder).unwrap().dev() {
        eprintln!("skipped: there is no other file system here");
        return;
    }
    let (disk, unplugged) = (other_disk.path().join("disk"), other_disk.path().join("unplugged"));
    outside.configure(&json!({ "agents": { "defaults": { "workspace": disk } } }));
    write(&disk.join("SOUL.md"), "soul");
    bench.write("agents/main/log.jsonl", "0");
    let whole = bench.push().snapshot.unwrap();
    fs::rename(&disk, &unplugged).unwrap();
    let mut without = String::new();
    for round in 1..4 {
        bench.write("agents/main/log.jsonl", round.to_string());
        let report = bench.push();
        assert_eq!(report.dropped, ["workspace"], "{report:?}");
        assert!(report.exceptions[0].reason.contains("is its disk mounted?"), "{report:?}");
        without = report.snapshot.unwrap();
        if round == 1 {
            fs::create_dir(&disk).unwrap();
        }
    }
    assert_eq!(bench.list(), [without.clone(), whole]);
    fs::remove_dir(&disk).unwrap();
    fs::rename(&unplugged, &disk).unwrap();
    bench.rollback(&without);
    assert_eq!(read(disk.join("SOUL.md")), "soul");
    assert!(bench.push().dropped.is_empty());
}

#[test]
fn an_ignore_file_with_a_line_that_makes_no_sense_is_named_and_saved() {
    let bench = Bench::default();
    bench.write("workspace/.b2-backup-ignore", "data/\n");
    bench.write("workspace/notes.md", "kept");
    bench.push();
    bench.write("workspace/.b2-backup-ignore", "a{b\n");
    let report = bench.push();
    assert_eq!((report.exceptions.len(), report.dropped.len(), report.files), (1, 0, 2), "{report:?}");
}

#[test]
fn an_ignore_file_leaves_out_what_it_names_and_a_rollback_leaves_that_alone() {
    let outside = Outside::new(json!({}));
    let bench = &outside.bench;
    outside.configure(&json!({ "agents": { "defaults": { "workspace": outside.at("ws") } } }));
    outside.write("ws/.b2-backup-ignore", "# large\n/data/\n*.bin\n!keep.bin\n");
    for path in ["ws/data/a", "ws/x.bin", "ws/keep.bin", "ws/sub/data/b", "ws/sub/y.bin"] {
        outside.write(path, "1");
    }
    let id = bench.push().snapshot.unwrap();
    let pulled = bench.pull(&id);
    let names: Vec<String> = tree(&pulled.join("workspace")).into_keys().collect();
    assert_eq!(names, [".b2-backup-ignore", "keep.bin", "sub", "sub/data", "sub/data/b"]);
    outside.write("ws/data/a", "2");
    outside.write("ws/keep.bin", "2");
    bench.rollback(&id);
    assert_eq!((read(outside.at("ws/data/a")), read(outside.at("ws/keep.bin"))), ("2".into(), "1".into()));
}

#[test]
fn what_the_configuration_includes_stays_out_of_a_plain_repository() {
    let bench = Bench::new(json!({ "encrypt": false }));
    bench.write("openclaw.json", r#"{ channels: { $include: "./parts/channels.json5" } }"#);
    bench.write("parts/channels.json5", "{ token: 'secret' }");
    bench.write("parts/other.txt", "kept");
    let push = bench.push();
    let mut excepted: Vec<&str> = push.exceptions.iter().map(|exception| exception.path.as_str()).collect();
    excepted.sort_unstable();
    assert_eq!(excepted, ["openclaw.json", "parts/channels.json5"]);
    assert!(bench.pull(&push.snapshot.unwrap()).join("parts/other.txt").exists());
}

#[test]
fn files_that_credentials_are_read_from_stay_at_home() {
    let bench = Bench::new(json!({ "include": ["**"] }));
    let config = json!({
        "secrets": { "providers": { "mine": { "source": "file", "path": bench.state("vault/all.json") } } },
        "channels": { "telegram": { "accounts": [{ "tokenFile": bench.state("workspace/telegram token") }] } },
        "plugins": { "entries": { "openclaw-b2-backup": { "config": { "keyFile": bench.state("backup-secret") } } } },
    });
    configure(&bench.target, &config);
    let secret = ["vault/all.json", "workspace/telegram token", "backup-secret", "gateway/tls/gateway-key.pem"];
    let kept = ["vault/notes.md", "workspace/token", "agents/main/agent/models.json", "workspace/auth.json"];
    for path in secret.iter().chain(&kept).chain(&["agents/main/agent/auth.json", "secrets.json"]) {
        bench.write(path, "content");
    }
    let pulled = tree(&bench.pull(&bench.push().snapshot.unwrap()));
    let files: Vec<&str> = pulled.keys().map(String::as_str).filter(|path| bench.state(path).is_file()).collect();
    assert_eq!(
        files,
        ["agents/main/agent/models.json", "openclaw.json", "vault/notes.md", "workspace/auth.json", "workspace/token"]
    );
}
