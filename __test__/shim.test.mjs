// The parts of the plugin that need no gateway: when a backup is due, how requests queue, what people read, and the worker.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setImmediate, setTimeout as sleep } from "node:timers/promises";
import { after, describe, mock, test } from "node:test";
import { pathToFileURL } from "node:url";

import { failure, runWorker } from "../js/plugin/child.js";
import { registerCommand } from "../js/plugin/command.js";
import { sourceOf } from "../js/plugin/config.js";
import { Engine, heldEngine, takeEngine } from "../js/plugin/engine.js";
import { registerHooks } from "../js/plugin/hooks.js";
import { IS_NEEDED, Launcher } from "../js/plugin/launcher.js";
import { mainSession, watchOutcomes } from "../js/plugin/notify.js";
import { dueAt, parseSchedule, startSchedule } from "../js/plugin/schedule.js";
import * as texts from "../js/plugin/texts.js";
import { registerTool } from "../js/plugin/tool.js";
import { projectDir } from "./support/tools.mjs";

const root = mkdtempSync(path.join(tmpdir(), "b2-shim-"));
after(() => rmSync(root, { recursive: true, force: true }));
let directories = 0;
const newState = () => path.join(root, `state-${++directories}`);

const HOUR = 3_600_000;
const at = (...parts) => new Date(...parts).getTime();

describe("the schedule", () => {
  test("daily is local midnight, weekly the one before Sunday", () => {
    assert.equal(parseSchedule("daily")(at(2026, 1, 19, 15, 30)), at(2026, 1, 20));
    assert.equal(parseSchedule("weekly")(at(2026, 1, 19, 15, 30)), at(2026, 1, 22));
  });

  test("a duration counts from the last backup, a cron expression is one", () => {
    const now = at(2026, 1, 19, 15, 30);
    assert.equal(parseSchedule("6h")(now), now + 6 * HOUR);
    assert.equal(parseSchedule("90m")(now), now + 1.5 * HOUR);
    assert.equal(parseSchedule("15 3 * * *")(now), at(2026, 1, 20, 3, 15));
    assert.equal(parseSchedule("@hourly")(now), at(2026, 1, 19, 16));
  });

  test("anything else is an error that names the field", () => {
    for (const text of ["sometimes", "0h", "61 * * * *", "0 0 31 2 *", ""]) {
      assert.throws(() => parseSchedule(text), { code: "CONFIG", message: /^schedule: ".*" is not a schedule; use / });
    }
  });

  test("a failure is tried again after a while that doubles, also that of a stop long before the next run", () => {
    const next = parseSchedule("daily");
    const lastSuccess = at(2026, 1, 18, 0, 0, 5);
    const failed = (failures) => ({ lastSuccess, lastFailure: at(2026, 1, 19, 0, 1), failures });
    const now = at(2026, 1, 19, 0, 2);
    assert.equal(dueAt(next, failed(1), now), at(2026, 1, 19, 0, 11));
    assert.equal(dueAt(next, failed(2), now), at(2026, 1, 19, 0, 21));
    assert.equal(dueAt(next, failed(20), now), at(2026, 1, 19, 6, 1));
    const { lastFailure } = failed(1);
    assert.equal(dueAt(next, { lastSuccess: lastFailure - 1, lastFailure, failures: 1 }, now), at(2026, 1, 19, 0, 11));
  });

  test("a clock that was ahead does not stop backups", () => {
    const now = at(2026, 1, 19, 12);
    assert.equal(dueAt(parseSchedule("daily"), { lastSuccess: at(2027, 0, 1) }, now), at(2026, 1, 20));
  });

  /** Runs a schedule on a clock of its own; resolves to the triggers with their times. */
  async function simulate({ schedule, start, until, history = {}, fails = () => false }) {
    mock.timers.enable({ apis: ["setTimeout", "Date"], now: start });
    const runs = [];
    try {
      const running = startSchedule({
        schedule,
        history: () => history,
        run: async (trigger) => {
          runs.push([trigger, Date.now()]);
          if (fails(runs.length)) {
            history = { ...history, lastFailure: Date.now(), failures: (history.failures ?? 0) + 1 };
            throw new Error("no network");
          }
          history = { lastSuccess: Date.now() };
        },
      });
      while (Date.now() < until) {
        mock.timers.tick(10_000);
        await setImmediate();
      }
      running.stop();
    } finally {
      mock.timers.reset();
    }
    return runs;
  }

  test("runs at its times, and the first time soon after the first start", async () => {
    const start = at(2026, 1, 19, 15);
    const runs = await simulate({ schedule: "daily", start, until: at(2026, 1, 21, 1) });
    assert.deepEqual(
      runs.map(([trigger]) => trigger),
      ["schedule", "schedule", "schedule"],
    );
    assert.ok(runs[0][1] - start < 60_000);
    for (const [index, day] of [20, 21].entries()) assert.ok(runs[index + 1][1] - at(2026, 1, day) < 20_000);
  });

  test("a run that was missed is made up for after the start", async () => {
    const start = at(2026, 1, 19, 15);
    const history = { lastSuccess: at(2026, 1, 17) };
    const runs = await simulate({ schedule: "daily", start, until: start + HOUR, history });
    assert.deepEqual(
      runs.map(([trigger]) => trigger),
      ["catch_up"],
    );
  });

  test("a run that failed is made up for", async () => {
    const start = at(2026, 1, 19, 23, 50);
    const history = { lastSuccess: at(2026, 1, 19) };
    const fails = (run) => run <= 2;
    const runs = await simulate({ schedule: "daily", start, until: at(2026, 1, 20, 6), history, fails });
    assert.deepEqual(
      runs.map(([trigger]) => trigger),
      ["schedule", "catch_up", "catch_up"],
    );
  });
});

