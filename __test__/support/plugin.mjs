// This package as OpenClaw's users install it: packed, beside the package of this platform, from a registry on loopback.

import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";

import { openclaw } from "./gateway.mjs";
import { run, temporaryDirectory } from "./processes.mjs";
import { pack, startRegistry } from "./registry.mjs";
import { projectDir } from "./tools.mjs";

export const PLUGIN = "openclaw-b2-backup";
const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), "utf8"));

/**
 * Packs the plugin, its platform package with the addon that is built here, and its dependencies. Resolves to
 * `{ tarball, registry, stop }`.
 */
export async function packPlugin() {
  const root = temporaryDirectory("plugin");
  const addon = readdirSync(projectDir).find((name) => name.endsWith(".node"));
  if (!addon) throw new Error("the addon must be built: node scripts/build-addon.mjs");
  const [, platform] = addon.split(".");
  const packages = [];
  const add = async (directory) => {
    const tarball = await pack(directory, root);
    packages.push({ manifest: readJson(directory, "package.json"), tarball });
    return tarball;
  };

  const platformDir = path.join(root, platform);
  cpSync(path.join(projectDir, "npm", platform), platformDir, { recursive: true });
  copyFileSync(path.join(projectDir, addon), path.join(platformDir, addon));
  // A debug build is 120 MB with its symbols; where there is no strip, only time is lost.
  await run("strip", ["--strip-debug", path.join(platformDir, addon)]).catch(() => {});
  await add(platformDir);

  // What publishing does: the platform packages become optional dependencies.
  const pluginDir = path.join(root, "package");
  mkdirSync(pluginDir);
  const manifest = readJson(projectDir, "package.json");
  for (const name of [...manifest.files, "README.md", "LICENSE"]) {
    const file = path.join(projectDir, name);
    if (existsSync(file)) cpSync(file, path.join(pluginDir, name), { recursive: true });
  }
  const names = readdirSync(path.join(projectDir, "npm")).map((name) => `${PLUGIN}-${name}`);
  manifest.optionalDependencies = Object.fromEntries(names.map((name) => [name, manifest.version]));
  delete manifest.scripts;
  writeFileSync(path.join(pluginDir, "package.json"), JSON.stringify(manifest, null, 2));
  const tarball = await add(pluginDir);
  for (const name of Object.keys(manifest.dependencies)) await add(path.join(projectDir, "node_modules", name));

  const registry = await startRegistry(packages);
  return { tarball, registry, stop: registry.stop };
}

/** Installs what `packPlugin` made into a state directory without a gateway, the way its README says. */
export function installPlugin(stateDir, { tarball, registry }) {
  const args = ["plugins", "install", `npm-pack:${tarball}`, "--force", "--accept-capabilities"];
  return openclaw(stateDir, args, { env: { npm_config_registry: registry.url } });
}

/** Sets the plugin's configuration in a state directory's `openclaw.json`. */
export function configurePlugin(stateDir, config) {
  const file = path.join(stateDir, "openclaw.json");
  const document = JSON.parse(readFileSync(file, "utf8"));
  const entries = ((document.plugins ??= {}).entries ??= {});
  entries[PLUGIN] = { ...entries[PLUGIN], enabled: true, config };
  writeFileSync(file, JSON.stringify(document, null, 2), { mode: 0o600 });
}
