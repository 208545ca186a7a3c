// This package as OpenClaw's users install it: packed, beside the package of this platform, from a registry on loopback.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";

import { makePackages } from "../../scripts/package.mjs";
import { openclaw } from "./gateway.mjs";
import { run, temporaryDirectory } from "./processes.mjs";
import { pack, startRegistry } from "./registry.mjs";
import { projectDir } from "./tools.mjs";

export const PLUGIN = "openclaw-b2-backup";
const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), "utf8"));

/**
 * The directories of what is published, with the addon that is built here and `version` in place of this one's; the main package
 * is the last.
 */
export async function packageDirectories({ version } = {}) {
  const directories = makePackages({ output: path.join(temporaryDirectory("packages"), "packages"), version });
  if (directories.length !== 2) throw new Error("one addon must be built: node scripts/build-addon.mjs");
  // A debug build is 120 MB with its symbols; where there is no strip, only time is lost.
  const [addon] = readdirSync(directories[0]).filter((name) => name.endsWith(".node"));
  await run("strip", ["--strip-debug", path.join(directories[0], addon)]).catch(() => {});
  return directories;
}

/** The directories of the packages that this one depends on, installed in the checkout. */
export function dependencyDirectories() {
  const names = Object.keys(readJson(projectDir, "package.json").dependencies);
  return names.map((name) => path.join(projectDir, "node_modules", name));
}

/**
 * Packs the plugin, its platform package with the addon that is built here, and its dependencies. Resolves to
 * `{ tarball, registry, stop }`.
 */
export async function packPlugin() {
  const root = temporaryDirectory("plugin");
  const packages = [];
  for (const directory of [...dependencyDirectories(), ...(await packageDirectories())]) {
    packages.push({ manifest: readJson(directory, "package.json"), tarball: await pack(directory, root) });
  }
  const registry = await startRegistry(packages);
  return { tarball: packages.at(-1).tarball, registry, stop: registry.stop };
}

/** Installs what `packPlugin` made into a state directory without a gateway, the way its README says. */
export function installPlugin(stateDir, { tarball, registry }, options) {
  const args = ["plugins", "install", `npm-pack:${tarball}`, "--force", "--accept-capabilities"];
  return openclaw(stateDir, args, { ...options, env: { npm_config_registry: registry.url } });
}

/** Sets the plugin's configuration in a state directory's `openclaw.json`. */
export function configurePlugin(stateDir, config) {
  const file = path.join(stateDir, "openclaw.json");
  const document = JSON.parse(readFileSync(file, "utf8"));
  const entries = ((document.plugins ??= {}).entries ??= {});
  entries[PLUGIN] = { ...entries[PLUGIN], enabled: true, config };
  writeFileSync(file, JSON.stringify(document, null, 2), { mode: 0o600 });
}
