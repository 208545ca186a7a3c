// Words for people: sizes, durations, counts, tables, and text that is safe to show on a terminal.

/** A command line that cannot be understood; exit code 64. */
export class UsageError extends Error {
  code = "USAGE";
}

const SIZES = ["kB", "MB", "GB", "TB", "PB"];

/** `12.3 MB`: powers of 1000, as storage is sold. @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${Math.round(bytes)} B`;
  let value = bytes / 1000;
  let unit = 0;
  // 999.95 would be shown as 1000.0.
  for (; value >= 999.95 && unit < SIZES.length - 1; unit++) value /= 1000;
  return `${value.toFixed(1)} ${SIZES[unit]}`;
}

/** `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`. @param {number} milliseconds */
export function duration(milliseconds) {
  if (milliseconds < 9950) return `${(milliseconds / 1000).toFixed(1)} s`;
  const seconds = Math.round(milliseconds / 1000);
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

/**
 * `1,234`, for whole numbers. Not by `toLocaleString`, which loads the data of all languages the first time: 20 ms on the
 * gateway's thread, and 8 MB.
 * @param {number} value
 */
export function number(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** `1 file`, `1,234 files`. @param {number} value @param {string} noun */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/**
 * Text from elsewhere (a path, a host's name, an error) on one line: a file may be named after a terminal's control
 * sequences, or turn the direction of what follows it.
 * @param {string} text
 */
export function oneLine(text) {
  return text
    .replace(/\s*[\r\n]+\s*/g, " ")
    .replace(
      /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu,
      (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`,
    );
}

/** The first of `items`, and how many there are besides. @param {string[]} items @param {number} limit */
export function first(items, limit) {
  if (items.length <= limit) return items;
  return [...items.slice(0, limit), `... and ${number(items.length - limit)} more`];
}

/** Rows in aligned columns, those headed by `right` to the right. @param {string[][]} rows @param {string[]} [right] */
export function table(rows, right = []) {
  const texts = rows.map((row) => row.map(oneLine));
  const widths = texts[0].map((_, column) => Math.max(...texts.map((row) => row[column].length)));
  const align = (/** @type {string} */ cell, /** @type {number} */ column) =>
    right.includes(rows[0][column]) ? cell.padStart(widths[column]) : cell.padEnd(widths[column]);
  return texts.map((row) => row.map(align).join("  ").trimEnd());
}
