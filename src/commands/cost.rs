//! What a month of backups costs at Backblaze B2: the bytes that are stored, and the calls that this machine's pushes
//! were measured to make. The prices are data, `prices.json`, with their date. Uploads and deletions (class A) are free.
//!
//! Not in it: what listing, restoring and verifying by hand cost, downloads, other machines' pushes, and what else the
//! account holds, with which it shares its free allowances.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Trigger;
use crate::cache::Cache;
use crate::error::{Code, Error, Result, to_json};
use crate::store::StoreStats;

/// Under which name the cache remembers the pushes of this machine.
const PUSHES: &str = "pushes";
/// How many of them it remembers: at one an hour, those of more than a week.
const REMEMBERED: usize = 200;
/// A month, as it is billed here.
const MONTH: Duration = Duration::from_hours(24 * 30);

/// What the service asks for its services, in US dollars.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Prices {
    service: String,
    date: String,
    source: String,
    storage: StoragePrice,
    class_b: CallPrice,
    class_c: CallPrice,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoragePrice {
    usd_per_tb_month: f64,
    free_bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CallPrice {
    free_per_day: u64,
    /// For what is beyond `free_per_day`.
    usd_per_thousand: f64,
}

/// What a month costs.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Whose prices these are.
    pub service: String,
    /// When they were looked up, as `YYYY-MM-DD`.
    pub prices_date: String,
    /// Where.
    pub prices_source: String,
    /// Bytes that are billed: what is stored, and what is hidden.
    pub billed_bytes: u64,
    /// Bytes that are free in an account.
    pub free_bytes: u64,
    /// US dollars a month for the bytes.
    pub storage_usd: f64,
    /// Snapshots a month: those of the schedule, and as many others as there were lately.
    pub pushes_per_month: f64,
    /// How many pushes of this machine were measured; without any there is nothing to say of calls.
    pub measured_pushes: u64,
    /// Calls of class B (downloads) and what they cost.
    pub class_b: Calls,
    /// Calls of class C (listings and others) and what they cost.
    pub class_c: Calls,
    /// US dollars a month for all of it.
    pub usd: f64,
}

/// The calls of one class in a month.
#[derive(Debug, Clone, PartialEq)]
pub struct Calls {
    /// As many as were measured for one push, times the pushes.
    pub per_month: f64,
    /// How many are free in a month of 30 days.
    pub free_per_month: u64,
    /// US dollars a month for those beyond.
    pub usd: f64,
}

/// One push as the cache remembers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    /// Seconds since 1970, by this machine's clock.
    at: u64,
    scheduled: bool,
    class_b: u64,
    class_c: u64,
}

/// Remembers what a push did on the wire.
pub(super) fn remember_push(cache: &Cache, trigger: Trigger, stats: StoreStats) -> Result<()> {
    let mut pushes = measured(cache);
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let scheduled = matches!(trigger, Trigger::Schedule | Trigger::CatchUp);
    pushes.push(Measured { at, scheduled, class_b: stats.class_b, class_c: stats.class_c });
    let surplus = pushes.len().saturating_sub(REMEMBERED);
    let bytes = to_json(&pushes[surplus..])?;
    cache.put_objects([(PUSHES.to_owned(), &bytes[..])])
}

