// A real OpenClaw gateway on a given state directory, with no channels, no network and the mock model, run by the Node 24 it
// needs. It installs no plugin: what is tested with it works on the state directory from outside.

import { randomUUID } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import readline from "node:readline";
import { fileURLToPath } from "node:url";

import { PATIENCE_MS, freePorts, run, start, temporaryDirectory, waitFor } from "./processes.mjs";
import { ensureTools } from "./tools.mjs";

const TOKEN = "token-of-the-test-gateway";
export const SESSION = "agent:main:main";
/** When a job runs that is there to be kept, and not to run while a test looks: on the next 29th of February. */
export const IN_YEARS = { kind: "cron", expr: "0 0 29 2 *" };

/** The environment of everything that OpenClaw runs: its own home, nothing that reaches out or restarts by itself. */
function gatewayEnv(stateDir) {
  const { nodeBin } = ensureTools("openclaw");
  const home = path.join(temporaryDirectory("home"));
  const inherited = Object.entries(process.env).filter(([name]) => !/^(OPENCLAW_|NODE_TEST|NODE_OPTIONS)/.test(name));
  return {
    ...Object.fromEntries(inherited),
    ...{
      PATH: `${nodeBin}${path.delimiter}${process.env.PATH}`,
      HOME: home,
      OPENCLAW_STATE_DIR: stateDir,
      NO_COLOR: "1",
    },
    ...{ OPENCLAW_DISABLE_BONJOUR: "1", OPENCLAW_NO_RESPAWN: "1", OPENCLAW_SKIP_CHANNELS: "1" },
    ...{ OPENCLAW_NO_AUTO_UPDATE: "1", OPENCLAW_OFFLINE: "1" },
  };
}

/** Makes a state directory with a configuration whose only model is the mock; `more` are further sections of it. */
export function createState(stateDir, { modelUrl, apiKey, more = {} }) {
  mkdirSync(stateDir, { recursive: true, mode: 0o700 });
  const model = {
    ...{ id: "mock-1", name: "Mock", reasoning: false, input: ["text"], contextWindow: 200_000, maxTokens: 4096 },
    cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
  };
  const provider = { baseUrl: modelUrl, apiKey, api: "openai-completions", models: [model] };
  const config = {
    gateway: { mode: "local", bind: "loopback", port: 18789, auth: { mode: "token", token: TOKEN } },
    update: { checkOnStart: false },
    telemetry: { enabled: false },
    discovery: { mdns: { mode: "off" } },
    models: { mode: "replace", providers: { mock: provider } },
    ...more,
    agents: { defaults: { model: { primary: "mock/mock-1" }, skipBootstrap: true }, ...more.agents },
  };
  writeFileSync(path.join(stateDir, "openclaw.json"), JSON.stringify(config, null, 2), { mode: 0o600 });
}

/** Points a configuration, for instance one restored elsewhere, at this directory and port. */
function adaptConfig(stateDir, port) {
  const file = path.join(stateDir, "openclaw.json");
  const config = JSON.parse(readFileSync(file, "utf8"));
  config.gateway.port = port;
  // Several agents have workspaces of their own.
  if (!config.agents.entries) config.agents.defaults.workspace = path.join(stateDir, "workspace");
  writeFileSync(file, JSON.stringify(config, null, 2));
}

/** Node, and OpenClaw's entry: the release that the tests were written against, or the oldest that is supported. */
function programs(oldest) {
  const tools = ensureTools(oldest ? "oldest" : "openclaw");
  return { node: tools.node, entry: oldest ? tools.oldestOpenclaw : tools.openclaw };
}

/** Runs `openclaw <args>` on a state directory with no gateway; rejects when it fails. */
export async function openclaw(stateDir, args, { input, env = {}, oldest = false } = {}) {
  const { node, entry } = programs(oldest);
  const result = await run(node, [entry, ...args], { env: { ...gatewayEnv(stateDir), ...env }, input });
  if (result.code !== 0)
    throw new Error(`openclaw ${args.join(" ")}: ${result.code}\n${result.stdout}${result.stderr}`);
  return result.stdout;
}

/**
 * Starts a gateway and waits until it is ready (about 10 s). Resolves to
 * `{ stateDir, pid, page(route), rpc(method, params), turn(message), conversation(), reconnect(), stop(), output() }`.
 *
 * With `oldest` it is the oldest OpenClaw that is supported. With `decide` there is somebody to approve what a plugin asks for: it is called with the request and returns the decision.
 */
