// What the command line shows while it works, and what it asks. All of it goes to standard error, so that standard output
// is the result and nothing else.

import readline from "node:readline";
import { Writable } from "node:stream";

import { count, duration, oneLine, size } from "./text.js";

/** @typedef {import("../index.js").Progress} Progress */

const DOING = {
  scan: "scanning",
  upload: "uploading",
  download: "downloading",
  stage: "staging",
  apply: "applying",
  verify: "verifying",
};
const REDRAW_MS = 100;
/** The rate is that of the last seconds: one since the start would not show that the network has become slow. */
const RATE_WINDOW_MS = 10_000;
/** Before this a time left would jump about. */
const RATE_AFTER_MS = 1000;

/**
 * Shows how far an operation has come: on a terminal as one line that is drawn over, elsewhere as one line per phase.
 * @param {{ write(text: string): unknown, isTTY?: boolean, columns?: number }} stream
 */
export function showProgress(stream, now = () => performance.now()) {
  const seen = new Set();
  /** @type {{ at: number, bytes: number }[]} */
  let samples = [];
  let phase = "";
  let drawnAt = -Infinity;
  let drawn = "";
  let ended = false;

  /** Spaces instead of control sequences: they work on every terminal. @param {string} line */
  const draw = (line) => {
    const bounded = line.slice(0, Math.max(0, (stream.columns || 80) - 1));
    if (bounded !== "" || drawn !== "") stream.write(`\r${bounded.padEnd(drawn.length)}${bounded === "" ? "\r" : ""}`);
    drawn = bounded;
  };

  return {
    /** @param {Progress} progress */
    update(progress) {
      // Events are delivered one by one and may arrive after the operation's result.
      if (ended) return;
      const at = now();
      if (progress.phase !== phase) {
        phase = progress.phase;
        samples = [];
        drawnAt = -Infinity;
        if (!stream.isTTY && !seen.has(phase)) stream.write(`${DOING[progress.phase] ?? oneLine(phase)}\n`);
        seen.add(phase);
      }
      if (!stream.isTTY) return;
      samples.push({ at, bytes: progress.bytesDone });
      while (samples.length > 2 && at - samples[0].at > RATE_WINDOW_MS) samples.shift();
      if (at - drawnAt < REDRAW_MS) return;
      drawnAt = at;
      draw(progressLine(progress, at - samples[0].at, progress.bytesDone - samples[0].bytes));
    },
    /** Writes a line of its own. @param {string} text */
    note(text) {
      draw("");
      stream.write(`${text}\n`);
    },
    /** Takes the line away; later events are ignored. */
    end() {
      draw("");
      ended = true;
    },
  };
}

/** @param {Progress} progress @param {number} elapsedMs @param {number} bytes those of `elapsedMs` */
function progressLine(progress, elapsedMs, bytes) {
  const { phase, filesDone, bytesDone, bytesTotal } = progress;
  const doing = DOING[phase] ?? oneLine(phase);
  // Totals still grow while scanning, and then mean nothing.
  if (phase === "scan") return `${doing}  ${count(progress.filesTotal, "file")}  ${size(bytesTotal)}`;
  if (bytesTotal === 0) return `${doing}  ${count(filesDone, "file")}`;
  const percent = Math.min(100, Math.floor((bytesDone / bytesTotal) * 100));
  const parts = [doing, `${percent}%`, `${size(bytesDone)} of ${size(bytesTotal)}`];
  if (elapsedMs >= RATE_AFTER_MS && bytes > 0) {
    const perMs = bytes / elapsedMs;
    parts.push(`${size(perMs * 1000)}/s`, `${duration(Math.max(0, bytesTotal - bytesDone) / perMs)} left`);
  }
  return parts.join("  ");
}

/**
 * Asks for one line. Resolves to undefined at the end of the input, and when it is interrupted, which also aborts `abort`.
 * What is typed is not shown when it is `hidden`.
 * @param {{ stdin: NodeJS.ReadableStream, stderr: NodeJS.WritableStream }} io
 * @param {string} question
 * @param {AbortController} abort
 * @param {{ hidden?: boolean }} [options]
 * @returns {Promise<string | undefined>}
 */
export function ask({ stdin, stderr }, question, abort, { hidden = false } = {}) {
  const nowhere = new Writable({ write: (_chunk, _encoding, done) => done() });
  const lines = readline.createInterface({
    input: stdin,
    output: hidden ? nowhere : stderr,
    // The terminal itself shows what is typed, unless each key is read by itself.
    terminal: hidden || undefined,
    historySize: 0,
  });
  const close = () => lines.close();
  return new Promise((resolve) => {
    let answered = false;
    lines.once("close", () => {
      abort.signal.removeEventListener("abort", close);
      if (!answered || hidden) stderr.write("\n");
      resolve(undefined);
    });
    // While a line is read, Ctrl+C reaches readline instead of the process.
    lines.once("SIGINT", () => abort.abort());
    abort.signal.addEventListener("abort", close);
    if (hidden) stderr.write(question);
    lines.question(question, (answer) => {
      answered = true;
      resolve(answer);
      close();
    });
  });
}

/**
 * Asks a question whose answer is no unless it is yes.
 * @param {{ stdin: NodeJS.ReadableStream, stderr: NodeJS.WritableStream }} io
 * @param {string} question
 * @param {AbortController} abort
 */
export async function confirm(io, question, abort) {
  return /^\s*y(es)?\s*$/i.test((await ask(io, `${question} [y/N] `, abort)) ?? "");
}
