// A headless browser, driven by puppeteer.

import { pathToFileURL } from "node:url";

import { PATIENCE_MS, temporaryDirectory } from "./processes.mjs";
import { ensureTools } from "./tools.mjs";

/** Starts a browser with a profile of its own; resolves to puppeteer's `Browser`. */
export async function startBrowser() {
  const { chromium, chromiumLibraries, puppeteer: entry } = ensureTools("browser");
  const { default: puppeteer } = await import(pathToFileURL(entry));
  return puppeteer.launch({
    ...{ executablePath: chromium, headless: "shell", timeout: PATIENCE_MS },
    // It visits only the gateway on loopback; a sandbox is refused to root and in containers.
    ...{ args: ["--no-sandbox"], defaultViewport: { width: 1280, height: 1000 } },
    userDataDir: temporaryDirectory("browser"),
    env: { ...process.env, LD_LIBRARY_PATH: chromiumLibraries },
  });
}
