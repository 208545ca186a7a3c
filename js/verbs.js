// The verbs of the command line: the options of each, and the native function it calls.

import path from "node:path";

import * as describe from "./describe.js";
import { fromFile, fromUser, fromVariable } from "./secrets.js";
import { confirm } from "./terminal.js";
import { UsageError } from "./text.js";

/** @typedef {import("./arguments.js").Option} Option */
/** @typedef {import("./arguments.js").Values} Values */

/**
 * What a verb works with: the checked command line, what to call with it, and whom to ask.
 * @typedef {{
 *   io: import("./cli.js").Io, values: Values, names: string[], target: import("../index.js").Target,
 *   abort: AbortController, onProgress: (progress: import("../index.js").Progress) => void, say: (lines: string[]) => void
 * }} Call
 */

/**
 * `names` is how many snapshots, or what `named` says, follow the verb, at least and at most; `asks` whether it has a question to the user;
 * `problem` why its result is a failure.
 * @typedef {{
 *   about: string, options: Record<string, Option>, names?: [number, number], named?: string, operands?: string,
 *   asks?: (values: Values) => boolean, run: (call: Call) => Promise<any>,
 *   describe: (report: any, values: Values) => describe.Words,
 *   problem?: (report: any) => { code: string, message: string } | undefined
 * }} Verb
 */

/** @type {Option} */
const TRIGGER = {
  type: "string",
  value: "<name>",
  about: "Why it is taken (default: manual)",
  choices: ["schedule", "catch_up", "before_compaction", "gateway_stop", "manual"],
};
/** @type {Option} */
const SNAPSHOT = { type: "string", value: "<snapshot>", required: true, about: "Id, start of one, latest, or a time" };
/** @type {Option} */
const TARGET = { type: "string", value: "<dir>", required: true, about: "Where to write: an empty or new directory" };
/** @type {Option} */
const PATHS = { type: "string", value: "<glob>", multiple: true, about: "Only these paths of the snapshot" };

/** @type {Option} */
const PARTIAL = { type: "boolean", about: "Do without files that cannot be restored, and name them" };

/** @type {Record<string, Verb>} */
export const VERBS = {
  push: {
    about: "Take a snapshot, then apply retention",
    options: { trigger: TRIGGER },
    run: ({ io, target, values, abort, onProgress }) => {
      return io.native.push(target, { trigger: values.trigger, signal: abort.signal }, onProgress);
    },
    describe: describe.push,
  },

  list: {
    about: "List the snapshots, newest first",
    options: {},
    run: ({ io, target, abort, onProgress }) => io.native.list(target, { signal: abort.signal }, onProgress),
    describe: describe.list,
  },

  pull: {
    about: "Write a snapshot's files into a directory",
    options: { snapshot: SNAPSHOT, target: TARGET, path: PATHS, partial: PARTIAL },
    run: ({ io, target, values, abort, onProgress }) => {
      const { snapshot, path: paths, partial } = values;
      const directory = path.resolve(values.target);
      return io.native.pull(target, { snapshot, directory, paths, partial, signal: abort.signal }, onProgress);
    },
    describe: (report, { target }) => describe.pull(report, path.resolve(target)),
  },

  rollback: {
    about: "Make the state as it was in a snapshot, after a safety snapshot",
    options: {
      snapshot: SNAPSHOT,
      path: PATHS,
      partial: PARTIAL,
      plan: { type: "boolean", about: "Only say what would be done" },
      yes: { type: "boolean", about: "Do it without asking" },
    },
    asks: ({ plan, yes }) => !plan && !yes,
    run: rollback,
    describe: (report, { plan }) => (plan ? describe.plan(report) : describe.rollback(report)),
  },

  diff: {
    about: "Compare two snapshots, or one with the live state",
    options: {},
    names: [1, 2],
    operands: "<snapshot> [<snapshot>]",
    run: ({ io, target, names: [from, to], abort, onProgress }) => {
      return io.native.diff(target, { from, to, signal: abort.signal }, onProgress);
    },
    describe: describe.diff,
  },

  verify: {
    about: "Check that every snapshot can be restored",
    options: {
      "read-data": {
        type: "string",
        value: "<n%>",
        implied: "100%",
        about: "Also download and check what is stored, or n percent of it, each time other ones",
      },
    },
    run: ({ io, target, values, abort, onProgress }) => {
      const readData = percent(values["read-data"]);
      return io.native.verify(target, { readData, signal: abort.signal }, onProgress);
    },
    describe: describe.verify,
    problem: ({ problems }) => {
      if (problems.length === 0) return undefined;
      return { code: "CORRUPT", message: `problems found in the repository: ${problems.length}` };
    },
  },

  drill: {
    about: "Restore a snapshot to a private folder, check it, and remove it again",
    options: { snapshot: { ...SNAPSHOT, required: false } },
    run: ({ io, target, values, abort, onProgress }) => {
      return io.native.drill(target, { snapshot: values.snapshot, signal: abort.signal }, onProgress);
    },
    describe: describe.drill,
    problem: ({ snapshot, problems }) => {
      if (problems.length === 0) return undefined;
      return {
        code: "CORRUPT",
        message: `${snapshot} cannot be restored as it was: problems found: ${problems.length}`,
      };
    },
  },

  prune: {
    about: "Apply retention, and free what no snapshot needs",
    options: {
      "accept-shrink": { type: "boolean", about: "Agree that the state has lost most of what it held" },
      "all-machines": { type: "boolean", about: "Apply retention to the snapshots of every machine" },
    },
    run: ({ io, target, values, abort, onProgress }) => {
      const { "accept-shrink": acceptShrink, "all-machines": allMachines } = values;
      return io.native.prune(target, { acceptShrink, allMachines, signal: abort.signal }, onProgress);
    },
    describe: describe.prune,
  },

  "import-legacy": {
    about: "Make snapshots of this version of those that 0.1.x has written",
    options: {
      "accept-plain": {
        type: "boolean",
        about: "Also take what 0.1.x stored unencrypted, which anybody may have made",
      },
    },
    run: ({ io, target, values, abort, onProgress }) => {
      return io.native.importLegacy(target, { acceptPlain: values["accept-plain"], signal: abort.signal }, onProgress);
    },
    describe: describe.importLegacy,
  },

  status: {
    about: "Show where backups stand",
    options: { cost: { type: "boolean", about: "Also say what a month costs at Backblaze B2" } },
    run: async ({ io, target, values, abort, onProgress }) => {
      const pushesPerMonth = values.cost ? await scheduledRuns(target.schedule) : undefined;
      return io.native.status(target, { pushesPerMonth, signal: abort.signal }, onProgress);
    },
    describe: describe.status,
  },

  "key list": {
    about: "List the key slots: what opens the repository",
    options: {},
    run: ({ io, target, abort }) => io.native.keyList(target, { signal: abort.signal }),
    describe: describe.keyList,
  },

  "key add": {
    about: "Let another secret open the repository; without an option, what is configured",
    options: {
      passphrase: { type: "boolean", about: "A passphrase, which is asked for, or read from standard input" },
      "passphrase-env": { type: "string", value: "<name>", about: "A passphrase from an environment variable" },
      "passphrase-file": { type: "string", value: "<file>", about: "A passphrase from a file" },
      "key-file": { type: "string", value: "<file>", about: "A key file" },
      "application-key": { type: "boolean", about: "The configured application key, which the storage service knows" },
      "old-application-key-env": {
        type: "string",
        value: "<name>",
        about: "Open with a replaced application key from an environment variable",
      },
      "old-passphrase-env": {
        type: "string",
        value: "<name>",
        about: "Open with a replaced passphrase from an environment variable",
      },
    },
    run: keyAdd,
    describe: describe.keyAdd,
  },

  "key remove": {
    about: "Remove key slots, but for the last one",
    options: {},
    names: [1, 100],
    named: "a slot",
    operands: "<slot>...",
    run: ({ io, target, names: slots, abort }) => io.native.keyRemove(target, { slots, signal: abort.signal }),
    describe: describe.keyRemove,
  },

  "key rotate": {
    about: "Seal everything new with a new master key",
    options: {},
    run: ({ io, target, abort }) => io.native.keyRotate(target, { signal: abort.signal }),
    describe: describe.keyRotate,
  },

  "key recovery-code": {
    about: "Print a new recovery code, once",
    options: {},
    run: ({ io, target, abort }) => io.native.keyRecoveryCode(target, { signal: abort.signal }),
    describe: describe.keyRecoveryCode,
  },
};

