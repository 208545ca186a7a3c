// Tells the owner: what went wrong with a backup, at most once a day, that the state has lost most of what it held or the bucket
// the newest snapshot, that something can no longer be read, or that the bucket has another machine's snapshots, once, and what became of a rollback.

import * as texts from "./texts.js";

const QUIET_MS = 24 * 3_600_000;
/** By so many paths it is known whether the same was told before. */
const TOLD_PATHS = 20;

/**
 * The key of the session that the owner talks to by default.
 * @param {import("./index.js").Api["config"] | undefined} config OpenClaw's
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
 * @param {import("./index.js").Api} api
 * @param {string} text
 * @param {Session} [session]
 */
export function note(api, text, { sessionKey = mainSession(api.config), agentId } = {}) {
  api.runtime.system.enqueueSystemEvent(text, { sessionKey, ...(agentId && { agentId }) });
}

/**
 * Says something in a session, and wakes its agent.
 * @param {import("./index.js").Api} api
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
 * @param {import("./index.js").Api["logger"]} logger
 * @param {{ reportFailure(error: Error): void, clearFailure(): void }} [health]
 */
export function watchOutcomes({ api, settings }, engine, logger, health) {
  const say = (/** @type {string} */ text, /** @type {Partial<import("./record.js").Facts>} */ told) => {
    try {
      tell(api, text);
      void engine.record.set(told);
    } catch (problem) {
      logger.warn(`B2 backup: the owner could not be told: ${/** @type {Error} */ (problem).message}`);
    }
  };
  /** @param {import("../../index.js").PushResult} report */
  const onShrunk = ({ snapshot, shrunk }) => {
    const { toldShrunk } = engine.record.facts;
    // Without a new snapshot nothing is known.
    if (!shrunk && snapshot && toldShrunk) void engine.record.set({ toldShrunk: undefined });
    if (!shrunk || toldShrunk === shrunk.snapshot) return;
    if (engine.stopping || settings.notifyOnFailure === false) return;
    say(texts.shrunk(shrunk), { toldShrunk: shrunk.snapshot });
  };
  /** @param {import("../../index.js").PushResult} report */
  const onDropped = ({ dropped = [] }) => {
    const now = dropped.slice(0, TOLD_PATHS).join("\n") || undefined;
    const { toldDropped } = engine.record.facts;
    if (now === toldDropped) return;
    if (!now) void engine.record.set({ toldDropped: undefined });
    if (!now || engine.stopping || settings.notifyOnFailure === false) return;
    say(texts.dropped(dropped), { toldDropped: now });
  };
  /** @param {import("../../index.js").PushResult} report */
  const onMissing = ({ missing }) => {
    // Remembered until it was said: the next push goes on from another snapshot.
    if (missing) void engine.record.set({ missing }).catch(() => {});
    const known = engine.record.facts.missing;
    if (!known || engine.stopping || settings.notifyOnFailure === false) return;
    say(texts.missing(known), { missing: undefined });
  };
  /** @param {import("../../index.js").PushResult} report */
  const onOtherMachine = ({ otherMachine }) => {
    if (!otherMachine) return;
    logger.warn(texts.otherMachine(otherMachine));
    // Told in a session it would have the agent make something, and the machine would not be restored any more.
    if (otherMachine.restoresItself || engine.stopping || settings.notifyOnFailure === false) return;
    say(texts.otherMachine(otherMachine), {});
  };
  return (/** @type {import("./child.js").Failure | null} */ error, /** @type {any} */ report) => {
    if (!error) {
      health?.clearFailure();
      for (const text of report?.warnings ?? []) logger.warn(`B2 backup: ${text}`);
      if (report) onShrunk(report);
      if (report) onDropped(report);
      if (report) onMissing(report);
      if (report) onOtherMachine(report);
      return;
    }
    logger.error(`B2 backup failed: ${error.message}`);
    health?.reportFailure(error);
    const { toldAt = 0, lastSuccess } = engine.record.facts;
    const now = Date.now();
    // Nobody hears what is said while the gateway stops; the next start tries again.
    if (engine.stopping) return;
    if (settings.notifyOnFailure === false || now - Math.min(toldAt, now) < QUIET_MS) return;
    say(texts.failed(error, lastSuccess), { toldAt: now });
  };
}
