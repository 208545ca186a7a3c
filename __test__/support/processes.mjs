// Starting and ending child processes, free ports, temporary directories and waiting: what every other helper stands on.
// Whatever is started here ends with this process, also when it is interrupted or a test fails half-way.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";

/** How long is waited for what takes seconds: some machines are ten times as slow as others. */
export const PATIENCE_MS = 300_000;

const running = new Set();
const temporaryDirectories = new Set();

process.on("exit", () => {
  for (const child of running) killGroup(child, "SIGKILL");
  if (process.env.OPENCLAW_B2_KEEP_TMP) return;
  for (const directory of temporaryDirectories) rmSync(directory, { recursive: true, force: true });
});
for (const [signal, code] of Object.entries({ SIGINT: 130, SIGTERM: 143, SIGHUP: 129 })) {
  process.on(signal, () => process.exit(code));
}

/** A process group, because the gateway has helpers of its own that would outlive it. */
function killGroup(child, signal) {
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    if (error.code !== "ESRCH") throw error;
  }
}

/**
 * Starts a long-running process in a group of its own. `output()` is what it has printed so far (the last megabyte),
 * `exited` resolves to its exit code, `stop(signal, graceMs)` ends it and resolves when it is gone.
 */
export function start(command, args, { env = process.env, cwd, stdin = "ignore" } = {}) {
  const child = spawn(command, args, { env, cwd, detached: true, stdio: [stdin, "pipe", "pipe"] });
  running.add(child);
  let text = "";
  const keep = (chunk) => (text = (text + chunk).slice(-1_000_000));
  child.stdout.on("data", keep);
  child.stderr.on("data", keep);
  const exited = new Promise((resolve) => {
    child.on("error", (error) => {
      keep(`cannot start ${command}: ${error.message}\n`);
      running.delete(child);
      resolve(127);
    });
    child.on("exit", (code, signal) => resolve(code ?? `killed by ${signal}`));
  });
  const started = {
    child,
    pid: child.pid,
    exited,
    hasExited: false,
    output: () => text,
    async stop(signal = "SIGTERM", graceMs = PATIENCE_MS) {
      if (!started.hasExited) killGroup(child, signal);
      let timer;
      await Promise.race([exited, new Promise((resolve) => (timer = setTimeout(resolve, graceMs)))]);
      clearTimeout(timer);
      killGroup(child, "SIGKILL");
      await exited;
      running.delete(child);
    },
  };
  exited.then(() => (started.hasExited = true));
  return started;
}

/**
 * Runs a command to its end. Resolves to `{ code, stdout, stderr }`, whatever the code is; `code` is null when it was
 * killed, by `timeoutMs` among others.
 */
export function run(command, args, { env = process.env, cwd, input = "", timeoutMs = PATIENCE_MS } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { env, cwd, detached: true, stdio: ["pipe", "pipe", "pipe"] });
    running.add(child);
    const stdout = [];
    const stderr = [];
    const timer = setTimeout(() => killGroup(child, "SIGKILL"), timeoutMs);
    child.stdout.on("data", (chunk) => stdout.push(chunk));
    child.stderr.on("data", (chunk) => stderr.push(chunk));
    child.on("error", (error) => {
      clearTimeout(timer);
      running.delete(child);
      reject(new Error(`cannot start ${command}: ${error.message}`));
    });
    child.on("close", (code) => {
      clearTimeout(timer);
      running.delete(child);
      resolve({ code, stdout: Buffer.concat(stdout).toString(), stderr: Buffer.concat(stderr).toString() });
    });
    child.stdin.on("error", () => {}); // A program that ends before it has read its input is judged by its exit code.
    child.stdin.end(input);
  });
}

export const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** Calls `probe` until it returns something truthy and resolves to that; rejects after five minutes, saying `what`. */
export async function waitFor(what, probe, intervalMs = 100) {
  const deadline = Date.now() + PATIENCE_MS;
  let lastError;
  for (;;) {
    try {
      const value = await probe();
      if (value) return value;
    } catch (error) {
      if (error.fatal) throw error;
      lastError = error;
    }
    if (Date.now() > deadline) {
      throw new Error(`waited ${PATIENCE_MS / 1000} s in vain for ${what}${lastError ? `: ${lastError.message}` : ""}`);
    }
    await sleep(intervalMs);
  }
}

/**
 * The ports that this process chooses from: another test file, which runs at the same time, must not get one that is free only
 * because what it is meant for has not come to listen yet. They lie below those that a system gives to outgoing connections.
 */
const PORTS = { first: 10_000 + (process.pid % 220) * 100, count: 100 };
let portsGiven = 0;

/** `count` different loopback ports that nobody listens on, and that no other test gets meanwhile. */
export async function freePorts(count) {
  const ports = [];
  for (let tried = 0; ports.length < count; tried++) {
    if (tried === PORTS.count) throw new Error(`no ${count} ports are free from ${PORTS.first} on`);
    const port = PORTS.first + (portsGiven++ % PORTS.count);
    if (await isFree(port)) ports.push(port);
  }
  return ports;
}

function isFree(port) {
  return new Promise((resolve, reject) => {
    const server = net.createServer();
    server.on("error", (error) => (error.code === "EADDRINUSE" ? resolve(false) : reject(error)));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}

/** A new directory that is removed when this process ends (kept with OPENCLAW_B2_KEEP_TMP=1, to look into a failure). */
export function temporaryDirectory(name) {
  const directory = mkdtempSync(path.join(tmpdir(), `b2-backup-${name}-`));
  temporaryDirectories.add(directory);
  return directory;
}
