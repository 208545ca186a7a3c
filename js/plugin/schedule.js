// When the next backup is due. It looks at the clock now and then instead of trusting one long timer, so that a machine
// that slept, or whose clock was set, makes up for what it missed. What is done then is engine.js's.

import { Cron } from "croner";

import { failure } from "./child.js";

/** @typedef {(after: number) => number} Next The first time after another, both in milliseconds since 1970. */

const PATTERNS = { daily: "0 0 * * *", weekly: "0 0 * * 0" };
const UNITS = { m: 60_000, h: 3_600_000, d: 86_400_000 };

/** A gateway that has just started has better things to do. */
const START_DELAY_MS = 20_000;
/** The longest sleep: a suspended machine is this late at most. */
const LOOK_EVERY_MS = 5 * 60_000;
/** A run that is later than this makes up for a missed one. */
const LATE_MS = 10 * 60_000;
const RETRY_MS = { first: 10 * 60_000, longest: 6 * 3_600_000 };

/**
 * `daily` and `weekly` are local midnights; a duration counts from the last backup.
 * @param {string} text as in the configuration
 * @returns {Next}
 */
export function parseSchedule(text) {
  const [, count, unit] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  if (count) {
    const every = Number(count) * UNITS[/** @type {keyof UNITS} */ (unit)];
    if (every > 0) return (after) => after + every;
  }
  try {
    const cron = new Cron(PATTERNS[/** @type {keyof PATTERNS} */ (text)] ?? text);
    if (cron.nextRun()) return (after) => cron.nextRun(new Date(after))?.getTime() ?? Infinity;
  } catch {
    // Said below, in the words of the configuration.
  }
  const advice = 'use "daily", "weekly", a duration such as "6h", or a cron expression';
  throw failure("CONFIG", `schedule: ${JSON.stringify(text)} is not a schedule; ${advice}`);
}

/** Enough to tell how often a schedule comes; one a second would be counted for too long. */
const COUNTED_RUNS = 5000;

/** How often a schedule comes in the 30 days after `from`. @param {string} text @param {number} from */
export function runsPerMonth(text, from) {
  const month = 30 * UNITS.d;
  const next = parseSchedule(text);
  let at = from;
  for (let runs = 0; runs < COUNTED_RUNS; runs++) {
    const following = next(at);
    if (following > from + month) return runs;
    at = following;
  }
  return (COUNTED_RUNS * month) / (at - from);
}

/**
 * What is known of earlier backups: the time of the last good one, of the last failure after it, and how many there were.
 * @typedef {{ lastSuccess?: number, lastFailure?: number, failures?: number }} History
 */

/**
 * When the next backup is due. Before the first one ever it is due at once.
 * @param {Next} next
 * @param {History} history
 * @param {number} now
 */
export function dueAt(next, { lastSuccess, lastFailure, failures = 0 }, now) {
  // A clock that was ahead when something was recorded must not stop backups until then.
  if (failures > 0 && lastFailure !== undefined) {
    return Math.min(lastFailure, now) + Math.min(RETRY_MS.first * 2 ** (failures - 1), RETRY_MS.longest);
  }
  return lastSuccess === undefined ? now : next(Math.min(lastSuccess, now));
}

/**
 * Calls `run` whenever a backup is due, never again before its promise has settled.
 * @param {{
 *   schedule: string, history: () => History, run: (trigger: "schedule" | "catch_up") => Promise<unknown>
 * }} options
 */
export function startSchedule({ schedule, history, run }) {
  const next = parseSchedule(schedule);
  const notBefore = Date.now() + START_DELAY_MS;
  /** @type {NodeJS.Timeout | undefined} */
  let timer;
  let stopped = false;

  const due = () => dueAt(next, history(), Date.now());
  const sleep = () => {
    if (stopped) return;
    const wait = Math.max(due(), notBefore) - Date.now();
    timer = setTimeout(look, Math.min(Math.max(wait, 1000), LOOK_EVERY_MS));
    timer.unref();
  };
  const look = async () => {
    const now = Date.now();
    const at = due();
    if (now >= Math.max(at, notBefore)) {
      const { lastSuccess, failures = 0 } = history();
      const planned = lastSuccess === undefined ? at : next(lastSuccess);
      await run(failures > 0 || now - planned > LATE_MS ? "catch_up" : "schedule").catch(() => {});
    }
    sleep();
  };

  sleep();
  return {
    /** When the next backup will be made. */
    next: () => new Date(Math.max(due(), notBefore)),
    /** Whether the last good backup is so old that one is missing, retries included. */
    isOverdue: () => {
      const { lastSuccess } = history();
      return lastSuccess !== undefined && Date.now() > next(next(lastSuccess));
    },
    stop() {
      stopped = true;
      clearTimeout(timer);
    },
  };
}
