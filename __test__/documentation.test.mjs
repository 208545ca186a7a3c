// The pages are true: their commands run, their examples are configurations, their tables have what the program has, their links
// lead somewhere. What is not run says why; docs/development.md has the rules.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { test } from "node:test";

import { help, parse } from "../js/arguments.js";
import { registerCommand } from "../js/plugin/command.js";
import { sourceOf } from "../js/plugin/config.js";
import { resolveTarget } from "../js/native.js";
import { VERBS } from "../js/verbs.js";
import { cliPath, mustRun, writeConfig } from "./support/cli.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { OTHER_CREDENTIALS, startSeaweed } from "./support/seaweed.mjs";
import { ensureTools, projectDir } from "./support/tools.mjs";

const PAGES = [
  "README.md",
  "CONTRIBUTING.md",
  ...readdirSync(path.join(projectDir, "docs")).map((name) => `docs/${name}`),
].filter((name) => name.endsWith(".md"));
const PLUGIN = "openclaw-b2-backup";
const PROGRAM = /^(openclaw-b2-backup|openclaw b2-backup) /;

const inProject = (name) => path.join(projectDir, name);
const readPage = (name) => readFileSync(inProject(name), "utf8");
const readJson = (name) => JSON.parse(readPage(name));

/** The fenced blocks of a page: language, text, where it is, and what the comment on the line before says. */
function blocksOf(name) {
  const lines = readPage(name).split("\n");
  const blocks = [];
  for (let i = 0; i < lines.length; i++) {
    const [fence, language] = /^```(\w*)$/.exec(lines[i]) ?? [];
    if (fence === undefined) continue;
    const end = lines.indexOf("```", i + 1);
    assert.ok(end > i, `${name}:${i + 1} is not closed`);
    const [, remark] = /^<!-- (.*) -->$/.exec(lines[i - 1] ?? "") ?? [];
    blocks.push({ at: `${name}:${i + 1}`, name, language, remark, text: lines.slice(i + 1, end).join("\n") });
    i = end;
  }
  return blocks;
}

/** The page without its blocks, and what stands in backquotes outside of them. */
const proseOf = (name) => readPage(name).replace(/^```[^]*?^```$/gm, "");
const spansOf = (name) => [...proseOf(name).matchAll(/`([^`\n]+)`/g)].map(([, text]) => text);

/** The rows of a page's table whose head begins with these cells, as texts. */
function rowsOf(name, ...head) {
  const start = `| ${head.join(" | ")} |`;
  const lines = readPage(name).split("\n");
  const first = lines.findIndex((line) => line.startsWith(start));
  assert.ok(first >= 0, `${name} has no table ${start}`);
  const length = lines.slice(first).findIndex((line) => !line.startsWith("|"));
  const cells = (line) =>
    line
      .slice(2, -2)
      .split(" | ")
      .map((cell) => cell.trim());
  return lines.slice(first + 2, length < 0 ? undefined : first + length).map(cells);
}

const blocks = PAGES.flatMap(blocksOf);
const commands = blocks.filter(({ language }) => language === "sh");

test("every block is of a kind that is tested", () => {
  for (const { at, language } of blocks) assert.ok(["sh", "json", "text"].includes(language), `${at}: ${language}`);
  // Indented ones would not be seen.
  const indented = /^ {4,}(?:\w+=\S+ )*(?:npm|npx|node|cargo|openclaw\S*) .*/m;
  for (const name of PAGES) assert.equal(indented.exec(proseOf(name))?.[0], undefined, name);
});

// A machine with a state and some snapshots, and the program in its PATH, for each page.

const binDir = temporaryDirectory("documentation-bin");
writeFileSync(path.join(binDir, PLUGIN), `#!/bin/sh\nexec '${process.execPath}' '${cliPath}' "$@"\n`, { mode: 0o755 });

/** @returns {{ home: string, stateDir: string, write: (content: string) => void }} */
function makeMachine() {
  const home = temporaryDirectory("documentation-home");
  const stateDir = path.join(home, ".openclaw");
  mkdirSync(path.join(stateDir, "workspace"), { recursive: true });
  const write = (content) => writeFileSync(path.join(stateDir, "workspace/note.md"), content);
  write("one");
  return { home, stateDir, write };
}

