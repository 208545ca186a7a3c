// The command line around the native functions: what it understands, prints, asks and exits with. Where only the results of
// those functions matter, `main` is handed others; what the real ones do is tested in errors.test.mjs and gateway.test.mjs.

import assert from "node:assert/strict";
import { once } from "node:events";
import { spawn } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import net from "node:net";
import path from "node:path";
import { PassThrough } from "node:stream";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import { main } from "../js/cli.js";
import { showProgress } from "../js/terminal.js";
import { duration, oneLine, size } from "../js/text.js";
import { cliPath, mustFail, runCli, writeConfig } from "./support/cli.mjs";
import { run, start, temporaryDirectory, waitFor } from "./support/processes.mjs";
import { projectDir } from "./support/tools.mjs";

const KEY = "application-key-that-is-never-shown";
const KEY_VERBS = ["key list", "key add", "key remove", "key rotate", "key recovery-code"];
const VERBS = ["push", "list", "pull", "rollback", "diff", "verify", "drill", "prune", "status", ...KEY_VERBS];
const ID = "2026-02-19T00-00-00Z-7f3a";
const root = temporaryDirectory("cli");
const stateDir = path.join(root, "state");

let names = 0;
const configure = (config) => writeConfig(path.join(root, `config-${++names}`), config);

/** Runs the program as it is typed, without --json. */
const type = (args) => run(process.execPath, [cliPath, ...args], { env: { PATH: process.env.PATH, HOME: root } });

/**
 * Runs a command line in this process with `native` in the place of the addon; resolves to `{ code, stdout, stderr, calls }`.
 * `answer` is what a user types at a terminal; without it there is none.
 */
async function drive(args, native, { answer } = {}) {
  const calls = [];
  const record = (name, call) => [name, (...given) => (calls.push([name, ...given]), call(...given))];
  const functions = { resolveTarget: async () => ({ stateDir }), ...native };
  const output = () => Object.assign(new PassThrough(), { text: "", isTTY: answer !== undefined });
  const [stdin, stdout, stderr] = [output(), output(), output()];
  for (const stream of [stdout, stderr]) stream.on("data", (chunk) => (stream.text += chunk));
  const asked = () =>
    stderr.text.includes("[y/N]") && (stderr.off("data", asked), setImmediate(() => stdin.end(answer)));
  stderr.on("data", asked);
  const fakes = Object.fromEntries(Object.entries(functions).map(([name, call]) => record(name, call)));
  const code = await main(args, { program: "openclaw-b2-backup", native: fakes, stdin, stdout, stderr });
  await new Promise(setImmediate); // What was written last reaches its listener.
  return { code, stdout: stdout.text, stderr: stderr.text, calls };
}

const failing = (error) => async () => Promise.reject(error);
const PLAN = {
  ...{ snapshot: ID, safetySnapshot: null, restored: ["workspace/SOUL.md"], deleted: ["workspace/new.md"] },
  ...{ unchanged: 7, bytes: 1234, restartRequired: true, warnings: ["note.md was kept"] },
};

test("help names every verb, and each verb's options", async () => {
  const { code, stdout, stderr } = await type(["--help"]);
  assert.deepEqual([code, stderr], [0, ""]);
  for (const verb of VERBS) {
    assert.match(stdout, new RegExp(`^  ${verb} `, "m"));
    const help = await drive([...verb.split(" "), "--help"], {});
    assert.equal(help.code, 0);
    assert.match(help.stdout, new RegExp(`^Usage: openclaw-b2-backup ${verb}`));
    assert.match(help.stdout, /--state-dir <dir>/);
    assert.ok(help.stdout.split("\n").every((line) => line.length <= 120));
  }
});

test("--version is that of the package", async () => {
  const { version } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8"));
  assert.equal((await type(["--version"])).stdout, `${version}\n`);
  assert.deepEqual(JSON.parse((await drive(["--version", "--json"], {})).stdout), { ok: true, version });
});

