// The results of the native functions in words: lines for standard output, and notes on what is not as it should be.
// Whoever prints them makes them safe for a terminal with oneLine.

import { count, duration, first, number, size, table } from "./text.js";

/** @typedef {{ lines: string[], notes?: string[] }} Words */

/** Lists for people end here; --json has everything. */
const SHOWN = 20;

/** @param {import("../index.js").PushResult} report @returns {Words} */
export function push(report) {
  const { snapshot, changedFiles, uploadedBytes, durationMs, otherMachine } = report;
  const all = `${count(report.files, "file")}, ${size(report.bytes)}`;
  const sent = `${number(changedFiles)} changed, ${size(uploadedBytes)} sent in ${duration(durationMs)}`;
  const line = snapshot
    ? `snapshot ${snapshot}: ${all}; ${sent}`
    : `nothing has changed since the last snapshot (${all})`;
  const other = otherMachine
    ? [`note: ${otherMachine.snapshot} is the newest snapshot of another machine, ${otherMachine.host}`]
    : [];
  return {
    lines: [line],
    notes: [...missing(report.exceptions), ...warningLines(report.warnings), ...other],
  };
}

/** @param {import("../index.js").ListResult} report @returns {Words} */
export function list({ snapshots, unreadable, warnings }) {
  const rows = snapshots.map((snapshot) => {
    const created = snapshot.createdAt.replace("T", " ").replace(/(\.\d+)?Z$/, "");
    const left = snapshot.complete ? "yes" : `no, ${number(snapshot.exceptions)} left out`;
    const complete = snapshot.shrunk ? `${left}; most of the state was gone` : left;
    const { id, kind, trigger, host, files, bytes } = snapshot;
    return [id, created, kind, trigger, host, number(files), size(bytes), complete];
  });
  const head = ["ID", "CREATED (UTC)", "KIND", "TRIGGER", "HOST", "FILES", "SIZE", "COMPLETE"];
  return {
    lines: rows.length > 0 ? table([head, ...rows], ["FILES", "SIZE"]) : ["there is no snapshot yet"],
    notes: [
      ...leftOutOf(snapshots.find(({ complete }) => !complete)),
      ...unreadable.map(({ path, reason }) => `warning: snapshot ${path} cannot be read: ${reason}`),
      ...warningLines(warnings),
    ],
  };
}

/** What a snapshot does not hold. @param {import("../index.js").SnapshotInfo | null | undefined} snapshot */
function leftOutOf(snapshot) {
  const { id, exceptions = 0, firstExceptions = [] } = snapshot ?? {};
  const lines = firstExceptions.map(({ path, reason }) => `not in ${id}: ${path}: ${reason}`);
  const more = exceptions - firstExceptions.length;
  return more > 0 && lines.length > 0 ? [...lines, `not in ${id}: ${number(more)} more`] : lines;
}

/** @param {import("../index.js").PullResult} report @param {string} directory @returns {Words} */
export function pull({ snapshot, files, bytes, exceptions, lost = [], warnings = [] }, directory) {
  const written = `${count(files, "file")}, ${size(bytes)}`;
  const gone = lost.map(({ path, reason }) => `not restored: ${path}: ${reason}`);
  const notes = [...missing(exceptions), ...gone, ...warningLines(warnings)];
  return { lines: [`wrote ${written}, of ${snapshot} to ${directory}`], notes };
}

/** @param {import("../index.js").RollbackResult} plan @returns {Words} */
export function plan({ snapshot, restored, deleted, unchanged, bytes, warnings }) {
  const indented = (/** @type {string[]} */ paths) => first(paths, SHOWN).map((path) => `  ${path}`);
  return {
    lines: [
      `rollback to ${snapshot}`,
      `would restore ${count(restored.length, "path")} (${size(bytes)})`,
      ...indented(restored),
      `would delete ${count(deleted.length, "path")}`,
      ...indented(deleted),
      `would leave ${count(unchanged, "path")} unchanged`,
    ],
    notes: warningLines(warnings),
  };
}

/** @param {import("../index.js").RollbackResult} report @returns {Words} */
export function rollback({ snapshot, safetySnapshot, restored, deleted, unchanged, bytes, restartRequired, warnings }) {
  const notes = warningLines(warnings);
  if (restored.length + deleted.length === 0) {
    return { lines: [`the state already is as in ${snapshot}; nothing was changed`], notes };
  }
  const done = `${count(restored.length, "path")} restored (${size(bytes)}), ${number(deleted.length)} deleted`;
  const lines = [`rolled back to ${snapshot}: ${done}, ${number(unchanged)} unchanged`];
  if (safetySnapshot !== null) lines.push(`the state before is kept as ${safetySnapshot}`);
  if (restartRequired) notes.push("a gateway that runs on this state must be restarted");
  return { lines, notes };
}

/** @param {import("../index.js").DiffResult} report @returns {Words} */
export function diff({ from, to, changes }) {
  const width = "modified".length;
  const total = `${count(changes.length, "difference")} from ${from} to ${to ?? "the live state"}`;
  return { lines: [...changes.map(({ path, kind }) => `${kind.padEnd(width)}  ${path}`), total] };
}

