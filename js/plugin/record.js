// What the plugin remembers between starts, in `<stateDir>/b2-backup/status.json`: the last backup, the last failure, the last
// restore drill, and a rollback that somebody waits to hear of. It decides nothing that a lost file would make wrong.

import { mkdir, open, readFile, rename } from "node:fs/promises";
import path from "node:path";

/**
 * @typedef {{ at: number, place: string, snapshot: string | null, trigger: string, triggers: string[], files: number, bytes: number }} Success
 * @typedef {{ at: number, code: string, message: string, count: number }} Problem
 * @typedef {{
 *   at: number, sessionKey?: string, agentId?: string, snapshot: string, safetySnapshot: string | null,
 *   restored: number, deleted: number, applied?: boolean, problem?: string
 * }} Rollback
 * @typedef {{ at: number, place: string, snapshot: string, skipped: string | null, problems: string[] }} Drill
 * @typedef {{
 *   lastSuccess?: Success, lastError?: Problem, toldAt?: number, rollback?: Rollback, lastDrill?: Drill, toldShrunk?: string,
 *   toldDropped?: string, missing?: string
 * }} Facts
 */

export class Record {
  /** @type {Facts} */
  facts = {};
  /** Told why the file could not be written. @type {(problem: string) => void} */
  onProblem = () => {};
  #file;
  /** @type {Promise<void>} */
  #writing = Promise.resolve();

  /** @param {string} stateDir */
  constructor(stateDir) {
    this.#file = path.join(stateDir, "b2-backup", "status.json");
  }

  /** What the file says; one that cannot be read counts as none. */
  async load() {
    try {
      const facts = JSON.parse(await readFile(this.#file, "utf8"));
      this.facts = facts !== null && typeof facts === "object" && !Array.isArray(facts) ? facts : {};
    } catch {
      // Lost or damaged: the next backup writes a new one.
      this.facts = {};
    }
  }

  /**
   * Changes some facts and writes them; `undefined` removes one. What cannot be written counts until the process ends: what
   * it is about was done, or failed, all the same.
   * @param {Partial<Facts>} changes
   */
  async set(changes) {
    this.facts = { ...this.facts, ...changes };
    this.#writing = this.#writing
      .then(() => this.#write())
      .catch((error) => this.onProblem(`cannot write ${this.#file}: ${error.message}`));
    return this.#writing;
  }

  /** Beside its place first, so that a crash leaves the old file or the new one. */
  async #write() {
    await mkdir(path.dirname(this.#file), { recursive: true, mode: 0o700 });
    // Two gateways may be on one state directory for a moment.
    const draft = `${this.#file}.${process.pid}.tmp`;
    const handle = await open(draft, "w", 0o600);
    try {
      await handle.writeFile(`${JSON.stringify(this.facts, null, 2)}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(draft, this.#file);
  }
}