test("a command line that cannot be understood is a usage error that says what is wrong", async (t) => {
  const mistakes = [
    [[], /a verb is missing/],
    [["bakcup"], /no verb "bakcup"; the verbs are push, list/],
    [["--", "--json"], /no verb/],
    [["push", "--fast"], /unknown option '--fast'/],
    [["push", `--application-key=${KEY}`], /unknown option '--application-key'/],
    [["push", "--trigger"], /--trigger.* missing/],
    [["push", "--trigger", "whenever"], /--trigger takes one of schedule, catch_up/],
    [["push", "--trigger", "before_rollback"], /--trigger takes one of/],
    [["push", "extra"], /does not take "extra"/],
    [["list", "--json=yes"], /--json/],
    [["list", "--plan"], /unknown option '--plan'/],
    [["list", "--state-dir", ""], /--state-dir is empty/],
    [["list", "--config=a", "--config=b"], /--config is given twice/],
    [["pull", "--target", root], /needs --snapshot/],
    [["pull", "--snapshot", "latest"], /needs --target/],
    [["pull", "--snapshot", "--target", root], /--snapshot/],
    [["rollback", "--yes"], /needs --snapshot/],
    [["rollback", "--snapshot", "10", "minutes", "ago", "--yes"], /does not take "minutes".*quotes/],
    [["rollback", "--snapshot", "latest"], /needs --yes, or --plan/],
    [["diff"], /needs a snapshot/],
    [["diff", ""], /needs a snapshot/],
    [["diff", "a", "b", "c"], /does not take "c"/],
    [["key"], /key needs an action: key list, key add/],
    [["key", "change"], /key needs an action/],
    [["key", "list", "extra"], /does not take "extra"/],
    [["key", "remove"], /key remove needs a slot: key remove <slot>\.\.\./],
    [["key", "add", `--passphrase=${KEY}`], /--passphrase/],
    [["key", "add", `--recovery-code=${KEY}`], /--recovery-code/],
    [["key", "add", "--old-application-key", KEY], /unknown option '--old-application-key'/],
  ];
  for (const [args, message] of mistakes) {
    await t.test(args.join(" ") || "nothing", async () => {
      const people = await drive(args, {});
      assert.deepEqual([people.code, people.stdout, people.calls], [64, "", []]);
      assert.match(people.stderr, /^openclaw-b2-backup: [^\n]*; see openclaw-b2-backup --help\n$/);
      assert.match(people.stderr, message);
      const program = await drive(["--json", ...args], {});
      assert.deepEqual([program.code, program.stderr], [64, ""]);
      const { ok, code, message: said, ...rest } = JSON.parse(program.stdout);
      assert.deepEqual([ok, code, rest], [false, "USAGE", {}]);
      assert.match(said, message);
      assert.ok(!`${people.stderr}${program.stdout}`.includes(KEY));
    });
  }
});

test("the verb may stand behind options, and values may follow an equals sign", async () => {
  const listed = { list: async () => ({ snapshots: [], unreadable: [], warnings: [] }) };
  const { code, calls } = await drive(["--config", "a b", `--state-dir=${root}`, "list"], listed);
  assert.equal(code, 0);
  assert.deepEqual(calls[0], ["resolveTarget", { configPath: "a b", stateDir: root }]);
});

test("a wrong configuration exits 65, names the field and shows no secret", async () => {
  const file = { endpoint: `file://${root}/repository`, applicationKey: KEY };
  const wrong = {
    keepSnapshots: { ...file, keepSnapshots: 0 },
    aplicationKey: { endpoint: file.endpoint, aplicationKey: KEY },
    keyId: { applicationKey: KEY, bucket: "some-bucket" },
    applicationKey: { ...file, applicationKey: `${KEY} ` },
    "retention.daily": { ...file, retention: { daily: KEY } },
  };
  for (const [field, config] of Object.entries(wrong)) {
    const given = { config: configure(config), stateDir };
    const { message, ...rest } = await mustFail("list", given, "CONFIG", { exitCode: 65, secrets: [KEY] });
    assert.ok(message.includes(field), message);
    assert.deepEqual(Object.keys(rest).sort(), ["code", "ms", "ok"]);
    const people = await type(["list", "--config", given.config, "--state-dir", stateDir]);
    assert.deepEqual([people.code, people.stdout], [65, ""]);
    assert.equal(people.stderr, `openclaw-b2-backup: ${message}\n`);
  }
  await mustFail("list", { config: path.join(root, "nowhere"), stateDir }, "CONFIG", { exitCode: 65 });
});

