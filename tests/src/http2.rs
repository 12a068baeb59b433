//! HTTP/2 frame by frame: a client that sends what it is told, right or wrong, and reads what comes back.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use socket2::{Domain, Socket, Type};

use crate::{Result, read_once};

/// What HTTP/2 begins with.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub mod kind {
    /// A piece of a body.
    pub const DATA: u8 = 0;
    /// The begin of a head.
    pub const HEADERS: u8 = 1;
    /// The end of a stream that is not wanted.
    pub const RST_STREAM: u8 = 3;
    /// What either side is ready for.
    pub const SETTINGS: u8 = 4;
    /// A question whether anybody is there.
    pub const PING: u8 = 6;
    /// The end of a connection.
    pub const GOAWAY: u8 = 7;
    /// More room.
    pub const WINDOW_UPDATE: u8 = 8;
    /// The rest of a head.
    pub const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub mod flag {
    /// The last frame of a message.
    pub const END_STREAM: u8 = 1;
    /// An answer to SETTINGS or PING.
    pub const ACK: u8 = 1;
    /// The last frame of a head.
    pub const END_HEADERS: u8 = 4;
}

/// Reasons to end a stream or a connection.
pub mod reason {
    /// No fault of anybody.
    pub const NO_ERROR: u32 = 0;
    /// Against the protocol.
    pub const PROTOCOL_ERROR: u32 = 1;
    /// Nothing was done; it may be tried again.
    pub const REFUSED_STREAM: u32 = 7;
    /// Not wanted any more.
    pub const CANCEL: u32 = 8;
    /// Too much.
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// One of [`kind`].
    pub kind: u8,
    /// Of [`flag`].
    pub flags: u8,
    /// 0 for the connection.
    pub stream: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame of any kind.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// A whole head.
    pub fn headers(stream: u32, end_stream: bool, fields: &[(&str, &str)]) -> Self {
        let flags = flag::END_HEADERS | u8::from(end_stream);
        Self::new(kind::HEADERS, flags, stream, block(fields))
    }

    /// GET of a path of the host `test`.
    pub fn get(stream: u32, path: &str) -> Self {
        Self::headers(stream, true, &request("GET", path))
    }

    /// The end of a stream.
    pub fn reset(stream: u32, reason: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, reason.to_be_bytes())
    }

    /// SETTINGS with these values.
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let value =
            |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
        Self::new(kind::SETTINGS, 0, 0, values.iter().flat_map(value).collect::<Vec<_>>())
    }

    /// More room on a stream, or on the connection.
    pub fn window_update(stream: u32, bytes: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, bytes.to_be_bytes())
    }

    /// As it is sent.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([self.kind, self.flags]);
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// The end of a connection: streams up to `last` are answered, the others were not looked at.
    pub fn goaway(last: u32, reason: u32) -> Self {
        Self::new(kind::GOAWAY, 0, 0, [last.to_be_bytes(), reason.to_be_bytes()].concat())
    }

    /// Whether a message ends with it.
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & flag::END_STREAM != 0
    }

    /// The code of a RST_STREAM or GOAWAY.
    pub fn reason(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let code = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(code.try_into().ok()?))
    }
}

/// The pseudo-header fields of a request to the host `test`.
pub fn request<'a>(method: &'a str, path: &'a str) -> [(&'a str, &'a str); 4] {
    [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)]
}

/// Header fields as literals that nobody has to remember (RFC 7541, section 6.2.2), without Huffman.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        string(&mut block, name.as_bytes());
        string(&mut block, value.as_bytes());
    }
    block
}

/// A literal that is remembered under the index 62 (RFC 7541, section 6.2.1).
pub fn remembered(name: &str, value: &str) -> Vec<u8> {
    let mut block = vec![0x40];
    string(&mut block, name.as_bytes());
    string(&mut block, value.as_bytes());
    block
}

