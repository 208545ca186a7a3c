// `npm run bench`: this product against restic, and `rclone copy` beside them where it is installed, on the same state, the
// same S3 server, in the same run.
//
//   npm run bench -- --size M --runs 5          S, M, L: 5 MB, 300 MB, 2 GB; F: one file of 5 GB (benches/make-state.mjs)
//     --times 4                                 a state that holds four times as much; a day of use changes no more
//     --only ours|restic|rclone                 one of them, without ratios
//     --floor                                   what the first push cannot do without, each alone (benches/floor.rs)
//     --build none                              use the addon that is there instead of `npm run build`
//     --latency-ms 30 --upload-rate 2000000     a slower network, the rate in bytes per second
//     --json <file>                             every single measurement as well
//
// Each run has a fresh server, fresh buckets and a fresh copy of the state; they take turns at every step, and who begins
// changes from run to run. Shown are medians. Requests and bytes are counted by a proxy. It would take its share of the cores, so
// that they are counted in a run of their own, which is not timed; a slower network is made by the proxy, in all runs. The
// server's own work is part of every figure, but for the 0.2 s that it takes to make files for a bucket's first object: each has
// had one. restic's `init` is not counted, this product's is. A full restore is one on a new machine: without a cache. One file is
// restored beside the state, on the machine that made the snapshot. Both are checked against the source afterwards. Nothing is
// deleted before the end, so that the disk needs room for all runs, the counting one too: for minutes after many files were
// deleted, ext4 takes up to twice as long to create as many.
// rclone neither encrypts nor keeps more than the last state: it is there to show what plain copying costs.

