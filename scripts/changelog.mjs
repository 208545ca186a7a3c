// Prints what CHANGELOG.md says of a version, this one or `node scripts/changelog.mjs 1.2.3`: the text of its release page.

import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const { version: current } = JSON.parse(readFileSync(path.join(projectDir, "package.json"), "utf8"));

const [version = current] = process.argv.slice(2);
const sections = readFileSync(path.join(projectDir, "CHANGELOG.md"), "utf8").split(/^## /m).slice(1);
const section = sections.find((text) => text.split(/\s/, 1)[0] === version);
const changes = section?.split("\n").slice(1).join("\n").trim();
if (changes) {
  console.log(changes);
} else {
  console.error(`CHANGELOG.md says nothing of ${version}`);
  process.exitCode = 1;
}
