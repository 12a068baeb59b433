//! What was done with a packet, and why.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on to the network stack.
    Pass,
    /// It ends here.
    Drop,
}

/// Why it was done. The number is the index of the counter, so a reason never changes its number within an ABI version.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Not IPv4 or IPv6 (ARP among them).
    NotIp = 0,
    /// The source address could not be read.
    Unparsed = 1,
    /// IPv6 neighbour discovery, without which the link is dead.
    Neighbour = 2,
    /// No rule, and no bucket that applies.
    NoRule = 3,
    /// An `allow` rule.
    Allow = 4,
    /// Admitted by the packet bucket, or by a `limit` rule where no bucket applies.
    WithinLimit = 5,
    /// A `deny` rule.
    Deny = 6,
    /// Over the packet bucket.
    Limit = 7,
    /// A `reset` rule, and no new connection that could be answered.
    Reset = 8,
    /// A first fragment or a packet too short for its TCP flags; with `hygiene.malformed`, any header that contradicts
    /// itself, another one or the frame.
    Malformed = 9,
    /// The bucket word was lost to other CPUs too often in a row.
    Contended = 10,
    /// Over the bucket of new connections.
    Connections = 11,
    /// Flags that no state of TCP sends.
    TcpFlags = 12,
    /// A source address that cannot be, or one of the host's own.
    Martian = 13,
    /// Over the host's bucket of UDP to ports that are not protected.
    HostUdp = 14,
    /// Over the host's bucket of fragments.
    HostFragments = 15,
    /// Of a source without a bucket of its own, and over the bucket of all these.
    UnknownSources = 16,
    /// A `reset` rule: answered with TCP RST.
    ResetAnswered = 17,
    /// A `reset` rule, and over the host's bucket of answers.
    ResetLimit = 18,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 19] = [
        Self::NotIp,
        Self::Unparsed,
        Self::Neighbour,
        Self::NoRule,
        Self::Allow,
        Self::WithinLimit,
        Self::Deny,
        Self::Limit,
        Self::Reset,
        Self::Malformed,
        Self::Contended,
        Self::Connections,
        Self::TcpFlags,
        Self::Martian,
        Self::HostUdp,
        Self::HostFragments,
        Self::UnknownSources,
        Self::ResetAnswered,
        Self::ResetLimit,
    ];

    /// What a packet with this reason meets.
    #[inline(always)]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Deny
            | Self::Limit
            | Self::Reset
            | Self::Malformed
            | Self::Contended
            | Self::Connections
            | Self::TcpFlags
            | Self::Martian
            | Self::HostUdp
            | Self::HostFragments
            | Self::UnknownSources
            | Self::ResetAnswered
            | Self::ResetLimit => Verdict::Drop,
            Self::NotIp
            | Self::Unparsed
            | Self::Neighbour
            | Self::NoRule
            | Self::Allow
            | Self::WithinLimit => Verdict::Pass,
        }
    }

    /// The name in metrics, listings and events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotIp => "not_ip",
            Self::Unparsed => "unparsed",
            Self::Neighbour => "neighbour",
            Self::NoRule => "no_rule",
            Self::Allow => "allow",
            Self::WithinLimit => "within_limit",
            Self::Deny => "deny",
            Self::Limit => "limit",
            Self::Reset => "reset",
            Self::Malformed => "malformed",
            Self::Contended => "contended",
            Self::Connections => "connections",
            Self::TcpFlags => "tcp_flags",
            Self::Martian => "martian",
            Self::HostUdp => "host_udp",
            Self::HostFragments => "host_fragments",
            Self::UnknownSources => "unknown_sources",
            Self::ResetAnswered => "reset_answered",
            Self::ResetLimit => "reset_limit",
        }
    }
}

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse it")]
const _: () = {
    let mut index = 0;
    while index < Reason::ALL.len() {
        assert!(Reason::ALL[index] as usize == index);
        index += 1;
    }
};
