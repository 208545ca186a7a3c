// `npm test`: everything that must hold before a change goes in, in order, stopping at the first failure with its exit code.
// The servers that the tests talk to are started here on loopback; nothing reaches a real bucket.
//
// `node scripts/test.mjs --only rust` (or tools, lint, javascript, addon) runs one part; CI may run them side by side.

import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { parseArgs } from "node:util";

import { startProxy } from "../__test__/support/b2-proxy.mjs";
import { startSeaweed } from "../__test__/support/seaweed.mjs";
import { ToolError, ensureTools, projectDir, toolsDir } from "../__test__/support/tools.mjs";

/** Checks licenses, sources and advisories by the rules of deny.toml. Building it takes 4 minutes on 2 cores, once. */
const CARGO_DENY = "0.20.2";
const cargoDenyRoot = path.join(projectDir, "target/tools/cargo");
// cargo finds its subcommands in PATH.
const cargoPath = [path.join(toolsDir, "cargo/bin"), path.join(cargoDenyRoot, "bin"), process.env.PATH];
const cargoEnv = { PATH: cargoPath.join(path.delimiter) };

const PARTS = { tools, lint, rust, addon, javascript };
const started = Date.now();

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
  if (code === 0) return;
  console.error(`\nnpm test failed at: ${[command, ...args].join(" ")}`);
  process.exit(code);
}

async function tools() {
  ensureTools();
  if (!existsSync(path.join(projectDir, "node_modules"))) await run("npm", ["ci", "--no-audit", "--no-fund"]);
  const present = spawnSync("cargo", ["deny", "--version"], { env: { ...process.env, ...cargoEnv } }).status === 0;
  if (!present) {
    const version = ["--version", CARGO_DENY, "--locked", "--quiet"];
    await run("cargo", ["install", "cargo-deny", ...version, "--root", cargoDenyRoot]);
  }
}

async function lint() {
  await run("cargo", ["fmt", "--check"]);
  await run("cargo", ["clippy", "--all-targets", "--features", "addon", "--locked", "--", "-D", "warnings"]);
  await run("cargo", ["deny", "--locked", "check", "bans", "licenses", "sources"], cargoEnv);
  // Advisories are a git repository on the network: without it everything else still has its verdict.
  if ((await attempt("cargo", ["deny", "--locked", "fetch", "db"], cargoEnv)) === 0) {
    await run("cargo", ["deny", "--locked", "check", "advisories"], cargoEnv);
  } else {
    console.warn("WARNING: the database of security advisories cannot be reached; they were NOT checked");
  }
  await run("npx", ["--no-install", "prettier", "--check", "."]);
}

async function rust() {
  await run("cargo", ["test", "--locked"]);
  const seaweed = await startSeaweed();
  const { accessKey: keyId, secretKey: applicationKey } = seaweed;
  const proxy = await startProxy({ serverPort: seaweed.port, personality: "b2", keyId, applicationKey });
  // SeaweedFS with the credentials AK and SK, and the same behind what B2 refuses and its b2_authorize_account.
  const env = { OPENCLAW_B2_TEST_S3: seaweed.endpoint, OPENCLAW_B2_TEST_B2: proxy.url };
  await run("cargo", ["test", "--locked", "--", "--include-ignored"], env);
  await proxy.stop();
  await seaweed.stop();
}

async function addon() {
  await run(process.execPath, ["scripts/build-addon.mjs"]);
}

async function javascript() {
  await run("npx", ["--no-install", "tsc", "--noEmit"]);
  // One file at a time: each runs servers of its own, and a gateway wants a core to itself.
  const files = readdirSync(path.join(projectDir, "__test__")).filter((name) => name.endsWith(".test.mjs"));
  const paths = files.sort().map((name) => `__test__/${name}`);
  await run(process.execPath, ["--test", "--test-reporter=spec", "--test-concurrency=1", ...paths]);
}

const { values } = parseArgs({ options: { only: { type: "string" } } });
if (values.only !== undefined && !(values.only in PARTS)) {
  console.error(`--only takes one of ${Object.keys(PARTS).join(", ")}`);
  process.exit(64);
}
try {
  for (const [name, part] of Object.entries(PARTS)) {
    if (values.only !== undefined && values.only !== name) continue;
    console.log(`\n==== ${name} (after ${Math.round((Date.now() - started) / 1000)} s) ====`);
    await part();
  }
} catch (error) {
  if (!(error instanceof ToolError)) throw error;
  console.error(error.message);
  process.exit(1);
}
