// Snapshots of openclaw-b2-backup 0.1.x in a bucket, written here with node:crypto as 0.1.x wrote them, and what the command
// line makes of them. tests/legacy.rs has the many cases.

import assert from "node:assert/strict";
import { createCipheriv, createHash, randomBytes, scryptSync } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { after, before, test } from "node:test";

import { mustFail, mustRun, writeConfig } from "./support/cli.mjs";
import { temporaryDirectory } from "./support/processes.mjs";
import { listObjects, s3Request } from "./support/s3.mjs";
import { startSeaweed } from "./support/seaweed.mjs";

const BUCKET = "old-backups";
const FIRST = "2026-01-01T00-00-00-000Z-0a1b2c3d";
const SECOND = "2026-01-02T00-00-00-000Z-4e5f6071";
const root = temporaryDirectory("legacy");
const stateDir = path.join(root, "state");
const config = path.join(root, "openclaw.json");
const on = { config, stateDir };
let seaweed;

/** Magic, salt, nonce, tag, ciphertext. */
function encrypt(content) {
  const [salt, nonce] = [randomBytes(32), randomBytes(12)];
  const key = scryptSync(seaweed.secretKey, salt, 32, { N: 16384, r: 8, p: 1 });
  const cipher = createCipheriv("aes-256-gcm", key, nonce);
  const ciphertext = Buffer.concat([cipher.update(content), cipher.final()]);
  return Buffer.concat([Buffer.from("B2EN"), salt, nonce, cipher.getAuthTag(), ciphertext]);
}

/** Uploads `changed` of `files`, and a manifest of all. */
async function oldPush(id, files, changed) {
  const put = async (name, body) => {
    const { status } = await s3Request(seaweed, "PUT", `/${BUCKET}/openclaw-backup/${id}/${name}`, { body });
    assert.equal(status, 200);
  };
  for (const name of changed) await put(name, encrypt(files[name]));
  const entries = Object.entries(files).map(([name, content]) => {
    return [name, { hash: createHash("sha256").update(content).digest("hex"), size: content.length }];
  });
  const manifest = { version: 1, timestamp: "2026-01-01T00:00:00.000Z", files: Object.fromEntries(entries) };
  await put("manifest.json", Buffer.from(JSON.stringify(manifest, null, 2)));
}

before(async () => {
  seaweed = await startSeaweed();
  await seaweed.createBucket(BUCKET);
  // What 0.1.x had, and where this server is.
  const { accessKey: keyId, secretKey: applicationKey, endpoint } = seaweed;
  writeConfig(config, { keyId, applicationKey, bucket: BUCKET, schedule: "daily", keepSnapshots: 10, endpoint });
  const files = { "workspace/SOUL.md": "first soul", "workspace/MEMORY.md": "remembers", "cron/jobs.json": "[]" };
  await oldPush(FIRST, files, Object.keys(files));
  await oldPush(SECOND, { ...files, "workspace/SOUL.md": "second soul" }, ["workspace/SOUL.md"]);
  mkdirSync(path.join(stateDir, "workspace"), { recursive: true });
  writeFileSync(path.join(stateDir, "workspace/SOUL.md"), "soul of today");
});

after(() => seaweed?.stop());

const live = (name) => readFileSync(path.join(stateDir, name), "utf8");
const oldObjects = async () => {
  const names = (await listObjects(seaweed, BUCKET)).map(({ key }) => key);
  return names.filter((name) => name.includes(FIRST) || name.includes(SECOND)).sort();
};

test("old snapshots are listed, pulled, rolled back to and imported, and stay where they are", async () => {
  const before = await oldObjects();
  assert.equal(before.length, 6);
  const { snapshots } = await mustRun("list", on);
  const shown = snapshots.map(({ id, kind, files, complete }) => [id, kind, files, complete]);
  assert.deepEqual(shown, [
    [SECOND, "legacy", 3, true],
    [FIRST, "legacy", 3, true],
  ]);
  await mustFail("pull", { ...on, args: ["--snapshot", "latest", "--target", path.join(root, "none")] }, "NOT_FOUND");
  const pulled = path.join(root, "pulled");
  await mustRun("pull", { ...on, args: ["--snapshot", SECOND, "--target", pulled] });
  assert.equal(readFileSync(path.join(pulled, "workspace/SOUL.md"), "utf8"), "second soul");
  assert.equal(readFileSync(path.join(pulled, "workspace/MEMORY.md"), "utf8"), "remembers");

  const plan = await mustRun("rollback", { ...on, args: ["--snapshot", SECOND, "--plan"] });
  assert.match(plan.warnings[0], /nothing authenticates/);
  assert.equal(live("workspace/SOUL.md"), "soul of today");
  const done = await mustRun("rollback", { ...on, args: ["--snapshot", SECOND, "--yes"] });
  assert.equal(live("workspace/SOUL.md"), "second soul");
  assert.equal(live("cron/jobs.json"), "[]");
  assert.match(done.safetySnapshot, /^safety-/);

  const report = await mustRun("import-legacy", on);
  assert.deepEqual(
    report.imported.map(({ from }) => from),
    [FIRST, SECOND],
  );
  assert.deepEqual([report.present, report.skipped], [0, []]);
  assert.equal((await mustRun("import-legacy", on)).present, 2);
  const fromImport = path.join(root, "from-import");
  await mustRun("pull", { ...on, args: ["--snapshot", report.imported[0].snapshot, "--target", fromImport] });
  assert.equal(readFileSync(path.join(fromImport, "workspace/SOUL.md"), "utf8"), "first soul");
  assert.equal((await mustRun("status", on)).legacySnapshots, 2);
  await mustRun("prune", on);
  assert.deepEqual(await oldObjects(), before);
});
