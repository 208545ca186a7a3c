//! Recovery codes: a random secret that is written on paper and typed in again, maybe years later.
//!
//! Seven groups of five symbols of Crockford's base 32 (<https://www.crockford.com/base32.html>), 140 random bits. The
//! last symbol of each group checks it by the Luhn algorithm modulo 32, started with the number of the group: a mistyped
//! symbol, two exchanged neighbours (but for 0 and Z) and a group in the wrong place are found, and the group is named.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use super::id::random;
use crate::config::Secret;
use crate::error::{Error, Result};

/// Without I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const GROUPS: usize = 7;
/// Symbols of a group, with the one that checks.
const GROUP: usize = 5;
const SYMBOLS: usize = GROUPS * GROUP;

/// A recovery code. Its `Display` is for paper; it is not in `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryCode(Zeroizing<[u8; SYMBOLS]>);

impl RecoveryCode {
    /// A new random code.
    ///
    /// # Errors
    /// `IO` when there are no random numbers.
    pub fn generate() -> Result<Self> {
        // A byte holds a whole number of times 32 values, so that every symbol is equally likely.
        let mut random = Zeroizing::new(random::<SYMBOLS>()?);
        random.iter_mut().for_each(|byte| *byte %= 32);
        for (number, group) in random.chunks_exact_mut(GROUP).enumerate() {
            group[GROUP - 1] = check(number, &group[..GROUP - 1]);
        }
        let mut symbols = Zeroizing::new([0; SYMBOLS]);
        for (symbol, value) in symbols.iter_mut().zip(random.iter()) {
            *symbol = ALPHABET[usize::from(*value)];
        }
        Ok(Self(symbols))
    }

    /// Reads what somebody typed. Case, white space and dashes do not matter; O is 0, I and L are 1.
    ///
    /// # Errors
    /// `CONFIG` saying what is wrong, without repeating any of it.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |problem: String| Error::config("recoveryCode", problem).advise("compare it with what was printed");
        let mut values = Zeroizing::new([0; SYMBOLS]);
        let mut count = 0;
        for letter in text.chars().filter(|letter| !is_separator(*letter)) {
            let value = value_of(letter).ok_or_else(|| {
                wrong(format!("holds a character that no recovery code has, in group {}", count / GROUP + 1))
            })?;
            if let Some(place) = values.get_mut(count) {
                *place = value;
            }
            count += 1;
        }
        if count != SYMBOLS {
            return Err(wrong(format!("has {count} letters and digits; a recovery code has {SYMBOLS}")));
        }
        for (number, group) in values.chunks_exact(GROUP).enumerate() {
            if check(number, &group[..GROUP - 1]) != group[GROUP - 1] {
                return Err(wrong(format!("has a typing error in group {}", number + 1)));
            }
        }
        let mut symbols = Zeroizing::new([0; SYMBOLS]);
        for (symbol, value) in symbols.iter_mut().zip(values.iter()) {
            *symbol = ALPHABET[usize::from(*value)];
        }
        Ok(Self(symbols))
    }

    /// What opens a slot: the symbols in upper case, without anything between them.
    #[must_use]
    pub fn secret(&self) -> Secret {
        Secret::new(self.0.iter().map(|symbol| char::from(*symbol)).collect::<String>())
    }
}

impl fmt::Display for RecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, group) in self.0.chunks_exact(GROUP).enumerate() {
            if number > 0 {
                f.write_str("-")?;
            }
            let mut text: String = group.iter().map(|symbol| char::from(*symbol)).collect();
            f.write_str(&text)?;
            text.zeroize();
        }
        Ok(())
    }
}

impl fmt::Debug for RecoveryCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<recovery code>")
    }
}

/// What may stand between symbols: also the dashes that word processors make.
fn is_separator(letter: char) -> bool {
    letter.is_whitespace() || matches!(letter, '-' | '_' | '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{ad}' | '\u{feff}')
}

fn value_of(letter: char) -> Option<u8> {
    let letter = match u8::try_from(letter).ok()?.to_ascii_uppercase() {
        b'O' => b'0',
        b'I' | b'L' => b'1',
        other => other,
    };
    ALPHABET.iter().position(|symbol| *symbol == letter).map(|value| value as u8)
}

