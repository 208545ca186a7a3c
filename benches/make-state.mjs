// Makes a realistic OpenClaw state directory for the benchmark, the same one every time, and models a day of use on it.
//
//   node benches/make-state.mjs make <dir> S|M|L|F    S: 5 MB, 190 files; M: 300 MB, 3,000 files; L: 2 GB, 20,000 files;
//                                                     F: S and one file of 5 GB
//   node benches/make-state.mjs mutate <dir> [day]    transcripts grow, notes are edited, added and deleted, databases too
//
// `M --times 4` holds four times as much; `mutate --times 4` changes as much of it as of one that was not multiplied.
//
// Needs Node 24 for node:sqlite. Contents have the statistics of the real thing (words, JSON lines, embeddings), no meaning;
// no gateway could run on them. The layout is mostly that of before 2026.7, with many files, which is the harder one.

import { createCipheriv } from "node:crypto";
import { appendFileSync, closeSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, openSync } from "node:fs";
import { readFileSync, readdirSync, rmSync, statSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { DatabaseSync } from "node:sqlite";

/** Sizes in bytes. Files get log-normal sizes between `smallest` and `largest` that add up to about `total`. */
const SIZES = {
  S: {
    transcripts: { count: 60, total: 2.2e6, smallest: 1e4, largest: 2e5 },
    notes: { count: 115, total: 0.9e6, smallest: 1e3, largest: 5e4 },
    memory: { main: 1.2e6 },
    ...{ sessionRows: 300, rowsInWal: 40, cronRuns: 4, hooks: 6, excluded: 1 },
  },
  M: {
    transcripts: { count: 760, total: 185e6, smallest: 1e4, largest: 5e6 },
    notes: { count: 2150, total: 24e6, smallest: 1e3, largest: 5e4 },
    memory: { main: 40e6, work: 24e6, research: 20e6 },
    ...{ sessionRows: 9000, rowsInWal: 400, cronRuns: 25, hooks: 40, excluded: 4 },
  },
  L: {
    transcripts: { count: 4200, total: 1500e6, smallest: 1e4, largest: 5e6 },
    notes: { count: 15_500, total: 160e6, smallest: 1e3, largest: 5e4 },
    memory: { main: 60e6, work: 55e6, research: 50e6, home: 45e6, ops: 40e6, finance: 40e6 },
    ...{ sessionRows: 20_000, rowsInWal: 800, cronRuns: 80, hooks: 120, excluded: 10 },
  },
};
SIZES.F = { ...SIZES.S, recording: 5e9 };
const START = Date.UTC(2026, 0, 5);
const WORDS = (
  "the of to and a in is it you that he was for on are with as I his they be at one have this from or had by hot but some " +
  "what there we can out other were all your when up use word how said an each she which do their time if will way about " +
  "many then them would write like so these her long make thing see him two has look more day could go come did my sound " +
  "no most number who over know water than call first people may down side been now find any new work part take get place " +
  "made live where after back little only round man year came show every good me give our under name very through just " +
  "form much great think say help low line before turn cause same mean differ move right boy old too does tell sentence " +
  "set three want air well also play small end put home read hand port large spell add even land here must big high such " +
  "follow act why ask men change went light kind off need house picture try us again animal point mother world near build " +
  "self earth father gateway session token memory agent channel webhook cron deploy container index embedding vector " +
  "compaction transcript prompt provider retry timeout refactor typescript function async promise buffer stream directory " +
  "manifest snapshot restore telegram whatsapp discord slack message"
).split(" ");

/** A small seeded generator (mulberry32), uniform in [0, 1): runs on different days measure the same bytes. */
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

let random = generator(7);
const below = (limit) => Math.floor(random() * limit);
const pick = (list) => list[below(list.length)];

function hex(length) {
  let text = "";
  while (text.length < length) text += below(4294967296).toString(16).padStart(8, "0");
  return text.slice(0, length);
}

const uuid = () => [hex(8), hex(4), `4${hex(3)}`, hex(4), hex(12)].join("-");

/** Sentences in which frequent words are more frequent, with a number here and there. */
function prose(length) {
  let text = "";
  while (text.length < length) {
    const words = Array.from({ length: 6 + below(14) }, () => WORDS[Math.floor(random() * random() * WORDS.length)]);
    text += words.join(" ") + (random() < 0.15 ? ` ${below(1e6).toString(16)}` : "") + (random() < 0.1 ? ".\n" : ". ");
  }
  return text.slice(0, length);
}

/** Numbers as an embedding has them: nearly incompressible. */
function embedding(length) {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at + 4 <= length; at += 4) bytes.writeFloatLE((random() + random() + random() - 1.5) * 0.08, at);
  return bytes;
}

