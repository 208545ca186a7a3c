// The addon as JavaScript meets it: loaded late, one kind of error, cancelled by a signal, and not to be broken by what it is
// called with. What the functions do is tested in Rust and through the command line.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { mkdirSync, readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { test } from "node:test";
import { pathToFileURL } from "node:url";

import * as api from "../index.js";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { projectDir } from "./support/tools.mjs";

const root = temporaryDirectory("addon");
const KEY = "application-key-that-is-never-shown";
const target = { stateDir: path.join(root, "state"), endpoint: `file://${root}/repository`, applicationKey: KEY };
mkdirSync(target.stateDir);
const indexUrl = JSON.stringify(pathToFileURL(path.join(projectDir, "index.js")));

/** Every function that takes options, with arguments that it accepts. */
const CALLS = {
  push: (options, given = target) => api.push(given, options),
  list: (options, given = target) => api.list(given, options),
  pull: (options, given = target) => api.pull(given, { snapshot: "latest", directory: `${root}/pulled`, ...options }),
  rollback: (options, given = target) => api.rollback(given, { snapshot: "latest", ...options }),
  prepareRollback: (options, given = target) => api.prepareRollback(given, { snapshot: "latest", ...options }),
  restoreIfEmpty: (options, given = target) => api.restoreIfEmpty(given, options),
  diff: (options, given = target) => api.diff(given, { from: "latest", ...options }),
  verify: (options, given = target) => api.verify(given, options),
  drill: (options, given = target) => api.drill(given, options),
  prune: (options, given = target) => api.prune(given, options),
  importLegacy: (options, given = target) => api.importLegacy(given, options),
  status: (options, given = target) => api.status(given, options),
  keyList: (options, given = target) => api.keyList(given, options),
  keyAdd: (options, given = target) => api.keyAdd(given, options),
  keyRemove: (options, given = target) => api.keyRemove(given, { slots: ["ab"], ...options }),
  keyRotate: (options, given = target) => api.keyRotate(given, options),
  keyRecoveryCode: (options, given = target) => api.keyRecoveryCode(given, options),
};

/** The others: they are done at once, where no rollback is prepared. */
const AT_ONCE = ["applyRollback", "discardRollback", "recover", "resolveTarget"];

/** Runs a module that has the functions as `api`, in a process of its own. */
const runModule = (source, options) => {
  const module = `import * as api from ${indexUrl};\n${source}`;
  return run(process.execPath, ["--input-type=module", "--eval", module], options);
};