fn string(block: &mut Vec<u8>, bytes: &[u8]) {
    const PREFIX_MAX: usize = 0x7f;
    if bytes.len() < PREFIX_MAX {
        block.push(bytes.len() as u8);
    } else {
        block.push(PREFIX_MAX as u8);
        let mut rest = bytes.len() - PREFIX_MAX;
        while rest >= 0x80 {
            block.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        block.push(rest as u8);
    }
    block.extend(bytes);
}

/// A connection.
#[derive(Debug)]
pub struct Http2 {
    stream: TcpStream,
}

impl Http2 {
    /// Connects from where the caller is, and sends the preface and SETTINGS with these values. `patience` bounds each
    /// later wait.
    pub fn connect(target: SocketAddr, values: &[(u16, u32)], patience: Duration) -> Result<Self> {
        let source = if target.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        Self::connect_from(source, target, values, patience)
    }

    /// The same from the address `source`.
    pub fn connect_from(
        source: IpAddr,
        target: SocketAddr,
        values: &[(u16, u32)],
        patience: Duration,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&target.into(), patience)?;
        let stream = TcpStream::from(socket);
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut client = Self { stream };
        client.send(PREFACE)?;
        client.frames(&[Frame::settings(values)])?;
        Ok(client)
    }

    /// The side of a service: takes the preface of a client. SETTINGS are for the caller to send.
    pub fn accept(stream: TcpStream, patience: Duration) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut this = Self { stream };
        let mut preface = [0; PREFACE.len()];
        this.stream.read_exact(&mut preface)?;
        ensure!(preface == PREFACE, "this is no HTTP/2: {preface:?}");
        Ok(this)
    }

    /// Ends the connection in both directions.
    pub fn close(&self) -> Result {
        Ok(self.stream.shutdown(Shutdown::Both)?)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result {
        self.stream.write_all(bytes).context("cannot send")
    }

    /// Sends frames, all at once.
    pub fn frames(&mut self, frames: &[Frame]) -> Result {
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        self.send(&bytes)
    }

    /// The next frame; `None` at the end of the connection.
    pub fn receive(&mut self) -> Result<Option<Frame>> {
        let mut head = [0; 9];
        match read_once(&mut self.stream, &mut head[..1]) {
            Ok(0) => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            read => read.context("no frame")?,
        };
        self.stream.read_exact(&mut head[1..])?;
        let [high, middle, low, kind, flags, rest @ ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; length.try_into()?];
        self.stream.read_exact(&mut payload)?;
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(rest) & 0x7fff_ffff, payload }))
    }

    /// The next frame; SETTINGS are acknowledged and pings answered, as politeness demands.
    pub fn receive_polite(&mut self) -> Result<Option<Frame>> {
        let frame = self.receive()?;
        match &frame {
            Some(Frame { kind: kind::SETTINGS, flags: 0, .. }) => {
                self.frames(&[Frame::new(kind::SETTINGS, flag::ACK, 0, [])])?;
            }
            Some(Frame { kind: kind::PING, flags: 0, payload, .. }) => {
                self.frames(&[Frame::new(kind::PING, flag::ACK, 0, payload.clone())])?;
            }
            _ => {}
        }
        Ok(frame)
    }

    /// The next frame that `wanted` accepts. SETTINGS are acknowledged on the way.
    pub fn wait(&mut self, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        while let Some(frame) = self.receive()? {
            if frame.kind == kind::SETTINGS && frame.flags & flag::ACK == 0 {
                self.frames(&[Frame::new(kind::SETTINGS, flag::ACK, 0, [])])?;
            }
            if wanted(&frame) {
                return Ok(frame);
            }
        }
        bail!("the connection ended before")
    }

    /// The reason of the GOAWAY that the connection ends with; `None` if it ends without.
    pub fn goodbye(&mut self) -> Result<Option<u32>> {
        let mut reason = None;
        while let Some(frame) = self.receive()? {
            if frame.kind == kind::GOAWAY {
                reason = frame.reason();
            }
        }
        Ok(reason)
    }

    /// Whether the head of the next answer on `stream` says 200, the one status that is one byte.
    pub fn is_fine(&mut self, stream: u32) -> Result<bool> {
        let head = self.wait(|frame| frame.kind == kind::HEADERS && frame.stream == stream)?;
        Ok(head.payload.first() == Some(&0x88))
    }
}