/** An engine whose worker is a function; `calls` are what it was asked, `release()` lets the oldest finish. */
async function newEngine() {
  const calls = [];
  const waiting = [];
  const run = ({ verb, options }) => {
    calls.push([verb, options?.trigger].filter(Boolean).join(" "));
    return new Promise((resolve, reject) => waiting.push({ resolve, reject }));
  };
  const engine = new Engine({ stateDir: newState(), rootDir: projectDir, run });
  engine.configure({ target: {} });
  const settle = async (settler) => {
    for (const end = performance.now() + 10_000; waiting.length === 0; await setImmediate()) {
      assert.ok(performance.now() < end, "nothing more is asked of the worker");
    }
    settler(waiting.shift());
    await setImmediate();
  };
  const report = { snapshot: "id", files: 1, bytes: 2, restored: ["a"], deleted: [], warnings: [] };
  return {
    engine,
    calls,
    release: (more) => settle(({ resolve }) => resolve({ ...report, ...more })),
    fail: (error) => settle(({ reject }) => reject(error)),
  };
}

describe("the queue", () => {
  test("requests during a backup lead to exactly one more, with the trigger that matters most", async () => {
    const { engine, calls, release } = await newEngine();
    const first = engine.push("schedule");
    await setImmediate();
    const others = ["manual", "before_compaction", "catch_up"].map((trigger) => engine.push(trigger));
    assert.deepEqual(calls, ["push schedule"]);
    await release();
    await first;
    await release();
    await Promise.all(others);
    assert.deepEqual(calls, ["push schedule", "push before_compaction"]);
    assert.deepEqual(engine.record.facts.lastSuccess.triggers, ["manual", "before_compaction", "catch_up"]);
  });

  test("a backup that begins too late for a compaction says that it makes up for something", async () => {
    const { engine, calls, release } = await newEngine();
    const first = engine.push("schedule");
    await setImmediate();
    const late = engine.push("before_compaction", performance.now() + 5);
    await sleep(10);
    await release();
    await first;
    await setImmediate();
    const timely = engine.push("before_compaction", performance.now() + HOUR);
    await release();
    await late;
    await release();
    await timely;
    assert.deepEqual(calls, ["push schedule", "push catch_up", "push before_compaction"]);
  });

  test("what changes something waits for another process, for a minute at most, or until it is cancelled", async () => {
    const { engine, calls, release, fail } = await newEngine();
    const outcomes = [];
    engine.onOutcome = (error) => outcomes.push(error?.code ?? null);
    const locked = failure("LOCKED", "rollback (process 7) is working on this state directory", { retryable: true });
    const push = engine.push("schedule");
    await fail(locked);
    await release();
    assert.equal((await push).snapshot, "id");
    assert.deepEqual([calls, outcomes], [["push schedule", "push schedule"], [null]]);

    const cancelled = assert.rejects(engine.push("schedule"), { code: "CANCELLED" });
    await fail(locked);
    engine.cancel();
    await cancelled;
    assert.equal(calls.length, 3);

    const applied = engine.applyRollback();
    await fail(locked);
    await release();
    await applied;
    const inUse = assert.rejects(engine.applyRollback(), { code: "LOCKED" });
    await fail(failure("LOCKED", "somebody has the database open"));
    await inUse;

    mock.timers.enable({ apis: ["Date"], now: 0 });
    try {
      const refused = assert.rejects(engine.push("schedule"), locked);
      await setImmediate();
      mock.timers.tick(60_001);
      await fail(locked);
      await refused;
    } finally {
      mock.timers.reset();
    }
    assert.deepEqual(outcomes, [null, "LOCKED"]);
  });

  test("a backup and a rollback are never at once, looking is beside both", async () => {
    const { engine, calls, release } = await newEngine();
    const work = [engine.push("manual"), engine.change("prepareRollback", {}), engine.call("list")];
    await setImmediate();
    assert.deepEqual([...calls].sort(), ["list", "push manual"]);
    await release();
    await release();
    await release();
    await Promise.all(work);
    assert.deepEqual(calls.at(-1), "prepareRollback");
  });

  test("a failure is recorded and told, a cancelled backup is not one", async () => {
    const { engine, release, fail } = await newEngine();
    const outcomes = [];
    engine.onOutcome = (error) => outcomes.push(error?.code ?? null);
    for (const code of ["NETWORK", "NETWORK", "CANCELLED"]) {
      const refused = assert.rejects(engine.push("schedule"), { code });
      await fail(failure(code, "no"));
      await refused;
    }
    assert.deepEqual(outcomes, ["NETWORK", "NETWORK"]);
    assert.equal(engine.record.facts.lastError.count, 2);
    const push = engine.push("schedule");
    await release();
    await push;
    assert.deepEqual([outcomes.at(-1), engine.record.facts.lastError], [null, undefined]);
  });

  test("a restore is tried at most once in its time, for each repository", async () => {
    const calls = [];
    const report = { snapshot: "id", files: 1, bytes: 2, databases: 0, problems: [], skipped: null };
    let fails = true;
    const run = async ({ verb }) => {
      calls.push(verb);
      if (fails) throw failure("NETWORK", "no");
      return report;
    };
    const engine = new Engine({ stateDir: newState(), rootDir: projectDir, run });
    engine.configure({ target: {} }, "here");
    await assert.rejects(engine.drill(1000), { code: "NETWORK" });
    fails = false;
    const both = await Promise.all([engine.drill(HOUR), engine.drill(HOUR)]);
    assert.deepEqual(both, [report, null]);
    assert.equal(await engine.drill(HOUR), null);
    assert.equal(engine.record.facts.lastDrill.snapshot, "id");
    engine.configure({ target: {} }, "elsewhere");
    assert.deepEqual(await engine.drill(HOUR), report);
    engine.record.facts.lastDrill.at -= 2 * HOUR;
    assert.deepEqual(await engine.drill(HOUR), report);
    assert.deepEqual(calls, Array(4).fill("drill"));
  });

  test("a wrong configuration is said until a call succeeds", async () => {
    const { engine, release, fail } = await newEngine();
    const refused = assert.rejects(engine.call("list"), { code: "CONFIG" });
    await fail(failure("CONFIG", "bucket: is empty"));
    await refused;
    assert.equal(engine.problem.message, "bucket: is empty");
    const again = engine.call("list");
    await release();
    await again;
    assert.equal(engine.problem, undefined);
  });

  test("a snapshot or glob that is not understood is no wrong configuration", async () => {
    const { engine, release, fail } = await newEngine();
    const understood = failure("CONFIG", 'snapshot "yesterdya" is not understood');
    for (const ask of [() => engine.call("rollback", { planOnly: true }), () => engine.prepareRollback({})]) {
      const refused = assert.rejects(ask(), { code: "CONFIG" });
      await fail(understood);
      await refused;
      assert.equal(engine.problem, undefined);
    }
    const refused = assert.rejects(engine.push("manual"), { code: "CONFIG" });
    await fail(failure("CONFIG", "bucket: is empty"));
    await refused;
    assert.equal(engine.problem.message, "bucket: is empty");
    const plan = engine.call("rollback");
    await release();
    await plan;
    assert.equal(engine.problem, undefined);
  });

  test("there is one engine per state directory, also for another copy of the module", async () => {
    const stateDir = newState();
    const options = { stateDir, rootDir: projectDir, version: "1" };
    const first = await takeEngine(options);
    const copy = await import("../js/plugin/engine.js?copy");
    const second = await copy.takeEngine(options);
    assert.equal(second.engine, first.engine);
    assert.deepEqual([first.boot, second.boot], [true, false]);
    first.release();
    first.release();
    assert.equal(heldEngine(stateDir), first.engine);
    second.release();
    assert.equal(heldEngine(stateDir), undefined);
    assert.equal((await takeEngine(options)).boot, false, "a reload is no start");
    first.engine.stopping = true;
    assert.equal((await takeEngine(options)).boot, true, "a start after a stop in the same process is one");
    assert.notEqual((await takeEngine({ ...options, version: "2" })).engine, first.engine);
  });
});

