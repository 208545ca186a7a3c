// `npm run typecheck`: type-checks the JavaScript of this package against OpenClaw's own plugin SDK, as its packages ship it, for
// the newest and for the oldest release that is supported. It installs both where the tests have them.

import { spawnSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";

import { ToolError, ensureTools, projectDir } from "../__test__/support/tools.mjs";

/** TypeScript takes its paths from a file only, and where OpenClaw is depends on OPENCLAW_B2_TOOLS. */
function check(entry) {
  const directory = path.join(projectDir, "target/typecheck");
  mkdirSync(directory, { recursive: true });
  const file = path.join(directory, "tsconfig.json");
  const types = path.join(path.dirname(entry), "dist/plugin-sdk/*.d.ts");
  const compilerOptions = { paths: { "openclaw/plugin-sdk/*": [types] } };
  writeFileSync(file, JSON.stringify({ extends: path.join(projectDir, "tsconfig.json"), compilerOptions }));
  console.log(`tsc with the types of ${path.relative(projectDir, path.dirname(entry))}`);
  const tsc = path.join(projectDir, "node_modules/typescript/bin/tsc");
  return spawnSync(process.execPath, [tsc, "--project", file], { cwd: projectDir, stdio: "inherit" }).status ?? 1;
}

try {
  const { openclaw } = ensureTools("openclaw");
  const { oldestOpenclaw } = ensureTools("oldest");
  process.exitCode = [openclaw, oldestOpenclaw].map(check).find((status) => status !== 0) ?? 0;
} catch (error) {
  if (!(error instanceof ToolError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
