//! A program whose changes to one directory are counted, stopped at or made to fail, whichever of its threads makes them.
//!
//! `strace -e inject=CALL:when=N` counts each call of each thread by itself, so a point that a second thread reaches later
//! is never hit. This tracer stops every thread at each system call, asks a policy about those that change something
//! below the watched directory, in one order of all threads, and freezes where the policy says so: from then on no thread
//! changes anything, though others may still talk, and the caller cuts the power at exactly that moment. Linux on x86-64.

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

/// A call that changes something, about to be made.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its place among all of them, from 1.
    pub ordinal: usize,
    /// Its name.
    pub call: &'static str,
    /// What it changes, relative to the watched directory.
    pub path: String,
    /// The thread's name.
    pub thread: String,
}

impl Point {
    /// Call and path without numbers and hashes: the same in each run.
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

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is made.
    Pass,
    /// Neither it nor any later change is made: each thread stops before its next one, until the program is killed.
    FreezeBefore,
    /// It is made, but no later change.
    FreezeAfter,
    /// It is not made and fails so.
    Fail(i32),
    /// A write writes a third of what it was to.
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

/// A traced program. It is killed when this is dropped.
pub struct Traced {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Traced {
    /// Starts `command`, whose standard output and error are as it says, and asks `policy` about every call that changes
    /// something below `watched`.
    #[track_caller]
    pub fn start(command: &Command, watched: &Path, policy: Policy) -> Self {
        let shared = Arc::<Shared>::default();
        let own = shared.clone();
        // It must not run before it is traced.
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

    /// Where the program's standard error goes.
    pub fn log_of(watched: &Path) -> PathBuf {
        watched.with_extension("log")
    }

    /// All points so far.
    pub fn points(&self) -> Vec<Point> {
        self.shared.lock().points.clone()
    }

    /// How many points there were so far.
    pub fn count(&self) -> usize {
        self.shared.lock().points.len()
    }

    /// Since the last point; `None`: there was none.
    pub fn idle(&self) -> Option<Duration> {
        self.shared.lock().last.map(|at| at.elapsed())
    }

    /// Whether it ended by itself, and how.
    pub fn ended(&self) -> Option<ExitStatus> {
        self.shared.lock().ended
    }

    /// Waits until it is frozen or ended, or `done` says so, or `limit` is over; whether it is frozen.
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

    /// SIGKILL; returns when it is gone.
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

/// What a thread is in the middle of.
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

    /// None: it stays where it is.
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

/// Errors: it was killed meanwhile.
fn resume(who: Pid, signal: Option<Signal>) {
    let _ = ptrace::syscall(who, signal);
}
