//! Counts the calls of `fsync`, `fdatasync` and `syncfs` that a program makes on all threads, at its usual
//! speed.
//!
//! ```text
//! count-syncs FILE PROGRAM ARGUMENTS...
//! ```
//!
//! FILE grows by a byte with each call. The kernel stops the program for these calls alone. `strace
//! --seccomp-bpf` promises the same, but stops some threads for every call, as it happens: a thread that is
//! seen before the call that made it. The program keeps the process ID. Linux on x86-64 only.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const COUNTED: [i64; 3] = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_syncfs];
/// First argument of the process that traces its parent.
const TRACE_PARENT: &str = "--trace-parent";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [flag, file] if flag == TRACE_PARENT => trace_parent(file),
        [file, program, arguments @ ..] => run(file, program, arguments),
        _ => Err("usage: count-syncs FILE PROGRAM ARGUMENTS...".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("count-syncs: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Has a child trace this process, which then becomes the program.
fn run(file: &str, program: &str, arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let mut tracer = Command::new(std::env::current_exe()?);
    tracer.args([TRACE_PARENT, file]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut tracer = tracer.spawn()?;
    let said = tracer.stdout.take().ok_or("the tracer says nothing")?;
    if BufReader::new(said).lines().next().is_none() {
        return Err("the tracer ended".into());
    }
    let counted: BTreeMap<_, _> = COUNTED.map(|call| (call, Vec::new())).into();
    let filter = SeccompFilter::new(
        counted,
        SeccompAction::Allow,
        SeccompAction::Trace(0),
        std::env::consts::ARCH.try_into()?,
    )?;
    seccompiler::apply_filter(&BpfProgram::try_from(filter)?)?;
    Err(Command::new(program).args(arguments).exec().into())
}

fn trace_parent(file: &str) -> Result<(), Box<dyn Error>> {
    let mut file: File = OpenOptions::new().create(true).append(true).open(file)?;
    let options = Options::PTRACE_O_TRACESECCOMP
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(getppid(), options)?;
    println!("traced");
    loop {
        match waitpid(None::<Pid>, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceEvent(who, _, event)) => {
                if event == libc::PTRACE_EVENT_SECCOMP {
                    file.write_all(b".")?;
                }
                go_on(who, None);
            }
            Ok(WaitStatus::Stopped(who, signal)) => go_on(who, Some(signal)),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Errors mean that the thread was killed meanwhile.
fn go_on(who: Pid, signal: Option<nix::sys::signal::Signal>) {
    let _ = ptrace::cont(who, signal);
}
