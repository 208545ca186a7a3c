// Runs one command line: parses it, calls the verb, prints the result, and tells the exit code.

import { createRequire } from "node:module";
import os from "node:os";

import * as native from "./native.js";
import { help, parse, wantsJson } from "./arguments.js";
import { fromUser } from "./secrets.js";
import { showProgress } from "./terminal.js";
import { UsageError, oneLine } from "./text.js";
import { VERBS } from "./verbs.js";

/**
 * What a command line works with; tests put others in their place.
 * @typedef {{
 *   program: string, native: Omit<typeof native, "__napiBindingTarget">,
 *   stdin: NodeJS.ReadStream, stdout: NodeJS.WriteStream, stderr: NodeJS.WriteStream
 * }} Io
 */

/** The codes of index.d.ts, and USAGE. A failure with another code, or none, is a defect. */
const CODES = new Set([
  ...["AUTH", "BUCKET_NOT_FOUND", "NETWORK", "WRONG_KEY", "CORRUPT", "NOT_FOUND", "LOCKED"],
  ...["STATE_CHANGED", "UNSAFE_PATH", "CONFIG", "IO", "CANCELLED", "USAGE"],
]);
const EXIT = { done: 0, failed: 1, usage: 64, config: 65 };

/**
 * Resolves to the exit code; never rejects.
 * @param {string[]} argv without the program
 * @param {Io} io
 */
export async function main(argv, io = processIo()) {
  const json = wantsJson(argv);
  const print = (/** @type {object} */ report, /** @type {string[]} */ lines) => {
    io.stdout.write(json ? `${JSON.stringify(report)}\n` : lines.map((line) => `${line}\n`).join(""));
  };
  try {
    const asked = parse(argv);
    if (asked.ask === "help") {
      const text = help(io.program, asked.verb);
      print({ ok: true, help: text }, [text]);
    } else if (asked.ask === "version") {
      const { version } = createRequire(import.meta.url)("../package.json");
      print({ ok: true, version }, [version]);
    } else {
      return await run(asked, io, json, print);
    }
    return EXIT.done;
  } catch (error) {
    const failure = failureOf(error);
    if (json) print({ ok: false, ...failure }, []);
    else {
      const hint = failure.code === "USAGE" ? `; see ${io.program} --help` : "";
      io.stderr.write(`${io.program}: ${oneLine(failure.message)}${hint}\n`);
    }
    return failure.code === "USAGE" ? EXIT.usage : failure.code === "CONFIG" ? EXIT.config : EXIT.failed;
  }
}

/**
 * @param {{ verb: string, values: import("./arguments.js").Values, names: string[] }} asked
 * @param {Io} io
 * @param {boolean} json
 * @param {(report: object, lines: string[]) => void} print
 */
async function run({ verb: name, values, names }, io, json, print) {
  const verb = VERBS[name];
  if (verb.asks?.(values) && (json || !io.stdin.isTTY || !io.stderr.isTTY)) {
    throw new UsageError(`${name} needs --yes, or --plan to see what it would do, where nobody can be asked`);
  }
  const progress = json ? undefined : showProgress(io.stderr);
  const say = (/** @type {string[]} */ lines) => lines.forEach((line) => progress?.note(oneLine(line)));
  const abort = new AbortController();
  const stopListening = abortOnSignals(abort, () => say(["cancelling; once more to end at once"]));
  try {
    const target = await resolveTarget(io, values, abort);
    const onProgress = (/** @type {import("../index.js").Progress} */ event) => progress?.update(event);
    const report = await verb.run({ io, values, names, target, abort, onProgress, say });
    progress?.end();
    const problem = verb.problem?.(report);
    const { lines, notes = [] } = verb.describe(report, values);
    print({ ok: !problem, ...problem, ...report }, lines.map(oneLine));
    say(problem ? [...notes, `${io.program}: ${problem.message}`] : notes);
    return problem ? EXIT.failed : EXIT.done;
  } finally {
    progress?.end();
    stopListening();
  }
}

/**
 * The configuration, and with it the recovery code that the user has.
 * @param {Io} io
 * @param {import("./arguments.js").Values} values
 * @param {AbortController} abort
 */
async function resolveTarget(io, values, abort) {
  const files = { configPath: values.config, stateDir: values["state-dir"] };
  if (!values["recovery-code"]) return io.native.resolveTarget(files);
  const recoveryCode = await fromUser(io, { option: "recovery-code", question: "Recovery code" }, abort);
  // It may be the only secret that there is.
  const env = { ...definedOf(process.env), OPENCLAW_B2_RECOVERY_CODE: recoveryCode };
  return { ...(await io.native.resolveTarget({ ...files, env })), recoveryCode };
}

/** @param {NodeJS.ProcessEnv} env @returns {Record<string, string>} */
const definedOf = (env) => Object.fromEntries(Object.entries(env).map(([name, value]) => [name, value ?? ""]));

/** What a failure is to whoever called: never a stack trace. @param {any} error */
function failureOf(error) {
  const message = typeof error?.message === "string" && error.message !== "" ? error.message : "for no known reason";
  if (CODES.has(error?.code)) return { code: String(error.code), message };
  return { code: "IO", message: `the operation failed unexpectedly; this is a defect: ${message}` };
}

/**
 * The first signal cancels at the next safe point, the second ends at once.
 * @param {AbortController} abort
 * @param {() => void} note
 */
function abortOnSignals(abort, note) {
  let signalled = false;
  const onSignal = (/** @type {NodeJS.Signals} */ signal) => {
    if (signalled) process.exit(128 + os.constants.signals[signal]);
    signalled = true;
    note();
    abort.abort();
  };
  process.on("SIGINT", onSignal).on("SIGTERM", onSignal);
  return () => process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
}

/** @returns {Io} */
function processIo() {
  const { stdout, stderr } = process;
  for (const stream of [stdout, stderr]) {
    stream.on("error", (/** @type {NodeJS.ErrnoException} */ error) => {
      // Whoever closed the pipe (`| head -1`) has seen enough, and the work is done all the same.
      if (error.code === "EPIPE") return;
      process.exitCode = EXIT.failed;
      if (stream !== stderr) stderr.write(`openclaw-b2-backup: cannot write the result: ${error.message}\n`);
    });
  }
  // `openclaw b2-backup` runs this as a child (js/plugin/cli.js).
  const program = process.env.OPENCLAW_B2_PROGRAM ?? "openclaw-b2-backup";
  return {
    program,
    native,
    // Opened by those who read it.
    get stdin() {
      return process.stdin;
    },
    stdout,
    stderr,
  };
}
