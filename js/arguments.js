// What a command line asks for, or what is wrong with it. What the verbs do is in verbs.js.

import { parseArgs } from "node:util";

import { UsageError, oneLine } from "./text.js";
import { VERBS } from "./verbs.js";

/**
 * An option; `value` names its value in the help and is absent for switches; `implied` is the value where none is given.
 * @typedef {{
 *   type: "string" | "boolean", short?: string, multiple?: boolean, value?: string, about: string,
 *   required?: boolean, choices?: string[], implied?: string
 * }} Option
 */

/**
 * The options by name, checked. Which there are depends on the verb.
 * @typedef {{
 *   config?: string, "state-dir"?: string, json?: boolean, trigger?: import("../index.js").PushOptions["trigger"], snapshot: string, target: string,
 *   path?: string[], plan?: boolean, yes?: boolean, partial?: boolean, "read-data"?: string, "accept-shrink"?: boolean, "all-machines"?: boolean, cost?: boolean, "accept-plain"?: boolean, "recovery-code"?: boolean, passphrase?: boolean,
 *   "passphrase-env"?: string, "passphrase-file"?: string, "key-file"?: string, "application-key"?: boolean,
 *   "old-application-key-env"?: string, "old-passphrase-env"?: string
 * }} Values
 */

/** @type {Record<string, Option>} */
const COMMON = {
  config: { type: "string", value: "<file>", about: "openclaw.json (default: the one OpenClaw uses)" },
  "state-dir": { type: "string", value: "<dir>", about: "OpenClaw's state directory (default: the one OpenClaw uses)" },
  "recovery-code": { type: "boolean", about: "Ask for the recovery code, or read it from standard input" },
  json: { type: "boolean", about: "Print one JSON object" },
  help: { type: "boolean", short: "h", about: "Print this help" },
  version: { type: "boolean", about: "Print the version" },
};

/** Whether a failure must be JSON, also where the rest of the command line cannot be understood. @param {string[]} argv */
export function wantsJson(argv) {
  const end = argv.indexOf("--");
  return argv.slice(0, end < 0 ? argv.length : end).includes("--json");
}

/**
 * @param {string[]} argv
 * @returns {{ ask: "help", verb?: string } | { ask: "version" } | { ask: "run", verb: string, values: Values, names: string[] }}
 */
export function parse(argv) {
  argv = withImplied(argv);
  // The verb may stand behind options, and which options there are depends on the verb: so first a lenient look.
  const all = Object.assign({}, COMMON, ...Object.values(VERBS).map(({ options }) => options));
  const { tokens } = parseArgs({ args: argv, options: all, strict: false, allowPositionals: true, tokens: true });
  const asks = (/** @type {string} */ name) => tokens.some((token) => token.kind === "option" && token.name === name);
  // A verb is one word, or two (`key add`).
  const words = tokens.flatMap((token) => (token.kind === "positional" ? [token.value] : []));
  const verb =
    [1, 2].map((count) => words.slice(0, count).join(" ")).find((name) => Object.hasOwn(VERBS, name)) ?? words[0];
  const isVerb = verb !== undefined && Object.hasOwn(VERBS, verb);
  if (asks("help")) return { ask: "help", verb: isVerb ? verb : undefined };
  if (asks("version")) return { ask: "version" };
  const verbs = `the verbs are ${Object.keys(VERBS).join(", ")}`;
  if (verb === undefined) throw new UsageError(`a verb is missing; ${verbs}`);
  const actions = Object.keys(VERBS).filter((name) => name.startsWith(`${verb} `));
  if (actions.length > 0) throw new UsageError(`${verb} needs an action: ${actions.join(", ")}`);
  if (!isVerb) throw new UsageError(`there is no verb ${JSON.stringify(oneLine(verb))}; ${verbs}`);
  return { ask: "run", verb, ...parseVerb(verb, argv) };
}

/** Gives options their implied values: parseArgs knows none that may do without. @param {string[]} argv */
function withImplied(argv) {
  const implied = new Map();
  for (const { options } of Object.values(VERBS)) {
    for (const [name, option] of Object.entries(options)) {
      if (option.implied) implied.set(`--${name}`, `--${name}=${option.implied}`);
    }
  }
  const end = argv.indexOf("--");
  return argv.map((text, index) => (end >= 0 && index > end ? text : (implied.get(text) ?? text)));
}

