//! What a policy adds to a request: two gateways of one build and one route, alike but for the policy, loaded in turns.
//! Both are started anew for each round, so that where a process happens to lie in memory is not taken for a cost.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use harness::client::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::Args;
use super::super::prefixes::{self, Lengths};
use super::super::proxy::configs::Places;
use super::super::proxy::load::{Load, Wrk};
use super::super::proxy::origins::{self, BODY};
use super::super::proxy::subjects::{self, Running, Setting, Subject};
use super::super::proxy::{Cpus, Run};
use super::super::report::{Comparison, Report};
use super::redis;
use super::synchronised;
use super::tokens::{self, Token};
use crate::{lab, test};

/// With the policy, and without, as the report calls them.
pub(super) const WITH: &str = "gateway";
pub(super) const WITHOUT: &str = "gateway-without";
/// To verify a signature, and nothing else.
const SIGNATURE: &str = "signature";
const CPU: &str = "cpu_us_per_request";
const ADDED: &str = "added_cpu_us_per_request";
/// What was used with the policy over what was used without it, of one round.
const TIMES: &str = "times_without";

/// What is measured, by its name in `--case`.
pub(super) const CASES: [(&str, Case); 8] = [
    ("api_key", api_key),
    ("jwt_remembered", jwt_remembered),
    ("jwt_es256", jwt_es256),
    ("jwt_rs256", jwt_rs256),
    ("limits", limits),
    ("feedback", feedback),
    ("redis", redis::redis),
    ("synchronised", synchronised::synchronised),
];

type Case = fn(&Bed, &str, &mut Report) -> anyhow::Result<()>;

