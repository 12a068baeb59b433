//! What `cargo xtask bench kernel` runs: the gateway's own XDP object and, beside it, xdp-filter's, each loaded with
//! the rules of a case and attached to nothing. It measures nothing.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, PerCpuHashMap, PerCpuValues};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use gateway_common::bucket::Bucket;
use gateway_common::layout::{
    self, LENGTH_WORDS, RuleKeyV4, RuleKeyV6, Settings, length_bit_v4, length_bit_v6,
};
use gateway_common::rule::{Action, Entry, FOREVER, Origin, Rules};
use gateway_common::source::Source;
use nix::mount::{MsFlags, mount, umount};

use super::bpf;

const OBJECT: &str = "gateway-ebpf/prebuilt/gateway.bpf.o";
/// Set in the value of an address that xdp-filter looks for as a source (MAP_FLAG_SRC).
const XDP_FILTER_SOURCE: u64 = 1;

/// A prefix and its length.
pub(super) type Prefix = (IpAddr, u32);

/// A program in the kernel.
pub(super) enum Subject {
    /// The gateway or xdp-filter: its maps live as long as this.
    Object(Box<Ebpf>, String),
    /// What every program costs that does nothing.
    Empty(OwnedFd),
}

impl Subject {
    /// A program that passes everything.
    pub(super) fn empty() -> Result<Self> {
        Ok(Self::Empty(bpf::load_pass().context("the kernel did not take an empty program")?))
    }

    /// The committed object with these denied, and with packet buckets where there is a profile.
    pub(super) fn gateway(root: &Path, denied: &[Prefix], profile: Option<Bucket>) -> Result<Self> {
        let settings =
            Settings { rules: 1, buckets: profile.is_some().into(), dry_run: 0, reserved: 0 };
        let mut object = EbpfLoader::new()
            .override_global(layout::SETTINGS, &settings, true)
            .load_file(root.join(OBJECT))?;
        if let Some(bucket) = profile {
            Array::try_from(map(&mut object, layout::PROFILES)?)?.set(0, bucket, 0)?;
            let mut ports = Array::try_from(map(&mut object, layout::PORTS)?)?;
            for word in 0..layout::PORT_WORDS {
                ports.set(word, u64::MAX, 0)?;
            }
        }
        deny(&mut object, denied)?;
        Self::loaded(object, layout::PROGRAM.to_owned())
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
            Self::Object(object, name) => {
                let program = object.program(name).context("the program is gone")?;
                Ok(program.fd()?.as_fd())
            }
        }
    }
}

fn deny(object: &mut Ebpf, denied: &[Prefix]) -> Result<()> {
    let mut lengths = [0u64; LENGTH_WORDS as usize];
    for (slot, (address, length)) in (0..).zip(denied) {
        let first = Entry {
            active_until: FOREVER,
            slot,
            generation: 1,
            action: Action::Deny as u8,
            origin: Origin::Operator as u8,
            ..Entry::default()
        };
        let rules = Rules { first, second: Entry::default() };
        let (word, bit) = match Source::from(*address) {
            Source::V4(bits) => {
                let mut map = HashMap::try_from(map(object, layout::RULES_V4)?)?;
                map.insert(RuleKeyV4::new(bits, *length), rules, 0)?;
                (0, length_bit_v4(*length))
            }
            Source::V6(bits) => {
                let mut map = HashMap::try_from(map(object, layout::RULES_V6)?)?;
                map.insert(RuleKeyV6::new(bits, *length), rules, 0)?;
                length_bit_v6(*length)
            }
        };
        if let Some(word) = lengths.get_mut(word as usize) {
            *word |= bit;
        }
    }
    let mut map = Array::try_from(map(object, layout::LENGTHS)?)?;
    for (word, bits) in (0..).zip(lengths) {
        map.set(word, bits, 0)?;
    }
    Ok(())
}

fn map<'a>(object: &'a mut Ebpf, name: &str) -> Result<&'a mut aya::maps::Map> {
    object.map_mut(name).with_context(|| format!("the object has no map {name}"))
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
