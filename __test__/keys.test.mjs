// The key verbs as they are typed: where secrets come from and where they do not show, and what a user does who has replaced
// the application key, lost a machine, or no longer trusts a secret. What a slot is, is tested in Rust.

import assert from "node:assert/strict";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";

import { main } from "../js/cli.js";
import { mustFail, mustRun, runCli, writeConfig } from "./support/cli.mjs";
import { temporaryDirectory } from "./support/processes.mjs";
import { OTHER_CREDENTIALS, startSeaweed } from "./support/seaweed.mjs";
import { readTree } from "./support/tree.mjs";

const OLD = "K005-the-application-key-of-before";
const NEW = "K005-the-application-key-of-now";
const PASSPHRASE = "sommer regen wolke tisch ";
const WEAK = "sunshine99";
const SECRETS = [OLD, NEW, PASSPHRASE.trim(), WEAK];
const root = temporaryDirectory("keys");

let names = 0;
const fresh = (name) => path.join(root, `${name}-${++names}`);

/** A repository with one snapshot, made with the old application key. */
async function makeRepository(t) {
  const [stateDir, directory] = [temporaryDirectory("keys-state"), fresh("repository")];
  writeFileSync(path.join(stateDir, "openclaw.json"), "{}");
  const configure = (fields) =>
    writeConfig(fresh("config"), { endpoint: `file://${directory}`, keyId: "K", ...fields });
  const [before, after] = [{ applicationKey: OLD }, { applicationKey: NEW }].map(configure);
  await mustRun("push", { config: before, stateDir });
  const expected = readTree(stateDir, (entry) => entry === "b2-backup");
  /** Restores on a machine that has nothing else. */
  const restore = async (options) => {
    const to = fresh("restored");
    const args = ["--snapshot", "latest", "--target", to, ...(options.args ?? [])];
    await mustRun("pull", { stateDir: fresh("no-state"), ...options, args });
    assert.deepEqual(readTree(to), expected);
  };
  const kinds = async (config = before) =>
    (await mustRun("key list", { config, stateDir })).slots.map((slot) => slot.kind).sort();
  t.after(() => {
    // No secret is ever stored.
    const stored = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
    for (const { parentPath, name } of stored) {
      const bytes = readFileSync(path.join(parentPath, name)).toString("latin1");
      assert.ok(!SECRETS.some((secret) => bytes.includes(secret)));
    }
  });
  return { stateDir, directory, configure, before, after, restore, kinds };
}

/** Runs a command line in this process at a terminal, on which `answers` are typed to the questions in turn. */
async function atTerminal(args, answers) {
  const stream = () => Object.assign(new PassThrough(), { text: "", isTTY: true });
  const [stdin, stdout, stderr] = [stream(), stream(), stream()];
  for (const output of [stdout, stderr]) output.on("data", (chunk) => (output.text += chunk));
  const left = [...answers];
  stderr.on("data", (chunk) => {
    if (/: $/.test(String(chunk)))
      setImmediate(() => (left.length > 0 ? stdin.write(`${left.shift()}\r`) : stdin.end()));
  });
  const native = await import("../js/native.js");
  const code = await main(args, { program: "openclaw-b2-backup", native, stdin, stdout, stderr });
  await new Promise(setImmediate);
  for (const secret of SECRETS) assert.ok(!`${stdout.text}${stderr.text}`.includes(secret), stderr.text);
  return { code, stdout: stdout.text, stderr: stderr.text };
}

test("after the application key was replaced, the error says what to do, and with the old one it is one command", async (t) => {
  const { stateDir, after, restore, kinds } = await makeRepository(t);
  const { message } = await mustFail("push", { config: after, stateDir }, "WRONG_KEY", { secrets: SECRETS });
  assert.match(message, /`key add --old-application-key-env <its name>`/);
  const args = ["--old-application-key-env", "OLD_KEY"];
  const unset = await mustFail("key add", { config: after, stateDir, args }, "CONFIG", { exitCode: 65 });
  assert.match(unset.message, /OLD_KEY is not set/);
  const { added } = await mustRun("key add", { config: after, stateDir, args, env: { OLD_KEY: OLD } });
  assert.deepEqual(
    added.map((slot) => slot.kind),
    ["application-key"],
  );
  await mustRun("push", { config: after, stateDir });
  await restore({ config: after });
  assert.deepEqual(await kinds(after), ["application-key", "application-key"]);
});

