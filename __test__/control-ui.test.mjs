// The plugin's settings in the Control UI of a real gateway, as a person with a browser sees them: three fields, the secret
// masked, and what is typed arrives in openclaw.json.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import path from "node:path";
import { test } from "node:test";

import { startBrowser } from "./support/browser.mjs";
import { createState, startGateway } from "./support/gateway.mjs";
import { startMockModel } from "./support/mock-model.mjs";
import { PLUGIN, configurePlugin, installPlugin, packPlugin } from "./support/plugin.mjs";
import { PATIENCE_MS, temporaryDirectory, waitFor } from "./support/processes.mjs";
import { steps } from "./support/steps.mjs";
import { noBrowser, projectDir } from "./support/tools.mjs";

const { uiHints } = JSON.parse(readFileSync(path.join(projectDir, "openclaw.plugin.json"), "utf8"));
const before = { keyId: "0040000000000000000000001", applicationKey: "K004-the-old-secret", bucket: "old-bucket" };
const wanted = { keyId: "0040000000000000000000002", applicationKey: "K004-the-new-secret", bucket: "new-bucket" };

test("the Control UI shows and saves the settings", { skip: noBrowser, timeout: 30 * 60_000 }, async (t) => {
  const { keep } = steps(t);
  const root = temporaryDirectory("control-ui");
  const stateDir = path.join(root, "state");
  const endpoint = path.join(root, "bucket");
  mkdirSync(endpoint);
  const model = keep(await startMockModel());
  const plugin = keep(await packPlugin());
  createState(stateDir, { modelUrl: model.baseUrl, apiKey: "sk-x" });
  await installPlugin(stateDir, plugin);
  configurePlugin(stateDir, { ...before, endpoint: `file://${endpoint}` });
  const gateway = keep(await startGateway(stateDir));
  const browser = await startBrowser();
  keep(browser);
  const saved = () =>
    JSON.parse(readFileSync(path.join(stateDir, "openclaw.json"), "utf8")).plugins.entries[PLUGIN].config;

  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE_MS);
  await page.goto(gateway.page(`/settings/plugins/${PLUGIN}`));
  await page.locator(`a[aria-label="Settings"][href*="${PLUGIN}"]`).click();

  const selector = (name) => `main input[aria-label="${uiHints[name].label}"]`;
  const read = async (name) => {
    const input = await page.waitForSelector(selector(name), { visible: true });
    return input.evaluate(({ type, value }) => ({ type, value }));
  };
  const masked = { type: "password", value: "" };
  assert.deepEqual(await read("keyId"), masked);
  assert.deepEqual(await read("applicationKey"), masked);
  assert.deepEqual(await read("bucket"), { type: "text", value: before.bucket });
  assert.ok(!(await page.content()).includes(before.applicationKey));

  /** Types a value in place of what is there; leaving a field saves it. A secret that is set must be reset first. */
  const fill = async (name, value) => {
    if (await page.$(`${selector(name)}[readonly]`)) {
      await page.locator(`[aria-label="Actions for ${uiHints[name].label}"]`).click();
      const reset = await waitFor("the menu", async () => {
        const items = await page.$$('wa-dropdown-item[value="reset"]');
        const visible = await Promise.all(items.map((item) => item.isVisible()));
        return items[visible.indexOf(true)];
      });
      await reset.click();
      await waitFor(`${name} to be reset`, () => saved()[name] === undefined);
    }
    const input = await page.waitForSelector(`${selector(name)}:not([readonly]):not([disabled])`);
    await input.click({ count: 3 });
    await input.type(value);
    await page.keyboard.press("Tab");
    await waitFor(`${name} to be saved`, () => saved()[name] === value);
  };
  for (const [name, value] of Object.entries(wanted)) await fill(name, value);
  assert.deepEqual(saved(), { ...wanted, endpoint: `file://${endpoint}` });

  // Whoever opens the page later does not see what was typed.
  await page.reload();
  assert.deepEqual(await read("applicationKey"), masked);
  assert.deepEqual(await read("bucket"), { type: "text", value: wanted.bucket });
  assert.ok(!(await page.content()).includes(wanted.applicationKey));
});