fn measured(cache: &Cache) -> Vec<Measured> {
    cache.object(PUSHES).and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// What a month costs with `scheduled` pushes by the schedule, and `billed_bytes` in the bucket.
///
/// # Errors
/// `CONFIG` when `scheduled` is no number of pushes.
pub(super) fn of_month(cache: Option<&Cache>, scheduled: f64, billed_bytes: u64) -> Result<Cost> {
    if !(0.0..1e9).contains(&scheduled) {
        return Err(Error::config("pushesPerMonth", format!("{scheduled} is not a number of pushes")));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Ok(model(&prices()?, &cache.map(measured).unwrap_or_default(), now, scheduled, billed_bytes))
}

fn prices() -> Result<Prices> {
    let wrong = |error: serde_json::Error| Error::new(Code::Io, format!("internal error: prices.json: {error}"));
    serde_json::from_str(include_str!("prices.json")).map_err(wrong)
}

fn model(prices: &Prices, pushes: &[Measured], now: u64, scheduled: f64, billed_bytes: u64) -> Cost {
    let storage_usd =
        billed_bytes.saturating_sub(prices.storage.free_bytes) as f64 / 1e12 * prices.storage.usd_per_tb_month;
    let pushes_per_month = scheduled + others_per_month(pushes, now);
    let calls = |price: &CallPrice, counted: fn(&Measured) -> u64| {
        let mean = pushes.iter().map(counted).sum::<u64>() as f64 / pushes.len().max(1) as f64;
        let (per_month, free_per_month) = (mean * pushes_per_month, price.free_per_day * 30);
        let beyond = (per_month - free_per_month as f64).max(0.0);
        Calls { per_month, free_per_month, usd: beyond / 1000.0 * price.usd_per_thousand }
    };
    let (class_b, class_c) = (calls(&prices.class_b, |push| push.class_b), calls(&prices.class_c, |push| push.class_c));
    Cost {
        service: prices.service.clone(),
        prices_date: prices.date.clone(),
        prices_source: prices.source.clone(),
        billed_bytes,
        free_bytes: prices.storage.free_bytes,
        storage_usd,
        pushes_per_month,
        measured_pushes: pushes.len() as u64,
        usd: storage_usd + class_b.usd + class_c.usd,
        class_b,
        class_c,
    }
}

/// How many pushes a month the schedule did not ask for, going by those of the last month. Less than a day tells nothing of a
/// month: it counts as one.
fn others_per_month(pushes: &[Measured], now: u64) -> f64 {
    let month = MONTH.as_secs();
    let recent = || pushes.iter().filter(|push| now.saturating_sub(push.at) <= month);
    let Some(oldest) = recent().map(|push| push.at).min() else { return 0.0 };
    let watched = now.saturating_sub(oldest).clamp(24 * 3600, month);
    let others = recent().filter(|push| !push.scheduled).count();
    others as f64 * month as f64 / watched as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 24 * 3600;

    fn push(at: u64, scheduled: bool, class_b: u64, class_c: u64) -> Measured {
        Measured { at, scheduled, class_b, class_c }
    }

    /// B2's prices until 2026-04-30, when calls beyond the allowance cost something.
    fn old_prices() -> Prices {
        let mut prices = prices().unwrap();
        prices.storage.usd_per_tb_month = 6.0;
        prices.class_b.usd_per_thousand = 0.0004;
        prices.class_c.usd_per_thousand = 0.004;
        prices
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn the_prices_are_dated_and_say_where_they_are_from() {
        let prices = prices().unwrap();
        prices.date.parse::<jiff::civil::Date>().unwrap();
        assert!(prices.source.starts_with("https://www.backblaze.com/"));
        assert!(prices.storage.usd_per_tb_month > 0.0 && prices.storage.free_bytes > 0);
    }

    #[test]
    fn what_is_within_the_allowances_costs_nothing() {
        let pushes = [push(40 * DAY, true, 0, 2), push(41 * DAY, true, 2, 4)];
        let cost = model(&old_prices(), &pushes, 42 * DAY, 30.0, 9_000_000_000);
        assert!(close(cost.class_b.per_month, 30.0) && close(cost.class_c.per_month, 90.0));
        assert_eq!((cost.class_c.free_per_month, cost.measured_pushes), (75_000, 2));
        assert!(close(cost.usd, 0.0));
    }

    #[test]
    fn what_is_beyond_the_allowances_is_priced() {
        let pushes = [push(DAY, true, 1_000, 2_000)];
        let cost = model(&old_prices(), &pushes, 2 * DAY, 100.0, 110_000_000_000);
        assert!(close(cost.storage_usd, 0.6));
        assert!(close(cost.class_b.usd, 25.0 * 0.0004) && close(cost.class_c.usd, 125.0 * 0.004));
        assert!(close(cost.usd, 0.6 + 0.01 + 0.5));
    }

    #[test]
    fn pushes_that_the_schedule_did_not_ask_for_are_reckoned_up_to_a_month() {
        let pushes = [push(0, false, 0, 1), push(90 * DAY, true, 0, 1), push(95 * DAY, false, 0, 1)];
        // One in the ten days since the oldest of the last month.
        assert!(close(others_per_month(&pushes, 100 * DAY), 3.0));
        assert!(close(others_per_month(&pushes[2..], 95 * DAY), 30.0));
        assert!(close(others_per_month(&[], DAY), 0.0));
        // A clock that was ahead.
        assert!(others_per_month(&pushes, 0).is_finite());
    }

    #[test]
    fn the_cache_remembers_a_bounded_number_of_pushes() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache.sqlite"), "here").unwrap();
        assert_eq!(of_month(Some(&cache), 30.0, 1).unwrap().measured_pushes, 0);
        for _ in 0..REMEMBERED + 5 {
            remember_push(&cache, Trigger::Schedule, StoreStats { class_c: 3, ..StoreStats::default() }).unwrap();
        }
        let cost = of_month(Some(&cache), 30.0, 1).unwrap();
        assert_eq!(cost.measured_pushes, REMEMBERED as u64);
        assert!(close(cost.class_c.per_month, 90.0));
        assert!(of_month(None, f64::NAN, 1).is_err());
    }
}
