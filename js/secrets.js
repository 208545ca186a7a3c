// Secrets that a command line is given. Never as an argument, which other users see in the list of processes: from an
// environment variable, a file, the terminal without showing them, or standard input.

import { open } from "node:fs/promises";

import { ask } from "./terminal.js";

/** Far more than anybody types; a file that is named by mistake is not read whole. */
const MAX_BYTES = 64 << 10;

/** @param {string} message */
const wrong = (message) => Object.assign(new Error(message), { code: "CONFIG" });

/**
 * The value of an environment variable that an option names.
 * @param {string} option
 * @param {string | undefined} name
 * @param {NodeJS.ProcessEnv} [env]
 */
export function fromVariable(option, name, env = process.env) {
  if (name === undefined) return undefined;
  if (!env[name]) throw wrong(`--${option}: the environment variable ${name} is not set`);
  return env[name];
}

/** The first line's end is the editor's, not the secret's. @param {string} option @param {string | undefined} file */
export async function fromFile(option, file) {
  if (file === undefined) return undefined;
  try {
    const handle = await open(file);
    try {
      return text(option, await firstBytes(handle.createReadStream({ end: MAX_BYTES })));
    } finally {
      await handle.close();
    }
  } catch (error) {
    const { code, message } = /** @type {NodeJS.ErrnoException} */ (error);
    throw code === "CONFIG" ? error : wrong(`--${option}: cannot read ${file}: ${message}`);
  }
}

/**
 * Asks on a terminal, twice when it is to be `repeated`; elsewhere reads standard input.
 * @param {import("./cli.js").Io} io
 * @param {{ option: string, question: string, repeated?: boolean }} what
 * @param {AbortController} abort
 */
export async function fromUser(io, { option, question, repeated = false }, abort) {
  if (!io.stdin.isTTY) return text(option, await firstBytes(io.stdin));
  const typed = await ask(io, `${question}: `, abort, { hidden: true });
  const again = repeated && typed ? await ask(io, `${question}, once more: `, abort, { hidden: true }) : typed;
  if (typed === undefined || again === undefined) {
    throw Object.assign(new Error("nothing was changed"), { code: "CANCELLED" });
  }
  if (typed !== again) throw wrong(`--${option}: what was typed differs from what was typed first`);
  return text(option, Buffer.from(typed));
}

/** @param {AsyncIterable<any>} stream */
async function firstBytes(stream) {
  const chunks = [];
  let length = 0;
  for await (const chunk of stream) {
    chunks.push(Buffer.from(chunk));
    length += chunks[chunks.length - 1].length;
    if (length > MAX_BYTES) break;
  }
  return Buffer.concat(chunks);
}

/** @param {string} option @param {Buffer} bytes */
function text(option, bytes) {
  if (bytes.length > MAX_BYTES) throw wrong(`--${option}: more than ${MAX_BYTES} bytes are no secret`);
  const secret = bytes.toString("utf8").replace(/\r?\n$/, "");
  if (secret === "") throw wrong(`--${option}: nothing was given`);
  return secret;
}