describe("a gateway's event", () => {
  /** What the plugin does at which, and what it then says in a session. */
  function hooksOf(engine) {
    const [hooks, told] = [{}, []];
    const on = (name, hook) => (hooks[name] = hook);
    const logger = { info() {}, warn() {}, error() {} };
    const system = { enqueueSystemEvent: (text) => told.push(text), requestHeartbeat() {} };
    registerHooks({ api: { on, logger, config: {}, runtime: { system } }, settings: {}, held: () => engine });
    return { ...hooks, told };
  }
  const prepared = { at: 0, snapshot: "id", safetySnapshot: null, restored: 1, deleted: 2 };

  test("before a compaction leads to a backup that is late after two minutes", async () => {
    const asked = [];
    const engine = { compactedAt: -Infinity, push: async (...args) => asked.push(args) };
    await hooksOf(engine).before_compaction();
    const [[trigger, until]] = asked;
    assert.equal(trigger, "before_compaction");
    assert.ok(Math.abs(until - performance.now() - 120_000) < 5000, until);
  });

  test("at the end applies a rollback, or says why not, also with a wrong configuration", async () => {
    const { engine, calls, fail } = await newEngine();
    const { gateway_stop } = hooksOf(engine);
    engine.problem = failure("CONFIG", "bucket: is empty");
    await gateway_stop({ reason: "stop" });
    assert.deepEqual(calls, [], "no backup");
    await engine.record.set({ rollback: prepared });
    const stopped = gateway_stop({ reason: "stop" });
    await fail(engine.problem);
    await stopped;
    assert.deepEqual(calls, ["applyRollback"]);
    assert.deepEqual(engine.record.facts.rollback, { ...prepared, applied: false, problem: "bucket: is empty" });
  });

  test("at a start tells of a rollback, and leaves one that is still to come where it was a reload", async () => {
    const options = { stateDir: newState(), rootDir: projectDir, version: "1" };
    const { engine } = await takeEngine(options);
    const { gateway_start, told } = hooksOf(engine);
    await gateway_start();
    await engine.record.set({ rollback: prepared });
    await gateway_start();
    await takeEngine(options);
    await gateway_start();
    assert.deepEqual([engine.record.facts.rollback, told], [prepared, []]);
    engine.stopping = true;
    await takeEngine(options);
    await gateway_start();
    assert.deepEqual([engine.record.facts.rollback, told], [undefined, [texts.rolledBack(prepared)]]);
    await engine.record.set({ rollback: { ...prepared, applied: true } });
    await takeEngine(options);
    await gateway_start();
    assert.equal(told.at(-1), texts.rolledBack({ ...prepared, applied: true }));
  });
});

