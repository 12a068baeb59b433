//! Which server has which key: the one there is, the one that Sentinels name, or those of a Cluster by slot. What is
//! found is bounded, and every address is told before anything is sent to it.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::timeout;

use super::stream::{Connector, Login, Node};
use crate::config::{Redis, RedisAddress, RedisMode};

/// Slots of a Cluster (its specification).
pub(super) const SLOTS: u16 = 16_384;
/// Servers of a Cluster that are talked to: its specification has no more than 1000.
const NODES_MAX: usize = 1000;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 8;

/// Which server has which key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Topology {
    nodes: Vec<Node>,
    /// Numbers of `nodes` by slot; empty where one server has all keys.
    slots: Vec<u16>,
}

impl Topology {
    /// One server has all keys.
    pub(super) fn one(node: Node) -> Self {
        Self { nodes: vec![node], slots: Vec::new() }
    }

    /// The server that has the keys of `slot`.
    pub(super) fn of(&self, slot: u16) -> Option<&Node> {
        match self.slots.get(usize::from(slot)) {
            Some(number) => self.nodes.get(usize::from(*number)),
            None => self.nodes.first(),
        }
    }

    /// All servers that have keys.
    pub(super) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The one at `address`.
    pub(super) fn at(&self, address: SocketAddr) -> Option<&Node> {
        self.nodes.iter().find(|node| node.address == address)
    }
}

/// The slot of a key: the part of it in the first pair of braces decides, if there is one (Cluster specification).
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = rest.iter().position(|byte| *byte == b'}')?;
        rest.get(..close).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, as the specification of the Cluster wants it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| {
            let shifted = crc << 1;
            if crc & 0x8000 == 0 { shifted } else { shifted ^ 0x1021 }
        })
    })
}

/// Looks for the servers.
pub(super) struct Finder<'a> {
    pub(super) config: &'a Redis,
    pub(super) connector: &'a Connector,
    /// Told of every address before it is connected to.
    pub(super) tell: &'a (dyn Fn(IpAddr) + Sync),
}

