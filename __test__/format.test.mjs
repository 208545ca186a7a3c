// The stored format, read by a second program: what `push` has written is what docs/format.md says, or
// support/second_reader.py, which was written from that page, cannot read it.
//
// The second reader checks every tag, checksum, chunk id and hash by itself; here its answers are held against the state and
// against what `pull` writes.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import {
  chmodSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { mustRun, writeConfig } from "./support/cli.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { isSqlite } from "./support/sqlite.mjs";
import { ensureTools } from "./support/tools.mjs";
import { readTree } from "./support/tree.mjs";

const APPLICATION_KEY = "application-key-of-the-owner";
/** A database of OpenClaw's, which is stored without some of its indexes. */
const OPENCLAWS = "state/openclaw.sqlite";
const PASSPHRASE = "päss phrase, with a space at its end ";
const reader = fileURLToPath(new URL("support/second_reader.py", import.meta.url));
const root = temporaryDirectory("format");
const stateDir = path.join(root, "state");
const keyFile = path.join(root, "key-file");
let python;

/** Some of everything that a snapshot can hold. */
async function makeState() {
  const write = (name, bytes, mode = 0o644) => {
    const file = path.join(stateDir, name);
    mkdirSync(path.dirname(file), { recursive: true });
    writeFileSync(file, bytes, { mode });
    utimesSync(file, 1_700_000_000.5, 1_700_000_000.25);
  };
  write("openclaw.json", '{ "agents": {} }\n', 0o600);
  write("workspace/empty.md", "");
  write("workspace/one-byte", "x");
  write("workspace/random.bin", randomBytes(300_000));
  write(
    "workspace/grüße/text.jsonl",
    Array.from({ length: 60_000 }, (_, i) => `{"line":${i},"text":"as ever"}\n`).join(""),
  );
  write("workspace/same-text.jsonl", readFileSync(path.join(stateDir, "workspace/grüße/text.jsonl")));
  write("hooks/run.sh", "#!/bin/sh\n", 0o755);
  // So many that the list of the tree's own chunks is too long for the manifest.
  for (let i = 0; i < 5_000; i++) write(`agents/main/sessions/${i}.jsonl`, randomBytes(20));
  mkdirSync(path.join(stateDir, "workspace/empty-folder"), { mode: 0o700 });
  chmodSync(path.join(stateDir, "workspace/empty-folder"), 0o700);
  symlinkSync("../nowhere/at all", path.join(stateDir, "workspace/link"));
  const script = `import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(a, b)"); db.executemany("INSERT INTO t VALUES (?, ?)", ((i, "x" * 50) for i in range(3000)))
db.execute("DELETE FROM t WHERE a % 3 = 0"); db.commit()`;
  const indexed = `import sqlite3, sys; db = sqlite3.connect(sys.argv[1])
db.execute("CREATE TABLE t(a PRIMARY KEY, b, c UNIQUE)"); db.execute("CREATE INDEX by_b ON t(b, a) WHERE b > 1")
db.execute("CREATE UNIQUE INDEX one ON t(a, c)"); db.execute("CREATE INDEX by_c ON t(length(c))")
db.executemany("INSERT INTO t VALUES (?, ?, ?)", ((str(i), i % 7, "x" * i) for i in range(300))); db.commit()`;
  for (const [file, text] of [
    ["memory/main.sqlite", script],
    [OPENCLAWS, indexed],
  ]) {
    mkdirSync(path.join(stateDir, path.dirname(file)));
    const made = await run(python, ["-c", text, path.join(stateDir, file)]);
    assert.equal(made.code, 0, made.stderr);
  }
}

/** All that is in a database, as text; a vacuum changes the order of what is defined. */
async function dump(file) {
  const script = `import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); print("\\n".join(sorted(db.iterdump())))
print(db.execute("PRAGMA integrity_check").fetchall(), db.execute("SELECT name FROM sqlite_schema ORDER BY 1").fetchall())`;
  const { code, stdout, stderr } = await run(python, ["-c", script, file]);
  assert.equal(code, 0, stderr);
  return stdout;
}

before(async () => {
  ({ python } = ensureTools("python"));
  writeFileSync(keyFile, randomBytes(100));
  await makeState();
});

