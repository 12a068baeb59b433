//! The kernel's verdicts against a plain search through a list of rules, while the tables are filled, changed, emptied,
//! rewritten under a running program, and opened after somebody was killed.
//!
//! It needs root and no network.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail like tests"
)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use etherparse::PacketBuilder;
use gateway::base::time::BootTime;
use gateway::base::time::UtcMillis;
use gateway::kernel::apply::{Wanted, apply, apply_all};
use gateway::kernel::guard::Guard;
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway::rules::tables::mapping::Mapping;
use gateway::rules::tables::{RoomError, RuleTables};
use gateway::rules::{Rule, RuleSet, Until};
use gateway_common::bucket::Bucket;
use gateway_common::layout;
use gateway_common::rule::{Action, Origin};
use gateway_common::table::{BUCKET_WORDS_V6, CELLS, Head, Span, TagV6, WORDS_V6, freed, is_taken};
use gateway_common::verdict::Reason;
use ipnet::IpNet;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
/// 64 cells a family: hosts of one network are enough to make buckets overflow.
const SMALL: Capacity = Capacity { rules: 16, sources: 64 };
/// The most rules that 64 cells are meant for.
const FULL: u32 = 38;
/// Ended long ago.
const EXPIRED: Span = Span { from: 0, until: 1 };
/// Not begun for a long time.
const TO_COME: Span = Span { from: u32::MAX - 1, until: u32::MAX };
const SPANS: [Span; 4] = [Span::ALWAYS, Span::ALWAYS, EXPIRED, TO_COME];

/// The program with its tables, and what ought to be in them.
struct Model {
    trial: Trial,
    rules: Vec<(IpNet, Pair)>,
}

/// The first and the second rule of a prefix.
type Pair = [Option<(Action, Span)>; 2];

#[derive(Clone, Debug)]
enum Step {
    Put(IpNet, Action),
    Pair(IpNet, (Action, Span), (Action, Span)),
    Remove(prop::sample::Index),
    /// So many hosts of one network, from the first on.
    Fill(bool, u8),
    /// Every so many-th prefix.
    Thin(usize),
}

impl Model {
    fn new() -> Self {
        Self { trial: load(), rules: Vec::new() }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Put(prefix, action) => self.put(prefix, [Some((action, Span::ALWAYS)), None]),
            Step::Pair(prefix, first, second) => self.put(prefix, [Some(first), Some(second)]),
            Step::Remove(index) if !self.rules.is_empty() => {
                self.remove(self.rules[index.index(self.rules.len())].0);
            }
            Step::Remove(_) => {}
            Step::Fill(six, count) => {
                let hosts = (0..count).map(|host| net(network(six, host), 128));
                hosts.for_each(|host| self.put(host, [Some((Action::Deny, Span::ALWAYS)), None]));
            }
            Step::Thin(step) => {
                let gone: Vec<_> = self.rules.iter().step_by(step).map(|rule| rule.0).collect();
                gone.into_iter().for_each(|prefix| self.remove(prefix));
            }
        }
    }

    fn put(&mut self, prefix: IpNet, rules: Pair) {
        let put = |trial: &mut Trial| match rules {
            [Some(first), Some(second)] => trial.put_pair(prefix, first, second),
            [Some((action, _)), None] => trial.put(prefix, action, 0),
            _ => Ok(()),
        };
        if put(&mut self.trial).is_err() {
            assert!(put(&mut self.trial).is_err(), "what has no room has none the next time");
            return self.remove(prefix);
        }
        self.rules.retain(|rule| rule.0 != prefix);
        self.rules.push((prefix, rules));
    }

    fn remove(&mut self, prefix: IpNet) {
        self.trial.remove(prefix);
        self.rules.retain(|rule| rule.0 != prefix);
    }

    fn expected(&self, source: IpAddr) -> Option<(IpNet, bool, Action)> {
        let live = |(prefix, rules): &(IpNet, Pair)| {
            let second = rules.iter().position(|rule| rule.is_some_and(|r| r.1 == Span::ALWAYS))?;
            Some((*prefix, second == 1, rules[second]?.0))
        };
        let covering = self.rules.iter().filter(|rule| rule.0.contains(&source));
        covering.filter_map(live).max_by_key(|rule| rule.0.prefix_len())
    }

    fn check(&self, source: IpAddr) -> TestCaseResult {
        let expected = self.expected(source);
        let hits = |rule: (IpNet, bool, Action)| self.trial.hits(rule.0, rule.1).packets;
        let (reason, verdict) = match expected.map(|rule| rule.2) {
            None => (Reason::NoRule, XDP_PASS),
            Some(Action::Allow) => (Reason::Allow, XDP_PASS),
            Some(Action::Deny) => (Reason::Deny, XDP_DROP),
            Some(Action::Limit) => (Reason::WithinLimit, XDP_PASS),
            Some(Action::Reset) => (Reason::Reset, XDP_DROP),
        };
        let before = (counted(&self.trial, reason), expected.map(hits));
        prop_assert_eq!(run(self.trial.program().unwrap(), source, 1), verdict, "{}", source);
        let after = (counted(&self.trial, reason), expected.map(hits));
        let once = (before.0 + 1, before.1.map(|hits| hits + 1));
        prop_assert_eq!(after, once, "{}: {:?} by {:?}", source, reason, expected);
        Ok(())
    }

    /// Holds the edges of some prefixes, those that `seed` names, against the model.
    fn probe(&self, seed: usize) -> TestCaseResult {
        for edge in 0..4 {
            let prefix = match self.rules.len() {
                0 => net(network(edge < 2, 0), 128),
                count => self.rules[(seed + edge * 7) % count].0,
            };
            let source = match edge {
                0 => prefix.network(),
                1 => prefix.broadcast(),
                2 => beside(prefix.network(), -1),
                _ => beside(prefix.broadcast(), 1),
            };
            self.check(source)?;
        }
        Ok(())
    }
}

