//! Which snapshot is meant: `latest`, an id, the start of one, or a time in plain words (`selector/time.rs`). A time in the
//! future is refused.

mod time;

use jiff::{Timestamp, Zoned};

use crate::commands::SnapshotKind;
use crate::error::{Code, Error, Result};

/// Longer texts are no selector.
const MAX_TEXT_BYTES: usize = 200;
/// So many ids are named when the start of an id fits several.
const MAX_NAMED: usize = 5;

/// What a text asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest regular snapshot; a time that is the present asks for it too.
    Latest,
    /// The newest snapshot taken before a compaction.
    BeforeCompaction,
    /// A full id, or the unique start of one.
    Id(String),
    /// The newest regular snapshot at or before this time, to the second.
    At(Zoned),
}

/// A snapshot that may be selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The id.
    pub id: String,
    /// When it was taken, by the store's clock.
    pub created_at: Timestamp,
    /// Only regular snapshots are found by `latest` or by a time: those of 0.1.x are not authenticated, and what somebody
    /// puts into the bucket must not be taken unasked.
    pub kind: SnapshotKind,
    /// Why it was taken, spelled as [`Trigger::as_str`](crate::commands::Trigger::as_str) does.
    pub trigger: String,
}

impl Selector {
    /// Understands `text`, written at the moment and in the zone of `now`.
    ///
    /// # Errors
    /// `CONFIG` when it is none of the forms, or a time in the future.
    pub fn parse(text: &str, now: Zoned) -> Result<Self> {
        let text = text.trim();
        let present = now.timestamp();
        if text.is_empty() || text.len() > MAX_TEXT_BYTES {
            return Err(not_understood(text));
        }
        match text.to_ascii_lowercase().as_str() {
            "latest" | "newest" => return Ok(Self::Latest),
            "before-compaction" | "before_compaction" | "before compaction" => return Ok(Self::BeforeCompaction),
            _ => {}
        }
        let at = match text.parse::<Timestamp>() {
            Ok(timestamp) => Some(timestamp.to_zoned(now.time_zone().clone())),
            Err(_) => time::time(text, now).map_err(|()| not_understood(text))?,
        };
        match at {
            Some(at) if at.timestamp() > present => {
                Err(Error::config("snapshot", format!("{text:?} is in the future ({})", shown(&at)))
                    .advise("name a time that has passed"))
            }
            // The store's clock, which dates the snapshots, may be ahead of this one.
            Some(at) if at.timestamp() == present => Ok(Self::Latest),
            Some(at) => Ok(Self::At(at)),
            None if is_start_of_id(text) => Ok(Self::Id(text.to_owned())),
            None => Err(not_understood(text)),
        }
    }

    /// Whether the newest of all snapshots may be meant, taken at `time`, though nothing names it.
    #[must_use]
    pub fn may_mean(&self, time: Timestamp) -> bool {
        match self {
            Self::Latest | Self::BeforeCompaction => true,
            Self::Id(_) => false,
            Self::At(at) => time.as_second() <= at.timestamp().as_second(),
        }
    }

