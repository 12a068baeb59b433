//! Redis servers of a test: real ones, on free ports of loopback, with a folder of their own each. They can be paused,
//! killed, emptied and watched over by Sentinels, and are gone with their guards.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::authority::Authority;
use crate::namespace::unique;
use crate::{Result, wait_for};

const PATIENCE: Duration = Duration::from_secs(20);

/// A server.
#[derive(Debug)]
pub struct Redis {
    /// Where it listens.
    pub address: SocketAddr,
    folder: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Redis {
    /// Starts one that keeps nothing on disk.
    pub fn start() -> Result<Self> {
        Self::with(&[])
    }

    /// Starts one with more arguments.
    pub fn with(arguments: &[&str]) -> Result<Self> {
        let port = free_ports(1)?.remove(0);
        Self::at(port, "redis-server", arguments)
    }

    /// Starts one that speaks TLS alone, with a certificate for 127.0.0.1 and redis.test.
    pub fn with_tls(authority: &Authority) -> Result<Self> {
        let pair = authority.issue("redis", &["redis.test", "127.0.0.1"])?;
        let port = free_ports(1)?.remove(0);
        let (cert, key) = (pair.cert.display().to_string(), pair.key.display().to_string());
        let ca = authority.ca().display().to_string();
        let port_text = port.to_string();
        let arguments = [
            "--port",
            "0",
            "--tls-port",
            &port_text,
            "--tls-cert-file",
            &cert,
            "--tls-key-file",
            &key,
            "--tls-ca-cert-file",
            &ca,
            "--tls-auth-clients",
            "no",
        ];
        let mut server = Self::prepare(port, &arguments)?;
        server.launch("redis-server", false)?;
        // What listens has begun to serve.
        wait_for("a Redis server with TLS", PATIENCE, || Ok(server.dial().ok().map(drop)))?;
        Ok(server)
    }

    fn at(port: u16, program: &str, arguments: &[&str]) -> Result<Self> {
        let port_text = port.to_string();
        let all: Vec<&str> =
            ["--port", &port_text].into_iter().chain(arguments.iter().copied()).collect();
        let mut server = Self::prepare(port, &all)?;
        server.launch(program, true)?;
        Ok(server)
    }

    fn prepare(port: u16, arguments: &[&str]) -> Result<Self> {
        let folder = std::env::temp_dir().join(unique());
        fs::create_dir(&folder).with_context(|| format!("cannot make {folder:?}"))?;
        let own = folder.display().to_string();
        let fixed = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", &own];
        let arguments = fixed.iter().chain(arguments).map(|text| (*text).to_owned()).collect();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Ok(Self { address, folder, arguments, process: None })
    }

    fn launch(&mut self, program: &str, wait: bool) -> Result {
        let log = fs::File::create(self.folder.join("log"))?;
        let child = Command::new(program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {program}: install redis-server"))?;
        self.process = Some(child);
        if !wait {
            return Ok(());
        }
        let answers = wait_for("a Redis server", PATIENCE, || {
            // Also one that wants a password or loads answers.
            Ok(self.ask(&["PING"]).ok().map(drop))
        });
        answers.with_context(|| fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// Sends one command over a connection of its own; the answer as text, the parts of a list in lines. An error that
    /// it answers with is its text.
    pub fn ask(&self, command: &[&str]) -> Result<String> {
        let mut connection = BufReader::new(self.dial()?);
        let mut text = format!("*{}\r\n", command.len());
        for part in command {
            text.push_str(&format!("${}\r\n{part}\r\n", part.len()));
        }
        connection.get_mut().write_all(text.as_bytes())?;
        reply(&mut connection)
    }

    fn dial(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(stream)
    }

    /// Stops it from running, with all connections open, until [`Self::resume`].
    pub fn pause(&self) -> Result {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result {
        self.signal(Signal::SIGCONT)
    }

    /// Waits until it is a replica that has all that `master` has.
    pub fn follows(&self, master: &Self) -> Result {
        wait_for("a replica that has everything", PATIENCE, || {
            let (own, other) = (self.ask(&["ROLE"])?, master.ask(&["ROLE"])?);
            let own: Vec<&str> = own.lines().collect();
            let port = master.address.port().to_string();
            let all = other.lines().nth(1);
            let is_same = matches!(own[..], ["slave", _, at, "connected", had] if at == port && Some(had) == all);
            Ok(is_same.then_some(()))
        })
    }

    fn signal(&self, signal: Signal) -> Result {
        let process = self.process.as_ref().context("it does not run")?;
        Ok(kill(Pid::from_raw(i32::try_from(process.id())?), signal)?)
    }

    /// Ends it without a word.
    pub fn kill(&mut self) -> Result {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// Starts it again, at the same address and empty.
    pub fn start_again(&mut self) -> Result {
        ensure!(self.process.is_none(), "it runs");
        self.launch("redis-server", true)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().ok();
            process.wait().ok();
        }
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// A master, a replica of it and three Sentinels that watch them as `main`.
#[derive(Debug)]
pub struct Watched {
    /// The first master.
    pub master: Redis,
    /// Its replica.
    pub replica: Redis,
    /// Who chooses between them.
    pub sentinels: Vec<Redis>,
}

impl Watched {
    /// Starts all of them; a master that does not answer for half a second is replaced.
    pub fn start() -> Result<Self> {
        let master = Redis::start()?;
        let of = format!("127.0.0.1 {}", master.address.port());
        let replica = Redis::with(&["--replicaof", &of])?;
        let mut sentinels = Vec::new();
        for port in free_ports(3)? {
            let file = std::env::temp_dir().join(unique());
            let config = format!(
                "port {port}\nbind 127.0.0.1\nsentinel monitor main {of} 2\n\
                 sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
            );
            fs::write(&file, config)?;
            let mut sentinel = Redis::prepare(port, &[])?;
            // A Sentinel writes what it learns into its file.
            let own = sentinel.folder.join("sentinel.conf");
            fs::copy(&file, &own)?;
            fs::remove_file(&file)?;
            sentinel.arguments = vec![own.display().to_string(), "--sentinel".to_owned()];
            sentinel.launch("redis-server", true)?;
            sentinels.push(sentinel);
        }
        let watched = Self { master, replica, sentinels };
        wait_for("Sentinels that know each other and the replica", PATIENCE, || {
            let mut known = true;
            for sentinel in &watched.sentinels {
                let said = sentinel.ask(&["INFO", "sentinel"])?;
                known &= said.contains("slaves=1,sentinels=3");
            }
            let synced = watched.replica.ask(&["ROLE"])?.contains("connected");
            Ok((known && synced).then_some(()))
        })?;
        Ok(watched)
    }

    /// Has the Sentinels replace a master that does not answer for so long (unit: milliseconds).
    pub fn replaces_after(&self, ms: u32) -> Result {
        let ms = ms.to_string();
        for sentinel in &self.sentinels {
            let said =
                sentinel.ask(&["SENTINEL", "SET", "main", "down-after-milliseconds", &ms])?;
            ensure!(said == "OK", "{said}");
        }
        Ok(())
    }
}

/// Three masters with a third of the slots each.
#[derive(Debug)]
pub struct Cluster {
    /// The masters; the first has the lowest slots.
    pub nodes: Vec<Redis>,
}

impl Cluster {
    /// Starts them and waits until each knows who has what.
    pub fn start() -> Result<Self> {
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(cluster_node()?);
        }
        let cluster = Self { nodes };
        let shares = [(0, 5460), (5461, 10_922), (10_923, 16_383)];
        for (node, (first, last)) in cluster.nodes.iter().zip(shares) {
            let (first, last) = (first.to_string(), last.to_string());
            node.ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
        }
        cluster.introduce()?;
        wait_for("a cluster", PATIENCE, || {
            let mut well = true;
            for node in &cluster.nodes {
                well &= node.ask(&["CLUSTER", "INFO"])?.contains("cluster_state:ok");
                well &= node.ask(&["CLUSTER", "SLOTS"])?.lines().count() >= 9;
            }
            Ok(well.then_some(()))
        })?;
        Ok(cluster)
    }

    fn introduce(&self) -> Result {
        let ports: Vec<String> = self.nodes.iter().map(|n| n.address.port().to_string()).collect();
        for (number, node) in self.nodes.iter().enumerate() {
            let epoch = (number + 1).to_string();
            node.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
        }
        let first = self.nodes.first().context("no nodes")?;
        for port in ports.iter().skip(1) {
            first.ask(&["CLUSTER", "MEET", "127.0.0.1", port])?;
        }
        Ok(())
    }

    /// Adds a replica of one of the masters, which takes its place only once it is told that it may: see
    /// [`Self::may_replace`]. Waits until all know it and it has everything.
    pub fn replica_of(&self, master: usize) -> Result<Redis> {
        let master = self.nodes.get(master).context("no such node")?;
        let id = master.ask(&["CLUSTER", "MYID"])?;
        let replica = cluster_node()?;
        replica.ask(&["CONFIG", "SET", "cluster-replica-no-failover", "yes"])?;
        replica.ask(&["CONFIG", "SET", "cluster-replica-validity-factor", "0"])?;
        let (ip, port) = (master.address.ip().to_string(), master.address.port().to_string());
        replica.ask(&["CLUSTER", "MEET", &ip, &port])?;
        // It refuses as long as it has not heard of the master.
        wait_for("a replica", PATIENCE, || {
            Ok((replica.ask(&["CLUSTER", "REPLICATE", &id])? == "OK").then_some(()))
        })?;
        let port = replica.address.port().to_string();
        wait_for("a replica that all know", PATIENCE, || {
            let mut known = true;
            for node in &self.nodes {
                known &= node.ask(&["CLUSTER", "SLOTS"])?.lines().any(|line| line == port);
            }
            Ok(known.then_some(()))
        })?;
        replica.follows(master)?;
        Ok(replica)
    }

    /// Lets a replica take the place of its master as soon as that one does not answer.
    pub fn may_replace(replica: &Redis) -> Result {
        let said = replica.ask(&["CONFIG", "SET", "cluster-replica-no-failover", "no"])?;
        ensure!(said == "OK", "{said}");
        Ok(())
    }

    /// Gives `slot`, which must be empty, from one node to another, as everybody learns.
    pub fn give(&self, slot: u16, to: usize) -> Result {
        let receiver = self.nodes.get(to).context("no such node")?;
        let id = receiver.ask(&["CLUSTER", "MYID"])?;
        let slot = slot.to_string();
        // The receiver first, so that it is never nobody's.
        for node in self.nodes.iter().skip(to).chain(self.nodes.iter().take(to)) {
            let said = node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &id])?;
            ensure!(said == "OK", "{said}");
        }
        Ok(())
    }
}

/// The bus of a node is at its port and 10000.
fn cluster_node() -> Result<Redis> {
    const ATTEMPTS: usize = 20;
    for _ in 0..ATTEMPTS {
        let port = free_ports(1)?.remove(0);
        let bus = port.checked_add(10_000);
        let is_free = bus.is_some_and(|bus| TcpListener::bind(("127.0.0.1", bus)).is_ok());
        if !is_free {
            continue;
        }
        let arguments = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
        return Redis::at(port, "redis-server", &arguments);
    }
    bail!("no port with a free one 10000 above it")
}

/// Ports that nobody listens on, all different.
fn free_ports(count: usize) -> Result<Vec<u16>> {
    let mut held = Vec::new();
    for _ in 0..count {
        held.push(TcpListener::bind("127.0.0.1:0")?);
    }
    held.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
}

fn reply(connection: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    connection.read_line(&mut line)?;
    let Some((kind, rest)) = line.trim_end().split_at_checked(1) else {
        bail!("the server closed the connection");
    };
    match kind {
        "+" | "-" | ":" => Ok(rest.to_owned()),
        "$" => {
            let Ok(length) = rest.parse::<usize>() else { return Ok(String::new()) };
            let mut bytes = vec![0; length + 2];
            connection.read_exact(&mut bytes)?;
            bytes.truncate(length);
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" => {
            let mut parts = Vec::new();
            for _ in 0..rest.parse::<i64>()? {
                parts.push(reply(connection)?);
            }
            Ok(parts.join("\n"))
        }
        other => bail!("`{other}` is no answer"),
    }
}
