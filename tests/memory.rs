//! The memory of a push, a rollback and a pull has a bound that is below the size of a large file or database.
//!
//! Each is a process of its own, whose peak the kernel knows (`VmHWM`, proc(5)).

#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::process::{self, Task};
use common::{Bench, letters};

/// What is stored and restored in each of these tests, as one file.
const SIZE: u64 = 192 << 20;
/// What a command may take. Three packs of 16 MiB, for each thread a frame in the clear and compressed, what scrypt takes, and the
/// program itself come to less, whatever the number of cores: two files are read by two threads.
const MOST: u64 = 160 << 20;

#[test]
#[ignore = "the process that the other tests measure"]
fn the_measured_command() {
    process::perform();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("\n{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}

/// The bytes of memory that a command takes at its peak.
fn peak(task: &Task) -> u64 {
    let output = task.command("the_measured_command").stdout(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let kibibytes = said.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kibibytes.unwrap().parse::<u64>().unwrap() << 10
}

/// Peaks of a first push, of a rollback of all that it stored, and of a pull on a new machine.
fn peaks(make: impl Fn(&Path)) -> [u64; 3] {
    let bench = Bench::default();
    bench.write("workspace/notes.md", "one");
    let path = bench.state("workspace/large.sqlite");
    make(&path);
    let pushed = peak(&Task::new(&bench, "push"));
    let stored = fs::metadata(&path).unwrap().len();
    assert!(stored >= SIZE, "{stored}");
    fs::remove_file(&path).unwrap();
    let rolled_back = peak(&Task::new(&bench, "rollback").of("latest"));
    assert_eq!(fs::metadata(&path).unwrap().len(), stored);
    let to = bench.root.path().join("pulled");
    let pulled = peak(&Task::new(&bench, "pull").of("latest").to(to.clone()));
    assert_eq!(fs::metadata(to.join("workspace/large.sqlite")).unwrap().len(), stored);
    [pushed, rolled_back, pulled]
}

#[test]
#[ignore = "slow; npm test runs it"]
fn a_large_file_needs_less_memory_than_it_has_bytes() {
    let peaks = peaks(|path| {
        let mut file = fs::File::create(path).unwrap();
        (0..SIZE >> 20).for_each(|seed| file.write_all(&letters(1 << 20, seed)).unwrap());
    });
    assert!(peaks.iter().all(|peak| *peak < MOST), "{peaks:?}");
}

#[test]
#[ignore = "slow; npm test runs it"]
fn so_does_a_large_database() {
    let peaks = peaks(|path| {
        let database = rusqlite::Connection::open(path).unwrap();
        database.execute_batch("PRAGMA synchronous=OFF; CREATE TABLE notes(body BLOB); BEGIN").unwrap();
        for seed in 0..SIZE >> 20 {
            database.execute("INSERT INTO notes VALUES (?1)", [letters(1 << 20, seed)]).unwrap();
        }
        database.execute_batch("COMMIT").unwrap();
    });
    assert!(peaks.iter().all(|peak| *peak < MOST), "{peaks:?}");
}
