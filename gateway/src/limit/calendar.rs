//! Days and months of UTC as windows: which one it is, and how long until it ends.

use crate::base::time::UtcMillis;
use crate::config::Period;
use crate::limit::algorithm::fixed_window::Window;

const DAY_MS: u64 = 86_400_000;

/// The window of a period that `now` lies in.
pub fn window(period: Period, now: UtcMillis) -> Window {
    let index = index(period, now.0);
    let [end, next_end] = [1, 2].map(|ahead| start(period, index.saturating_add(ahead)));
    Window {
        index: u32::try_from(index).unwrap_or(u32::MAX),
        left_ns: end.saturating_sub(now.0).saturating_mul(1_000_000),
        next_ns: next_end.saturating_sub(end).saturating_mul(1_000_000),
        may_jump: true,
    }
}

fn index(period: Period, utc_ms: u64) -> u64 {
    let day = utc_ms / DAY_MS;
    match period {
        Period::Day => day,
        Period::Month => month_of(day),
    }
}

/// Milliseconds of UTC at which the period of a number begins.
fn start(period: Period, index: u64) -> u64 {
    let day = match period {
        Period::Day => index,
        Period::Month => first_day(index),
    };
    day.saturating_mul(DAY_MS)
}

// Years that begin in March have their leap day at the end, which is what makes this arithmetic: Howard Hinnant,
// chrono-compatible low-level date algorithms. Days count from 1970, eras of 400 years from March of year 0.
const ERA_DAYS: u64 = 146_097;
const DAYS_TO_1970: u64 = 719_468;

/// The month of a day, counted from January 1970.
fn month_of(day: u64) -> u64 {
    let day = day.saturating_add(DAYS_TO_1970);
    let (era, day_of_era) = (day / ERA_DAYS, day % ERA_DAYS);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let leap_days = year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - (365 * year_of_era + leap_days);
    let months_from_march = (5 * day_of_year + 2) / 153;
    // January 1970 is month 10 of the year 1969 that began in March.
    (era * 400 + year_of_era) * 12 + months_from_march - (1969 * 12 + 10)
}

/// The first day of a month.
fn first_day(month: u64) -> u64 {
    let month = month.saturating_add(1969 * 12 + 10);
    let (year, months_from_march) = (month / 12, month % 12);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * months_from_march + 2) / 5;
    let day_of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * ERA_DAYS + day_of_era - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(text: &str) -> UtcMillis {
        let time = humantime::parse_rfc3339(text).unwrap();
        let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
        UtcMillis(since.as_millis() as u64)
    }

    #[test]
    fn periods_end_where_the_calendar_says() {
        let cases = [
            (Period::Day, "2026-02-28T23:59:59Z", "2026-03-01T00:00:00Z"),
            (Period::Day, "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z"),
            (Period::Month, "1970-01-01T00:00:00Z", "1970-02-01T00:00:00Z"),
            (Period::Month, "2024-02-29T12:00:00Z", "2024-03-01T00:00:00Z"),
            (Period::Month, "2100-02-28T00:00:00Z", "2100-03-01T00:00:00Z"),
            (Period::Month, "2026-12-31T23:59:59.999Z", "2027-01-01T00:00:00Z"),
            (Period::Month, "2000-02-29T23:00:00Z", "2000-03-01T00:00:00Z"),
        ];
        for (period, now, end) in cases {
            let (now, end) = (utc(now), utc(end));
            let found = window(period, now);
            assert_eq!(found.left_ns / 1_000_000, end.0 - now.0, "{now:?}");
            let next = window(period, end);
            assert_eq!(next.index, found.index + 1);
            assert_eq!(next.left_ns, found.next_ns);
            assert_eq!(window(period, UtcMillis(end.0 - 1)).index, found.index);
        }
    }

    #[test]
    fn every_day_of_four_centuries_is_in_the_month_that_the_calendar_has() {
        let mut months = 0;
        for day in 0..ERA_DAYS {
            let text = UtcMillis(day * DAY_MS).display();
            months += u64::from(day > 0 && text.get(8..10) == Some("01"));
            assert_eq!(month_of(day), months, "{text}");
            assert!(first_day(months) <= day && day < first_day(months + 1), "{text}");
        }
    }

    #[test]
    fn no_time_overflows() {
        for period in [Period::Day, Period::Month] {
            window(period, UtcMillis(u64::MAX));
        }
    }
}
