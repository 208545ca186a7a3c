// `npm run reproduce`: builds the addon for this Linux twice, as it is released, from two copies of the checkout in different
// directories, and compares the bytes. It takes twice as long as a release build: 10 minutes on 2 cores.
//
// Whoever has the same compiler (rust-version in Cargo.toml) can so tell that a published addon was made from these sources:
// its SHA-256 is printed.

import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readFileSync, readdirSync } from "node:fs";
import path from "node:path";

import { temporaryDirectory } from "../__test__/support/processes.mjs";
import { ensureTools, projectDir, toolsDir } from "../__test__/support/tools.mjs";

const TARGETS = { x64: "x86_64-unknown-linux-gnu", arm64: "aarch64-unknown-linux-gnu" };

/** Copies what git tracks, with the changes that are not committed. */
function copyCheckout(copy) {
  const listed = spawnSync("git", ["ls-files", "-z"], { cwd: projectDir, encoding: "utf8" });
  for (const file of listed.stdout.split("\0").filter(Boolean)) {
    mkdirSync(path.dirname(path.join(copy, file)), { recursive: true });
    cpSync(path.join(projectDir, file), path.join(copy, file));
  }
  return copy;
}

/** Builds in a copy; returns the SHA-256 of the addon. */
function build(copy, target) {
  const output = path.join(copy, "addons");
  // The tools are not installed into each copy.
  const env = { ...process.env, CARGO_TARGET_DIR: path.join(copy, "target"), OPENCLAW_B2_TOOLS: toolsDir };
  const { status } = spawnSync(process.execPath, ["scripts/release-build.mjs", target, output], {
    ...{ cwd: copy, env, stdio: "inherit" },
  });
  if (status !== 0) throw new Error("the addon could not be built, see above");
  const [addon] = readdirSync(output).filter((name) => name.endsWith(".node"));
  const sum = createHash("sha256").update(readFileSync(path.join(output, addon)));
  return `${sum.digest("hex")}  ${addon}`;
}

const target = process.platform === "linux" ? TARGETS[process.arch] : undefined;
if (!target) {
  console.error("reproduce builds for x64 and arm64 Linux, on that Linux");
  process.exit(1);
}
ensureTools("zig");
const root = temporaryDirectory("reproduce");
const [first, second] = ["one", "another/deeper/directory"]
  .map((name) => copyCheckout(path.join(root, name)))
  .map((copy) => build(copy, target));
console.log(`${first}\n${second}`);
if (first !== second) {
  console.error("the two builds differ");
  process.exitCode = 1;
}
