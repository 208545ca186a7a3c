//! Pages of a SQLite database, written so that they do not depend on where in the file they are.
//!
//! Pages name each other by number, and a copy made by `VACUUM` is numbered anew: one page more near its start changes every
//! page that leads to another, and with it all that was stored of them. After a day of use 22,612 pages of six databases of
//! 40 to 60 MB were new that way, of which 1,417 held anything new. So the numbers are stored relative to that of the page
//! itself: a page that has merely moved, with those it leads to, is the chunk that it was.
//!
//! The layout is that of <https://sqlite.org/fileformat2.html>, sections 1.6 to 1.8. Nothing is assumed to be sound: a page
//! for which the way back would not give the same bytes is found by [`are_movable`].

use std::io::{self, Read};

/// Where the header of the database keeps how many bytes of each page are not SQLite's own.
const RESERVED: usize = 20;
/// What precedes the b-tree in the first page.
const FILE_HEADER: usize = 100;

/// Whether a database with pages of so many bytes may have each of them stored as a chunk: SQLite has powers of two, and smaller
/// ones would cost more in the index than they save.
#[must_use]
pub fn is_size(bytes: u32) -> bool {
    (4 << 10..=64 << 10).contains(&bytes) && bytes.is_power_of_two()
}

/// Makes the numbers in a whole `page`, the one with `number` (from 1 on), relative to it.
pub fn make_relative(page: &mut [u8], number: u32) {
    change_numbers(page, number, |other| other.wrapping_sub(number));
}

/// Undoes [`make_relative`].
pub fn make_absolute(page: &mut [u8], number: u32) {
    change_numbers(page, number, |other| other.wrapping_add(number));
}

/// The number of the page of `size` bytes at `offset`.
#[must_use]
pub fn number_at(offset: u64, size: u32) -> u32 {
    ((offset / u64::from(size.max(1))) as u32).wrapping_add(1)
}

/// Whether `database` consists of whole pages of `size` bytes, and each of them comes back from [`make_relative`].
///
/// # Errors
/// Those of reading.
pub fn are_movable(database: &mut impl Read, size: usize) -> io::Result<bool> {
    let (mut page, mut moved) = (Vec::with_capacity(size), Vec::with_capacity(size));
    for number in 1.. {
        page.clear();
        database.take(size as u64).read_to_end(&mut page)?;
        if page.is_empty() {
            return Ok(number > 1);
        }
        let is_whole = page.len() == size && (number > 1 || page.get(RESERVED) == Some(&0));
        moved.clone_from(&page);
        make_relative(&mut moved, number);
        make_absolute(&mut moved, number);
        if !is_whole || moved != page {
            return Ok(false);
        }
    }
    Ok(false)
}

/// Changes the numbers of other pages in `page`; 0 stands for none, and stays.
fn change_numbers(page: &mut [u8], number: u32, change: impl Fn(u32) -> u32) {
    let size = page.len();
    // Where the pages of the pointer map are, in databases that have one: they look like others, and are few.
    if number > 1 && (number as usize - 2).is_multiple_of(size / 5 + 1) {
        return;
    }
    let change_at = |page: &mut [u8], at: usize| {
        let place = page.get_mut(at..).and_then(|rest| rest.first_chunk_mut::<4>());
        if let Some(place) = place.filter(|place| **place != [0; 4]) {
            *place = change(u32::from_be_bytes(*place)).to_be_bytes();
        }
    };
    let header = if number == 1 { FILE_HEADER } else { 0 };
    let (is_interior, is_table) = match page.get(header) {
        Some(2) => (true, false),
        Some(5) => (true, true),
        Some(10) => (false, false),
        Some(13) => (false, true),
        // An overflow page starts with the number of the next one.
        _ if number > 1 => return change_at(page, 0),
        _ => return,
    };
    if is_interior {
        change_at(page, header + 8);
    }
    let array = header + if is_interior { 12 } else { 8 };
    for cell in 0..read_u16(page, header + 3).unwrap_or_default() {
        let Some(mut at) = read_u16(page, array + 2 * cell) else { return };
        if is_interior {
            change_at(page, at);
            at += 4;
        }
        if is_interior && is_table {
            continue;
        }
        let Some((payload, length)) = read_varint(page, at) else { continue };
        at += length;
        if is_table {
            let Some((_rowid, length)) = read_varint(page, at) else { continue };
            at += length;
        }
        if let Some(local) = local_payload(payload, size, is_table) {
            change_at(page, at + local);
        }
    }
}

/// How much of a payload is in the cell when the rest is in overflow pages; `None` when all of it is.
fn local_payload(payload: u64, size: usize, is_table: bool) -> Option<usize> {
    let embedded = |fraction: usize| Some(size.checked_sub(12)? * fraction / 255).and_then(|part| part.checked_sub(23));
    let most = if is_table { size.checked_sub(35)? } else { embedded(64)? };
    let least = embedded(32)?;
    if payload <= most as u64 {
        return None;
    }
    let local = least + ((payload - least as u64) % (size as u64 - 4)) as usize;
    Some(if local <= most { local } else { least })
}

