// `npm run gateway-day`: what days in a real gateway cost to store, against restic on the same state directory.
//
//     npm run gateway-day -- --turns 200 --sessions 10 --days 3 --a-day 20
//
// A gateway talks with the mock model for so many turns, in so many sessions by turns, then for some more each day. After each day
// both back up the live state to a local directory of their own; restic is not given what no snapshot of ours holds. Shown
// are the bytes that each has stored. What is said is made of random words, so that nothing repeats but what the gateway repeats
// itself. Uses the addon that is built: bytes are the same with `npm run build:debug`. Needs restic.

import { mkdirSync, readdirSync, statSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";

import { mustRun, writeConfig } from "../__test__/support/cli.mjs";
import { createState, startGateway } from "../__test__/support/gateway.mjs";
import { startMockModel } from "../__test__/support/mock-model.mjs";
import { run, temporaryDirectory } from "../__test__/support/processes.mjs";
import { resticPath, resticVersion } from "./restic.mjs";

const { values: options } = parseArgs({
  options: {
    ...{ turns: { type: "string", default: "200" }, sessions: { type: "string", default: "10" } },
    ...{ days: { type: "string", default: "3" }, "a-day": { type: "string", default: "20" } },
  },
});
const [turns, sessions, days, aDay] = [options.turns, options.sessions, options.days, options["a-day"]].map(Number);

/** What is in no snapshot of ours, as far as such a gateway has it. */
const EXCLUDED = ["b2-backup", "cache", "media", "plugin-skills", "tmp"];
const WORDS = "answer bridge candle desert engine forest garden harbor island jacket kettle ladder meadow needle".split(
  " ",
);

const root = temporaryDirectory("gateway-day");
const [stateDir, repository] = [path.join(root, "state"), path.join(root, "restic")];

/** The same every time (a linear congruential generator; Numerical Recipes). */
let seed = 1;
function random(below) {
  seed = (seed * 1_664_525 + 1_013_904_223) % 2 ** 32;
  return Math.floor((seed / 2 ** 32) * below);
}

const words = (count) => Array.from({ length: count }, () => `${WORDS[random(WORDS.length)]}${random(1000)}`).join(" ");

async function restic(...args) {
  const env = { ...process.env, RESTIC_PASSWORD: "x", RESTIC_REPOSITORY: repository };
  const result = await run(resticPath, ["--no-cache", "--quiet", ...args], { env });
  if (result.code !== 0) throw new Error(`restic ${args[0]}: ${result.stderr}`);
}

/** Bytes of all files below a directory. */
function stored(directory) {
  const files = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  return files.reduce((sum, { parentPath, name }) => sum + statSync(path.join(parentPath, name)).size, 0);
}

mkdirSync(path.join(root, "ours"));
const config = writeConfig(path.join(root, "config.json"), {
  endpoint: `file://${path.join(root, "ours")}`,
  applicationKey: "application-key-of-the-owner",
});
const model = await startMockModel();
createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
// What is missing, restic or the addon, is missed before anything has taken minutes.
await resticVersion();
await restic("init");
await mustRun("list", { config, stateDir });
const gateway = await startGateway(stateDir);
let turn = 0;
async function talk(count) {
  for (const end = turn + count; turn < end; turn++) {
    await gateway.turn(`${words(40)}\nSAY ${words(60)}`, `agent:main:session-${turn % sessions}`);
  }
}
const before = { ours: 0, restic: stored(repository) };
/** Backs up with both; resolves to the bytes that each has stored more than before. */
async function backUp() {
  await mustRun("push", { config, stateDir });
  await restic("backup", ...EXCLUDED.map((name) => `--exclude=${path.join(stateDir, name)}`), stateDir);
  const now = { ours: stored(path.join(root, "ours")), restic: stored(repository) };
  const [ours, theirs] = [now.ours - before.ours, now.restic - before.restic];
  Object.assign(before, now);
  return { ours, theirs };
}

await talk(turns);
const row = (name, { ours, theirs }) =>
  console.log(
    `| ${name} | ${ours.toLocaleString("en-US")} | ${theirs.toLocaleString("en-US")} | ${(ours / theirs).toFixed(3)} |`,
  );
console.log(`Bytes stored, after ${turns} turns in ${sessions} sessions and ${aDay} more each day:\n`);
console.log("| | openclaw-b2-backup | restic | ratio |\n|---|---:|---:|---:|");
row("first backup", await backUp());
const sum = { ours: 0, theirs: 0 };
for (let day = 1; day <= days; day++) {
  await talk(aDay);
  const used = await backUp();
  sum.ours += used.ours;
  sum.theirs += used.theirs;
  row(`day ${day}`, used);
}
row("all days", sum);
await gateway.stop();
await model.stop();
