// The plugin's configuration as the gateway hands it over, made into what the addon takes. It checks nothing: the addon does,
// and names the field.

import { failure } from "./child.js";
import { parseSchedule } from "./schedule.js";

/** @typedef {import("./engine.js").Source} Source */

/** Variables that stand in for fields that the configuration does not have: those of `resolveTarget`. */
const FALLBACKS = {
  keyId: "B2_APPLICATION_KEY_ID",
  applicationKey: "B2_APPLICATION_KEY",
  bucket: "B2_BUCKET_NAME",
  region: "B2_REGION",
  endpoint: "B2_ENDPOINT",
  passphrase: "OPENCLAW_B2_PASSPHRASE",
  keyFile: "OPENCLAW_B2_KEY_FILE",
  recoveryCode: "OPENCLAW_B2_RECOVERY_CODE",
};
/** Of these, what only opens a repository that the others name. */
const OPENERS = ["passphrase", "keyFile", "recoveryCode"];
const SECRETS = ["keyId", "applicationKey", "passphrase", "recoveryCode"];

/**
 * The gateway has resolved references by the time it starts a plugin. What is still one, it could not resolve, or a command
 * line did not try: then the addon reads the configuration's files itself, or says what is wrong.
 * @param {{ settings: Record<string, any>, stateDir: string, env: NodeJS.ProcessEnv }} host
 * @returns {Source}
 */
export function sourceOf({ settings, stateDir, env }) {
  const isReference = (/** @type {unknown} */ value) => typeof value === "object" || /^\$\{?[A-Z]/.test(String(value));
  try {
    parseSchedule(settings.schedule ?? "daily");
  } catch (error) {
    return { problem: /** @type {import("./child.js").Failure} */ (error) };
  }
  if (SECRETS.some((name) => settings[name] !== undefined && isReference(settings[name]))) {
    return { resolve: { stateDir, env: Object.fromEntries(Object.entries(env).filter(([, value]) => value)) } };
  }
  /** @type {Record<string, any>} */
  const target = { ...settings, stateDir };
  for (const [field, name] of Object.entries(FALLBACKS)) {
    const value = env[name];
    // A passphrase is what it is, to the last space.
    if (target[field] === undefined && value?.trim()) target[field] = field === "passphrase" ? value : value.trim();
  }
  if (Object.keys(FALLBACKS).every((field) => target[field] === undefined || OPENERS.includes(field))) {
    const advice = "set keyId, applicationKey and bucket in the settings of this plugin, and restart the gateway";
    return { problem: failure("CONFIG", `not configured: ${advice}`) };
  }
  return { target };
}
