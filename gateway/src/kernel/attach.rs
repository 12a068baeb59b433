//! Attaching to interfaces: native where the driver has it, else generic; never over a foreign program; and the mode
//! that counts is the one that the kernel reports afterwards.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use aya::programs::links::{FdLink, Link as _, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode, loaded_programs};
use aya_obj::programs::XdpAttachType;
use nix::net::if_::{if_nameindex, if_nametoindex};
use thiserror::Error;

use super::netlink::{self, Mode, Running};
use super::object::PROGRAM_PIN;
use super::pins::{Pins, PinsError};
use super::tables::chain;
use crate::config::Attach;

/// Why the program does not run on an interface.
#[derive(Debug, Error)]
pub enum AttachError {
    /// It is not here now.
    #[error("{interface}: {absence}")]
    Absent {
        /// The name.
        interface: String,
        /// Where it is instead.
        absence: Absence,
    },
    /// It is in a network namespace that has a name.
    #[error(
        "{interface} is in the network namespace {namespace}, not in the gateway's: start the \
         gateway there (`nsenter --net=/run/netns/{namespace} gateway run FILE`), move it to the \
         host's (`ip -n {namespace} link set dev {interface} netns 1`) or take it out of \
         kernel.interfaces"
    )]
    Elsewhere {
        /// The name.
        interface: String,
        /// The namespace's.
        namespace: String,
    },
    /// Another program has the interface.
    #[error(
        "{interface} already runs XDP program {program}, which is not the gateway's: take it off \
         (`ip link set dev {interface} xdp off`, or whoever put it there) or take {interface} out of kernel.interfaces"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The foreign program's name, if it can be known, and id.
        program: String,
    },
    /// The link did not take the new program; it keeps the old one.
    #[error("the XDP program of {interface} cannot be replaced: {reason}")]
    NotReplaced {
        /// The interface.
        interface: String,
        /// What the kernel said.
        reason: String,
    },
    /// The driver or the kernel refused.
    #[error("XDP cannot be attached to {interface} in {mode} mode: {reason}")]
    Refused {
        /// The interface.
        interface: String,
        /// The mode that was asked for.
        mode: &'static str,
        /// What the kernel said.
        reason: String,
    },
    /// Asking the kernel failed.
    #[error("{interface}: {source}")]
    Query {
        /// The interface.
        interface: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pin.
    #[error(transparent)]
    Pins(#[from] PinsError),
}

/// An interface and what runs on it, as the kernel reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The interface.
    pub interface: String,
    /// How it runs.
    pub mode: Mode,
    /// Why it is not the native mode, where it was not asked for otherwise.
    pub fallback: Option<String>,
}

/// Where an interface is that is not here under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// Nowhere that can be seen.
    Gone,
    /// Here, under another name.
    Renamed(String),
    /// In another network namespace, as its link tells.
    Moved,
}

impl fmt::Display for Absence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => {
                write!(formatter, "there is no such interface here, only {}; ", names_here())?;
                formatter.write_str("it is attached to as soon as it appears")
            }
            Self::Renamed(name) => write!(
                formatter,
                "it is called {name} now and keeps its program: name it so in kernel.interfaces"
            ),
            Self::Moved => formatter.write_str(
                "it was moved to another network namespace, where its program goes on enforcing: move it back, or \
                 take it out of kernel.interfaces, which takes the program off",
            ),
        }
    }
}

/// What an interface runs now.
pub fn running(interface: &str) -> Result<Option<Running>, AttachError> {
    let Ok(index) = if_nametoindex(interface) else {
        return Err(AttachError::Absent {
            interface: interface.to_owned(),
            absence: Absence::Gone,
        });
    };
    netlink::xdp(index)
        .map_err(|source| AttachError::Query { interface: interface.to_owned(), source })
}

