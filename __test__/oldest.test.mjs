// The oldest OpenClaw that package.json declares compatible: the plugin installs there, registers all that it has, backs up by
// itself, answers in chat and on the command line. What it does at length is tested with the newest one, in plugin.test.mjs.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { mustRun } from "./support/cli.mjs";
import { createState, openclaw, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { configurePlugin, installPlugin, packPlugin } from "./support/plugin.mjs";
import { temporaryDirectory } from "./support/processes.mjs";
import { steps } from "./support/steps.mjs";
import { ensureTools, projectDir } from "./support/tools.mjs";

const root = temporaryDirectory("oldest-test");
const stateDir = path.join(root, "state");
const oldest = true;

test("it works with the oldest OpenClaw that it declares", { timeout: 30 * 60_000 }, async (t) => {
  const { step, keep } = steps(t);
  const model = keep(await startMockModel());
  const plugin = keep(await packPlugin());
  let gateway;
  const snapshots = async () => (await mustRun("list", { stateDir })).snapshots;

  await step("the declared range begins with the release that is tested here", async () => {
    const { compat, install } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8")).openclaw;
    const manifest = path.join(path.dirname(ensureTools("oldest").oldestOpenclaw), "package.json");
    const { version } = JSON.parse(readFileSync(manifest, "utf8"));
    assert.deepEqual([compat.pluginApi, install.minHostVersion], [`>=${version}`, `>=${version}`]);
  });

  await step("it installs", async () => {
    createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
    await installPlugin(stateDir, plugin, { oldest });
    configurePlugin(stateDir, { endpoint: `file://${path.join(root, "repository")}`, applicationKey: "key-of-a-test" });
  });

  await step("the tool and the chat command answer", async () => {
    gateway = keep(await startGateway(stateDir, { oldest }));
    await gateway.turn('CALL b2_rollback {"action":"backup"}');
    const answer = (await gateway.conversation()).findLast((line) => line.startsWith("toolResult: "));
    assert.match(answer, /Snapshot \S+: \d+ files/);
    await gateway.turn("/b2 status");
    assert.match((await gateway.conversation()).at(-1), /Health: good\nLast backup: .* asked for/);
  });

  await step("a compaction waits for a backup, and a stop leaves one", async () => {
    await gateway.turn("SAY apple");
    await gateway.rpc("sessions.compact", { key: "agent:main:main" });
    assert.equal((await snapshots())[0].trigger, "before_compaction");
    await gateway.turn("SAY banana");
    await gateway.stop();
    assert.equal((await snapshots())[0].trigger, "gateway_stop");
  });

  await step("openclaw b2-backup is the command line", async () => {
    const report = JSON.parse(await openclaw(stateDir, ["b2-backup", "list", "--json"], { oldest }));
    assert.deepEqual([report.ok, report.snapshots.length], [true, 3]);
  });
});
