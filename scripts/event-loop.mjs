// `npm run event-loop`: what a push and a prepared rollback of state M add to the longest delay of a real gateway's event loop.
//
// A preloaded module writes the longest delay of each 100 ms into a file. The gateway itself stalls now and then, so the same
// chat command without its work (`/b2 nonsense`) is measured beside it, as often.

import { appendFileSync, cpSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";

import { createState, startGateway } from "../__test__/support/gateway.mjs";
import { startMockModel } from "../__test__/support/mock-model.mjs";
import { configurePlugin, installPlugin, packPlugin } from "../__test__/support/plugin.mjs";
import { run, temporaryDirectory } from "../__test__/support/processes.mjs";
import { startSeaweed } from "../__test__/support/seaweed.mjs";
import { ensureTools, projectDir } from "../__test__/support/tools.mjs";

const ROUNDS = 5;
const root = temporaryDirectory("event-loop");
const stateDir = path.join(root, "state");
const delays = path.join(root, "delays");
const preload = path.join(root, "preload.cjs");
writeFileSync(
  preload,
  `const { monitorEventLoopDelay } = require("node:perf_hooks");
   const { appendFileSync } = require("node:fs");
   if (process.argv.includes("gateway")) {
     const histogram = monitorEventLoopDelay({ resolution: 1 });
     histogram.enable();
     setInterval(() => {
       appendFileSync(${JSON.stringify(delays)}, Date.now() + " " + histogram.max / 1e6 + "\\n");
       histogram.reset();
     }, 100).unref();
   }`,
);
appendFileSync(delays, "");

/** The longest delay, in milliseconds, between two moments. */
function longest(from, to) {
  const lines = readFileSync(delays, "utf8").trim().split("\n");
  const inside = lines.map((line) => line.split(" ").map(Number)).filter(([at]) => at > from && at <= to + 150);
  return Math.max(...inside.map(([, delay]) => delay));
}

ensureTools("openclaw");
const tools = ensureTools("python");
const [seaweed, model, plugin] = [await startSeaweed(), await startMockModel(), await packPlugin()];
await seaweed.createBucket("event-loop");
createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
await installPlugin(stateDir, plugin);
const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;
configurePlugin(stateDir, { keyId, applicationKey, bucket: "event-loop", endpoint });
const gateway = await startGateway(stateDir, { env: { NODE_OPTIONS: `--require=${preload}` } });
await gateway.turn("SAY hello");
const makeState = path.join(projectDir, "benches/make-state.mjs");
await run(tools.node, [makeState, "make", path.join(root, "made"), "M"]);
// As plain content of the workspace: the gateway's own databases stay its own.
cpSync(path.join(root, "made"), path.join(stateDir, "workspace/m"), { recursive: true });

const pause = () => new Promise((resolve) => setTimeout(resolve, 3000));
async function measure(command) {
  await pause();
  const from = Date.now();
  await gateway.turn(command);
  const to = Date.now();
  const text = (await gateway.conversation()).at(-1);
  await pause();
  return { delay: longest(from, to), seconds: (to - from) / 1000, text };
}
const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
const results = { "nothing (/b2 nonsense)": [], "a push (/b2 backup)": [], "a plan of all of it (/b2 plan)": [] };
for (let round = 0; round < ROUNDS; round++) {
  results["nothing (/b2 nonsense)"].push(await measure("/b2 nonsense"));
  if (round > 0) rmSync(path.join(stateDir, "b2-backup/cache.sqlite"), { force: true });
  writeFileSync(path.join(stateDir, "workspace/round.md"), `round ${round}\n`);
  results["a push (/b2 backup)"].push(await measure("/b2 backup"));
  rmSync(path.join(stateDir, "b2-backup/cache.sqlite"), { force: true });
  results["a plan of all of it (/b2 plan)"].push(await measure("/b2 plan latest"));
}
console.log("Longest delay of the gateway's event loop, in milliseconds:");
for (const [name, runs] of Object.entries(results)) {
  const delays = runs.map(({ delay }) => delay);
  const longestRun = Math.max(...runs.map(({ seconds }) => seconds));
  console.log(
    `  ${name}: median ${median(delays).toFixed(1)}, longest ${Math.max(...delays).toFixed(1)} ` +
      `(${runs.length} runs of up to ${longestRun.toFixed(1)} s; ${JSON.stringify(runs.at(-1).text.slice(0, 60))})`,
  );
}
await gateway.stop();
for (const part of [plugin, model, seaweed]) await part.stop();