export async function startGateway(stateDir, { env: extra = {}, decide, oldest = false } = {}) {
  const { node, entry } = programs(oldest);
  const [port] = await freePorts(1);
  if (existsSync(path.join(stateDir, "openclaw.json"))) adaptConfig(stateDir, port);
  const env = { ...gatewayEnv(stateDir), ...extra };
  const server = start(node, [entry, "gateway", "run", "--port", String(port)], { env, cwd: stateDir });
  const ready = async () => {
    if (server.hasExited) throw Object.assign(new Error("it ended"), { fatal: true });
    return (await fetch(`http://127.0.0.1:${port}/readyz`)).ok;
  };
  let client;
  try {
    await waitFor("the gateway to be ready", ready, 200);
    client = await connect(node, port, decide);
  } catch (error) {
    await server.stop("SIGKILL");
    throw new Error(`${error.message}\n${server.output().slice(-5000)}`);
  }
  return {
    ...{ stateDir, pid: server.pid, output: server.output },
    /** The address of a page of the Control UI, with what it needs to connect. */
    page: (route) => `http://127.0.0.1:${port}${route}#token=${TOKEN}`,
    rpc: (method, params) => client.rpc(method, params),
    /** After a restart within the process, which ends every connection. */
    async reconnect() {
      await client.close();
      await waitFor("the gateway to be ready again", ready, 200);
      client = await connect(node, port, decide);
    },
    /** One turn of an agent, from the message to the end of the run; resolves to its reply. */
    async turn(message, sessionKey = SESSION) {
      const params = { sessionKey, message, idempotencyKey: randomUUID() };
      const { runId } = await client.rpc("chat.send", params);
      const end = await client.rpc("agent.wait", { runId, timeoutMs: PATIENCE_MS });
      if (end.status !== "ok") throw new Error(`the turn ${JSON.stringify(message)} ended with ${JSON.stringify(end)}`);
      return end.terminalReply?.text;
    },
    /** The conversation as `["user: ...", "assistant: ..."]`. */
    async conversation(sessionKey = SESSION) {
      const { messages } = await client.rpc("chat.history", { sessionKey });
      const text = ({ content }) =>
        typeof content === "string" ? content : content.map((part) => part.text ?? "").join("");
      return messages.map((message) => `${message.role}: ${text(message)}`);
    },
    /** A clean stop, as by a supervisor, or a kill of the gateway and what it started. */
    async stop(signal = "SIGTERM") {
      if (signal === "SIGTERM") await client.close();
      await server.stop(signal);
      await client.close();
    },
  };
}

/** The RPC client process: one connection, any number of calls at once. */
async function connect(node, port, decide) {
  const script = fileURLToPath(new URL("gateway-rpc.mjs", import.meta.url));
  const env = { ...process.env, GATEWAY_TOKEN: TOKEN, ...(decide && { GATEWAY_CAPS: "approvals,plugin-approvals" }) };
  const client = start(node, [script, `ws://127.0.0.1:${port}`], { env, stdin: "pipe" });
  const waiting = new Map();
  const reply = (id) => new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
  const fail = (message) => {
    for (const { reject } of waiting.values()) reject(new Error(message));
    waiting.clear();
  };
  readline.createInterface({ input: client.child.stdout }).on("line", (line) => {
    const { id, payload, error, event } = JSON.parse(line);
    if (event === "plugin.approval.requested" && decide) {
      const resolve = (decision) => rpc("plugin.approval.resolve", { id: payload.id, decision });
      Promise.resolve(decide(payload.request))
        .then(resolve)
        .catch(() => {});
    }
    if (event) return;
    const call = waiting.get(id);
    waiting.delete(id);
    if (error) call?.reject(Object.assign(new Error(error.message), { error }));
    else call?.resolve(payload);
    if (id === "connect" && error) fail(error.message);
  });
  client.exited.then(() => fail(`the RPC client ended: ${client.output().slice(-500)}`));
  let calls = 0;
  const rpc = (method, params = {}) => {
    const id = String(++calls);
    client.child.stdin.write(`${JSON.stringify({ id, method, params })}\n`);
    return reply(id);
  };
  await reply("connect");
  return { rpc, close: () => client.stop("SIGTERM", 5000) };
}
