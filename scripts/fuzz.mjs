// `npm run fuzz`: the targets of fuzz/, guided by the coverage of the code, on the stable compiler: with the flags that cargo-fuzz
// gives it, less the sanitizers, which take a nightly one. The parsers have no unsafe code of their own.
//
//   npm run fuzz -- --seconds 60 [<target>...]      each for a minute; 60 and all of them by default
//
// What was found worth keeping stays in target/fuzz/corpus/ for the next time, and an input that fails in target/fuzz/.

import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const projectDir = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "..");
const fuzzDir = path.join(projectDir, "target/fuzz");
const COVERAGE = [
  ...["--cfg=fuzzing", "-Ccodegen-units=1", "-Cpasses=sancov-module", "-Cllvm-args=-sanitizer-coverage-level=4"],
  ...["-Cllvm-args=-sanitizer-coverage-inline-8bit-counters", "-Cllvm-args=-sanitizer-coverage-pc-table"],
  "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/** Far more than what a target starts from; libFuzzer comes to it by itself. Memory is bounded whatever the bytes: 512 MB. */
const LIMITS = ["-max_len=4096", "-timeout=10", "-rss_limit_mb=512"];

function mustRun(command, args, env) {
  const { status } = spawnSync(command, args, { cwd: projectDir, stdio: "inherit", env: { ...process.env, ...env } });
  if (status !== 0) throw new Error(`${command} ${args.join(" ")} failed, see above`);
}

function build(host) {
  const args = ["build", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", host];
  mustRun("cargo", args, {
    CARGO_TARGET_DIR: fuzzDir,
    CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS: "true",
    CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS: "true",
    RUSTFLAGS: COVERAGE.join(" "),
  });
}

/** Runs one target, and returns whether it found nothing. */
function fuzz(host, target, seconds) {
  const corpus = path.join(fuzzDir, "corpus", target);
  const args = [corpus, `-max_total_time=${seconds}`, `-artifact_prefix=${fuzzDir}/${target}-`, ...LIMITS];
  const { status, stderr } = spawnSync(path.join(fuzzDir, host, "release", target), args, {
    ...{ encoding: "utf8", maxBuffer: 1 << 28 },
  });
  writeFileSync(path.join(fuzzDir, `${target}.log`), stderr);
  const last = stderr.match(/^#(\d+)\s+DONE\s+cov: (\d+)/m);
  const found = last ? `${last[1]} inputs, ${last[2]} places of the code` : stderr.split("\n").slice(-20).join("\n");
  console.log(`${status === 0 ? "ok    " : "FAILED"} ${target}: ${found}`);
  return status === 0;
}

const { values, positionals } = parseArgs({
  options: { seconds: { type: "string", default: "60" } },
  allowPositionals: true,
});
const all = readdirSync(path.join(projectDir, "fuzz/fuzz_targets")).map((file) => path.basename(file, ".rs"));
const targets = positionals.length > 0 ? positionals : all;
const unknown = targets.filter((target) => !all.includes(target));
if (unknown.length > 0) {
  console.error(`no such target: ${unknown.join(", ")}; there are ${all.join(", ")}`);
  process.exit(64);
}
for (const target of all) mkdirSync(path.join(fuzzDir, "corpus", target), { recursive: true });
mustRun("cargo", ["test", "--lib", "--locked", "what_is_worth_starting_from_is_accepted"], {
  FUZZ_CORPUS: path.join(fuzzDir, "corpus"),
});
const version = spawnSync("rustc", ["-vV"], { cwd: projectDir, encoding: "utf8" }).stdout;
const host = version.match(/^host: (.*)$/m)?.[1] ?? "";
build(host);
const failed = targets.filter((target) => !fuzz(host, target, Number(values.seconds)));
console.log(`${targets.length - failed.length} passed, ${failed.length} failed`);
process.exitCode = failed.length === 0 ? 0 : 1;
