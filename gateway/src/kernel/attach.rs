//! Attaching to interfaces: native where the driver has it, else generic; never over a foreign program; and the mode
//! that counts is the one that the kernel reports afterwards.

use std::io;

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode, loaded_programs};
use nix::net::if_::{if_nameindex, if_nametoindex};
use thiserror::Error;

use super::netlink::{self, Mode, Running};
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
        "{interface} already runs XDP program {program} (id {id}), which is not the gateway's: take it off \
         (`ip link set dev {interface} xdp off`, or whoever put it there) or take {interface} out of kernel.interfaces"
    )]
    Foreign {
        /// The interface.
        interface: String,
        /// The foreign program's name.
        program: String,
        /// The foreign program's id.
        id: u32,
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
    let program = loaded_programs()
        .filter_map(Result::ok)
        .find(|program| program.id() == found.program)
        .and_then(|program| program.name_as_str().map(str::to_owned))
        .unwrap_or_default();
    let interface = interface.to_owned();
    Err(AttachError::Foreign { interface, program: format!("`{program}`"), id: found.program })
}

/// Lets the interface run `program`: by updating the link that is pinned for it, or by a new one.
pub fn attach(
    program: &mut Xdp,
    interface: &str,
    wish: Attach,
    pins: &Pins,
) -> Result<Attached, AttachError> {
    let path = pins.link(interface);
    if path.exists() && mode_fits(interface, wish)? && update(program, pins, interface).is_ok() {
        return report(interface, None);
    }
    // The link is of an interface that went away, or of a mode that is not wanted any more.
    pins.remove(&path)?;
    let modes: &[XdpMode] = match wish {
        Attach::Auto => &[XdpMode::Driver, XdpMode::Skb],
        Attach::Native => &[XdpMode::Driver],
        Attach::Generic | Attach::Off => &[XdpMode::Skb],
    };
    let mut reasons: Vec<String> = Vec::new();
    for mode in modes {
        match attach_in(program, interface, *mode, pins) {
            Ok(()) => return report(interface, reasons.pop()),
            Err(reason) => reasons.push(reason),
        }
    }
    let mode = match wish {
        Attach::Auto => "native or generic",
        Attach::Native => "native",
        Attach::Generic | Attach::Off => "generic",
    };
    let interface = interface.to_owned();
    Err(AttachError::Refused { interface, mode, reason: reasons.join("; ") })
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

/// Replaces the program of the pinned link in one step, so that no packet meets none.
fn update(program: &mut Xdp, pins: &Pins, interface: &str) -> Result<(), String> {
    let link = pinned(pins, interface).map_err(|error| chain(&error))?;
    let link = XdpLink::try_from(FdLink::from(link)).map_err(|error| chain(&error))?;
    program.attach_to_link(link).map(drop).map_err(|error| chain(&error))
}

fn pinned(pins: &Pins, interface: &str) -> Result<PinnedLink, LinkError> {
    PinnedLink::from_pin(pins.link(interface))
}

/// Whether what runs on the interface is the program of the link that is pinned for it.
fn is_ours(interface: &str, program: u32, pins: &Pins) -> bool {
    let info = pinned(pins, interface).and_then(|link| FdLink::from(link).info());
    info.is_ok_and(|info| info.program_id() == program)
}

/// Whether the mode that the interface runs in is one that is wished for. A link keeps the mode that it was made with.
fn mode_fits(interface: &str, wish: Attach) -> Result<bool, AttachError> {
    Ok(running(interface)?.is_some_and(|running| match wish {
        Attach::Auto => true,
        Attach::Native => running.mode == Mode::Native,
        Attach::Generic | Attach::Off => running.mode == Mode::Generic,
    }))
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
