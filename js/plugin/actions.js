// The things that the tool and the chat command can do. Each resolves to the text of its answer.

import { restartSoon } from "./restart.js";
import * as texts from "./texts.js";

/** @typedef {import("./index.js").Plugin} Plugin */
/** @typedef {{ snapshot: string, paths?: string[] }} What */
/** @typedef {{ sessionKey?: string, agentId?: string }} Session */

/** @param {Plugin} plugin @param {AbortSignal} [signal] */
export async function list(plugin, signal) {
  return texts.list(await plugin.engine().call("list", {}, signal));
}

/** @param {Plugin} plugin @param {What} what @param {AbortSignal} [signal] */
export async function plan(plugin, what, signal) {
  return texts.plan(await makePlan(plugin, what, signal));
}

/** @param {Plugin} plugin @param {What} what @param {AbortSignal} [signal] */
export function makePlan(plugin, { snapshot, paths }, signal) {
  return plugin.engine().call("rollback", { snapshot, paths, planOnly: true }, signal);
}

/** @param {Plugin} plugin */
export async function backup(plugin) {
  return texts.pushed(await plugin.engine().push("manual"));
}

/** The owner's word that the state has lost most of what it held on purpose. @param {Plugin} plugin */
export async function acceptShrink(plugin) {
  const engine = plugin.engine();
  const { shrunk } = await engine.call("status");
  if (!shrunk) return "There is nothing to agree to: the state has not lost most of what it held.";
  const report = await engine.change("prune", { acceptShrink: true });
  return texts.accepted(report);
}

/** @param {Plugin} plugin @param {AbortSignal} [signal] */
export async function status(plugin, signal) {
  const engine = plugin.engine();
  if (engine.problem) return texts.off(engine.problem);
  return texts.status(engine.record.facts, await engine.call("status", {}, signal), engine.schedule);
}

/**
 * Prepares a rollback, and asks the gateway to restart: it lets its runs end, and its stop applies what is prepared.
 * @param {Plugin} plugin
 * @param {What} what
 * @param {Session} session who is told of the outcome
 * @param {AbortSignal} [signal]
 */
export async function restore(plugin, { snapshot, paths }, { sessionKey, agentId }, signal) {
  const engine = plugin.held();
  if (!engine) throw new Error("a rollback from chat needs the gateway; use: openclaw b2-backup rollback");
  const report = await engine.prepareRollback({ snapshot, paths }, signal);
  if (texts.isEmpty(report)) return texts.plan(report);
  await engine.record.set({
    rollback: {
      at: Date.now(),
      sessionKey,
      agentId,
      snapshot: report.snapshot,
      safetySnapshot: null,
      ...counts(report),
    },
  });
  return texts.prepared(report, restartSoon(plugin.api.config));
}

/** @param {import("../../index.js").RollbackResult} report */
export const counts = ({ restored, deleted }) => ({ restored: restored.length, deleted: deleted.length });
