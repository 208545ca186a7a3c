// Starts backup processes without copying the gateway for it.
//
// On Linux Node starts a process by fork(2), which copies the tables of the gateway's memory, and the event loop stands still
// meanwhile: 8 to 50 ms for 500 MB. A shell that is started once, with the service, needs 2 ms, and takes 1 MB. Its input and
// output are those of one backup process after the other.

import { spawn } from "node:child_process";
import os from "node:os";

import { attach, inherited, workerCommand } from "./child.js";

/** Elsewhere libuv starts processes without a copy. */
export const IS_NEEDED = process.platform === "linux";

/**
 * As js/worker.js it ends with its input, and not by signals that reach the whole group. What it says itself of a worker that
 * was killed is not among that one's last words. A worker may leave a part of its input, which is passed over, and begin a line
 * that it does not end.
 */
const LOOP = `trap "" INT TERM HUP
exec 3>&2 2>/dev/null
while read -r word; do
  [ "$word" = start ] || continue
  (exec "$0" "$@" 2>&3 3>&-)
  printf '\\n{"ended":%d}\\n' $? || exit
done`;

/** @typedef {import("./child.js").Worker} Worker */

export class Launcher {
  #rootDir;
  #env;
  /** What the shell has of the environment, as JSON. */
  #inherited = "";
  /** @type {import("node:child_process").ChildProcessWithoutNullStreams | null} */
  #shell = null;
  /** @type {ReturnType<typeof attach> | null} */
  #pipes = null;
  /** Who hears of the process that runs. @type {{ onMessage(message: any): void, end(how: string): void } | null} */
  #running = null;
  #closed = false;

  /** @param {string} rootDir @param {NodeJS.ProcessEnv} [env] */
  constructor(rootDir, env = process.env) {
    this.#rootDir = rootDir;
    this.#env = env;
    this.#open(inherited(env));
  }

  /**
   * Starts js/worker.js; nothing where it cannot, or while another one runs that it has started.
   * @param {(message: any) => void} onMessage
   * @returns {Worker | undefined}
   */
  launch(onMessage) {
    if (this.#running || this.#closed) return undefined;
    // Of the environment, too, a process has what there is when it starts.
    const env = inherited(this.#env);
    if (JSON.stringify(env) !== this.#inherited) this.#drop();
    if (!this.#shell) this.#open(env);
    if (!this.#shell || !this.#pipes) return undefined;
    const { send, said } = this.#pipes;
    said.stderr = "";
    /** @type {Promise<string>} */
    const ended = new Promise((end) => (this.#running = { onMessage, end }));
    this.#keepsAlive(true);
    send("start");
    return { send, said, ended };
  }

  /** Ends the shell, once the process that runs has ended. */
  close() {
    this.#closed = true;
    if (!this.#running) this.#shell?.stdin.end();
  }

  /** @param {NodeJS.ProcessEnv} env */
  #open(env) {
    if (!IS_NEEDED) return;
    this.#inherited = JSON.stringify(env);
    const [file, args, options] = workerCommand(this.#rootDir, env);
    let shell;
    try {
      shell = spawn("/bin/sh", ["-c", LOOP, file, ...args], options);
    } catch {
      // Whoever starts a process without it hears why.
      return;
    }
    const pipes = attach(shell, (message) => this.#hear(message));
    const gone = () => {
      if (this.#shell !== shell) return;
      this.#shell = null;
      this.#end("ended with the shell that started it");
    };
    shell.on("error", gone).on("close", gone);
    // Without a shell there is none the next time either.
    if (shell.pid === undefined) return this.close();
    [this.#shell, this.#pipes] = [shell, pipes];
    this.#keepsAlive(false);
  }

  /** @param {any} message */
  #hear(message) {
    if (typeof message.ended !== "number") return this.#running?.onMessage(message);
    // What it said on the other pipe may be read after this.
    setImmediate(() => {
      this.#end(ending(message.ended));
      // One that was killed leaves the shell pipes that do not wait.
      if (message.ended !== 0) this.#drop();
    });
  }

  /** Has the shell end, and the next process start from another. */
  #drop() {
    this.#shell?.stdin.end();
    this.#shell = null;
  }

  /** @param {string} how */
  #end(how) {
    this.#running?.end(how);
    this.#running = null;
    this.#keepsAlive(false);
    if (this.#closed) this.#shell?.stdin.end();
  }

  /** Whether this process waits for the shell. @param {boolean} does */
  #keepsAlive(does) {
    const shell = this.#shell;
    for (const handle of /** @type {any[]} */ ([shell, shell?.stdin, shell?.stdout, shell?.stderr])) {
      handle?.[does ? "ref" : "unref"]();
    }
  }
}

/** How a process ended, by what the shell says of it. @param {number} status */
function ending(status) {
  const signal = Object.entries(os.constants.signals).find(([, number]) => status === 128 + number);
  return signal ? `was ended by ${signal[0]}` : `ended with ${status}`;
}
