//! The services behind the subjects: nginx for HTTP/1.1, nghttpd for gRPC, and an echo behind an upgrade.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::ensure;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// What the origin answers.
pub(in crate::bench) const BODY: &str = concat!(
    r#"{"id":4711,"name":"Ada Lovelace","mail":"ada@example.com","#,
    r#""roles":["reader","writer"],"active":true,"score":98.2500}"#
);
/// A gRPC message: not compressed, two bytes (protobuf field 1, the number 7).
pub(super) const GRPC_MESSAGE: &[u8] = &[0, 0, 0, 0, 2, 8, 7];
/// Files that are served besides, by name and size.
pub(super) const FILES: [(&str, usize); 2] = [("64k", 64 << 10), ("10m", 10 << 20)];

const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const HEAD_MAX_BYTES: usize = 64 * 1024;

/// Starts a service that accepts every upgrade and sends back what it gets, until the process ends.
pub(super) fn echo(cpu: usize) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A connection that breaks is the business of its client.
            thread::spawn(move || drop(echo_one(stream, cpu)));
        }
    });
    Ok(address)
}

fn echo_one(mut stream: TcpStream, cpu: usize) -> anyhow::Result<()> {
    pin(cpu)?;
    stream.set_nodelay(true)?;
    head(&mut stream)?;
    stream.write_all(UPGRADED)?;
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        let Some(bytes @ [_, ..]) = buffer.get(..count) else { return Ok(()) };
        stream.write_all(bytes)?;
    }
}

/// Reads a head to its end, byte by byte: what follows is not part of it.
pub(super) fn head(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
        ensure!(head.len() < HEAD_MAX_BYTES, "a head without an end");
    }
    Ok(head)
}

/// Keeps the calling thread on this CPU.
pub(in crate::bench) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
