// Installs the main package and that of this platform as npm users get them, in an empty directory, and runs the demo with that.
//
//   node scripts/try-package.mjs [<directory with the addon of this platform>]

import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { temporaryDirectory } from "../__test__/support/processes.mjs";
import { platformName } from "../js/platform.js";
import { makePackages } from "./package.mjs";

const scriptsDir = path.dirname(fileURLToPath(import.meta.url));

/** Runs a command to its end, and ends this process with it where it fails. */
function must(command, args, options) {
  const { status, error } = spawnSync(command, args, { stdio: "inherit", ...options });
  if (status === 0) return;
  console.error(error?.message ?? `${command} ${args.join(" ")} failed`);
  process.exit(1);
}
// npm is a script on Windows.
const npm = (args, cwd) => must("npm", args, { cwd, shell: process.platform === "win32" });

const root = temporaryDirectory("try-package");
const [addons] = process.argv.slice(2);
const directories = makePackages({ output: path.join(root, "packages"), addons: addons && path.resolve(addons) });
const main = directories.at(-1);
const name = path.basename(main);
const platform = directories.find((directory) => path.basename(directory) === `${name}-${platformName()}`);
if (!platform) {
  console.error(`there is no addon for ${platformName()} in ${addons ?? "the checkout"}`);
  process.exit(1);
}
const home = path.join(root, "home");
mkdirSync(home);
writeFileSync(path.join(home, "package.json"), JSON.stringify({ private: true }));
for (const directory of [platform, main]) npm(["pack", "--pack-destination", root, "--silent"], directory);
// The packages of the other platforms are on the registry only once they are published.
const install = ["install", "--omit=optional", "--no-audit", "--no-fund"];
const { version } = JSON.parse(readFileSync(path.join(main, "package.json"), "utf8"));
npm(
  [...install, ...[platform, main].map((directory) => path.join(root, `${path.basename(directory)}-${version}.tgz`))],
  home,
);
const cli = path.join(home, "node_modules", name, "bin/openclaw-b2-backup.js");
must(process.execPath, [path.join(scriptsDir, "demo.mjs")], { env: { ...process.env, OPENCLAW_B2_CLI: cli } });
