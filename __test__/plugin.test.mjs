// The plugin in a real OpenClaw gateway, as its users get it: installed from a packed tarball, three fields set, gateway
// started. It backs up by itself, answers in chat, rolls back with the owner's approval, and brings a new machine back.
//
// The steps build on one another: after the first that fails the rest is skipped.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { mustRun } from "./support/cli.mjs";
import { createState, openclaw, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { PLUGIN, configurePlugin, installPlugin, packPlugin } from "./support/plugin.mjs";
import { temporaryDirectory, waitFor } from "./support/processes.mjs";
import { startSeaweed } from "./support/seaweed.mjs";
import { steps } from "./support/steps.mjs";
import { readTree } from "./support/tree.mjs";

const root = temporaryDirectory("plugin-test");
const stateDir = path.join(root, "state");
const inState = (...names) => path.join(stateDir, ...names);

test("the plugin backs up and rolls back in a gateway", { timeout: 60 * 60_000 }, async (t) => {
  const { step, keep } = steps(t);
  const seaweed = keep(await startSeaweed());
  await seaweed.createBucket("plugin-test");
  const model = keep(await startMockModel());
  const plugin = keep(await packPlugin());
  const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;
  const settings = { keyId, applicationKey, bucket: "plugin-test", endpoint };

  /** What the owner answers when a plugin asks, and what they were asked. */
  const owner = { decision: "deny", asked: [] };
  const decide = (request) => (owner.asked.push(request), owner.decision);
  let gateway;
  const launch = async (directory, options) => {
    gateway = keep(await startGateway(directory, options));
    return gateway;
  };
  const logged = (pattern) =>
    gateway
      .output()
      .split("\n")
      .filter((line) => pattern.test(line));
  const snapshots = async () => (await mustRun("list", { stateDir })).snapshots;
  /** What a tool answered the agent. */
  const ask = async (request) => {
    await gateway.turn(`CALL b2_rollback ${JSON.stringify(request)}`);
    const answer = (await gateway.conversation()).findLast((line) => line.startsWith("toolResult: "));
    return answer.slice("toolResult: ".length);
  };
  /** What a chat command answered. */
  const type = async (command) => {
    await gateway.turn(command);
    return (await gateway.conversation()).at(-1).replace(/^assistant: /, "");
  };
  const write = (file, content) => gateway.turn(`CALL write ${JSON.stringify({ path: file, content })}`);
  const restarted = async (times) => {
    const count = () => logged(/\[gateway\] ready/).length;
    await waitFor("the gateway to restart", () => count() > times);
    await gateway.reconnect();
  };

  await step("it installs from a tarball, with the package of this platform and nothing of the others", async () => {
    createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
    await installPlugin(stateDir, plugin);
    const installed = readdirSync(inState("npm/projects", PLUGIN, "node_modules"));
    assert.equal(installed.filter((name) => name.startsWith(`${PLUGIN}-`)).length, 1, installed.join());
    configurePlugin(stateDir, settings);
    await launch(stateDir, { decide });
    assert.deepEqual(logged(/B2 backup/), []);
  });

  await step("the model sees the tool, and it answers briefly", async () => {
    await gateway.turn("SAY apple");
    const offered = model.requests.at(-1).tools.map((tool) => tool.function.name);
    assert.ok(offered.includes("b2_rollback"), offered.join());
    assert.match(await ask({ action: "list" }), /^There is no snapshot yet\.$/);
    await write("note.md", "one");
    assert.match(await ask({ action: "backup" }), /^Snapshot \S+: \d+ files, [\d.]+ .?B; \d+ changed/);
    assert.match(await ask({ action: "list-snapshots" }), /^1 snapshot, newest first:\n\S+ .* asked for, /);
    const status = await ask({ action: "status" });
    assert.match(status, /^Health: good\nLast backup: .* asked for\nNext backup: \S+ 00:00\nSnapshots: 1, newest /);
    assert.ok(!status.includes(applicationKey) || applicationKey.length < 4);
  });

  await step("/b2 answers the owner without a model", async () => {
    const before = model.requests.length;
    assert.match(await type("/b2 status"), /^Health: good\n/);
    assert.match(await type("/b2 list"), /^1 snapshot/);
    assert.match(await type("/b2 nonsense"), /^\/b2 status, /);
    assert.equal(model.requests.length, before);
  });

  await step("openclaw b2-backup is the command line, on this gateway's configuration", async () => {
    const report = JSON.parse(await openclaw(stateDir, ["b2-backup", "list", "--json"]));
    assert.deepEqual([report.ok, report.snapshots.length], [true, 1]);
    assert.match(await openclaw(stateDir, ["b2-backup", "--help"]), /^Usage: openclaw b2-backup <verb>/);
  });

  let compacted;
  await step("a compaction waits for a backup", async () => {
    await gateway.turn("SAY banana");
    await gateway.rpc("sessions.compact", { key: "agent:main:main" });
    [compacted] = await snapshots();
    assert.equal(compacted.trigger, "before_compaction");
    await gateway.rpc("sessions.compact", { key: "agent:main:main" });
    assert.equal((await snapshots())[0].id, compacted.id, "not again within five minutes");
  });

  await step("a stop leaves a backup, and the next start goes on", async () => {
    await write("note.md", "two");
    await gateway.stop();
    const [latest] = await snapshots();
    assert.equal(latest.trigger, "gateway_stop");
    await launch(stateDir, { decide });
    assert.match(await type("/b2 status"), /Last backup: .* at a gateway stop\n/);
  });

  let before;
  await step("a rollback that the owner denies changes nothing", async () => {
    before = await gateway.conversation();
    const plan = await ask({ action: "plan", snapshot: "before-compaction" });
    assert.match(plan, new RegExp(`^A rollback to ${compacted.id}: \\d+ paths? restored`));
    assert.match(plan, /workspace\/note\.md/);
    const answer = await ask({ action: "restore", snapshot: "before-compaction" });
    assert.match(answer, /Denied by user/);
    assert.equal(owner.asked.length, 1);
    const { title, description, allowedDecisions } = owner.asked[0];
    assert.equal(title, `Roll back to ${compacted.id}`);
    assert.match(description, /\d+ paths? restored \([\d.]+ .?B\), \d+ deleted, \d+ unchanged/);
    assert.match(description, /restore workspace\/note\.md/);
    assert.deepEqual(allowedDecisions, ["allow-once", "deny"]);
    assert.equal(readFileSync(inState("workspace/note.md"), "utf8"), "two");
    assert.ok((await snapshots()).every((snapshot) => snapshot.kind === "regular"));
  });

  let undo;
  await step("an approved one is applied across a restart, and the session is told", async () => {
    owner.decision = "allow-once";
    const starts = logged(/\[gateway\] ready/).length;
    const answer = await ask({ action: "restore", snapshot: "before-compaction" });
    assert.match(answer, /is prepared and verified/);
    await restarted(starts);
    const conversation = await gateway.conversation();
    assert.ok(conversation.join().includes("SAY banana"));
    assert.ok(!conversation.join().includes('"action":"plan"'), conversation.join("\n"));
    assert.equal(readFileSync(inState("workspace/note.md"), "utf8"), "one");
    const told = await waitFor("the session to be told", () => {
      const texts = model.requests.map((request) => JSON.stringify(request.messages));
      return texts.map((text) => /rolled back to (\S+): .*?\/b2 restore (safety-[\w-]+)/.exec(text)).find(Boolean);
    });
    assert.equal(told[1], compacted.id);
    [, , undo] = told;
    assert.equal(await gateway.turn("SAY cherry"), "cherry");
  });

  await step("the owner takes it back with /b2", async () => {
    const starts = logged(/\[gateway\] ready/).length;
    assert.match(await type(`/b2 restore ${undo}`), /is prepared and verified/);
    await restarted(starts);
    const conversation = await gateway.conversation();
    assert.ok(conversation.join("\n").includes(before.join("\n")), conversation.join("\n"));
    assert.equal(readFileSync(inState("workspace/note.md"), "utf8"), "two");
    await gateway.stop();
  });

  await step("where nobody can approve, a hostile message changes nothing", async () => {
    await launch(stateDir);
    const answer = await ask({ action: "restore", snapshot: "latest" });
    assert.match(answer, /Plugin approval unavailable/);
    const safeties = (list) => list.filter((snapshot) => snapshot.kind === "safety").length;
    const had = safeties(await snapshots());
    await gateway.turn("SAY and then");
    assert.equal(safeties(await snapshots()), had);
    const last = JSON.stringify(model.requests.at(-1).messages);
    assert.match(last, /The owner can do it with \/b2 restore /);
    await gateway.stop();
  });

  await step("a missed backup is made up for after the start", async () => {
    const file = inState("b2-backup/status.json");
    const facts = JSON.parse(readFileSync(file, "utf8"));
    facts.lastSuccess.at -= 3 * 24 * 3_600_000;
    writeFileSync(file, JSON.stringify(facts));
    await launch(stateDir);
    await gateway.turn("SAY damson");
    const [latest] = await waitFor("the backup", async () => {
      const list = await snapshots();
      return list[0].trigger === "catch_up" && list;
    });
    assert.equal(latest.kind, "regular");
    await gateway.stop();
  });

  await step("a new machine restores itself before it is ready", async () => {
    const other = path.join(root, "other");
    createState(other, { modelUrl: model.baseUrl, apiKey: "sk-x" });
    await installPlugin(other, plugin);
    configurePlugin(other, settings);
    await launch(other);
    assert.equal(logged(/was restored from/).length, 1, gateway.output());
    assert.match(gateway.output(), /was restored from[^]*\[gateway\] ready/);
    await restarted(1);
    assert.ok((await gateway.conversation()).join().includes("SAY damson"));
    assert.deepEqual(readTree(path.join(other, "workspace")), readTree(inState("workspace")));
    assert.equal(await gateway.turn("SAY elderberry"), "elderberry");
    assert.match(await type("/b2 status"), /^Health: good\n/);
    await gateway.stop();
  });

  await step("one that was set up, and is configured while its gateway runs, does so at the next start", async () => {
    const third = path.join(root, "third");
    const workspace = path.join(third, "workspace");
    const defaults = { model: { primary: "mock/mock-1" }, heartbeat: { every: "1m" } };
    createState(third, { modelUrl: model.baseUrl, apiKey: "sk-x", more: { agents: { defaults } } });
    const setup = ["--non-interactive", "--accept-risk", "--auth-choice", "skip", "--workspace", workspace];
    await openclaw(third, ["onboard", ...setup, ...["health", "channels", "skills"].map((name) => `--skip-${name}`)]);
    assert.ok(existsSync(path.join(workspace, "BOOTSTRAP.md")));
    await installPlugin(third, plugin);
    await launch(third);
    // The first heartbeat makes the agent's database.
    await waitFor("the agent's database", () =>
      existsSync(path.join(third, "agents/main/agent/openclaw-agent.sqlite")),
    );
    configurePlugin(third, settings);
    // By then the newest snapshot of all is one of a machine that has nothing.
    const latest = async () => (await mustRun("list", { stateDir: third })).snapshots[0].id;
    const before = await latest();
    await waitFor("its first backup", async () => (await latest()) !== before, 1000);
    await gateway.stop();
    await launch(third);
    assert.equal(logged(/was restored from/).length, 1, gateway.output());
    await restarted(1);
    assert.ok((await gateway.conversation()).join().includes("SAY damson"));
    const restored = readTree(inState("workspace"));
    const found = Object.entries(readTree(workspace)).filter(([name]) => name in restored);
    assert.deepEqual(Object.fromEntries(found), restored);
    assert.ok(!existsSync(path.join(workspace, "BOOTSTRAP.md")));
    await gateway.stop();
  });

  await step("a wrong field is one line in the log, and the gateway serves", async () => {
    configurePlugin(stateDir, { ...settings, keepSnapshots: 0 });
    await launch(stateDir);
    const lines = logged(/B2 backup/);
    assert.equal(lines.length, 1, lines.join("\n"));
    assert.match(lines[0], /B2 backup is off: keepSnapshots: 0 would remove/);
    assert.match(await type("/b2 status"), /keepSnapshots: 0 would remove/);
    assert.match(await ask({ action: "backup" }), /keepSnapshots: 0 would remove/);
    assert.equal(await gateway.turn("SAY fig"), "fig");
    await gateway.stop();
  });

  await step("an unknown field, or a value of the wrong type, is refused by OpenClaw itself", async () => {
    configurePlugin(stateDir, { ...settings, keepSnapshots: "10" });
    await assert.rejects(startGateway(stateDir), /it ended[^]*openclaw doctor/);
    await assert.rejects(openclaw(stateDir, ["config", "validate"]), /config\.keepSnapshots: .*must be number/);
  });

  await step("a reload with another configuration takes it, without a restart", async () => {
    configurePlugin(stateDir, settings);
    await launch(stateDir);
    configurePlugin(stateDir, { ...settings, prefix: "elsewhere" });
    await waitFor("the reload", async () => /elsewhere/.test(await type("/b2 status")), 1000);
    configurePlugin(stateDir, { ...settings, keepSnapshots: 0 });
    await waitFor("the line", () => logged(/B2 backup is off: keepSnapshots: 0 would remove/).length === 1);
    configurePlugin(stateDir, { ...settings, bucketName: "x" });
    await waitFor("the line", () => logged(/config reload skipped \(invalid config\).*"bucketName"/).length === 1);
    assert.match(await type("/b2 status"), /keepSnapshots: 0 would remove/);
    assert.equal(logged(/\[gateway\] ready/).length, 1);
    await gateway.stop();
  });
});
