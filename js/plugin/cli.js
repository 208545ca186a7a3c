// `openclaw b2-backup <verb>`: the package's own command line, on the configuration and state directory of this OpenClaw.
//
// It is a process of its own for the reason that js/worker.js gives: OpenClaw's may have the databases open.

import { spawn } from "node:child_process";
import path from "node:path";

const NAME = "b2-backup";

/** @param {import("./index.js").Plugin} plugin */
export function registerCli(plugin) {
  const description = "Back up this OpenClaw to Backblaze B2, list and restore snapshots";
  plugin.api.registerCli(
    ({ program }) => {
      program
        .command(NAME)
        .description(description)
        .argument("[args...]")
        .helpOption(false)
        .allowUnknownOption()
        .allowExcessArguments()
        .action(() => run(plugin));
    },
    { descriptors: [{ name: NAME, description, hasSubcommands: true }] },
  );
}

/** Resolves when the command line has ended; its exit code is this process's. @param {import("./index.js").Plugin} plugin */
function run(plugin) {
  const args = process.argv.slice(process.argv.indexOf(NAME) + 1);
  const env = { ...process.env, OPENCLAW_STATE_DIR: plugin.stateDir(), OPENCLAW_B2_PROGRAM: `openclaw ${NAME}` };
  const script = path.join(plugin.rootDir, "bin", "openclaw-b2-backup.js");
  const child = spawn(process.execPath, [script, ...args], { stdio: "inherit", env });
  // The terminal's Ctrl+C reaches both; the child decides what it means.
  const ignore = () => {};
  process.on("SIGINT", ignore);
  return new Promise((resolve, reject) => {
    child.on("error", reject);
    child.on("exit", (code) => {
      process.off("SIGINT", ignore);
      process.exitCode = code ?? 1;
      resolve(undefined);
    });
  });
}