import assert from "node:assert/strict";
import { cpSync, mkdtempSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

import { startProxy } from "../__test__/support/b2-proxy.mjs";
import { cliPath, writeConfig } from "../__test__/support/cli.mjs";
import { run, temporaryDirectory } from "../__test__/support/processes.mjs";
import { s3Request } from "../__test__/support/s3.mjs";
import { startSeaweed } from "../__test__/support/seaweed.mjs";
import { ToolError, ensureTools, projectDir } from "../__test__/support/tools.mjs";
import { readTree } from "../__test__/support/tree.mjs";
import { resticPath, resticVersion } from "./restic.mjs";

const makeState = path.join(projectDir, "benches/make-state.mjs");
/** What is stored in a bucket, and deleted, before anything is measured. */
const FIRST = Buffer.from("first");
const STEPS = ["first push", "nothing changed", "a day of use", "full restore", "one file"];
/** What is in no snapshot of ours, so that restic need not carry it either. */
const EXCLUDED = ["b2-backup", "credentials", "media", "*.tmp", "auth-profiles.json"];
/** Wall clock in seconds and peak memory in bytes of one command; Python's standard library measures it without a package. */
const MEASURE = `
import json, resource, subprocess, sys, time
started = time.monotonic()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({"code": code, "wall": time.monotonic() - started, "cpu": usage.ru_utime + usage.ru_stime,
    "memory": usage.ru_maxrss * unit}))
`;

const { values: options } = parseArgs({
  options: {
    ...{ size: { type: "string", default: "M" }, runs: { type: "string", default: "5" }, only: { type: "string" } },
    ...{ build: { type: "string", default: "release" }, json: { type: "string" } },
    ...{ floor: { type: "boolean", default: false }, times: { type: "string", default: "1" } },
    ...{ "latency-ms": { type: "string", default: "0" }, "upload-rate": { type: "string", default: "0" } },
  },
});

/** What the proxy makes of the network. */
const network = { latencyMs: Number(options["latency-ms"]), uploadRate: Number(options["upload-rate"]) };

/** The product, driven through its command line. `place` is `{ stateDir, endpoint, keyId, applicationKey, scratch }`. */
const ours = {
  name: "openclaw-b2-backup",
  bucket: "bench-ours",
  async prepare(place) {
    const { endpoint, keyId, applicationKey, scratch } = place;
    const { bucket } = this;
    return { config: writeConfig(path.join(scratch, "config.json"), { endpoint, keyId, applicationKey, bucket }) };
  },
  push: ({ config }, { stateDir }) => ["push", "--json", "--config", config, "--state-dir", stateDir],
  restore({ config }, { scratch, stateDir }, target, file) {
    const machine = file === undefined ? mkdtempSync(path.join(scratch, "new-machine-")) : stateDir;
    const common = ["--json", "--config", config, "--state-dir", machine];
    const paths = file === undefined ? [] : ["--path", file];
    return ["pull", ...common, "--snapshot", "latest", "--target", target, ...paths];
  },
  command: (args) => [process.execPath, cliPath, ...args],
  env: () => ({}),
  restoredState: (target) => target,
};

const restic = {
  name: "restic",
  bucket: "bench-restic",
  async prepare(place) {
    const env = { ...process.env, ...this.env(place) };
    const created = await run(resticPath, ["init", "--quiet"], { env });
    if (created.code !== 0) throw new Error(`restic init failed: ${created.stderr}`);
    return {};
  },
  push(_prepared, { stateDir }) {
    return ["backup", "--quiet", ...EXCLUDED.flatMap((glob) => ["--exclude", glob]), stateDir];
  },
  restore(_prepared, { scratch, stateDir }, target, file) {
    const newMachine = () => ["--cache-dir", mkdtempSync(path.join(scratch, "restic-new-machine-"))];
    const which = file === undefined ? newMachine() : ["--include", path.join(stateDir, file)];
    return ["restore", "latest", "--quiet", "--target", target, ...which];
  },
  command: (args) => [resticPath, ...args],
  env: ({ endpoint, keyId, applicationKey, scratch }) => ({
    RESTIC_REPOSITORY: `s3:${endpoint}/${restic.bucket}`,
    RESTIC_PASSWORD: "bench",
    RESTIC_CACHE_DIR: path.join(scratch, "restic-cache"),
    AWS_ACCESS_KEY_ID: keyId,
    AWS_SECRET_ACCESS_KEY: applicationKey,
  }),
  /** restic keeps absolute paths. */
  restoredState: (target, stateDir) => path.join(target, stateDir),
};

const rclone = {
  name: "rclone copy",
  bucket: "bench-rclone",
  prepare: async () => ({}),
  push(_prepared, { stateDir }) {
    // As the others do: a name with a slash at its end is a directory for rclone.
    const excluded = EXCLUDED.flatMap((glob) => ["--exclude", glob, "--exclude", `${glob}/**`]);
    return ["copy", "--links", ...excluded, stateDir, `bench:${rclone.bucket}`];
  },
  restore: (_prepared, _place, target, file) => {
    const from = `bench:${rclone.bucket}${file === undefined ? "" : `/${file}`}`;
    return ["copy", "--links", from, file === undefined ? target : path.join(target, path.dirname(file))];
  },
  command: (args) => [rclonePath, ...args],
  env: ({ endpoint, keyId, applicationKey, scratch }) => ({
    RCLONE_CONFIG: path.join(scratch, "rclone.conf"),
    RCLONE_CONFIG_BENCH_TYPE: "s3",
    RCLONE_CONFIG_BENCH_PROVIDER: "Other",
    RCLONE_CONFIG_BENCH_ENDPOINT: endpoint,
    RCLONE_CONFIG_BENCH_ACCESS_KEY_ID: keyId,
    RCLONE_CONFIG_BENCH_SECRET_ACCESS_KEY: applicationKey,
  }),
  restoredState: (target) => target,
};
const rclonePath = process.env.RCLONE ?? "rclone";
const ALL = { ours, restic, rclone };

/** Without certificates of the machine's own: Node reads them at every start, rclone cannot, and nothing here needs them. */
function quietEnvironment() {
  const { NODE_EXTRA_CA_CERTS: _node, AWS_CA_BUNDLE: _aws, ...environment } = process.env;
  return environment;
}

async function measure(tools, command, env) {
  const result = await run(tools.python, ["-c", MEASURE, ...command], { env, timeoutMs: 60 * 60_000 });
  const measured = result.code === 0 ? JSON.parse(result.stdout) : { code: result.code };
  if (measured.code !== 0) throw new Error(`${command.join(" ")} failed (${measured.code}): ${result.stderr}`);
  return measured;
}

/** Plain files must be back byte for byte; databases are private copies here and torn copies there, so not comparable. */
function checkRestore(contender, target, stateDir, file) {
  if (file !== undefined) {
    const restored = readFileSync(path.join(contender.restoredState(target, stateDir), file));
    return assert.deepEqual(restored, readFileSync(path.join(stateDir, file)), contender.name);
  }
  // It neither keeps modes nor forgets what was deleted.
  if (contender === rclone) return;
  const skip = (name) => /^(b2-backup|credentials|media)(\/|$)|\.tmp$|\.sqlite(-wal|-shm)?$/.test(name);
  assert.deepEqual(readTree(contender.restoredState(target, stateDir), skip), readTree(stateDir, skip), contender.name);
}

/** The file that the last step restores: one of the middle, neither large nor small. */
function oneFile(stateDir) {
  const notes = path.join(stateDir, "workspace/notes");
  const names = readdirSync(notes).sort();
  return path.join("workspace/notes", names[Math.floor(names.length / 2)]);
}

/** @param {{ index: number, proxied: boolean, floor: boolean }} run without the proxy nothing is counted */
async function oneRun({ index, proxied, floor }, contenders, tools, source, record) {
  const scratch = temporaryDirectory("bench-run");
  const stateDir = path.join(scratch, "state");
  cpSync(source, stateDir, { recursive: true, preserveTimestamps: true });
  const seaweed = await startSeaweed();
  const proxy = await startProxy({ serverPort: seaweed.port, ...network });
  const { accessKey: keyId, secretKey: applicationKey } = seaweed;
  const place = { stateDir, endpoint: proxied ? proxy.url : seaweed.endpoint, keyId, applicationKey, scratch };
  const order = index % 2 === 0 ? contenders : [...contenders].reverse();
  const prepared = new Map();
  for (const contender of order) {
    await seaweed.createBucket(contender.bucket);
    // With content: an empty object needs no file.
    for (const method of ["PUT", "DELETE"])
      await s3Request(seaweed, method, `/${contender.bucket}/first`, { body: FIRST });
    prepared.set(contender, await contender.prepare(place));
  }
  for (const step of STEPS) {
    if (step === "a day of use") {
      const mutated = await run(tools.node, [makeState, "mutate", stateDir, "1", "--times", options.times]);
      if (mutated.code !== 0) throw new Error(mutated.stderr);
    }
    for (const contender of order) {
      const target = path.join(scratch, `${step}-${contender.name}`);
      const file = step === "one file" ? oneFile(stateDir) : undefined;
      const isRestore = step === "full restore" || file !== undefined;
      const ready = prepared.get(contender);
      const args = isRestore ? contender.restore(ready, place, target, file) : contender.push(ready, place);
      proxy.reset();
      const used = await measure(tools, contender.command(args), { ...quietEnvironment(), ...contender.env(place) });
      const { requests, uploadedBytes: uploaded, downloadedBytes: downloaded } = proxy.stats;
      record(step, contender.name, { ...used, ...(proxied && { requests, uploaded, downloaded }) });
      if (isRestore) checkRestore(contender, target, stateDir, file);
    }
  }
  if (floor && contenders.includes(ours)) {
    const { config } = /** @type {{ config: string }} */ (prepared.get(ours));
    const measured = await run("cargo", ["bench", "--quiet", "--bench", "floor", "--", config, stateDir], {
      cwd: projectDir,
      timeoutMs: 60 * 60_000,
    });
    if (measured.code !== 0) throw new Error(`cargo bench --bench floor failed: ${measured.stderr}`);
    console.log(measured.stdout);
  }
  await proxy.stop();
  await seaweed.stop();
}

const median = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return (sorted[Math.floor((sorted.length - 1) / 2)] + sorted[Math.ceil((sorted.length - 1) / 2)]) / 2;
};
const COLUMNS = {
  wall: { title: "wall clock", show: (seconds) => `${seconds.toFixed(2)} s` },
  cpu: { title: "CPU", show: (seconds) => `${seconds.toFixed(2)} s` },
  memory: { title: "peak memory", show: (bytes) => `${(bytes / 1e6).toFixed(0)} MB` },
  requests: { title: "requests", show: (count) => count.toLocaleString("en") },
  uploaded: { title: "uploaded", show: (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB` },
  downloaded: { title: "downloaded", show: (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 2 : 1)} MB` },
};

function printTable(measured, contenders) {
  const row = (cells) => console.log(`| ${cells.join(" | ")} |`);
  row(["step", "", ...Object.values(COLUMNS).map(({ title }) => title)]);
  row(["---", "---", ...Object.keys(COLUMNS).map(() => "---:")]);
  for (const step of STEPS) {
    const medians = contenders.map(({ name }) => {
      const runs = measured.filter((one) => one.step === step && one.name === name);
      const values = (column) => runs.map((one) => one[column]).filter((value) => value !== undefined);
      return Object.fromEntries(Object.keys(COLUMNS).map((column) => [column, median(values(column))]));
    });
    contenders.forEach(({ name }, i) => {
      row([
        i === 0 ? step : "",
        name,
        ...Object.entries(COLUMNS).map(([column, { show }]) => show(medians[i][column])),
      ]);
    });
    if (contenders.length < 2) continue;
    const [mine, theirs] = medians;
    const ratio = (column) => (theirs[column] > 0 ? `**${(mine[column] / theirs[column]).toFixed(2)}**` : "");
    row(["", `ratio to ${contenders[1].name}`, ...Object.keys(COLUMNS).map(ratio)]);
  }
}

async function bench() {
  const runs = Number(options.runs);
  if (!["S", "M", "L", "F"].includes(options.size) || !(runs >= 1))
    throw new ToolError("--size is S, M, L or F, --runs at least 1");
  if (options.only !== undefined && !(options.only in ALL)) throw new ToolError("--only is ours, restic or rclone");
  const hasRclone = await run(rclonePath, ["version"]).then(
    () => true,
    () => false,
  );
  const contenders = Object.values(ALL).filter((one) =>
    options.only === undefined ? one !== rclone || hasRclone : one === ALL[options.only],
  );
  ensureTools("openclaw");
  const tools = ensureTools("python");
  const peer = contenders.includes(restic) ? await resticVersion() : "";
  if (contenders.includes(ours) && options.build !== "none") {
    console.error("building the addon as it is released ...");
    const built = await run("npm", ["run", "build"], { cwd: projectDir, timeoutMs: 60 * 60_000 });
    if (built.code !== 0) throw new ToolError(`npm run build failed:\n${built.stdout}${built.stderr}`);
  }
  const source = path.join(temporaryDirectory("bench-state"), "state");
  console.error(`making state ${options.size} ...`);
  const made = await run(tools.node, [makeState, "make", source, options.size, "--times", options.times], {
    timeoutMs: 60 * 60_000,
  });
  if (made.code !== 0) throw new Error(made.stderr);

  const measured = [];
  const slower = Object.values(network).some((setting) => setting > 0);
  if (!slower) {
    console.error("counting ...");
    await oneRun({ index: 0, proxied: true, floor: false }, contenders, tools, source, (step, name, counted) => {
      const { requests, uploaded, downloaded } = counted;
      measured.push({ run: "counting", step, name, requests, uploaded, downloaded });
    });
  }
  for (let index = 0; index < runs; index++) {
    console.error(`run ${index + 1} of ${runs} ...`);
    await oneRun({ index, proxied: slower, floor: options.floor }, contenders, tools, source, (step, name, used) => {
      measured.push({ run: index, step, name, ...used });
      console.error(`  ${step}, ${name}: ${used.wall.toFixed(2)} s`);
    });
  }
  const node = await measure(tools, [process.execPath, "-e", "0"], quietEnvironment());
  const cpus = os.cpus();
  const load = options["latency-ms"] !== "0" ? `, ${options["latency-ms"]} ms latency` : "";
  const rate = options["upload-rate"] !== "0" ? `, ${Number(options["upload-rate"]) / 1e6} MB/s up` : "";
  const times = options.times !== "1" ? ` ${options.times} times over` : "";
  console.log(`State ${options.size}${times}, medians of ${runs} runs, SeaweedFS on loopback${load}${rate}.`);
  console.log(
    `${cpus.length} x ${cpus[0].model.trim()}, Node ${process.version}${peer && `, ${peer}`}. ` +
      `Node that does nothing: ${COLUMNS.wall.show(node.wall)}, ${COLUMNS.memory.show(node.memory)}.\n`,
  );
  printTable(measured, contenders);
  if (options.json) writeFileSync(options.json, `${JSON.stringify(measured, null, 2)}\n`);
}

try {
  await bench();
} catch (error) {
  console.error(error instanceof ToolError ? error.message : error.stack);
  process.exit(1);
}