    /// The one of `snapshots`, in any order, that is asked for.
    ///
    /// # Errors
    /// `NOT_FOUND`, saying what there is instead.
    pub fn select<'a>(&self, snapshots: &'a [Candidate]) -> Result<&'a Candidate> {
        let regular = || snapshots.iter().filter(|candidate| candidate.kind == SnapshotKind::Regular);
        let by_age = |candidate: &&Candidate| (candidate.created_at, candidate.id.clone());
        let not_found = |problem: String| Error::new(Code::NotFound, problem);
        let none_yet = || {
            let error = not_found("there is no snapshot yet".into());
            let legacy = snapshots.iter().filter(|candidate| candidate.kind == SnapshotKind::Legacy);
            match legacy.max_by_key(by_age) {
                Some(newest) => error.in_snapshot(&newest.id).advise(format!(
                    "those of openclaw-b2-backup 0.1.x are selected by their id, of which {} is the newest; \
                     import-legacy makes snapshots of this version of them",
                    newest.id
                )),
                None if snapshots.is_empty() => error.advise("take one with push"),
                None => error.advise("safety snapshots are selected by their id"),
            }
        };
        match self {
            Self::Latest => regular().max_by_key(by_age).ok_or_else(none_yet),
            Self::BeforeCompaction => {
                let fitting = regular().filter(|candidate| candidate.trigger == "before_compaction");
                fitting.max_by_key(by_age).ok_or_else(|| {
                    not_found("no snapshot was taken before a compaction".into()).advise("list shows what there is")
                })
            }
            Self::Id(start) => by_id(start, snapshots),
            Self::At(at) => {
                let second = at.timestamp().as_second();
                let fitting = regular().filter(|candidate| candidate.created_at.as_second() <= second);
                fitting.max_by_key(by_age).ok_or_else(|| {
                    let Some(oldest) = regular().min_by_key(by_age) else { return none_yet() };
                    let when = shown(&oldest.created_at.to_zoned(at.time_zone().clone()));
                    not_found(format!("there is no snapshot as old as {}", shown(at)))
                        .advise(format!("the oldest is {} of {when}", oldest.id))
                })
            }
        }
    }
}

fn by_id<'a>(start: &str, snapshots: &'a [Candidate]) -> Result<&'a Candidate> {
    if let Some(exact) = snapshots.iter().find(|candidate| candidate.id.eq_ignore_ascii_case(start)) {
        return Ok(exact);
    }
    let fits =
        |candidate: &&Candidate| candidate.id.get(..start.len()).is_some_and(|id| id.eq_ignore_ascii_case(start));
    let mut fitting: Vec<&Candidate> = snapshots.iter().filter(fits).collect();
    match fitting.as_slice() {
        [one] => Ok(one),
        [] => Err(Error::new(Code::NotFound, format!("there is no snapshot whose id starts with {start:?}"))
            .in_snapshot(start)
            .advise("list shows what there is")),
        _ => {
            fitting.sort_by(|a, b| b.id.cmp(&a.id));
            let named: Vec<&str> = fitting.iter().take(MAX_NAMED).map(|candidate| candidate.id.as_str()).collect();
            let rest = match fitting.len().saturating_sub(MAX_NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            Err(Error::new(Code::NotFound, format!("{start:?} is the start of {}{rest}", named.join(", ")))
                .in_snapshot(start)
                .advise("give more of the id"))
        }
    }
}

fn not_understood(text: &str) -> Error {
    let short: String = text.chars().take(60).collect();
    Error::config("snapshot", format!("{short:?} is not understood")).advise(
        "give an id or its start, latest, before-compaction, or a time such as \"10 minutes ago\", \"yesterday 18:00\", \
         \"February 15th\" or \"2026-02-15 14:30\"",
    )
}

fn shown(time: &Zoned) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S %Z").to_string()
}