/// What the bench calls, and the Debian package that has it.
const TOOLS: [(&str, &str); 4] = [
    ("nginx", "nginx-light"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("taskset", "util-linux"),
];
const LOAD: Wrk = Wrk { path: "/", connections: 64, close: false };
const PATIENCE: Duration = Duration::from_secs(10);
/// Far above what one worker can do.
pub(super) const RATE: &str = "1000000/s";
const CONSUMER: &str = "acme";
/// Prefixes that a build by profile is trained with: fewer of a family than its tables hold by default.
const LISTED: usize = 20_000;
/// Tokens, where they are.
const REMEMBERED: u32 = 10_000;
/// What the service says when nobody is named to it.
const NOBODY: &str = "|";

/// Measures those that are chosen.
pub(super) fn run(root: &Path, args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let chosen: Vec<_> = CASES.into_iter().filter(|(name, _)| args.is_chosen(name)).collect();
    if chosen.is_empty() {
        return Ok(());
    }
    let bed = Bed::new(root, args)?;
    for (name, case) in chosen {
        case(&bed, name, report).with_context(|| format!("case {name}"))?;
    }
    Ok(())
}

/// How long a gateway is loaded in a round.
pub(super) fn seconds(args: &Args) -> u32 {
    if args.quick { 1 } else { 3 }
}

/// What is held against what.
pub(super) fn comparisons() -> [Comparison; 2] {
    [(CPU, WITH, WITHOUT), (ADDED, WITH, SIGNATURE)].map(|(figure, subject, peer)| Comparison {
        figure,
        subject,
        peer,
    })
}

/// What all cases are measured with.
pub(super) struct Bed {
    pub(super) binary: PathBuf,
    pub(super) run: Run,
    pub(super) rounds: u32,
    signatures: u32,
}

/// What one of the two gateways has beyond the other.
pub(super) struct Policy {
    /// Sections of the file.
    pub(super) sections: Value,
    /// Keys of the route.
    pub(super) route: Value,
    /// What clients show to both.
    pub(super) credential: Credential,
    /// Whom the service is told of, as [`origins`] says it: the consumer, `|`, the user.
    pub(super) told: String,
    /// Whether answers say how much is left.
    pub(super) is_limited: bool,
}

/// What a client shows.
pub(super) enum Credential {
    Nothing,
    /// A key that the gateway makes.
    Key,
    /// The text, and what verifies it, for `key.pem`.
    Token(String, String),
}

fn api_key(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    bed.all_rounds(case, &with_key()?, report)
}

fn jwt_remembered(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    bed.all_rounds(case, &with_token(&tokens::es256()?, REMEMBERED), report)
}

fn jwt_es256(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    verified(bed, case, &tokens::es256()?, report)
}

fn jwt_rs256(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    verified(bed, case, &tokens::rs256()?, report)
}

/// Each time anew, beside the signature alone.
fn verified(bed: &Bed, case: &str, token: &Token, report: &mut Report) -> anyhow::Result<()> {
    let policy = with_token(token, 0);
    for round in 1..=bed.rounds {
        bed.round((case, round), &policy, report)?;
        let ns = on_cpu(bed.run.cpus.subject, || token.signature_ns(bed.signatures))?;
        report.round(case, SIGNATURE, round, &[(ADDED, rounded(ns / 1000.0))]);
    }
    Ok(())
}

fn limits(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    bed.all_rounds(case, &with_limits()?, report)
}

fn feedback(bed: &Bed, case: &str, report: &mut Report) -> anyhow::Result<()> {
    bed.all_rounds(case, &with_feedback()?, report)
}

fn with_key() -> anyhow::Result<Policy> {
    Ok(Policy {
        sections: json!({
            "auth": {"partners": {"api_key": {"header": "X-API-Key"}}},
            "consumers": {CONSUMER: {"plan": "gold"}},
            "plans": {"gold": {"limits": [{"per": "consumer", "rate": RATE}]}},
        }),
        route: json!({"auth": "partners"}),
        credential: Credential::Key,
        told: format!("{CONSUMER}{NOBODY}"),
        is_limited: true,
    })
}

fn with_token(token: &Token, remember: u32) -> Policy {
    let jwt = json!({"pem": "key.pem", "audience": "api", "remember": remember});
    Policy {
        sections: json!({"auth": {"staff": {"jwt": jwt}}}),
        route: json!({"auth": "staff"}),
        credential: Credential::Token(token.text.clone(), token.pem.clone()),
        told: format!("{}|{}", tokens::CONSUMER, tokens::USER),
        is_limited: false,
    }
}

/// Three that are all asked, on a route that is open to everybody.
fn with_limits() -> anyhow::Result<Policy> {
    let limits = ["client_address", "route", "global"].map(|per| json!({"per": per, "rate": RATE}));
    Ok(Policy {
        sections: json!({}),
        route: json!({"limits": limits}),
        credential: Credential::Nothing,
        told: NOBODY.to_owned(),
        is_limited: true,
    })
}

/// The default rules, and nothing that they would notice.
fn with_feedback() -> anyhow::Result<Policy> {
    Ok(Policy {
        sections: json!({"feedback": {}}),
        route: json!({}),
        credential: Credential::Nothing,
        told: NOBODY.to_owned(),
        is_limited: false,
    })
}

/// Loads an instrumented build with each policy, and with lists, and answers what it noted.
pub(in crate::bench) fn train(binary: &Path, run: &Run) -> anyhow::Result<Vec<Vec<u8>>> {
    provide_tools()?;
    let bed = Bed { binary: binary.to_owned(), run: run.clone(), rounds: 1, signatures: 0 };
    let policies: [fn() -> anyhow::Result<Policy>; 6] = [
        with_key,
        || Ok(with_token(&tokens::es256()?, REMEMBERED)),
        || Ok(with_token(&tokens::es256()?, 0)),
        || Ok(with_token(&tokens::rs256()?, 0)),
        with_limits,
        with_feedback,
    ];
    let train = |policy: fn() -> anyhow::Result<Policy>| {
        let policy = policy()?;
        let pair = Pair::start(&bed, &policy)?;
        pair.check(&policy)?;
        pair.load(&pair.with, run)?;
        pair.import(&bed)?;
        pair.into_profile()
    };
    policies.into_iter().map(train).collect()
}

fn provide_tools() -> anyhow::Result<()> {
    let is_root = nix::unistd::geteuid().is_root();
    TOOLS.into_iter().try_for_each(|(program, package)| test::provide(program, package, is_root))
}

impl Bed {
    fn new(root: &Path, args: &Args) -> anyhow::Result<Self> {
        provide_tools()?;
        let cpus = Cpus::find()?;
        let binary = args.gateway(root)?;
        let signatures = if args.quick { 2000 } else { 20_000 };
        let run = Run { cpus, seconds: seconds(args), interrupted: lab::watch_signals()? };
        Ok(Self { binary, run, rounds: args.rounds, signatures })
    }

    fn all_rounds(&self, case: &str, policy: &Policy, report: &mut Report) -> anyhow::Result<()> {
        (1..=self.rounds).try_for_each(|round| self.round((case, round), policy, report))
    }

    /// One round: first the one, then the other.
    fn round(
        &self,
        (case, round): (&str, u32),
        policy: &Policy,
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let pair = Pair::start(self, policy)?;
        pair.check(policy)?;
        // Pools fill and caches warm up before, and nothing of that is measured.
        let short = Run { seconds: 1, ..self.run.clone() };
        for subject in pair.in_turn(round) {
            pair.load(subject, &short)?;
        }
        let mut spent = Vec::new();
        for subject in pair.in_turn(round) {
            let before = subject.cpu_ns()?;
            let load = pair.load(subject, &self.run)?;
            let cpu_us = (subject.cpu_ns()? - before) / 1000.0 / load.requests;
            spent.push((subject.name, cpu_us, load));
        }
        let of = |name: &str| spent.iter().find(|(known, ..)| *known == name).map(|spent| spent.1);
        let (with, without) = of(WITH).zip(of(WITHOUT)).context("one was not measured")?;
        for (name, cpu_us, load) in &spent {
            let mut figures = vec![(CPU, rounded(*cpu_us))];
            if *name == WITH {
                figures.push((ADDED, rounded(with - without)));
                figures.push((TIMES, rounded(with / without)));
            }
            figures.push(("requests_per_second", load.requests_per_second));
            figures.push(("latency_p50_us", load.p50_us));
            figures.push(("latency_p99_us", load.p99_us));
            report.round(case, name, round, &figures);
        }
        Ok(())
    }
}

/// Both, and what is behind them. They end in this order.
pub(super) struct Pair {
    pub(super) with: Subject,
    pub(super) without: Subject,
    _origin: Running,
    folder: TempDir,
    /// The header field of every request.
    field: Option<String>,
}

impl Pair {
    pub(super) fn start(bed: &Bed, policy: &Policy) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("gateway-bench-").tempdir()?;
        // As root, workers run as users who must still reach it.
        fs::set_permissions(&folder, Permissions::from_mode(0o755))?;
        if let Credential::Token(_, pem) = &policy.credential {
            fs::write(folder.path().join("key.pem"), pem)?;
        }
        let setting = Setting { folder: folder.path(), cpus: bed.run.cpus, binary: &bed.binary };
        let [behind] = subjects::free_addresses()?;
        let origin = setting.origin(behind)?;
        let start = |name: &'static str, policy: Option<&Policy>| {
            let [plain] = subjects::free_addresses()?;
            let config = config((folder.path(), name), [plain, behind], policy);
            setting.configured(name, Places { plain, tls: plain, h2c: plain }, &config)
        };
        let with = start(WITH, Some(policy))?;
        let without = start(WITHOUT, None)?;
        let field = match &policy.credential {
            Credential::Nothing => None,
            Credential::Key => Some(format!("X-API-Key: {}", key(bed, folder.path())?)),
            Credential::Token(text, _) => Some(format!("Authorization: Bearer {text}")),
        };
        Ok(Self { with, without, _origin: origin, folder, field })
    }

    /// Whether both do their work, and only the one what the policy says.
    pub(super) fn check(&self, policy: &Policy) -> anyhow::Result<()> {
        check(&self.with, self.field.as_deref(), (&policy.told, policy.is_limited))?;
        check(&self.without, self.field.as_deref(), (NOBODY, false))?;
        if self.field.is_some() {
            let answer = get(&self.with, "/", None)?;
            ensure!(answer.status == 401, "it answers who shows nothing: {answer:?}");
        }
        Ok(())
    }

    /// Each round begins with the other one.
    pub(super) fn in_turn(&self, round: u32) -> [&Subject; 2] {
        let Self { with, without, .. } = self;
        if round.is_multiple_of(2) { [with, without] } else { [without, with] }
    }

    /// A list, and a version of it in which one of a hundred differs.
    fn import(&self, bed: &Bed) -> anyhow::Result<()> {
        let prefixes = prefixes::random(Lengths::BothFamilies);
        let prefixes = prefixes::distinct(prefixes, LISTED + LISTED / 100);
        for version in prefixes.windows(LISTED).step_by(LISTED / 100) {
            let file = self.folder.path().join("list.txt");
            fs::write(&file, prefixes::lines(version))?;
            let file = file.to_str().context("a path is not text")?;
            cli(bed, self.folder.path(), &["deny", "import", file, "--list", "a", "--yes"])?;
        }
        Ok(())
    }

    /// Ends both and answers what the one with the policy noted of itself.
    fn into_profile(self) -> anyhow::Result<Vec<u8>> {
        let Self { with, without, _origin, folder, .. } = self;
        drop((with, without));
        subjects::profile(folder.path(), WITH)
    }

    /// A failed request is an error.
    fn load(&self, subject: &Subject, run: &Run) -> anyhow::Result<Load> {
        let load = LOAD.run_with(subject.plain(), run, self.field.as_deref());
        let load = load.with_context(|| format!("load on {}", subject.name))?;
        subjects::forget_logs(self.folder.path())?;
        Ok(load)
    }
}

