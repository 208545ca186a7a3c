// Backblaze B2 as it is for a key: what it may do is checked before the first push, its bucket keeps every version, and a key
// that may not delete is a protection. The command line talks to a stand-in that holds the key to its rights; behind it is a
// real S3 server that keeps versions.

import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, beforeEach, test } from "node:test";

import { startProxy } from "./support/b2-proxy.mjs";
import { mustFail, mustRun, runCli, writeConfig } from "./support/cli.mjs";
import { temporaryDirectory } from "./support/processes.mjs";
import { enableVersions, listVersions, s3Request } from "./support/s3.mjs";
import { startSeaweed } from "./support/seaweed.mjs";
import { readTree } from "./support/tree.mjs";

const root = temporaryDirectory("b2");
let seaweed;
let proxy;
let all;
before(async () => {
  seaweed = await startSeaweed();
  const { port: serverPort, accessKey: keyId, secretKey: applicationKey } = seaweed;
  proxy = await startProxy({ serverPort, personality: "b2", keyId, applicationKey });
  all = { ...proxy.settings };
});
beforeEach(() => {
  Object.assign(proxy.settings, all);
  proxy.reset();
});
after(async () => {
  await proxy.stop();
  await seaweed.stop();
});

/** A lifecycle rule that removes what is still needed. */
const TAKES_APART = { daysFromUploadingToHiding: 30, daysFromHidingToDeleting: 1, fileNamePrefix: "" };

const without = (...names) => all.capabilities.filter((capability) => !names.includes(capability));

let scenes = 0;
/** A bucket that keeps versions, and a state directory of its own. */
async function makeScene(settings = {}) {
  const bucket = `b2-scene-${++scenes}`;
  await seaweed.createBucket(bucket);
  await enableVersions(seaweed, bucket);
  const stateDir = path.join(root, bucket);
  mkdirSync(path.join(stateDir, "workspace"), { recursive: true });
  writeFileSync(path.join(stateDir, "openclaw.json"), '{ "agents": {} }\n');
  const { accessKey: keyId, secretKey: applicationKey } = seaweed;
  const b2 = { keyId, applicationKey, bucket, authorizeUrl: proxy.authorizeUrl, keepSnapshots: 1, ...settings };
  const options = { config: writeConfig(path.join(root, `${bucket}.json`), b2), stateDir };
  return {
    bucket,
    stateDir,
    options,
    /** Takes a snapshot that differs from all before it. */
    push: async (text) => {
      writeFileSync(path.join(stateDir, "workspace/SOUL.md"), `# Soul\n\n${text}\n`);
      return mustRun("push", options);
    },
    /** The ids of the snapshots of which the bucket keeps a version. */
    kept: async () => {
      const manifests = (await listVersions(seaweed, bucket)).filter(({ key }) => key.endsWith("/manifest.json"));
      return new Set(manifests.map(({ key }) => key.split("/").at(-2)));
    },
    listed: async () => (await mustRun("list", options)).snapshots.map(({ id }) => id),
  };
}

test("a key that may delete removes every version of what is pruned", async () => {
  const { push, kept, listed, bucket, options } = await makeScene();
  await push("first");
  const { snapshot, warnings } = await push("second");
  assert.deepEqual([await listed(), [...(await kept())], warnings], [[snapshot], [snapshot], []]);
  assert.ok((await listVersions(seaweed, bucket)).every(({ isMarker, isLatest }) => !isMarker && isLatest));
  const { deletion, hiddenBytes, hiddenVersions } = await mustRun("status", options);
  assert.deepEqual([deletion, hiddenBytes, hiddenVersions], ["for_good", 0, 0]);
});

test("a key that may not delete makes backups, and leaves pruning to another one", async () => {
  const { push, kept, listed, bucket, options } = await makeScene();
  const { capabilities } = all;
  proxy.settings.capabilities = without("deleteFiles");
  const { snapshot: first } = await push("first");
  const { snapshot: second, warnings } = await push("second");
  assert.match(warnings.join(), /this key may not delete/);
  const before = await listVersions(seaweed, bucket);
  const pruned = await mustRun("prune", options);
  assert.deepEqual([pruned.leftToAnotherKey, pruned.removedSnapshots], [true, []]);
  assert.deepEqual(await listVersions(seaweed, bucket), before, "nothing was deleted, and nothing hidden");
  assert.deepEqual(await listed(), [second, first]);
  assert.equal((await mustRun("status", options)).deletion, "denied");

  // Another machine with a better key. Retention is of one machine, unless it is asked for all.
  proxy.settings.capabilities = capabilities;
  const trusted = { ...options, stateDir: path.join(root, "trusted") };
  mkdirSync(trusted.stateDir);
  assert.deepEqual((await mustRun("prune", trusted)).removedSnapshots, []);
  assert.deepEqual((await mustRun("prune", { ...trusted, args: ["--all-machines"] })).removedSnapshots, [first]);
  assert.deepEqual([...(await kept())], [second]);
});

