//! Reads the header of the PROXY protocol from a connection, and not a byte of what follows it.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::http::proxy_protocol::{Addresses, Invalid, LINE_BYTES_MAX, Missing, missing, parse};

/// What the header says that `stream` begins with.
pub(super) async fn read(stream: &mut TcpStream) -> Result<Option<Addresses>, Invalid> {
    let mut header = Vec::with_capacity(LINE_BYTES_MAX);
    loop {
        let wanted = match missing(&header)? {
            Missing::Nothing => return parse(&header),
            Missing::Bytes(count) => count,
            Missing::Line(room) => {
                let mut seen = [0; LINE_BYTES_MAX];
                let seen = seen.get_mut(..room).ok_or(Invalid)?;
                let count = stream.peek(seen).await.map_err(|_| Invalid)?;
                let seen = seen.get(..count).ok_or(Invalid)?;
                seen.iter().position(|byte| *byte == b'\n').map_or(count, |end| end + 1)
            }
        };
        let limit = u64::try_from(wanted).map_err(|_| Invalid)?;
        let read = (&mut *stream).take(limit).read_buf(&mut header).await;
        if read.map_err(|_| Invalid)? == 0 {
            return Err(Invalid);
        }
    }
}
