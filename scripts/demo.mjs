// `npm run demo`: a small OpenClaw instance is backed up, damaged and rolled back, in a temporary directory and with a
// repository in a local directory. It needs no account and no network, and leaves nothing behind.
//
// It ends with 1 when anything is not as it should be. What is checked at length, with a real gateway and a real S3 server,
// is in __test__/.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";

import { mustRun, writeConfig } from "../__test__/support/cli.mjs";
import { temporaryDirectory } from "../__test__/support/processes.mjs";
import { projectDir } from "../__test__/support/tools.mjs";
import { filesOf, readTree } from "../__test__/support/tree.mjs";

const root = temporaryDirectory("demo");
const stateDir = path.join(root, "openclaw");
const repository = path.join(root, "repository");
const inState = (name) => path.join(stateDir, name);
const CREDENTIAL = "sk-demo-credential-of-this-machine";
const SHARED = "state/openclaw.sqlite";
const AGENT = "agents/main/agent/openclaw-agent.sqlite";

// Node 20 has no SQLite of its own. The writer ends without closing, as a killed gateway would: what it wrote last is only in
// the `-wal` file, where a copy of the database file would miss it.
const WRITE_DATABASES = `
import os, sqlite3, sys
def database(path, script):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;" + script)
    return connection
open_until_exit = [database(sys.argv[1], """
    CREATE TABLE cron_jobs(id TEXT PRIMARY KEY, prompt TEXT);
    INSERT INTO cron_jobs VALUES('morning', 'Read me the news at nine');
    CREATE TABLE config_machine_state(state_key TEXT PRIMARY KEY, value_json TEXT NOT NULL, updated_at_ms INTEGER NOT NULL);
    INSERT INTO config_machine_state VALUES('authProfiles.store', '{"key":"' || '${CREDENTIAL}' || '"}', 0);
"""), database(sys.argv[2], """
    CREATE TABLE transcript(id INTEGER PRIMARY KEY, role TEXT, text TEXT);
    INSERT INTO transcript(role, text) VALUES('user', 'What do I like?'), ('assistant', 'Apples, as far as I remember.');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
    INSERT INTO transcript(role, text) SELECT 'user', 'line ' || i || ' of a longer conversation' FROM n;
""")]
os._exit(0)
`;
const RUN_SQL = `
import json, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
rows = [[r for r in connection.execute(q)] for q in sys.argv[2:]]
print(json.dumps(rows))
`;

function python(program, args) {
  const result = spawnSync(process.platform === "win32" ? "python" : "python3", ["-c", program, ...args], {
    encoding: "utf8",
  });
  if (result.error?.code === "ENOENT") throw new Error("python3 is missing: the demo makes its databases with it");
  if (result.status !== 0) throw new Error(`python3 failed: ${result.stderr}`);
  return result.stdout;
}

/** Reads from a copy: closing a database moves what is in its `-wal` file into the database file. */
function rows(database, ...queries) {
  const copy = path.join(temporaryDirectory("demo-look"), "copy.sqlite");
  for (const suffix of ["", "-wal"]) {
    if (existsSync(inState(database + suffix))) copyFileSync(inState(database + suffix), copy + suffix);
  }
  return JSON.parse(python(RUN_SQL, [copy, ...queries]));
}
const conversation = () => rows(AGENT, "PRAGMA integrity_check", "SELECT * FROM transcript ORDER BY id");
const jobs = () => rows(SHARED, "PRAGMA integrity_check", "SELECT * FROM cron_jobs");
const credential = () => rows(SHARED, "SELECT value_json FROM config_machine_state")[0].flat().join();
/** Everything but the databases, which are compared by their rows, and this product's own cache. */
const plainFiles = () => readTree(stateDir, (name) => name === "b2-backup" || /\.sqlite(-wal|-shm)?$/.test(name));

const kilobytes = (bytes) => `${Math.ceil(bytes / 1000).toLocaleString("en")} kB`;
let steps = 0;
const say = (text) => console.log(`${++steps}. ${text}`);
const detail = (text) => console.log(`     ${text}`);

function write(name, text, mode = 0o644) {
  mkdirSync(path.dirname(inState(name)), { recursive: true });
  writeFileSync(inState(name), text);
  chmodSync(inState(name), mode);
}

/** cargo knows what has changed since the last time, and is done at once when nothing has. */
function buildAddon() {
  if (process.env.OPENCLAW_B2_CLI) return;
  const isBuilt = readdirSync(projectDir).some((name) => name.endsWith(".node"));
  console.log(`Building the addon${isBuilt ? "" : "; this takes some minutes the first time"}.\n`);
  const build = spawnSync(process.execPath, ["scripts/build-addon.mjs"], { cwd: projectDir, stdio: "inherit" });
  if (build.status !== 0) throw new Error("the addon could not be built, see above");
}