/** Runs a block as it stands; a value `...` is a secret that is taken from `secrets`. */
async function runBlock({ at, text }, { home, env = {}, secrets = {} }) {
  const script = text.replace(/\b(\w+)=\.\.\./g, (_, name) => {
    assert.ok(secrets[name], `${at}: the test has nothing to put in for ${name}`);
    return `${name}='${secrets[name]}'`;
  });
  assert.doesNotMatch(script, /\.\.\./, at);
  const PATH = [binDir, process.env.PATH].join(path.delimiter);
  const result = await run("bash", ["-euxc", script], { cwd: home, env: { PATH, HOME: home, ...env } });
  assert.equal(result.code, 0, `${at}\n${result.stdout}\n${result.stderr}`);
}

const isRun = ({ remark }) => !remark?.startsWith("not run: ");

test("the commands of every page run", async (t) => {
  for (const name of PAGES.filter((name) => name !== "docs/moving.md")) {
    const own = commands.filter((block) => block.name === name && isRun(block));
    if (own.length === 0) continue;
    const machine = makeMachine();
    const repository = temporaryDirectory("documentation-repository");
    writeConfig(path.join(machine.stateDir, "openclaw.json"), {
      endpoint: `file://${repository}`,
      applicationKey: "K005-key-of-a-test",
    });
    await mustRun("push", { stateDir: machine.stateDir });
    machine.write("two");
    const secrets = { MY_PASSPHRASE: "sommer regen wolke tisch" };
    for (const block of own) await t.test(block.at, () => runBlock(block, { ...machine, secrets }));
  }
});

test("moving works as it is written", async (t) => {
  const seaweed = await startSeaweed();
  t.after(seaweed.stop);
  await seaweed.createBucket("moving");
  const variables = (keyId, key) => ({
    ...{ B2_APPLICATION_KEY_ID: keyId, B2_APPLICATION_KEY: key, B2_BUCKET_NAME: "moving" },
  });
  const old = variables(seaweed.accessKey, seaweed.secretKey);
  const env = { B2_ENDPOINT: seaweed.endpoint };
  const { stateDir } = makeMachine();
  await mustRun("push", { stateDir, env: { ...old, ...env } });
  const home = temporaryDirectory("documentation-home");
  const [restore, replace, ...others] = commands.filter(({ name }) => name === "docs/moving.md");
  assert.deepEqual(others, []);
  await runBlock(restore, { home, env, secrets: old });
  assert.equal(readFileSync(path.join(home, ".openclaw-restored/workspace/note.md"), "utf8"), "one");
  const replaced = variables(OTHER_CREDENTIALS.accessKey, OTHER_CREDENTIALS.secretKey);
  await runBlock(replace, { home, env: { ...env, ...replaced }, secrets: { OLD_KEY: old.B2_APPLICATION_KEY } });
  assert.equal((await mustRun("list", { stateDir, env: { ...replaced, ...env } })).snapshots.length, 1);
});

