// What npm users get: the packed tarball, installed in an empty directory beside the package of their platform, works there.
// Nothing is fetched but from a registry on loopback, which has the one dependency; publishing adds those of the platforms.

import assert from "node:assert/strict";
import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { writeConfig } from "./support/cli.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { pack, startRegistry } from "./support/registry.mjs";
import { projectDir } from "./support/tools.mjs";
import { filesOf, readTree } from "./support/tree.mjs";

const root = temporaryDirectory("package");
const inProject = (...names) => path.join(projectDir, ...names);
const readJson = (...names) => JSON.parse(readFileSync(inProject(...names), "utf8"));
const { name: packageName, version, napi } = readJson("package.json");

/** Runs npm with a registry and without its notes to people; resolves to what it prints. */
async function npm(args, cwd, registry = "http://127.0.0.1:9/") {
  const quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--ignore-scripts", `--registry=${registry}`];
  const result = await run("npm", [...args, ...quiet], { cwd });
  assert.equal(result.code, 0, result.stdout + result.stderr);
  return result.stdout;
}

test("every place has the same version", () => {
  const [, cargo] = /^version = "(.+)"$/m.exec(readFileSync(inProject("Cargo.toml"), "utf8"));
  assert.equal(cargo, version);
  assert.equal(readJson("package-lock.json").version, version);
});

test("OpenClaw is told of every platform's package, and of every field that the addon takes", () => {
  const { openclaw, files } = readJson("package.json");
  const { id, configSchema, uiHints, configGroups, skills, version: none } = readJson("openclaw.plugin.json");
  assert.equal(id, packageName);
  assert.equal(none, undefined, "the version is in package.json");
  const platforms = readdirSync(inProject("npm")).map((platform) => `${packageName}-${platform}`);
  assert.deepEqual(openclaw.install.requiredPlatformPackages.sort(), platforms.sort());
  for (const file of [...openclaw.extensions, ...skills]) {
    assert.ok(files.includes(file.replace(/^\.\//, "")), file);
    assert.ok(existsSync(inProject(file)), file);
  }
  const [, names] = /const FIELDS: [^=]*= \[([^\]]*)\]/.exec(readFileSync(inProject("src/config/parse.rs"), "utf8"));
  const fields = [...names.matchAll(/"(\w+)"/g)].map(([, name]) => name).filter((name) => name !== "stateDir");
  assert.deepEqual(Object.keys(configSchema.properties).sort(), fields.sort());
  assert.deepEqual(configGroups.flatMap((group) => group.properties).sort(), fields);
  for (const field of fields) assert.ok(uiHints[field]?.label, field);
  for (const field of ["applicationKey", "passphrase"]) assert.equal(uiHints[field].sensitive, true);
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
    const needed = ["js", "skills"].flatMap((name) =>
      filesOf(readTree(inProject(name))).map((file) => `${name}/${file}`),
    );
    needed.push(
      "LICENSE",
      "README.md",
      "bin/openclaw-b2-backup.js",
      "index.d.ts",
      "index.js",
      "native.cjs",
      "openclaw.plugin.json",
      "package.json",
    );
    assert.deepEqual(packed.files.map((file) => file.path).sort(), needed.sort());
  });

  await t.test("it says its version, also without an addon, and what is missing", async () => {
    mkdirSync(home);
    writeFileSync(path.join(home, "package.json"), '{ "private": true }');
    const croner = { manifest: readJson("node_modules/croner/package.json") };
    const registry = await startRegistry([{ ...croner, tarball: await pack(inProject("node_modules/croner"), root) }]);
    t.after(registry.stop);
    await npm(["install", "--omit=optional", path.join(root, packed.filename)], home, registry.url);
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
