// What runs at most once per process and state directory: the queue of backups and rollbacks, and the record of them.
//
// OpenClaw evaluates a plugin's module several times and lets the copies live side by side, so the engines are kept on
// globalThis. They know nothing of OpenClaw: service.js tells them the configuration, and hears of failures.

import { setTimeout } from "node:timers/promises";

import { failure, runWorker } from "./child.js";
import { Record } from "./record.js";

/** @typedef {import("./child.js").Failure} Failure */
/** @typedef {"schedule" | "catch_up" | "before_compaction" | "gateway_stop" | "manual"} Trigger */

/** Of the triggers that led to one backup, its snapshot records the first of these. @type {Trigger[]} */
const WEIGHT = ["before_compaction", "gateway_stop", "manual", "schedule", "catch_up"];
/** People name a snapshot and globs for these: what is wrong with their words is no problem with the configuration. */
const ASKED = ["rollback", "prepareRollback"];
/** Who holds the state directory ends soon: a plan, a command line, a backup process that a killed gateway left. */
const LOCKED_MS = 60_000;

/** Who asked for a backup, and when it comes too late for them. @typedef {{ trigger: Trigger, until: number }} Request */

/**
 * Where the configuration comes from: `target` has every field, or `resolve` are the options of `resolveTarget`, which
 * reads it from its files; `problem` says why there is none.
 * @typedef {{ target: object } | { resolve: object } | { problem: Failure }} Source
 */

export class Engine {
  /** Approved restores by the id of the tool call, as `{ snapshot, paths }`. @type {Map<string, any>} */
  approved = new Map();
  /** The schedule while there is one. @type {ReturnType<typeof import("./schedule.js").startSchedule> | null} */
  schedule = null;
  /** Whether the gateway goes through its stop; whoever takes the engine next is at a start. */
  stopping = false;
  /** Whether the gateway is at a start, as opposed to a reload of this plugin, and has not told of it yet. */
  booted = false;
  /** Whether the gateway has read something that was restored afterwards. */
  restartWanted = false;
  /** When the last backup before a compaction began, by `performance.now()`. */
  compactedAt = -Infinity;
  /** The last problem with the configuration, as shown to people. @type {Failure | undefined} */
  problem;
  /**
   * Told of every backup that failed, and with null and its result of every one that did not.
   * @type {(error: Failure | null, report?: import("../../index.js").PushResult) => void}
   */
  onOutcome = () => {};
  /**
   * Starts processes for a gateway.
   * @type {import("./launcher.js").Launcher | undefined}
   */
  launcher;
  /** Whether a restore is being tried. */
  #drilling = false;

  place = "";
  #run;
  /** @type {Source} */
  #source = { problem: failure("CONFIG", "the plugin has not started yet") };
  /** @type {Promise<unknown>} */
  #lane = Promise.resolve();
  /** @type {{ requests: Request[], promise: Promise<any> } | null} */
  #waiting = null;
  #abort = new AbortController();

  /** @param {{ stateDir: string, rootDir: string, run?: typeof runWorker }} options */
  constructor({ stateDir, rootDir, run = runWorker }) {
    this.stateDir = stateDir;
    this.rootDir = rootDir;
    this.record = new Record(stateDir);
    this.#run = run;
  }

  /**
   * Takes a configuration; what runs goes on with the one before.
   * @param {Source} source
   * @param {string} [place] tells one repository from another
   */
  configure(source, place = "") {
    this.#source = source;
    this.place = place;
    this.problem = "problem" in source ? source.problem : undefined;
  }