fn load() -> Trial {
    let on = Switches { buckets: true, events: Bucket::per_second(10, 10), ..Switches::RULES };
    let loaded = Trial::load(on, SMALL);
    loaded.unwrap_or_else(|error| panic!("loading an XDP program takes root: {error}"))
}

/// A host of the network that fills the tables.
fn network(six: bool, host: u8) -> IpAddr {
    match six {
        false => Ipv4Addr::new(198, 51, 100, host).into(),
        true => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

fn beside(address: IpAddr, by: i8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits().wrapping_add_signed(by.into())).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits().wrapping_add_signed(by.into())).into(),
    }
}

fn net(address: IpAddr, length: u8) -> IpNet {
    let full = IpNet::from(address).prefix_len();
    IpNet::new(address, length.min(full)).unwrap().trunc()
}

fn run(program: &Xdp, source: IpAddr, repeat: u32) -> u32 {
    let link = PacketBuilder::ethernet2([1; 6], [2; 6]);
    let mut frame = Vec::new();
    match source {
        IpAddr::V4(source) => link.ipv4(source.octets(), [10, 0, 0, 1], 64),
        IpAddr::V6(source) => link.ipv6(source.octets(), [9; 16], 64),
    }
    .udp(40_000, 53)
    .write(&mut frame, &[0; 10])
    .unwrap();
    let options = TestRunOptions { data_in: Some(&frame), repeat, ..TestRunOptions::new() };
    program.test_run(options).unwrap().return_value
}

fn counted(trial: &Trial, reason: Reason) -> u64 {
    let counters = trial.counters().unwrap();
    counters.iter().find(|count| count.reason == reason).unwrap().done.packets
}

fn memory(trial: &Trial, name: &str) -> Mapping {
    let data = trial.map(name).unwrap();
    let info = data.info().unwrap();
    Mapping::new(data.fd(), info.max_entries() as usize * info.value_size() as usize).unwrap()
}

fn filters(trial: &Trial) -> Vec<Mapping> {
    let names = [
        layout::NETWORKS_V4,
        layout::FILTER_V4,
        layout::SHORT_V4,
        layout::BLOCKS_V4,
        layout::FILTER_V6,
        layout::LENGTHS_V6,
    ];
    names.into_iter().map(|name| memory(trial, name)).collect()
}

fn are_zero(filters: &[Mapping]) -> bool {
    let mut words = filters.iter().flat_map(Mapping::words);
    words.all(|word| word.load(Ordering::Relaxed) == 0)
}

/// Rules of the operator without end.
fn rules(rules: impl IntoIterator<Item = (IpNet, Action)>) -> RuleSet {
    let mut set = RuleSet::default();
    for (prefix, action) in rules {
        set.insert(Rule {
            prefix,
            action,
            origin: Origin::Operator,
            profile: 0,
            profile_name: String::new(),
            reason: String::new(),
            created: UtcMillis(0),
            until: Until::NEVER,
        });
    }
    set
}

