// Which npm package holds the addon for this machine, and what is wrong with it where the addon cannot be loaded.

import { createRequire } from "node:module";

const require = createRequire(import.meta.url);

/** This machine as napi-rs names it, and as the loader native.cjs looks for it. */
export function platformName() {
  const { platform, arch } = process;
  if (platform === "win32") return `win32-${arch}-msvc`;
  if (platform !== "linux") return `${platform}-${arch}`;
  const report = /** @type {{ header: { glibcVersionRuntime?: string } }} */ (process.report.getReport());
  const libc = report.header.glibcVersionRuntime === undefined ? "musl" : "gnu";
  return `linux-${arch}-${arch === "arm" ? `${libc}eabihf` : libc}`;
}

/** @typedef {{ name: string, version: string, openclaw: { install: { requiredPlatformPackages: string[] } } }} Manifest */

/** The versions of the platform packages that are installed beside this one, by name. @param {Manifest} manifest */
function installed({ openclaw }) {
  /** @type {Map<string, string>} */
  const versions = new Map();
  for (const name of openclaw.install.requiredPlatformPackages) {
    try {
      versions.set(name, require(`${name}/package.json`).version);
    } catch (error) {
      if (/** @type {NodeJS.ErrnoException} */ (error).code !== "MODULE_NOT_FOUND") throw error;
    }
  }
  return versions;
}

const AGAIN = "install openclaw-b2-backup again, with optional dependencies";

/**
 * The installed package of another version than this one, which half an update leaves: what it would do is anyone's guess. In
 * a checkout there is none.
 */
export function wrongVersion() {
  /** @type {Manifest} */
  const manifest = require("../package.json");
  const wrong = [...installed(manifest)].find(([, version]) => version !== manifest.version);
  return wrong && `${wrong[0]} is version ${wrong[1]} and must be ${manifest.version}; ${AGAIN}`;
}

/** Why nothing was found that could be loaded. */
export function missingPackage() {
  /** @type {Manifest} */
  const manifest = require("../package.json");
  const wanted = `${manifest.name}-${platformName()}`;
  const known = manifest.openclaw.install.requiredPlatformPackages;
  if (!known.includes(wanted)) return `there is no package ${wanted}; there are ${known.join(", ")}`;
  const [other] = installed(manifest).keys();
  // As when node_modules is copied to another machine.
  return `${wanted} is not installed${other ? `, but ${other} is` : ""}; ${AGAIN}`;
}