const sha256 = (file) => createHash("sha256").update(readFileSync(file)).digest("hex");

/** What the second reader must say of the state; databases, which go in as copies, are those that `pull` wrote. */
function expectedEntries(pulled) {
  const entries = [];
  const visit = (relative) => {
    for (const name of readdirSync(path.join(pulled, relative))) {
      const entry = relative ? `${relative}/${name}` : name;
      const live = path.join(stateDir, entry);
      const stat = lstatSync(live, { bigint: true });
      const content = (kind, file) => ({
        kind,
        size: Number(lstatSync(file).size),
        sha256: sha256(file),
        target: null,
      });
      const none = { size: 0, sha256: null };
      const what = () => {
        if (stat.isDirectory()) return { kind: "directory", ...none, target: null };
        if (stat.isSymbolicLink()) return { kind: "symlink", ...none, target: "../nowhere/at all" };
        return isSqlite(readFileSync(live)) ? content("database", path.join(pulled, entry)) : content("file", live);
      };
      entries.push({ path: entry, mode: Number(stat.mode & 0o7777n), mtime: String(stat.mtimeNs), ...what() });
      if (stat.isDirectory()) visit(entry);
    }
  };
  visit("");
  return entries.sort((a, b) => Buffer.compare(Buffer.from(a.path), Buffer.from(b.path)));
}

/** Runs the second reader. Times in nanoseconds are too large for a number of JavaScript's and come as text. */
async function secondReader(directory, secret, args) {
  const env = { ...process.env, TEST_APPLICATION_KEY: APPLICATION_KEY, TEST_PASSPHRASE: PASSPHRASE };
  const result = await run(python, [reader, directory, ...secret, ...args], { env });
  const text = result.stdout.replace(/"mtime": (-?\d+)/g, '"mtime": "$1"');
  return { ...result, report: result.code === 0 ? JSON.parse(text) : null };
}

async function mustRead(...args) {
  const { report, stderr } = await secondReader(...args);
  assert.ok(report, stderr);
  return report;
}

const APPLICATION_KEY_SLOT = ["--application-key-env", "TEST_APPLICATION_KEY"];
const OTHER_SLOTS = [
  ["--passphrase-env", "TEST_PASSPHRASE"],
  ["--key-file", keyFile],
];
/** How each repository is configured, and what opens it. */
const REPOSITORIES = {
  "encrypted with the application key": [{ applicationKey: APPLICATION_KEY }, [APPLICATION_KEY_SLOT]],
  "encrypted with other secrets": [{ applicationKey: APPLICATION_KEY, passphrase: PASSPHRASE, keyFile }, OTHER_SLOTS],
  unencrypted: [{ encrypt: false }, [["--plain"]]],
};