test("a failure is one line for people, and its code and message for programs", async () => {
  const error = Object.assign(new Error("no such snapshot:\n  1999"), {
    code: "NOT_FOUND",
    retryable: false,
    context: {},
  });
  const people = await drive(["list"], { list: failing(error) });
  assert.deepEqual([people.code, people.stdout], [1, ""]);
  assert.equal(people.stderr, "openclaw-b2-backup: no such snapshot: 1999\n");
  const { code, stdout, stderr } = await drive(["list", "--json"], { list: failing(error) });
  assert.deepEqual([code, stderr], [1, ""]);
  assert.equal(stdout, `${JSON.stringify({ ok: false, code: "NOT_FOUND", message: error.message })}\n`);
});

test("what is no failure of the contract is shown as a defect, whatever was thrown", async () => {
  for (const thrown of [new TypeError("x is not a function"), { nested: {} }, "text", null, undefined, 7]) {
    const { code, stdout } = await drive(["list", "--json"], { list: failing(thrown) });
    const report = JSON.parse(stdout);
    assert.deepEqual([code, report.ok, report.code], [1, false, "IO"]);
    assert.match(report.message, /defect/);
    assert.doesNotMatch(report.message, /\[object|undefined/);
  }
});

test("with --json the result is the native one, in one line", async () => {
  const exceptions = [{ path: "a", reason: "unreadable" }];
  const counts = { files: 3, bytes: 10, changedFiles: 1, uploadedBytes: 5, requests: 2, durationMs: 4 };
  const report = { snapshot: null, unchanged: true, trigger: "schedule", ...counts, exceptions, warnings: ["w"] };
  const { code, stdout, stderr, calls } = await drive(["push", "--json", "--trigger", "schedule"], {
    push: async (_target, _options, onProgress) => {
      onProgress({ phase: "scan", filesDone: 0, filesTotal: 1, bytesDone: 0, bytesTotal: 1, transferredBytes: 0 });
      return report;
    },
  });
  assert.deepEqual([code, stderr], [0, ""]);
  assert.equal(stdout, `${JSON.stringify({ ok: true, ...report })}\n`);
  assert.deepEqual(calls[1].slice(0, 2), ["push", { stateDir }]);
  assert.equal(calls[1][2].trigger, "schedule");
  assert.ok(calls[1][2].signal instanceof AbortSignal);
});

test("every verb hands its options to its function", async () => {
  const listed = { snapshot: ID, files: 1, bytes: 1, exceptions: [] };
  const options = async (args, native) => {
    const { calls, code } = await drive(args, native);
    assert.equal(code, 0);
    const { signal, ...rest } = calls[1][2];
    assert.ok(signal instanceof AbortSignal);
    return rest;
  };
  const where = ["--snapshot", "10 minutes ago", "--path", "a/**", "--path", "b"];
  assert.deepEqual(await options(["pull", ...where, "--target", "x"], { pull: async () => listed }), {
    ...{ snapshot: "10 minutes ago", directory: path.resolve("x"), paths: ["a/**", "b"], partial: undefined },
  });
  const rollback = { rollback: async () => PLAN };
  assert.deepEqual(await options(["rollback", ...where, "--yes"], rollback), {
    ...{ snapshot: "10 minutes ago", paths: ["a/**", "b"], planOnly: undefined, partial: undefined },
  });
  assert.equal((await options(["rollback", ...where, "--yes", "--plan"], rollback)).planOnly, true);
  const diff = { diff: async () => ({ from: ID, to: null, changes: [] }) };
  assert.deepEqual(await options(["diff", "a b"], diff), { from: "a b", to: undefined });
  assert.deepEqual(await options(["diff", "a", "b"], diff), { from: "a", to: "b" });
  const imported = { importLegacy: async () => ({ imported: [], present: 0, skipped: [] }) };
  assert.deepEqual(await options(["import-legacy", "--accept-plain"], imported), { acceptPlain: true });
  const sound = { snapshots: 1, packs: 1, chunks: 1, readBytes: 0, problems: [] };
  const verified = (...args) => options(["verify", ...args], { verify: async () => sound });
  assert.deepEqual(await verified("--read-data"), { readData: 100 });
  assert.deepEqual(await verified("--read-data=7%"), { readData: 7 });
  assert.deepEqual(await verified("--read-data=7"), { readData: 7 });
  assert.deepEqual(await verified(), { readData: undefined });
  const drilled = { snapshot: ID, files: 1, bytes: 2, databases: 0, problems: [], skipped: null };
  assert.deepEqual(await options(["drill"], { drill: async () => drilled }), { snapshot: undefined });
  const nothing = { shrunk: null, lockedObjects: 0, leftToAnotherKey: false, hiddenForDays: null };
  const pruned = { ...nothing, removedSnapshots: [], condemnedPacks: 0, deletedPacks: 0, freedBytes: 0 };
  const prune = (...args) => options(["prune", ...args], { prune: async () => pruned });
  assert.deepEqual(await prune("--accept-shrink"), { acceptShrink: true, allMachines: undefined });
  assert.deepEqual(await prune("--all-machines"), { acceptShrink: undefined, allMachines: true });
});

test("people see tables, sizes and what is missing", async () => {
  const regular = { id: ID, createdAt: "2026-02-19T00:00:00.123Z", kind: "regular", trigger: "manual" };
  const snapshots = [
    { ...regular, host: "a-long-host-name", files: 1234, bytes: 298_100_000, complete: true, exceptions: 0 },
    { ...regular, id: `safety-${ID}`, kind: "safety", host: "b", files: 1, bytes: 7, complete: false, exceptions: 2 },
  ];
  snapshots[1].firstExceptions = [{ path: "workspace/fifo", reason: "it is neither a file nor a directory" }];
  const unreadable = [{ path: "broken", reason: "damaged" }];
  const { stdout, stderr } = await drive(["list"], {
    list: async () => ({ snapshots, unreadable, warnings: ["x is missing"] }),
  });
  const [head, ...rows] = stdout.trimEnd().split("\n");
  assert.match(head, /^ID +CREATED \(UTC\) +KIND +TRIGGER +HOST +FILES +SIZE +COMPLETE$/);
  assert.match(rows[0], /2026-02-19 00:00:00  regular .* 1,234  298\.1 MB  yes$/);
  assert.match(rows[1], / safety .*  no, 2 left out$/);
  for (const row of rows) assert.equal(row.indexOf("2026-02-19 "), head.indexOf("CREATED"));
  assert.match(stderr, /warning: snapshot broken cannot be read: damaged\nwarning: x is missing/);
  assert.match(
    stderr,
    /^not in safety-\S+: workspace\/fifo: it is neither a file nor a directory\nnot in \S+: 1 more$/m,
  );

  const status = { location: "file:///r", encrypted: true, snapshots: 0, latest: null, storedBytes: 0, objects: 0 };
  const rest = {
    warnings: [],
    cost: null,
    leftOut: [],
    hiddenBytes: 0,
    hiddenVersions: 0,
    deletion: "for_good",
    hiddenForDays: null,
  };
  const shown = await drive(["status"], { status: async () => ({ ...status, ...rest }) });
  assert.match(shown.stdout, /^repository  file:\/\/\/r$/m);
  assert.match(shown.stdout, /^latest      none$/m);
  const withOld = await drive(["status"], { status: async () => ({ ...status, ...rest, legacySnapshots: 3 }) });
  assert.match(withOld.stdout, /^of 0\.1\.x +3, see import-legacy$/m);
  const old = "2026-01-01T00-00-00Z";
  const report = {
    imported: [{ from: old, snapshot: ID }],
    present: 2,
    skipped: [{ path: "other", reason: "damaged" }],
  };
  const importing = await drive(["import-legacy"], { importLegacy: async () => report });
  assert.equal(importing.stdout, `1 snapshot of 0.1.x imported; 2 imported before\n  ${old} as ${ID}\n`);
  assert.match(importing.stderr, /^not imported: other: damaged$/m);
  const pruned = { removedSnapshots: [ID], condemnedPacks: 1, deletedPacks: 2, freedBytes: 3000 };
  const prune = (more) => drive(["prune"], { prune: async () => ({ ...pruned, ...more }) });
  const own = { lockedObjects: 0, leftToAnotherKey: false, hiddenForDays: null };
  assert.match((await prune(own)).stdout, /1 snapshot removed; 2 packs .*3\.0 kB/);
  assert.match((await prune({ ...own, leftToAnotherKey: true })).stdout, /leaves pruning to a key that may/);
  const held = await prune({ ...own, lockedObjects: 3, hiddenForDays: 7 });
  assert.match(held.stderr, /deletes it 7 days later\n.*still keeps 3 objects/);
});

test("people see what a month costs", async () => {
  const calls = { perMonth: 90.4, freePerMonth: 75_000, usd: 0 };
  const measured = { measuredPushes: 30, classB: { ...calls, perMonth: 0 }, classC: calls };
  const cost = {
    service: "B2",
    pricesDate: "2026-09-07",
    pricesSource: "https://b2",
    billedBytes: 110e9,
    freeBytes: 10e9,
  };
  const status = {
    location: "s3",
    encrypted: true,
    snapshots: 0,
    latest: null,
    storedBytes: 0,
    objects: 0,
    leftOut: [],
  };
  const hidden = {
    hiddenBytes: 3000,
    hiddenVersions: 2,
    deletion: "by_lifecycle",
    hiddenForDays: 7,
    warnings: ["look"],
  };
  let asked;
  const run = (more) => {
    const report = {
      ...status,
      ...hidden,
      cost: { ...cost, ...more, storageUsd: 0.695, usd: 0.695, pushesPerMonth: 30 },
    };
    return drive(["status", "--cost"], { status: async (_target, options) => ((asked = options), report) });
  };
  const { stdout, stderr } = await run(measured);
  assert.ok(asked.pushesPerMonth >= 29 && asked.pushesPerMonth <= 30, "the schedule is daily");
  assert.match(stdout, /^hidden +3\.0 kB in 2 versions, also billed$/m);
  assert.match(stdout, /^deletion +hidden, and deleted 7 days later/m);
  assert.match(stdout, /^a month +\$0\.(69|70) \(B2, prices of 2026-09-07\)$/m);
  assert.match(stdout, /^class C +90 of 75,000 free: \$0\.00$/m);
  assert.match(stderr, /^warning: look$/m);
  assert.match((await run({ ...measured, measuredPushes: 0 })).stdout, /^class B +not measured yet/m);
});

test("a drill tells what it has shown, and fails when something did not come out", async () => {
  const report = { snapshot: ID, files: 2, bytes: 3000, databases: 1, problems: [], skipped: null };
  const good = await drive(["drill"], { drill: async () => report });
  assert.deepEqual([good.code, good.stderr], [0, ""]);
  assert.match(good.stdout, /2 files, 3\.0 kB, came out as they were stored; 1 database checked/);
  const bad = await drive(["drill"], { drill: async () => ({ ...report, problems: ["workspace/a: damaged"] }) });
  assert.equal(bad.code, 1);
  assert.match(bad.stdout, /^workspace\/a: damaged$/m);
  const skipped = await drive(["drill"], { drill: async () => ({ ...report, skipped: "it takes 3 bytes" }) });
  assert.deepEqual([skipped.code, skipped.stdout], [0, "no drill: it takes 3 bytes\n"]);
});

test("a state that has shrunk prunes nothing, and says what to do", async () => {
  const shrunk = { snapshot: ID, filesBefore: 1200, files: 3, bytesBefore: 5_000_000, bytes: 40 };
  const counts = { removedSnapshots: [], condemnedPacks: 0, deletedPacks: 0, freedBytes: 0 };
  const nothing = { ...counts, lockedObjects: 0, leftToAnotherKey: false, hiddenForDays: null };
  const { stdout, stderr } = await drive(["prune"], { prune: async () => ({ shrunk, ...nothing }) });
  assert.equal(stdout, "nothing was pruned\n");
  assert.match(stderr, /holds 3 files, 40 B, and \S+ holds 1,200, 5\.0 MB: .* prune --accept-shrink/);
  // With --all-machines one machine is left alone, and the snapshots of another are removed.
  const some = { ...nothing, removedSnapshots: ["old"] };
  const other = await drive(["prune", "--all-machines"], { prune: async () => ({ shrunk, ...some }) });
  assert.match(other.stdout, /^1 snapshot removed;/);
  assert.match(other.stderr, /holds 3 files, 40 B, and \S+ holds 1,200, 5\.0 MB: /);
});

test("a part to be read is a number of percent", async () => {
  for (const value of ["x", "1.5%", "", "-1"]) {
    const { code } = await drive(["verify", `--read-data=${value}`], { verify: async () => assert.fail("asked") });
    assert.equal(code, 64, value);
  }
});

test("verify fails when there are problems, and lists them", async () => {
  const report = { snapshots: 1, packs: 1, chunks: 1, readBytes: 0, problems: ["packs/ab/x is missing"] };
  const verify = async () => report;
  const people = await drive(["verify"], { verify });
  assert.equal(people.code, 1);
  assert.match(people.stdout, /^packs\/ab\/x is missing$/m);
  assert.match(people.stderr, /^openclaw-b2-backup: problems found in the repository: 1\n$/);
  const { code, stdout } = await drive(["verify", "--json"], { verify });
  const { ok, code: name, message, ...rest } = JSON.parse(stdout);
  assert.deepEqual([code, ok, name, typeof message, rest], [1, false, "CORRUPT", "string", report]);
});

test("names cannot speak to the terminal", async () => {
  const changes = [{ path: "a\u001b]0;title\u0007\nremoved  /\u202etxt", kind: "added" }];
  const { stdout } = await drive(["diff", "latest"], { diff: async () => ({ from: ID, to: null, changes }) });
  assert.doesNotMatch(stdout, /[^\n\P{Cc}]|\u202e/u);
  assert.equal(stdout.split("\n").length, 3);
  assert.equal(oneLine("a\tb"), "a\\u{9}b");
});

test("rollback asks at a terminal, and does what the plan said", async (t) => {
  const native = {
    rollback: async (_target, { planOnly }) => (planOnly ? PLAN : { ...PLAN, safetySnapshot: `safety-${ID}` }),
  };
  const args = ["rollback", "--snapshot", "10 minutes ago"];
  const asked = ({ calls }) => calls.slice(1).map(([, , { snapshot, planOnly }]) => [snapshot, planOnly]);
  await t.test("yes", async () => {
    const result = await drive(args, native, { answer: "yes\n" });
    assert.equal(result.code, 0, result.stderr);
    assert.deepEqual(asked(result), [
      ["10 minutes ago", true],
      [ID, undefined],
    ]);
    for (const part of ["1 path (1.2 kB)", "  workspace/SOUL.md", "would delete 1 path", "  workspace/new.md"]) {
      assert.ok(result.stderr.includes(part), result.stderr);
    }
    assert.match(result.stdout, new RegExp(`^rolled back to ${ID}.*\nthe state before is kept as safety-${ID}\n$`));
    assert.match(result.stderr, /must be restarted/);
    assert.equal(result.stderr.match(/^warning: note\.md was kept$/gm)?.length, 2, result.stderr);
  });
  for (const answer of ["n\n", "\n", "", "yesterday\n"]) {
    await t.test(`${JSON.stringify(answer)} is a no`, async () => {
      const result = await drive(args, native, { answer });
      assert.equal(result.code, 1);
      assert.deepEqual(asked(result), [["10 minutes ago", true]]);
      assert.match(result.stderr, /\nopenclaw-b2-backup: nothing was changed\n$/);
    });
  }
  await t.test("nothing to change, nothing to ask", async () => {
    const same = { ...PLAN, restored: [], deleted: [] };
    const result = await drive(args, { rollback: async () => same }, { answer: "" });
    assert.deepEqual([result.code, result.calls.length], [0, 2]);
    assert.match(result.stdout, /already is as in/);
  });
  await t.test("with --json nobody is asked", async () => {
    assert.equal((await drive([...args, "--json"], native, { answer: "yes\n" })).code, 64);
  });
});

/** What `showProgress` writes for events at these times; the clock is the test's. */
function drawn(stream, events) {
  let at = 0;
  const writes = [];
  const progress = showProgress({ ...stream, write: (text) => writes.push(text) }, () => at);
  for (const [time, phase, bytesDone] of events) {
    at = time;
    progress.update({ phase, filesDone: 1, filesTotal: 9, bytesDone, bytesTotal: 60e6, transferredBytes: 0 });
  }
  progress.end();
  progress.update({ phase: "apply", filesDone: 1, filesTotal: 9, bytesDone: 1, bytesTotal: 1, transferredBytes: 0 });
  return writes;
}

test("progress on a terminal is one line with rate and time left, drawn at most ten times a second", () => {
  const events = Array.from({ length: 300 }, (_, i) => [i * 10, "upload", i * 1e5]);
  const writes = drawn({ isTTY: true, columns: 100 }, events);
  assert.ok(writes.length <= 32 && writes.length >= 28, `${writes.length} writes in 3 seconds`);
  assert.ok(writes.every((text) => text.startsWith("\r") && !text.includes("\n")));
  assert.match(writes.at(-2), /^\ruploading  48%  29\.0 MB of 60\.0 MB  10\.0 MB\/s  3\.1 s left *$/);
  assert.match(writes.at(-1), /^\r +\r$/);
  for (const text of drawn({ isTTY: true, columns: 20 }, events)) assert.ok(text.replaceAll("\r", "").length < 20);
});

test("progress elsewhere is one line at the start of each phase", () => {
  const events = [
    [0, "scan", 0],
    [1, "scan", 1],
    [2, "upload", 2],
    [3, "scan", 3],
    [4, "upload", 4],
  ];
  assert.deepEqual(drawn({ isTTY: false }, events), ["scanning\n", "uploading\n"]);
});

test("sizes and durations are rounded in their own unit", () => {
  assert.deepEqual([0, 999, 1000, 12_345_678, 999_949, 999_950, 1e15].map(size), [
    ...["0 B", "999 B", "1.0 kB", "12.3 MB", "999.9 kB", "1.0 MB", "1.0 PB"],
  ]);
  assert.deepEqual([40, 9940, 9960, 59_499, 59_600, 185_000, 3_599_600, 7_800_000].map(duration), [
    ...["0.0 s", "9.9 s", "10 s", "59 s", "1 min 0 s", "3 min 5 s", "1 h 0 min", "2 h 10 min"],
  ]);
});

/**
 * A service that takes connections and never answers, so that an operation lasts until it is cancelled: its configuration, and
 * when the first connection has come.
 */
async function silentService(t) {
  const sockets = new Set();
  const server = net.createServer((socket) => sockets.add(socket.on("error", () => {})));
  const reached = once(server, "connection");
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => (sockets.forEach((socket) => socket.destroy()), server.close()));
  const endpoint = `http://127.0.0.1:${server.address().port}`;
  return { config: configure({ endpoint, keyId: "id", applicationKey: KEY, bucket: "some-bucket" }), reached };
}

