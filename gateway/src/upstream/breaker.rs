//! The circuit breaker: who fails too often, in a row or among the requests of the last while, is left alone, and after
//! a time tried with few requests.
//!
//! ```text
//!             too many failures                   its time is over
//!   closed ─────────────────────▶ open ─────────────────────────────▶ half-open
//!     ▲                            ▲                                   │    │
//!     │                            └────────── a probe fails ──────────┘    │
//!     └───────────────────────── as many probes pass as are asked for ──────┘
//! ```
//!
//! All workers share one, as a word that is exchanged when the state changes and by probes. While it is closed and all
//! is well, a request only reads.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::base::error::Kind;
use crate::config::{Breaker as Terms, FailureSet};
use crate::upstream::failure_share::Seen;

/// How a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Requests go through.
    Closed,
    /// They do not.
    Open,
    /// A few do.
    HalfOpen,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// Its name in logs, status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A breaker.
#[derive(Debug)]
pub struct Breaker {
    epoch: Instant,
    word: AtomicU64,
    /// Failures in a row while it was closed.
    failures: AtomicU32,
    /// How often it opened. Its low bits tell one half-open state from the next.
    opened: AtomicU64,
    workers: usize,
    /// Of the closed state; nothing unless somebody wants to know.
    seen: OnceLock<Seen>,
}

/// What the word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Closed,
    Open { until_ms: u64 },
    HalfOpen { generation: u32, probes: u16, passed: u16 },
}

const TAG_SHIFT: u32 = 62;
const OPEN: u64 = 1;
const HALF_OPEN: u64 = 2;
const GENERATION_BITS: u32 = 24;

/// A request that was let through, until it is known what came of it.
#[derive(Debug)]
pub struct Pass<'b> {
    breaker: &'b Breaker,
    terms: &'b Terms,
    worker: usize,
    /// The half-open state that it probes.
    probe: Option<u32>,
    is_first: bool,
    is_reported: bool,
}

impl Breaker {
    /// A closed breaker, for so many workers.
    pub fn new(workers: usize, now: Instant) -> Self {
        let (word, failures, opened, seen) = Default::default();
        Self { epoch: now, word, failures, opened, workers, seen }
    }