test("a new machine restores with the recovery code: typed, from standard input, from the environment, configured", async (t) => {
  const { stateDir, configure, before, after, restore, kinds } = await makeRepository(t);
  const printed = await runCli("key recovery-code", { config: before, stateDir });
  const { ok, recoveryCode, added, earlier } = printed.report;
  assert.deepEqual([ok, added.length, earlier.length, printed.stderr], [true, 1, 0, ""]);
  assert.match(recoveryCode, /^([0-9A-HJKMNP-TV-Z]{5}-){6}[0-9A-HJKMNP-TV-Z]{5}$/);

  const typed = recoveryCode.toLowerCase().replaceAll("-", " ").replaceAll("0", "O");
  await restore({ config: after, args: ["--recovery-code"], input: `${typed}\n` });
  await restore({ config: after, env: { OPENCLAW_B2_RECOVERY_CODE: typed } });
  await restore({ config: configure({ recoveryCode }) });
  const asked = await atTerminal(
    ["key", "list", "--recovery-code", "--config", after, "--state-dir", stateDir],
    [typed],
  );
  assert.equal(asked.code, 0, asked.stderr);
  assert.match(asked.stdout, /recovery-code .* yes +yes/);
  assert.ok(!asked.stderr.includes(typed));

  const [first] = recoveryCode;
  const mistyped = (first === "7" ? "8" : "7") + recoveryCode.slice(1);
  const options = { config: after, stateDir, env: { OPENCLAW_B2_RECOVERY_CODE: mistyped } };
  const { message } = await mustFail("list", options, "CONFIG", {
    exitCode: 65,
    secrets: [mistyped, mistyped.slice(6)],
  });
  assert.match(message, /recoveryCode: has a typing error in group 1/);
  // A push with it makes the slot of the new application key.
  await mustRun("push", { config: after, stateDir, env: { OPENCLAW_B2_RECOVERY_CODE: typed } });
  assert.deepEqual(await kinds(after), ["application-key", "application-key", "recovery-code"]);
  await restore({ config: after });
});

test("a passphrase comes from the terminal, standard input, a file or a variable, and opens to the last space", async (t) => {
  const { stateDir, configure, before, restore, kinds } = await makeRepository(t);
  const file = fresh("passphrase");
  writeFileSync(file, `${PASSPHRASE}\n`);
  const remove = async () => {
    const { slots } = await mustRun("key list", { config: before, stateDir });
    const { id } = slots.find((slot) => slot.kind === "passphrase");
    assert.deepEqual((await mustRun("key remove", { config: before, stateDir, args: [id.slice(0, 12)] })).removed, [
      id,
    ]);
  };
  const ways = [
    { args: ["--passphrase"], input: `${PASSPHRASE}\n` },
    { args: ["--passphrase-file", file] },
    { args: ["--passphrase-env", "NEW_PASSPHRASE"], env: { NEW_PASSPHRASE: PASSPHRASE } },
  ];
  for (const way of ways) {
    assert.equal((await mustRun("key add", { config: before, stateDir, ...way })).added.length, 1);
    await restore({ config: configure({ passphrase: PASSPHRASE }) });
    await restore({ config: configure({}), env: { OPENCLAW_B2_PASSPHRASE: PASSPHRASE } });
    await remove();
  }
  const command = ["key", "add", "--passphrase", "--config", before, "--state-dir", stateDir];
  const different = await atTerminal(command, [PASSPHRASE, `${PASSPHRASE}x`]);
  assert.deepEqual([different.code, different.stdout], [65, ""]);
  assert.match(different.stderr, /differs from what was typed first/);
  assert.equal((await atTerminal(command, [])).code, 1);
  assert.deepEqual(await kinds(), ["application-key"]);
  const typed = await atTerminal(command, [PASSPHRASE, PASSPHRASE]);
  assert.equal(typed.code, 0, typed.stderr);
  assert.match(typed.stdout, /^added: passphrase [0-9a-f]{12}\n$/);
  await restore({ config: configure({ passphrase: PASSPHRASE }) });
});

