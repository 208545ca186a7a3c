//! Times in plain words: "10 minutes ago", "yesterday 18:00", "February 15th".
//!
//! The grammar is written by hand: no well-kept crate knows ordinals ("February 15th"), the past as the only direction, and
//! time zones together. jiff does the calendar. Words are English, as the tool's texts are.
//!
//! Three rules decide what a text leaves open. What has a length (a day, "this morning") means its end, or now while
//! it lasts. What recurs (a weekday, a date without a year, a bare time of day) means its most recent occurrence.

use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use jiff::{Span, ToSpan, Zoned};

/// What a text that is not a time means: the caller tries something else. `Err` is a time that cannot be.
pub(super) type Parsed<T> = std::result::Result<Option<T>, ()>;

/// The time that `text` means, written at the moment and in the zone of `now`.
pub(super) fn time(text: &str, mut now: Zoned) -> Parsed<Zoned> {
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
