// Runs js/worker.js: one operation in a child process, with a request on its standard input and the result from its output.

import { spawn } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import readline from "node:readline";

import { oneLine } from "../text.js";

/** @typedef {import("../../index.js").Progress} Progress */

/**
 * What a failed operation is: the fields that index.d.ts documents for errors of the native functions.
 * @typedef {Error & { code: string, retryable: boolean, context: object }} Failure
 */

/** All that the addon may need of the environment; a gateway's own holds keys of other services. */
const INHERITED = new Set([
  ...["PATH", "HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "TZ", "COMPUTERNAME", "SYSTEMROOT"],
  ...["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENCLAW_B2_TEST_NATIVE"],
  ...["OPENCLAW_HOME", "OPENCLAW_CONFIG_PATH", "OPENCLAW_WORKSPACE_DIR", "OPENCLAW_INCLUDE_ROOTS"],
]);
const STDERR_KEPT = 4096;

/**
 * A process that runs js/worker.js, or was to. Every line it says is handed to who started it; `ended` says how it ended.
 * @typedef {{ send(line: string): void, said: { stderr: string }, ended: Promise<string> }} Worker
 */

/** @param {string} code @param {string} message @param {Partial<Failure>} [rest] @returns {Failure} */
export function failure(code, message, rest = {}) {
  return Object.assign(new Error(message), { code, retryable: false, context: {}, ...rest });
}

/**
 * What a worker has of the environment. Whatever leads to a place on this machine may be what the configuration says of a
 * workspace.
 * @param {NodeJS.ProcessEnv} env
 */
export function inherited(env) {
  const isInherited = (/** @type {[string, any]} */ [name, value]) =>
    INHERITED.has(name.toUpperCase()) || (path.isAbsolute(value ?? "") && existsSync(value));
  return Object.fromEntries(Object.entries(env).filter(isInherited));
}

/**
 * Resolves to the operation's result, rejects with a `Failure`. Aborting `signal` cancels at the next safe point: the
 * promise settles when the process has ended.
 * @param {{
 *   rootDir: string, verb: string, target?: object, options?: object, signal?: AbortSignal,
 *   onProgress?: (progress: Progress) => void, env?: NodeJS.ProcessEnv, launcher?: import("./launcher.js").Launcher
 * }} call
 * @returns {Promise<any>}
 */
export async function runWorker({ rootDir, verb, target, options, signal, onProgress, env = process.env, launcher }) {
  if (signal?.aborted) throw failure("CANCELLED", "cancelled");
  /** @type {{ result?: any, error?: any } | undefined} */
  let last;
  /** @param {any} message */
  const onMessage = (message) => {
    if (message.progress) onProgress?.(message.progress);
    else last = message;
  };
  const worker = launcher?.launch(onMessage) ?? start(rootDir, env, onMessage);
  worker.send(JSON.stringify({ verb, target, options }));
  const cancel = () => worker.send("cancel");
  signal?.addEventListener("abort", cancel, { once: true });
  const how = await worker.ended.finally(() => signal?.removeEventListener("abort", cancel));
  if (last && "result" in last) return last.result;
  // It also cancels when its input ends.
  if (last?.error && (last.error.code !== "CANCELLED" || signal?.aborted)) {
    const { message, ...rest } = last.error;
    throw failure(rest.code, message, rest);
  }
  const said = oneLine(worker.said.stderr.trim().split("\n").at(-1) ?? "").slice(0, 300);
  throw failure("IO", `the backup process ${how}${said && `: ${said}`}`, { retryable: true });
}

/** @param {string} rootDir @param {NodeJS.ProcessEnv} env @param {(message: any) => void} onMessage @returns {Worker} */
function start(rootDir, env, onMessage) {
  let child;
  try {
    child = spawn(...workerCommand(rootDir, inherited(env)));
  } catch (error) {
    throw cannotStart(/** @type {Error} */ (error));
  }
  /** @type {Promise<string>} */
  const ended = new Promise((resolve, reject) => {
    child.on("error", (error) => reject(cannotStart(error)));
    child.on("close", (code, killedBy) => resolve(killedBy ? `was ended by ${killedBy}` : `ended with ${code}`));
  });
  return { ...attach(child, onMessage), ended };
}

/**
 * What `spawn` needs for a worker with this environment.
 * @param {string} rootDir
 * @param {NodeJS.ProcessEnv} env
 * @returns {[string, string[], import("node:child_process").SpawnOptionsWithoutStdio]}
 */
export function workerCommand(rootDir, env) {
  return [process.execPath, [path.join(rootDir, "js", "worker.js")], { cwd: rootDir, env, windowsHide: true }];
}

/**
 * Listens to a process, and speaks to it.
 * @param {import("node:child_process").ChildProcessWithoutNullStreams} child
 * @param {(message: any) => void} onMessage
 */
export function attach(child, onMessage) {
  const said = { stderr: "" };
  // A process that was not started may have no pipes.
  if (child.pid === undefined) return { said, send() {} };
  child.stderr.setEncoding("utf8").on("data", (chunk) => (said.stderr = (said.stderr + chunk).slice(-STDERR_KEPT)));
  readline.createInterface({ input: child.stdout }).on("line", (line) => {
    const message = messageOf(line);
    if (message) onMessage(message);
  });
  // A child that is gone already is judged by its exit.
  child.stdin.on("error", () => {});
  return { said, send: (/** @type {string} */ line) => void child.stdin.write(`${line}\n`) };
}

/** @param {Error} error */
const cannotStart = (error) => failure("IO", `cannot start the backup process: ${error.message}`);

/** What a line says; nothing if it was cut, as the last one of a process that is killed may be. @param {string} line */
function messageOf(line) {
  try {
    const message = JSON.parse(line);
    return typeof message === "object" && message;
  } catch {
    return undefined;
  }
}