/** A file of `length` bytes that neither compress nor repeat: what AES gives for zeros. */
function putNoise(file, length) {
  const cipher = createCipheriv("aes-128-ctr", Buffer.alloc(16), Buffer.alloc(16));
  const zeros = Buffer.alloc(1 << 20);
  const descriptor = openSync(file, "w", 0o600);
  for (let left = length; left > 0; left -= zeros.length) {
    writeSync(descriptor, cipher.update(zeros.subarray(0, Math.min(left, zeros.length))));
  }
  closeSync(descriptor);
}

/** One line of a transcript: the user, the model with its thinking, a tool's call, or its result. */
function transcriptLine(index, size) {
  const time = START + index * 37_000;
  const entry = { type: "message", id: hex(8), parentId: hex(8), timestamp: new Date(time).toISOString() };
  const text = (length) => ({ type: "text", text: prose(length) });
  const kind = random();
  let message;
  if (kind < 0.3) message = { role: "user", content: [text(40 + random() * 300)], timestamp: time };
  else if (kind < 0.6) {
    const thinking = { type: "thinking", thinking: prose(100 + random() * 600), thinkingSignature: hex(240) };
    const usage = { input: below(9000), output: below(900), cacheRead: below(90_000), cacheWrite: 0, cost: random() };
    const content = [thinking, text(100 + random() * 1200)];
    message = {
      role: "assistant",
      content,
      provider: "anthropic",
      model: "claude",
      usage,
      stopReason: "stop",
      timestamp: time,
    };
  } else if (kind < 0.8) {
    const name = pick(["read", "exec", "write", "web_fetch"]);
    const input = { path: `/home/u/${hex(6)}/${pick(WORDS)}.ts`, command: prose(80) };
    const call = { type: "toolCall", id: `toolu_${hex(24)}`, name, arguments: input };
    message = { role: "assistant", content: [call], usage: { input: below(9000), output: 99 } };
  } else {
    const length = Math.min(size / 3, 300 + random() * random() * 12_000);
    message = { role: "toolResult", toolCallId: `toolu_${hex(24)}`, content: [text(length)], isError: false };
  }
  return JSON.stringify({ ...entry, message });
}

function transcript(size, firstIndex = 0) {
  const head = { type: "session", version: 3, id: hex(32), timestamp: new Date(START).toISOString(), cwd: "/home/u" };
  const lines = [JSON.stringify(head)];
  for (let length = 0, index = firstIndex; length < size; index++) {
    lines.push(transcriptLine(index, size));
    length += lines.at(-1).length + 1;
  }
  return `${lines.join("\n")}\n`;
}

function fileSizes({ count, total, smallest, largest }) {
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const weights = Array.from({ length: count }, () => Math.exp(normal() * 1.3));
  const sum = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => Math.round(Math.min(largest, Math.max(smallest, (weight / sum) * total))));
}

function write(file, data, mode) {
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, data, { mode });
}

const MEMORY_SCHEMA = `
  CREATE TABLE files(path TEXT PRIMARY KEY, source TEXT, hash TEXT, mtime INTEGER, size INTEGER);
  CREATE TABLE chunks(id TEXT PRIMARY KEY, path TEXT, source TEXT, start_line INTEGER, end_line INTEGER, hash TEXT,
    model TEXT, text TEXT, embedding BLOB, updated_at INTEGER);
  CREATE INDEX chunks_by_path ON chunks(path);
  CREATE VIRTUAL TABLE chunks_fts USING fts5(text, id UNINDEXED);
`;
/** What one row of `chunks` adds to the file. */
const MEMORY_ROW_BYTES = 10_200;

/** Rows of a memory index: a passage of text with its embedding, half of them in the full-text index as well. */
function addMemories(database, count) {
  const chunk = database.prepare("INSERT OR IGNORE INTO chunks VALUES(?,?,?,?,?,?,?,?,?,?)");
  const searchable = database.prepare("INSERT INTO chunks_fts VALUES(?,?)");
  const file = database.prepare("INSERT OR IGNORE INTO files VALUES(?,?,?,?,?)");
  database.exec("BEGIN");
  for (let i = 0; i < count; i++) {
    const id = hex(40);
    const text = prose(700 + random() * 900);
    const source = `memory/2026-0${1 + below(9)}-${hex(3)}.md`;
    chunk.run(id, source, "memory", 1, 40, hex(64), "text-embedding-3-small", text, embedding(6144), START);
    if (random() < 0.5) searchable.run(text, id);
    file.run(source, "memory", hex(64), START, text.length);
  }
  database.exec("COMMIT");
}

