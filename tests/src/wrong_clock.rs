//! A machine with a wrong clock: the C library's real-time clock, shifted for one process.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Scene;
use crate::process::tool;

/// Library that is loaded before the C library.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    long failed = syscall(SYS_clock_gettime, clock, now);
    const char *shift = getenv("CLOCK_SHIFT_SECONDS");
    if (!failed && clock == CLOCK_REALTIME && shift) now->tv_sec += atol(shift);
    return (int)failed;
}
"#;

/// A shifted clock for programs.
pub struct WrongClock {
    library: PathBuf,
}

impl WrongClock {
    /// Compiles the library in this scene.
    #[track_caller]
    pub fn new(scene: &Scene) -> Self {
        let (source, library) = (scene.path("wrong_clock.c"), scene.path("wrong_clock.so"));
        std::fs::write(&source, SOURCE).expect("write a program");
        let arguments = ["-shared", "-fPIC", "-O1", "-o"].map(OsString::from);
        let files = [library.clone().into_os_string(), source.into_os_string()];
        tool("cc", arguments.into_iter().chain(files));
        Self { library }
    }

    /// Variables of a program whose clock is off by `days` days.
    pub fn variables(&self, days: i64) -> [(&'static str, OsString); 2] {
        let seconds = days * 24 * 60 * 60;
        [
            ("LD_PRELOAD", self.library.clone().into_os_string()),
            ("CLOCK_SHIFT_SECONDS", seconds.to_string().into()),
        ]
    }

    /// Prefix of such a program's command line, for `Agent::under` and `Origin::under`.
    pub fn prefix(&self, days: i64) -> Vec<OsString> {
        let assignments = self.variables(days).map(|(name, value)| {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            word
        });
        std::iter::once("env".into()).chain(assignments).collect()
    }
}