/// Whether `text` may be the start of an id such as `2026-02-19T00-00-00Z-7f3a91c2` or `safety-2026-02-19T…`, which 0.1.x
/// may have given a second part after a slash.
fn is_start_of_id(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let rest = lower.strip_prefix("safety-").unwrap_or(&lower);
    let fits = |(at, byte): (usize, u8)| match at {
        4 | 7 => byte == b'-',
        0..10 => byte.is_ascii_digit(),
        _ => byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'/',
    };
    let date = !rest.is_empty() && rest.bytes().enumerate().all(fits);
    date || matches!(lower.as_str(), "safety" | "safety-")
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    fn now() -> Zoned {
        // A Thursday.
        "2026-03-12T10:30:00[Europe/Berlin]".parse().unwrap()
    }

    fn at(text: &str) -> String {
        at_moment(text, &now())
    }

    fn at_moment(text: &str, now: &Zoned) -> String {
        match Selector::parse(text, now.clone()) {
            Ok(Selector::At(at)) => at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn times_in_plain_words_mean_what_a_person_means() {
        let cases = [
            ("now", "Latest"),
            ("10 minutes ago", "2026-03-12 10:20:00"),
            ("10m ago", "2026-03-12 10:20:00"),
            ("an hour ago", "2026-03-12 09:30:00"),
            ("half an hour ago", "2026-03-12 10:00:00"),
            ("an hour and 10 minutes ago", "2026-03-12 09:20:00"),
            ("2 days ago", "2026-03-10 10:30:00"),
            ("Two Days Ago", "2026-03-10 10:30:00"),
            ("a couple of days ago", "2026-03-10 10:30:00"),
            ("2 days ago at 18:00", "2026-03-10 18:00:00"),
            ("3 weeks ago", "2026-02-19 10:30:00"),
            ("1 month ago", "2026-02-12 10:30:00"),
            ("today", "Latest"),
            ("today 9am", "2026-03-12 09:00:00"),
            ("today at 9:15 a.m.", "2026-03-12 09:15:00"),
            ("yesterday", "2026-03-11 23:59:59"),
            ("yesterday 18:00", "2026-03-11 18:00:00"),
            ("yesterday at 6pm", "2026-03-11 18:00:00"),
            ("6:05 pm yesterday", "2026-03-11 18:05:00"),
            ("yesterday evening", "2026-03-11 23:59:59"),
            ("yesterday afternoon", "2026-03-11 17:59:59"),
            ("the day before yesterday", "2026-03-10 23:59:59"),
            ("last night", "2026-03-11 23:59:59"),
            ("this morning", "Latest"),
            ("noon", "2026-03-11 12:00:00"),
            ("midnight", "2026-03-12 00:00:00"),
            ("today midnight", "2026-03-12 00:00:00"),
            ("12am", "2026-03-12 00:00:00"),
            ("12pm", "2026-03-11 12:00:00"),
            ("9:00", "2026-03-12 09:00:00"),
            ("18:00", "2026-03-11 18:00:00"),
            ("monday", "2026-03-09 23:59:59"),
            ("on Monday 18:00", "2026-03-09 18:00:00"),
            ("last monday", "2026-03-09 23:59:59"),
            ("last thursday", "2026-03-05 23:59:59"),
            ("thursday", "Latest"),
            ("thursday 9am", "2026-03-12 09:00:00"),
            ("thursday 18:00", "2026-03-05 18:00:00"),
            ("friday", "2026-03-06 23:59:59"),
            ("February 15th", "2026-02-15 23:59:59"),
            ("Feb 15", "2026-02-15 23:59:59"),
            ("the 15th of February", "2026-02-15 23:59:59"),
            ("February 15th, 2025", "2025-02-15 23:59:59"),
            ("Feb 15th at 2:30 pm", "2026-02-15 14:30:00"),
            ("15 Feb 2026 14:30", "2026-02-15 14:30:00"),
            ("September 3rd", "2025-09-03 23:59:59"),
            ("12 March", "Latest"),
            ("12 March 18:00", "2025-03-12 18:00:00"),
            ("13 March", "2025-03-13 23:59:59"),
            ("Feb 29", "2024-02-29 23:59:59"),
            ("the 5th", "2026-03-05 23:59:59"),
            ("the 31st", "2026-01-31 23:59:59"),
            ("2026-02-15", "2026-02-15 23:59:59"),
            ("2026-02-15 14:30", "2026-02-15 14:30:00"),
            ("2026-02-15T14:30", "2026-02-15 14:30:00"),
            ("2026-02-15 14:30 UTC", "2026-02-15 14:30:00"),
            ("2026-02-15T14:30:00Z", "2026-02-15 15:30:00"),
            ("2026-02-15T14:30:00.5+05:30", "2026-02-15 10:00:00"),
        ];
        for (text, expected) in cases {
            assert_eq!(at(text), expected, "{text}");
        }
    }

    #[test]
    fn a_time_in_the_future_is_refused() {
        for text in [
            "tomorrow",
            "today 18:00",
            "this evening",
            "2026-03-13",
            "2027-01-01 00:00",
            "2026-03-12T10:30:00Z",
            "13 March 2026",
        ] {
            assert!(at(text).contains("is in the future"), "{text}: {}", at(text));
        }
    }

    #[test]
    fn what_is_neither_time_nor_id_is_not_understood() {
        let long = "9".repeat(300);
        for text in [
            "",
            "  ",
            "someday",
            "next monday",
            "monday tuesday",
            "9am 10am",
            "February",
            "Feb 30",
            "Feb 30 2026",
            "25:00",
            "13pm",
            "0am",
            "12:60",
            "ago",
            "minutes ago",
            "10 parsecs ago",
            "999999999 years ago",
            "10 ago",
            "last",
            "2026-13-01 10:00",
            "-1 days ago",
            "../..",
            "safety_x",
            "x-2026",
            &long,
        ] {
            assert!(at(text).contains("is not understood"), "{text}: {}", at(text));
        }
    }

    #[test]
    fn a_time_that_the_clocks_skip_or_repeat_is_still_a_time() {
        // Clocks went from 02:00 to 03:00 on 2026-03-29, and from 03:00 back to 02:00 on 2025-10-26.
        let now: Zoned = "2026-04-01T12:00:00[Europe/Berlin]".parse().unwrap();
        assert_eq!(at_moment("2026-03-29 02:30", &now), "2026-03-29 03:30:00");
        let Ok(Selector::At(repeated)) = Selector::parse("2025-10-26 02:30", now.clone()) else { panic!() };
        assert_eq!(repeated.timestamp().to_string(), "2025-10-26T00:30:00Z");
        assert_eq!(
            at_moment("3 days ago", &"2026-03-31T02:30:00[Europe/Berlin]".parse().unwrap()),
            "2026-03-28 02:30:00"
        );
        // Midnight itself is skipped in some zones.
        let now: Zoned = "2026-10-01T12:00:00[America/Santiago]".parse().unwrap();
        assert_eq!(at_moment("2026-09-05", &now), "2026-09-05 23:59:59");
    }

    fn candidate(id: &str, kind: SnapshotKind, trigger: &str) -> Candidate {
        let plain = id.trim_start_matches("safety-");
        let time = format!("{}T{}Z", &plain[..10], plain[11..19].replace('-', ":"));
        Candidate { id: id.into(), created_at: time.parse().unwrap(), kind, trigger: trigger.into() }
    }

    fn snapshots() -> Vec<Candidate> {
        vec![
            candidate("2026-03-10T08-00-00Z-aaaa0001", SnapshotKind::Regular, "schedule"),
            candidate("2026-03-12T08-00-00Z-aaaa0003", SnapshotKind::Regular, "manual"),
            candidate("2026-03-11T08-00-00Z-aaaa0002", SnapshotKind::Regular, "before_compaction"),
            candidate("2026-03-11T08-30-00Z-bbbb0002", SnapshotKind::Regular, "schedule"),
            candidate("safety-2026-03-12T09-00-00Z-cccc0001", SnapshotKind::Safety, "before_rollback"),
        ]
    }

    fn select(text: &str) -> std::result::Result<String, String> {
        let snapshots = snapshots();
        let selector = Selector::parse(text, now()).map_err(|error| error.to_string())?;
        let found = selector.select(&snapshots).map(|candidate| candidate.id.clone());
        found.map_err(|error| {
            assert_eq!(error.code(), Code::NotFound);
            error.to_string()
        })
    }

    #[test]
    fn a_selector_finds_the_snapshot_that_is_meant() {
        let cases = [
            ("latest", "2026-03-12T08-00-00Z-aaaa0003"),
            ("Latest", "2026-03-12T08-00-00Z-aaaa0003"),
            ("before-compaction", "2026-03-11T08-00-00Z-aaaa0002"),
            ("2026-03-11T08-30-00Z-bbbb0002", "2026-03-11T08-30-00Z-bbbb0002"),
            ("2026-03-11T08-3", "2026-03-11T08-30-00Z-bbbb0002"),
            ("2026-03-1", "ambiguous"),
            ("2026-03-10t08-00-00z", "2026-03-10T08-00-00Z-aaaa0001"),
            ("safety", "safety-2026-03-12T09-00-00Z-cccc0001"),
            ("safety-2026-03-12T09-00-00Z-cccc0001", "safety-2026-03-12T09-00-00Z-cccc0001"),
            ("yesterday", "2026-03-11T08-30-00Z-bbbb0002"),
            ("yesterday 9:00", "2026-03-11T08-00-00Z-aaaa0002"),
            ("yesterday 8:59", "2026-03-10T08-00-00Z-aaaa0001"),
            ("2026-03-11T08:30:00Z", "2026-03-11T08-30-00Z-bbbb0002"),
            ("now", "2026-03-12T08-00-00Z-aaaa0003"),
        ];
        for (text, expected) in cases.iter().filter(|(_, expected)| *expected != "ambiguous") {
            assert_eq!(select(text).as_deref(), Ok(*expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_found_says_what_there_is() {
        let cases = [
            ("2026-03-1", "\"2026-03-1\" is the start of 2026-03-12T08-00-00Z-aaaa0003, 2026-03-11T08-30-00Z-bbbb0002"),
            ("2025", "no snapshot whose id starts with \"2025\""),
            (
                "Feb 15",
                "no snapshot as old as 2026-02-15 23:59:59 CET; the oldest is 2026-03-10T08-00-00Z-aaaa0001 of 2026-03-10 09:00:00 CET",
            ),
        ];
        for (text, expected) in cases {
            let problem = select(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
        let error = Selector::Latest.select(&[]).unwrap_err();
        assert_eq!(
            (error.code(), error.to_string().as_str()),
            (Code::NotFound, "there is no snapshot yet; take one with push")
        );
        assert!(Selector::BeforeCompaction.select(&snapshots()[..1]).is_err());
    }

    #[test]
    fn a_snapshot_dated_by_a_clock_that_is_ahead_is_found_by_the_present() {
        let mut snapshots = snapshots();
        snapshots[1].created_at = "2026-03-12T09:31:00Z".parse().unwrap();
        for text in ["now", "today", "2026-03-12 10:30:00"] {
            let selector = Selector::parse(text, now()).unwrap();
            assert!(selector.may_mean(snapshots[1].created_at), "{text}");
            assert_eq!(selector.select(&snapshots).unwrap().id, snapshots[1].id, "{text}");
        }
    }

    #[test]
    fn a_snapshot_taken_within_the_named_second_is_found() {
        let mut snapshots = snapshots();
        snapshots[1].created_at = "2026-03-12T08:00:00.9Z".parse().unwrap();
        let selector = Selector::parse("2026-03-12T08:00:00Z", now()).unwrap();
        assert_eq!(selector.select(&snapshots).unwrap().id, snapshots[1].id);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            drop(Selector::parse(&text, now()));
        }

        #[test]
        fn no_sentence_of_its_own_words_makes_the_parser_panic(words in prop::collection::vec(prop::sample::select(vec![
            "a", "an", "half", "couple", "of", "and", "ago", "0", "1", "29", "31", "31st", "99999999999", "999999999", "2026",
            "9999", "9am", "12", "pm", "18:00", "24:00", "::", "9999-12-31", "-9999-01-01", "9999-12-31T23:59:59Z", "month",
            "days", "hour", "years", "yesterday", "today", "tomorrow", "last", "monday", "night", "feb", "february", "the",
            "day", "before", "noon", "midnight", "morning", "tonight", "utc", "th", "é", "safety-", "latest",
        ]), 0..6)) {
            for now in [now(), Zoned::new(Timestamp::MIN, TimeZone::UTC), Zoned::new(Timestamp::MAX, TimeZone::UTC)] {
                if let Ok(selector) = Selector::parse(&words.join(" "), now) {
                    drop(selector.select(&snapshots()));
                }
            }
        }
    }
}