test("a key that may not delete hides what a lifecycle rule of the bucket then deletes", async () => {
  const { push, kept, listed, options } = await makeScene();
  const rule = { daysFromUploadingToHiding: null, daysFromHidingToDeleting: 7 };
  Object.assign(proxy.settings, {
    capabilities: without("deleteFiles"),
    lifecycleRules: [{ ...rule, fileNamePrefix: "openclaw-backup/" }],
  });
  const { snapshot: first } = await push("first");
  const { snapshot: second, warnings } = await push("second");
  assert.deepEqual([await listed(), warnings], [[second], []]);
  assert.deepEqual(await kept(), new Set([first, second]), "it is B2 that deletes it, in a week");
  const status = await mustRun("status", options);
  assert.deepEqual([status.deletion, status.hiddenForDays, status.warnings], ["by_lifecycle", 7, []]);
  assert.ok(status.hiddenBytes > 0);
  assert.equal((await mustRun("prune", options)).hiddenForDays, 7);

  // A rule for another folder does not count, nor one that the key may not see.
  proxy.settings.lifecycleRules = [{ ...rule, fileNamePrefix: "elsewhere/" }];
  assert.equal((await mustRun("status", options)).deletion, "denied");
  proxy.settings.lifecycleRules = [{ ...rule, fileNamePrefix: "" }];
  assert.equal((await mustRun("status", options)).deletion, "by_lifecycle");
  proxy.settings.capabilities = without("deleteFiles", "listBuckets");
  assert.equal((await mustRun("status", options)).deletion, "denied");
});

test("each capability that the first push lacks is named, and nothing is stored", async () => {
  for (const region of [{}, { endpoint: undefined }]) {
    const { options, bucket } = await makeScene(region);
    proxy.settings.capabilities = ["listBuckets", "listFiles"];
    const { message } = await mustFail("push", options, "AUTH");
    assert.match(message, /lacks the capabilities readFiles, writeFiles;/);
    assert.deepEqual(await listVersions(seaweed, bucket), []);
  }
});

test("Object Lock needs two capabilities more", async () => {
  const { options } = await makeScene({ objectLockDays: 7 });
  proxy.settings.capabilities = without("readFileRetentions", "writeFileRetentions");
  const { message } = await mustFail("push", options, "AUTH");
  assert.match(message, /lacks the capabilities readFileRetentions, writeFileRetentions;/);
});

test("a key that may only read restores, and is refused by a push", async () => {
  const { push, options, stateDir } = await makeScene();
  const { snapshot } = await push("restored by a key that may only read");
  proxy.settings.capabilities = ["listFiles", "readFiles"];
  const target = path.join(root, "restored");
  await mustRun("pull", { ...options, args: ["--snapshot", snapshot, "--target", target] });
  assert.deepEqual(readTree(path.join(target, "workspace")), readTree(path.join(stateDir, "workspace")));
  writeFileSync(path.join(stateDir, "workspace/SOUL.md"), "# Soul\n\nchanged\n");
  const { message } = await mustFail("push", options, "AUTH");
  assert.match(message, /writeFiles/);
});

test("a key that is restricted to the bucket and the prefix is enough", async () => {
  const { push, kept, bucket, options } = await makeScene({ prefix: "machines/one" });
  Object.assign(proxy.settings, { bucketName: bucket, namePrefix: "machines/one/" });
  await push("first");
  const { snapshot } = await push("second");
  assert.deepEqual([...(await kept())], [snapshot]);
  await mustRun("verify", options);
  await mustRun("prune", options);
  await mustRun("status", { ...options, args: ["--cost"] });
  assert.deepEqual(proxy.stats.status[403] ?? 0, 0, "it never asks for what is outside");

  Object.assign(proxy.settings, { namePrefix: "machines/two/" });
  assert.match((await mustFail("push", options, "CONFIG", { exitCode: 65 })).message, /^prefix: .*"machines\/two\/"/);
  Object.assign(proxy.settings, { bucketName: "another", namePrefix: null });
  assert.match((await mustFail("push", options, "CONFIG", { exitCode: 65 })).message, /^bucket: .*"another"/);
});

test("a lifecycle rule that would take backups apart is refused before the first push", async () => {
  const { options, bucket } = await makeScene();
  proxy.settings.lifecycleRules = [TAKES_APART];
  const { message } = await mustFail("push", options, "CONFIG", { exitCode: 65 });
  assert.match(message, /30 days after their upload/);
  assert.deepEqual(await listVersions(seaweed, bucket), []);
});

test("it is refused also where this machine would put back the key slots of a bucket that was emptied", async () => {
  const { push, options, bucket } = await makeScene();
  await push("first");
  for (const { key, versionId } of await listVersions(seaweed, bucket)) {
    await s3Request(seaweed, "DELETE", `/${bucket}/${key}`, { query: { versionId } });
  }
  assert.deepEqual(await listVersions(seaweed, bucket), []);
  proxy.settings.lifecycleRules = [TAKES_APART];
  await mustFail("push", options, "CONFIG", { exitCode: 65 });
  assert.deepEqual(await listVersions(seaweed, bucket), []);
});

test("the cost of a month is counted as B2 counts", async () => {
  const { push, options } = await makeScene({ schedule: "6h" });
  await push("first");
  await push("second");
  proxy.reset();
  const { code, report } = await runCli("status", { ...options, args: ["--cost"] });
  assert.equal(code, 0);
  const { pushesPerMonth, measuredPushes, billedBytes, classB, classC, usd, pricesDate } = report.cost;
  assert.equal(measuredPushes, 2);
  assert.ok(Math.abs(pushesPerMonth - (120 + 60)) < 1, "the schedule, and two by hand in a day");
  assert.equal(billedBytes, report.storedBytes + report.hiddenBytes);
  assert.ok(classC.perMonth >= 2 * pushesPerMonth, "each push authorizes and lists");
  assert.ok(classB.perMonth <= classC.perMonth);
  assert.equal(usd, 0);
  assert.match(pricesDate, /^\d{4}-\d\d-\d\d$/);
  assert.equal((await mustRun("status", options)).cost, null);
});
