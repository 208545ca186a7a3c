// A package registry on loopback that has a few tarballs, for `npm install` in tests: what an npm user gets, without the
// network. It answers for the packages it was given and nothing else.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import path from "node:path";

import { run } from "./processes.mjs";

/** Packs a directory as `npm pack` does, into `destination`; resolves to the tarball's path. */
export async function pack(directory, destination) {
  const args = ["pack", "--json", "--ignore-scripts", "--no-update-notifier", "--pack-destination", destination];
  const result = await run("npm", args, { cwd: directory });
  if (result.code !== 0) throw new Error(`npm pack: ${result.stderr}`);
  return path.join(destination, JSON.parse(result.stdout)[0].filename);
}

/**
 * Serves packages, given as `{ manifest, tarball }`: the content of package.json and the path of what npm pack made.
 * Resolves to `{ url, asked, stop }`; `asked` holds the names that were asked for.
 */
export async function startRegistry(packages) {
  const asked = new Set();
  const server = http.createServer((request, response) => {
    const name = decodeURIComponent(request.url.slice(1).split("?")[0]);
    const known = packages.find(({ manifest }) => manifest.name === name.replace(/\.tgz$/, ""));
    asked.add(name);
    if (!known) {
      response.statusCode = 404;
      return response.end("{}");
    }
    const { manifest, tarball } = known;
    const bytes = readFileSync(tarball);
    if (name.endsWith(".tgz")) return response.end(bytes);
    const integrity = `sha512-${createHash("sha512").update(bytes).digest("base64")}`;
    const dist = { tarball: `${url}${manifest.name}.tgz`, integrity };
    const { version } = manifest;
    response.setHeader("content-type", "application/json");
    response.end(
      JSON.stringify({
        name: manifest.name,
        "dist-tags": { latest: version },
        versions: { [version]: { ...manifest, dist } },
      }),
    );
  });
  await new Promise((resolve, reject) => server.on("error", reject).listen(0, "127.0.0.1", resolve));
  const url = `http://127.0.0.1:${server.address().port}/`;
  return {
    url,
    asked,
    async stop() {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
