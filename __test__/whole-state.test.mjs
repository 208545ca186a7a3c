// Everything that makes an instance its owner's, and nothing that is a secret of its machine: a real instance with several
// agents, with a workspace and an agent's directory outside the state directory, included configuration, cron jobs, memory,
// hooks, skills and an installed plugin, its secrets planted wherever OpenClaw keeps some. What is stored is opened by the second
// reader; a new machine restores it and works.
//
// The steps build on one another: after the first that fails the rest is skipped.

import assert from "node:assert/strict";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { mustRun, writeConfig } from "./support/cli.mjs";
import { createState, IN_YEARS, openclaw, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { run, temporaryDirectory } from "./support/processes.mjs";
import { changeSqlite, isSqlite, plantRows, querySqlite } from "./support/sqlite.mjs";
import { steps } from "./support/steps.mjs";
import { ensureTools } from "./support/tools.mjs";
import { filesOf, readTree } from "./support/tree.mjs";

/** Tables that hold credentials, by OpenClaw's own list for redacted backups. */
const SECRET_TABLES = [
  ...["audit_identity_keys", "apns_registrations", "channel_ingress_events", "channel_pairing_requests"],
  ...["clawhub_promotion_claims", "config_revision_keys", "device_auth_tokens", "device_bootstrap_tokens"],
  ...["device_identities", "device_pairing_join_codes", "device_pairing_paired", "gateway_origin_device_tokens"],
  ...["mcp_oauth_pending_authorizations", "mcp_oauth_stores", "native_hook_relay_bridges", "secret_store_entries"],
  ...["web_push_subscriptions", "worker_environment_credentials"],
  ...["auth_profile_state", "auth_profile_store", "session_suggestions"],
];
const AGENTS = ["main", "work", "play"];
const APPLICATION_KEY = "application-key-of-the-owner";
const sessionOf = (agent) => `agent:${agent}:main`;

const root = temporaryDirectory("whole-state");
const stateDir = path.join(root, "state");
const outside = path.join(root, "outside");

function write(file, text, mode = 0o644) {
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
  chmodSync(file, mode);
}

const databasesOf = (directory) =>
  filesOf(readTree(directory, (entry) => ["b2-backup", "tmp", "cache"].includes(entry)))
    .map((name) => path.join(directory, name))
    .filter((file) => isSqlite(readFileSync(file)));

/** Everything that `openclaw doctor` has to say about a state directory, without what differs from one directory to the next. */
async function complaints(directory) {
  const { findings } = JSON.parse(await openclaw(directory, ["doctor", "--json"]));
  return findings.map(({ checkId, severity, message }) =>
    `${severity} ${checkId}: ${message}`.replaceAll(directory, "."),
  );
}

test("the whole state, and no secret with it", { timeout: 40 * 60_000 }, async (t) => {
  const { step, keep } = steps(t);
  const launch = async (directory) => keep(await startGateway(directory));

  const model = keep(await startMockModel());
  const conversations = {};
  let before;

  await step("an instance of three agents talks, remembers and plans", async () => {
    createState(stateDir, {
      ...{ modelUrl: model.baseUrl, apiKey: "secret-of-the-model" },
      more: {
        agents: {
          ownership: "explicit",
          entries: {
            main: {},
            work: { workspace: path.join(outside, "work"), agentDir: path.join(outside, "work-agent") },
            play: { workspace: path.join(stateDir, "play-ground") },
          },
        },
        memory: { search: { provider: "none" } },
        channels: { $include: "./parts/channels.json5" },
      },
    });
    write(path.join(stateDir, "parts/channels.json5"), "{ /* none yet */ }\n");
    write(path.join(stateDir, "workspace-main/MEMORY.md"), "# Memory\n\nThe owner likes tamarillos.\n");
    write(path.join(stateDir, "workspace-main/memory/2026-11-20.md"), "We talked about tamarillos.\n");
    write(path.join(outside, "work/SOUL.md"), "# Soul\n\nDiligent.\n");
    write(path.join(outside, "work/skills/report/SKILL.md"), "---\nname: report\ndescription: Writes reports.\n---\n");
    write(path.join(outside, "work-agent/notes.txt"), "what the agent keeps beside its database\n");
    write(path.join(stateDir, "play-ground/SOUL.md"), "# Soul\n\nPlayful.\n");
    write(path.join(stateDir, "hooks/greet/handler.sh"), "#!/bin/sh\necho hello\n", 0o755);
    write(path.join(stateDir, "skills/weather/SKILL.md"), "---\nname: weather\ndescription: Tells the weather.\n---\n");

    const gateway = await launch(stateDir);
    for (const agent of AGENTS) {
      assert.equal(await gateway.turn(`SAY I am ${agent}`, sessionOf(agent)), `I am ${agent}`);
      conversations[agent] = await gateway.conversation(sessionOf(agent));
    }
    const payload = { kind: "systemEvent", text: "good morning" };
    const job = { name: "greeting", agentId: "main", schedule: IN_YEARS, payload };
    await gateway.rpc("cron.add", { ...job, sessionTarget: "main", wakeMode: "now" });
    assert.match(await openclaw(stateDir, ["memory", "search", "--agent", "main", "tamarillos"]), /tamarillos/);
    await gateway.stop();
    before = await complaints(stateDir);
  });

  /** Every secret that was planted. @type {string[]} */
  const secrets = ["secret-of-the-model"];
  const secret = (name) => (secrets.push(`canary-of-${name}-7f3a`), secrets.at(-1));

  await step("secrets lie wherever OpenClaw keeps some, also deleted ones", async () => {
    const file = (name, text = secret(name.replaceAll("/", "-"))) =>
      write(path.join(stateDir, name), `${text}\n`, 0o600);
    for (const name of ["credentials/telegram.json", ".env", "identity/device.json", "devices/paired.json", "my.key"])
      file(name);
    for (const name of ["secrets.json", "gateway/tls/gateway-key.pem", "workspace-main/.env"]) file(name);
    for (const name of ["auth-profiles.json", "auth.json", "codex-home/auth.json"]) {
      file(`agents/main/agent/${name}`);
      write(path.join(outside, "work-agent", name), secret(`work-${name.replaceAll("/", "-")}`), 0o600);
    }
    file("parts/channels.json5", `{ telegram: { enabled: false, tokenFile: "${stateDir}/token of the bot" } }`);
    file("token of the bot");
    const planted = new Set();
    for (const database of databasesOf(stateDir)) {
      const name = path.relative(stateDir, database).replaceAll("/", "-");
      for (const table of await plantRows(database, SECRET_TABLES, secret(name))) planted.add(table);
    }
    const shared = path.join(stateDir, "state/openclaw.sqlite");
    const raw = Buffer.concat([shared, `${shared}-wal`].filter(existsSync).map((file) => readFileSync(file)));
    assert.ok(raw.includes("openclaw.sqlite-7f3a-2-"), "the file remembers a row that was deleted");
    for (const key of ["authProfiles.store", "nodeHost.credentials", "webPush.vapidKeys.private"]) {
      const update = "INSERT OR REPLACE INTO config_machine_state VALUES (?, json_object('key', ?), 1)";
      await changeSqlite(shared, [[update, key, secret(key)]]);
    }
    const approvals =
      "INSERT INTO exec_approvals_config (config_key, raw_json, has_socket_token, agent_count, allowlist_count, updated_at_ms) VALUES ('default', json_object('version', 1, 'socket', json_object('token', ?)), 1, 0, 0, 1)";
    await changeSqlite(shared, [["DELETE FROM exec_approvals_config"], [approvals, secret("socket")]]);
    const missing = SECRET_TABLES.filter((table) => !planted.has(table));
    assert.deepEqual(missing, ["mcp_oauth_pending_authorizations"], "OpenClaw makes it when it is first needed");
  });

  const encrypted = path.join(root, "encrypted");
  const plain = path.join(root, "plain");
  const config = (name, fields) =>
    writeConfig(path.join(root, `${name}.json`), { endpoint: `file://${path.join(root, name)}`, ...fields });

  /** Which of `needles` are anywhere in what is stored. */
  async function search(repository, args, needles) {
    const reader = fileURLToPath(new URL("support/second_reader.py", import.meta.url));
    const env = { ...process.env, KEY: APPLICATION_KEY };
    const result = await run(ensureTools("python").python, [reader, repository, ...args, "--search"], {
      env,
      input: needles.join("\n"),
    });
    assert.equal(result.code, 0, result.stderr);
    return JSON.parse(result.stdout).found;
  }

  await step("nothing that is stored holds one of them", async () => {
    const command = { config: config("encrypted", { applicationKey: APPLICATION_KEY }), stateDir };
    const report = await mustRun("push", command);
    assert.deepEqual(report.exceptions, []);
    const known = ["tamarillos", "Diligent.", "I am play", "what the agent keeps beside its database"];
    const found = await search(encrypted, ["--application-key-env", "KEY"], [...known, ...secrets]);
    // The model's key is written in openclaw.json, which goes into encrypted repositories only.
    assert.deepEqual(found, [...known, "secret-of-the-model"].sort());
  });

  await step("a repository that is not encrypted gets no configuration either", async () => {
    const report = await mustRun("push", { config: config("plain", { encrypt: false }), stateDir });
    const excepted = report.exceptions.map((exception) => exception.path).sort();
    assert.ok(excepted.includes("openclaw.json") && excepted.includes("parts/channels.json5"), excepted.join());
    assert.deepEqual(await search(plain, ["--plain"], ["Diligent.", ...secrets]), ["Diligent."]);
  });

  const other = path.join(root, "other");
  await step("a new machine has it all where its own configuration puts it, and doctor finds nothing new", async () => {
    createState(other, { modelUrl: model.baseUrl, apiKey: "secret-of-the-model" });
    write(path.join(other, "credentials/telegram.json"), "this machine's own");
    const command = { config: path.join(root, "encrypted.json"), stateDir: other };
    const report = await mustRun("rollback", { ...command, args: ["--snapshot", "latest", "--yes"] });
    assert.ok(report.restored.includes("agents/work/agent/openclaw-agent.sqlite"), JSON.stringify(report));
    assert.equal(readFileSync(path.join(other, "credentials/telegram.json"), "utf8"), "this machine's own");
    assert.ok(!existsSync(path.join(other, "my.key")));
    assert.match(readFileSync(path.join(other, "workspace-work/SOUL.md"), "utf8"), /Diligent/);
    assert.match(readFileSync(path.join(other, "workspace-play/SOUL.md"), "utf8"), /Playful/);
    const { agents } = JSON.parse(readFileSync(path.join(other, "openclaw.json"), "utf8"));
    assert.equal(agents.entries.work.workspace, path.join(other, "workspace-work"));
    assert.equal(agents.entries.work.agentDir, path.join(other, "agents/work/agent-dir"));
    for (const database of databasesOf(other)) {
      const [integrity, orphans] = await querySqlite(database, ["pragma integrity_check", "pragma foreign_key_check"]);
      assert.deepEqual([integrity, orphans], [[{ integrity_check: "ok" }], []], database);
    }
    const known = new Set(before);
    const added = (await complaints(other)).filter((complaint) => !known.has(complaint));
    assert.deepEqual(added, []);
  });

  await step("its gateway starts, with sessions, jobs, memory and skills, and its agents work", async () => {
    const gateway = await launch(other);
    for (const agent of AGENTS) {
      assert.deepEqual(await gateway.conversation(sessionOf(agent)), conversations[agent]);
      assert.equal(await gateway.turn("SAY still here", sessionOf(agent)), "still here");
    }
    const { jobs } = await gateway.rpc("cron.list", { includeDisabled: true });
    assert.ok(jobs.some((job) => job.name === "greeting"));
    const { skills } = await gateway.rpc("skills.status", { agentId: "work" });
    for (const name of ["weather", "report"])
      assert.ok(
        skills.some((skill) => skill.name === name),
        name,
      );
    await gateway.stop();
    assert.match(await openclaw(other, ["memory", "search", "--agent", "main", "tamarillos"]), /tamarillos/);
    assert.match(await openclaw(other, ["agents", "list"]), /work/);
  });
});
