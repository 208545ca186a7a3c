//! Which snapshot is meant: `latest`, an id, the start of one, or a time in plain words.
//!
//! The grammar of times is written by hand: no well-kept crate knows ordinals ("February 15th"), the past as the
//! only direction, and time zones together. jiff does the calendar. Words are English, as the tool's texts are.
//!
//! Three rules decide what a text leaves open. What has a length (a day, "this morning") means its end, or now while
//! it lasts. What recurs (a weekday, a date without a year, a bare time of day) means its most recent occurrence.
//! A time in the future is refused.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ToSpan, Zoned};

use crate::commands::SnapshotKind;
use crate::error::{Code, Error, Result};

/// Longer texts are no selector.
const MAX_TEXT_BYTES: usize = 200;
/// So many ids are named when the start of an id fits several.
const MAX_NAMED: usize = 5;

/// What a text asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// The newest regular snapshot.
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
            Err(_) => time(text, now).map_err(|()| not_understood(text))?,
        };
        match at {
            Some(at) if at.timestamp() > present => {
                Err(Error::config("snapshot", format!("{text:?} is in the future ({})", shown(&at)))
                    .advise("name a time that has passed"))
            }
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

/// What a text that is not a time means: the caller tries something else. `Err` is a time that cannot be.
type Parsed<T> = std::result::Result<Option<T>, ()>;

/// The time that `text` means.
fn time(text: &str, mut now: Zoned) -> Parsed<Zoned> {
    let tokens = tokens(&text.to_lowercase());
    let mut words: Vec<&str> = tokens.iter().map(String::as_str).collect();
    if words == ["now"] {
        return Ok(Some(now));
    }
    if let Some(&("utc" | "gmt" | "z")) = words.last() {
        words.pop();
        now = now.with_time_zone(TimeZone::UTC);
    }
    if let Some(at) = words.iter().position(|word| *word == "ago") {
        return ago(&words[..at], &words[at + 1..], &now);
    }
    let Some(moment) = Moment::parse(&words) else { return Ok(None) };
    moment.resolve(&now).map(Some).ok_or(())
}

/// Words, numbers and clock times; a unit or suffix that is glued to a number is a word of its own.
fn tokens(text: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    for part in text.split(|c: char| c.is_whitespace() || c == ',').filter(|part| !part.is_empty()) {
        let end = part.find(|c: char| !c.is_ascii_digit() && c != ':').unwrap_or(part.len());
        let (number, suffix) = part.split_at(end);
        if !number.is_empty() && !suffix.is_empty() && suffix.chars().all(|c| c.is_ascii_lowercase() || c == '.') {
            tokens.extend([number.to_owned(), suffix.replace('.', "")]);
        } else {
            // "a.m.", "Feb." and the end of a sentence.
            tokens.push(part.replace('.', ""));
        }
    }
    tokens
}

/// "2 days ago", "an hour and 10 minutes ago", "2 days ago at 18:00".
fn ago(amount: &[&str], rest: &[&str], now: &Zoned) -> Parsed<Zoned> {
    let mut at = now.clone();
    let mut words = amount.iter().copied().filter(|word| *word != "and").peekable();
    if words.peek().is_none() {
        return Ok(None);
    }
    let mut whole_days = true;
    while let Some(word) = words.next() {
        let (count, unit) = match (word, words.next()) {
            ("half", Some("a" | "an")) if words.next_if_eq(&"hour").is_some() => (30, "minutes"),
            ("a", Some("couple")) => {
                words.next_if_eq(&"of");
                (2, words.next().unwrap_or_default())
            }
            (word, Some(unit)) => match number(word) {
                Some(count) => (count, unit),
                None => return Ok(None),
            },
            (_, None) => return Ok(None),
        };
        let Some(span) = span(count, unit) else { return Ok(None) };
        whole_days &= matches!(unit.as_bytes().first(), Some(b'd' | b'w' | b'y')) || unit.starts_with("mo");
        at = span.and_then(|span| at.checked_sub(span)).map_err(drop)?;
    }
    if rest.is_empty() {
        return Ok(Some(at));
    }
    match Moment::parse(rest) {
        Some(Moment { day: None, clock: Some(Clock::Time(time)) }) if whole_days => {
            at.date().to_datetime(time).to_zoned(at.time_zone().clone()).map(Some).map_err(drop)
        }
        _ => Ok(None),
    }
}

/// `None` when `unit` is no unit of time; the inner error when there is no such time.
fn span(count: i64, unit: &str) -> Option<std::result::Result<Span, jiff::Error>> {
    let span = Span::new();
    Some(match unit {
        "s" | "sec" | "secs" | "second" | "seconds" => span.try_seconds(count),
        "m" | "min" | "mins" | "minute" | "minutes" => span.try_minutes(count),
        "h" | "hr" | "hrs" | "hour" | "hours" => span.try_hours(count),
        "d" | "day" | "days" => span.try_days(count),
        "w" | "week" | "weeks" => span.try_weeks(count),
        "mo" | "month" | "months" => span.try_months(count),
        "y" | "year" | "years" => span.try_years(count),
        _ => return None,
    })
}

fn number(word: &str) -> Option<i64> {
    const WORDS: [&str; 13] =
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"];
    if matches!(word, "a" | "an") {
        return Some(1);
    }
    if let Some(value) = WORDS.iter().position(|name| *name == word) {
        return i64::try_from(value).ok();
    }
    (word.len() <= 9 && word.bytes().all(|b| b.is_ascii_digit())).then(|| word.parse().ok()).flatten()
}

#[derive(Debug, Clone, Copy)]
enum Day {
    /// So many days before today.
    Before(i32),
    /// The most recent one, which may be today unless it is `last`.
    Weekday { day: Weekday, last: bool },
    /// A day of a month, the most recent one where the year or the month is absent.
    Date { year: Option<i16>, month: Option<i8>, day: i8 },
}

#[derive(Debug, Clone, Copy)]
enum Clock {
    Time(Time),
    /// From the first to the second hour of the day.
    Period(i8, i8),
}

/// A day, a time of day, or both.
#[derive(Debug, Clone, Copy, Default)]
struct Moment {
    day: Option<Day>,
    clock: Option<Clock>,
}

impl Moment {
    fn parse(words: &[&str]) -> Option<Self> {
        let mut moment = Self::default();
        let mut words = Words(words);
        while let Some(word) = words.next() {
            match word {
                "at" | "on" | "the" | "this" | "around" | "in" | "from" => {}
                "day" if words.skip("before") && words.skip("yesterday") => moment.set_day(Day::Before(2))?,
                "today" => moment.set_day(Day::Before(0))?,
                "yesterday" => moment.set_day(Day::Before(1))?,
                "tomorrow" => moment.set_day(Day::Before(-1))?,
                "tonight" => {
                    moment.set_day(Day::Before(0))?;
                    moment.set_clock(Clock::Period(18, 24))?;
                }
                "last" => match words.next()? {
                    "night" => {
                        moment.set_day(Day::Before(1))?;
                        moment.set_clock(Clock::Period(18, 24))?;
                    }
                    name => moment.set_day(Day::Weekday { day: weekday(name)?, last: true })?,
                },
                "noon" => moment.set_clock(Clock::Time(Time::constant(12, 0, 0, 0)))?,
                "midnight" => moment.set_clock(Clock::Time(Time::midnight()))?,
                "morning" => moment.set_clock(Clock::Period(0, 12))?,
                "afternoon" => moment.set_clock(Clock::Period(12, 18))?,
                "evening" | "night" => moment.set_clock(Clock::Period(18, 24))?,
                _ => moment.other(word, &mut words)?,
            }
        }
        (moment.day.is_some() || moment.clock.is_some()).then_some(moment)
    }

    /// A weekday, a month's name, a number or a date in digits.
    fn other(&mut self, word: &str, words: &mut Words<'_, '_>) -> Option<()> {
        if let Some(day) = weekday(word) {
            return self.set_day(Day::Weekday { day, last: false });
        }
        if let Some(month) = month(word) {
            let day = words.day()?;
            let year = words.year();
            return self.set_day(Day::Date { year, month: Some(month), day });
        }
        if word.contains('-') {
            return self.digits(word);
        }
        if word.contains(':') || matches!(words.peek(), Some("am" | "pm")) {
            let time = clock(word, words)?;
            return self.set_clock(Clock::Time(time));
        }
        let day = day_number(word)?;
        let ordinal = words.ordinal();
        words.skip("of");
        let month = words.peek().and_then(month);
        if month.is_some() {
            words.next();
        } else if !ordinal {
            return None;
        }
        let year = month.and_then(|_| words.year());
        self.set_day(Day::Date { year, month, day })
    }

    /// `2026-02-15`, `2026-02-15t14:30`, `2026-02-15t14:30:10`.
    fn digits(&mut self, word: &str) -> Option<()> {
        let (date, time) = word.split_once('t').map_or((word, None), |(date, time)| (date, Some(time)));
        let date: Date = (date.len() == 10).then(|| date.parse().ok()).flatten()?;
        if let Some(time) = time {
            self.set_clock(Clock::Time(clock(time, &mut Words(&[]))?))?;
        }
        self.set_day(Day::Date { year: Some(date.year()), month: Some(date.month()), day: date.day() })
    }

    fn set_day(&mut self, day: Day) -> Option<()> {
        self.day.replace(day).is_none().then_some(())
    }

    fn set_clock(&mut self, clock: Clock) -> Option<()> {
        self.clock.replace(clock).is_none().then_some(())
    }

    /// The most recent time that fits; the nearest one in the future if only such a one does.
    fn resolve(self, now: &Zoned) -> Option<Zoned> {
        let today = now.date();
        match self.day {
            None => {
                let at = self.on(today, now)?;
                let recurs = matches!(self.clock, Some(Clock::Time(_)));
                if recurs && at > *now { self.on(today.yesterday().ok()?, now) } else { Some(at) }
            }
            Some(Day::Before(days)) => self.on(today.checked_sub(days.days()).ok()?, now),
            Some(Day::Weekday { day, last }) => {
                let since = i32::from(day.until(today.weekday()));
                let date = today.checked_sub((if last && since == 0 { 7 } else { since }).days()).ok()?;
                let at = self.on(date, now)?;
                if at > *now { self.on(date.checked_sub(7.days()).ok()?, now) } else { Some(at) }
            }
            Some(Day::Date { year: Some(year), month, day }) => self.on(Date::new(year, month?, day).ok()?, now),
            Some(Day::Date { year: None, month: Some(month), day }) => {
                // Eight years back there is a February 29th for certain, except around 1900 and 2100.
                let years = (0..=8).filter_map(|back| Date::new(today.year().checked_sub(back)?, month, day).ok());
                self.most_recent(years, now)
            }
            Some(Day::Date { year: None, month: None, day }) => {
                let months = (0..=3).filter_map(|back| {
                    let month = today.first_of_month().checked_sub(back.months()).ok()?;
                    Date::new(month.year(), month.month(), day).ok()
                });
                self.most_recent(months, now)
            }
        }
    }

    fn most_recent(self, dates: impl Iterator<Item = Date>, now: &Zoned) -> Option<Zoned> {
        dates.filter_map(|date| self.on(date, now)).find(|at| at <= now)
    }

    /// The time on this date. What has a length means its end, or `now` while it lasts.
    fn on(self, date: Date, now: &Zoned) -> Option<Zoned> {
        let zone = now.time_zone();
        let zoned = |time: DateTime| time.to_zoned(zone.clone()).ok();
        let (from, to) = match self.clock {
            Some(Clock::Time(time)) => return zoned(date.to_datetime(time)),
            Some(Clock::Period(from, to)) => (from, to),
            None => (0, 24),
        };
        let start = zoned(date.at(from, 0, 0, 0))?;
        let end = if to == 24 { zoned(date.tomorrow().ok()?.at(0, 0, 0, 0))? } else { zoned(date.at(to, 0, 0, 0))? };
        if start <= *now && *now < end { Some(now.clone()) } else { end.checked_sub(1.second()).ok() }
    }
}

struct Words<'a, 'b>(&'a [&'b str]);