impl Finder<'_> {
    /// What can be known without asking anybody.
    pub(super) fn known(config: &Redis) -> Topology {
        match (&config.mode, config.addresses.as_slice()) {
            (RedisMode::Standalone, [RedisAddress::Address(address)]) => {
                Topology::one(Node::at(*address))
            }
            _ => Topology::default(),
        }
    }

    /// Finds them. `first` is who answered last time, and is asked first.
    pub(super) async fn find(
        &self,
        before: &Topology,
        first: &mut usize,
    ) -> Result<Topology, String> {
        match &self.config.mode {
            RedisMode::Standalone => {
                let mut found = self.seed(0).await?;
                let stays = found.iter().position(|node| before.at(node.address).is_some());
                Ok(Topology::one(found.swap_remove(stays.unwrap_or_default())))
            }
            RedisMode::Sentinel { master, .. } => {
                let mut why = String::new();
                let count = self.config.addresses.len();
                for number in (0..count).map(|step| (*first + step) % count.max(1)) {
                    match self.ask_sentinel(number, master).await {
                        Ok(node) => {
                            *first = number;
                            return Ok(Topology::one(node));
                        }
                        Err(error) => why = error,
                    }
                }
                Err(format!("no Sentinel names the master `{master}`: {why}"))
            }
            RedisMode::Cluster => self.ask_cluster(before).await,
        }
    }

    async fn ask_sentinel(&self, number: usize, master: &str) -> Result<Node, String> {
        let mut question = Cmd::new();
        question.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let mut why = "it has no address".to_owned();
        for sentinel in self.seed(number).await? {
            match self.ask(&sentinel, &self.connector.sentinel, &question).await {
                Ok(Value::Array(parts)) => {
                    let (host, port) = place(&parts).ok_or("its answer is no address")?;
                    let found = self.resolve(&host, port).await?;
                    return found.into_iter().next().ok_or(why);
                }
                Ok(_) => why = format!("{} does not know it", sentinel.address),
                Err(error) => why = format!("{}: {error}", sentinel.address),
            }
        }
        Err(why)
    }

    async fn ask_cluster(&self, before: &Topology) -> Result<Topology, String> {
        let mut question = Cmd::new();
        question.arg("CLUSTER").arg("SLOTS");
        let mut why = "there is nobody to ask".to_owned();
        for node in before.nodes.iter().take(ADDRESSES_MAX) {
            match self.ask(node, &self.connector.data, &question).await {
                Ok(answer) => return self.slots(&answer, node).await,
                Err(error) => why = format!("{}: {error}", node.address),
            }
        }
        for number in 0..self.config.addresses.len() {
            let seeds = match self.seed(number).await {
                Ok(seeds) => seeds,
                Err(error) => {
                    why = error;
                    continue;
                }
            };
            for node in seeds {
                match self.ask(&node, &self.connector.data, &question).await {
                    Ok(answer) => return self.slots(&answer, &node).await,
                    Err(error) => why = format!("{}: {error}", node.address),
                }
            }
        }
        Err(format!("no node of the cluster says which has what: {why}"))
    }

    /// Understands what `asked` said: ranges of slots, each with its master first.
    async fn slots(&self, answer: &Value, asked: &Node) -> Result<Topology, String> {
        const UNKNOWN: u16 = u16::MAX;
        let Value::Array(ranges) = answer else {
            return Err(format!("{} does not say which node has which slots", asked.address));
        };
        let mut nodes: Vec<Node> = Vec::new();
        let mut slots = vec![UNKNOWN; usize::from(SLOTS)];
        for range in ranges.iter().take(usize::from(SLOTS)) {
            let Some((first, last, host, port)) = range_of(range) else { continue };
            let node = match host.is_empty() {
                true => {
                    Node { address: SocketAddr::new(asked.address.ip(), port), ..asked.clone() }
                }
                false => {
                    let found = self.resolve(&host, port).await?;
                    found.into_iter().next().ok_or_else(|| format!("{host} has no address"))?
                }
            };
            let number = match nodes.iter().position(|known| *known == node) {
                Some(number) => number,
                None if nodes.len() < NODES_MAX => {
                    nodes.push(node);
                    nodes.len() - 1
                }
                None => continue,
            };
            let number = u16::try_from(number).unwrap_or(UNKNOWN);
            slots.iter_mut().take(last + 1).skip(first).for_each(|slot| *slot = number);
        }
        if nodes.is_empty() {
            return Err(format!("{} knows no node that has slots", asked.address));
        }
        for node in &nodes {
            (self.tell)(node.address.ip());
        }
        Ok(Topology { nodes, slots })
    }

    /// The addresses of an entry of `addresses`.
    async fn seed(&self, number: usize) -> Result<Vec<Node>, String> {
        match self.config.addresses.get(number) {
            Some(RedisAddress::Address(address)) => {
                (self.tell)(address.ip());
                Ok(vec![Node::at(*address)])
            }
            Some(RedisAddress::Host(host, port)) => self.resolve(host, *port).await,
            None => Err("`state.redis.addresses` is empty".to_owned()),
        }
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<Node>, String> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            (self.tell)(ip.to_canonical());
            return Ok(vec![Node::at(SocketAddr::new(ip.to_canonical(), port))]);
        }
        let looking = tokio::net::lookup_host((host, port));
        let found = self.within(async { looking.await.map_err(|error| error.to_string()) }).await;
        let found = found.map_err(|error| format!("{host} cannot be looked up: {error}"))?;
        let host: Arc<str> = host.into();
        let nodes = found.take(ADDRESSES_MAX).map(|address| Node {
            address: SocketAddr::new(address.ip().to_canonical(), port),
            host: Arc::clone(&host),
        });
        let nodes: Vec<Node> = nodes.collect();
        nodes.iter().for_each(|node| (self.tell)(node.address.ip()));
        if nodes.is_empty() { Err(format!("{host} has no address")) } else { Ok(nodes) }
    }

    /// Asks one question over a connection of its own.
    async fn ask(&self, node: &Node, login: &Login, question: &Cmd) -> Result<Value, String> {
        self.within(async {
            let (mut connection, driver) = self.connector.connect(node, login).await?;
            tokio::select! {
                answer = connection.send_packed_command(question) => match answer {
                    Ok(Value::ServerError(error)) => Err(error.to_string()),
                    Ok(answer) => Ok(answer),
                    Err(error) => Err(error.to_string()),
                },
                () = driver => Err("it closed the connection".to_owned()),
            }
        })
        .await
    }

    async fn within<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
        let time: Duration = self.config.connect_timeout;
        timeout(time, work).await.unwrap_or_else(|_| {
            Err(format!("no answer within {}", humantime::format_duration(time)))
        })
    }
}