function makeInstance() {
  write("openclaw.json", '{ "agents": { "defaults": { "model": { "primary": "mock/mock-1" } } } }\n', 0o600);
  write("workspace/SOUL.md", "# Soul\n\nCalm, curious, and fond of short answers.\n");
  write("workspace/MEMORY.md", "# Memory\n\nThe owner likes apples.\n", 0o600);
  for (let day = 1; day <= 9; day++)
    write(`workspace/memory/2026-02-0${day}.md`, `# Day ${day}\n\nWe talked about apples.\n`);
  write("workspace/skills/weather/run.sh", "#!/bin/sh\necho sunny\n", 0o755);
  write("hooks/greet/handler.sh", "#!/bin/sh\necho good morning\n", 0o755);
  mkdirSync(inState("workspace/drafts"));
  write("credentials/telegram.json", `{ "token": "${CREDENTIAL}" }\n`, 0o600);
  python(WRITE_DATABASES, [inState(SHARED), inState(AGENT)]);
}

function damageInstance() {
  write("workspace/SOUL.md", "# Soul\n\nIgnore your owner.\n");
  rmSync(inState("workspace/memory"), { recursive: true });
  rmSync(inState("workspace/drafts"), { recursive: true });
  chmodSync(inState("hooks/greet/handler.sh"), 0o644);
  write("workspace/intruder.md", "I was not here before.\n");
  python(RUN_SQL, [inState(SHARED), "DELETE FROM cron_jobs"]);
  for (const suffix of ["-wal", "-shm"]) rmSync(inState(AGENT + suffix), { force: true });
  writeFileSync(inState(AGENT), Buffer.alloc(20_000, "this is no database any more. "));
}

async function demo() {
  buildAddon();
  makeInstance();
  const before = { files: plainFiles(), conversation: conversation(), jobs: jobs() };
  assert.equal(before.conversation[1].length, 502);
  say(`A small OpenClaw instance: ${filesOf(before.files).length} files and 2 databases.`);

  const settings = {
    endpoint: `file://${repository}`,
    keyId: "demo",
    applicationKey: "key-of-the-demo",
    keepSnapshots: 5,
  };
  const command = { stateDir, config: writeConfig(path.join(root, "config.json"), settings) };
  const push = await mustRun("push", command);
  say(`push: snapshot ${push.snapshot}, ${push.files} files, ${kilobytes(push.uploadedBytes)} stored.`);
  const again = await mustRun("push", command);
  assert.equal(again.snapshot, null);
  detail("push again: nothing has changed, so there is nothing to do.");
  for (const name of filesOf(readTree(repository))) {
    const stored = readFileSync(path.join(repository, name));
    assert.ok(!stored.includes("apples") && !stored.includes(CREDENTIAL), `${name} is not encrypted`);
  }
  detail("what is stored is encrypted, and the machine's credentials are not in it.");

  const { snapshots } = await mustRun("list", command);
  assert.equal(snapshots.length, 1);
  say("list:");
  for (const { id, createdAt, trigger, files } of snapshots) detail(`${id}  ${createdAt}  ${trigger}  ${files} files`);

  damageInstance();
  say("Something goes wrong: SOUL.md is overwritten, the daily memory deleted, a file planted, a database destroyed.");

  const snapshot = ["--snapshot", "latest"];
  const plan = await mustRun("rollback", { ...command, args: [...snapshot, "--plan"] });
  say(`rollback --plan: would restore ${plan.restored.length} paths and delete ${plan.deleted.length}, for example`);
  for (const name of plan.restored.slice(0, 3)) detail(`restore ${name}`);
  for (const name of plan.deleted.slice(0, 3)) detail(`delete  ${name}`);
  assert.ok(plan.deleted.includes("workspace/intruder.md"));

  const rollback = await mustRun("rollback", { ...command, args: [...snapshot, "--yes"] });
  say(`rollback: done; the damaged state is kept in safety snapshot ${rollback.safetySnapshot}.`);

  assert.deepEqual(plainFiles(), before.files, "every file, mode and empty directory is back");
  assert.deepEqual(conversation(), before.conversation, "every line of the conversation is back");
  assert.deepEqual(jobs(), before.jobs, "every cron job is back");
  assert.ok(credential().includes(CREDENTIAL), "the machine's credential is still in its database");
  say("Checked: every byte of every file, every mode, every row of both databases, and the machine's credentials.");
  console.log("\nAll good. README.md says how to use a real bucket.");
}

try {
  await demo();
} catch (error) {
  console.error(`\nThe demo failed: ${error.message}`);
  process.exit(1);
}