describe("a restore", () => {
  test("whose run was stopped while it was prepared is dropped, before another one is prepared", async () => {
    const { engine, calls, release } = await newEngine();
    let create;
    const api = { config: {}, registerTool: (it) => (create = it) };
    registerTool({ api, settings: { confirmRollback: false }, engine: () => engine, held: () => engine });
    const abort = new AbortController();
    const restore = create({}).execute("1", { action: "restore", snapshot: "id" }, abort.signal);
    const refused = assert.rejects(restore, { code: "CANCELLED" });
    const another = create({ sessionKey: "another" }).execute("2", { action: "restore", snapshot: "id" });
    await setImmediate();
    abort.abort();
    for (let call = 0; call < 3; call++) await release();
    await refused;
    assert.match((await another).content[0].text, /is prepared and verified/);
    assert.deepEqual(calls, ["prepareRollback", "discardRollback", "prepareRollback"]);
    assert.equal(engine.record.facts.rollback.sessionKey, "another");
  });

  test("in chat takes ids for snapshots, also those of 0.1.x that have a slash, and other words with one for globs", async () => {
    let command;
    const asked = [];
    const plan = { snapshot: "id", restored: [], deleted: [], unchanged: 1, bytes: 0, warnings: [] };
    const engine = { call: async (verb, { snapshot, paths }) => (asked.push([snapshot, paths]), plan) };
    registerCommand({ api: { registerCommand: (it) => (command = it) }, engine: () => engine });
    const old = "safety-2026-02-19T00-00-00Z/2026-02-19T00-00-00-123Z-7f3a91c2";
    const words = [old, `${old} workspace/**`, "yesterday 18:00 safety-nets/*", "latest safety-2026/notes.md"];
    for (const what of words) await command.handler({ args: `plan ${what}`, senderIsOwner: true });
    assert.deepEqual(asked, [
      [old, undefined],
      [old, ["workspace/**"]],
      ["yesterday 18:00", ["safety-nets/*"]],
      ["latest", ["safety-2026/notes.md"]],
    ]);
  });
});

describe("the record", () => {
  test("is private, survives a restart, and a damaged one counts as none", async () => {
    const { engine, release } = await newEngine();
    const push = engine.push("manual");
    await release();
    await push;
    const file = path.join(engine.stateDir, "b2-backup", "status.json");
    if (process.platform !== "win32") assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(JSON.parse(readFileSync(file)).lastSuccess.snapshot, "id");
    for (const damage of ["", "[]", "null", "{"]) {
      writeFileSync(file, damage);
      await engine.record.load();
      assert.deepEqual(engine.record.facts, {});
    }
  });

  test("that cannot be written makes no failure of a backup that was made", async () => {
    const { engine, release } = await newEngine();
    const [outcomes, problems] = [[], []];
    engine.onOutcome = (error) => outcomes.push(error);
    engine.record.onProblem = (message) => problems.push(message);
    mkdirSync(path.join(engine.stateDir, "b2-backup", "status.json", "in the way"), { recursive: true });
    const push = engine.push("manual");
    await release();
    assert.equal((await push).snapshot, "id");
    assert.deepEqual([outcomes, engine.record.facts.lastSuccess.snapshot], [[null], "id"]);
    assert.match(problems.join(), /^cannot write .*status\.json: E/);
  });
});

