// Builds the addon for tests and for work on it: unoptimised, for this machine only, with nothing but Node and cargo.
// `node scripts/build-addon.mjs [cargo option]...`; what is published is built by `npm run build`.

import { spawnSync } from "node:child_process";
import { copyFileSync, renameSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { platformName } from "../js/platform.js";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");

/** Builds the library and returns where cargo put it, which CARGO_TARGET_DIR and others have a say in. */
function buildLibrary() {
  const options = ["--features", "addon", "--locked", "--message-format=json-render-diagnostics"];
  const cargo = spawnSync("cargo", ["build", "--lib", ...options, ...process.argv.slice(2)], {
    cwd: projectDir,
    encoding: "utf8",
    maxBuffer: Infinity,
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (cargo.error) throw new Error(`cargo cannot be run: ${cargo.error.message}; install Rust from https://rustup.rs`);
  if (cargo.status !== 0) throw new Error("cargo could not build the addon, see above");
  const messages = cargo.stdout.split("\n").filter((line) => line.startsWith("{"));
  const libraries = messages
    .map((line) => JSON.parse(line))
    .filter(({ reason, target }) => reason === "compiler-artifact" && target.name === "openclaw_b2_backup")
    .flatMap(({ filenames }) => filenames)
    .filter((name) => /\.(so|dylib|dll)$/.test(name));
  if (libraries.length !== 1) throw new Error(`cargo built ${libraries.length} libraries instead of one`);
  return libraries[0];
}

try {
  const addon = path.join(projectDir, `openclaw-b2-backup.${platformName()}.node`);
  // Renamed into place: a process that runs the old one has it mapped, and would crash if it changed underneath.
  copyFileSync(buildLibrary(), `${addon}.new`);
  renameSync(`${addon}.new`, addon);
  console.log(`built ${path.basename(addon)}`);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
