//! WebSocket load: connections that are upgraded once and then send one small message at a time, which comes back.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::Run;
use super::load::{Load, quantile};
use super::origins::pin;

const CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(10);
const ASK: &[u8] =
    b"GET /ws HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// A masked text frame of 32 bytes (RFC 6455, section 5.2).
const FRAME: [u8; 38] = {
    let mut frame = [b'x'; 38];
    frame[0] = 0x81;
    frame[1] = 0x80 | 32;
    frame
};

pub(super) fn run(target: SocketAddr, run: &Run) -> anyhow::Result<Load> {
    let until = Instant::now() + Duration::from_secs(u64::from(run.seconds));
    let workers = (0..CONNECTIONS).map(|_| {
        let cpu = run.cpus.rest;
        thread::spawn(move || echoes(target, cpu, until))
    });
    let workers: Vec<_> = workers.collect();
    let mut times = Vec::new();
    for worker in workers {
        let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        times.extend(done?);
    }
    times.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "millions")]
    let requests = times.len() as f64;
    Ok(Load {
        requests,
        requests_per_second: requests / f64::from(run.seconds),
        p50_us: quantile(&times, 50)?,
        p99_us: quantile(&times, 99)?,
    })
}

/// The times of all messages on one connection.
fn echoes(target: SocketAddr, cpu: usize, until: Instant) -> anyhow::Result<Vec<f64>> {
    pin(cpu)?;
    let mut stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(ASK)?;
    let head = super::origins::head(&mut stream)?;
    ensure!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let mut times = Vec::new();
    let mut answer = FRAME;
    while Instant::now() < until {
        let start = Instant::now();
        stream.write_all(&FRAME)?;
        stream.read_exact(&mut answer).context("no echo")?;
        ensure!(answer == FRAME, "the echo differs");
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
