// The entry of the OpenClaw plugin (the default export; js/plugin/ has all of it), and the native functions of this package
// (the named ones), which index.d.ts describes.

export { default } from "./js/plugin/index.js";
export * from "./js/native.js";