function addSessions(database, count) {
  const session = database.prepare("INSERT OR REPLACE INTO sessions VALUES(?,?,?)");
  const event = database.prepare("INSERT INTO events(ts, kind, body) VALUES(?,?,?)");
  database.exec("BEGIN");
  for (let i = 0; i < count; i++) {
    session.run(`agent:main:${hex(8)}`, START, JSON.stringify({ id: hex(32), model: "claude", text: prose(200) }));
    event.run(START + i, "run", prose(400));
  }
  database.exec("COMMIT");
}

/** Changes a database as a gateway would that is then killed: what is new stays in the `-wal` file beside it. */
function changeInWal(file, change) {
  const directory = mkdtempSync(path.join(tmpdir(), "make-state-"));
  const copy = path.join(directory, "database.sqlite");
  const suffixes = ["", "-wal"];
  for (const suffix of suffixes) if (existsSync(file + suffix)) copyFileSync(file + suffix, copy + suffix);
  const database = new DatabaseSync(copy);
  database.exec("PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0");
  change(database);
  mkdirSync(path.dirname(file), { recursive: true });
  for (const suffix of suffixes) if (existsSync(copy + suffix)) copyFileSync(copy + suffix, file + suffix);
  database.close(); // Only now: closing moves the -wal into the database.
  rmSync(directory, { recursive: true });
}

const AGENT_DATABASE = "agents/main/agent/openclaw-agent.sqlite";

/** The same with so many times as many files and as much memory; each day in it is as it was. */
function multiplied(parameters, times) {
  const { transcripts, notes, memory } = parameters;
  const more = ({ count, total, ...bounds }) => ({ count: count * times, total: total * times, ...bounds });
  const larger = Object.fromEntries(Object.entries(memory).map(([agent, length]) => [agent, length * times]));
  return { ...parameters, transcripts: more(transcripts), notes: more(notes), memory: larger };
}

function make(directory, size, times) {
  if (existsSync(directory)) throw new Error(`${directory} exists`);
  random = generator(7000 + size.charCodeAt(0));
  const parameters = multiplied(SIZES[size], times);
  const put = (name, data, mode) => write(path.join(directory, name), data, mode);
  const agents = Object.keys(parameters.memory);

  put(
    "openclaw.json",
    JSON.stringify({ agents: { list: agents.map((id) => ({ id })) }, gateway: { port: 18789 } }, null, 2),
  );
  put("openclaw.json.bak", '{ "older": true }\n');
  fileSizes(parameters.transcripts).forEach((length, index) => {
    const agent = agents[Math.floor(random() * random() * agents.length)];
    put(`agents/${agent}/sessions/${uuid()}.jsonl`, transcript(length, index * 900));
  });
  for (const agent of agents) {
    const count = Math.ceil(parameters.transcripts.count / agents.length);
    const entry = () => [`agent:${agent}:${hex(8)}`, { sessionId: hex(32), updatedAt: START }];
    put(
      `agents/${agent}/sessions/sessions.json`,
      JSON.stringify(Object.fromEntries(Array.from({ length: count }, entry))),
    );
  }
  const named = ["AGENTS", "SOUL", "MEMORY", "USER", "TOOLS", "HEARTBEAT"];
  fileSizes(parameters.notes).forEach((length, index) => {
    const workspace = random() < 0.2 && agents.length > 1 ? `workspace-${agents[1]}` : "workspace";
    const folder = pick(["memory", "notes", `projects/${WORDS[below(60)]}`, `skills/${WORDS[below(40)]}`]);
    const name = index < named.length ? `workspace/${named[index]}.md` : `${workspace}/${folder}/${hex(10)}.md`;
    put(name, `# ${prose(30)}\n\n${prose(length)}\n`);
  });
  for (let i = 0; i < parameters.cronRuns; i++) {
    const job = { id: hex(12), schedule: "0 9 * * *", prompt: prose(200) };
    put(i === 0 ? "cron/jobs.json" : `cron/runs/${hex(12)}.json`, JSON.stringify(job));
  }
  for (let i = 0; i < parameters.hooks; i++) {
    put(`hooks/${WORDS[i % 90]}-${i}/${i % 2 ? "handler.ts" : "HOOK.md"}`, prose(800));
  }
  if (parameters.recording) putNoise(path.join(directory, "workspace/recording.bin"), parameters.recording);
  // What no backup should hold.
  for (let i = 0; i < parameters.excluded; i++) {
    put(`credentials/telegram-${i}.json`, '{ "token": "must-not-leave" }', 0o600);
    put(`workspace/${hex(6)}.tmp`, "partial");
    put(`media/inbound/${hex(8)}.bin`, embedding(20_000));
  }
  for (const [agent, length] of Object.entries(parameters.memory)) {
    const file = path.join(directory, `agents/${agent}/memory/${agent}.sqlite`);
    mkdirSync(path.dirname(file), { recursive: true });
    const database = new DatabaseSync(file);
    database.exec(`PRAGMA page_size=4096; ${MEMORY_SCHEMA}`);
    for (;;) {
      const missing = length - statSync(file).size;
      if (missing <= 0) break;
      addMemories(database, Math.max(20, Math.min(500, Math.ceil(missing / MEMORY_ROW_BYTES))));
    }
    database.close();
  }
  changeInWal(path.join(directory, AGENT_DATABASE), (database) => {
    database.exec("CREATE TABLE sessions(k TEXT PRIMARY KEY, ts INTEGER, body TEXT)");
    database.exec("CREATE TABLE events(id INTEGER PRIMARY KEY, ts INTEGER, kind TEXT, body TEXT)");
    addSessions(database, parameters.sessionRows);
    database.exec("PRAGMA wal_checkpoint(TRUNCATE)");
    addSessions(database, parameters.rowsInWal);
  });
}

