// Publishes what scripts/package.mjs made, the main package last. A version that is on the registry already is left alone, so
// that a release that stopped half-way can be run again.
//
//   node scripts/publish.mjs [--dry-run] [<directory that package.mjs wrote to>]

import { spawnSync } from "node:child_process";
import { readFileSync, readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const { name: MAIN } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8"));

/** @param {string[]} args @param {string} cwd @param {import("node:child_process").StdioOptions} stdio */
function npm(args, cwd, stdio) {
  return spawnSync("npm", args, { cwd, encoding: "utf8", stdio, shell: process.platform === "win32" });
}

/** @param {string} directory @param {boolean} dryRun */
function publish(directory, dryRun) {
  const { name, version } = JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8"));
  const known = npm(["view", `${name}@${version}`, "version"], directory, "pipe");
  // npm fails for a package that it does not know, and says nothing for a version.
  if (known.status === 0 && known.stdout.trim() === version) {
    console.log(`${name}@${version} is there already`);
    return;
  }
  const args = ["publish", "--access", "public", ...(dryRun ? ["--dry-run"] : [])];
  if (npm(args, directory, "inherit").status !== 0) throw new Error(`${name}@${version} was not published, see above`);
}

const { values, positionals } = parseArgs({ options: { "dry-run": { type: "boolean" } }, allowPositionals: true });
const [packages = path.join(projectDir, "target/packages")] = positionals;
try {
  const names = readdirSync(packages).filter((name) => name !== MAIN);
  for (const name of [...names, MAIN]) publish(path.join(packages, name), values["dry-run"] === true);
} catch (error) {
  console.error(/** @type {Error} */ (error).message);
  process.exitCode = 1;
}