describe("the configuration", () => {
  const stateDir = "/state";
  const of = (settings, env = {}) => sourceOf({ settings, stateDir, env });

  test("is the plugin's, and the environment stands in for what it leaves out", () => {
    const env = { B2_APPLICATION_KEY: " key ", B2_BUCKET_NAME: "other", B2_REGION: "" };
    const source = of({ keyId: "id", bucket: "mine" }, env);
    assert.deepEqual(source, { target: { keyId: "id", bucket: "mine", applicationKey: "key", stateDir } });
    const openers = {
      OPENCLAW_B2_PASSPHRASE: "to the last space ",
      OPENCLAW_B2_KEY_FILE: "/key ",
      OPENCLAW_B2_RECOVERY_CODE: "C\n",
    };
    const { target } = of({ keyId: "id" }, openers);
    assert.deepEqual(target, {
      keyId: "id",
      passphrase: "to the last space ",
      keyFile: "/key",
      recoveryCode: "C",
      stateDir,
    });
    assert.match(of({}, openers).problem.message, /^not configured/);
  });

  test("with references that the host left is read from its files", () => {
    const references = ["$KEY", "${KEY}", { source: "env", provider: "default", id: "KEY" }];
    for (const applicationKey of references) {
      assert.deepEqual(of({ keyId: "id", applicationKey }, { KEY: "x" }), { resolve: { stateDir, env: { KEY: "x" } } });
    }
  });

  test("that says nothing is told what to say", () => {
    assert.match(of({}).problem.message, /^not configured: set keyId, applicationKey and bucket/);
    assert.match(of({ keyId: "id", schedule: "never" }).problem.message, /^schedule: "never" is not/);
  });
});

