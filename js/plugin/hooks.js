// What the gateway's own events lead to: a backup before a compaction, one at the end, an applied rollback, its report, and
// the question to the owner before a rollback.

import { counts } from "./actions.js";
import { askBeforeRestore } from "./tool.js";
import { tell } from "./notify.js";
import { restartSoon } from "./restart.js";
import * as texts from "./texts.js";

/** A compaction waits for its backup this long; the backup goes on all the same. */
const COMPACTION_MS = 120_000;
const COMPACTION_EVERY_MS = 5 * 60_000;
/** The gateway drains for 315 s in all. A backup that is cut is resumed by the next. */
const STOP_MS = 240_000;
/** The plan of a restore is made before the question can be asked. */
const PLAN_MS = 120_000;

/** @typedef {import("./index.js").Api} Api */

/** @param {import("./index.js").Plugin} plugin */
export function registerHooks(plugin) {
  const { api } = plugin;

  api.on(
    "before_compaction",
    async () => {
      const engine = plugin.held();
      const now = performance.now();
      if (!engine || engine.problem || now - engine.compactedAt < COMPACTION_EVERY_MS) return;
      engine.compactedAt = now;
      await engine.push("before_compaction", now + COMPACTION_MS).catch(() => (engine.compactedAt = -Infinity));
    },
    { timeoutMs: COMPACTION_MS },
  );

  api.on("before_tool_call", (event, ctx) => askBeforeRestore(plugin, event, ctx ?? {}), {
    ...{ matcher: ["b2_rollback"], timeoutMs: PLAN_MS },
  });

  api.on(
    "gateway_stop",
    async ({ reason }) => {
      const engine = plugin.held();
      if (!engine || reason === "plugin replacement") return;
      engine.stopping = true;
      engine.schedule?.stop();
      const { rollback } = engine.record.facts;
      // Also where the configuration has become wrong: then whoever waits for it hears so.
      if (rollback && rollback.applied === undefined) return applyRollback(engine, rollback, api.logger);
      if (engine.problem) return;
      await engine.push("gateway_stop").catch(() => {});
    },
    { timeoutMs: STOP_MS },
  );

  api.on("gateway_start", async () => {
    const engine = plugin.held();
    if (!engine) return;
    await report(engine, api);
    if (!engine.restartWanted) return;
    engine.restartWanted = false;
    if (!restartSoon(api.config))
      api.logger.warn("B2 backup: restart the gateway, so that it takes up what was restored");
  });
}

/**
 * @param {import("./engine.js").Engine} engine
 * @param {import("./record.js").Rollback} rollback
 * @param {Api["logger"]} logger
 */
async function applyRollback(engine, rollback, logger) {
  try {
    const report = await engine.applyRollback();
    const done = report
      ? { applied: true, safetySnapshot: report.safetySnapshot, ...counts(report) }
      : { applied: false, problem: "nothing was prepared" };
    await engine.record.set({ rollback: { ...rollback, ...done } });
    logger.info(texts.rolledBack({ ...rollback, ...done }));
  } catch (error) {
    const { message } = /** @type {Error} */ (error);
    logger.error(`B2 backup: the rollback was not applied: ${message}`);
    await engine.record.set({ rollback: { ...rollback, applied: false, problem: message } });
  }
}

/**
 * Tells the session that asked for a rollback what became of it, once. After a mere reload it may be still to come, at the
 * next stop.
 * @param {import("./engine.js").Engine} engine
 * @param {Api} api
 */
async function report(engine, api) {
  const { record, booted } = engine;
  engine.booted = false;
  const { rollback } = record.facts;
  if (!rollback || (rollback.applied === undefined && !booted)) return;
  await record.set({ rollback: undefined });
  tell(api, texts.rolledBack(rollback), rollback);
}