impl Node {
    pub(super) fn at(address: SocketAddr) -> Self {
        Self { address, host: address.ip().to_string().into() }
    }
}

fn range_of(range: &Value) -> Option<(usize, usize, String, u16)> {
    let Value::Array(parts) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = parts.as_slice() else {
        return None;
    };
    let slot = |number: &i64| usize::try_from(*number).ok().filter(|n| *n < usize::from(SLOTS));
    let (host, port) = place(master)?;
    Some((slot(first)?, slot(last)?, host, port))
}

/// A host and a port. The host is empty for the one that answers.
fn place(parts: &[Value]) -> Option<(String, u16)> {
    let [host, port, ..] = parts else { return None };
    let text = |value: &Value| match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).ok(),
        Value::SimpleString(text) => Some(text.clone()),
        Value::Nil => Some(String::new()),
        _ => None,
    };
    let port = match port {
        Value::Int(port) => u16::try_from(*port).ok()?,
        other => text(other)?.parse().ok()?,
    };
    // What a node says that has not been told its own name.
    let host = text(host)?;
    (port != 0).then(|| (if host == "?" { String::new() } else { host }, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        // `CLUSTER KEYSLOT` of a server says so.
        assert_eq!(slot_of(b"somekey"), 11_058);
        assert_eq!(slot_of(b"foo{hash_tag}"), 2515);
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of(b"foo{{bar}}zap"), crc16(b"{bar") % SLOTS);
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"{bar}"));
    }

    #[tokio::test]
    async fn the_answer_of_a_cluster_says_who_has_what_and_nonsense_is_nobody() {
        let config = Redis {
            addresses: Vec::new(),
            mode: RedisMode::Cluster,
            database: 0,
            user: None,
            password: None,
            tls: None,
            prefix: String::new(),
            timeout: Duration::from_millis(10),
            connect_timeout: Duration::from_secs(1),
        };
        let connector = Connector::new(&config).unwrap();
        let told = std::sync::Mutex::new(Vec::new());
        let tell = |ip| told.lock().unwrap().push(ip);
        let finder = Finder { config: &config, connector: &connector, tell: &tell };
        let asked = Node::at("127.0.0.1:7000".parse().unwrap());
        let node = |host: &str, port| {
            Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::Nil])
        };
        let range =
            |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let answer = Value::Array(vec![
            range(0, 99, node("10.0.0.1", 7001)),
            range(100, 199, node("", 7002)),
            range(-1, 70_000, node("10.0.0.3", 7003)),
            Value::Int(3),
        ]);
        let topology = finder.slots(&answer, &asked).await.unwrap();
        assert_eq!(topology.of(99).unwrap().address, "10.0.0.1:7001".parse().unwrap());
        assert_eq!(topology.of(100).unwrap().address, "127.0.0.1:7002".parse().unwrap());
        assert_eq!(topology.of(200), None, "nobody has it");
        assert_eq!(told.lock().unwrap().len(), 3, "{told:?}");
        for nonsense in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Nil])] {
            assert!(finder.slots(&nonsense, &asked).await.is_err());
        }
    }
}