test("a weak passphrase is refused with the reason, and so is one given twice, or none", async (t) => {
  const { stateDir, before, kinds } = await makeRepository(t);
  const refused = (options) =>
    mustFail("key add", { config: before, stateDir, ...options }, ["CONFIG"], { exitCode: 65, secrets: SECRETS });
  const weak = await refused({ args: ["--passphrase"], input: WEAK });
  assert.match(weak.message, /^passphrase: is too weak: it would be found after about 10\^\d+ guesses/);
  assert.match((await refused({ args: ["--passphrase"], input: "\n" })).message, /nothing was given/);
  assert.match((await refused({ args: ["--passphrase-file", fresh("none")] })).message, /cannot read/);
  const args = ["--passphrase", "--passphrase-env", "P"];
  const options = { config: before, stateDir, args, env: { P: PASSPHRASE }, input: PASSPHRASE };
  await mustFail("key add", options, "USAGE", { exitCode: 64, secrets: SECRETS });
  assert.deepEqual(await kinds(), ["application-key"]);
});

test("the last slot stays, and after a rotation the list says what seals and what is left behind", async (t) => {
  const { stateDir, before, restore } = await makeRepository(t);
  const list = async () => (await mustRun("key list", { config: before, stateDir })).slots;
  const [{ id, masterKey, writing, opens }] = await list();
  assert.deepEqual([writing, opens], [true, true]);
  const last = await mustFail("key remove", { config: before, stateDir, args: [id] }, "CONFIG", { exitCode: 65 });
  assert.match(last.message, /last slot of its master key/);
  await mustFail("key remove", { config: before, stateDir, args: ["ffff"] }, "NOT_FOUND");
  await mustRun("key recovery-code", { config: before, stateDir });
  const rotated = await mustRun("key rotate", { config: before, stateDir });
  assert.notEqual(rotated.masterKey, masterKey);
  assert.deepEqual(
    rotated.leftBehind.map((slot) => slot.kind),
    ["recovery-code"],
  );
  const sealing = (await list()).filter((slot) => slot.writing);
  assert.deepEqual(
    sealing.map((slot) => [slot.masterKey, slot.kind]),
    [[rotated.masterKey, "application-key"]],
  );
  await restore({ config: before });
});

test("in a bucket, whose times are whole seconds: rotations in one second, another application key, a removal", async (t) => {
  const seaweed = await startSeaweed();
  t.after(() => seaweed.stop());
  await seaweed.createBucket("keys");
  const configure = (keyId, applicationKey) =>
    writeConfig(fresh("config"), { endpoint: seaweed.endpoint, bucket: "keys", keyId, applicationKey });
  const before = configure(seaweed.accessKey, seaweed.secretKey);
  const after = configure(OTHER_CREDENTIALS.accessKey, OTHER_CREDENTIALS.secretKey);
  const machines = [temporaryDirectory("keys-one"), temporaryDirectory("keys-two")];
  for (const stateDir of machines) writeFileSync(path.join(stateDir, "openclaw.json"), "{}");
  // Each may make a master key of its own; all of them stay readable.
  const [one, two] = await Promise.all(machines.map((stateDir) => mustRun("push", { config: before, stateDir })));
  const rotations = [];
  for (let i = 0; i < 3; i++) rotations.push(await mustRun("key rotate", { config: before, stateDir: machines[0] }));
  const { masterKey } = rotations.at(-1);
  const sealing = async (config, stateDir) =>
    new Set((await mustRun("key list", { config, stateDir })).slots.filter((s) => s.writing).map((s) => s.masterKey));
  for (const stateDir of [...machines, fresh("no-state")])
    assert.deepEqual(await sealing(before, stateDir), new Set([masterKey]));

  const { recoveryCode } = await mustRun("key recovery-code", { config: before, stateDir: machines[0] });
  await mustFail("push", { config: after, stateDir: machines[1] }, "WRONG_KEY");
  writeFileSync(path.join(machines[1], "changed"), "x");
  const env = { OPENCLAW_B2_RECOVERY_CODE: recoveryCode };
  const three = await mustRun("push", { config: after, stateDir: machines[1], env });
  const restore = async (config) => {
    for (const { snapshot } of [one, two, three]) {
      const args = ["--snapshot", snapshot, "--target", fresh("restored")];
      await mustRun("pull", { config, stateDir: fresh("no-state"), args });
    }
  };
  await restore(after);
  // The key of before opens nothing more once its slots are gone.
  const { slots } = await mustRun("key list", { config: before, stateDir: machines[0] });
  const old = slots.filter((slot) => slot.opens).map((slot) => slot.id);
  await mustRun("key remove", { config: after, stateDir: machines[1], args: old });
  await mustFail("list", { config: before, stateDir: machines[0] }, "WRONG_KEY");
  await restore(after);
});
