// One operation of the native addon, in a process of its own. The plugin starts it for whatever a gateway wants done.
//
// The addon is never loaded in the gateway: it brings its own copy of SQLite, and two copies in one process take each
// other's POSIX locks away when one of them closes a database (https://sqlite.org/howtocorrupt.html, 2.2.1). A process of
// its own also keeps memory, a crash and the delay of the event loop away from the gateway.
//
// Standard input: one line of JSON, `{ verb, target, options }`, so that no secret is in an argument or a variable. It then
// stays open; another line, or its end, also that of a gateway that died, cancels the operation at its next safe point.
// Standard output: lines of JSON, any number of `{ progress }`, and last `{ result }` or
// `{ error: { code, message, retryable, context } }`.

import os from "node:os";

/** Progress is for eyes: more of it would only be work for the gateway. */
const PROGRESS_EVERY_MS = 250;

/** The addon; tests put another module in its place. */
const native = await import(process.env.OPENCLAW_B2_TEST_NATIVE ?? "./native.js");

const abort = new AbortController();
// Whoever started this decides when it ends, by closing its input. A terminal's Ctrl+C and a supervisor's SIGTERM reach
// the whole group, and must not end the push that the gateway makes because it was told to stop.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => {});
// A reader that is gone is noticed at the end of the input.
process.stdout.on("error", () => abort.abort());
try {
  os.setPriority(os.constants.priority.PRIORITY_BELOW_NORMAL);
} catch {
  // A container may forbid it; the work is the same.
}

/** The first line of the input; from then on whatever it says, and its end, aborts. @returns {Promise<string>} */
function firstLine() {
  return new Promise((resolve, reject) => {
    let text = "";
    const end = () => (abort.abort(), reject(new Error("the input ended before the request")));
    process.stdin.setEncoding("utf8");
    process.stdin.on("data", (chunk) => {
      text += chunk;
      const [line, ...more] = text.split("\n");
      if (more.length > 0) resolve(line);
      if (more.join("") !== "") abort.abort();
    });
    process.stdin.on("end", end).on("error", end);
  });
}

/** Two characters that JSON has as they are, and that Node 24 takes for ends of lines. */
const LINE_SEPARATORS = /[\u2028\u2029]/g;

/** @param {object} line */
function print(line) {
  const text = JSON.stringify(line).replace(LINE_SEPARATORS, (found) => `\\u${found.charCodeAt(0).toString(16)}`);
  return new Promise((done) => process.stdout.write(`${text}\n`, done));
}

let printedAt = -Infinity;
let phase = "";
/** @param {import("../index.js").Progress} progress */
function onProgress(progress) {
  const now = performance.now();
  if (progress.phase === phase && now - printedAt < PROGRESS_EVERY_MS) return;
  ({ phase } = progress);
  printedAt = now;
  void print({ progress });
}

/** @param {any} error */
function describe(error) {
  const { code = "IO", message, retryable = false, context = {} } = error ?? {};
  return { code, message: String(message), retryable, context };
}

/** @param {string} line */
async function run(line) {
  const { verb, target, options } = JSON.parse(line);
  if (verb === "resolveTarget") return native.resolveTarget(options);
  return native[verb](target, { ...options, signal: abort.signal }, onProgress);
}

try {
  await print({ result: (await run(await firstLine())) ?? null });
} catch (error) {
  // The parser's message repeats a part of its input, and that holds secrets.
  const failure = error instanceof SyntaxError ? new Error("the request is not JSON") : error;
  await print({ error: describe(failure) });
}
// The input may stay open, and would keep this process.
process.exit(0);