impl<'b> Words<'_, 'b> {
    fn next(&mut self) -> Option<&'b str> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn peek(&self) -> Option<&'b str> {
        self.0.first().copied()
    }

    fn skip(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        if found {
            self.next();
        }
        found
    }

    fn ordinal(&mut self) -> bool {
        ["st", "nd", "rd", "th"].into_iter().any(|suffix| self.skip(suffix))
    }

    fn day(&mut self) -> Option<i8> {
        self.skip("the");
        let day = day_number(self.next()?)?;
        self.ordinal();
        Some(day)
    }

    fn year(&mut self) -> Option<i16> {
        let word = self.peek().filter(|word| word.len() == 4 && word.bytes().all(|b| b.is_ascii_digit()))?;
        self.next();
        word.parse().ok()
    }
}

fn day_number(word: &str) -> Option<i8> {
    let day = (word.len() <= 2 && word.bytes().all(|b| b.is_ascii_digit())).then(|| word.parse().ok()).flatten()?;
    (1..=31).contains(&day).then_some(day)
}

/// `18:00`, `18:00:30`, `9` or `9:30` with `am` or `pm` as the next word.
fn clock(word: &str, words: &mut Words<'_, '_>) -> Option<Time> {
    let digits = |part: &str| {
        let plain = (1..=2).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| part.parse::<i8>().ok()).flatten()
    };
    let mut parts = word.split(':');
    let mut hour = digits(parts.next()?)?;
    let minute = parts.next().map_or(Some(0), digits)?;
    let second = parts.next().map_or(Some(0), digits)?;
    if parts.next().is_some() {
        return None;
    }
    let half = if words.skip("am") { Some(0) } else { words.skip("pm").then_some(12) };
    if let Some(half) = half {
        hour = (1..=12).contains(&hour).then_some(hour % 12 + half)?;
    }
    Time::new(hour, minute, second, 0).ok()
}