/** The error that `call` ends with; it must be one of the contract, and show no secret. */
async function failure(call) {
  const error = await call().then(
    () => assert.fail("did not fail"),
    (error) => error,
  );
  assert.ok(error instanceof Error);
  assert.match(error.code, /^[A-Z_]+$/);
  assert.equal(typeof error.retryable, "boolean");
  assert.equal(Object.getPrototypeOf(error.context), Object.prototype);
  assert.ok(error.message.length > 0);
  assert.doesNotMatch(error.message, /panicked|undefined|\[object /);
  assert.ok(!`${error.message}${error.stack}${JSON.stringify(error.context)}`.includes(KEY), error.message);
  return error;
}

test("the loader, the types and index.js have every function that the addon has", () => {
  const require = createRequire(import.meta.url);
  const [addon] = readdirSync(projectDir).filter((name) => name.endsWith(".node"));
  const functions = Object.keys(require(path.join(projectDir, addon))).sort();
  const types = readFileSync(path.join(projectDir, "index.d.ts"), "utf8");
  const declared = [...types.matchAll(/^export declare function (\w+)/gm)].map(([, name]) => name);
  const inLoader = Object.keys(require("../native.cjs")).filter((name) => name !== "__napiBindingTarget");
  assert.deepEqual(inLoader.sort(), functions, "run npm run generate");
  assert.deepEqual(declared.sort(), functions, "run npm run generate");
  const own = Object.keys(api).filter((name) => name !== "default");
  assert.deepEqual(own.sort(), functions, "the default export is the OpenClaw plugin, the others are the addon's");
  assert.deepEqual(Object.keys(CALLS).concat(AT_ONCE).sort(), functions);
});

test("importing index.js does not load the addon", async () => {
  const env = { ...process.env, NAPI_RS_NATIVE_LIBRARY_PATH: path.join(root, "missing.node") };
  const source = `
    const loaded = () => process.report.getReport().sharedObjects.some((name) => name.endsWith(".node"));
    const before = loaded();
    await api.resolveTarget({ env: { HOME: "/" } }).catch(() => {});
    console.log(JSON.stringify([before, loaded()]));`;
  const { stdout, stderr } = await runModule(source, { env: process.env });
  assert.equal(stdout.trim(), "[false,true]", stderr);
  assert.equal((await runModule("console.log(typeof api.push)", { env })).stdout.trim(), "function");
});

test("an addon that cannot be loaded is an IO error that says why, at the first call", async () => {
  const broken = path.join(root, "broken");
  const copy = `
    import { copyFileSync, mkdirSync } from "node:fs";
    mkdirSync(${JSON.stringify(path.join(broken, "js"))}, { recursive: true });
    for (const name of ["js/native.js", "js/platform.js", "native.cjs", "package.json"]) {
      copyFileSync(new URL(name, ${indexUrl}), ${JSON.stringify(broken)} + "/" + name);
    }
    const { list } = await import(${JSON.stringify(`${pathToFileURL(broken)}/js/native.js`)});
    await list({}).catch(({ code, retryable, context, message }) => {
      console.log(JSON.stringify({ code, retryable, context, message }));
    });`;
  const { stdout, stderr } = await runModule(copy);
  const { message, ...rest } = JSON.parse(stdout || JSON.stringify({ message: stderr }));
  assert.deepEqual(rest, { code: "IO", retryable: false, context: {} });
  assert.match(message, /cannot load the native addon for .*not installed/);
});

test("a signal that is aborted already cancels every function", async (t) => {
  for (const [name, call] of Object.entries(CALLS)) {
    await t.test(name, async () => {
      assert.equal((await failure(() => call({ signal: AbortSignal.abort() }))).code, "CANCELLED");
    });
  }
});

test("a signal is let go of when the operation has ended", async () => {
  const { signal } = new AbortController();
  const outcome = CALLS.list({ signal }).catch(() => {});
  await outcome;
  assert.deepEqual(getEventListeners(signal, "abort"), []);
});

test("a target that is none is a configuration error, whatever it is", async (t) => {
  const circular = { ...target };
  circular.self = circular;
  const nested = (depth) => {
    const outer = { ...target };
    let inner = outer;
    for (let i = 0; i < depth; i++) inner = inner.inner = {};
    return outer;
  };
  const throwing = () => {
    throw new Error(KEY);
  };
  const { proxy, revoke } = Proxy.revocable({}, {});
  revoke();
  const hostile = {
    undefined: undefined,
    null: null,
    "a string": KEY,
    "a number": Number.NaN,
    "an array": [target],
    "a function": () => target,
    "a symbol": Symbol("target"),
    "an object that contains itself": circular,
    "an object nested 1,000 deep": nested(1000),
    "an object nested 100,000 deep": nested(100_000),
    "a big integer": { ...target, keepSnapshots: 1n },
    "a fraction": { ...target, keepSnapshots: 1.5 },
    "a huge number": { ...target, keepSnapshots: 1e300 },
    "a number for a key": { ...target, applicationKey: 7 },
    "an object for a key": { ...target, applicationKey: { toString: () => KEY } },
    "an unknown field": { ...target, aplicationKey: KEY },
    "a relative state directory": { ...target, stateDir: "state" },
    "a null byte in a path": { ...target, stateDir: "/state\0" },
    "a getter that throws": {
      get stateDir() {
        return throwing();
      },
    },
    "a toJSON that throws": { ...target, toJSON: throwing },
    "a toJSON that returns nothing": { ...target, toJSON() {} },
    "a revoked proxy": proxy,
  };
  for (const [name, given] of Object.entries(hostile)) {
    await t.test(name, async () => {
      // `undefined` would be replaced by the default.
      const error = await failure(() => (given === undefined ? api.list() : CALLS.list({}, given)));
      assert.equal(error.code, "CONFIG", error.message);
    });
  }
  await t.test("a prototype is left alone", async () => {
    await failure(() => CALLS.list({}, JSON.parse('{ "__proto__": { "polluted": true }, "stateDir": "/" }')));
    assert.equal({}.polluted, undefined);
  });
});

test("arguments of the wrong type are errors, not crashes", async () => {
  const wrong = [
    () => api.pull(target),
    () => api.pull(target, {}),
    () => api.pull(target, { snapshot: 1, directory: 2 }),
    () => api.pull(target, { snapshot: "latest", directory: "/x", paths: "*" }),
    () => api.pull(target, { snapshot: "latest", directory: "/x", paths: [1] }),
    () => api.rollback(target, { snapshot: "latest", planOnly: "yes" }),
    () => api.diff(target, { from: null }),
    () => api.verify(target, { readData: "all" }),
    () => api.push(target, { trigger: {} }),
    () => api.list(target, { signal: "now" }),
    () => api.list(target, { signal: {} }),
    () => api.list(target, {}, "not a function"),
    () => api.resolveTarget({ configPath: 1 }),
  ];
  for (const call of wrong) await assert.rejects(call, Error, call.toString());
  assert.equal((await failure(() => api.push(target, { trigger: "whenever" }))).code, "CONFIG");
});

test("options that are absent, null or undefined are the defaults", async () => {
  const codes = [];
  for (const options of [undefined, null, {}, { trigger: undefined, signal: undefined }]) {
    codes.push(
      await api.push(target, options).then(
        () => "done",
        (error) => error.code,
      ),
    );
  }
  assert.ok(!codes.includes("CONFIG") && !codes.includes("InvalidArg"), codes.join());
});

test("resolveTarget reads files and environment, and names what is wrong", async () => {
  const env = { HOME: root, B2_ENDPOINT: target.endpoint, B2_APPLICATION_KEY: KEY };
  const stateDir = path.join(root, ".openclaw");
  const resolved = await api.resolveTarget({ env });
  assert.deepEqual(resolved, { stateDir, endpoint: target.endpoint, applicationKey: KEY });
  const missing = await failure(() => api.resolveTarget({ configPath: path.join(root, "nowhere.json"), env }));
  assert.deepEqual([missing.code, missing.context], ["CONFIG", { path: path.join(root, "nowhere.json") }]);
});

test("a process ends by itself after a call, and when one is cancelled", async () => {
  const given = JSON.stringify(target);
  const source = `
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 50);
    const codes = await Promise.all([
      api.list(${given}, {}, () => {}).then(() => "done", (error) => error.code),
      api.verify(${given}, { signal: controller.signal }, () => {}).then(() => "done", (error) => error.code),
    ]);
    console.log(codes.join());`;
  const started = Date.now();
  const { code, stdout, stderr } = await runModule(source);
  assert.equal(code, 0, stderr);
  assert.notEqual(stdout, "");
  assert.ok(Date.now() - started < 20_000);
});

test("a worker may end in the middle of a call", async () => {
  // Evaluated as a module, like the process around it.
  const inWorker = `
    import { parentPort } from "node:worker_threads";
    import * as api from ${indexUrl};
    api.verify(${JSON.stringify(target)}).catch(() => {});
    setInterval(() => {}, 1000);
    setTimeout(() => parentPort.postMessage("called"), 100);`;
  const source = `
    import { once } from "node:events";
    import { Worker } from "node:worker_threads";
    const worker = new Worker(${JSON.stringify(inWorker)}, { eval: true });
    const [message] = await once(worker, "message");
    await worker.terminate();
    console.log(message);`;
  const { code, stdout, stderr } = await runModule(source);
  assert.deepEqual([code, stdout.trim()], [0, "called"], stderr);
});
