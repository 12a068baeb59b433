//! Who decides about nonces once another gateway takes this one's place: it is asked about each, over the connection by
//! which it took over. So what is still in flight here is accepted by one of the two, and refused for nothing.
//!
//! A question is the length of an authenticator's name in two bytes, the name, the nonce, and the second in which it
//! was signed in eight; an answer is one byte.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::nonces::{Nonce, Refused};

/// Questions that wait at once.
const WAITING_MAX: usize = 4096;
/// For an answer: a successor that was told what it must know has its workers a moment later.
const ANSWER_MAX: Duration = Duration::from_secs(5);

const ACCEPTED: u8 = b'y';
const USED: u8 = b'u';
const FORGOTTEN: u8 = b'f';
const FULL: u8 = b'm';
const UNKNOWN: u8 = b'?';

/// What workers ask a successor.
#[derive(Debug)]
pub struct Questions(mpsc::Receiver<Question>);

#[derive(Debug)]
struct Question {
    bytes: Vec<u8>,
    answer: oneshot::Sender<u8>,
}

/// A question as it arrives at the successor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The name of the authenticator.
    pub(in crate::auth) name: String,
    pub(in crate::auth) nonce: Nonce,
    pub(in crate::auth) signed: u64,
}

/// The successor, to those who ask it.
#[derive(Clone, Debug)]
pub(in crate::auth) struct Successor(mpsc::Sender<Question>);

impl Successor {
    /// One that is asked as soon as its questions are [put to it](Questions::put).
    pub(in crate::auth) fn new() -> (Self, Questions) {
        let (sender, questions) = mpsc::channel(WAITING_MAX);
        (Self(sender), Questions(questions))
    }

    /// Whether it accepts what was asked, of which it then accepts no more.
    pub(in crate::auth) async fn accepts(&self, asked: &Asked) -> Result<(), Refused> {
        let (answer, said) = oneshot::channel();
        let question = Question { bytes: asked.bytes(), answer };
        self.0.try_send(question).map_err(|_| Refused::Handed)?;
        match timeout(ANSWER_MAX, said).await {
            Ok(Ok(ACCEPTED)) => Ok(()),
            Ok(Ok(USED)) => Err(Refused::Used),
            Ok(Ok(FORGOTTEN)) => Err(Refused::Forgotten),
            Ok(Ok(FULL)) => Err(Refused::Full),
            // Nobody knows what it did.
            _ => Err(Refused::Handed),
        }
    }
}

impl Questions {
    /// Asks the successor at the other end one after the other, until it breaks off or nobody can ask any more.
    pub async fn put(mut self, mut successor: UnixStream) -> io::Result<()> {
        while let Some(Question { bytes, answer }) = self.0.recv().await {
            // Whoever waited too long was answered already.
            if answer.is_closed() {
                continue;
            }
            successor.write_all(&bytes).await?;
            answer.send(successor.read_u8().await?).ok();
        }
        Ok(())
    }
}

impl Asked {
    /// The next question of a predecessor. The error may be no more than its end.
    pub async fn read(predecessor: &mut UnixStream) -> io::Result<Self> {
        let mut name = vec![0; predecessor.read_u16().await?.into()];
        predecessor.read_exact(&mut name).await?;
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        let mut nonce = [0; 16];
        predecessor.read_exact(&mut nonce).await?;
        Ok(Self { name, nonce: Nonce(nonce), signed: predecessor.read_u64().await? })
    }

    /// Answers it.
    pub(in crate::auth) fn answer(decided: Result<(), Refused>) -> u8 {
        match decided {
            Ok(()) => ACCEPTED,
            Err(Refused::Used) => USED,
            Err(Refused::Forgotten) => FORGOTTEN,
            Err(Refused::Full) => FULL,
            Err(Refused::Handed | Refused::Away) => UNKNOWN,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.name.len()).unwrap_or(u16::MAX);
        let name = self.name.as_bytes().get(..length.into()).unwrap_or_default();
        [&length.to_be_bytes()[..], name, &self.nonce.0, &self.signed.to_be_bytes()].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(name: &str, number: u64) -> Asked {
        Asked { name: name.to_owned(), nonce: Nonce::of("key", name), signed: number }
    }

    #[tokio::test]
    async fn each_question_gets_its_own_answer() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (successor, questions) = Successor::new();
        let putting = tokio::spawn(questions.put(here));
        for (number, (answer, meant)) in [
            (ACCEPTED, Ok(())),
            (USED, Err(Refused::Used)),
            (FORGOTTEN, Err(Refused::Forgotten)),
            (FULL, Err(Refused::Full)),
            (UNKNOWN, Err(Refused::Handed)),
            (b'x', Err(Refused::Handed)),
        ]
        .into_iter()
        .enumerate()
        {
            let question = asked("partners", number as u64);
            let answering = async {
                assert_eq!(Asked::read(&mut there).await.unwrap(), question);
                there.write_u8(answer).await.unwrap();
            };
            assert_eq!(tokio::join!(successor.accepts(&question), answering).0, meant);
            if answer != b'x' {
                assert_eq!(Asked::answer(meant), answer);
            }
        }
        drop(there);
        assert_eq!(successor.accepts(&asked("", 0)).await, Err(Refused::Handed), "it has ended");
        assert!(putting.await.unwrap().is_err());
        assert_eq!(successor.accepts(&asked("", 0)).await, Err(Refused::Handed));
    }

    #[tokio::test]
    async fn who_waits_too_long_is_answered_and_asked_about_no_more() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (successor, questions) = Successor::new();
        let (first, second) = (asked("first", 1), asked("second", 2));
        tokio::time::pause();
        assert_eq!(successor.accepts(&first).await, Err(Refused::Handed));
        tokio::time::resume();
        tokio::spawn(questions.put(here));
        let answering = async {
            assert_eq!(Asked::read(&mut there).await.unwrap(), second);
            there.write_u8(ACCEPTED).await.unwrap();
        };
        assert_eq!(tokio::join!(successor.accepts(&second), answering).0, Ok(()));
    }
}