/** @param {import("../index.js").VerifyResult} report @returns {Words} */
export function verify({ snapshots, packs, chunks, readBytes, problems, lost = [], damagedPacks = 0, healed = [] }) {
  const checked = [count(snapshots, "snapshot"), count(packs, "pack"), count(chunks, "chunk")];
  if (readBytes > 0) checked.push(`${size(readBytes)} read`);
  const files = lost.map(({ snapshot, path, reason }) => `cannot be restored: ${snapshot} ${path}: ${reason}`);
  const advice = `${count(damagedPacks, "damaged pack")}: the next push stores again what this machine still has of them`;
  const notes = damagedPacks > 0 ? [advice] : [];
  return { lines: [...problems, ...files, ...healed, `checked ${checked.join(", ")}`], notes };
}

/** @param {import("../index.js").DrillResult} report @returns {Words} */
export function drill({ snapshot, files, bytes, databases, problems, skipped }) {
  if (skipped) return { lines: [`no drill: ${skipped}`] };
  const came = `${count(files, "file")}, ${size(bytes)}, came out as they were stored`;
  return { lines: [...problems, `${snapshot}: ${came}; ${count(databases, "database")} checked`] };
}

/** @param {import("../index.js").PruneResult} report @returns {Words} */
export function prune(report) {
  const { shrunk, removedSnapshots, condemnedPacks, deletedPacks, freedBytes, hiddenForDays, lockedObjects } = report;
  if (shrunk && removedSnapshots.length === 0) return { lines: ["nothing was pruned"], notes: [shrinkLine(shrunk)] };
  if (report.leftToAnotherKey) {
    return { lines: ["nothing was removed: this key may not delete, and leaves pruning to a key that may"] };
  }
  const removed = `${count(removedSnapshots.length, "snapshot")} removed`;
  const packs = `${count(deletedPacks, "pack")} deleted (${size(freedBytes)}), ${number(condemnedPacks)} to be deleted later`;
  const notes = [];
  if (hiddenForDays !== null) {
    notes.push(`this key may only hide: the bucket's lifecycle rule deletes it ${count(hiddenForDays, "day")} later`);
  }
  // Of another machine, perhaps, which is left alone while others are not.
  if (shrunk) notes.push(shrinkLine(shrunk));
  if (lockedObjects > 0) notes.push(`Object Lock still keeps ${count(lockedObjects, "object")} that are not needed`);
  return { lines: [`${removed}; ${packs}`, ...removedSnapshots.map((id) => `  ${id}`)], notes };
}

/** @param {import("../index.js").ImportLegacyResult} report @returns {Words} */
export function importLegacy({ imported, present, skipped }) {
  const before = present > 0 ? `; ${number(present)} imported before` : "";
  return {
    lines: [
      `${count(imported.length, "snapshot")} of 0.1.x imported${before}`,
      ...imported.map(({ from, snapshot }) => `  ${from} as ${snapshot}`),
    ],
    notes: skipped.map(({ path, reason }) => `not imported: ${path}: ${reason}`),
  };
}

/** @param {import("../index.js").StatusResult} report @returns {Words} */
export function status(report) {
  const {
    location,
    encrypted,
    snapshots,
    legacySnapshots,
    latest,
    storedBytes,
    objects,
    leftOut,
    cost,
    proven,
    failed,
    shrunk,
  } = report;
  const rows = [
    ["repository", location],
    ["encrypted", encrypted ? "yes" : "no"],
    ["stored", `${size(storedBytes)} in ${count(objects, "object")}`],
    ["hidden", hidden(report)],
    ["deletion", deletion(report)],
    ["snapshots", number(snapshots)],
    ...(legacySnapshots > 0 ? [["of 0.1.x", `${number(legacySnapshots)}, see import-legacy`]] : []),
    ["latest", latest ? `${latest.id} (${latest.trigger}, ${latest.host}, ${size(latest.bytes)})` : "none"],
    ["left out", leftOut.join(", ") || "nothing"],
    ["proven", proven ? `${proven.snapshot} was restored and checked at ${proven.at}` : "none yet; drill tries one"],
  ];
  const notes = [...warningLines(report.warnings), ...leftOutOf(latest)];
  if (failed) {
    notes.push(`warning: ${failed.snapshot} could not be restored at ${failed.at}: ${failed.problems[0]}`);
  }
  return {
    lines: [...table(rows), ...(cost ? costs(cost) : [])],
    notes: shrunk ? [...notes, shrinkLine(shrunk)] : notes,
  };
}

/** @param {Pick<import("../index.js").StatusResult, "hiddenBytes" | "hiddenVersions">} report */
function hidden({ hiddenBytes, hiddenVersions }) {
  if (hiddenBytes === null || hiddenVersions === null) return "the service does not tell";
  return hiddenVersions === 0 ? "nothing" : `${size(hiddenBytes)} in ${count(hiddenVersions, "version")}, also billed`;
}

