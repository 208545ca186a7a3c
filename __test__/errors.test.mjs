// Bad input and bad surroundings, through the command line: each is one clear error with its stable code and exit code, shows
// no secret, and changes nothing, neither in the state directory nor in the repository.
//
// Damage to stored bytes and faults in the middle of a command are tested more widely in Rust; here is what users run into.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { chmodSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";

import { startProxy } from "./support/b2-proxy.mjs";
import { mustFail, mustRun, runCli, writeConfig } from "./support/cli.mjs";
import { freePorts, temporaryDirectory } from "./support/processes.mjs";
import { listObjects } from "./support/s3.mjs";
import { OTHER_CREDENTIALS, startSeaweed } from "./support/seaweed.mjs";
import { filesOf, readTree } from "./support/tree.mjs";

const KEY = "application-key-of-the-first-owner";
const OTHER_KEY = "application-key-of-somebody-else";
const root = temporaryDirectory("errors");
const stateDir = path.join(root, "state");
const isRoot = process.getuid?.() === 0;

let names = 0;
/** A path that nothing is at. */
const fresh = (name) => path.join(root, `${name}-${++names}`);
const configure = (config) => writeConfig(fresh("config"), config);

function makeState(directory) {
  const files = {
    "openclaw.json": '{ "agents": {} }\n',
    "workspace/SOUL.md": "# Soul\n\nCalm.\n",
    "workspace/notes/large.txt": Array.from({ length: 60_000 }, (_, i) => (i * 2654435761) % 4294967296).join("\n"),
    "cron/jobs.json": "[]\n",
  };
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(path.dirname(path.join(directory, name)), { recursive: true });
    writeFileSync(path.join(directory, name), text);
  }
}

/** The state without this product's own cache, which any command may refresh. */
const stateTree = () => readTree(stateDir, (entry) => entry === "b2-backup");

/** Runs a verb that must fail, and holds the state directory against what it was before. */
async function refused(verb, config, args, errorCode, options = {}) {
  const before = stateTree();
  const secrets = [KEY, OTHER_KEY, OTHER_CREDENTIALS.secretKey];
  const failure = await mustFail(verb, { config, stateDir, args }, errorCode, { secrets, ...options });
  assert.deepEqual(stateTree(), before, "the state directory is untouched");
  return failure;
}

/** A new local-directory repository with one snapshot of the state. */
async function repositoryWithSnapshot() {
  const directory = fresh("repository");
  const settings = { endpoint: `file://${directory}`, keyId: "K", applicationKey: KEY };
  const config = configure(settings);
  const { snapshot } = await mustRun("push", { config, stateDir });
  return { directory, settings, config, snapshot };
}

/** A small file system of its own, unmounted at the end; null where this user may not mount. */
const mounts = [];
function mountTmpfs(options) {
  if (!isRoot) return null;
  const directory = fresh("mount");
  mkdirSync(directory);
  if (spawnSync("mount", ["-t", "tmpfs", "-o", options, "tmpfs", directory]).status !== 0) return null;
  mounts.push(directory);
  return directory;
}

let seaweed;
before(async () => {
  makeState(stateDir);
  seaweed = await startSeaweed();
});
after(async () => {
  for (const directory of mounts) spawnSync("umount", ["-l", directory]);
  await seaweed.stop();
});

const s3Config = (overrides) => {
  const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;
  return configure({ endpoint, keyId, applicationKey, ...overrides });
};

