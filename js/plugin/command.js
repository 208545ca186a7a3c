// The owner's chat command `/b2`, which no model sees.

import * as actions from "./actions.js";

const USAGE =
  "/b2 status, /b2 list, /b2 backup, /b2 plan <snapshot> [<glob>...], /b2 restore <snapshot> [<glob>...], /b2 accept-shrink";

/** @param {import("./index.js").Plugin} plugin */
export function registerCommand(plugin) {
  plugin.api.registerCommand({
    name: "b2",
    description: "Backups of this OpenClaw: status, list, backup, plan, restore, accept-shrink",
    acceptsArgs: true,
    requireAuth: true,
    // Makes OpenClaw check for the owner, or an operator of that scope, and tell which.
    requiredScopes: ["operator.admin"],
    async handler(ctx) {
      const { args, senderIsOwner, gatewayClientScopes = [] } = ctx;
      if (senderIsOwner !== true && !gatewayClientScopes.includes("operator.admin")) {
        return { text: "/b2 is the owner's." };
      }
      try {
        return { text: await perform(plugin, args ?? "", ctx) };
      } catch (error) {
        return { text: `B2 backup: ${/** @type {Error} */ (error).message}` };
      }
    },
  });
}

/**
 * @param {import("./index.js").Plugin} plugin
 * @param {string} text
 * @param {import("./actions.js").Session & { assertOwnerCurrent?: () => void }} ctx
 */
async function perform(plugin, text, { sessionKey, agentId, assertOwnerCurrent }) {
  const [action = "status", ...rest] = text.trim().split(/\s+/).filter(Boolean);
  switch (action) {
    case "list":
      return actions.list(plugin);
    case "backup":
      return actions.backup(plugin);
    case "status":
      return actions.status(plugin);
    case "accept-shrink":
      assertOwnerCurrent?.();
      return actions.acceptShrink(plugin);
    case "plan":
    case "restore": {
      const what = whatOf(rest);
      if (!what) return `Which snapshot? ${USAGE}`;
      if (action === "plan") return actions.plan(plugin, what);
      assertOwnerCurrent?.();
      return actions.restore(plugin, what, { sessionKey, agentId });
    }
    default:
      return USAGE;
  }
}

/**
 * A snapshot may be a time of several words; globs are what has a slash or a star. The id of a safety snapshot of 0.1.x may
 * have a slash too.
 * @param {string[]} words
 */
function whatOf(words) {
  const isGlob = (/** @type {string} */ word) => /[/*]/.test(word) && !/^safety-[\dTZ-]+\/[\w-]*$/.test(word);
  const paths = words.filter(isGlob);
  const snapshot = words.filter((word) => !isGlob(word)).join(" ");
  return snapshot === "" ? undefined : { snapshot, paths: paths.length > 0 ? paths : undefined };
}
