// What npm users get: the packed tarball, installed in an empty directory beside the package of their platform, works there.
// Nothing is fetched: the package has no dependencies but those of the platforms, which publishing adds.

import assert from "node:assert/strict";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { writeConfig } from "./support/cli.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { projectDir } from "./support/tools.mjs";
import { readTree } from "./support/tree.mjs";

const root = temporaryDirectory("package");
const inProject = (...names) => path.join(projectDir, ...names);
const readJson = (...names) => JSON.parse(readFileSync(inProject(...names), "utf8"));
const { name: packageName, version, napi } = readJson("package.json");

/** Runs npm without the network and without its notes to people; resolves to what it prints. */
async function npm(args, cwd) {
  const quiet = ["--offline", "--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts"];
  const result = await run("npm", [...args, ...quiet], { cwd });
  assert.equal(result.code, 0, result.stdout + result.stderr);
  return result.stdout;
}

test("every place has the same version", () => {
  const [, cargo] = /^version = "(.+)"$/m.exec(readFileSync(inProject("Cargo.toml"), "utf8"));
  assert.equal(cargo, version);
  assert.equal(readJson("package-lock.json").version, version);
});

test("every platform has a package that is installed there only", () => {
  const platforms = readdirSync(inProject("npm"));
  assert.equal(platforms.length, napi.targets.length);
  for (const platform of platforms) {
    const { name, main, files, os, cpu, libc, ...rest } = readJson("npm", platform, "package.json");
    const [system, processor, abi] = platform.split("-");
    assert.equal(name, `${packageName}-${platform}`);
    assert.equal(rest.version, version);
    assert.deepEqual([main, files], [`${napi.binaryName}.${platform}.node`, [main]]);
    assert.deepEqual([os, cpu], [[system], [processor]]);
    assert.deepEqual(libc, { gnu: ["glibc"], musl: ["musl"] }[abi]);
  }
});

test("the packed package works where it is installed", async (t) => {
  const [packed] = JSON.parse(await npm(["pack", "--json", "--pack-destination", root], projectDir));
  const home = path.join(root, "home");
  const installed = path.join(home, "node_modules", packageName);
  const stateDir = path.join(root, "state");
  const settings = { endpoint: `file://${path.join(root, "repository")}`, applicationKey: "key-of-a-test" };
  const config = writeConfig(path.join(root, "openclaw.json"), settings);
  const env = { PATH: process.env.PATH, HOME: home };
  const type = (...args) => run(path.join(home, "node_modules/.bin", packageName), args, { cwd: home, env });
  const typeVerb = async (...args) => {
    const result = await type(...args, "--json", "--config", config, "--state-dir", stateDir);
    return { ...result, report: JSON.parse(result.stdout) };
  };

  await t.test("it holds what is needed, and nothing else", () => {
    const needed = readdirSync(inProject("js")).map((name) => `js/${name}`);
    needed.push(
      "LICENSE",
      "README.md",
      "bin/openclaw-b2-backup.js",
      "index.d.ts",
      "index.js",
      "native.cjs",
      "package.json",
    );
    assert.deepEqual(packed.files.map((file) => file.path).sort(), needed.sort());
  });

  await t.test("it says its version, also without an addon, and what is missing", async () => {
    mkdirSync(home);
    writeFileSync(path.join(home, "package.json"), '{ "private": true }');
    await npm(["install", "--omit=optional", path.join(root, packed.filename)], home);
    assert.equal((await type("--version")).stdout, `${version}\n`);
    const { code, report } = await typeVerb("list");
    assert.deepEqual([code, report.code], [1, "IO"]);
    assert.match(report.message, /it is not installed; install openclaw-b2-backup again, with optional dependencies/);
  });

  await t.test("it backs up and restores, with the package of the platform", async () => {
    const [addon, ...others] = readdirSync(projectDir).filter((name) => name.endsWith(".node"));
    assert.deepEqual([typeof addon, others], ["string", []], "one addon must be built: node scripts/build-addon.mjs");
    const [, platform] = addon.split(".");
    const platformPackage = `${installed}-${platform}`;
    cpSync(inProject("npm", platform), platformPackage, { recursive: true });
    copyFileSync(inProject(addon), path.join(platformPackage, addon));
    mkdirSync(path.join(stateDir, "workspace"), { recursive: true });
    writeFileSync(path.join(stateDir, "workspace/SOUL.md"), "# Soul\n");
    const push = await typeVerb("push");
    assert.equal(push.code, 0, push.stdout);
    const target = path.join(root, "restored");
    const pull = await typeVerb("pull", "--snapshot", push.report.snapshot, "--target", target);
    assert.equal(pull.code, 0, pull.stdout);
    assert.deepEqual(
      readTree(target),
      readTree(stateDir, (name) => name === "b2-backup"),
    );
    assert.ok(!existsSync(path.join(installed, addon)));
  });
});
