//! What `cargo xtask bench kernel` runs: the gateway's own XDP object and, beside it, xdp-filter's, each loaded with
//! the rules of a case and attached to nothing. It measures nothing.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuHashMap, PerCpuValues};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use gateway::config::{HostLimits, Hygiene};
use gateway::kernel::object::{Capacity, Switches};
use gateway::kernel::trial::Trial;
use gateway_common::bucket::Bucket;
use gateway_common::layout;
use gateway_common::rule::Action;
use gateway_common::verdict::Reason;
use harness::programs::{self, Prefix, WithMap};
use ipnet::IpNet;
use nix::mount::{MsFlags, mount, umount};

/// Set in the value of an address that xdp-filter looks for as a source (MAP_FLAG_SRC).
const XDP_FILTER_SOURCE: u64 = 1;

/// Every source has its own.
const BUCKETS: Switches = Switches { buckets: true, ..Switches::RULES };

/// What the gateway does besides looking at rules.
#[derive(Clone, Copy)]
pub(super) enum With {
    Nothing,
    /// Packet buckets with this default profile.
    Profile(Bucket),
    /// Drops what nothing honest sends.
    Hygiene,
    /// Takes so much UDP to ports that are not protected, which are all.
    HostLimit(Bucket),
}

/// A program in the kernel.
pub(super) enum Subject {
    /// The gateway.
    Gateway(Box<Trial>),
    /// xdp-filter: its maps live as long as this.
    Object(Box<Ebpf>, String),
    /// What every program costs that does nothing.
    Empty(OwnedFd),
    /// The decision alone, by the kernel's own trie.
    Trie(WithMap),
    /// Another one, each time with another source.
    Random(WithMap, Box<Subject>),
}

impl Subject {
    /// A program that passes everything.
    pub(super) fn empty() -> Result<Self> {
        Ok(Self::Empty(programs::pass().context("the kernel did not take an empty program")?))
    }

    /// A program that drops everything.
    pub(super) fn drop_all() -> Result<Self> {
        Ok(Self::Empty(programs::drop_all().context("the kernel did not take an empty program")?))
    }

    /// The committed object with these denied, and with what else it is to do.
    pub(super) fn gateway(denied: &[Prefix], with: With) -> Result<Self> {
        let mut switches = Switches::RULES;
        match with {
            With::Nothing => {}
            With::Profile(_) => switches.buckets = true,
            With::Hygiene => switches.hygiene = Hygiene::ON,
            With::HostLimit(udp) => switches.host_limits = HostLimits { udp, ..HostLimits::NONE },
        }
        let mut trial = load(denied.len(), switches)?;
        if let With::Profile(bucket) = with {
            trial.profiles(&[bucket])?;
            trial.protect(0..=u16::MAX)?;
        }
        let mut subject = Self::Gateway(Box::new(trial));
        subject.deny(denied)?;
        Ok(subject)
    }

    /// The same without any, but with room for so many rules.
    pub(super) fn gateway_for(rules: usize) -> Result<Self> {
        Ok(Self::Gateway(Box::new(load(rules, Switches::RULES)?)))
    }

    /// The committed object without rules, with the host's buckets of new and of unknown sources.
    pub(super) fn limited(
        packets: Bucket,
        [new_sources, unknown_sources]: [Bucket; 2],
    ) -> Result<Self> {
        let switches = Switches { new_sources, unknown_sources, ..BUCKETS };
        let mut trial = load(0, switches)?;
        trial.profiles(&[packets])?;
        trial.protect(0..=u16::MAX)?;
        Ok(Self::Gateway(Box::new(trial)))
    }

    /// The first step of an answer to a SYN.
    pub(super) fn syn_cookie() -> Result<Self> {
        Ok(Self::Empty(programs::syn_cookie().context("the kernel makes no SYN cookies in XDP")?))
    }

    /// So many packets the gateway has admitted within a limit, and has given up for other CPUs.
    pub(super) fn admitted(&self) -> Result<[u64; 2]> {
        let Self::Gateway(trial) = self else { return Ok([0; 2]) };
        let [admitted, contended] = [Reason::WithinLimit, Reason::Contended];
        Ok([trial.counter(admitted)?.packets, trial.counter(contended)?.packets])
    }

    /// Puts these into the gateway's tables; the others hold what they were made with.
    pub(super) fn deny(&mut self, denied: &[Prefix]) -> Result<()> {
        let Self::Gateway(trial) = self else { return Ok(()) };
        for (address, length) in denied {
            let prefix = IpNet::new(*address, u8::try_from(*length)?)?;
            trial.put(prefix.trunc(), Action::Deny, 0)?;
        }
        Ok(())
    }

