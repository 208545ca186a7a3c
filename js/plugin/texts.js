// What the plugin says in chat, in logs and in questions: short, with counts and sizes, and never a secret.

import { count, duration, first, number, oneLine, size } from "../text.js";

/** @typedef {import("../../index.js").SnapshotInfo} SnapshotInfo */
/** @typedef {import("../../index.js").RollbackResult} RollbackResult */

const LISTED = 10;
/** How many of the things that a snapshot does not hold are named. */
const NAMED = 3;
const PATHS = 8;
/** OpenClaw cuts a question's description at 512 characters. */
const QUESTION = 512;

const TRIGGERS = {
  schedule: "scheduled",
  catch_up: "made up for a missed one",
  before_compaction: "before a compaction",
  gateway_stop: "at a gateway stop",
  manual: "asked for",
  before_rollback: "before a rollback",
  import: "imported from 0.1.x",
};

/** `2026-02-19 01:30`, in the zone of this machine. @param {number | string} time */
export function when(time) {
  const date = new Date(time);
  const two = (/** @type {number} */ value) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

/** `3 min 5 s ago`. @param {number} time */
const ago = (time) => `${when(time)}, ${duration(Math.max(0, Date.now() - time))} ago`;

/** @param {string} name */
const reason = (name) => TRIGGERS[/** @type {keyof TRIGGERS} */ (name)] ?? oneLine(name);

/** @param {import("../../index.js").ListResult} report */
export function list({ snapshots, unreadable, warnings }) {
  if (snapshots.length + unreadable.length + warnings.length === 0) return "There is no snapshot yet.";
  const line = (/** @type {SnapshotInfo} */ snapshot) => {
    const { id, createdAt, kind, trigger, host, files, bytes, complete, exceptions, firstExceptions } = snapshot;
    return [
      `${id}  ${when(createdAt)}`,
      // 0.1.x did not say why it took one, nor where.
      kind === "legacy"
        ? `of 0.1.x, ${count(files, "file")}, ${size(bytes)}`
        : `${reason(trigger)}, ${count(files, "file")}, ${size(bytes)}, ${oneLine(host)}`,
      ...(complete ? [] : [`incomplete: ${number(exceptions)} left out${some(firstExceptions)}`]),
      ...(snapshot.shrunk ? ["most of the state was gone"] : []),
    ].join("; ");
  };
  const lines = [`${count(snapshots.length, "snapshot")}, newest first:`, ...first(snapshots.map(line), LISTED)];
  if (unreadable.length > 0) lines.push(`${count(unreadable.length, "snapshot")} cannot be read.`);
  lines.push(...warnings.map((text) => `Warning: ${oneLine(text)}`));
  return lines.join("\n");
}

/** The first of what a snapshot does not hold. @param {import("../../index.js").SnapshotException[]} exceptions */
function some(exceptions = []) {
  const names = exceptions.slice(0, NAMED).map(({ path, reason }) => oneLine(`${path} (${reason})`));
  return names.length > 0 ? `, ${exceptions.length > NAMED ? "such as " : ""}${names.join(", ")}` : "";
}

/** @param {RollbackResult} plan */
const changes = ({ restored, deleted }) => restored.length + deleted.length;

/** @param {RollbackResult} plan */
export const isEmpty = (plan) => changes(plan) === 0;

/** @param {RollbackResult} plan */
function totals({ restored, deleted, unchanged, bytes }) {
  const counts = [`${count(restored.length, "path")} restored (${size(bytes)})`, `${number(deleted.length)} deleted`];
  return `${counts.join(", ")}, ${number(unchanged)} unchanged`;
}

/** @param {RollbackResult} plan */
export function plan(plan) {
  if (isEmpty(plan)) return `Everything is already as in ${plan.snapshot}.`;
  const listed = (/** @type {string} */ verb, /** @type {string[]} */ paths) =>
    paths.length > 0 ? [`${verb}:`, ...first(paths.map(oneLine), PATHS).map((path) => `  ${path}`)] : [];
  return [
    `A rollback to ${plan.snapshot}: ${totals(plan)}.`,
    ...listed("Restored", plan.restored),
    ...listed("Deleted", plan.deleted),
    ...plan.warnings.map(oneLine),
    "Nothing was changed. A rollback takes a safety snapshot first, and restarts the gateway.",
  ].join("\n");
}

/** The question to the owner. @param {RollbackResult} plan @param {string[]} [paths] */
export function question(plan, paths) {
  const lines = [
    `${plan.snapshot}${paths ? `, only ${paths.map(oneLine).join(" ")}` : ""}`,
    `${totals(plan)}. A safety snapshot is taken first; the gateway restarts.`,
    // One, short: what is deleted and restored needs the room.
    ...plan.warnings.slice(0, 1).map((warning) => oneLine(warning).slice(0, 200)),
  ];
  const named = [...plan.deleted.map((path) => `delete ${path}`), ...plan.restored.map((path) => `restore ${path}`)];
  for (const [index, name] of named.entries()) {
    const line = oneLine(name);
    const rest = `... and ${number(named.length - index)} more`;
    if ([...lines, line, rest].join("\n").length > QUESTION) {
      lines.push(rest);
      break;
    }
    lines.push(line);
  }
  return lines.join("\n").slice(0, QUESTION);
}

/** When the question reached nobody. @param {RollbackResult} plan */
export function unanswered({ snapshot }) {
  const commands = `/b2 restore ${snapshot} in chat, or openclaw b2-backup rollback --snapshot ${snapshot} with the gateway stopped`;
  return `B2 backup: nobody could approve the rollback, and nothing was changed. The owner can do it with ${commands}`;
}

/** @param {RollbackResult} report @param {boolean} restarts whether the gateway restarts by itself */
export function prepared(report, restarts) {
  return [
    `The rollback to ${report.snapshot} is prepared and verified: ${totals(report)}.`,
    restarts
      ? "The gateway restarts now and applies it once no run is in flight."
      : "It is applied when the gateway stops: restart the gateway now.",
    "What became of it, and how to take it back, is then told in this conversation.",
  ].join("\n");
}

/** @param {import("./record.js").Rollback} rollback */
export function rolledBack({ applied, problem, snapshot, safetySnapshot, restored, deleted }) {
  if (applied === undefined) {
    return `B2 backup: the gateway ended while it rolled back to ${snapshot}. To see what is left to do: /b2 plan ${snapshot}`;
  }
  if (!applied) {
    const why = problem ? `: ${oneLine(problem)}` : "";
    return `B2 backup: the rollback to ${snapshot} was not made${why}. Nothing was changed.`;
  }
  const done = `${count(restored, "path")} restored, ${number(deleted)} deleted`;
  const undo = safetySnapshot ? ` To take it back: /b2 restore ${safetySnapshot}` : "";
  return `B2 backup: rolled back to ${snapshot}: ${done}.${undo}`;
}

/** @param {import("../../index.js").PushResult} report */
export function pushed({ snapshot, files, bytes, changedFiles, uploadedBytes, durationMs, exceptions, warnings }) {
  const all = `${count(files, "file")}, ${size(bytes)}`;
  if (!snapshot) return `Nothing has changed since the last snapshot (${all}).`;
  const sent = `${number(changedFiles)} changed, ${size(uploadedBytes)} sent in ${duration(durationMs)}`;
  const missing = exceptions.length > 0 ? [`Left out: ${count(exceptions.length, "path")}${some(exceptions)}.`] : [];
  return [`Snapshot ${snapshot}: ${all}; ${sent}.`, ...missing, ...warnings.map(oneLine)].join("\n");
}

/**
 * @param {import("./record.js").Facts} facts
 * @param {import("../../index.js").StatusResult} report
 * @param {ReturnType<typeof import("./schedule.js").startSchedule> | null} schedule
 */
export function status({ lastSuccess, lastError, lastDrill }, report, schedule) {
  const { location, encrypted, snapshots, legacySnapshots, latest, storedBytes, hiddenBytes, warnings } = report;
  const { shrunk: gone, proven, failed: unproven } = report;
  const problems = [
    ...(lastError ? ["the last backup failed"] : schedule?.isOverdue() ? ["a backup is overdue"] : []),
    ...(unproven ? ["a snapshot could not be restored"] : []),
    ...(gone ? ["the state has lost most of what it held"] : []),
  ];
  const health = problems.join(", ") || "good";
  return [
    `Health: ${health}`,
    `Last backup: ${lastSuccess ? `${ago(lastSuccess.at)}, ${reason(lastSuccess.trigger)}` : "none by this machine yet"}`,
    ...(lastError ? [`Last error: ${ago(lastError.at)}: ${oneLine(lastError.message)}`] : []),
    ...(schedule ? [`Next backup: ${when(schedule.next().getTime())}`] : []),
    `Snapshots: ${number(snapshots)}${latest ? `, newest ${latest.id}` : ""}`,
    ...(latest?.complete === false
      ? [`Not in it: ${count(latest.exceptions, "path")}${some(latest.firstExceptions)}`]
      : []),
    ...(legacySnapshots > 0 ? [`Of 0.1.x: ${number(legacySnapshots)}, named by their ids`] : []),
    `Stored: ${size(storedBytes)} in ${location}, ${encrypted ? "encrypted" : "not encrypted"}`,
    ...(hiddenBytes ? [`Hidden, and also billed: ${size(hiddenBytes)}`] : []),
    ...warnings.map((text) => `Warning: ${oneLine(text)}`),
    `Last proven restorable: ${proven ? `${proven.snapshot}, ${ago(Date.parse(proven.at))}` : "none yet"}`,
    ...(lastDrill?.skipped ? [`Last drill: ${ago(lastDrill.at)}, not made: ${oneLine(lastDrill.skipped)}`] : []),
    ...(unproven ? [`Not restorable: ${unproven.snapshot}: ${oneLine(unproven.problems[0] ?? "")}`] : []),
    ...(gone ? [shrunk(gone)] : []),
  ].join("\n");
}

/** @param {import("../../index.js").Shrink} shrink */
export function shrunk({ snapshot, files, filesBefore, bytes, bytesBefore }) {
  return (
    `B2 backup: this OpenClaw has lost most of what it held: ${count(files, "file")}, ${size(bytes)}, are left of the ` +
    `${number(filesBefore)}, ${size(bytesBefore)}, in ${snapshot}. Backups go on, and no old one is removed until you agree: /b2 accept-shrink. To go back: /b2 plan ${snapshot}`
  );
}

/** @param {import("../../index.js").PruneResult} report */
export function accepted({ removedSnapshots }) {
  return `Agreed: old snapshots are removed again as configured; ${count(removedSnapshots.length, "snapshot")} went now.`;
}

/** @param {import("../../index.js").DrillResult} report */
export function drilled({ snapshot, files, bytes, databases, problems, skipped }) {
  if (skipped) return `B2 backup: no restore drill: ${oneLine(skipped)}`;
  const what = `${count(files, "file")}, ${size(bytes)}, ${count(databases, "database")}`;
  if (problems.length === 0) return `B2 backup: the restore drill of ${snapshot} went well: ${what}`;
  const advice = "Run openclaw b2-backup verify --read-data, then /b2 backup: it stores again what is still here.";
  const more = first(problems.map(oneLine), PATHS).join("; ");
  return `B2 backup: ${snapshot} cannot be restored wholly, as a drill has shown: ${more}. ${advice}`;
}

/** @param {string[]} paths */
export function dropped(paths) {
  const what = `${first(paths.map(oneLine), PATHS).join(", ")} can no longer be read, and ${paths.length === 1 ? "is" : "are"} in earlier snapshots`;
  return `B2 backup: ${what}, of which the newest with it is kept. /b2 status says why; to go back: /b2 plan <snapshot>`;
}

/** @param {string} snapshot */
export function missing(snapshot) {
  const what = `${snapshot}, the newest snapshot that this machine had seen, was not in the bucket any more at the last backup`;
  return `B2 backup: ${oneLine(what)}. Backups never remove the newest one: look at what happened there. /b2 list shows what is left.`;
}

/** @param {import("../../index.js").OtherMachine} other */
export function otherMachine({ snapshot, host, restoresItself }) {
  const there = `B2 backup: the bucket holds snapshots of another machine, ${oneLine(host)}`;
  return restoresItself
    ? `${there}. No agent has made anything here yet: restart the gateway, and ${snapshot} is restored`
    : `${there}. Nothing of it was restored here, where agents have something already. To take it over: /b2 plan ${snapshot}`;
}

/** @param {import("./child.js").Failure} error */
export const off = (error) => `B2 backup is off: ${oneLine(error.message)}`;

/** @param {import("./child.js").Failure} error @param {import("./record.js").Success} [lastSuccess] */
export function failed(error, lastSuccess) {
  const last = lastSuccess ? `The last good one is of ${when(lastSuccess.at)}.` : "There is no good one yet.";
  return `B2 backup: a backup failed: ${oneLine(error.message)}. ${last} It is tried again; /b2 status says more.`;
}

/** @param {any} report what `recover` did */
export function recovered({ outcome, snapshot, safetySnapshot }) {
  const words = { finished: "finished", undone: "taken back", discarded: "dropped before it had begun" };
  const what = words[/** @type {keyof words} */ (outcome)] ?? oneLine(String(outcome));
  const undo = safetySnapshot ? `; safety snapshot ${safetySnapshot}` : "";
  return `B2 backup: a rollback to ${snapshot} that the last run of the gateway left behind was ${what}${undo}`;
}

/** @param {RollbackResult} report what `restoreIfEmpty` did */
export function restoredEmpty({ snapshot, restored, bytes, warnings, restartRequired }) {
  const what = `${count(restored.length, "path")}, ${size(bytes)}${restartRequired ? "; the gateway restarts once" : ""}`;
  const text = `B2 backup: this machine had nothing yet, and was restored from ${snapshot}: ${what}`;
  return [text, ...warnings.map(oneLine)].join("; ");
}