for (const signal of ["SIGINT", "SIGTERM"]) {
  test(`${signal} cancels`, async (t) => {
    const { config, reached } = await silentService(t);
    const args = [cliPath, "verify", "--json", "--config", config, "--state-dir", stateDir];
    const started = start(process.execPath, args);
    await Promise.race([reached, started.exited]);
    started.child.kill(signal);
    assert.equal(await started.exited, 1, started.output());
    assert.equal(JSON.parse(started.output()).code, "CANCELLED");
  });
}

test("a second SIGINT ends at once", async () => {
  const source = `
    import { main } from ${JSON.stringify(pathToFileURL(path.join(projectDir, "js/cli.js")))};
    const { stdin, stdout, stderr } = process;
    const verify = () => new Promise((resolve) => { console.log("begun"); setTimeout(resolve, 60_000); });
    const native = { resolveTarget: async () => ({}), verify };
    process.exitCode = await main(["verify"], { program: "p", native, stdin, stdout, stderr });`;
  const started = start(process.execPath, ["--input-type=module", "--eval", source]);
  await waitFor("the beginning", () => started.output().includes("begun"));
  started.child.kill("SIGINT");
  await waitFor("the note", () => started.output().includes("cancelling"));
  started.child.kill("SIGINT");
  assert.equal(await started.exited, 130);
});

