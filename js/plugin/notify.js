// Tells the owner: what went wrong with a backup, at most once a day, and what became of a rollback.

import * as texts from "./texts.js";

const QUIET_MS = 24 * 3_600_000;

/**
 * The key of the session that the owner talks to by default.
 * @param {any} config OpenClaw's
 */
export function mainSession(config) {
  const { scope, mainKey = "main" } = config?.session ?? {};
  if (scope === "global") return "global";
  const entries = Object.entries(config?.agents?.entries ?? {});
  const listed = [
    ...(config?.agents?.list ?? []),
    ...entries.map(([id, entry]) => ({ id, .../** @type {any} */ (entry) })),
  ];
  const agent = listed.find((entry) => entry.default) ?? listed[0];
  return `agent:${String(agent?.id ?? "main").toLowerCase()}:${mainKey}`;
}

/** @typedef {{ sessionKey?: string, agentId?: string }} Session */

/**
 * Says something in a session, with its next turn.
 * @param {any} api
 * @param {string} text
 * @param {Session} [session]
 */
export function note(api, text, { sessionKey = mainSession(api.config), agentId } = {}) {
  api.runtime.system.enqueueSystemEvent(text, { sessionKey, ...(agentId && { agentId }) });
}

/**
 * Says something in a session, and wakes its agent.
 * @param {any} api
 * @param {string} text
 * @param {Session} [session]
 */
export function tell(api, text, { sessionKey = mainSession(api.config), agentId } = {}) {
  note(api, text, { sessionKey, agentId });
  const { system } = api.runtime;
  system.requestHeartbeat({
    source: "other",
    intent: "event",
    reason: "b2-backup",
    sessionKey,
    ...(agentId && { agentId }),
  });
}

/**
 * What becomes of every backup: log, the gateway's health, and the owner.
 * @param {import("./index.js").Plugin} plugin
 * @param {import("./engine.js").Engine} engine
 * @param {any} logger
 * @param {any} health
 */
export function watchOutcomes({ api, settings }, engine, logger, health) {
  return (/** @type {import("./child.js").Failure | null} */ error) => {
    if (!error) {
      health?.clearFailure();
      return;
    }
    logger.error(`B2 backup failed: ${error.message}`);
    health?.reportFailure(error);
    const { toldAt = 0, lastSuccess } = engine.record.facts;
    const now = Date.now();
    // Nobody hears what is said while the gateway stops; the next start tries again.
    if (engine.stopping) return;
    if (settings.notifyOnFailure === false || now - Math.min(toldAt, now) < QUIET_MS) return;
    try {
      tell(api, texts.failed(error, lastSuccess));
      void engine.record.set({ toldAt: now }).catch(() => {});
    } catch (problem) {
      logger.warn(`B2 backup: the owner could not be told: ${/** @type {Error} */ (problem).message}`);
    }
  };
}