fn weekday(word: &str) -> Option<Weekday> {
    Some(match word {
        "monday" | "mon" => Weekday::Monday,
        "tuesday" | "tue" | "tues" => Weekday::Tuesday,
        "wednesday" | "wed" => Weekday::Wednesday,
        "thursday" | "thu" | "thur" | "thurs" => Weekday::Thursday,
        "friday" | "fri" => Weekday::Friday,
        "saturday" | "sat" => Weekday::Saturday,
        "sunday" | "sun" => Weekday::Sunday,
        _ => return None,
    })
}

fn month(word: &str) -> Option<i8> {
    const NAMES: [&str; 12] = [
        "january",
        "february",
        "march",
        "april",
        "may",
        "june",
        "july",
        "august",
        "september",
        "october",
        "november",
        "december",
    ];
    let found =
        NAMES.iter().position(|name| *name == word || name[..3] == *word || (word == "sept" && *name == "september"));
    found.and_then(|index| i8::try_from(index + 1).ok())
}

#[cfg(test)]
mod tests {
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
            ("now", "2026-03-12 10:30:00"),
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
            ("today", "2026-03-12 10:30:00"),
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
            ("this morning", "2026-03-12 10:30:00"),
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
            ("thursday", "2026-03-12 10:30:00"),
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
            ("12 March", "2026-03-12 10:30:00"),
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
