#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| openclaw_b2_backup::fuzzing::page(bytes));