for (const [kind, [settings, openings]] of Object.entries(REPOSITORIES)) {
  const encrypt = settings.encrypt ?? true;
  test(`a second reader reads a repository that is ${kind}`, async (t) => {
    const directory = path.join(root, kind);
    const config = writeConfig(path.join(root, `${kind}.json`), {
      endpoint: `file://${encodeURI(directory)}`,
      ...settings,
    });
    const { snapshot, files, bytes, exceptions } = await mustRun("push", { config, stateDir });
    const pulled = path.join(root, `pulled-${kind}`);
    await mustRun("pull", { config, stateDir, args: ["--snapshot", snapshot, "--target", pulled] });
    for (const secret of openings) {
      await t.test(`all of it, with ${secret[0]}`, async () => {
        const report = await mustRead(directory, secret, ["--hashes"]);
        assert.equal(report.snapshot, snapshot);
        const exceptional = report.entries.filter((entry) => entry.kind === "exception").map((entry) => entry.path);
        assert.deepEqual(
          exceptional,
          exceptions.map((exception) => exception.path),
        );
        const comparable = (entry) => {
          // A database that is read leaves files beside it, which changes the time of its directory.
          if (["memory", "state"].includes(entry.path)) return { ...entry, mtime: null };
          // What is stored of this one is not what is pulled: that is looked at below.
          return entry.path === OPENCLAWS ? { ...entry, size: null, sha256: null } : entry;
        };
        const entries = report.entries.filter((entry) => entry.kind !== "exception");
        assert.deepEqual(entries.map(comparable), expectedEntries(pulled).map(comparable));
        assert.ok(entries.some((entry) => entry.kind === "database"));
      });
    }

    await t.test("the summary", async () => {
      const { snapshots } = await mustRead(directory, openings[0], ["--list"]);
      assert.equal(snapshots.length, 1);
      const [{ id, tree, ...summary }] = snapshots;
      assert.deepEqual([id, summary.files, summary.bytes, summary.trigger], [snapshot, files, bytes, "manual"]);
      assert.ok(tree.depth >= 1, "the list of the tree's chunks is itself stored");
    });

    await t.test("what it extracts is what pull writes", async () => {
      const extracted = path.join(root, `extracted-${kind}`);
      await mustRead(directory, openings[0], ["--snapshot", snapshot, "--extract", extracted]);
      const [ours, theirs] = [pulled, extracted].map((directory) => readTree(directory));
      const databases = await Promise.all([pulled, extracted, stateDir].map((at) => dump(path.join(at, OPENCLAWS))));
      assert.deepEqual(databases, Array(3).fill(databases[2]));
      assert.match(databases[2], /CREATE INDEX by_b/);
      delete ours[OPENCLAWS];
      delete theirs[OPENCLAWS];
      assert.deepEqual(theirs, ours);
    });

    await t.test("nothing without the right secret", async () => {
      const wrong = encrypt ? ["--plain"] : APPLICATION_KEY_SLOT;
      const { code, stdout } = await secondReader(directory, wrong, ["--list"]);
      assert.deepEqual([code, stdout], [1, ""]);
    });

    await t.test("a changed byte is found", async () => {
      for (const folder of ["packs", "index"]) {
        const names = readdirSync(path.join(directory, folder), { recursive: true, withFileTypes: true });
        const { parentPath, name } = names.filter((entry) => entry.isFile())[0];
        const file = path.join(parentPath, name);
        const bytes = readFileSync(file);
        const changed = Buffer.from(bytes);
        changed[Math.floor(bytes.length / 2)] ^= 1;
        writeFileSync(file, changed);
        const { code, stderr } = await secondReader(directory, openings[0], ["--hashes"]);
        writeFileSync(file, bytes);
        assert.equal(code, 1);
        assert.match(stderr, encrypt ? /the tag of part/ : /the checksum of part/);
      }
    });
  });
}

test("a second reader reads with a recovery code, after a rotation, and what was there before encryption was turned on", async () => {
  const directory = path.join(root, "changed");
  const settings = { endpoint: `file://${directory}`, applicationKey: APPLICATION_KEY };
  const configure = (name, more) => writeConfig(path.join(root, name), { ...settings, ...more });
  const push = async (config) => {
    writeFileSync(path.join(stateDir, "workspace/one-byte"), String(Math.random()));
    return (await mustRun("push", { config, stateDir })).snapshot;
  };
  const off = configure("changed-off.json", { encrypt: false });
  const config = configure("changed-on.json", {});
  const plain = await push(off);
  const first = await push(config);
  const { masterKey } = await mustRun("key rotate", { config, stateDir });
  const rotated = await push(config);
  const { recoveryCode } = await mustRun("key recovery-code", { config, stateDir });
  process.env.TEST_RECOVERY_CODE = recoveryCode.toLowerCase().replaceAll("-", " ").replaceAll("0", "o");
  const secrets = [APPLICATION_KEY_SLOT, ["--recovery-code-env", "TEST_RECOVERY_CODE"]];
  for (const secret of secrets) {
    for (const snapshot of [plain, first, rotated]) {
      const { entries } = await mustRead(directory, secret, ["--snapshot", snapshot, "--hashes"]);
      assert.ok(entries.some((entry) => entry.kind === "database"));
    }
  }
  const keyOf = (snapshot) =>
    JSON.parse(readFileSync(path.join(directory, snapshot, "manifest.json"), "utf8")).masterKey;
  assert.deepEqual([keyOf(plain), keyOf(rotated)], ["0".repeat(32), masterKey]);
  assert.notEqual(keyOf(first), masterKey);
});
