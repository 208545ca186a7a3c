// The native functions of this package; index.d.ts, which is generated from the Rust sources, describes them.
//
// Importing this file does not load the addon: the first call does. A machine that the addon is missing on hears of it from
// the function that needs it. In a gateway no call is ever made: see worker.js.

import { createRequire } from "node:module";

import { missingPackage, wrongVersion } from "./platform.js";

/** @typedef {typeof import("../index.js")} Native What index.d.ts declares. */

const require = createRequire(import.meta.url);

/** @type {Native | undefined} */
let loaded;

/** @returns {Native} */
function load() {
  if (loaded) return loaded;
  const wrong = wrongVersion();
  if (wrong) throw failure(wrong);
  try {
    return (loaded = /** @type {Native} */ (require("../native.cjs")));
  } catch (error) {
    throw failure(unloadable(error) ?? missingPackage(), error);
  }
}

/** @param {string} reason @param {unknown} [cause] */
function failure(reason, cause) {
  const message = `cannot load the native addon for ${process.platform}-${process.arch}: ${reason}`;
  return Object.assign(new Error(message, { cause }), { code: "IO", retryable: false, context: {} });
}

/**
 * The loader tries one place after the other and chains what it met, without codes; a file that is there but cannot be
 * loaded is the one that says something.
 * @param {any} error
 */
function unloadable(error) {
  for (let tried = error.cause; tried; tried = tried.cause) {
    const [line] = String(tried.message ?? tried).split("\n", 1);
    if (!/^(Cannot find module|Unsupported (OS|architecture))/.test(line)) return line;
  }
  return undefined;
}

/** @type {Native["push"]} */
export const push = async (...args) => load().push(...args);
/** @type {Native["list"]} */
export const list = async (...args) => load().list(...args);
/** @type {Native["pull"]} */
export const pull = async (...args) => load().pull(...args);
/** @type {Native["rollback"]} */
export const rollback = async (...args) => load().rollback(...args);
/** @type {Native["diff"]} */
export const diff = async (...args) => load().diff(...args);
/** @type {Native["verify"]} */
export const verify = async (...args) => load().verify(...args);
/** @type {Native["drill"]} */
export const drill = async (...args) => load().drill(...args);
/** @type {Native["prune"]} */
export const prune = async (...args) => load().prune(...args);
/** @type {Native["importLegacy"]} */
export const importLegacy = async (...args) => load().importLegacy(...args);
/** @type {Native["status"]} */
export const status = async (...args) => load().status(...args);
/** @type {Native["prepareRollback"]} */
export const prepareRollback = async (...args) => load().prepareRollback(...args);
/** @type {Native["applyRollback"]} */
export const applyRollback = async (...args) => load().applyRollback(...args);
/** @type {Native["discardRollback"]} */
export const discardRollback = async (...args) => load().discardRollback(...args);
/** @type {Native["recover"]} */
export const recover = async (...args) => load().recover(...args);
/** @type {Native["restoreIfEmpty"]} */
export const restoreIfEmpty = async (...args) => load().restoreIfEmpty(...args);
/** @type {Native["keyList"]} */
export const keyList = async (...args) => load().keyList(...args);
/** @type {Native["keyAdd"]} */
export const keyAdd = async (...args) => load().keyAdd(...args);
/** @type {Native["keyRemove"]} */
export const keyRemove = async (...args) => load().keyRemove(...args);
/** @type {Native["keyRotate"]} */
export const keyRotate = async (...args) => load().keyRotate(...args);
/** @type {Native["keyRecoveryCode"]} */
export const keyRecoveryCode = async (...args) => load().keyRecoveryCode(...args);
/** @type {Native["resolveTarget"]} */
export const resolveTarget = async (...args) => load().resolveTarget(...args);
