//! Attaching to interfaces: native where the driver has it, else generic; never over a foreign program; and the mode
//! that counts is the one that the kernel reports afterwards.

use std::io;
use std::thread;
use std::time::Duration;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
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
    /// There is no such interface.
    #[error("there is no interface `{interface}` here, only {there}: correct kernel.interfaces")]
    NoInterface {
        /// The name.
        interface: String,
        /// Those that exist.
        there: String,
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

/// What an interface runs now.
pub fn running(interface: &str) -> Result<Option<Running>, AttachError> {
    let index = index(interface)?;
    netlink::xdp(index)
        .map_err(|source| AttachError::Query { interface: interface.to_owned(), source })
}

/// Refuses an interface that is not there, or that runs somebody else's program.
pub fn check(interface: &str, pins: &Pins) -> Result<(), AttachError> {
    let Some(found) = running(interface)? else { return Ok(()) };
    if is_ours(interface, found.program, pins) {
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

/// Whether the program of the interface can be replaced in one step: it is that of the link that is pinned for it, and
/// runs in a mode that is wished for. A link keeps the mode that it was made with.
pub fn is_updatable(interface: &str, wish: Attach, pins: &Pins) -> Result<bool, AttachError> {
    let Some(found) = running(interface)? else { return Ok(false) };
    let fits = match wish {
        Attach::Auto => true,
        Attach::Native => found.mode == Mode::Native,
        Attach::Generic | Attach::Off => found.mode == Mode::Generic,
    };
    Ok(fits && is_ours(interface, found.program, pins))
}

/// Replaces the program of the pinned link in one step, so that no packet meets none.
pub fn update(program: &mut Xdp, interface: &str, pins: &Pins) -> Result<Attached, AttachError> {
    let link = pinned(pins, interface).and_then(|link| XdpLink::try_from(FdLink::from(link)));
    let updated = link
        .map_err(|error| chain(&error))
        .and_then(|link| program.attach_to_link(link).map_err(|error| chain(&error)));
    match updated {
        Ok(_) => report(interface, None),
        Err(reason) => Err(AttachError::NotReplaced { interface: interface.to_owned(), reason }),
    }
}

/// A link made anew.
#[derive(Debug)]
pub struct Fresh {
    /// What it came to.
    pub attached: Attached,
    before: Option<Mode>,
}

/// Attaches the program by a new link in the place of the one that is pinned, if there is one: it is of an interface
/// that went away, or of a mode that is not wanted any more.
pub fn attach(
    program: &mut Xdp,
    interface: &str,
    wish: Attach,
    pins: &Pins,
) -> Result<Fresh, AttachError> {
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
                return Ok(Fresh { attached: report(interface, reasons.pop())?, before });
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
    Err(AttachError::Refused { interface, mode, reason: reasons.join("; ") })
}

impl Fresh {
    /// Puts back what was there before.
    pub fn undo(&self, pins: &Pins) -> Result<(), String> {
        let interface = &self.attached.interface;
        take_off(interface, pins).map_err(|error| error.to_string())?;
        restore(interface, self.before, pins)
    }
}

/// Removes the link of an interface.
pub fn take_off(interface: &str, pins: &Pins) -> Result<(), PinsError> {
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

fn pinned(pins: &Pins, interface: &str) -> Result<PinnedLink, LinkError> {
    PinnedLink::from_pin(pins.link(interface))
}

/// Whether what runs on the interface is the program of the link that is pinned for it.
fn is_ours(interface: &str, program: u32, pins: &Pins) -> bool {
    let info = pinned(pins, interface).and_then(|link| FdLink::from(link).info());
    info.is_ok_and(|info| info.program_id() == program)
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

fn index(interface: &str) -> Result<u32, AttachError> {
    if_nametoindex(interface).map_err(|_| {
        let names = if_nameindex().map(|found| {
            found.iter().map(|item| item.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
        });
        AttachError::NoInterface {
            interface: interface.to_owned(),
            there: names.unwrap_or_default().join(", "),
        }
    })
}