test("a closed pipe is no failure, a full disk is one", async (t) => {
  await t.test("closed", async () => {
    const child = spawn(process.execPath, [cliPath, "--help"], { stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.destroy();
    let stderr = "";
    child.stderr.on("data", (chunk) => (stderr += chunk));
    const [code] = await once(child, "close");
    assert.deepEqual([code, stderr], [0, ""]);
  });
  await t.test("full", { skip: process.platform !== "linux" }, async () => {
    const { code, stderr } = await run("sh", ["-c", 'exec "$0" "$1" --help > /dev/full', process.execPath, cliPath]);
    assert.equal(code, 1);
    assert.match(stderr, /^openclaw-b2-backup: cannot write the result: ENOSPC[^\n]*\n$/);
  });
});

test("secrets from the environment are not shown, also when the environment is wrong", async () => {
  const env = {
    HOME: root,
    B2_APPLICATION_KEY_ID: "id",
    B2_APPLICATION_KEY: `${KEY}\n`,
    B2_BUCKET_NAME: KEY.slice(0, 2),
  };
  const { code, stdout, stderr } = await runCli("status", { env });
  assert.equal(code, 65, stdout);
  assert.ok(!`${stdout}${stderr}`.includes(KEY), stdout);
});

test("a file that holds no configuration is an error without its text", async () => {
  const config = path.join(root, "malformed");
  writeFileSync(config, `{ "applicationKey": "${KEY}", `);
  await mustFail("list", { config, stateDir }, "CONFIG", { exitCode: 65, secrets: [KEY] });
});
