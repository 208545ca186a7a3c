// Builds the addon of one platform as it is released, with napi-rs's tools for building it on another one, and such that the same
// sources make the same bytes in whatever directory (scripts/reproduce.mjs shows it).
//
//   node scripts/release-build.mjs x86_64-unknown-linux-gnu [<directory for the addon, target/addons>]

import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { ensureTools } from "../__test__/support/tools.mjs";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const { napi } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8"));

/** The first macOS on arm64; that Node 20 runs on older ones is for x64 alone. */
const MACOS = "11.0";

/** Older than what Node 20 runs on, and what napi-rs's own addons are built for. */
const GLIBC = "2.17";

/** How napi-rs builds for a target: Linux with zig, which brings each C library, the rest on a machine of that system. */
function targetOptions(/** @type {string} */ target) {
  const wanted = target.endsWith("-linux-gnu") ? `${target}.${GLIBC}` : target;
  return ["--target", wanted, ...(target.includes("-linux-") ? ["--cross-compile"] : [])];
}

/** With zig in front where it is needed. */
function searchPath(/** @type {string} */ target) {
  if (!target.includes("-linux-")) return process.env.PATH;
  return `${ensureTools("zig").zigBin}${path.delimiter}${process.env.PATH}`;
}

/** Panics tell the source file: not where that lay on the building machine. */
function pathFlags() {
  const sysroot = spawnSync("rustc", ["--print", "sysroot"], { cwd: projectDir, encoding: "utf8" }).stdout.trim();
  const cargoHome = process.env.CARGO_HOME ?? path.join(os.homedir(), ".cargo");
  const places = { [cargoHome]: "/cargo", [sysroot]: "/rust", [projectDir]: "/openclaw-b2-backup" };
  return Object.entries(places).map(([from, to]) => `--remap-path-prefix=${from}=${to}`);
}

const [target, output = path.join(projectDir, "target/addons")] = process.argv.slice(2);
if (!napi.targets.includes(target)) {
  console.error(`the target is one of ${napi.targets.join(", ")}`);
  process.exit(64);
}
mkdirSync(output, { recursive: true });
const options = ["--release", "--platform", "--no-js", "--features", "addon", "--output-dir", output];
const args = ["run", "napi", "--", "build", ...options, ...targetOptions(target), "--", "--locked"];
const flags = [process.env.RUSTFLAGS, ...pathFlags()].filter(Boolean).join(" ");
const { status } = spawnSync("npm", args, {
  cwd: projectDir,
  stdio: "inherit",
  // npm is a script on Windows.
  shell: process.platform === "win32",
  env: { ...process.env, PATH: searchPath(target), RUSTFLAGS: flags, MACOSX_DEPLOYMENT_TARGET: MACOS },
});
process.exitCode = status ?? 1;
