//! Takes requests to `control` and answers back, one channel for all who ask. Whoever follows the events waits here,
//! and only so many do, so that nobody else is kept from asking.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::api::{Answer, Command, Refusal, Request};
use super::monitor::Events;
use super::query;

/// Who may follow the events at once.
const FOLLOWERS_MAX: usize = 8;
/// Time that a follower waits for an event before it is told that there was none.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// Events come in crowds: a follower is told of all that come within this time at once.
const CROWD: Duration = Duration::from_millis(100);

/// A way to `control`.
#[derive(Clone)]
pub struct Asker {
    commands: mpsc::Sender<Command>,
    news: watch::Receiver<u64>,
    followers: Arc<Semaphore>,
    successors: mpsc::Sender<UnixStream>,
}

impl Asker {
    /// Sends to `commands`, and those who are to take this gateway's place to `successors`; `news` tells when there is
    /// another event.
    pub fn new(
        commands: mpsc::Sender<Command>,
        successors: mpsc::Sender<UnixStream>,
        news: watch::Receiver<u64>,
    ) -> Self {
        let followers = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Self { commands, news, followers, successors }
    }

    /// Takes a successor to `control`, unless there is one already: then its connection closes.
    pub fn succeed(&self, stream: UnixStream) {
        drop(self.successors.try_send(stream));
    }

    /// The answer to a request of this user.
    pub async fn ask(&self, request: Request, uid: u32) -> Result<Answer, Refusal> {
        match request {
            Request::Events(events) if events.wait => self.follow(events, uid).await,
            request => self.send(request, uid).await,
        }
    }

    async fn follow(&self, mut query: query::Events, uid: u32) -> Result<Answer, Refusal> {
        let Ok(_place) = self.followers.try_acquire() else {
            return Err(Refusal::failed(format!(
                "{FOLLOWERS_MAX} others follow the events already: end one of them"
            )));
        };
        let mut news = self.news.clone();
        let found = async {
            loop {
                news.mark_unchanged();
                let answer = self.send(Request::Events(query), uid).await?;
                match &answer {
                    Answer::Events(Events { events, last, missed: 0 }) if events.is_empty() => {
                        query.after = *last;
                    }
                    _ => return Ok(answer),
                }
                news.changed().await.map_err(|_| ending())?;
                sleep(CROWD).await;
            }
        };
        match timeout(WAIT_MAX, found).await {
            Ok(answer) => answer,
            Err(_) => self.send(Request::Events(query), uid).await,
        }
    }

    async fn send(&self, request: Request, uid: u32) -> Result<Answer, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { request, uid, reply }).await.map_err(|_| ending())?;
        answer.await.map_err(|_| ending())?
    }
}

fn ending() -> Refusal {
    Refusal::failed("the gateway is ending")
}
