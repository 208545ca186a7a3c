// Looks into SQLite files with the SQLite of Node 24, whatever Node runs the tests: OpenClaw's schemas need SQLite 3.43 or
// newer, and Node 20 has none. Run as a program it reads `{ file, queries }` and prints the rows of each query.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { run } from "./processes.mjs";
import { ensureTools } from "./tools.mjs";

/** The rows of each of `queries`; the file is opened read-only. BLOBs come as latin-1 text. */
export async function querySqlite(file, queries) {
  const { node } = ensureTools("openclaw");
  const input = JSON.stringify({ file, queries });
  const result = await run(node, [fileURLToPath(import.meta.url)], { input });
  if (result.code !== 0) throw new Error(`${file}: ${result.stderr}`);
  return JSON.parse(result.stdout);
}

/** SQLite files are recognised by their header, not by their name. */
export const isSqlite = (bytes) => bytes.subarray(0, 16).toString("latin1") === "SQLite format 3\0";

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { DatabaseSync } = await import("node:sqlite");
  const { file, queries } = JSON.parse(readFileSync(0, "utf8"));
  const database = new DatabaseSync(file, { readOnly: true });
  const plain = (_name, value) => {
    if (value instanceof Uint8Array) return Buffer.from(value).toString("latin1");
    return typeof value === "bigint" ? String(value) : value;
  };
  console.log(
    JSON.stringify(
      queries.map((query) => database.prepare(query).all()),
      plain,
    ),
  );
}
