// A restart of the gateway within its process, which takes a few seconds and lets runs end first.

const DELAY_MS = 1500;

/**
 * Asks for it soon, so that an answer can leave before. False where the signal means something else, or may be ignored.
 * @param {import("./index.js").Api["config"]} config OpenClaw's
 */
export function restartSoon(config) {
  const understood = process.platform !== "win32" && process.listenerCount("SIGUSR2") > 0;
  if (!understood || config?.commands?.restart === false) return false;
  setTimeout(() => process.kill(process.pid, "SIGUSR2"), DELAY_MS).unref();
  return true;
}
