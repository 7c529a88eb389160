//! A tracer that counts a program's changes to one directory, on all threads, and stops before them or makes
//! them fail.
//!
//! `strace -e inject=CALL:when=N` counts the calls of each thread separately, so a call that another thread
//! makes later is never hit. This tracer stops every thread at each system call. It asks a policy about the
//! calls that change something below the watched directory, in one order for all threads. If the policy
//! says so, it freezes the program: no thread changes anything from then on, although threads may still
//! communicate, and the caller cuts the power at exactly that moment. Linux on x86-64 only.

use std::collections::HashMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::calls::{self, Call};

/// A call that would change something.
#[derive(Debug, Clone)]
pub struct Point {
    /// Position among all such calls, from 1.
    pub ordinal: usize,
    /// Name of the call.
    pub call: &'static str,
    /// Changed path, relative to the watched directory.
    pub path: String,
    /// Name of the thread.
    pub thread: String,
}

impl Point {
    /// Call and path without numbers and hashes: the same in every run.
    pub fn label(&self) -> String {
        let mut label = format!("{} ", self.call);
        let mut digits = false;
        for part in self.path.split('/') {
            if !label.ends_with(' ') {
                label.push('/');
            }
            let hash = part.len() >= 64 && part.bytes().take(64).all(|b| b.is_ascii_hexdigit());
            if hash || (part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit())) {
                label.push('H');
                label.push_str(part.get(64..).unwrap_or(""));
                continue;
            }
            for c in part.chars() {
                if !c.is_ascii_digit() {
                    label.push(c);
                } else if !digits {
                    label.push('#');
                }
                digits = c.is_ascii_digit();
            }
        }
        label
    }
}

/// Decision about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call is made.
    Pass,
    /// Neither this call nor any later change is made: each thread stops before its next one, until the
    /// program is killed.
    FreezeBefore,
    /// The call is made, but no later change.
    FreezeAfter,
    /// The call is not made, and fails with this error number.
    Fail(i32),
    /// A write writes a third of its bytes.
    Short,
}

/// Decides about each [`Point`].
pub type Policy = Box<dyn FnMut(&Point) -> Verdict + Send>;

#[derive(Default)]
struct State {
    pid: Option<Pid>,
    points: Vec<Point>,
    last: Option<Instant>,
    frozen: bool,
    ended: Option<ExitStatus>,
    broken: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A traced program. Dropping this kills it.
pub struct Traced {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Traced {
    /// Starts `command` with the given standard output and error, and asks `policy` about every call that
    /// changes something below `watched`.
    #[track_caller]
    pub fn start(command: &Command, watched: &Path, policy: Policy) -> Self {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        // The program must not run before it is traced.
        let mut gated = Command::new("sh");
        gated.args(["-c", "read go; exec \"$0\" \"$@\" </dev/null"]);
        gated.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => gated.env(name, value),
                None => gated.env_remove(name),
            };
        }
        let watched = watched.to_path_buf();
        let (log, out) = (watched.with_extension("log"), watched.with_extension("out"));
        let open = |path: &Path| {
            std::fs::OpenOptions::new().create(true).append(true).open(path).expect("open a log")
        };
        gated.stdin(Stdio::piped()).stdout(open(&out)).stderr(open(&log));
        let thread = std::thread::spawn(move || {
            let result = Loop { shared: &own, watched, policy, tasks: HashMap::new() }.run(gated);
            let mut state = own.lock();
            if let Err(error) = result {
                state.broken = Some(error);
            }
            own.changed.notify_all();
        });
        Self { shared, thread: Some(thread) }
    }

    /// Path of the file with the program's standard error.
    pub fn log_of(watched: &Path) -> PathBuf {
        watched.with_extension("log")
    }

    /// All points so far.
    pub fn points(&self) -> Vec<Point> {
        self.shared.lock().points.clone()
    }

    /// Number of points so far.
    pub fn count(&self) -> usize {
        self.shared.lock().points.len()
    }

    /// Time since the last point; `None`: there was none.
    pub fn idle(&self) -> Option<Duration> {
        self.shared.lock().last.map(|at| at.elapsed())
    }

    /// Exit status, if the program has ended on its own.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.shared.lock().ended
    }

    /// Waits until the program is frozen or ended, `done` returns true, or `limit` passes. Returns whether it
    /// is frozen.
    #[track_caller]
    pub fn wait(&self, limit: Duration, mut done: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            {
                let state = self.shared.lock();
                if let Some(broken) = &state.broken {
                    panic!("the tracer failed: {broken}");
                }
                if state.frozen || state.ended.is_some() {
                    return state.frozen;
                }
                let (state, _) = self
                    .shared
                    .changed
                    .wait_timeout(state, Duration::from_millis(10))
                    .unwrap_or_else(PoisonError::into_inner);
                if state.frozen || state.ended.is_some() {
                    return state.frozen;
                }
            }
            if done(self) || Instant::now() > deadline {
                return false;
            }
        }
    }

    /// Kills the program and waits until it is gone.
    pub fn kill(&mut self) {
        let pid = self.shared.lock().pid;
        if let (Some(pid), None) = (pid, self.ended()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        self.kill();
    }
}