fn wanted<'a>(rules: &'a RuleSet, guard: &'a Guard) -> Wanted<'a> {
    Wanted { rules, guard, now: BootTime(0), complete: true }
}

fn hold(tables: &mut RuleTables, rules: &RuleSet) -> Result<(), RoomError> {
    apply_all(tables, wanted(rules, &Guard::default()))
}

fn prefixes() -> impl Strategy<Value = IpNet> {
    let v4 = prop_oneof![
        Just(u32::from_be_bytes([198, 51, 100, 7])),
        Just(u32::from_be_bytes([198, 51, 101, 255])),
        Just(u32::MAX),
        Just(0),
    ];
    let v6 = prop_oneof![
        Just(0x2001_0db8_0000_0000_0000_0000_0000_0007),
        Just(0x2001_0db8_0000_ffff_0000_0000_0000_0007),
        Just(0x2001_0db9_0000_0000_8000_0000_0000_0000),
        Just(u128::MAX),
    ];
    let lengths_v4 = prop_oneof![Just(15), 20u8..=25, Just(32), 0u8..=32];
    let lengths_v6 = prop_oneof![31u8..=33, 47u8..=49, 63u8..=65, Just(127), Just(128), 0u8..=128];
    prop_oneof![
        (v4, lengths_v4).prop_map(|(bits, length)| net(Ipv4Addr::from_bits(bits).into(), length)),
        (v6, lengths_v6).prop_map(|(bits, length)| net(Ipv6Addr::from_bits(bits).into(), length)),
    ]
}

fn steps() -> impl Strategy<Value = Step> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Limit]);
    let spanned = (action.clone(), prop::sample::select(SPANS.to_vec()));
    prop_oneof![
        6 => (prefixes(), action).prop_map(|(prefix, action)| Step::Put(prefix, action)),
        6 => (prefixes(), spanned.clone(), spanned)
            .prop_map(|(prefix, first, second)| Step::Pair(prefix, first, second)),
        4 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (any::<bool>(), 0u8..64).prop_map(|(six, count)| Step::Fill(six, count)),
        1 => (2usize..4).prop_map(Step::Thin),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 16,
        max_shrink_iters: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_kernel_decides_like_a_search_through_all_rules(
        steps in prop::collection::vec((steps(), any::<u16>()), 20..40),
        order: u64,
    ) {
        let mut model = Model::new();
        for (count, (step, seed)) in steps.into_iter().enumerate() {
            model.take(step);
            if count % 8 == 7 {
                model.probe(seed.into())?;
            }
        }
        let mut left: Vec<IpNet> = model.rules.iter().map(|rule| rule.0).collect();
        let filters = filters(&model.trial);
        prop_assert_eq!(left.is_empty(), are_zero(&filters));
        let last = left.clone();
        while !left.is_empty() {
            model.remove(left.swap_remove((order % left.len() as u64) as usize));
        }
        prop_assert!(are_zero(&filters), "a filter remembers a rule that is gone");
        model.probe(0)?;
        if let Some(prefix) = last.first() {
            model.check(prefix.network())?;
            model.put(*prefix, [Some((Action::Deny, Span::ALWAYS)), None]);
            model.check(prefix.network())?;
        }
    }
}

/// Runs the program on `source` while `rewrite` is called over and over on its tables.
fn run_while(trial: &mut Trial, source: IpAddr, mut rewrite: impl FnMut(&mut Trial, u32)) {
    let info = trial.program().unwrap().info().unwrap();
    let program =
        Xdp::from_program_info(info, layout::PROGRAM.into(), XdpAttachType::Interface).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..8 {
                run(&program, source, 500_000);
            }
            over.store(true, Ordering::Relaxed);
        });
        let mut round = 0;
        while !over.load(Ordering::Relaxed) {
            rewrite(trial, round);
            round += 1;
        }
        assert!(round > 10, "it was rewritten {round} times");
    });
}