/** How often a schedule comes in 30 days. @param {string} [schedule] */
async function scheduledRuns(schedule = "daily") {
  const { runsPerMonth } = await import("./plugin/schedule.js");
  return runsPerMonth(schedule, Date.now());
}

/** `10%`, or `10`; what is out of range the addon refuses. @param {string} [text] */
function percent(text) {
  if (text === undefined) return undefined;
  const [, number] = /^(\d{1,3})%?$/.exec(text) ?? [];
  if (number === undefined) throw new UsageError(`--read-data takes a part such as 10%`);
  return Number(number);
}

/** @param {Call} call */
async function keyAdd({ io, target, values, abort }) {
  const asked = { option: "passphrase", question: "New passphrase", repeated: true };
  const passphrases = [
    fromVariable("passphrase-env", values["passphrase-env"]),
    await fromFile("passphrase-file", values["passphrase-file"]),
    values.passphrase ? await fromUser(io, asked, abort) : undefined,
  ].filter((passphrase) => passphrase !== undefined);
  if (passphrases.length > 1) {
    throw Object.assign(new Error("key add takes one passphrase at a time"), { code: "USAGE" });
  }
  return io.native.keyAdd(target, {
    passphrase: passphrases[0],
    keyFile: values["key-file"] && path.resolve(values["key-file"]),
    applicationKey: values["application-key"],
    oldApplicationKey: fromVariable("old-application-key-env", values["old-application-key-env"]),
    oldPassphrase: fromVariable("old-passphrase-env", values["old-passphrase-env"]),
    signal: abort.signal,
  });
}

/** @param {Call} call */
async function rollback({ io, target, values, abort, onProgress, say }) {
  const { snapshot, path: paths, plan: planOnly, yes, partial } = values;
  const { signal } = abort;
  if (planOnly || yes) return io.native.rollback(target, { snapshot, paths, planOnly, partial, signal }, onProgress);
  // An event that arrives late would be drawn over the question.
  let planning = true;
  const whilePlanning = (/** @type {import("../index.js").Progress} */ event) => planning && onProgress(event);
  const plan = await io.native.rollback(target, { snapshot, paths, planOnly: true, partial, signal }, whilePlanning);
  planning = false;
  if (plan.restored.length + plan.deleted.length === 0) return plan;
  const { lines, notes = [] } = describe.plan(plan);
  say([...lines, ...notes]);
  if (!(await confirm(io, "Roll back? A safety snapshot is taken first.", abort))) {
    throw Object.assign(new Error("nothing was changed"), { code: "CANCELLED" });
  }
  // By its id, because `10 minutes ago` is another time by now.
  return io.native.rollback(target, { snapshot: plan.snapshot, paths, partial, signal }, onProgress);
}