    /// Lets a request of this worker through, or says when to come again.
    pub fn admit<'b>(
        &'b self,
        terms: &'b Terms,
        worker: usize,
        now: Instant,
    ) -> Result<Pass<'b>, Duration> {
        let pass = |probe, is_first| Pass {
            breaker: self,
            terms,
            worker,
            probe,
            is_first,
            is_reported: false,
        };
        loop {
            let found = self.word.load(Ordering::Acquire);
            let word = match Word::of(found) {
                Word::Closed => return Ok(pass(None, false)),
                Word::Open { until_ms } => {
                    let left_ms = until_ms.saturating_sub(self.ms(now));
                    if left_ms > 0 {
                        return Err(Duration::from_millis(left_ms));
                    }
                    let opened = self.opened.load(Ordering::Relaxed);
                    let generation = (opened & ((1 << GENERATION_BITS) - 1)) as u32;
                    Word::HalfOpen { generation, probes: 1, passed: 0 }
                }
                // With no probe under way one is let through whatever was asked for when the last ones passed.
                Word::HalfOpen { probes, passed, .. }
                    if probes > 0 && u32::from(probes) + u32::from(passed) >= terms.half_open =>
                {
                    return Err(Duration::from_secs(1));
                }
                Word::HalfOpen { generation, probes, passed } => {
                    Word::HalfOpen { generation, probes: probes.saturating_add(1), passed }
                }
            };
            if let Word::HalfOpen { generation, .. } = word
                && self.exchange(found, word)
            {
                let was_open = matches!(Word::of(found), Word::Open { .. });
                return Ok(pass(Some(generation), was_open));
            }
        }
    }

    /// How it stands. One whose time is over stays open until a request comes.
    pub fn state(&self) -> State {
        match Word::of(self.word.load(Ordering::Acquire)) {
            Word::Closed => State::Closed,
            Word::Open { .. } => State::Open,
            Word::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// How often it opened.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Requests of the window of these terms, and how many of them have failed; `None` if nobody counts them.
    pub fn recent(&self, terms: &Terms, now: Instant) -> Option<(u64, u64)> {
        let share = terms.share.as_ref()?;
        Some(self.seen.get().map_or((0, 0), |seen| seen.recent(share, self.ms(now))))
    }

    /// Takes note of a request of the closed state. Answers the state that begins by it.
    fn note(&self, pass: &Pass<'_>, has_failed: bool, now: Instant) -> Option<State> {
        let (terms, now_ms) = (pass.terms, self.ms(now));
        let seen = terms.share.as_ref().map(|share| {
            let seen = self.seen.get_or_init(|| Seen::new(self.workers));
            seen.add(share, pass.worker, has_failed, now_ms);
            (seen, share)
        });
        if !has_failed {
            // Read before it is written, so that the line stays shared while all is well.
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            return None;
        }
        let in_a_row = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let is_too_much = terms.failures.is_some_and(|failures| in_a_row >= failures)
            || seen.is_some_and(|(seen, share)| seen.is_too_much(share, now_ms));
        (is_too_much && self.open(Word::Closed.packed(), terms, now)).then_some(State::Open)
    }

    /// Takes note of a probe; `has_failed` is `None` if it says nothing. Answers the state that begins by it.
    fn note_probe(
        &self,
        terms: &Terms,
        probe: u32,
        has_failed: Option<bool>,
        now: Instant,
    ) -> Option<State> {
        loop {
            let found = self.word.load(Ordering::Acquire);
            let Word::HalfOpen { generation, probes, passed } = Word::of(found) else {
                return None;
            };
            if generation != probe {
                return None;
            }
            let passed = if has_failed == Some(false) { passed.saturating_add(1) } else { passed };
            let (done, begins) = if has_failed == Some(true) {
                (self.open(found, terms, now), Some(State::Open))
            } else if has_failed == Some(false) && u32::from(passed) >= terms.half_open {
                self.forget();
                (self.exchange(found, Word::Closed), Some(State::Closed))
            } else {
                let probes = probes.saturating_sub(1);
                (self.exchange(found, Word::HalfOpen { generation, probes, passed }), None)
            };
            if done {
                return begins;
            }
        }
    }

    fn open(&self, found: u64, terms: &Terms, now: Instant) -> bool {
        let open_ms = u64::try_from(terms.open_for.as_millis()).unwrap_or(u64::MAX);
        let until_ms = self.ms(now).saturating_add(open_ms);
        let done = self.exchange(found, Word::Open { until_ms });
        if done {
            self.opened.fetch_add(1, Ordering::Relaxed);
            self.forget();
        }
        done
    }

    fn forget(&self) {
        self.failures.store(0, Ordering::Relaxed);
        if let Some(seen) = self.seen.get() {
            seen.clear();
        }
    }

    fn exchange(&self, found: u64, word: Word) -> bool {
        let exchanged =
            self.word.compare_exchange(found, word.packed(), Ordering::AcqRel, Ordering::Acquire);
        exchanged.is_ok()
    }

    fn ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.epoch);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

impl Pass<'_> {
    /// The state that began when the request was let through.
    pub fn begins(&self) -> Option<State> {
        self.is_first.then_some(State::HalfOpen)
    }

    /// What came of the request: `None` if it says nothing about who was asked. Answers the state that begins by it.
    pub fn report(mut self, has_failed: Option<bool>, now: Instant) -> Option<State> {
        self.is_reported = true;
        match (self.probe, has_failed) {
            (Some(probe), _) => self.breaker.note_probe(self.terms, probe, has_failed, now),
            (None, Some(has_failed)) => self.breaker.note(&self, has_failed, now),
            (None, None) => None,
        }
    }
}

/// A request that was given up says nothing, and makes room for the next probe.
impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(probe) = self.probe.filter(|_| !self.is_reported) {
            self.breaker.note_probe(self.terms, probe, None, self.breaker.epoch);
        }
    }
}

