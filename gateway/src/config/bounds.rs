//! `bounds`: what a client may make the gateway hold or wait for.

use std::time::Duration;

use super::Bounds;
use super::at::At;
use super::raw::RawBounds;
use super::value::{count, duration, size, within_u32};

/// What any client may take for granted.
const HEAD_BYTES_MIN: u64 = 8 << 10;

const TARGET_BYTES_MIN: u64 = 256;
/// One source alone can never take all connections, and no address that many share is near this.
const SOURCE_DIVISOR: u64 = 4;
const CONNECTIONS_MAX: u64 = 1 << 20;

/// The longest that the crate http can hold is 65,534 bytes.
const TARGET_BYTES_MAX: u64 = 63 << 10;

/// More than this no honest client can promise.
const RATE_BYTES_MAX: u64 = 1 << 20;

/// The size of a request's body.
pub(super) fn body_bytes(text: &str, at: At<'_>) -> Option<u64> {
    size(text, 0..=1 << 40, at)
}

/// What could not be read has been reported, so that zeros never leave this module's caller.
pub(super) fn bounds(raw: &RawBounds, at: At<'_>) -> Bounds {
    let time = |text: &str, key| duration(text, at.key(key)).unwrap_or(Duration::ZERO);
    let number = |number, max, key| count(number, 1..=max, at.key(key)).unwrap_or_default();
    let head_bytes = size(&raw.head_bytes, HEAD_BYTES_MIN..=1 << 20, at.key("head_bytes"));
    let target_bytes =
        size(&raw.target_bytes, TARGET_BYTES_MIN..=TARGET_BYTES_MAX, at.key("target_bytes"));
    let small = |number, max, key| within_u32(number, 1..=max, at.key(key)).unwrap_or_default();
    let quarter = raw.connections.div_ceil(SOURCE_DIVISOR).clamp(1, CONNECTIONS_MAX);
    let per_source = raw.connections_per_source.unwrap_or(quarter);
    Bounds {
        connections: number(raw.connections, CONNECTIONS_MAX, "connections"),
        connections_per_source: number(per_source, CONNECTIONS_MAX, "connections_per_source"),
        connection_lifetime: time(&raw.connection_lifetime, "connection_lifetime"),
        connection_requests: small(
            raw.connection_requests,
            u64::from(u32::MAX),
            "connection_requests",
        ),
        streams: small(raw.streams, 65_536, "streams"),
        header_count: number(raw.header_count, 1024, "header_count"),
        head_bytes: head_bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or_default(),
        target_bytes: target_bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or_default(),
        body_bytes: body_bytes(&raw.body_bytes, at.key("body_bytes")).unwrap_or_default(),
        body_bytes_per_second: size(
            &raw.body_bytes_per_second,
            0..=RATE_BYTES_MAX,
            at.key("body_bytes_per_second"),
        )
        .unwrap_or_default(),
        handshake_timeout: time(&raw.handshake_timeout, "handshake_timeout"),
        handshakes: number(raw.handshakes, 1 << 20, "handshakes"),
        head_timeout: time(&raw.head_timeout, "head_timeout"),
        idle_timeout: time(&raw.idle_timeout, "idle_timeout"),
        keep_alive_timeout: time(&raw.keep_alive_timeout, "keep_alive_timeout"),
        tunnel_idle_timeout: time(&raw.tunnel_idle_timeout, "tunnel_idle_timeout"),
        drain_timeout: time(&raw.drain_timeout, "drain_timeout"),
    }
}
