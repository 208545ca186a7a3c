// Runs the product's command line the way a user or a script would: as a process, judged by its exit code and its one JSON
// object on standard output. OPENCLAW_B2_CLI names another command line to run instead of this checkout's.

import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import path from "node:path";

import { run } from "./processes.mjs";
import { projectDir } from "./tools.mjs";

export const cliPath = process.env.OPENCLAW_B2_CLI ?? path.join(projectDir, "bin/openclaw-b2-backup.js");

/** Writes an `openclaw.json` that holds nothing but this plugin's configuration; returns its path. */
export function writeConfig(file, config) {
  const plugins = { entries: { "openclaw-b2-backup": { config } } };
  writeFileSync(file, JSON.stringify({ plugins }, null, 2), { mode: 0o600 });
  return file;
}

/**
 * Runs one verb, of one word or two, with `--json`. Resolves to `{ code, report, stdout, stderr, ms }`, `report` being the JSON object, or null
 * when standard output is none.
 */
export async function runCli(verb, { config, stateDir, args = [], env = {}, input }) {
  if (!existsSync(cliPath)) throw new Error(`${cliPath} does not exist`);
  // Credentials in the developer's environment must not stand in for those that a test leaves out.
  const inherited = Object.entries(process.env).filter(
    ([name]) => !/^(B2_|OPENCLAW_|NODE_TEST|NODE_OPTIONS)/.test(name),
  );
  const common = ["--json", ...(config ? ["--config", config] : []), ...(stateDir ? ["--state-dir", stateDir] : [])];
  const started = Date.now();
  const result = await run(process.execPath, [cliPath, ...verb.split(" "), ...common, ...args], {
    env: { ...Object.fromEntries(inherited), ...env },
    input,
  });
  let report = null;
  try {
    report = JSON.parse(result.stdout);
  } catch {
    // Left null: the caller's assertion shows what was printed instead.
  }
  return { ...result, report, ms: Date.now() - started };
}

/** Runs one verb that must succeed; resolves to its report. */
export async function mustRun(verb, options) {
  const result = await runCli(verb, options);
  const said = `${verb} ${(options.args ?? []).join(" ")}\n${result.stdout}\n${result.stderr}`;
  assert.equal(result.code, 0, said);
  assert.equal(result.report?.ok, true, said);
  return result.report;
}

/**
 * Runs one verb that must fail with this error code (or one of these) and exit code; resolves to `{ ...report, ms }`. What it
 * prints is for people: a message, no stack trace, and none of `secrets`.
 */
export async function mustFail(verb, options, errorCode, { exitCode = 1, secrets = [] } = {}) {
  const result = await runCli(verb, options);
  const said = `${verb} ${(options.args ?? []).join(" ")}\n${result.stdout}\n${result.stderr}`;
  assert.equal(result.report?.ok, false, said);
  if (errorCode !== null) assert.ok([errorCode].flat().includes(result.report.code), `expected ${errorCode}: ${said}`);
  assert.equal(result.code, exitCode, said);
  assert.ok(result.report.message?.length > 0, said);
  assert.doesNotMatch(result.stdout + result.stderr, /\n +at .*:\d+:\d+|panicked|\[object |undefined/, said);
  for (const secret of secrets)
    assert.ok(!(result.stdout + result.stderr).includes(secret), `a secret is shown: ${said}`);
  return { ...result.report, ms: result.ms };
}