/** @param {string} verb @param {string[]} argv */
function parseVerb(verb, argv) {
  const { options, names: [least, most] = [0, 0], named = "a snapshot" } = VERBS[verb];
  const known = { ...COMMON, ...options };
  const { values, positionals, tokens } = parseStrictly(argv, known);
  const given = new Set();
  for (const token of tokens) {
    if (token.kind !== "option" || token.value === undefined) continue;
    // What a script means by --state-dir "$UNSET" is certainly not the default.
    if (token.value === "") throw new UsageError(`--${token.name} is empty`);
    if (given.has(token.name) && !known[token.name].multiple) throw new UsageError(`--${token.name} is given twice`);
    given.add(token.name);
    const { choices } = known[token.name];
    if (choices && !choices.includes(token.value)) {
      throw new UsageError(`--${token.name} takes one of ${choices.join(", ")}`);
    }
  }
  const missing = Object.keys(known).find((name) => known[name].required && !given.has(name));
  if (missing) throw new UsageError(`${verb} needs --${missing} ${known[missing].value}`);
  const names = positionals.slice(verb.split(" ").length);
  if (names.length < least || names.includes("")) throw new UsageError(`${verb} needs ${named}: ${usage(verb)}`);
  if (names.length > most) {
    const extra = JSON.stringify(oneLine(names[most]));
    throw new UsageError(`${verb} does not take ${extra}; a value with spaces is written in quotes`);
  }
  return { values: /** @type {Values} */ (values), names };
}

/** @param {string[]} argv @param {Record<string, Option>} options */
function parseStrictly(argv, options) {
  try {
    return parseArgs({ args: argv, options, allowPositionals: true, tokens: true });
  } catch (error) {
    // Node's messages go on with advice for whoever wrote the program.
    const [sentence] = String(/** @type {Error} */ (error).message).split(/\.(?:\s|$)|\n/, 1);
    throw new UsageError(oneLine(sentence.charAt(0).toLowerCase() + sentence.slice(1)));
  }
}

/** Longer usages are told by the table of options alone. */
const USAGE_WIDTH = 90;

/** @param {string} verb */
function usage(verb) {
  const { options, operands = "" } = VERBS[verb];
  const parts = Object.entries(options).map(([name, option]) => {
    const text = `--${name}${shownValue(option)}`;
    return option.required ? text : option.multiple ? `[${text}]...` : `[${text}]`;
  });
  const line = [verb, operands, ...parts].filter(Boolean).join(" ");
  return line.length <= USAGE_WIDTH ? line : [verb, operands, "[<option>]..."].filter(Boolean).join(" ");
}

/** What stands behind an option's name in the help. @param {Option} option */
function shownValue({ value, implied }) {
  if (!value) return "";
  return implied ? `[=${value}]` : ` ${value}`;
}

/** The help of one verb, or of all. @param {string} program @param {string} [verb] */
export function help(program, verb) {
  const options = [...Object.entries(verb ? VERBS[verb].options : {}), ...Object.entries(COMMON)].map(
    ([name, option]) => [
      `${option.short ? `-${option.short}, ` : ""}--${name}${shownValue(option)}`,
      option.choices ? `${option.about}: ${option.choices.join(", ")}` : option.about,
    ],
  );
  if (verb) return [`Usage: ${program} ${usage(verb)}`, "", VERBS[verb].about, "", ...columns(options)].join("\n");
  return [
    `Usage: ${program} <verb> [option]...`,
    "",
    "Encrypted, deduplicated snapshots of an OpenClaw instance in Backblaze B2. Works without OpenClaw.",
    "",
    "Verbs:",
    ...columns(Object.entries(VERBS).map(([name, { about }]) => [name, about])),
    "",
    "Options:",
    ...columns(options),
    "",
    `${program} <verb> --help tells the options of a verb. A snapshot is named by its id, the unique start of one,`,
    "latest, before-compaction, or a time such as '10 minutes ago' or 'yesterday 18:00'.",
    "",
    "Without an openclaw.json the environment configures: B2_APPLICATION_KEY_ID, B2_APPLICATION_KEY, B2_BUCKET_NAME,",
    "B2_REGION, B2_ENDPOINT, OPENCLAW_B2_PASSPHRASE, OPENCLAW_B2_KEY_FILE, OPENCLAW_B2_RECOVERY_CODE.",
    "Exit codes: 0 done, 1 failed, 64 wrong usage, 65 wrong configuration.",
  ].join("\n");
}

/** @param {string[][]} rows */
function columns(rows) {
  const width = Math.max(...rows.map(([left]) => left.length));
  return rows.map(([left, right]) => `  ${left.padEnd(width)}  ${right}`);
}
