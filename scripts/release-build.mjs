// Builds the addon of one platform as it is released, with napi-rs's tools for building it on another one, and such that the same
// sources make the same bytes in whatever directory (scripts/reproduce.mjs shows it).
//
//   node scripts/release-build.mjs x86_64-unknown-linux-gnu [<directory for the addon, target/addons>]

import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const { napi } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8"));

/** The least macOS that Node 20 runs on. */
const MACOS = "11.0";

/** How napi-rs builds for a target: for glibc 2.17 with its own toolchain, for musl with zig, for the rest on that system. */
function crossOptions(/** @type {string} */ target) {
  if (target.endsWith("linux-gnu")) return ["--use-napi-cross"];
  return target.endsWith("linux-musl") ? ["--cross-compile"] : [];
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
const flags = [process.env.RUSTFLAGS, ...pathFlags()].filter(Boolean).join(" ");
const options = [
  "--release",
  "--platform",
  "--no-js",
  "--features",
  "addon",
  "--target",
  target,
  "--output-dir",
  output,
];
const args = ["run", "napi", "--", "build", ...options, ...crossOptions(target), "--", "--locked"];
const { status } = spawnSync("npm", args, {
  cwd: projectDir,
  stdio: "inherit",
  // npm is a script on Windows.
  shell: process.platform === "win32",
  env: { ...process.env, RUSTFLAGS: flags, MACOSX_DEPLOYMENT_TARGET: MACOS },
});
process.exitCode = status ?? 1;
