//! Two hosts that a bench makes for itself: namespaces joined by a veth pair. The subject is in `receiver`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use harness::gateway::Gateway;
use harness::namespace::Namespace;
use serde_json::json;

/// Each host's end of the pair.
pub(super) const INTERFACE: &str = "eth0";
pub(super) const SENDER: [u8; 4] = [10, 77, 0, 2];
pub(super) const RECEIVER: [u8; 4] = [10, 77, 0, 1];
pub(super) const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 77, 2];
pub(super) const RECEIVER_MAC: [u8; 6] = [2, 0, 0, 0, 77, 1];

/// The two.
pub(super) struct Link {
    pub(super) sender: Namespace,
    pub(super) receiver: Namespace,
}

impl Link {
    /// Makes them.
    pub(super) fn new() -> Result<Self> {
        let link =
            Self { sender: Namespace::new("sender")?, receiver: Namespace::new("receiver")? };
        link.receiver.ip(&format!(
            "link add {INTERFACE} address {receiver_mac} type veth \
             peer name {INTERFACE} address {sender_mac} netns {sender}\n\
             address add 10.77.0.1/24 dev {INTERFACE}\n\
             link set {INTERFACE} up\n\
             route add default via 10.77.0.2",
            receiver_mac = mac(RECEIVER_MAC),
            sender_mac = mac(SENDER_MAC),
            sender = link.sender.name(),
        ))?;
        link.sender
            .ip(&format!("address add 10.77.0.2/24 dev {INTERFACE}\nlink set {INTERFACE} up"))?;
        Ok(link)
    }

    /// A gateway in `receiver` with room for so many rules of a family, not yet started.
    pub(super) fn gateway(&self, binary: &Path, rules: usize) -> Result<Gateway<'_>> {
        // Besides the list there are rules for protected addresses.
        let max_rules = rules + 1000;
        let config = json!({
            "listen": [{"address": "127.0.0.1:8080"}],
            "kernel": {"interfaces": [INTERFACE], "attach": "native", "max_rules": max_rules},
            "upstreams": {"origin": {"endpoints": ["127.0.0.1:9000"]}},
            "routes": [{"match": {"path": "/{rest*}"}, "upstream": "origin"}],
        });
        Ok(Gateway::new(&self.receiver, config)?.with_binary(binary.to_owned()))
    }

    /// Runs a program in `receiver`, which must succeed.
    pub(super) fn run(&self, command: &mut Command) -> Result<()> {
        let output = self.receiver.output(command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, said.trim_end());
        Ok(())
    }

    /// What the kernel counts in `receiver`: a file of its `/proc/net`.
    pub(super) fn counted(&self, file: &str) -> Result<String> {
        let path = format!("/proc/thread-self/net/{file}");
        self.receiver.enter(|| std::fs::read_to_string(&path))?.with_context(|| path.clone())
    }
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
