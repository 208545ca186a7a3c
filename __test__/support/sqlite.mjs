// Looks into SQLite files with the SQLite of Node 24, whatever Node runs the tests: OpenClaw's schemas need SQLite 3.43 or
// newer, and Node 20 has none. Run as a program it reads `{ file, queries }` and prints the rows of each query, or
// `{ file, statements }` or `{ file, plant }` and writes.

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import { run } from "./processes.mjs";
import { ensureTools } from "./tools.mjs";

/** The rows of each of `queries`; the file is opened read-only. BLOBs come as latin-1 text. */
export const querySqlite = (file, queries) => inNode24({ file, queries });

/** Runs statements, each an array of its SQL and its parameters. */
export const changeSqlite = (file, statements) => inNode24({ file, statements });

async function inNode24(task) {
  const { node } = ensureTools("openclaw");
  const result = await run(node, [fileURLToPath(import.meta.url)], { input: JSON.stringify(task) });
  if (result.code !== 0) throw new Error(`${task.file}: ${result.stderr}`);
  return JSON.parse(result.stdout);
}

/**
 * Writes one row into each of `tables` that there are, every text in it being `text` and what makes it unique, and another one
 * that it deletes again. Resolves to the names of the tables.
 */
export const plantRows = (file, tables, text) => inNode24({ file, plant: { tables, text } });

/** SQLite files are recognised by their header, not by their name. */
export const isSqlite = (bytes) => bytes.subarray(0, 16).toString("latin1") === "SQLite format 3\0";

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { DatabaseSync } = await import("node:sqlite");
  const { file, queries, statements, plant } = JSON.parse(readFileSync(0, "utf8"));
  const database = new DatabaseSync(file, { readOnly: Boolean(queries) });
  const plain = (_name, value) => {
    if (value instanceof Uint8Array) return Buffer.from(value).toString("latin1");
    return typeof value === "bigint" ? String(value) : value;
  };
  const run = (sql, ...values) => database.prepare(sql).all(...values);
  const results = plant
    ? plantIn(database, plant)
    : (statements ?? queries.map((sql) => [sql])).map((call) => run(...call));
  console.log(JSON.stringify(results, plain));
}

/** @param {import("node:sqlite").DatabaseSync} database */
function plantIn(database, { tables, text }) {
  database.exec("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON; PRAGMA secure_delete = OFF");
  const quote = (name) => `"${name}"`;
  return tables.filter((table) => {
    const columns = database.prepare("SELECT name, type FROM pragma_table_info(?)").all(table);
    if (columns.length === 0) return false;
    const insert = `INSERT INTO ${quote(table)} (${columns.map(({ name }) => quote(name))}) VALUES (${columns.map(() => "?")})`;
    const row = (mark) =>
      columns.map(({ type }, number) => {
        const value = `${text}-${mark}-${number}-`.repeat(20);
        return /INT|REAL/i.test(type) ? 4_000_000 + mark : /BLOB/i.test(type) ? Buffer.from(value) : value;
      });
    for (const mark of [1, 2]) database.prepare(insert).run(...row(mark));
    const { name } = columns.find(({ type }) => /INT|REAL/i.test(type)) ?? { name: columns[0].name };
    const value = row(2)[columns.findIndex((column) => column.name === name)];
    database.prepare(`DELETE FROM ${quote(table)} WHERE ${quote(name)} = ?`).run(value);
    return true;
  });
}