    /// A program that decides by the kernel's trie with these denied, all of them IPv4.
    pub(super) fn trie(denied: &[Prefix]) -> Result<Self> {
        Ok(Self::Trie(programs::trie(denied).context("the kernel did not take a trie")?))
    }

    /// The same, run behind one that gives each packet a random source.
    pub(super) fn randomised(self) -> Result<Self> {
        let randomiser = programs::randomiser(self.program()?);
        Ok(Self::Random(randomiser.context("the kernel did not chain programs")?, Box::new(self)))
    }

    /// What the kernel says that its maps take, in bytes.
    pub(super) fn kernel_bytes(&self) -> Result<u64> {
        match self {
            Self::Gateway(trial) => {
                let ids = trial.program()?.info()?.map_ids()?.unwrap_or_default();
                let maps = ids.into_iter().map(|id| map_bytes(MapData::from_id(id)?.fd().as_fd()));
                maps.sum()
            }
            Self::Trie(trie) => map_bytes(trie.map()),
            Self::Random(_, subject) => subject.kernel_bytes(),
            Self::Empty(_) | Self::Object(..) => Ok(0),
        }
    }

    /// xdp-filter as Debian compiled it, in one of its variants, without libxdp's dispatcher before it.
    pub(super) fn xdp_filter(variant: &str, denied: &[Prefix]) -> Result<Self> {
        let name = format!("xdpfilt_alw_{variant}");
        // Its maps want to be pinned: where nobody else looks, and only for now.
        let pins = Pins::mount()?;
        let mut object = EbpfLoader::new()
            .default_map_pin_directory(&pins.0)
            .load_file(xdp_filter_object(&name)?)?;
        drop(pins);
        let cpus = cpus()?;
        for (address, _) in denied {
            let value = PerCpuValues::try_from(vec![XDP_FILTER_SOURCE; cpus])?;
            match address {
                IpAddr::V4(v4) => {
                    let map = map(&mut object, "filter_ipv4")?;
                    let mut map = PerCpuHashMap::<_, [u8; 4], u64>::try_from(map)?;
                    map.insert(v4.octets(), value, 0)?;
                }
                IpAddr::V6(v6) => {
                    let map = map(&mut object, "filter_ipv6")?;
                    let mut map = PerCpuHashMap::<_, [u8; 16], u64>::try_from(map)?;
                    map.insert(v6.octets(), value, 0)?;
                }
            }
        }
        Self::loaded(object, name)
    }

    fn loaded(mut object: Ebpf, name: String) -> Result<Self> {
        let program = object.program_mut(&name).with_context(|| format!("no program {name}"))?;
        let program: &mut Xdp = program.try_into()?;
        program.load().with_context(|| format!("the kernel did not take {name}"))?;
        Ok(Self::Object(Box::new(object), name))
    }

    /// Its descriptor.
    pub(super) fn program(&self) -> Result<BorrowedFd<'_>> {
        match self {
            Self::Empty(program) => Ok(program.as_fd()),
            Self::Trie(program) | Self::Random(program, _) => Ok(program.program()),
            Self::Gateway(trial) => Ok(trial.program()?.fd()?.as_fd()),
            Self::Object(object, name) => {
                let program = object.program(name).context("the program is gone")?;
                Ok(program.fd()?.as_fd())
            }
        }
    }
}

fn load(rules: usize, switches: Switches) -> Result<Trial> {
    let rules = u32::try_from(rules)?.max(layout::RULES_DEFAULT);
    let capacity = Capacity { rules, sources: layout::BUCKETS_DEFAULT };
    // As a gateway has them that is not told otherwise.
    let switches = Switches { events: Bucket::per_second(10, 10), ..switches };
    Ok(Trial::load(switches, capacity)?)
}

fn map<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    object.map_mut(name).with_context(|| format!("the object has no map {name}"))
}

fn map_bytes(map: BorrowedFd<'_>) -> Result<u64> {
    let about = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    let bytes = about.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(bytes.context("the kernel does not say what a map takes")?.trim().parse()?)
}

fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")
}

/// Debian keeps it in the folder of the architecture.
fn xdp_filter_object(name: &str) -> Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib")?.filter_map(Result::ok);
    let mut files = folders.map(|folder| folder.path().join("bpf").join(format!("{name}.o")));
    files.find(|file| file.is_file()).with_context(|| format!("xdp-tools has no {name}.o"))
}

/// A BPF file system of our own, gone when dropped.
struct Pins(PathBuf);

impl Pins {
    fn mount() -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("gateway-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let pins = Self(folder);
        mount(Some("bpf"), &pins.0, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a BPF file system at {}", pins.0.display()))?;
        Ok(pins)
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        // What was never mounted or made is as gone as the rest.
        umount(&self.0).ok();
        std::fs::remove_dir(&self.0).ok();
    }
}