/// What the service is `told` of who calls, and whether the answer says how much is left.
fn check(
    subject: &Subject,
    field: Option<&str>,
    (told, is_limited): (&str, bool),
) -> anyhow::Result<()> {
    let answer = get(subject, "/", field)?;
    let is_right = answer.status == 200
        && answer.text() == BODY
        && answer.header("x-ratelimit-remaining").is_some() == is_limited;
    ensure!(is_right, "{} answered {answer:?}", subject.name);
    let answer = get(subject, "/caller", field)?;
    let is_right = answer.status == 200 && answer.text() == told;
    ensure!(is_right, "behind {}: {answer:?}, not {told}", subject.name);
    Ok(())
}

/// One request over a connection of its own.
pub(super) fn get(subject: &Subject, path: &str, field: Option<&str>) -> anyhow::Result<Response> {
    let field = field.map(|field| format!("{field}\r\n")).unwrap_or_default();
    let mut client = Client::connect_here(None, subject.plain().address, PATIENCE)?;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n{field}\r\n").as_bytes())?;
    client.receive()
}

fn config(
    (folder, name): (&Path, &str),
    [listen, behind]: [SocketAddr; 2],
    policy: Option<&Policy>,
) -> Value {
    let mut config = json!({
        "listen": [{"address": listen}],
        "workers": 1,
        "state": {"dir": folder.join(format!("{name}.state"))},
        "admin": {"socket": folder.join(format!("{name}.sock"))},
        "access_log": {"path": folder.join(format!("{name}.access"))},
        "kernel": {"attach": "off"},
        "upstreams": {"origin": {"endpoints": [behind]}},
    });
    let mut route = json!({"match": {"path": "/{rest*}"}, "upstream": "origin"});
    if let Some(policy) = policy {
        merge(&mut config, &policy.sections);
        merge(&mut route, &policy.route);
    }
    merge(&mut config, &json!({"routes": [route]}));
    config
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (key, value) in more {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more.clone(),
    }
}

