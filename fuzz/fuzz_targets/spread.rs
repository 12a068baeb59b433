//! No bytes that arrive in the place of a message between gateways panic, and none are believed that no key has signed;
//! what is signed and understood is understood again after it was sealed again.
#![no_main]

use gateway::base::secret::Secret;
use gateway::base::time::UtcMillis;
use gateway::feedback::spread::message::Keys;
use libfuzzer_sys::fuzz_target;

const NOW: UtcMillis = UtcMillis(1_800_000_000_000);

fuzz_target!(|bytes: &[u8]| {
    let Ok(keys) = Keys::new("fuzz", &[Secret::new([1; 32])]) else { return };
    assert!(keys.open(bytes, NOW).is_err());
    let Some((order, json)) = bytes.split_at_checked(48) else { return };
    let Ok(order) = std::str::from_utf8(order) else { return };
    let signed = keys.sign(order, json);
    if let Ok(message) = keys.open(&signed, NOW) {
        let again = keys.open(&keys.seal(&message), NOW);
        assert_eq!(again.as_ref(), Ok(&message));
    }
});
