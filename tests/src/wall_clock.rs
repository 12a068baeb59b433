//! A wall clock that a test may set while a gateway goes by it. The host's own is left alone: it is everybody's. Only
//! CLOCK_REALTIME is another one, as after a step; the clocks that cannot be set are the host's.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::Result;

/// Takes the place of the C library's function in whoever is started with it.
const SOURCE: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile const long long *ahead;

__attribute__((constructor)) static void find(void) {
    const char *path = getenv("WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    close(file);
    ahead = page;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, clock, now);
    if (done == 0 && clock == CLOCK_REALTIME && ahead) now->tv_sec += *ahead;
    return done;
}
"#;

/// The clock. Its files are in the folder of the gateway, and go with it.
#[derive(Debug)]
pub(crate) struct WallClock {
    library: PathBuf,
    path: PathBuf,
    file: File,
}

impl WallClock {
    /// A clock that shows the host's time.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let [source, library, path] =
            ["wall_clock.c", "wall_clock.so", "wall_clock"].map(|name| folder.join(name));
        fs::write(&source, SOURCE)?;
        let arguments = ["-shared", "-fPIC", "-O1", "-o"];
        let built = Command::new("cc").args(arguments).arg(&library).arg(&source).output();
        let built = built.context("this needs a C compiler, as building the gateway does")?;
        ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let clock = Self { file: File::create(&path)?, library, path };
        clock.set(0)?;
        fs::set_permissions(&clock.path, Permissions::from_mode(0o644))?;
        Ok(clock)
    }

    /// Sets it to so many seconds ahead of the host's.
    pub(crate) fn set(&self, ahead_seconds: i64) -> Result {
        Ok(self.file.write_all_at(&ahead_seconds.to_ne_bytes(), 0)?)
    }

    /// Has a command go by it.
    pub(crate) fn give_to(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("WALL_CLOCK", &self.path);
    }
}
