// What npm users get: exactly these files, in the main package and in that of every platform; and what is packed works where it
// is installed, in an empty directory, or says which package is missing. Nothing is fetched but from a registry on loopback.

import assert from "node:assert/strict";
import { cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { platformName } from "../js/platform.js";
import { makePackages } from "../scripts/package.mjs";
import { writeConfig } from "./support/cli.mjs";
import { dependencyDirectories, packageDirectories } from "./support/plugin.mjs";
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
  assert.match(readFileSync(inProject("native.cjs"), "utf8"), new RegExp(`expected ${version} but got`));
});

test("the changes of this version are told", async () => {
  const { code, stdout, stderr } = await run(process.execPath, ["scripts/changelog.mjs"], { cwd: projectDir });
  assert.equal(code, 0, stderr);
  assert.match(stdout, /\w/);
  const unknown = await run(process.execPath, ["scripts/changelog.mjs", "99.0.0"], { cwd: projectDir });
  assert.deepEqual([unknown.code, unknown.stderr], [1, "CHANGELOG.md says nothing of 99.0.0\n"]);
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
  const [, target] = /^export interface Target \{$([^]*?)^\}$/m.exec(readFileSync(inProject("index.d.ts"), "utf8"));
  const typed = [...target.matchAll(/^ {2}(\w+)\??:/gm)].map(([, name]) => name);
  assert.deepEqual(typed.sort(), ["stateDir", ...fields].sort());
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
    assert.deepEqual([main, files], [`${napi.binaryName}.${platform}.node`, [main, "THIRD-PARTY-NOTICES.txt"]]);
    assert.deepEqual([os, cpu], [[system], [processor]]);
    assert.deepEqual(libc, { gnu: ["glibc"], musl: ["musl"] }[abi]);
  }
});

