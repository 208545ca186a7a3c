//! docs/troubleshooting.md says of every error code what the code says of it.

use std::fmt::Write;
use std::path::Path;

use openclaw_b2_backup::error::Code;

const START: &str = "<!-- This table is made from src/error.rs: UPDATE=1 cargo test --test troubleshooting -->\n";
const END: &str = "<!-- end of the table -->\n";

#[test]
fn the_table_of_error_codes_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(START).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let mut table = String::from("| code | what it means | what to do |\n|---|---|---|\n");
    for code in Code::ALL {
        let (meaning, remedy) = code.explanation();
        assert!(!format!("{meaning}{remedy}").contains(['|', '\n']), "{code}: not for a table");
        writeln!(table, "| `{code}` | {meaning} | {remedy} |").unwrap();
    }
    let made = [before, START, &table, END, after].concat();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    assert!(page == made || std::env::var_os("UPDATE").is_some(), "run UPDATE=1 cargo test --test troubleshooting");
}