test("a configuration that is missing or malformed is a configuration error", async (t) => {
  const exit = { exitCode: 65 };
  const file = { endpoint: `file://${fresh("never-made")}`, keyId: "K", applicationKey: KEY };
  const malformed = fresh("malformed");
  writeFileSync(malformed, '{ "plugins": { "entries": ');
  await t.test("no file", () => refused("push", fresh("nowhere"), [], "CONFIG", exit));
  await t.test("no JSON5", () => refused("push", malformed, [], "CONFIG", exit));
  await t.test("nothing configured", () => refused("push", configure({}), [], "CONFIG", exit));
  const wrong = {
    keepSnapshots: { ...file, keepSnapshots: 0 },
    applicationKey: { keyId: "K", bucket: "some-bucket" },
    bucket: { keyId: "K", applicationKey: KEY },
    endpoint: { ...file, endpoint: "ftp://example.invalid" },
    schedule: { ...file, schedule: "sometimes" },
    passphrse: { ...file, passphrse: "a misspelt field" },
    encrypt: { ...file, encrypt: "no" },
  };
  for (const [field, config] of Object.entries(wrong)) {
    await t.test(`the message names ${field}`, async () => {
      const { message } = await refused("push", configure(config), [], "CONFIG", exit);
      assert.ok(message.includes(field), message);
    });
  }
});

test("a command line that cannot be understood is a usage error", async (t) => {
  const config = configure({ endpoint: `file://${fresh("never-made")}`, keyId: "K", applicationKey: KEY });
  const exit = { exitCode: 64 };
  const mistakes = {
    "an unknown verb": ["bakcup", []],
    "an unknown option": ["push", ["--fast"]],
    "an option without its value": ["push", ["--trigger"]],
    "pull without a snapshot": ["pull", ["--target", fresh("target")]],
    "pull without a target": ["pull", ["--snapshot", "latest"]],
    "rollback without a snapshot": ["rollback", ["--yes"]],
  };
  for (const [name, [verb, args]] of Object.entries(mistakes)) {
    await t.test(name, () => refused(verb, config, args, null, exit));
  }
});

test("a repository in a directory does not open with another key", async () => {
  const { directory, settings, config, snapshot } = await repositoryWithSnapshot();
  const before = readTree(directory);
  const other = configure({ ...settings, applicationKey: OTHER_KEY });
  await refused("push", other, [], "WRONG_KEY");
  await refused("list", other, [], "WRONG_KEY");
  await refused("pull", other, ["--snapshot", snapshot, "--target", fresh("target")], "WRONG_KEY");
  await refused("rollback", other, ["--snapshot", snapshot, "--yes"], "WRONG_KEY");
  assert.deepEqual(readTree(directory), before, "the repository is untouched");
  await mustRun("pull", { config, stateDir, args: ["--snapshot", snapshot, "--target", fresh("target")] });
});

test("a bucket's repository does not open with another valid pair of credentials", async () => {
  await seaweed.createBucket("wrong-key");
  const { snapshot } = await mustRun("push", { config: s3Config({ bucket: "wrong-key" }), stateDir });
  const before = await listObjects(seaweed, "wrong-key");
  const { accessKey: keyId, secretKey: applicationKey } = OTHER_CREDENTIALS;
  const other = s3Config({ bucket: "wrong-key", keyId, applicationKey });
  await refused("push", other, [], "WRONG_KEY");
  await refused("pull", other, ["--snapshot", snapshot, "--target", fresh("target")], "WRONG_KEY");
  assert.deepEqual(await listObjects(seaweed, "wrong-key"), before, "the bucket is untouched");
});

test("credentials that the service refuses are AUTH", async () => {
  await seaweed.createBucket("auth");
  await refused("push", s3Config({ bucket: "auth", applicationKey: OTHER_KEY }), [], "AUTH");
  await refused("list", s3Config({ bucket: "auth", applicationKey: OTHER_KEY }), [], "AUTH");
  await refused("push", s3Config({ bucket: "auth", keyId: "nobody" }), [], "AUTH");
  assert.deepEqual(await listObjects(seaweed, "auth"), []);
});

test("a bucket that does not exist is BUCKET_NOT_FOUND, and is not created", async () => {
  for (const verb of ["push", "list"]) {
    const { message } = await refused(verb, s3Config({ bucket: "no-such-bucket" }), [], "BUCKET_NOT_FOUND");
    assert.ok(message.includes("no-such-bucket"), message);
  }
  await assert.rejects(listObjects(seaweed, "no-such-bucket"), /NoSuchBucket/);
});

