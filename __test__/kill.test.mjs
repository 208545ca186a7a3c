// A gateway that is killed while it applies a rollback, at random moments: the next start has the old state or the new one,
// never a mix. OPENCLAW_B2_KILLS is how often; each takes about half a minute.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { mustRun } from "./support/cli.mjs";
import { createState, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { configurePlugin, installPlugin, packPlugin } from "./support/plugin.mjs";
import { sleep, temporaryDirectory, waitFor } from "./support/processes.mjs";
import { startSeaweed } from "./support/seaweed.mjs";
import { querySqlite } from "./support/sqlite.mjs";
import { steps } from "./support/steps.mjs";

const KILLS = Number(process.env.OPENCLAW_B2_KILLS ?? 3);

test("a kill during a rollback leaves old or new", { timeout: 15 * 60_000 + KILLS * 300_000 }, async (t) => {
  const { keep } = steps(t);
  const seaweed = keep(await startSeaweed());
  await seaweed.createBucket("kill-test");
  const model = keep(await startMockModel());
  const plugin = keep(await packPlugin());
  const stateDir = path.join(temporaryDirectory("kill-test"), "state");
  createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
  await installPlugin(stateDir, plugin);
  const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;
  configurePlugin(stateDir, { keyId, applicationKey, bucket: "kill-test", endpoint });
  let gateway;
  const launch = async () => (gateway = keep(await startGateway(stateDir)));

  /** Two states, told apart in the workspace's first and last file and in the conversation. */
  const files = Array.from({ length: 200 }, (_, index) => `notes/${String(index).padStart(3, "0")}.md`);
  const take = async (side) => {
    await gateway.turn(`SAY side-${side}`);
    const probes = [files[0], files.at(-1)];
    for (const file of probes) await gateway.turn(`CALL write ${JSON.stringify({ path: file, content: side })}`);
    await mustRun("push", { stateDir });
    return (await mustRun("list", { stateDir })).snapshots[0].id;
  };
  await launch();
  const ids = { old: await take("old"), new: await take("new") };
  const sideOf = async () => {
    const read = (file) => readFileSync(path.join(stateDir, "workspace", file), "utf8");
    const contents = new Set([read(files[0]), read(files.at(-1))]);
    assert.equal(contents.size, 1, "a mix of files");
    const [side] = contents;
    const talk = (await gateway.conversation()).join();
    assert.equal(talk.includes("side-new"), side === "new", "the conversation is of the same side as the files");
    const databases = ["state/openclaw.sqlite", "agents/main/agent/openclaw-agent.sqlite"];
    for (const database of databases) {
      const [integrity] = await querySqlite(path.join(stateDir, database), ["pragma integrity_check"]);
      assert.deepEqual(integrity, [{ integrity_check: "ok" }], database);
    }
    return side;
  };

  for (let kill = 1; kill <= KILLS; kill++) {
    const from = await sideOf();
    const to = from === "new" ? "old" : "new";
    const wait = 1400 + Math.random() * 2600;
    await gateway.turn(`/b2 restore ${ids[to]}`);
    await sleep(wait);
    // The backup process, too, or only the gateway, whose end then ends it.
    const alone = kill % 2 === 0;
    if (alone) process.kill(gateway.pid, "SIGKILL");
    await gateway.stop(alone ? "SIGTERM" : "SIGKILL");
    await launch();
    const side = await waitFor("one side", sideOf, 1000);
    const said = /B2 backup: .*/.exec(gateway.output())?.[0] ?? "nothing to recover";
    t.diagnostic(
      `kill ${kill} after ${Math.round(wait)} ms${alone ? ", gateway alone" : ""}: ${from} -> ${side}; ${said}`,
    );
    assert.ok(side === from || side === to);
    assert.equal(await gateway.turn("SAY still here"), "still here");
  }
  await gateway.stop();
});