/// The Luhn algorithm modulo 32 over `data`, from its end on every second value doubled.
fn check(number: usize, data: &[u8]) -> u8 {
    let doubled = |value: u8| (2 * value) / 32 + (2 * value) % 32;
    let values = data.iter().rev().enumerate();
    let sum: usize = values.map(|(at, value)| usize::from(if at % 2 == 0 { doubled(*value) } else { *value })).sum();
    ((32 - (sum + number) % 32) % 32) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Computed by the second implementation in Python that `docs/format.md` describes.
    const KNOWN: &str = "0123P-89AB5-GHJKJ-RSTV1-23456-AAAAZ-ZZZZY";

    #[test]
    fn a_code_reads_back_however_it_is_typed() {
        let code = RecoveryCode::generate().unwrap();
        assert_eq!(code.to_string().len(), SYMBOLS + GROUPS - 1);
        assert_eq!(RecoveryCode::parse(&code.to_string()).unwrap(), code);
        assert_ne!(RecoveryCode::generate().unwrap(), code);
        assert_eq!(format!("{code:?}"), "<recovery code>");
        let known = RecoveryCode::parse(KNOWN).unwrap();
        assert_eq!((known.to_string().as_str(), known.secret().expose()), (KNOWN, KNOWN.replace('-', "").as_str()));
        for typed in ["oi23p 89ab5 ghjkj rstvi 23456 aaaaz zzzzy", "O L23P–89AB5—GHJKJRSTV1 23456\n\tAAAAZ_ZZZZY\n"]
        {
            assert_eq!(RecoveryCode::parse(typed).unwrap(), known, "{typed}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_not_repeated() {
        let cases = [
            (KNOWN.replace("GHJK", "GHJM"), "a typing error in group 3"),
            (KNOWN.replace("GHJK", "GJHK"), "a typing error in group 3"),
            (KNOWN.replace("GHJKJ-RSTV1", "RSTV1-GHJKJ"), "a typing error in group 3"),
            (KNOWN.replace("23456", "2345U"), "a character that no recovery code has, in group 5"),
            (KNOWN.replace("-ZZZZY", ""), "has 30 letters and digits"),
            (format!("{KNOWN}0"), "has 36 letters and digits"),
            (String::new(), "has 0 letters"),
        ];
        for (typed, expected) in cases {
            let problem = RecoveryCode::parse(&typed).unwrap_err().to_string();
            assert!(problem.starts_with("recoveryCode: ") && problem.contains(expected), "{problem}");
            assert!(!problem.contains("RSTV"), "{problem}");
        }
    }

    fn generated() -> impl Strategy<Value = RecoveryCode> {
        Just(()).prop_map(|()| RecoveryCode::generate().unwrap())
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics_and_what_passes_is_written_the_same(
            text in prop_oneof!["\\PC{0,50}", "[0-9a-zA-Z -]{30,45}", "(0{5}|[0-9A-HJKMNP-TV-Z]{5}-?){7}"],
        ) {
            if let Ok(code) = RecoveryCode::parse(&text) {
                prop_assert_eq!(RecoveryCode::parse(&code.to_string()).unwrap(), code);
            }
        }

        #[test]
        fn separators_and_case_make_no_difference(
            code in generated(), between in prop::collection::vec("[ \t\r\n_–-]{0,3}", SYMBOLS), lower in any::<bool>(),
        ) {
            let text = code.secret();
            let text = if lower { text.expose().to_lowercase() } else { text.expose().to_owned() };
            let typed: String = text.chars().zip(&between).flat_map(|(symbol, between)| [symbol.into(), between.clone()]).collect();
            prop_assert_eq!(RecoveryCode::parse(&typed).unwrap(), code);
        }

        #[test]
        fn one_wrong_symbol_is_found_and_its_group_named(code in generated(), at in 0..SYMBOLS, other in 0usize..32) {
            let mut symbols = code.secret().expose().as_bytes().to_vec();
            prop_assume!(symbols[at] != ALPHABET[other]);
            symbols[at] = ALPHABET[other];
            let error = RecoveryCode::parse(std::str::from_utf8(&symbols).unwrap()).unwrap_err().to_string();
            prop_assert!(error.contains(&format!("group {};", at / GROUP + 1)), "{}", error);
        }

        #[test]
        fn two_exchanged_neighbours_of_a_group_are_found(code in generated(), group in 0..GROUPS, at in 0..GROUP - 1) {
            let mut symbols = code.secret().expose().as_bytes().to_vec();
            let at = group * GROUP + at;
            let pair = [symbols[at].min(symbols[at + 1]), symbols[at].max(symbols[at + 1])];
            prop_assume!(pair[0] != pair[1] && pair != *b"0Z");
            symbols.swap(at, at + 1);
            prop_assert!(RecoveryCode::parse(std::str::from_utf8(&symbols).unwrap()).is_err());
        }
    }
}
