//! What the process may do: the capabilities that the kernel door needs, and those that the daemon keeps.

use rustix::thread::{CapabilitySet, capabilities};

/// What loading and attaching an XDP program needs (capabilities(7)): programs and maps, exact speculation checks for
/// them, and the network interfaces.
pub const NEEDED: CapabilitySet =
    CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::NET_ADMIN);

/// The capabilities that the kernel door needs and the process lacks, by the names that people know.
pub fn missing() -> Vec<&'static str> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    names(NEEDED.difference(held))
}

/// The names of a set of capabilities.
pub fn names(set: CapabilitySet) -> Vec<&'static str> {
    [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"),
    ]
    .into_iter()
    .filter(|(capability, _)| set.contains(*capability))
    .map(|(_, name)| name)
    .collect()
}