/// A key that the gateway with the policy has made.
fn key(bed: &Bed, folder: &Path) -> anyhow::Result<String> {
    let made = cli(bed, folder, &["keys", "create", "--consumer", CONSUMER, "--json"])?;
    let made: Value = serde_json::from_slice(&made)?;
    Ok(made.get("key").and_then(Value::as_str).context("no key was made")?.to_owned())
}

/// What a verb says of the gateway with the policy.
fn cli(bed: &Bed, folder: &Path, arguments: &[&str]) -> anyhow::Result<Vec<u8>> {
    let mut command = Command::new(&bed.binary);
    command.arg("--config").arg(folder.join(format!("{WITH}.yaml"))).args(arguments);
    // Also of a build that counts.
    let output = command.env("LLVM_PROFILE_FILE", folder.join("cli.profile")).output()?;
    let verb = arguments.first().copied().unwrap_or_default();
    ensure!(output.status.success(), "{verb}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Does it on a thread that stays on this CPU, and so does what it starts.
pub(super) fn on_cpu<T: Send>(
    cpu: usize,
    work: impl FnOnce() -> anyhow::Result<T> + Send,
) -> anyhow::Result<T> {
    let done = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            origins::pin(cpu)?;
            work()
        });
        thread.join()
    });
    let Ok(done) = done else { bail!("a thread of the bench panicked") };
    done
}

/// To a thousandth.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_differ_by_the_policy_alone() {
        let policy = Policy {
            sections: json!({"state": {"redis": null}, "plans": {}}),
            route: json!({"limits": []}),
            credential: Credential::Nothing,
            told: String::new(),
            is_limited: true,
        };
        let here = [SocketAddr::from(([127, 0, 0, 1], 1)); 2];
        let of = |policy| config((Path::new("/x"), "a"), here, policy);
        let (mut with, without) = (of(Some(&policy)), of(None));
        assert_eq!(with["state"]["dir"], "/x/a.state");
        assert_eq!(with["state"].as_object_mut().unwrap().remove("redis"), Some(Value::Null));
        assert_eq!(with.as_object_mut().unwrap().remove("plans"), Some(json!({})));
        let route = with["routes"][0].as_object_mut().unwrap();
        assert_eq!(route.remove("limits"), Some(json!([])));
        assert_eq!(with, without);
    }
}
