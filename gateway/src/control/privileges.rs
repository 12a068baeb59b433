//! Least privilege: once sockets are bound and maps are open, the daemon becomes an ordinary user with the few
//! capabilities that it can name, and can never gain another.

use std::ffi::CString;

use nix::unistd::{Gid, Uid, User, setgroups, setresgid, setresuid};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};
use thiserror::Error;

use crate::kernel::support::{NEEDED, names};

/// Users that the daemon becomes when the configuration names none, the first that exists.
const USERS: [&str; 2] = ["gateway", "nobody"];

/// Why privileges could not be dropped. Going on with them would be worse than not starting.
#[derive(Debug, Error)]
pub enum PrivilegesError {
    /// No such user.
    #[error("user: there is no user `{0}` on this host: make it, or name another")]
    NoUser(String),
    /// The system refused.
    #[error("privileges cannot be dropped: {step}: {reason}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        reason: String,
    },
}

/// Who the daemon becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: String,
    /// Numeric user.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
}

/// Who the daemon becomes: nobody else unless it was started as root.
pub fn target(configured: Option<&str>) -> Result<Target, PrivilegesError> {
    let found = |name: &str| User::from_name(name).ok().flatten();
    let of =
        |user: User| Target { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() };
    if !Uid::effective().is_root() {
        let uid = Uid::effective();
        let name = User::from_uid(uid).ok().flatten().map(|user| user.name);
        let name = name.unwrap_or_else(|| uid.to_string());
        return Ok(Target { name, uid: uid.as_raw(), gid: Gid::effective().as_raw() });
    }
    match configured {
        Some(name) => found(name).map(of).ok_or_else(|| PrivilegesError::NoUser(name.to_owned())),
        None => USERS
            .iter()
            .find_map(|name| found(name))
            .map(of)
            .ok_or_else(|| PrivilegesError::NoUser(USERS.join("` or `"))),
    }
}

/// Becomes the target with no more than the capabilities that are named in the answer. Must run before any thread is
/// started: capabilities belong to threads.
pub fn drop_to(target: &Target, kernel_door: bool) -> Result<Vec<&'static str>, PrivilegesError> {
    let failed = |step: &'static str| {
        move |error: rustix::io::Errno| PrivilegesError::System { step, reason: error.to_string() }
    };
    let mut keep = CapabilitySet::NET_BIND_SERVICE;
    if kernel_door {
        keep |= NEEDED;
    }
    let held = rustix::thread::capabilities(None).map_err(failed("capget"))?;
    keep &= held.permitted;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            match remove_capability_from_bounding_set(capability) {
                // A capability that this kernel has never heard of.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(failed("bounding set")(error)),
            }
        }
    }
    if Uid::effective().is_root() {
        set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
        become_user(target)?;
        set_keep_capabilities(false).map_err(failed("keep capabilities"))?;
    }
    let sets =
        CapabilitySets { effective: keep, permitted: keep, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("capset"))?;
    set_no_new_privs(true).map_err(failed("no new privileges"))?;
    // The kernel has done so for who was root. Its memory has keys, passwords and tokens in it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("no core dumps"))?;
    Ok(names(keep))
}

fn become_user(target: &Target) -> Result<(), PrivilegesError> {
    let failed = |step: &'static str| {
        move |error: nix::errno::Errno| PrivilegesError::System { step, reason: error.to_string() }
    };
    let (uid, gid) = (Uid::from_raw(target.uid), Gid::from_raw(target.gid));
    let name = CString::new(target.name.as_str())
        .map_err(|_| PrivilegesError::NoUser(target.name.clone()))?;
    let groups = nix::unistd::getgrouplist(&name, gid).unwrap_or_else(|_| vec![gid]);
    setgroups(&groups).map_err(failed("groups"))?;
    setresgid(gid, gid, gid).map_err(failed("group"))?;
    setresuid(uid, uid, uid).map_err(failed("user"))
}