test("the workflows build and try every platform, with the compiler that is declared and with pinned actions", () => {
  const [, compiler] = /^rust-version = "(.+)"$/m.exec(readFileSync(inProject("Cargo.toml"), "utf8"));
  for (const name of readdirSync(inProject(".github/workflows"))) {
    const text = readFileSync(inProject(".github/workflows", name), "utf8");
    const found = (pattern) => [...text.matchAll(pattern)].map(([, what]) => what);
    for (const action of found(/uses: (.*)/g)) assert.match(action, /^[\w-]+\/[\w-]+@[0-9a-f]{40} # v\d/);
    assert.deepEqual(new Set(found(/toolchain install (\S+)/g)), new Set([compiler]), name);
    if (name !== "release.yml") continue;
    // The jobs that build, and those that try.
    for (const part of text.split(/^  try:$/m)) {
      const targets = [...part.matchAll(/- target: (\S+)/g)].map(([, target]) => target);
      assert.deepEqual(targets.sort(), [...napi.targets].sort());
    }
  }
});

test("what a release publishes is exactly this, and npm would take it", async (t) => {
  const addons = path.join(root, "addons");
  const output = path.join(root, "release");
  mkdirSync(addons);
  const platforms = readdirSync(inProject("npm"));
  const addonOf = (platform) => `${napi.binaryName}.${platform}.node`;
  const [first, ...rest] = platforms;
  for (const platform of rest) writeFileSync(path.join(addons, addonOf(platform)), "addon");
  assert.throws(() => makePackages({ output, addons, all: true }), new RegExp(`no addon in .* for ${first}$`));
  writeFileSync(path.join(addons, addonOf(first)), "addon");
  const directories = makePackages({ output, addons, all: true });
  assert.equal(path.basename(directories.at(-1)), packageName, "the main package is published last");

  // npm looks whether the version is already there.
  const registry = await startRegistry([]);
  t.after(registry.stop);
  for (const directory of directories) {
    const name = path.basename(directory);
    await t.test(name, async () => {
      const published = JSON.parse(await npm(["publish", "--dry-run", "--json"], directory, registry.url));
      // Newer npm tells it by the package's name.
      const { files } = published[name] ?? published;
      const shipped = files.map((file) => file.path).sort();
      const manifest = JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8"));
      // No script runs where it is installed, and nothing that only the checkout needs is named.
      assert.deepEqual([manifest.scripts, manifest.devDependencies], [undefined, undefined]);
      assert.deepEqual([manifest.version, manifest.license], [version, "MIT"]);
      assert.match(manifest.repository.url, /^git\+https:\/\/github\.com\//, "provenance is bound to it");
      if (name !== packageName) {
        const addon = addonOf(name.slice(packageName.length + 1));
        assert.deepEqual(shipped, ["LICENSE", "README.md", "THIRD-PARTY-NOTICES.txt", addon, "package.json"].sort());
        return;
      }
      const trees = ["assets", "js", "skills"].flatMap((tree) =>
        filesOf(readTree(inProject(tree))).map((file) => `${tree}/${file}`),
      );
      const alone = ["LICENSE", "README.md", "bin/openclaw-b2-backup.js", "index.d.ts", "index.js", "native.cjs"];
      assert.deepEqual(shipped, [...trees, ...alone, "openclaw.plugin.json", "package.json"].sort());
      const wanted = Object.fromEntries(platforms.map((platform) => [`${packageName}-${platform}`, version]));
      assert.deepEqual(manifest.optionalDependencies, wanted);
      assert.deepEqual(Object.keys(manifest.dependencies), ["croner"]);
    });
  }

  await t.test("the checkout itself cannot be published", async () => {
    const result = await run("npm", ["publish", "--dry-run", `--registry=${registry.url}`], { cwd: projectDir });
    assert.notEqual(result.code, 0);
    assert.match(result.stderr + result.stdout, /publish what npm run package makes/);
  });
});

test("the packed package works where it is installed", async (t) => {
  const [platformDir, mainDir] = await packageDirectories();
  const tarball = await pack(mainDir, root);
  const home = path.join(root, "home");
  const modules = path.join(home, "node_modules");
  const platformPackage = `${packageName}-${platformName()}`;
  const stateDir = path.join(root, "state");
  const settings = { endpoint: `file://${path.join(root, "repository")}`, applicationKey: "key-of-a-test" };
  const config = writeConfig(path.join(root, "openclaw.json"), settings);
  const env = { PATH: process.env.PATH, HOME: home };
  const type = (...args) => run(path.join(modules, ".bin", packageName), args, { cwd: home, env });
  const typeVerb = async (...args) => {
    const result = await type(...args, "--json", "--config", config, "--state-dir", stateDir);
    return { ...result, report: JSON.parse(result.stdout) };
  };
  /** What it says where it cannot work: one line. */
  const refusal = async () => {
    const { code, report } = await typeVerb("list");
    assert.deepEqual([code, report.code], [1, "IO"]);
    const [, reason] = /^cannot load the native addon for \w+-\w+: ([^\n]+)$/.exec(report.message) ?? [];
    return reason ?? report.message;
  };
  const again = "install openclaw-b2-backup again, with optional dependencies";
  /** Puts the package of this platform there, or what pretends to be another's. */
  const place = (name, change = {}) => {
    cpSync(platformDir, path.join(modules, name), { recursive: true });
    const file = path.join(modules, name, "package.json");
    const manifest = JSON.parse(readFileSync(file, "utf8"));
    writeFileSync(file, JSON.stringify({ ...manifest, name, ...change }));
  };
  const remove = (name) => rmSync(path.join(modules, name), { recursive: true });

  const packages = dependencyDirectories().map(async (directory) => {
    const manifest = JSON.parse(readFileSync(path.join(directory, "package.json"), "utf8"));
    return { manifest, tarball: await pack(directory, root) };
  });
  const registry = await startRegistry(await Promise.all(packages));
  t.after(registry.stop);

  await t.test("it says its version, also without an addon, and names the package that is missing", async () => {
    mkdirSync(home);
    writeFileSync(path.join(home, "package.json"), '{ "private": true }');
    await npm(["install", "--omit=optional", tarball], home, registry.url);
    assert.equal((await type("--version")).stdout, `${version}\n`);
    assert.equal(await refusal(), `${platformPackage} is not installed; ${again}`);
  });

  await t.test("it names another platform's package that is there in its place", async () => {
    const other = readdirSync(inProject("npm")).find((platform) => platform !== platformName());
    place(`${packageName}-${other}`);
    assert.equal(await refusal(), `${platformPackage} is not installed, but ${packageName}-${other} is; ${again}`);
    remove(`${packageName}-${other}`);
  });

  await t.test("it names the package that is of another version", async () => {
    place(platformPackage, { version: "0.1.9" });
    assert.equal(await refusal(), `${platformPackage} is version 0.1.9 and must be ${version}; ${again}`);
    remove(platformPackage);
  });

  await t.test("it names the file that cannot be loaded", async () => {
    place(platformPackage);
    const addon = readdirSync(platformDir).find((name) => name.endsWith(".node"));
    writeFileSync(path.join(modules, platformPackage, addon), "not a library");
    assert.match(await refusal(), new RegExp(`${platformPackage}/${addon}: `));
    remove(platformPackage);
  });

  await t.test("it backs up and restores, with the package of the platform", async () => {
    place(platformPackage);
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
  });

  await t.test("it runs the demo, as a release tries each addon on its platform", async () => {
    const env = { ...process.env, npm_config_registry: registry.url };
    const result = await run(process.execPath, ["scripts/try-package.mjs"], { cwd: projectDir, env });
    assert.equal(result.code, 0, result.stdout + result.stderr);
  });
});
