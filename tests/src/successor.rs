//! A gateway that takes another one's place, played by hand, so that a test can look at each step. Dropping it is
//! breaking off.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::ensure;

use crate::Result;
use crate::gateway::Gateway;
use crate::site::PATIENCE;

/// One that has asked and was not refused.
#[derive(Debug)]
pub struct Successor(UnixStream);

impl Successor {
    /// Asks the running gateway to hand over.
    pub fn of(gateway: &Gateway<'_>) -> Result<Self> {
        let mut stream = UnixStream::connect(gateway.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let ask =
            "POST /v1/handover HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
        stream.write_all(ask.as_bytes())?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        Ok(Self(stream))
    }

    /// Takes its sockets, which are of no use here, and has it give up store and kernel.
    pub fn release(&mut self) -> Result {
        let mut count = [0; 4];
        self.0.read_exact(&mut count)?;
        ensure!(u32::from_be_bytes(count) >= 2, "{count:?}");
        self.0.write_all(b"r")?;
        // The sockets' own bytes come before the word.
        let mut byte = [0];
        while byte != *b"d" {
            self.0.read_exact(&mut byte)?;
        }
        Ok(())
    }

    /// What it has accepted that nobody may accept again, as an older one asks, which answers no questions.
    pub fn accepted(&mut self) -> Result<Vec<u8>> {
        self.ready(*b"a")
    }

    /// What it has accepted that nobody may accept again.
    pub fn accepted_and_answers(&mut self) -> Result<Vec<u8>> {
        self.ready(*b"q")
    }

    fn ready(&mut self, word: [u8; 1]) -> Result<Vec<u8>> {
        self.0.write_all(&word)?;
        let mut length = [0; 8];
        self.0.read_exact(&mut length)?;
        let mut accepted = vec![0; usize::try_from(u64::from_be_bytes(length))?];
        self.0.read_exact(&mut accepted)?;
        Ok(accepted)
    }

    /// Says that it serves.
    pub fn serving(&mut self) -> Result {
        Ok(self.0.write_all(b"s")?)
    }

    /// Answers the next question; returns the authenticator that it is about.
    pub fn answer(&mut self, answer: u8) -> Result<String> {
        let mut length = [0; 2];
        self.0.read_exact(&mut length)?;
        let mut name = vec![0; u16::from_be_bytes(length).into()];
        self.0.read_exact(&mut name)?;
        // The nonce, and the second in which it was signed.
        self.0.read_exact(&mut [0; 24])?;
        self.0.write_all(&[answer])?;
        Ok(String::from_utf8(name)?)
    }
}
