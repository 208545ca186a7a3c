// Reads a directory tree into a plain object that can be compared: what each path is, its mode and a hash of its bytes.

import { createHash } from "node:crypto";
import { closeSync, lstatSync, openSync, readSync, readdirSync, readlinkSync } from "node:fs";
import path from "node:path";

/** Read piece by piece: a file may be larger than what Node holds in one buffer. */
function sha256(file) {
  const hash = createHash("sha256");
  const piece = Buffer.alloc(1 << 20);
  const descriptor = openSync(file, "r");
  for (let length; (length = readSync(descriptor, piece)) > 0;) hash.update(piece.subarray(0, length));
  closeSync(descriptor);
  return hash.digest("hex");
}

/** `{ "a/b.md": "file 644 <sha256>", "a": "dir", "link": "link -> b.md" }`; `skip(path)` leaves paths out. */
export function readTree(directory, skip = () => false) {
  const tree = {};
  const visit = (relative) => {
    for (const name of readdirSync(path.join(directory, relative)).sort()) {
      const entry = relative ? `${relative}/${name}` : name;
      if (skip(entry)) continue;
      const file = path.join(directory, entry);
      const stat = lstatSync(file);
      const mode = (stat.mode & 0o7777).toString(8);
      if (stat.isSymbolicLink()) tree[entry] = `link -> ${readlinkSync(file)}`;
      else if (stat.isDirectory()) {
        tree[entry] = `dir ${mode}`;
        visit(entry);
      } else if (stat.isFile()) tree[entry] = `file ${mode} ${sha256(file)}`;
      else tree[entry] = `other ${mode}`;
    }
  };
  visit("");
  return tree;
}

/** What differs between two trees, a line each: a tree with thousands of files would drown it in a failed comparison. */
export function treeChanges(before, after) {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])].sort();
  const changed = names.filter((name) => before[name] !== after[name]);
  return changed.map((name) => `${name}: ${before[name] ?? "not there"} -> ${after[name] ?? "not there"}`);
}

/** The paths of a tree's regular files. */
export const filesOf = (tree) => Object.keys(tree).filter((entry) => tree[entry].startsWith("file "));