function mutate(directory, day, times) {
  random = generator(day * 7919 + 11);
  const files = readdirSync(directory, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(directory, path.join(entry.parentPath, entry.name)))
    .sort();
  const take = (list, count) =>
    Array.from({ length: Math.min(count, list.length) }, () => list.splice(below(list.length), 1)[0]);
  const at = (name) => path.join(directory, name);
  const transcripts = files.filter((name) => /sessions\/.*\.jsonl$/.test(name));
  const notes = files.filter((name) => /^workspace.*\.md$/.test(name) && !/\/(AGENTS|SOUL|MEMORY)\.md$/.test(name));

  for (const name of take(transcripts, Math.max(3, Math.round((transcripts.length * 0.03) / times)))) {
    const grow = statSync(at(name)).size * 0.01;
    let added = "";
    for (let index = 5000; added.length < grow; index++) added += `${transcriptLine(index, 3000)}\n`;
    appendFileSync(at(name), added);
  }
  for (const name of take(notes, 5)) {
    const text = readFileSync(at(name), "utf8");
    const cut = below(text.length);
    writeFileSync(at(name), `${text.slice(0, cut)}\nEDITED ${prose(120)}\n${text.slice(cut + 50)}`);
  }
  for (const name of files.filter((file) => /memory\/[^/]*\.sqlite$/.test(file))) {
    const database = new DatabaseSync(at(name));
    const rows = statSync(at(name)).size / MEMORY_ROW_BYTES / times;
    addMemories(database, Math.max(5, Math.round(rows * 0.005)));
    database.close();
  }
  changeInWal(at(AGENT_DATABASE), (database) => addSessions(database, 50));
  for (let i = 0; i < 4; i++) write(at(`agents/main/sessions/${uuid()}.jsonl`), transcript(20_000 + random() * 60_000));
  for (let i = 0; i < 6; i++) write(at(`workspace/memory/day${day}-${hex(6)}.md`), `# Day ${day}\n\n${prose(3000)}\n`);
  for (const name of take(notes, 3)) rmSync(at(name));
}

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { times: { type: "string", default: "1" } },
});
const [verb, directory, argument] = positionals;
const times = Number(values.times);
if (verb === "make" && directory && argument in SIZES && times >= 1) make(directory, argument, times);
else if (verb === "mutate" && directory && times >= 1) mutate(directory, Number(argument ?? 1), times);
else {
  console.error(
    "usage: make-state.mjs make <dir> S|M|L|F [--times n]  or  make-state.mjs mutate <dir> [day] [--times n]",
  );
  process.exit(64);
}