#[test]
fn a_denied_source_never_passes_while_the_tables_are_rewritten() {
    for six in [false, true] {
        let mut trial = load();
        let source = network(six, 200);
        let rule = net(source, 128);
        trial.put(rule, Action::Deny, 0).unwrap();
        let end = |until| (Action::Deny, Span { from: 0, until });
        run_while(&mut trial, source, |trial, round| {
            // Buckets overflow and empty again, that of the source as well.
            for host in 0..64 {
                drop(trial.put(net(network(six, host), 128), Action::Allow, 0));
                trial.put(rule, Action::Deny, host % 2).unwrap();
            }
            for host in 0..64 {
                trial.remove(net(network(six, host), 128));
            }
            trial.put_pair(rule, end(u32::MAX - round % 5), end(u32::MAX - 1)).unwrap();
        });
        assert_eq!(counted(&trial, Reason::Deny), 4_000_000, "IPv6: {six}");
        assert_eq!(counted(&trial, Reason::NoRule) + counted(&trial, Reason::Allow), 0);
    }
}

#[test]
fn no_half_of_two_rules_ever_decides() {
    for six in [false, true] {
        let mut trial = load();
        let source = network(six, 200);
        let rule = net(source, 128);
        let (gone, deny) = ((Action::Allow, EXPIRED), (Action::Deny, Span::ALWAYS));
        trial.put_pair(rule, gone, deny).unwrap();
        run_while(&mut trial, source, |trial, _| {
            trial.put_pair(rule, deny, deny).unwrap();
            trial.put_pair(rule, gone, deny).unwrap();
        });
        assert_eq!(counted(&trial, Reason::Allow), 0, "an expired rule got the end of another");
        assert_eq!(counted(&trial, Reason::Deny), 4_000_000);
    }
}

#[test]
fn what_a_killed_process_left_is_made_whole_by_the_next() {
    let mut trial = load();
    let host = |network| IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, 7));
    let [whole, half] = [1, 2].map(|network| net(host(network), 64));
    trial.put(whole, Action::Deny, 0).unwrap();
    trial.put_pair(half, (Action::Allow, Span::ALWAYS), (Action::Deny, Span::ALWAYS)).unwrap();
    // Killed between the two rules of a prefix, with filters that were taken over from somewhere else.
    let table = memory(&trial, layout::TABLE_V6);
    let buckets = || table.words().chunks(BUCKET_WORDS_V6);
    let cells = || buckets().flat_map(|bucket| bucket.chunks(WORDS_V6).take(CELLS));
    let heads = cells().map(|cell| &cell[2]);
    let allow = Head::new(Action::Allow, Origin::Operator, 0, false);
    let first = heads.into_iter().find(|head| {
        let head = head.load(Ordering::Relaxed);
        is_taken(head) && Head::of(head) == allow && TagV6::length_of(head) == 64
    });
    let first = first.unwrap();
    first.store(freed(first.load(Ordering::Relaxed)), Ordering::Relaxed);
    let filters = filters(&trial);
    filters.iter().flat_map(Mapping::words).for_each(|word| word.store(0, Ordering::Relaxed));

    let mut tables = trial.reopen(SMALL.rules).unwrap();
    let verdict = |host| run(trial.program().unwrap(), host, 1);
    assert_eq!([host(1), host(2)].map(verdict), [XDP_DROP; 2]);
    hold(&mut tables.rules, &rules([(whole, Action::Deny)])).unwrap();
    assert_eq!([host(1), host(2)].map(verdict), [XDP_DROP, XDP_PASS]);
    hold(&mut tables.rules, &RuleSet::default()).unwrap();
    assert!(are_zero(&filters));
    assert!(!cells().any(|cell| is_taken(cell[2].load(Ordering::Relaxed))));
}

#[test]
fn a_full_table_takes_as_many_other_rules_instead() {
    let trial = load();
    let mut tables = trial.reopen(FULL).unwrap();
    let hosts = |from: u32| {
        let host = move |host| (net(network(false, (from + host) as u8), 128), Action::Deny);
        rules((0..FULL).map(host))
    };
    hold(&mut tables.rules, &hosts(0)).unwrap();
    hold(&mut tables.rules, &hosts(100)).unwrap();
    let verdict = |host| run(trial.program().unwrap(), network(false, host), 1);
    assert_eq!([0, 37, 100, 137].map(verdict), [XDP_PASS, XDP_PASS, XDP_DROP, XDP_DROP]);
    let (old, new) = (hosts(100), hosts(0));
    let changed: Vec<IpNet> = old.iter().chain(new.iter()).map(|rule| rule.prefix).collect();
    let guard = Guard::default();
    apply(&mut tables.rules, wanted(&new, &guard), changed.into_iter()).unwrap();
    assert_eq!([0, 37, 100, 137].map(verdict), [XDP_DROP, XDP_DROP, XDP_PASS, XDP_PASS]);
}
