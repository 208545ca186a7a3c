// The part of the plugin that lives as long as the gateway: what is done at its start, the schedule, and the end.

import { sourceOf } from "./config.js";
import { takeEngine } from "./engine.js";
import { Launcher } from "./launcher.js";
import { tell, watchOutcomes } from "./notify.js";
import { startSchedule } from "./schedule.js";
import * as texts from "./texts.js";

/** @typedef {import("./child.js").Failure} Failure */
/** @typedef {import("./engine.js").Engine} Engine */
/** @typedef {import("./index.js").Api["logger"]} Logger */

/** A restore drill reads a whole snapshot. */
const DRILL_EVERY_MS = 7 * 24 * 3_600_000;

/** @param {import("./index.js").Plugin} plugin */
export function registerService(plugin) {
  const { api, rootDir, version, settings } = plugin;
  /** @type {Awaited<ReturnType<typeof takeEngine>> | null} */
  let held = null;
  /** @type {Launcher | undefined} */
  let launcher;
  api.registerService({
    id: "openclaw-b2-backup",

    async start({ stateDir, logger, serviceHealth }) {
      held = await takeEngine({ stateDir, rootDir, version });
      const { engine, boot } = held;
      engine.launcher = launcher = new Launcher(rootDir);
      const { endpoint, bucket, prefix } = settings;
      engine.configure(sourceOf({ settings, stateDir, env: process.env }), [endpoint, bucket, prefix].join(" "));
      engine.record.onProblem = (problem) => logger.warn(`B2 backup: ${problem}`);
      engine.onOutcome = watchOutcomes(plugin, engine, logger, serviceHealth);
      if (boot) {
        // A backup that outlasted the stop of a gateway that restarts in this process.
        engine.cancel();
        await boots(engine, logger);
      }
      const isOff = () => {
        if (engine.problem) {
          logger.warn(`B2 backup is off: ${engine.problem.message}`);
          serviceHealth?.reportFailure(engine.problem);
        }
        return engine.problem !== undefined;
      };
      if (isOff()) return;
      // A reload has only seconds, so nobody waits for what a start has checked above.
      if (!boot) engine.call("list").catch(isOff);
      engine.schedule = startSchedule({
        schedule: settings.schedule ?? "daily",
        history: () => historyOf(engine),
        run: async (trigger) => {
          await engine.push(trigger);
          // The schedule does not wait for it.
          if (settings.restoreDrill !== false) void drill(plugin, engine, logger);
        },
      });
    },

    stop() {
      held?.engine.schedule?.stop();
      launcher?.close();
      held?.release();
      held = null;
    },
  });
}

/**
 * Tries whether a snapshot can be restored, once a week. One that cannot is the owner's to know; that one could not be tried
 * is not, and the next scheduled backup leads to another try.
 * @param {import("./index.js").Plugin} plugin
 * @param {Engine} engine
 * @param {Logger} logger
 */
async function drill({ api, settings }, engine, logger) {
  try {
    const report = await engine.drill(DRILL_EVERY_MS);
    if (!report) return;
    logger[report.problems.length > 0 ? "error" : "info"](texts.drilled(report));
    if (report.problems.length > 0 && settings.notifyOnFailure !== false) tell(api, texts.drilled(report));
  } catch (error) {
    const { code, message } = /** @type {Failure} */ (error);
    if (code !== "CANCELLED") logger.warn(`B2 backup: the restore drill was not made: ${message}`);
  }
}

/** What counts for the schedule: another bucket has no backup yet. @param {Engine} engine @returns {import("./schedule.js").History} */
function historyOf({ record, place }) {
  const { lastSuccess: last, lastError } = record.facts;
  const lastSuccess = last?.place === place ? last : undefined;
  return { lastSuccess: lastSuccess?.at, lastFailure: lastError?.at, failures: lastError?.count };
}

/**
 * Before anything reads the state: finishes or takes back a rollback that a crash interrupted, then brings the latest
 * snapshot to a machine that has nothing yet. Neither keeps the gateway from starting.
 * @param {Engine} engine
 * @param {Logger} logger
 */
async function boots(engine, logger) {
  try {
    const recovered = await engine.change("recover");
    if (recovered) {
      logger.warn(texts.recovered(recovered));
      // The gateway has read what was there before.
      engine.restartWanted = recovered.outcome !== "discarded";
      const { rollback } = engine.record.facts;
      if (rollback) {
        const applied = recovered.outcome === "finished";
        const { safetySnapshot } = recovered;
        await engine.record.set({ rollback: { ...rollback, applied, safetySnapshot } });
      }
    }
    const restored = await engine.change("restoreIfEmpty");
    if (restored) logger.info(texts.restoredEmpty(restored));
    engine.restartWanted ||= restored?.restartRequired === true;
  } catch (error) {
    const { code, message } = /** @type {Failure} */ (error);
    if (code !== "CONFIG") logger.error(`B2 backup: the start is incomplete: ${message}`);
  }
}