  /**
   * A backup. A request while one waits joins it; a request while one runs leads to one more.
   * @param {Trigger} trigger
   * @param {number} [until] when whoever asks goes on without it, by `performance.now()`
   * @returns {Promise<import("../../index.js").PushResult>}
   */
  push(trigger, until = Infinity) {
    if (this.#waiting) {
      this.#waiting.requests.push({ trigger, until });
      return this.#waiting.promise;
    }
    const requests = [{ trigger, until }];
    const promise = this.#alone(() => {
      this.#waiting = null;
      return this.#push(requests);
    });
    this.#waiting = { requests, promise };
    return promise;
  }

  /** @param {Request[]} requests */
  async #push(requests) {
    const { place } = this;
    try {
      const { report, trigger, triggers } = await this.#patiently(async () => {
        // What begins too late for a compaction has what came after it.
        const triggers = requests.map(({ trigger, until }) => (performance.now() < until ? trigger : "catch_up"));
        const [trigger] = WEIGHT.filter((name) => triggers.includes(name));
        return { trigger, triggers, report: await this.call("push", { trigger }) };
      });
      const { snapshot, files, bytes } = report;
      const lastSuccess = { at: Date.now(), place, snapshot, trigger, triggers, files, bytes };
      await this.record.set({ lastSuccess, lastError: undefined });
      this.onOutcome(null, report);
      return report;
    } catch (error) {
      const { code, message } = /** @type {Failure} */ (error);
      if (code !== "CANCELLED") {
        const count = (this.record.facts.lastError?.count ?? 0) + 1;
        await this.record.set({ lastError: { at: Date.now(), code, message, count } });
        this.onOutcome(/** @type {Failure} */ (error));
      }
      throw error;
    }
  }

  /**
   * Tries a restore, beside whatever else runs, unless one was tried within `every` milliseconds. Resolves to the result, or
   * to null where none was tried.
   * @param {number} every
   * @returns {Promise<import("../../index.js").DrillResult | null>}
   */
  async drill(every) {
    const { place } = this;
    const last = this.record.facts.lastDrill;
    const now = Date.now();
    // A clock that was ahead when it was recorded must not stop drills until then.
    if (this.#drilling || (last?.place === place && now - Math.min(last.at, now) < every)) return null;
    this.#drilling = true;
    try {
      const report = await this.call("drill");
      const { snapshot, skipped, problems } = report;
      await this.record.set({
        lastDrill: { at: Date.now(), place, snapshot, skipped, problems: problems.slice(0, 5) },
      });
      return report;
    } finally {
      this.#drilling = false;
    }
  }

  /** An operation that changes something here: one at a time. @param {string} verb @param {object} [options] */
  change(verb, options) {
    return this.#alone(() => this.#patiently(() => this.call(verb, options)));
  }

  /**
   * Prepares a rollback; nothing is prepared if `signal` is aborted before it is done.
   * @param {object} options
   * @param {AbortSignal} [signal]
   */
  prepareRollback(options, signal) {
    return this.#alone(async () => {
      const report = await this.#patiently(() => this.call("prepareRollback", options, signal));
      if (!signal?.aborted) return report;
      // Before anything else has its turn: it could be another one that is prepared.
      await this.#patiently(() => this.call("discardRollback"));
      throw failure("CANCELLED", "cancelled");
    });
  }

  /** Applies what is prepared. */
  applyRollback() {
    // Not where a database was in the way: by then nothing is prepared any more.
    return this.#alone(() =>
      this.#patiently(
        () => this.call("applyRollback"),
        ({ retryable }) => retryable,
      ),
    );
  }

  /**
   * An operation that only looks, beside whatever else runs.
   * @param {string} verb
   * @param {object} [options]
   * @param {AbortSignal} [signal]
   * @returns {Promise<any>}
   */
  async call(verb, options, signal) {
    const ended = signal ? AbortSignal.any([signal, this.#abort.signal]) : this.#abort.signal;
    try {
      const target = await this.target();
      const { rootDir, launcher } = this;
      const result = await this.#run({ rootDir, verb, target, options, signal: ended, launcher });
      this.problem = undefined;
      return result;
    } catch (error) {
      const problem = /** @type {Failure} */ (error);
      if (problem.code === "CONFIG" && !ASKED.includes(verb)) this.problem = problem;
      throw error;
    }
  }

  /** The configuration with its secrets. @returns {Promise<any>} */
  async target() {
    const source = this.#source;
    if ("problem" in source) throw source.problem;
    if ("target" in source) return source.target;
    const { rootDir, launcher } = this;
    const { signal } = this.#abort;
    return this.#run({ rootDir, verb: "resolveTarget", options: source.resolve, signal, launcher });
  }

  /** @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  #alone(work) {
    const done = this.#lane.then(work, work);
    this.#lane = done.catch(() => {});
    return done;
  }

  /**
   * Tries again while another process is in the way.
   * @template T
   * @param {() => Promise<T>} work
   * @param {(error: Failure) => boolean} [mayRepeat]
   */
  async #patiently(work, mayRepeat = () => true) {
    const { signal } = this.#abort;
    for (const end = Date.now() + LOCKED_MS; ; await setTimeout(500)) {
      if (signal.aborted) throw failure("CANCELLED", "cancelled");
      try {
        return await work();
      } catch (error) {
        const problem = /** @type {Failure} */ (error);
        if (problem.code !== "LOCKED" || Date.now() > end || !mayRepeat(problem)) throw error;
      }
    }
  }

  /** Resolves when nothing runs and nothing waits. */
  async idle() {
    for (let lane; lane !== this.#lane;) await (lane = this.#lane);
  }

  /** Cancels whatever runs, at its next safe point. */
  cancel() {
    this.#abort.abort();
    this.#abort = new AbortController();
  }
}

/**
 * One state directory's engine, and how many services hold it.
 * @typedef {{ engine: Engine, version: string, holders: number }} Slot
 */

const SLOTS = Symbol.for("openclaw-b2-backup.engines");

/** @returns {Map<string, Slot>} */
function slots() {
  const holder = /** @type {any} */ (globalThis);
  return (holder[SLOTS] ??= new Map());
}

/** The engine of a state directory that a service holds at the moment. @param {string} stateDir */
export function heldEngine(stateDir) {
  const slot = slots().get(stateDir);
  return slot && slot.holders > 0 ? slot.engine : undefined;
}

/**
 * Takes the engine of a state directory, making one when there is none of this version. `boot` tells whether the gateway
 * is starting, as opposed to reloading this plugin.
 * @param {{ stateDir: string, rootDir: string, version: string }} options
 */
export async function takeEngine({ stateDir, rootDir, version }) {
  let slot = slots().get(stateDir);
  const boot = !slot || slot.engine.stopping;
  if (slot && slot.version !== version) {
    slot.engine.cancel();
    await slot.engine.idle();
    slot = undefined;
  }
  if (!slot) {
    slot = { engine: new Engine({ stateDir, rootDir }), version, holders: 0 };
    slots().set(stateDir, slot);
    await slot.engine.record.load();
  }
  slot.engine.rootDir = rootDir;
  slot.engine.stopping = false;
  slot.engine.booted = boot;
  slot.holders++;
  const { engine } = slot;
  let held = true;
  return {
    engine,
    boot,
    /** What runs ends by itself: a reload takes the engine again, and a process that ends takes its children along. */
    release() {
      if (held) slot.holders--;
      held = false;
    },
  };
}