impl Word {
    fn of(word: u64) -> Self {
        match word >> TAG_SHIFT {
            OPEN => Self::Open { until_ms: word & ((1 << TAG_SHIFT) - 1) },
            HALF_OPEN => Self::HalfOpen {
                generation: (word >> 32) as u32 & ((1 << GENERATION_BITS) - 1),
                probes: (word >> 16) as u16,
                passed: word as u16,
            },
            _ => Self::Closed,
        }
    }

    fn packed(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::Open { until_ms } => OPEN << TAG_SHIFT | until_ms.min((1 << TAG_SHIFT) - 1),
            Self::HalfOpen { generation, probes, passed } => {
                HALF_OPEN << TAG_SHIFT
                    | u64::from(generation) << 32
                    | u64::from(probes) << 16
                    | u64::from(passed)
            }
        }
    }
}

/// Whether what came of a request is a failure of whom it was sent to; `None` where it says nothing about that.
pub fn has_failed(on: &FailureSet, came: Result<u16, Kind>) -> Option<bool> {
    match came {
        Ok(status) => Some(on.statuses.contains(&status)),
        Err(Kind::UpstreamConnect | Kind::UpstreamTls) => on.connect_failure.then_some(true),
        Err(Kind::UpstreamReset | Kind::UpstreamProtocol) => on.reset.then_some(true),
        Err(Kind::UpstreamTimeout) => on.timeout.then_some(true),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{FailureShare, Share};

    fn terms(failures: u32, half_open: u32) -> Terms {
        let open_for = Duration::from_millis(100);
        Terms { failures: Some(failures), half_open, open_for, ..Terms::default() }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Send,
        /// Of the requests under way, the one with this number ends so.
        End(usize, Option<bool>),
        GiveUp(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let ended = prop_oneof![3 => Just(Some(true)), 3 => Just(Some(false)), 1 => Just(None)];
        let step = prop_oneof![
            2 => (0u64..80).prop_map(Step::Wait),
            6 => Just(Step::Send),
            6 => (any::<usize>(), ended).prop_map(|(number, how)| Step::End(number, how)),
            1 => any::<usize>().prop_map(Step::GiveUp),
        ];
        proptest::collection::vec(step, 0..300)
    }

    /// The same without atomics, by the words of the documentation.
    #[derive(Debug)]
    struct Model {
        state: State,
        failures: u32,
        until_ms: u64,
        /// Which half-open state this is.
        round: u32,
        probes: u32,
        passed: u32,
        /// When requests of the closed state have ended, and whether they failed.
        ended: Vec<(u64, bool)>,
    }

    impl Model {
        fn send(&mut self, terms: &Terms, now_ms: u64) -> Option<Option<u32>> {
            if self.state == State::Open && now_ms >= self.until_ms {
                (self.state, self.probes, self.passed) = (State::HalfOpen, 0, 0);
                self.round += 1;
            }
            match self.state {
                State::Closed => Some(None),
                State::HalfOpen if self.probes + self.passed < terms.half_open => {
                    self.probes += 1;
                    Some(Some(self.round))
                }
                State::Open | State::HalfOpen => None,
            }
        }

        fn end(&mut self, terms: &Terms, probe: Option<u32>, how: Option<bool>, now_ms: u64) {
            let is_current = self.state == State::HalfOpen && probe == Some(self.round);
            match how {
                _ if probe.is_some() && !is_current => {}
                Some(true) if probe.is_some() => self.open(now_ms),
                Some(false) if probe.is_some() => {
                    (self.probes, self.passed) = (self.probes - 1, self.passed + 1);
                    if self.passed == terms.half_open {
                        (self.state, self.failures) = (State::Closed, 0);
                        self.ended.clear();
                    }
                }
                None if probe.is_some() => self.probes -= 1,
                Some(true) => {
                    self.failures += 1;
                    self.ended.push((now_ms, true));
                    let in_a_row = terms.failures.is_some_and(|failures| self.failures >= failures);
                    if self.state == State::Closed && (in_a_row || self.is_too_much(terms, now_ms))
                    {
                        self.open(now_ms);
                    }
                }
                Some(false) => {
                    self.failures = 0;
                    self.ended.push((now_ms, false));
                }
                None => {}
            }
        }

        fn is_too_much(&self, terms: &Terms, now_ms: u64) -> bool {
            let Some(FailureShare { share, window, min_requests }) = terms.share else {
                return false;
            };
            let part = |ms: u64| ms / (window.as_millis() as u64 / 10);
            let recent = || self.ended.iter().filter(|(at, _)| part(*at) + 10 > part(now_ms));
            let (requests, failed) =
                (recent().count(), recent().filter(|(_, failed)| *failed).count());
            requests >= min_requests as usize
                && failed * 1_000_000 >= requests * share.parts_per_million() as usize
        }

        fn open(&mut self, now_ms: u64) {
            self.ended.clear();
            (self.state, self.failures, self.until_ms) = (State::Open, 0, now_ms + 100);
        }
    }

    proptest! {
        #[test]
        fn it_does_what_its_model_does(
            steps in steps(),
            failures in prop::option::of(1u32..4),
            half_open in 1u32..4,
            share in prop::option::of((1u32..=100, 1u32..8)),
        ) {
            let share = share.map(|(percent, min_requests)| FailureShare {
                share: Share::per_million(percent * 10_000),
                window: Duration::from_millis(500),
                min_requests,
            });
            let terms = Terms { failures, share, ..terms(1, half_open) };
            let start = Instant::from_std(crate::base::time::instant());
            let breaker = Breaker::new(1, start);
            let mut model = Model {
                state: State::Closed, failures: 0, until_ms: 0, round: 0, probes: 0, passed: 0,
                ended: Vec::new(),
            };
            let mut now_ms = 0;
            let mut under_way: Vec<(Pass<'_>, Option<u32>)> = Vec::new();
            for step in steps {
                let now = start + Duration::from_millis(now_ms);
                match step {
                    Step::Wait(ms) => now_ms += ms,
                    Step::Send => {
                        let expected = model.send(&terms, now_ms);
                        let passed = breaker.admit(&terms, 0, now);
                        prop_assert_eq!(passed.is_ok(), expected.is_some());
                        under_way.extend(passed.ok().zip(expected));
                    }
                    Step::End(_, _) | Step::GiveUp(_) if under_way.is_empty() => {}
                    Step::End(number, how) => {
                        let (pass, probe) = under_way.swap_remove(number % under_way.len());
                        let before = model.state;
                        model.end(&terms, probe, how, now_ms);
                        let begins = (model.state != before).then_some(model.state);
                        prop_assert_eq!(pass.report(how, now), begins);
                    }
                    Step::GiveUp(number) => {
                        let (pass, probe) = under_way.swap_remove(number % under_way.len());
                        drop(pass);
                        if probe.is_some() {
                            model.end(&terms, probe, None, now_ms);
                        }
                    }
                }
                prop_assert_eq!(breaker.state(), model.state);
            }
        }
    }

    #[test]
    fn words_are_what_they_were() {
        for word in [
            Word::Closed,
            Word::Open { until_ms: 0 },
            Word::Open { until_ms: (1 << TAG_SHIFT) - 1 },
            Word::HalfOpen { generation: (1 << GENERATION_BITS) - 1, probes: 1, passed: u16::MAX },
        ] {
            assert_eq!(Word::of(word.packed()), word);
        }
    }

    #[test]
    fn many_threads_probe_no_more_than_is_asked_for() {
        let terms = terms(1, 3);
        let start = Instant::from_std(crate::base::time::instant());
        let breaker = Breaker::new(1, start);
        let opens = breaker.admit(&terms, 0, start).unwrap().report(Some(true), start);
        assert_eq!(opens, Some(State::Open));
        let later = start + terms.open_for;
        let probes: usize = std::thread::scope(|scope| {
            let admit = || (0..1000).filter_map(|_| breaker.admit(&terms, 0, later).ok()).collect();
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(move || {
                        let passes: Vec<Pass<'_>> = admit();
                        let count = passes.len();
                        // Kept until all threads have asked.
                        std::mem::forget(passes);
                        count
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(probes, 3);
    }
}