fn read_u16(page: &[u8], at: usize) -> Option<usize> {
    page.get(at..)?.first_chunk().map(|bytes| usize::from(u16::from_be_bytes(*bytes)))
}

/// A number of up to 9 bytes, and how many there are.
fn read_varint(page: &[u8], at: usize) -> Option<(u64, usize)> {
    let mut value = 0;
    for (position, byte) in page.get(at..)?.iter().enumerate().take(9) {
        if position == 8 {
            return Some((value << 8 | u64::from(*byte), 9));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if *byte < 0x80 {
            return Some((value, position + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::Connection;

    use super::*;

    const SIZE: usize = 4096;

    /// The pages of a database with chains of overflow pages in tables and indexes, vacuumed, as they are and relative.
    fn pages_of(folder: &std::path::Path, notes: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (live, copy) = (folder.join("live"), folder.join(format!("copy {notes}")));
        let _ = std::fs::remove_file(&live);
        let database = Connection::open(&live).unwrap();
        database
            .execute_batch(
                "CREATE TABLE notes(text TEXT); CREATE TABLE embeddings(id TEXT PRIMARY KEY, value TEXT, body TEXT)",
            )
            .unwrap();
        let long = |number: usize| format!("{number:08} ").repeat(700);
        for number in 0..notes {
            database.execute("INSERT INTO notes VALUES(?)", [&long(number)[..900]]).unwrap();
        }
        for number in 0..400 {
            let wide = &long(number)[..2000];
            let row = (wide, long(number), number.to_string());
            database.execute("INSERT INTO embeddings VALUES(?, ?, ?)", row).unwrap();
        }
        database.execute("VACUUM INTO ?", [copy.to_str().unwrap()]).unwrap();
        let bytes = std::fs::read(&copy).unwrap();
        assert!(are_movable(&mut &bytes[..], SIZE).unwrap());
        let pages: Vec<_> = bytes.chunks(SIZE).map(<[u8]>::to_vec).collect();
        let mut relative = pages.clone();
        for (page, number) in relative.iter_mut().zip(1..) {
            make_relative(page, number);
        }
        (pages, relative)
    }

    #[test]
    fn pages_that_have_moved_are_what_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let [(before, relative_before), (after, relative_after)] = [10, 14].map(|notes| pages_of(folder.path(), notes));
        let new = |before: &[Vec<u8>], after: &[Vec<u8>]| after.iter().filter(|page| !before.contains(page)).count();
        assert!(after.len() > 1000 && after.len() > before.len());
        assert!(new(&before, &after) > 400, "{} pages are new", new(&before, &after));
        let new = new(&relative_before, &relative_after);
        assert!(new < 30, "{new} pages are new");
    }

    #[test]
    fn what_is_no_database_of_whole_pages_is_not_movable() {
        let folder = tempfile::tempdir().unwrap();
        let (pages, _) = pages_of(folder.path(), 0);
        let sound = pages.concat();
        assert!(!are_movable(&mut &sound[..sound.len() - 1], SIZE).unwrap());
        assert!(!are_movable(&mut &[][..], SIZE).unwrap());
        let mut reserving = sound.clone();
        reserving[RESERVED] = 8;
        assert!(!are_movable(&mut &reserving[..], SIZE).unwrap());
        // The next page of an overflow page is itself: relative to it, that would be none.
        let mut circular = [&sound[..], &[0; 2 * SIZE]].concat();
        let number = (circular.len() / SIZE) as u32;
        let last = circular.len() - SIZE;
        circular[last..last + 4].copy_from_slice(&number.to_be_bytes());
        assert!(!are_movable(&mut &circular[..], SIZE).unwrap());
    }

    proptest! {
        #[test]
        fn no_page_makes_it_panic_and_one_of_no_tree_comes_back(
            kind in prop_oneof![Just(2_u8), Just(5), Just(10), Just(13), any::<u8>()],
            cells in 0_u16..40,
            bytes in proptest::collection::vec(prop_oneof![3 => Just(0_u8), 2 => any::<u8>()], 0..600),
            number in prop_oneof![0_u32..900, any::<u32>()],
        ) {
            let mut page = bytes;
            let header = if number == 1 { FILE_HEADER } else { 0 };
            if page.len() > header + 8 {
                page[header] = kind;
                page[header + 3..header + 5].copy_from_slice(&cells.to_be_bytes());
            }
            let mut moved = page.clone();
            make_relative(&mut moved, number);
            let next = u32::from_be_bytes([&page[..], &[0; 4]].concat()[..4].try_into().unwrap());
            let is_tree = |page: &[u8]| matches!(page.first(), Some(2 | 5 | 10 | 13));
            let comes_back = number > 1 && !is_tree(&page) && !is_tree(&moved) && next != number;
            make_absolute(&mut moved, number);
            prop_assert!(moved == page || !comes_back);
        }
    }
}