/** @param {Pick<import("../index.js").StatusResult, "deletion" | "hiddenForDays">} report */
function deletion({ deletion, hiddenForDays }) {
  const ways = {
    for_good: "for good",
    by_lifecycle: `hidden, and deleted ${count(hiddenForDays ?? 0, "day")} later by the bucket's lifecycle rule`,
    denied: "left to another key: this one may not delete",
    untried: "for good, if the key may",
  };
  return ways[deletion];
}

/** @param {import("../index.js").Cost} cost */
function costs(cost) {
  const dollars = (/** @type {number} */ usd) => `$${usd.toFixed(2)}`;
  const calls = (/** @type {import("../index.js").CostOfCalls} */ { perMonth, freePerMonth, usd }) =>
    cost.measuredPushes === 0
      ? "not measured yet: no push of this machine"
      : `${number(Math.round(perMonth))} of ${number(freePerMonth)} free: ${dollars(usd)}`;
  const rows = [
    ["a month", `${dollars(cost.usd)} (${cost.service}, prices of ${cost.pricesDate})`],
    ["storage", `${size(cost.billedBytes)} of ${size(cost.freeBytes)} free: ${dollars(cost.storageUsd)}`],
    ["pushes", number(Math.round(cost.pushesPerMonth))],
    ["class B", calls(cost.classB)],
    ["class C", calls(cost.classC)],
  ];
  return ["", ...table(rows)];
}

/** @param {import("../index.js").Shrink} shrunk */
function shrinkLine({ snapshot, files, filesBefore, bytes, bytesBefore }) {
  const held = `${snapshot} holds ${number(filesBefore)}, ${size(bytesBefore)}`;
  const lost = `the last snapshot holds ${count(files, "file")}, ${size(bytes)}, and ${held}`;
  return `warning: ${lost}: nothing is pruned until you agree, with prune --accept-shrink`;
}

/** Enough of a slot's id to tell it from others. @param {string} id */
const short = (id) => id.slice(0, 12);

/** @param {import("../index.js").KeySlot[]} slots */
const slotNames = (slots) => slots.map(({ id, kind }) => `${kind} ${short(id)}`).join(", ");

/** @param {import("../index.js").KeyListResult} report @returns {Words} */
export function keyList({ slots }) {
  if (slots.length === 0) return { lines: ["there is no key slot: nothing is stored here, or it is not encrypted"] };
  const yes = (/** @type {boolean} */ value) => (value ? "yes" : "no");
  const rows = slots.map(({ id, kind, createdAt, masterKey, writing, opens, removing, problem }) => {
    const created = createdAt.replace("T", " ").replace("Z", "");
    const state = problem !== null ? (kind === null ? "damaged" : "passed over") : removing ? "being removed" : "";
    return [short(id), kind ?? "?", created, masterKey ? masterKey.slice(0, 8) : "?", yes(writing), yes(opens), state];
  });
  const head = ["ID", "KIND", "CREATED (UTC)", "MASTER KEY", "SEALS NEW", "OPENED HERE", ""];
  const problems = slots.flatMap(({ problem }) => (problem === null ? [] : [problem]));
  return { lines: table([head, ...rows]), notes: warningLines(problems) };
}

/** @param {import("../index.js").KeyAddResult} report @returns {Words} */
export function keyAdd({ added }) {
  if (added.length === 0) return { lines: ["nothing was added: it opens the repository already"] };
  return { lines: [`added: ${slotNames(added)}`] };
}

/** @param {import("../index.js").KeyRemoveResult} report @returns {Words} */
export function keyRemove({ removed }) {
  const note =
    "whoever has opened a removed slot may have kept the master key: `key rotate` seals what is new with another";
  return { lines: [`removed: ${removed.map(short).join(", ")}`], notes: [note] };
}

/** @param {import("../index.js").KeyRotateResult} report @returns {Words} */
export function keyRotate({ masterKey, added, leftBehind }) {
  const lines = [`from now on everything is sealed with the master key ${masterKey.slice(0, 8)}`];
  lines.push(`it is opened by: ${slotNames(added)}`);
  if (leftBehind.length === 0) return { lines };
  const advice = "make a new recovery code with `key recovery-code`, and add other secrets with `key add`";
  return { lines, notes: [`warning: these open older snapshots alone: ${slotNames(leftBehind)}; ${advice}`] };
}

/** @param {import("../index.js").KeyRecoveryCodeResult} report @returns {Words} */
export function keyRecoveryCode({ recoveryCode, earlier }) {
  const notes = ["write it down and keep it away from this machine: it is kept nowhere, and opens the backups alone"];
  if (earlier.length > 0) notes.push(`earlier codes still open them: ${slotNames(earlier)}; see \`key remove\``);
  return { lines: [recoveryCode], notes };
}

/** @param {string[]} warnings */
function warningLines(warnings) {
  return warnings.map((text) => `warning: ${text}`);
}

/** @param {import("../index.js").SnapshotException[]} exceptions */
function missing(exceptions) {
  const lines = exceptions.map(({ path, reason }) => `not in the snapshot: ${path}: ${reason}`);
  return first(lines, SHOWN);
}