test("no network is NETWORK, in bounded time", async () => {
  const [closed] = await freePorts(1);
  const timeouts = { connectMs: 1000, stallMs: 2000, operationMs: 4000 };
  const config = s3Config({ bucket: "any-bucket", endpoint: `http://127.0.0.1:${closed}`, timeouts });
  for (const verb of ["push", "list"]) {
    const { ms } = await refused(verb, config, [], "NETWORK");
    assert.ok(ms < 20_000, `${verb} took ${ms} ms to give up`);
  }
});

test("a snapshot that does not exist is NOT_FOUND", async () => {
  const { config } = await repositoryWithSnapshot();
  const target = fresh("target");
  await refused("pull", config, ["--snapshot", "1999-01-01T00-00-00Z-0000", "--target", target], "NOT_FOUND");
  await refused("rollback", config, ["--snapshot", "1999-01-01T00-00-00Z-0000", "--yes"], "NOT_FOUND");
  assert.throws(() => readTree(target), { code: "ENOENT" });
  const empty = configure({ endpoint: `file://${fresh("empty")}`, keyId: "K", applicationKey: KEY });
  assert.deepEqual((await mustRun("list", { config: empty, stateDir })).snapshots, []);
  await refused("pull", empty, ["--snapshot", "latest", "--target", target], "NOT_FOUND");
});

test("pull writes into an empty or new directory outside the live state only", async (t) => {
  const { config, snapshot } = await repositoryWithSnapshot();
  const pull = (target) => ["--snapshot", snapshot, "--target", target];
  const codes = ["CONFIG", "UNSAFE_PATH"];
  await t.test("not into a directory with files", async () => {
    const target = fresh("occupied");
    mkdirSync(target);
    writeFileSync(path.join(target, "SOUL.md"), "somebody else's\n");
    await refused("pull", config, pull(target), codes, { exitCode: 65 });
    assert.deepEqual(filesOf(readTree(target)), ["SOUL.md"]);
  });
  await t.test("not onto a file", async () => {
    const target = fresh("file");
    writeFileSync(target, "a file\n");
    await refused("pull", config, pull(target), codes, { exitCode: 65 });
    assert.equal(readFileSync(target, "utf8"), "a file\n");
  });
  await t.test("not into the state", () => refused("pull", config, pull(stateDir), codes, { exitCode: 65 }));
  await t.test("not inside the state", () => {
    return refused("pull", config, pull(path.join(stateDir, "workspace/restored")), codes, { exitCode: 65 });
  });
  await t.test("an empty directory will do", async () => {
    const target = fresh("empty");
    mkdirSync(target);
    await mustRun("pull", { config, stateDir, args: pull(target) });
    assert.deepEqual(readTree(path.join(target, "workspace")), readTree(path.join(stateDir, "workspace")));
  });
});

test("a full disk is IO", async (t) => {
  const small = mountTmpfs("size=128k");
  if (!small) return t.skip("mounting a small file system takes root");
  await t.test("under the target of a pull", async () => {
    const { config, snapshot } = await repositoryWithSnapshot();
    const target = path.join(small, "target");
    const { message } = await refused("pull", config, ["--snapshot", snapshot, "--target", target], "IO");
    assert.match(message, /space/i);
    rmSync(target, { recursive: true, force: true });
    await mustRun("pull", { config, stateDir, args: ["--snapshot", snapshot, "--target", fresh("target")] });
  });
  await t.test("under a repository, which stays usable", async () => {
    const config = configure({ endpoint: `file://${small}/repository`, keyId: "K", applicationKey: KEY });
    const { message } = await refused("push", config, [], "IO");
    assert.match(message, /space/i);
    assert.deepEqual((await mustRun("list", { config, stateDir })).snapshots, []);
    spawnSync("mount", ["-o", "remount,size=64m", small]);
    await mustRun("push", { config, stateDir });
  });
});

