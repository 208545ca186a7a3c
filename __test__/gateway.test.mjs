// The main job, end to end: a real OpenClaw gateway is backed up while it runs and talks, its snapshots become working
// instances elsewhere, and a rollback in place brings the older conversation back without taking the machine's credentials.
//
// Everything is done through the command line and the gateway's own interfaces; nothing looks into the repository.
// The steps build on one another: after the first that fails the rest is skipped.

import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { mustFail, mustRun, writeConfig } from "./support/cli.mjs";
import { createState, IN_YEARS, openclaw, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { temporaryDirectory } from "./support/processes.mjs";
import { startSeaweed } from "./support/seaweed.mjs";
import { isSqlite, querySqlite } from "./support/sqlite.mjs";
import { steps } from "./support/steps.mjs";
import { filesOf, readTree, treeChanges } from "./support/tree.mjs";

// Credentials that must never be found in a snapshot. The model's key is also in openclaw.json, which is in scope.
const MODEL_KEY = "sk-mock-canary-0f3b6c1d9a";
const PROFILE_KEY = "sk-profile-canary-71c2aa90e4d85b36f1";
const FILE_SECRET = "credentials-file-canary-5e21";

const root = temporaryDirectory("gateway");
const stateDir = path.join(root, "state");
const inState = (...names) => path.join(stateDir, ...names);

function write(file, text, mode = 0o644) {
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
  chmodSync(file, mode);
}

const sharedDatabase = (directory) => path.join(directory, "state/openclaw.sqlite");
const PROFILE_ROWS = "select * from config_machine_state where state_key like 'authProfiles.%'";

test("a running gateway is backed up, restored elsewhere and rolled back", { timeout: 40 * 60_000 }, async (t) => {
  const { step, keep } = steps(t);
  const launch = async (directory) => keep(await startGateway(directory));

  const seaweed = keep(await startSeaweed());
  await seaweed.createBucket("gateway-test");
  const model = keep(await startMockModel());
  const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;
  const config = writeConfig(path.join(root, "b2-backup.json"), {
    ...{ keyId, applicationKey, bucket: "gateway-test", endpoint, prefix: "machine-a" },
  });
  const command = { config, stateDir };

  let gateway;
  let first; // { id, conversation, workspace } of each snapshot, as the instance was when it was taken
  let second;

  await step("a fresh instance with a credential talks and writes files", async () => {
    createState(stateDir, { modelUrl: model.baseUrl, apiKey: MODEL_KEY });
    const profile = ["--provider", "openai", "--profile-id", "openai:canary"];
    await openclaw(stateDir, ["models", "auth", "paste-api-key", ...profile], { input: PROFILE_KEY });
    write(inState("credentials/telegram.json"), JSON.stringify({ token: FILE_SECRET }), 0o600);
    write(inState(".env"), `TELEGRAM_TOKEN=${FILE_SECRET}\n`, 0o600);
    write(inState("hooks/greet/handler.sh"), "#!/bin/sh\necho hello\n", 0o755);
    write(inState("workspace/SOUL.md"), "# Soul\n\nCalm and curious.\n");
    write(inState("workspace/MEMORY.md"), "# Memory\n\nThe owner likes apples.\n", 0o600);
    write(inState("workspace/skills/weather/run.sh"), "#!/bin/sh\necho sunny\n", 0o755);
    write(inState("workspace/notes/größe #1? 100%.md"), "A name that needs care.\n");
    write(inState("workspace/notes/large.bin"), Buffer.alloc(3_000_000, "0123456789abcdef-"));
    mkdirSync(inState("workspace/empty"));
    symlinkSync("MEMORY.md", inState("workspace/latest.md"));

    gateway = await launch(stateDir);
    assert.equal(await gateway.turn("SAY apple"), "apple");
    await gateway.turn('CALL write {"path":"made-by-agent.md","content":"written by the agent"}');
    assert.ok(model.apiKeys.has(MODEL_KEY), "the gateway has used the canary, so it knows it");
    const payload = { kind: "systemEvent", text: "good morning" };
    const job = { name: "greeting", schedule: IN_YEARS, sessionTarget: "main", wakeMode: "now", payload };
    await gateway.rpc("cron.add", job);
    const [rows] = await querySqlite(sharedDatabase(stateDir), [PROFILE_ROWS]);
    assert.ok(JSON.stringify(rows).includes(PROFILE_KEY), "the credential lies in the shared database");
  });

  const takeSnapshot = async () => {
    const conversation = await gateway.conversation();
    const workspace = readTree(inState("workspace"));
    const report = await mustRun("push", command);
    assert.equal(typeof report.snapshot, "string");
    assert.deepEqual(report.exceptions, []);
    return { id: report.snapshot, conversation, workspace, report };
  };

  await step("push works while the gateway runs, and the gateway goes on", async () => {
    const [snapshot, { sessions }] = await Promise.all([takeSnapshot(), gateway.rpc("sessions.list")]);
    first = snapshot;
    assert.ok(sessions.length > 0);
    assert.equal(first.report.trigger, "manual");
    assert.ok(first.report.files >= filesOf(first.workspace).length);
    assert.ok(first.report.uploadedBytes > 0);
    assert.equal(await gateway.turn("SAY banana"), "banana");
  });

  await step("a second push after more turns and edits holds what is new", async () => {
    await gateway.turn("SAY cherry");
    write(inState("workspace/SOUL.md"), "# Soul\n\nRestless.\n");
    write(inState("workspace/notes/new.md"), "Made after the first snapshot.\n");
    chmodSync(inState("workspace/skills/weather/run.sh"), 0o644);
    rmSync(inState("workspace/made-by-agent.md"));
    second = await takeSnapshot();
    assert.ok(second.report.changedFiles >= 3);
    assert.ok(
      second.report.uploadedBytes < first.report.uploadedBytes,
      `an increment, not a copy: ${second.report.uploadedBytes} after ${first.report.uploadedBytes} bytes`,
    );
  });

  await step("a push with nothing done in between is small or no snapshot at all", async (subtest) => {
    const { snapshot, unchanged, uploadedBytes, changedFiles } = await mustRun("push", command);
    subtest.diagnostic(JSON.stringify({ snapshot, unchanged, uploadedBytes, changedFiles }));
    if (snapshot === null) assert.equal(unchanged, true);
    else assert.ok(uploadedBytes < 1_000_000, `${uploadedBytes} bytes for nothing`); // The gateway's own bookkeeping.
  });

  await step("list shows the snapshots, newest first", async () => {
    const { snapshots } = await mustRun("list", command);
    const ids = snapshots.map((snapshot) => snapshot.id);
    assert.deepEqual(ids.slice(-2), [second.id, first.id]);
    const times = snapshots.map((snapshot) => Date.parse(snapshot.createdAt));
    assert.deepEqual(
      times,
      [...times].sort((a, b) => b - a),
    );
    for (const snapshot of snapshots) {
      assert.equal(snapshot.kind, "regular");
      assert.equal(snapshot.complete, true);
    }
  });

  /** Pulls a snapshot and holds it against what the instance was; resolves to the directory. */
  const pullAndCheck = async (snapshot, name) => {
    const target = path.join(root, name);
    const report = await mustRun("pull", { ...command, args: ["--snapshot", snapshot.id, "--target", target] });
    assert.equal(report.snapshot, snapshot.id);
    assert.deepEqual(readTree(path.join(target, "workspace")), snapshot.workspace);
    const tree = readTree(target);
    assert.ok(tree["hooks/greet/handler.sh"].startsWith("file 755 "));
    for (const secret of ["credentials", ".env", "identity", "devices"]) assert.ok(!(secret in tree), secret);
    assert.deepEqual(
      filesOf(tree).filter((file) => /-(wal|shm|journal)$/.test(file)),
      [],
      "no half of a database",
    );

    const databases = [];
    for (const file of filesOf(tree)) {
      const bytes = readFileSync(path.join(target, file));
      if (isSqlite(bytes)) databases.push(file);
      if (/^openclaw\.json/.test(file)) continue;
      for (const canary of [MODEL_KEY, PROFILE_KEY, FILE_SECRET]) {
        assert.ok(!bytes.includes(canary), `${file} of the snapshot holds a credential`);
      }
    }
    assert.ok(databases.includes("state/openclaw.sqlite"), databases.join());
    assert.ok(databases.includes("agents/main/agent/openclaw-agent.sqlite"), databases.join());
    for (const file of databases) {
      const checks = ["pragma integrity_check", "pragma foreign_key_check"];
      const [integrity, orphans] = await querySqlite(path.join(target, file), checks);
      assert.deepEqual(integrity, [{ integrity_check: "ok" }], file);
      assert.deepEqual(orphans, [], file);
    }
    const queries = [PROFILE_ROWS, "select * from secret_store_entries", "select * from state_leases"];
    assert.deepEqual(await querySqlite(sharedDatabase(target), queries), [[], [], []]);
    return target;
  };

  /** Starts a gateway on a pulled snapshot: the conversation is that of its time, and goes on. */
  const converse = async (directory, snapshot) => {
    const other = await launch(directory);
    assert.deepEqual(await other.conversation(), snapshot.conversation);
    assert.equal(await other.turn("SAY elderberry"), "elderberry");
    const { jobs } = await other.rpc("cron.list", { includeDisabled: true });
    await other.stop();
    return jobs.map((job) => job.name);
  };

  const pulled = {};
  await step("the first snapshot can be pulled, complete and without credentials", async () => {
    pulled.first = await pullAndCheck(first, "pulled-first");
  });
  await step("the second snapshot can be pulled, complete and without credentials", async () => {
    pulled.second = await pullAndCheck(second, "pulled-second");
  });
  await step(
    "a new gateway on the first snapshot has the first conversation and not the later turns",
    async (subtest) => {
      const jobs = await converse(pulled.first, first);
      assert.ok(!first.conversation.join().includes("banana"));
      // OpenClaw keeps the absolute path of the state directory with each job; elsewhere they show only if it is rewritten.
      subtest.diagnostic(`cron jobs on the pulled snapshot: ${jobs.join(", ")}`);
    },
  );
  await step("a new gateway on the second snapshot has the later turns too", async () => {
    await converse(pulled.second, second);
    assert.ok(second.conversation.join().includes("cherry"));
  });

  await step("a rollback under the running gateway is refused and changes nothing", async () => {
    const before = readTree(inState("workspace"));
    await mustFail("rollback", { ...command, args: ["--snapshot", first.id, "--yes"] }, "LOCKED");
    assert.deepEqual(readTree(inState("workspace")), before);
    assert.deepEqual(await gateway.conversation(), second.conversation);
    const { snapshots } = await mustRun("list", command);
    assert.ok(
      snapshots.every((snapshot) => snapshot.kind === "regular"),
      "no safety snapshot of a refused rollback",
    );
  });

  await step("after a stop, the plan says what a rollback would do and does nothing", async () => {
    await gateway.stop();
    // The shared-memory file beside a log is SQLite's scratch paper: whoever reads the database writes on it.
    const isScratch = (entry) => entry === "b2-backup" || entry.endsWith("-shm");
    const before = readTree(stateDir, isScratch);
    const plan = await mustRun("rollback", { ...command, args: ["--snapshot", first.id, "--plan"] });
    assert.equal(plan.snapshot, first.id);
    assert.ok(plan.restored.includes("workspace/SOUL.md"), JSON.stringify(plan));
    assert.ok(plan.restored.includes("workspace/made-by-agent.md"), JSON.stringify(plan));
    assert.ok(plan.deleted.includes("workspace/notes/new.md"), JSON.stringify(plan));
    assert.deepEqual(treeChanges(before, readTree(stateDir, isScratch)), []);
  });

  await step("the rollback restores files and conversation in place and keeps the machine's credentials", async () => {
    const report = await mustRun("rollback", { ...command, args: ["--snapshot", first.id, "--yes"] });
    assert.equal(report.snapshot, first.id);
    assert.equal(typeof report.safetySnapshot, "string");
    assert.deepEqual(readTree(inState("workspace")), first.workspace);
    assert.equal(JSON.parse(readFileSync(inState("credentials/telegram.json"))).token, FILE_SECRET);
    assert.ok(readFileSync(inState(".env"), "utf8").includes(FILE_SECRET));
    const [integrity, profiles] = await querySqlite(sharedDatabase(stateDir), ["pragma integrity_check", PROFILE_ROWS]);
    assert.deepEqual(integrity, [{ integrity_check: "ok" }]);
    assert.ok(JSON.stringify(profiles).includes(PROFILE_KEY), "the auth profile is still this machine's");
    const { snapshots } = await mustRun("list", command);
    const safety = snapshots.find((snapshot) => snapshot.kind === "safety");
    assert.equal(safety?.id, report.safetySnapshot);
    assert.equal(safety.trigger, "before_rollback");
  });

  await step("the gateway starts on what was rolled back, with the older conversation, and works", async () => {
    gateway = await launch(stateDir);
    assert.deepEqual(await gateway.conversation(), first.conversation);
    assert.equal(await gateway.turn("SAY damson"), "damson");
    const { jobs } = await gateway.rpc("cron.list", { includeDisabled: true });
    assert.ok(
      jobs.some((job) => job.name === "greeting"),
      "the cron job is back in place",
    );
    assert.ok(existsSync(inState("agents/main/agent/openclaw-agent.sqlite")));
  });

  await step("the rollback can be taken back through its safety snapshot", async () => {
    await gateway.stop();
    const { snapshots } = await mustRun("list", command);
    const safety = snapshots.find((snapshot) => snapshot.kind === "safety");
    await mustRun("rollback", { ...command, args: ["--snapshot", safety.id, "--yes"] });
    assert.deepEqual(readTree(inState("workspace")), second.workspace);
    gateway = await launch(stateDir);
    assert.deepEqual(await gateway.conversation(), second.conversation);
  });
});