/// System call that a thread is executing.
#[derive(Clone, Copy)]
enum Task {
    Outside,
    Inside(Verdict),
}

struct Loop<'a> {
    shared: &'a Shared,
    watched: PathBuf,
    policy: Policy,
    tasks: HashMap<Pid, Task>,
}

impl Loop<'_> {
    fn run(mut self, mut command: Command) -> Result<(), String> {
        let failed = |what: &'static str| move |error: Errno| format!("{what}: {error}");
        let mut child = command.spawn().map_err(|e| e.to_string())?;
        let pid = Pid::from_raw(child.id() as i32);
        let options = Options::PTRACE_O_TRACESYSGOOD
            | Options::PTRACE_O_TRACECLONE
            | Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACEEXEC
            | Options::PTRACE_O_EXITKILL;
        ptrace::seize(pid, options).map_err(failed("seize"))?;
        ptrace::interrupt(pid).map_err(failed("interrupt"))?;
        self.shared.lock().pid = Some(pid);
        let mut gate = child.stdin.take();
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(()),
                Err(error) => return Err(format!("wait: {error}")),
            };
            match status {
                WaitStatus::Exited(who, code) => {
                    self.tasks.remove(&who);
                    if who == pid {
                        self.end(ExitStatus::from_raw(code << 8));
                    }
                }
                WaitStatus::Signaled(who, signal, _) => {
                    self.tasks.remove(&who);
                    if who == pid {
                        self.end(ExitStatus::from_raw(signal as i32));
                    }
                }
                WaitStatus::PtraceSyscall(who) => self.syscall(who),
                WaitStatus::PtraceEvent(who, signal, event) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        self.tasks.insert(who, Task::Inside(Verdict::Pass));
                    }
                    if let Some(mut gate) = gate.take() {
                        let _ = gate.write_all(b"go\n");
                    }
                    let _ = signal;
                    resume(who, None);
                }
                WaitStatus::Stopped(who, signal) => resume(who, Some(signal)),
                _ => {}
            }
        }
    }

    fn end(&self, status: ExitStatus) {
        self.shared.lock().ended = Some(status);
        self.shared.changed.notify_all();
    }

    fn freeze(&self) {
        self.shared.lock().frozen = true;
        self.shared.changed.notify_all();
    }

    fn syscall(&mut self, who: Pid) {
        let task = self.tasks.get(&who).copied().unwrap_or(Task::Outside);
        match task {
            Task::Outside => {
                let Some(verdict) = self.enter(who) else { return };
                self.tasks.insert(who, Task::Inside(verdict));
                if verdict == Verdict::FreezeBefore {
                    return self.freeze();
                }
            }
            Task::Inside(verdict) => {
                self.tasks.insert(who, Task::Outside);
                match verdict {
                    Verdict::FreezeAfter => return self.freeze(),
                    Verdict::Fail(errno) => {
                        if let Ok(mut registers) = ptrace::getregs(who) {
                            registers.rax = (-i64::from(errno)) as u64;
                            let _ = ptrace::setregs(who, registers);
                        }
                    }
                    _ => {}
                }
            }
        }
        resume(who, None);
    }

    /// `None`: the thread stays stopped.
    fn enter(&mut self, who: Pid) -> Option<Verdict> {
        let Ok(mut registers) = ptrace::getregs(who) else { return Some(Verdict::Pass) };
        let r = &registers;
        let call = Call { number: r.orig_rax as i64, arguments: [r.rdi, r.rsi, r.rdx, r.r10, r.r8, r.r9] };
        let Some((name, path)) = calls::change(who, &call, &self.watched) else {
            return Some(Verdict::Pass);
        };
        if self.shared.lock().frozen {
            return None;
        }
        let thread = std::fs::read_to_string(format!("/proc/{who}/comm")).unwrap_or_default();
        let point = {
            let mut state = self.shared.lock();
            let thread = thread.trim().to_owned();
            let point = Point { ordinal: state.points.len() + 1, call: name, path, thread };
            state.points.push(point.clone());
            state.last = Some(Instant::now());
            point
        };
        let verdict = (self.policy)(&point);
        match verdict {
            Verdict::Fail(_) => {
                registers.orig_rax = u64::MAX;
                let _ = ptrace::setregs(who, registers);
            }
            Verdict::Short if matches!(name, "write" | "pwrite64") && registers.rdx > 1 => {
                registers.rdx = registers.rdx.div_ceil(3);
                let _ = ptrace::setregs(who, registers);
            }
            _ => {}
        }
        Some(verdict)
    }
}

/// Errors mean that the thread was killed meanwhile.
fn resume(who: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(who, signal);
}