test("a target that cannot be written to is IO", async (t) => {
  const { config, snapshot } = await repositoryWithSnapshot();
  let readOnly = mountTmpfs("ro,size=1m");
  if (!readOnly && !isRoot) {
    readOnly = fresh("read-only");
    mkdirSync(readOnly);
    chmodSync(readOnly, 0o555);
  }
  if (!readOnly) return t.skip("root may write anywhere, and mounting is not allowed here");
  await refused("pull", config, ["--snapshot", snapshot, "--target", path.join(readOnly, "target")], "IO");
  const repository = configure({ endpoint: `file://${readOnly}/repository`, keyId: "K", applicationKey: KEY });
  await refused("push", repository, [], "IO");
});

test("flipped bytes in packs are CORRUPT, never a wrong file", async () => {
  const { directory, config, snapshot } = await repositoryWithSnapshot();
  const packs = filesOf(readTree(directory)).filter((file) => file.includes("packs/"));
  assert.ok(packs.length > 0);
  for (const pack of packs) {
    const file = path.join(directory, pack);
    const bytes = readFileSync(file);
    // In every frame: which one a file needs is not this test's business.
    for (let at = 60; at < bytes.length; at += 50) bytes[at] ^= 1;
    chmodSync(file, 0o600);
    writeFileSync(file, bytes);
  }
  await refused("pull", config, ["--snapshot", snapshot, "--target", fresh("target")], "CORRUPT");
  const soul = path.join(stateDir, "workspace/SOUL.md");
  const original = readFileSync(soul);
  writeFileSync(soul, "# Soul\n\nNot what the snapshot has.\n");
  await refused("rollback", config, ["--snapshot", snapshot, "--yes"], "CORRUPT");
  writeFileSync(soul, original);
  const verified = await runCli("verify", { config, stateDir, args: ["--read-data"] });
  assert.ok(verified.code !== 0 || verified.report.problems.length > 0, verified.stdout);
});

test("Backblaze B2 needs no region and no endpoint", async (t) => {
  await seaweed.createBucket("b2-bucket");
  const { accessKey: keyId, secretKey: applicationKey } = seaweed;
  const proxy = await startProxy({ serverPort: seaweed.port, personality: "b2", keyId, applicationKey });
  const b2 = { keyId, applicationKey, bucket: "b2-bucket", authorizeUrl: proxy.authorizeUrl };
  const config = configure(b2);
  await t.test("push, list and pull work, with nothing that B2 refuses", async () => {
    const { snapshot } = await mustRun("push", { config, stateDir });
    const { snapshots } = await mustRun("list", { config, stateDir });
    assert.deepEqual([snapshots.length, snapshots[0].id], [1, snapshot]);
    const target = fresh("target");
    await mustRun("pull", { config, stateDir, args: ["--snapshot", "latest", "--target", target] });
    assert.deepEqual(readTree(path.join(target, "workspace")), readTree(path.join(stateDir, "workspace")));
    const { 400: refused = 0, 501: unimplemented = 0 } = proxy.stats.status;
    assert.deepEqual({ refused, unimplemented }, { refused: 0, unimplemented: 0 });
  });
  await t.test("a key that B2 does not know is AUTH", async () => {
    const before = await listObjects(seaweed, "b2-bucket");
    await refused("push", configure({ ...b2, applicationKey: OTHER_KEY }), [], "AUTH");
    assert.deepEqual(await listObjects(seaweed, "b2-bucket"), before);
  });
  await t.test("503, lost answers and cut connections are overcome", async () => {
    for (const failWith of ["503", "reset", "lost"]) {
      Object.assign(proxy.settings, { failEvery: 3, failWith });
      writeFileSync(path.join(stateDir, "workspace/SOUL.md"), `# Soul\n\nSeen ${failWith}.\n`);
      const { snapshot } = await mustRun("push", { config, stateDir });
      Object.assign(proxy.settings, { failEvery: 0 });
      assert.equal(typeof snapshot, "string");
      const target = fresh("target");
      await mustRun("pull", { config, stateDir, args: ["--snapshot", snapshot, "--target", target] });
      assert.deepEqual(readTree(path.join(target, "workspace")), readTree(path.join(stateDir, "workspace")));
    }
  });
  await proxy.stop();
});
