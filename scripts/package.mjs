// Makes what is published: a directory for each npm package, below `target/packages/` or another that is given. Publishing adds
// nothing to it and leaves nothing out, so that the tests install exactly what users get. The checkout is not changed.
//
//   npm run package                                    the main package, and those of the addons that lie in the checkout
//   npm run package -- --addons <dir> --all            as a release does it: every platform's addon must be in <dir>
//   npm run package -- --output <dir> --version 9.9.9  elsewhere, with another version (for tests)
//
// It prints the directories in the order in which to publish them: a main package on the registry whose platform packages are
// not there yet could not be installed.

import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const inProject = (/** @type {string[]} */ ...names) => path.join(projectDir, ...names);
const readJson = (/** @type {string} */ file) => JSON.parse(readFileSync(file, "utf8"));

/** In every package, beside the files that its manifest names; npm ships them unasked. */
const ALWAYS = ["LICENSE"];
/** The licenses of what is compiled into an addon; scripts/notices.mjs makes it. */
const NOTICES = "THIRD-PARTY-NOTICES.txt";

/**
 * Makes the directories of the packages below `output`, which is emptied first; returns their paths, the main package last.
 * @param {{ output: string, addons?: string, all?: boolean, version?: string }} options `addons`: where the `.node` files are;
 *   `all`: whether one that is missing is an error
 */
export function makePackages({ output, addons = projectDir, all = false, version }) {
  const manifest = readJson(inProject("package.json"));
  version ??= /** @type {string} */ (manifest.version);
  rmSync(output, { recursive: true, force: true });
  const platforms = readdirSync(inProject("npm"));
  const addonOf = (/** @type {string} */ platform) => path.join(addons, `${manifest.napi.binaryName}.${platform}.node`);
  const missing = platforms.filter((platform) => !existsSync(addonOf(platform)));
  if (all && missing.length > 0) throw new Error(`no addon in ${addons} for ${missing.join(", ")}`);

  /** @type {string[]} */
  const directories = [];
  const add = (/** @type {any} */ content) => {
    const directory = path.join(output, content.name);
    mkdirSync(directory, { recursive: true });
    writeFileSync(path.join(directory, "package.json"), `${JSON.stringify({ ...content, version }, null, 2)}\n`);
    for (const name of ALWAYS) copyFileSync(inProject(name), path.join(directory, name));
    directories.push(directory);
    return directory;
  };
  for (const platform of platforms.filter((name) => !missing.includes(name))) {
    const directory = add(readJson(inProject("npm", platform, "package.json")));
    copyFileSync(inProject("npm", platform, "README.md"), path.join(directory, "README.md"));
    copyFileSync(addonOf(platform), path.join(directory, path.basename(addonOf(platform))));
    copyFileSync(inProject(NOTICES), path.join(directory, NOTICES));
  }

  const { scripts: _scripts, devDependencies: _devDependencies, ...shipped } = manifest;
  const names = platforms.map((platform) => `${manifest.name}-${platform}`);
  const optionalDependencies = Object.fromEntries(names.map((name) => [name, version]));
  const directory = add({ ...shipped, optionalDependencies });
  for (const name of [...manifest.files, "README.md"]) {
    cpSync(inProject(name), path.join(directory, name), { recursive: true });
  }
  return directories;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values } = parseArgs({
    options: {
      output: { type: "string", default: inProject("target/packages") },
      addons: { type: "string" },
      all: { type: "boolean" },
      version: { type: "string" },
    },
  });
  try {
    console.log(makePackages(values).join("\n"));
  } catch (error) {
    console.error(/** @type {Error} */ (error).message);
    process.exitCode = 1;
  }
}