/// Where an interface is that is not here; `None` if it is.
pub fn absence(interface: &str, pins: &Pins) -> Option<Absence> {
    if if_nametoindex(interface).is_ok() {
        return None;
    }
    let Some(target) = target(&pins.link(interface)) else {
        return Some(Absence::Gone);
    };
    let renamed = if_nameindex().ok().and_then(|all| {
        let same = all.iter().find(|named| named.index() == target.index)?;
        Some(same.name().to_string_lossy().into_owned())
    });
    let runs =
        |name: &String| matches!(running(name), Ok(Some(found)) if found.program == target.program);
    Some(match renamed.filter(runs) {
        Some(name) => Absence::Renamed(name),
        None => Absence::Moved,
    })
}

/// Refuses an interface that runs somebody else's program or lies in another network namespace. One that does not exist
/// may come.
pub fn check(interface: &str, pins: &Pins) -> Result<(), AttachError> {
    if let Some(absence) = absence(interface, pins) {
        let interface = interface.to_owned();
        return match (absence, namespace_of(&interface)) {
            (Absence::Renamed(_), _) | (Absence::Gone, None) => Ok(()),
            (_, Some(namespace)) => Err(AttachError::Elsewhere { interface, namespace }),
            (absence @ Absence::Moved, None) => Err(AttachError::Absent { interface, absence }),
        };
    }
    let Some(found) = running(interface)? else { return Ok(()) };
    if is_ours(interface, found.program, pins)? {
        return Ok(());
    }
    // Only CAP_SYS_ADMIN may ask for names, which the daemon does not keep.
    let name = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == found.program)
        .and_then(|program| Some(format!("`{}` ", program.name_as_str()?)));
    let program = format!("{}(id {})", name.unwrap_or_default(), found.program);
    Err(AttachError::Foreign { interface: interface.to_owned(), program })
}

/// Whether the program of the interface can be replaced in one step: it is that of a link that is pinned, and runs in a
/// mode that is wished for. A link keeps the mode that it was made with.
pub fn is_updatable(interface: &str, wish: Attach, pins: &Pins) -> Result<bool, AttachError> {
    let Some(found) = running(interface)? else { return Ok(false) };
    let fits = match wish {
        Attach::Auto => true,
        Attach::Native => found.mode == Mode::Native,
        Attach::Generic | Attach::Off => found.mode == Mode::Generic,
    };
    Ok(fits && is_ours(interface, found.program, pins)?)
}

/// Has every pinned link run the program that is in force, each replaced in one step, so that no packet meets none.
pub fn update_all(pins: &Pins) -> Result<(), AttachError> {
    let linked = pins.linked()?;
    if linked.is_empty() {
        return Ok(());
    }
    let path = pins.map(PROGRAM_PIN);
    let opened = Xdp::from_pin(&path, XdpAttachType::Interface)
        .and_then(|program| Ok((program.info()?.id(), program)));
    let (id, mut program) = opened.map_err(|error| AttachError::NotReplaced {
        interface: linked.join(", "),
        reason: format!("the pinned program cannot be used: {}", chain(&error)),
    })?;
    for interface in linked {
        let pin = pins.link(&interface);
        if target(&pin).is_none_or(|target| target.program == id) {
            continue;
        }
        let link =
            PinnedLink::from_pin(&pin).and_then(|link| XdpLink::try_from(FdLink::from(link)));
        let updated = link
            .map_err(|error| chain(&error))
            .and_then(|link| program.attach_to_link(link).map_err(|error| chain(&error)));
        // A link dies with its interface.
        if let Err(reason) = updated
            && target(&pin).is_some()
        {
            return Err(AttachError::NotReplaced { interface, reason });
        }
    }
    Ok(())
}

/// An interface whose link was made anew or removed, and can be put back.
#[derive(Debug)]
pub struct Relinked {
    interface: String,
    /// What it came to; `None` where the program was taken off.
    pub attached: Option<Attached>,
    before: Option<Mode>,
}

