// From the registry to a backup and back out: the packages as they are published lie in a real npm registry on loopback, and
// OpenClaw installs, updates and removes them with its own commands, as README says. Installs from a tarball (`npm-pack:`) are
// in plugin.test.mjs, which has what the plugin does then.
//
// The steps build on one another: after the first that fails the rest is skipped.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { mustRun } from "./support/cli.mjs";
import { platformName } from "../js/platform.js";
import { createState, openclaw, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { PLUGIN, configurePlugin, dependencyDirectories, packageDirectories } from "./support/plugin.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { startSeaweed } from "./support/seaweed.mjs";
import { steps } from "./support/steps.mjs";
import { projectDir } from "./support/tools.mjs";
import { startVerdaccio } from "./support/verdaccio.mjs";

const root = temporaryDirectory("registry-test");
const stateDir = path.join(root, "state");
const inState = (...names) => path.join(stateDir, ...names);
const readJson = (...names) => JSON.parse(readFileSync(path.join(...names), "utf8"));
const { version } = readJson(projectDir, "package.json");
const NEWER = version.replace(/\d+$/, (patch) => `${Number(patch) + 1}`);
/** What a person says yes to at a terminal: a source that OpenClaw does not know, and what the plugin may do. */
const YES = ["--force", "--accept-capabilities"];

test("OpenClaw installs, updates and removes it from a registry", { timeout: 40 * 60_000 }, async (t) => {
  const { step, keep } = steps(t);
  const seaweed = keep(await startSeaweed());
  await seaweed.createBucket("registry-test");
  const model = keep(await startMockModel());
  const registry = keep(await startVerdaccio());
  const { endpoint, accessKey: keyId, secretKey: applicationKey } = seaweed;

  const plugins = (...args) => openclaw(stateDir, ["plugins", ...args], { env: registry.env });
  const release = async (options) => {
    const packages = path.dirname((await packageDirectories(options)).at(-1));
    return { packages, printed: await registry.release(packages) };
  };
  /** What OpenClaw says that it has, and the versions of the packages beside it. */
  const installed = async () => {
    const { plugins: known } = JSON.parse(await plugins("list", "--json"));
    const { rootDir, status } = known.find(({ id }) => id === PLUGIN);
    const modules = path.dirname(rootDir);
    const names = readdirSync(modules).filter((name) => !name.startsWith("."));
    const version = (name) => readJson(modules, name, "package.json").version;
    return { rootDir, status, versions: Object.fromEntries(names.map((name) => [name, version(name)])) };
  };
  const croner = readJson(projectDir, "node_modules/croner/package.json").version;
  const expected = (of) => ({ croner, [PLUGIN]: of, [`${PLUGIN}-${platformName()}`]: of });
  let gateway;
  const launch = async () => (gateway = keep(await startGateway(stateDir, { env: registry.env })));
  const snapshots = async () => (await mustRun("list", { stateDir })).snapshots;

  await step("it is published, each platform's package before the main one", async () => {
    for (const directory of dependencyDirectories()) await registry.publish(directory);
    const { packages, printed } = await release();
    assert.doesNotMatch(printed, /already/);
    const again = await registry.release(packages);
    assert.equal(again.match(/ is there already$/gm).length, 2, "a release that stopped half-way is run again");
    const { "dist-tags": tags, versions } = await (await fetch(`${registry.url}${PLUGIN}`)).json();
    assert.equal(tags.latest, version);
    assert.equal(Object.keys(versions[version].optionalDependencies).length, 7);
  });

  await step("openclaw plugins install takes it, its dependencies, and the addon of this platform alone", async () => {
    createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
    await plugins("install", PLUGIN, ...YES);
    assert.deepEqual((await installed()).versions, expected(version));
  });

  let first;
  await step("with three fields set, a gateway backs up", async () => {
    configurePlugin(stateDir, { keyId, applicationKey, bucket: "registry-test", endpoint });
    await launch();
    await gateway.turn("SAY apple");
    await gateway.stop();
    [first] = await snapshots();
    assert.deepEqual([first.trigger, first.complete], ["gateway_stop", true]);
  });

  let updated;
  await step("openclaw plugins update takes the next version, and it goes on where the last one was", async () => {
    await release({ version: NEWER });
    await plugins("update", PLUGIN);
    updated = await installed();
    assert.deepEqual([updated.status, updated.versions], ["loaded", expected(NEWER)]);
    await launch();
    assert.equal(await gateway.turn("SAY banana"), "banana");
    await gateway.stop();
    const [latest, ...older] = await snapshots();
    assert.equal(latest.trigger, "gateway_stop");
    assert.ok(older.some((snapshot) => snapshot.id === first.id));
  });

  await step("openclaw plugins uninstall leaves a gateway that knows nothing of it, and the snapshots", async () => {
    const config = path.join(root, "before.json");
    writeFileSync(config, readFileSync(inState("openclaw.json")));
    await plugins("uninstall", PLUGIN, "--force");
    assert.ok(!existsSync(updated.rootDir), "its packages are gone");
    assert.deepEqual(readJson(inState("openclaw.json")).plugins.entries[PLUGIN], { enabled: false });
    await launch();
    assert.equal(await gateway.turn("SAY cherry"), "cherry");
    assert.doesNotMatch(gateway.output(), /B2 backup|openclaw-b2-backup/);
    await gateway.stop();
    assert.ok((await mustRun("list", { stateDir, config })).snapshots.some((snapshot) => snapshot.id === first.id));
  });

  await step("a linked directory works where npm has installed its dependencies", async () => {
    const linked = (await packageDirectories()).at(-1);
    const install = await run("npm", ["install", "--ignore-scripts"], {
      cwd: linked,
      env: { ...process.env, ...registry.env },
    });
    assert.equal(install.code, 0, install.stderr);
    const other = path.join(root, "linked");
    createState(other, { modelUrl: model.baseUrl, apiKey: "sk-x" });
    await openclaw(other, ["plugins", "install", "--link", linked, ...YES], { env: registry.env });
    configurePlugin(other, { keyId, applicationKey, bucket: "registry-test", endpoint, prefix: "linked" });
    const report = JSON.parse(await openclaw(other, ["b2-backup", "push", "--json"]));
    assert.equal(report.ok, true);
    assert.equal((await mustRun("list", { stateDir: other })).snapshots[0].id, report.snapshot);
  });
});