test("what is not run says why, and names what there is", () => {
  const { scripts } = readJson("package.json");
  const parts = /const PARTS = \{ (.*) \}/.exec(readPage("scripts/test.mjs"))?.[1].split(", ");
  for (const { at, remark, text } of commands) {
    if (remark !== undefined) assert.match(remark, /^not run: .{10,}/, at);
    for (const line of text.split("\n")) checkCommand(at, line.replace(/\s+#.*/, ""), scripts, parts);
  }
  for (const name of PAGES) for (const span of spansOf(name)) checkCommand(name, span, scripts, parts);
});

/** That what a command names exists. What is run shows it by itself. */
function checkCommand(at, text, scripts, parts) {
  const said = `${at}: ${text}`;
  const [, script] = /^npm run ([\w:-]+)/.exec(text) ?? [];
  if (script) assert.ok(scripts[script], said);
  const [, part] = /^npm test -- --only (\w+)/.exec(text) ?? [];
  if (part) assert.ok(parts.includes(part), said);
  if (/\bcargo\b/.test(text)) {
    for (const [, file] of text.matchAll(/--test (\w+)/g)) assert.ok(existsSync(inProject(`tests/${file}.rs`)), said);
    const [, target] = /fuzz run (\w+)/.exec(text) ?? [];
    if (target) assert.ok(existsSync(inProject(`fuzz/fuzz_targets/${target}.rs`)), said);
  }
  const [, file] = /^node .*?(\S+\.mjs)$/.exec(text) ?? [];
  if (file) assert.ok(existsSync(inProject(file)), said);
  // A place for a word, and what may be left out, is not typed.
  if (PROGRAM.test(text) && !/[<[]/.test(text)) {
    const words = text.replace(PROGRAM, "").match(/"[^"]*"|\S+/g) ?? [];
    parse(words.map((word) => word.replaceAll('"', "")));
  }
  // `push --trigger`, or an option alone.
  const verb = Object.keys(VERBS).find((verb) => text.startsWith(`${verb} --`));
  const known = (verb ? [verb] : Object.keys(VERBS)).map((verb) => help(PLUGIN, verb)).join("\n");
  if (verb || text.startsWith("--"))
    for (const [option] of text.matchAll(/--[a-z][a-z-]*/g)) assert.match(known, new RegExp(`${option}\\b`), said);
}

test("the files and directories that are named exist", () => {
  const places = /^(\.ci|__test__|benches|bin|docs|fuzz|js|npm|scripts|skills|src|tests)\/[\w./-]*$/;
  for (const name of PAGES) {
    for (const span of spansOf(name).filter((span) => places.test(span))) {
      assert.ok(existsSync(inProject(span)), `${name}: ${span}`);
    }
  }
});

test("what is typed in chat is understood", async () => {
  let command;
  registerCommand({ api: { registerCommand: (it) => (command = it) } });
  const { text: usage } = await command.handler({ args: "no such word", senderIsOwner: true });
  const words = [...usage.matchAll(/\/b2 ([\w-]+)/g)].map(([, word]) => word);
  let seen = 0;
  for (const name of PAGES) {
    for (const [said, word] of readPage(name).matchAll(/\/b2 ([a-z][\w-]*)/g)) {
      assert.ok(words.includes(word), `${name}: ${said}`);
      seen++;
    }
  }
  assert.ok(seen > 5);
});

test("the examples are configurations, for OpenClaw and for the program", async () => {
  const Ajv = createRequire(ensureTools("openclaw").openclaw)("ajv");
  const { configSchema } = readJson("openclaw.plugin.json");
  const validate = new (Ajv.default ?? Ajv)({ allowUnionTypes: true }).compile(configSchema);
  const examples = blocks.filter(({ language }) => language === "json");
  assert.ok(examples.length >= 14);
  for (const { at, text } of examples) {
    const written = JSON.parse(text);
    const config = written.plugins ? written.plugins.entries[PLUGIN].config : written;
    assert.ok(validate(config), `${at}: ${JSON.stringify(validate.errors)}`);
    // What is in angle brackets is to be filled in.
    const filled = JSON.parse(text.replace(/<[^>]*>/g, "filled-in"));
    const stateDir = temporaryDirectory("documentation-config");
    const whole = filled.plugins ? filled : { plugins: { entries: { [PLUGIN]: { config: filled } } } };
    writeFileSync(path.join(stateDir, "openclaw.json"), JSON.stringify(whole));
    await assert.doesNotReject(resolveTarget({ stateDir, env: { HOME: stateDir, MY_B2_KEY: "K004" } }), at);
  }
  assert.ok(!validate({ keyid: "K" }), "the schema is strict");
});

test("docs/configuration.md has every field with its type, and every variable", () => {
  const { configSchema } = readJson("openclaw.plugin.json");
  const typeOf = ({ type, enum: choices, items }) => {
    if (choices) return choices.map((choice) => `\`${choice}\``).join(" or ");
    if (Array.isArray(type)) return "string or secret";
    return type === "array" ? `array of ${items.type}s` : type;
  };
  const fields = Object.entries(configSchema.properties).flatMap(([name, schema]) => {
    const inner = schema.type === "object" ? Object.entries(schema.properties) : [];
    return [[name, schema], ...inner.map(([key, value]) => [`${name}.${key}`, value])];
  });
  const rows = rowsOf("docs/configuration.md", "field", "type", "default", "meaning");
  const documented = rows.map(([name, type]) => [name.replaceAll("`", ""), type]);
  assert.deepEqual(documented.sort(), fields.map(([name, schema]) => [name, typeOf(schema)]).sort());
  for (const [name, { default: value }] of fields.filter(([, schema]) => "default" in schema)) {
    const row = rows.find(([field]) => field === `\`${name}\``);
    assert.equal(row?.[2], `\`${value}\``, name);
  }
  assert.ok(rows.every((row) => row.length === 4 && row[3].length > 5));

  const variables = rowsOf("docs/configuration.md", "variable", "field").map((row) =>
    row.map((cell) => cell.slice(1, -1)),
  );
  const env = Object.fromEntries(variables.map(([variable, field]) => [variable, `value of ${field}`]));
  const { target } = sourceOf({ settings: {}, stateDir: "/s", env });
  const { stateDir: _, ...taken } = target;
  assert.deepEqual(taken, Object.fromEntries(variables.map(([, field]) => [field, `value of ${field}`])));
});

test("docs/command-line.md has every verb, option and exit code as the help does", () => {
  const page = "docs/command-line.md";
  const helps = Object.entries(VERBS).map(([verb]) => [verb, help(PLUGIN, verb)]);
  const usages = helps.map(([, text]) => /^Usage: openclaw-b2-backup (.*)$/m.exec(text)?.[1]);
  assert.deepEqual(
    rowsOf(page, "verb").map(([usage]) => usage.slice(1, -1)),
    usages,
  );
  /** @type {Map<string, string[]>} */
  const options = new Map();
  for (const [verb, text] of helps) {
    for (const [, option] of text.matchAll(/^ {2}((?:-\w, )?--\S+(?: <[^>]+>)?) {2,}/gm)) {
      options.set(option, [...(options.get(option) ?? []), verb]);
    }
  }
  const rows = rowsOf(page, "option", "of").map(([option, of]) => [option.replaceAll("`", ""), of.replaceAll("`", "")]);
  const ofAll = (verbs) => (verbs.length === helps.length ? "all" : verbs.join(", "));
  // A verb that requires an option and one that does not are the same row.
  assert.deepEqual(rows.sort(), [...options].map(([option, verbs]) => [option, ofAll(verbs)]).sort());
  const codes = rowsOf(page, "exit code").map(([code]) => code);
  const said = /Exit codes: (.*)\./.exec(help(PLUGIN))?.[1] ?? "";
  assert.deepEqual(codes, said.match(/\d+/g));
});

test("every link leads somewhere", () => {
  // As GitHub makes them.
  const anchorOf = (heading) =>
    heading
      .replace(/\[([^\]]*)\]\([^)]*\)/g, "$1")
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, "")
      .replaceAll(" ", "-");
  const anchors = (name) => [...proseOf(name).matchAll(/^#+ (.*)$/gm)].map(([, heading]) => anchorOf(heading));
  const pointedTo = new Set(["README.md", "CONTRIBUTING.md"]);
  for (const name of PAGES) {
    for (const [, target] of proseOf(name).matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^https?:/.test(target)) continue;
      const [file, anchor] = target.split("#");
      const page = file ? path.join(path.dirname(name), file) : name;
      assert.ok(existsSync(inProject(page)), `${name}: ${target}`);
      if (page !== name) pointedTo.add(page);
      if (anchor !== undefined) assert.ok(anchors(page).includes(anchor), `${name}: ${target}`);
    }
  }
  assert.deepEqual(
    PAGES.filter((name) => !pointedTo.has(name)),
    [],
    "pages that nothing leads to",
  );
});