/// Attaches the program by a new link in the place of the one that is pinned, if there is one: it is of an interface
/// that went away, or of a mode that is not wanted any more.
pub fn attach(
    program: &mut Xdp,
    interface: &str,
    wish: Attach,
    pins: &Pins,
) -> Result<Relinked, AttachError> {
    let before = running(interface)?.map(|running| running.mode);
    take_off(interface, pins)?;
    let modes: &[XdpMode] = match wish {
        Attach::Auto => &[XdpMode::Driver, XdpMode::Skb],
        Attach::Native => &[XdpMode::Driver],
        Attach::Generic | Attach::Off => &[XdpMode::Skb],
    };
    let mut reasons: Vec<String> = Vec::new();
    for mode in modes {
        match attach_in(program, interface, *mode, pins) {
            Ok(()) => {
                let attached = Some(report(interface, reasons.pop())?);
                return Ok(Relinked { interface: interface.to_owned(), attached, before });
            }
            Err(reason) => reasons.push(reason),
        }
    }
    reasons.extend(restore(interface, before, pins).err());
    let mode = match wish {
        Attach::Auto => "native or generic",
        Attach::Native => "native",
        Attach::Generic | Attach::Off => "generic",
    };
    let interface = interface.to_owned();
    // What failed may have failed because it went away meanwhile.
    match if_nametoindex(interface.as_str()) {
        Ok(_) => Err(AttachError::Refused { interface, mode, reason: reasons.join("; ") }),
        Err(_) => Err(AttachError::Absent { interface, absence: Absence::Gone }),
    }
}

/// Attaches the program that is pinned, for an interface that came after it.
pub fn attach_pinned(
    interface: &str,
    wish: Attach,
    pins: &Pins,
) -> Result<Option<Attached>, AttachError> {
    let program = Xdp::from_pin(pins.map(PROGRAM_PIN), XdpAttachType::Interface);
    let mut program = program.map_err(|error| AttachError::Refused {
        interface: interface.to_owned(),
        mode: "any",
        reason: format!("the pinned program cannot be used: {}", chain(&error)),
    })?;
    attach(&mut program, interface, wish, pins).map(|relinked| relinked.attached)
}

impl Relinked {
    /// Puts back what was there before.
    pub fn undo(&self, pins: &Pins) -> Result<(), String> {
        take_off(&self.interface, pins).map_err(|error| error.to_string())?;
        restore(&self.interface, self.before, pins)
    }
}

/// Takes the program off an interface.
pub fn detach(interface: String, pins: &Pins) -> Result<Relinked, AttachError> {
    let before = running(&interface).ok().flatten().map(|running| running.mode);
    take_off(&interface, pins)?;
    Ok(Relinked { interface, attached: None, before })
}

/// Removes the link of an interface.
fn take_off(interface: &str, pins: &Pins) -> Result<(), PinsError> {
    pins.remove(&pins.link(interface))?;
    await_end(interface);
    Ok(())
}

/// Waits until the interface runs nothing, for two seconds at most. The kernel lets go of a link some time after its
/// last pin is gone, and until then another mode is refused.
pub fn await_end(interface: &str) {
    const STEP: Duration = Duration::from_millis(10);
    const STEPS: usize = 200;
    for _ in 0..STEPS {
        if !running(interface).is_ok_and(|running| running.is_some()) {
            return;
        }
        thread::sleep(STEP);
    }
}

/// Attaches the program that is pinned, which is the one from before, in the mode that it ran in.
fn restore(interface: &str, mode: Option<Mode>, pins: &Pins) -> Result<(), String> {
    let mode = match mode {
        None => return Ok(()),
        Some(Mode::Generic) => XdpMode::Skb,
        Some(Mode::Native | Mode::Offload | Mode::Multiple) => XdpMode::Driver,
    };
    Xdp::from_pin(pins.map(PROGRAM_PIN), XdpAttachType::Interface)
        .map_err(|error| chain(&error))
        .and_then(|mut program| attach_in(&mut program, interface, mode, pins))
        .map_err(|reason| format!("{interface} could not be given back its program: {reason}"))
}

