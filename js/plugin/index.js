// The OpenClaw plugin: what it registers, and when. Registration does nothing but register; whatever runs is started by the
// service, in the one mode that has one.

import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

import { registerCli } from "./cli.js";
import { registerCommand } from "./command.js";
import { heldEngine, Engine } from "./engine.js";
import { registerHooks } from "./hooks.js";
import { registerService } from "./service.js";
import { sourceOf } from "./config.js";
import { registerTool } from "./tool.js";

const ID = "openclaw-b2-backup";

/** @typedef {import("openclaw/plugin-sdk/plugin-entry").OpenClawPluginApi} Api What OpenClaw offers a plugin. */

/**
 * What the parts of one registration share.
 * @typedef {{
 *   api: Api, rootDir: string, version: string, settings: Record<string, any>,
 *   stateDir(): string, held(): Engine | undefined, engine(): Engine
 * }} Plugin
 */

/** @param {Api} api @returns {Plugin} */
function pluginOf(api) {
  // The copy that is evaluated lies in a temporary directory, without the addon's package.
  const rootDir = api.rootDir ?? fileURLToPath(new URL("../..", import.meta.url));
  const { version } = createRequire(import.meta.url)("../../package.json");
  const settings = api.pluginConfig ?? {};
  return {
    ...{ api, rootDir, version, settings },
    stateDir: () => api.runtime.state.resolveStateDir(process.env),
    /** The gateway's engine. Tools and hooks also belong to registrations that have no service. */
    held: () => heldEngine(api.runtime.state.resolveStateDir(process.env)),
    /** The same, or one for a command that runs without a gateway. */
    engine() {
      const stateDir = this.stateDir();
      const engine = heldEngine(stateDir);
      if (engine) return engine;
      const lone = new Engine({ stateDir, rootDir });
      lone.configure(sourceOf({ settings, stateDir, env: process.env }));
      return lone;
    },
  };
}

export default {
  id: ID,
  name: "B2 Backup",
  description: "Encrypted, deduplicated snapshots of this OpenClaw in Backblaze B2, and rollback from chat.",
  /** @param {Api} api */
  register(api) {
    const mode = api.registrationMode;
    if (["setup-only", "setup-runtime"].includes(mode)) return;
    const plugin = pluginOf(api);
    if (mode !== "tool-discovery") registerCli(plugin);
    if (mode === "cli-metadata") return;
    registerTool(plugin);
    // Agent runs take tools and hooks from a registration in the mode `discovery`.
    registerHooks(plugin);
    if (mode !== "full") return;
    registerCommand(plugin);
    registerService(plugin);
  },
};