describe("the worker", () => {
  const skip = !IS_NEEDED && "no launcher is needed here";
  const moduleOf = (file) => pathToFileURL(path.join(projectDir, "js/plugin", file)).href;
  /** A module in the addon's place. */
  const standIn = path.join(root, "native.mjs");
  writeFileSync(
    standIn,
    `export const list = async (target, options, onProgress) => (onProgress({ phase: "scan", filesDone: 1 }), { target, options: Object.keys(options), env: Object.keys(process.env), argv: process.argv.slice(2), ppid: process.ppid });
     export const push = (target, { signal }) => new Promise((_, reject) => {
       const cancel = () => reject(Object.assign(new Error("cancelled"), { code: "CANCELLED" }));
       signal.aborted ? cancel() : signal.addEventListener("abort", cancel);
     });
     export const status = async () => { throw Object.assign(new Error("no"), { code: "NETWORK", retryable: true, context: { key: "k" } }) };
     export const verify = async () => process.kill(process.pid, "SIGKILL");
     export const drill = async () => (process.stdout.write('{"result":{"files":'), process.kill(process.pid, "SIGKILL"));
     export const pull = async () => { console.error("out of memory"); process.kill(process.pid, "SIGABRT"); await new Promise(() => setInterval(() => {}, 1000)); };
     export const diff = async () => ({ changes: ["a\\u2028b", "\\u20295\\u2029"] });
     export const recover = async () => null;`,
  );
  const env = { PATH: process.env.PATH, SECRET: "x", OPENCLAW_B2_TEST_NATIVE: pathToFileURL(standIn).href };
  const call = (verb, rest = {}) => runWorker({ rootDir: projectDir, verb, target: { keyId: "id" }, env, ...rest });
  const launchers = IS_NEEDED ? [new Launcher(projectDir, env)] : [];
  after(() => launchers.forEach((launcher) => launcher.close()));

  for (const launcher of [undefined, ...launchers])
    describe(launcher ? "that a launcher starts" : "that the gateway starts", () =>
      works((verb, rest) => call(verb, { launcher, ...rest })),
    );

  function works(call) {
    test("gets the request on its input, and little of the environment", async () => {
      const progress = [];
      const result = await call("list", { options: { paths: [] }, onProgress: (event) => progress.push(event.phase) });
      assert.deepEqual([result.target, result.options], [{ keyId: "id" }, ["paths", "signal"]]);
      assert.deepEqual([result.argv, result.env.includes("SECRET")], [[], false]);
      assert.deepEqual(progress, ["scan"]);
      assert.equal(await call("recover"), null);
    });

    test("may say whatever a file is called", async () => {
      assert.deepEqual(await call("diff"), { changes: ["a\u2028b", "\u20295\u2029"] });
    });

    test("hands on what an error says", async () => {
      await assert.rejects(call("status"), { message: "no", code: "NETWORK", retryable: true, context: { key: "k" } });
      await assert.rejects(call("nothing"), { code: "IO" });
    });

    test("ends at a safe point when it is cancelled, and tells when it was killed", async () => {
      const abort = new AbortController();
      const push = call("push", { signal: abort.signal });
      setTimeout(() => abort.abort(), 300);
      await assert.rejects(push, { code: "CANCELLED" });
      await assert.rejects(call("push", { signal: AbortSignal.abort() }), { code: "CANCELLED" });
      await assert.rejects(call("verify"), { code: "IO", retryable: true, message: /was ended by SIGKILL/ });
      // In the middle of a line: it was parsed where nobody could catch the error, which ended the gateway.
      await assert.rejects(call("drill"), { code: "IO", retryable: true, message: /was ended by SIGKILL/ });
      await assert.rejects(call("pull"), { message: "the backup process was ended by SIGABRT: out of memory" });
      assert.equal(await call("recover"), null);
    });
  }

  test("is started without the launcher while that has another one, or is closed", { skip }, async () => {
    const launcher = new Launcher(projectDir, env);
    const abort = new AbortController();
    const push = call("push", { launcher, signal: abort.signal });
    assert.equal(
      launcher.launch(() => {}),
      undefined,
    );
    assert.equal(await call("recover", { launcher }), null);
    launcher.close();
    setTimeout(() => abort.abort(), 300);
    await assert.rejects(push, { code: "CANCELLED" });
    assert.equal(
      launcher.launch(() => {}),
      undefined,
    );
    assert.equal(await call("recover", { launcher }), null);
  });

  test("has what the environment has become", { skip }, async () => {
    const changing = { ...env };
    const launcher = new Launcher(projectDir, changing);
    const place = path.join(root, "workspace of a variable");
    changing.WORKSPACE_OF_OURS = place;
    assert.ok(!(await call("list", { launcher })).env.includes("WORKSPACE_OF_OURS"), "it is not there yet");
    mkdirSync(place);
    assert.ok((await call("list", { launcher })).env.includes("WORKSPACE_OF_OURS"));
    launcher.close();
  });

  test("fails with its launcher, which the next one has again", { skip }, async () => {
    const launcher = new Launcher(projectDir, env);
    const { ppid } = await call("list", { launcher });
    assert.notEqual(ppid, process.pid);
    const push = call("push", { launcher });
    process.kill(ppid, "SIGKILL");
    await assert.rejects(push, { code: "IO", retryable: true, message: /ended with the shell that started it/ });
    const next = await call("list", { launcher });
    assert.ok(next.ppid !== ppid && next.ppid !== process.pid, "not started by another shell");
    launcher.close();
  });

  test("ends with a gateway that is killed, and so does the launcher", { skip }, async () => {
    const script = `
      import { runWorker } from ${JSON.stringify(moduleOf("child.js"))};
      import { Launcher } from ${JSON.stringify(moduleOf("launcher.js"))};
      const call = { rootDir: ${JSON.stringify(projectDir)}, launcher: new Launcher(${JSON.stringify(projectDir)}) };
      const { ppid } = await runWorker({ ...call, verb: "list" });
      const push = runWorker({ ...call, verb: "push" });
      process.stdout.write(ppid + "\\n", () => setTimeout(() => process.kill(process.pid, "SIGKILL"), 500));`;
    const gateway = [process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8", env }];
    const { stdout, signal } = spawnSync(...gateway);
    assert.equal(signal, "SIGKILL");
    const isThere = () => {
      try {
        // One whose parent is gone may wait for somebody to ask how it ended.
        return !/^State:\s*Z/m.test(readFileSync(`/proc/${stdout.trim()}/status`, "utf8"));
      } catch {
        return false;
      }
    };
    for (const end = Date.now() + 20_000; isThere();) {
      assert.ok(Date.now() < end, `the shell ${stdout} is still there`);
      await sleep(50);
    }
  });

  test("that cannot be started is a failure, and nothing worse", async () => {
    const nowhere = { rootDir: path.join(root, "nowhere") };
    await assert.rejects(call("list", nowhere), { code: "IO", message: /^cannot start the backup process: / });
    if (process.platform === "win32") return;
    // Where no file handle is free, Node gives a process without pipes.
    const script = `
      import { closeSync, openSync } from "node:fs";
      import { runWorker } from ${JSON.stringify(moduleOf("child.js"))};
      const handles = [];
      try { for (;;) handles.push(openSync("/dev/null")); } catch {}
      const said = await runWorker({ rootDir: ${JSON.stringify(projectDir)}, verb: "list" }).catch((error) => error);
      handles.forEach(closeSync);
      console.log(said.code, said.message);`;
    const shell = `ulimit -n 64 && exec "$0" --input-type=module -e "$1"`;
    const { stdout } = spawnSync("sh", ["-c", shell, process.execPath, script], { encoding: "utf8" });
    assert.match(stdout, /^IO cannot start the backup process: spawn .*MFILE/);
  });
});

describe("the owner", () => {
  test("is told of failures once a day at most, and not if they do not want it", () => {
    const told = [];
    const system = {
      enqueueSystemEvent: (text, { sessionKey }) => told.push([text, sessionKey]),
      requestHeartbeat() {},
    };
    const api = { config: {}, runtime: { system } };
    const record = { facts: {}, set: async (facts) => Object.assign(record.facts, facts) };
    const logger = { error() {}, warn() {} };
    const health = { failed: 0, reportFailure: () => health.failed++, clearFailure: () => (health.failed = 0) };
    const outcome = watchOutcomes({ api, settings: {} }, { record }, logger, health);
    outcome(failure("NETWORK", "no network"));
    outcome(failure("NETWORK", "no network"));
    assert.equal(told.length, 1);
    assert.deepEqual(told[0], [texts.failed(failure("NETWORK", "no network")), "agent:main:main"]);
    assert.equal(health.failed, 2);
    outcome(null);
    assert.equal(health.failed, 0);
    record.facts.toldAt -= 25 * HOUR;
    outcome(failure("AUTH", "key revoked"));
    assert.equal(told.length, 2);
    const silent = watchOutcomes(
      { api, settings: { notifyOnFailure: false } },
      { record: { facts: {} } },
      logger,
      health,
    );
    silent(failure("AUTH", "key revoked"));
    assert.equal(told.length, 2);
  });

  test("is told once that most files are gone, and again when it happens again", async () => {
    const told = [];
    const system = { enqueueSystemEvent: (text) => told.push(text), requestHeartbeat() {} };
    const record = { facts: {}, set: async (facts) => Object.assign(record.facts, facts) };
    const logger = { error() {}, warn() {} };
    const outcome = watchOutcomes({ api: { config: {}, runtime: { system } }, settings: {} }, { record }, logger);
    const shrunk = { snapshot: "full", filesBefore: 900, files: 2, bytesBefore: 9_000_000, bytes: 20 };
    for (const report of [
      { snapshot: "a", shrunk },
      { snapshot: "b", shrunk },
      { snapshot: null, shrunk: null },
    ]) {
      outcome(null, report);
    }
    assert.equal(told.length, 1);
    assert.match(
      told[0],
      /2 files, 20 B, are left of the 900, 9(?:\.0)? MB, in full\. .*\/b2 accept-shrink\. To go back: \/b2 plan full$/,
    );
    outcome(null, { snapshot: "c", shrunk: null });
    outcome(null, { snapshot: "d", shrunk });
    assert.equal(told.length, 2);
  });

  test("is told once that something can no longer be read, and again when that is something else", () => {
    const told = [];
    const system = { enqueueSystemEvent: (text) => told.push(text), requestHeartbeat() {} };
    const record = { facts: {}, set: async (facts) => Object.assign(record.facts, facts) };
    const logger = { error() {}, warn() {} };
    const outcome = watchOutcomes({ api: { config: {}, runtime: { system } }, settings: {} }, { record }, logger);
    const database = "state/openclaw.sqlite";
    for (const dropped of [[], [database], [database], [database, "workspace"], [], [database]]) {
      outcome(null, { snapshot: "a", dropped });
    }
    assert.equal(told.length, 3);
    assert.match(told[0], /state\/openclaw\.sqlite can no longer be read, and is in earlier snapshots, .*\/b2 plan/);
    assert.match(told[1], /state\/openclaw\.sqlite, workspace can no longer be read, and are/);
  });

  test("is told of another machine's snapshots, but not by an agent that is still to be restored", () => {
    const [told, logged] = [[], []];
    const system = { enqueueSystemEvent: (text) => told.push(text), requestHeartbeat() {} };
    const record = { facts: {}, set: async (facts) => Object.assign(record.facts, facts) };
    const logger = { error() {}, warn: (line) => logged.push(line) };
    const outcome = watchOutcomes({ api: { config: {}, runtime: { system } }, settings: {} }, { record }, logger);
    const other = { snapshot: "theirs", host: "kestrel" };
    outcome(null, { snapshot: "a", otherMachine: { ...other, restoresItself: true } });
    assert.deepEqual(told, []);
    assert.match(logged[0], /of another machine, kestrel\. .*restart the gateway, and theirs is restored$/);
    outcome(null, { snapshot: "a", otherMachine: { ...other, restoresItself: false } });
    assert.match(told[0], /kestrel\. Nothing of it was restored .*\/b2 plan theirs$/);
    assert.equal(told.length, 1);
  });

  test("is told that the newest snapshot is missing, also when the gateway was about to stop", () => {
    const [told, logged] = [[], []];
    const system = { enqueueSystemEvent: (text) => told.push(text), requestHeartbeat() {} };
    const record = { facts: {}, set: async (facts) => Object.assign(record.facts, facts) };
    const logger = { error() {}, warn: (line) => logged.push(line) };
    const engine = { record, stopping: true };
    const outcome = watchOutcomes({ api: { config: {}, runtime: { system } }, settings: {} }, engine, logger);
    outcome(null, { snapshot: "b", missing: "a", warnings: ["a is not listed any more"] });
    assert.deepEqual([told, logged], [[], ["B2 backup: a is not listed any more"]]);
    engine.stopping = false;
    for (let push = 0; push < 2; push++) outcome(null, { snapshot: null, missing: null, warnings: [] });
    assert.deepEqual([told, logged.length], [[texts.missing("a")], 1]);
  });

  test("is found in the session that they talk to by default", () => {
    assert.equal(mainSession({}), "agent:main:main");
    assert.equal(mainSession({ session: { mainKey: "home" } }), "agent:main:home");
    assert.equal(mainSession({ session: { scope: "global" } }), "global");
    assert.equal(mainSession({ agents: { entries: { Ops: {}, chat: { default: true } } } }), "agent:chat:main");
  });
});

describe("the texts", () => {
  const plan = {
    ...{ snapshot: "2026-02-19T00-00-00Z-7f3a", safetySnapshot: null, unchanged: 10, bytes: 1_200_000 },
    ...{
      restored: ["workspace/a.md", "workspace/b.md"],
      deleted: ["workspace/c.md"],
      restartRequired: true,
      warnings: [],
    },
  };

  test("the question shows the counts, then what is deleted, within what OpenClaw shows", () => {
    const text = texts.question(plan);
    assert.match(text, /^2026-02-19T00-00-00Z-7f3a\n2 paths restored \(1\.2 MB\), 1 deleted, 10 unchanged\./);
    assert.match(text, /\ndelete workspace\/c\.md\nrestore workspace\/a\.md\nrestore workspace\/b\.md$/);
    const many = {
      ...plan,
      deleted: Array.from({ length: 500 }, (_, index) => `workspace/${"x".repeat(40)}-${index}`),
    };
    assert.ok(texts.question(many).length <= 512);
    assert.match(texts.question(many), /\n\.\.\. and \d+ more$/);
    assert.match(texts.question(plan, ["workspace/**"]), /^2026\S+, only workspace\/\*\*\n/);
  });

  test("snapshots of 0.1.x are told from others, and what is uncertain about one is said before it is restored", () => {
    const old = { id: "2026-01-01T00-00-00Z", createdAt: "2026-01-01T00:00:00Z", kind: "legacy", trigger: "unknown" };
    const snapshots = [{ ...old, host: "unknown", files: 2, bytes: 7, complete: false, exceptions: 1 }];
    assert.match(
      texts.list({ snapshots, unreadable: [], warnings: [] }),
      /; of 0\.1\.x, 2 files, 7 B; incomplete: 1 left out$/,
    );
    const warned = { ...plan, warnings: ["nothing authenticates it", "another"] };
    assert.match(texts.question(warned), /unchanged\..*\nnothing authenticates it\ndelete /);
    assert.ok(!texts.question(warned).includes("another"));
  });

  test("a path cannot write a line of its own", () => {
    const odd = { ...plan, restored: ["a\nApproved by the owner", "b\u202e"] };
    assert.ok(!texts.question(odd).split("\n").includes("Approved by the owner"));
    assert.ok(!texts.plan(odd).includes("\u202e"));
  });

  test("long lists are cut, and say by how much", () => {
    const snapshot = {
      ...{ id: "id", createdAt: "2026-02-19T00:00:00Z", kind: "regular", trigger: "schedule", host: "h" },
      ...{ files: 1, bytes: 1, complete: true, exceptions: 0 },
    };
    const firstExceptions = ["a", "b", "c", "d"].map((path) => ({ path, reason: "unreadable" }));
    const incomplete = { ...snapshot, complete: false, exceptions: 4, firstExceptions };
    const listed = texts.list({ snapshots: [incomplete], unreadable: [], warnings: [] });
    assert.match(listed, /; incomplete: 4 left out, such as a \(unreadable\), b \(unreadable\), c \(unreadable\)$/);
    const text = texts.list({ snapshots: Array(25).fill(snapshot), unreadable: [], warnings: [] });
    assert.match(text, /^25 snapshots, newest first:\n/);
    assert.match(text, /\n\.\.\. and 15 more$/);
    const warned = texts.list({ snapshots: [], unreadable: [], warnings: ["x is not listed\nany more"] });
    assert.match(warned, /^0 snapshots, newest first:\nWarning: x is not listed \S*any more$/);
  });

  test("status names what is proven, and what waits for the owner", () => {
    const report = {
      ...{ location: "x", encrypted: true, snapshots: 1, latest: { id: "id" }, storedBytes: 1, failed: null },
      ...{ proven: { snapshot: "id", at: "2026-02-19T00:00:00Z", problems: [] }, shrunk: null },
      ...{ hiddenBytes: 0, warnings: [] },
    };
    const facts = { lastSuccess: { at: 0, trigger: "schedule" } };
    const good = texts.status(facts, report, null);
    assert.match(good, /^Health: good\n/);
    assert.match(good, /\nLast proven restorable: id, 2026-02-/);
    const failed = { snapshot: "old", at: "2026-02-19T00:00:00Z", problems: ["a: damaged\nx"] };
    const bad = {
      ...report,
      proven: null,
      failed,
      shrunk: { snapshot: "full", filesBefore: 9, files: 2, bytesBefore: 90, bytes: 20 },
    };
    const said = texts.status(facts, bad, null);
    assert.match(said, /^Health: a snapshot could not be restored, the state has lost most of what it held\n/);
    assert.match(said, /\nLast proven restorable: none yet\nNot restorable: old: a: damaged x\n.*accept-shrink/);
  });

  test("an outcome says how to take it back, or that nothing was done", () => {
    const rollback = { at: 0, snapshot: "id", safetySnapshot: "safety-id", restored: 1, deleted: 2 };
    const undo = "To take it back: /b2 restore safety-id";
    assert.equal(
      texts.rolledBack({ ...rollback, applied: true }),
      `B2 backup: rolled back to id: 1 path restored, 2 deleted. ${undo}`,
    );
    assert.match(
      texts.rolledBack({ ...rollback, applied: false, problem: "x" }),
      /was not made: x\. Nothing was changed\.$/,
    );
    assert.match(texts.rolledBack(rollback), /\/b2 plan id$/);
  });
});
