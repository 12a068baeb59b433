//! Where things are kept when the file does not say so. Looks at who runs the process, at nothing on disk.

use std::path::PathBuf;
use std::sync::LazyLock;

/// The paths of state and socket by default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// [`super::State::dir`].
    pub state_dir: PathBuf,
    /// [`super::Admin::socket`].
    pub admin_socket: PathBuf,
}

/// For root the system's folders, for everybody else those of the XDG base directory specification, so that a gateway
/// without privileges starts too. The process that started as root goes by root's after it has become somebody else.
pub fn default_paths() -> Paths {
    static PATHS: LazyLock<Paths> = LazyLock::new(|| {
        let user = rustix::process::geteuid();
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        paths(user.is_root(), user.as_raw(), variable)
    });
    PATHS.clone()
}

fn paths(root: bool, user: u32, variable: impl Fn(&str) -> Option<PathBuf>) -> Paths {
    if root {
        return Paths {
            state_dir: PathBuf::from("/var/lib/gateway"),
            admin_socket: PathBuf::from("/run/gateway/admin.sock"),
        };
    }
    // The specification: a relative path there is invalid and to be ignored.
    let folder = |name| variable(name).filter(|path| path.is_absolute());
    let state_dir = folder("XDG_STATE_HOME")
        .or_else(|| folder("HOME").map(|home| home.join(".local/state")))
        .map_or_else(|| format!("/tmp/gateway-{user}").into(), |state| state.join("gateway"));
    let admin_socket = folder("XDG_RUNTIME_DIR")
        .map_or_else(|| state_dir.clone(), |runtime| runtime.join("gateway"))
        .join("admin.sock");
    Paths { state_dir, admin_socket }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(root: bool, variables: &[(&str, &str)]) -> (String, String) {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| PathBuf::from(value))
        };
        let paths = paths(root, 1000, variable);
        (paths.state_dir.display().to_string(), paths.admin_socket.display().to_string())
    }

    #[test]
    fn by_user_and_environment() {
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        let home = [("HOME", "/home/a"), ("XDG_RUNTIME_DIR", "/run/user/1000")];
        assert_eq!(of(true, &home), pair("/var/lib/gateway", "/run/gateway/admin.sock"));
        assert_eq!(
            of(false, &home),
            pair("/home/a/.local/state/gateway", "/run/user/1000/gateway/admin.sock")
        );
        assert_eq!(
            of(false, &[("XDG_STATE_HOME", "relative"), ("XDG_RUNTIME_DIR", "")]),
            pair("/tmp/gateway-1000", "/tmp/gateway-1000/admin.sock")
        );
    }
}