/// A new link, pinned at once: what is not pinned would end with the process.
fn attach_in(program: &mut Xdp, interface: &str, mode: XdpMode, pins: &Pins) -> Result<(), String> {
    let told = |error: ProgramError| match os_error(&error) {
        Some(libc::EOPNOTSUPP) => "its driver has no native mode".to_owned(),
        _ => chain(&error),
    };
    let id = program.attach(interface, mode).map_err(told)?;
    let link = program.take_link(id).map_err(told)?;
    // Where the kernel has no XDP links aya attaches by netlink, which cannot be pinned; dropping it takes it off.
    let link = FdLink::try_from(link)
        .map_err(|_| "this kernel has no XDP links: Linux 5.9 or later is needed".to_owned())?;
    link.pin(pins.link(interface)).map(drop).map_err(|error| chain(&error))
}

/// What a pinned link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// The interface's, in the namespace where that is now.
    index: u32,
    program: u32,
}

/// `None` for a link that is not there or has outlived its interface.
fn target(pin: &Path) -> Option<Target> {
    let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
    let program = link.info().ok()?.program_id();
    // aya shows a link's descriptor in no other way, and the interface is nowhere but in what the kernel says of that.
    let shown = format!("{:?}", link.id());
    let descriptor = shown.trim_matches(|c: char| !c.is_ascii_digit());
    let told = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}")).ok()?;
    let index = told.lines().find_map(|line| line.strip_prefix("ifindex:"))?.trim().parse().ok()?;
    Some(Target { index, program }).filter(|target| target.index != 0)
}

/// Whether what runs on the interface is the program of a pinned link, which then is pinned under the interface's name:
/// it may have been given another one.
fn is_ours(interface: &str, program: u32, pins: &Pins) -> Result<bool, AttachError> {
    let index = if_nametoindex(interface).unwrap_or(0);
    let is_its = |pin: &Path| target(pin) == Some(Target { index, program });
    if is_its(&pins.link(interface)) {
        return Ok(true);
    }
    let Some(other) = pins.link_pins()?.into_iter().find(|pin| is_its(pin)) else {
        return Ok(false);
    };
    pins.move_link(&other, interface)?;
    Ok(true)
}

/// The name of a network namespace that has an interface of this name, as far as this process may look into them.
fn namespace_of(interface: &str) -> Option<String> {
    const FOLDER: &str = "/run/netns";
    const NAMESPACES_MAX: usize = 256;
    let entries = fs::read_dir(FOLDER).ok()?.flatten().take(NAMESPACES_MAX);
    let mut namespaces =
        entries.filter_map(|entry| Some((entry.file_name(), File::open(entry.path()).ok()?)));
    namespaces
        .find(|(_, namespace)| netlink::has_interface(namespace, interface).unwrap_or(false))
        .map(|(name, _)| name.to_string_lossy().into_owned())
}

/// The interfaces of this namespace, as many as a line has room for.
fn names_here() -> String {
    const NAMED_MAX: usize = 8;
    let all = if_nameindex().map(|all| {
        all.iter().map(|one| one.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    let all = all.unwrap_or_default();
    let named = all.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(NAMED_MAX) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

fn report(interface: &str, fallback: Option<String>) -> Result<Attached, AttachError> {
    match running(interface)? {
        Some(Running { mode, .. }) => {
            Ok(Attached { interface: interface.to_owned(), mode, fallback })
        }
        None => Err(AttachError::Refused {
            interface: interface.to_owned(),
            mode: "any",
            reason: "the kernel reports no program afterwards".to_owned(),
        }),
    }
}

fn os_error(error: &ProgramError) -> Option<i32> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(inner) = source {
        if let Some(found) = inner.downcast_ref::<io::Error>() {
            return found.raw_os_error();
        }
        source = inner.source();
    }
    None
}
