//! Which requests are refused first when a service is nearly at its limit: those of routes that are less important.

use crate::config::Priority;

/// Tenths of the limit that each level less of priority leaves to the levels above.
const RESERVED_TENTHS: u32 = 1;

/// How much of `limit` a request of `own` priority may take when `top` is the highest of the service's routes: all of
/// it at the top, a tenth less for each level below. At least one request.
pub(super) fn part(limit: u32, own: Priority, top: Priority) -> u32 {
    let below = (top as u32).saturating_sub(own as u32);
    let reserved = u64::from(limit) * u64::from(below * RESERVED_TENTHS) / 10;
    limit.saturating_sub(u32::try_from(reserved).unwrap_or(u32::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_important_leave_the_most_room() {
        use Priority::{Critical, High, Low, Normal};
        let parts = |limit, top| [Low, Normal, High, Critical].map(|own| part(limit, own, top));
        assert_eq!(parts(100, Critical), [70, 80, 90, 100]);
        assert_eq!(parts(100, Normal), [90, 100, 100, 100], "nobody is above");
        assert_eq!(parts(100, Low), [100, 100, 100, 100]);
        assert_eq!(parts(1, Critical), [1, 1, 1, 1]);
        assert_eq!(parts(u32::MAX, Critical)[0], u32::MAX - u32::MAX / 10 * 3 - 1);
    }
}
