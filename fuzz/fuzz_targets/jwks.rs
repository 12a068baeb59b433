//! Whatever an issuer publishes as its keys, what is taken of it is bounded, and what is no JSON object is refused.
#![no_main]

use gateway::auth::usable_keys;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(usable) = usable_keys(bytes) else { return };
    let set: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
    let published = set["keys"].as_array().expect("a list").len();
    assert!((1..=published.min(1000)).contains(&usable), "{usable} of {published}");
});
