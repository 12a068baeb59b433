//! No bytes that arrive in the place of a crowdsec's answer panic, and what is understood of them is within its bounds:
//! no prefix that is too wide, none twice, no time that is too long.
#![no_main]

use gateway::feedback::crowdsec::{DECISIONS_MAX, duration, read};
use gateway::feedback::spread::message::{LASTS_MAX, is_wide};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        duration(text);
    }
    for whole in [false, true] {
        let Ok(heard) = read(bytes, whole) else { continue };
        assert!(heard.new.len() <= DECISIONS_MAX && heard.deleted.len() <= DECISIONS_MAX);
        assert!(heard.new.iter().all(|one| !one.lasts.is_zero() && one.lasts <= LASTS_MAX));
        assert!(heard.new.iter().all(|one| !is_wide(&one.prefix)));
        assert!(heard.new.is_sorted_by(|one, next| one.prefix < next.prefix));
        assert!(heard.deleted.is_sorted_by(|one, next| one < next));
        assert!(!whole || heard.deleted.is_empty());
    }
});
