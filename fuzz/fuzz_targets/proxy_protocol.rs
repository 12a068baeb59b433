//! No header of the PROXY protocol makes the parser panic, and what is read is written and read as the same.
#![no_main]

use gateway::http::proxy_protocol::{HEADER_BYTES_MAX, Missing, encode_v2, missing, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|header: &[u8]| {
    let mut length = 0;
    // As a connection is read: never a byte more than is asked for.
    while let Ok(asked) = missing(&header[..length]) {
        let more = match asked {
            Missing::Nothing => break,
            Missing::Bytes(count) => count,
            Missing::Line(room) => {
                let rest = &header[length..];
                let rest = &rest[..rest.len().min(room)];
                rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |end| end + 1)
            }
        };
        assert!(length + more <= HEADER_BYTES_MAX);
        if more == 0 || length + more > header.len() {
            return;
        }
        length += more;
    }
    if let Ok(Some(addresses)) = parse(&header[..length]) {
        let again = parse(&encode_v2(addresses)).expect("a header").expect("addresses");
        assert_eq!(again, addresses);
    }
});
