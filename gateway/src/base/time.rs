//! Clocks. Everything that decides by time takes it from here, so that tests decide what time it is.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of CLOCK_BOOTTIME, the clock of the kernel's rules: it counts while the host sleeps, and a step of the
/// wall clock does not touch it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(pub u64);

/// Milliseconds since the epoch in UTC, what the store holds: it means the same after a reboot.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct UtcMillis(pub u64);

/// The first millisecond that RFC 3339 cannot say.
const YEAR_10_000_MS: u64 = 253_402_300_800_000;

/// The same moment on both clocks, which is what turns one into the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// On the clock of the kernel.
    pub boot: BootTime,
    /// On the clock of the store.
    pub utc: UtcMillis,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        Self { boot: boot(), utc: utc() }
    }

    /// The kernel's time of a moment of the store. A moment from before the boot is the boot.
    pub fn boot_of(self, utc: UtcMillis) -> BootTime {
        if utc >= self.utc {
            let ahead = (utc.0 - self.utc.0).saturating_mul(1_000_000);
            BootTime(self.boot.0.saturating_add(ahead))
        } else {
            BootTime(self.boot.0.saturating_sub((self.utc.0 - utc.0).saturating_mul(1_000_000)))
        }
    }

    /// The store's time of a moment of the kernel.
    pub fn utc_of(self, boot: BootTime) -> UtcMillis {
        if boot >= self.boot {
            UtcMillis(self.utc.0.saturating_add((boot.0 - self.boot.0) / 1_000_000))
        } else {
            UtcMillis(self.utc.0.saturating_sub((self.boot.0 - boot.0) / 1_000_000))
        }
    }
}

/// The clocks as they were when they were first asked for: what is done in one go reads each of them once at most.
#[derive(Clone, Debug, Default)]
pub struct Moment {
    boot: Cell<Option<BootTime>>,
    utc: Cell<Option<UtcMillis>>,
}

impl Moment {
    /// The moment at which it is `now`.
    pub fn at(now: Now) -> Self {
        Self { boot: Cell::new(Some(now.boot)), utc: Cell::new(Some(now.utc)) }
    }

    /// Time has passed: from now on it is another one.
    pub fn pass(&self) {
        self.boot.set(None);
        self.utc.set(None);
    }

    /// The clock of the kernel.
    pub fn boot(&self) -> BootTime {
        let boot = self.boot.get().unwrap_or_else(boot);
        self.boot.set(Some(boot));
        boot
    }

    /// The wall clock in UTC.
    pub fn utc(&self) -> UtcMillis {
        let utc = self.utc.get().unwrap_or_else(utc);
        self.utc.set(Some(utc));
        utc
    }

    /// Both clocks.
    pub fn now(&self) -> Now {
        Now { boot: self.boot(), utc: self.utc() }
    }
}

impl UtcMillis {
    /// This moment and `duration` more.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long until this moment, seen from `now`; zero when it has passed.
    pub fn since(self, now: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.0))
    }

    /// As RFC 3339 in UTC, to the second.
    pub fn display(self) -> String {
        // RFC 3339 has four digits for the year, and humantime panics past the last second that they can say.
        let millis = Some(self.0).filter(|millis| *millis < YEAR_10_000_MS);
        let time = millis
            .and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
        time.map_or_else(
            || "never".to_owned(),
            |time| humantime::format_rfc3339_seconds(time).to_string(),
        )
    }
}

/// The clock of the kernel.
pub fn boot() -> BootTime {
    BootTime(nanoseconds(ClockId::Boottime))
}

/// CLOCK_MONOTONIC, the clock of the kernel's buckets (unit: nanoseconds).
pub fn monotonic_ns() -> u64 {
    nanoseconds(ClockId::Monotonic)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// The wall clock in UTC.
#[expect(clippy::disallowed_methods, reason = "this is where the wall clock is read")]
pub fn utc() -> UtcMillis {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    UtcMillis(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// The monotonic clock of this process, for timeouts.
#[expect(clippy::disallowed_methods, reason = "this is where the monotonic clock is read")]
pub fn instant() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_clocks_agree_there_and_back() {
        let now = Now { boot: BootTime(50_000_000_000), utc: UtcMillis(1_800_000_000_000) };
        let later = now.utc.after(Duration::from_secs(60));
        assert_eq!(now.boot_of(later), BootTime(110_000_000_000));
        assert_eq!(now.utc_of(now.boot_of(later)), later);
        assert_eq!(now.boot_of(UtcMillis(0)), BootTime(0), "before the boot is the boot");
    }

    #[test]
    fn a_moment_lasts_until_time_passes() {
        let now = Now { boot: BootTime(5), utc: UtcMillis(7) };
        let moment = Moment::at(now);
        assert_eq!((moment.boot(), moment.utc(), moment.now()), (now.boot, now.utc, now));
        moment.pass();
        let later = moment.now();
        assert!(later.boot > now.boot && later.utc > now.utc, "it was not read anew");
        assert_eq!(moment.now(), later, "it was read twice");
    }

    #[test]
    fn every_moment_can_be_displayed() {
        assert_eq!(UtcMillis(YEAR_10_000_MS - 1).display(), "9999-12-31T23:59:59Z");
        assert_eq!(UtcMillis(YEAR_10_000_MS).display(), "never");
        assert_eq!(UtcMillis(u64::MAX).display(), "never");
    }

    #[test]
    fn a_step_of_the_wall_clock_changes_no_expiry_in_the_kernel() {
        let before = Now { boot: BootTime(1_000_000_000), utc: UtcMillis(10_000) };
        let until = before.boot_of(before.utc.after(Duration::from_secs(5)));
        let stepped = Now { boot: BootTime(2_000_000_000), utc: UtcMillis(9_000_000) };
        assert_eq!(until.0 - stepped.boot.0, 4_000_000_000);
    }
}
