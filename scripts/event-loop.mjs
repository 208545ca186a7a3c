// `npm run event-loop`: what a push and a prepared rollback of state M add to the delays of a real gateway's event loop.
//
// First scheduled pushes, each of a state that is read anew and partly uploaded, against the seconds between them in which
// the gateway has nothing to do. Then the same work asked for in chat; a chat command by itself makes the gateway stall, so
// one that does nothing (`/b2 nonsense`) is measured beside it, as often.
// A preloaded module writes what it saw into a file: the longest delay of each 100 ms, and of each stretch of the schedule.

import { randomBytes } from "node:crypto";
import { appendFileSync, cpSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";

import { createState, startGateway } from "../__test__/support/gateway.mjs";
import { startMockModel } from "../__test__/support/mock-model.mjs";
import { configurePlugin, installPlugin, packPlugin } from "../__test__/support/plugin.mjs";
import { run, temporaryDirectory } from "../__test__/support/processes.mjs";
import { startSeaweed } from "../__test__/support/seaweed.mjs";
import { ensureTools, projectDir } from "../__test__/support/tools.mjs";

const ROUNDS = 5;
/** A push begins whenever so many seconds of the minute have passed, and is over, with what follows it, after these. */
const EVERY = 30;
const PUSH_SECONDS = 15;
const root = temporaryDirectory("event-loop");
const stateDir = path.join(root, "state");
const delays = path.join(root, "delays");
const stretches = path.join(root, "stretches");
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
     const stretch = monitorEventLoopDelay({ resolution: 1 });
     stretch.enable();
     const phaseOf = (second) => (second % ${EVERY} < ${PUSH_SECONDS} ? "push" : "idle");
     let phase = "start";
     setInterval(() => {
       const now = phaseOf(new Date().getSeconds());
       if (now === phase) return;
       const seen = [phase, stretch.max / 1e6, stretch.percentile(99) / 1e6];
       appendFileSync(${JSON.stringify(stretches)}, seen.join(" ") + "\\n");
       stretch.reset();
       phase = now;
     }, 20).unref();
   }`,
);
appendFileSync(delays, "");
appendFileSync(stretches, "");

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
const settings = { keyId, applicationKey, bucket: "event-loop", endpoint, restoreDrill: false };
configurePlugin(stateDir, { ...settings, schedule: `*/${EVERY} * * * * *` });
const gateway = await startGateway(stateDir, { env: { NODE_OPTIONS: `--require=${preload}` } });
await gateway.turn("SAY hello");
const makeState = path.join(projectDir, "benches/make-state.mjs");
await run(tools.node, [makeState, "make", path.join(root, "made"), "M"]);
// As plain content of the workspace: the gateway's own databases stay its own.
cpSync(path.join(root, "made"), path.join(stateDir, "workspace/m"), { recursive: true });

const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
const untilSecond = (second) => sleep(((second - ((Date.now() / 1000) % EVERY) + EVERY) % EVERY) * 1000);
/** Has every file read again, and new ones uploaded. */
function change() {
  rmSync(path.join(stateDir, "b2-backup/cache.sqlite"), { force: true });
  writeFileSync(path.join(stateDir, "workspace/noise.bin"), randomBytes(30e6));
}
await untilSecond(PUSH_SECONDS + 5);
truncateSync(stretches);
for (let round = 0; round < ROUNDS; round++) {
  change();
  await untilSecond(PUSH_SECONDS + 5);
}
const seen = readFileSync(stretches, "utf8").trim().split("\n");

// From here on nothing is scheduled; the gateway takes the change over by itself.
configurePlugin(stateDir, settings);
await sleep(10_000);
const pause = () => sleep(3000);
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
console.log("Delays of the gateway's event loop, in milliseconds. With scheduled pushes, medians of the stretches:");
for (const [phase, name] of [
  ["push", "while a push runs"],
  ["idle", "while nothing runs"],
]) {
  const of = seen.map((line) => line.split(" ")).filter(([own]) => own === phase);
  const column = (number) => median(of.map((line) => Number(line[number]))).toFixed(1);
  console.log(`  ${name}: longest ${column(1)}, 99th percentile ${column(2)} (${of.length} stretches)`);
}
console.log("Asked for in chat:");
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
