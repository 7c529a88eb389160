//! Networks that fail: a proxy that resets, stalls and flips bits in the middle of frames, and a network
//! namespace in which the kernel drops, refuses, loses and delays packets.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{set_socket_linger, set_socket_send_buffer_size};

use crate::process::run_within;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 16 * 1024;
/// Socket buffer of the proxy: these bytes count as delivered, and are lost with the connection.
const WAITING_BYTES: usize = 64 * 1024;
/// Deadline of a test in its own namespaces.
const LIMIT: Duration = Duration::from_secs(300);

/// Fault of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Both ends get a RST.
    Reset,
    /// One bit is flipped on the way to the connecting side.
    Flip,
    /// Nothing passes any more in either direction, without an error.
    Stall,
}

/// A proxy that disturbs bulk transfers. It ends with the process.
pub struct Trouble {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    to: SocketAddr,
    /// The fault, the number of bytes of a connection before it, and the number of faults left.
    plan: Mutex<(Fault, u64, u64)>,
    delivered: AtomicU64,
    caused: AtomicU64,
    connections: AtomicU64,
}

impl Trouble {
    /// A proxy to the listener at `to`, without faults.
    #[track_caller]
    pub fn new(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            to: to.parse().expect("an address"),
            plan: Mutex::new((Fault::Reset, u64::MAX, 0)),
            delivered: AtomicU64::new(0),
            caused: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let shared = state.clone();
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Ok(far) = TcpStream::connect(shared.to) else { continue };
                shared.connections.fetch_add(1, Ordering::Relaxed);
                shared.carry(near, far);
            }
        });
        Self { address, state }
    }

    /// From now on `fault` follows `bytes` of a connection, `times` times in total.
    pub fn plan(&self, fault: Fault, bytes: u64, times: u64) {
        *self.state.plan.lock().unwrap_or_else(PoisonError::into_inner) = (fault, bytes, times);
        self.state.delivered.store(0, Ordering::Relaxed);
        self.state.caused.store(0, Ordering::Relaxed);
    }

    /// Address to connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Bytes delivered to the connecting side since [`Self::plan`].
    pub fn delivered(&self) -> u64 {
        self.state.delivered.load(Ordering::Relaxed)
    }

    /// Number of faults since [`Self::plan`].
    pub fn caused(&self) -> u64 {
        self.state.caused.load(Ordering::Relaxed)
    }

    /// Number of connections so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }
}

impl State {
    fn carry(self: &Arc<Self>, near: TcpStream, far: TcpStream) {
        let copies = near.try_clone().and_then(|n| Ok((n, far.try_clone()?)));
        let Ok((near_too, far_too)) = copies else { return };
        let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
        let _ = set_socket_send_buffer_size(&near, WAITING_BYTES);
        let stalled = Arc::new(AtomicBool::new(false));
        let (up, down) = (self.clone(), self.clone());
        let stalled_up = stalled.clone();
        thread::spawn(move || up.up(near_too, far_too, &stalled_up));
        thread::spawn(move || down.down(far, near, &stalled));
    }

    fn up(&self, mut from: TcpStream, mut to: TcpStream, stalled: &AtomicBool) {
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            if stalled.load(Ordering::Relaxed) {
                continue;
            }
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn down(&self, mut from: TcpStream, mut to: TcpStream, stalled: &AtomicBool) {
        let (mut chunk, mut passed) = (vec![0; CHUNK_BYTES], 0);
        while let Ok(length @ 1..) = from.read(&mut chunk) {
            passed += length as u64;
            match self.due(passed) {
                Some(Fault::Reset) => {
                    for stream in [&from, &to] {
                        let _ = set_socket_linger(stream, Some(Duration::ZERO));
                        let _ = stream.shutdown(Shutdown::Read);
                    }
                    // Part of a frame has passed.
                    let _ = to.write_all(&chunk[..length / 2]);
                    return;
                }
                Some(Fault::Flip) => chunk[length / 2] ^= 1,
                Some(Fault::Stall) => {
                    stalled.store(true, Ordering::Relaxed);
                    // Everything is lost until both sides give up.
                    while let Ok(1..) = from.read(&mut chunk) {}
                    return;
                }
                None => {}
            }
            if to.write_all(&chunk[..length]).is_err() {
                break;
            }
            self.delivered.fetch_add(length as u64, Ordering::Relaxed);
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    /// Takes the fault that is due after this many bytes of a connection, once.
    fn due(&self, passed: u64) -> Option<Fault> {
        let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
        let (fault, after, left) = &mut *plan;
        if *left == 0 || passed < *after {
            return None;
        }
        *left -= 1;
        self.caused.fetch_add(1, Ordering::Relaxed);
        Some(*fault)
    }
}

/// Runs the test of this name again in its own network namespace, whose loopback nobody else uses. Returns
/// whether this process is that run. Needs root.
#[track_caller]
pub fn in_own_network(test: &str) -> bool {
    let inside = again_in_namespaces(test, &["--net"], LIMIT);
    if inside {
        // Packets of a usual size: those of the loopback device do not fit into the bucket of a slow line.
        shell("ip link set lo mtu 1500 up");
    }
    inside
}

/// Like [`in_own_network`], with its own mounts and processes as well. Nobody else sees its mounts, and its
/// processes end with it.
#[track_caller]
pub fn in_own_machine(test: &str) -> bool {
    in_own_machine_within(test, LIMIT)
}

/// Like [`in_own_machine`], with another deadline.
#[track_caller]
pub fn in_own_machine_within(test: &str, limit: Duration) -> bool {
    let namespaces = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let inside = again_in_namespaces(test, &namespaces, limit);
    if inside {
        shell("ip link set lo up");
        // Copies of other tests' mounts would keep their disks busy.
        shell("awk '$1 ~ \"^/dev/loop\" { print $2 }' /proc/mounts | xargs -r umount -l");
    }
    inside
}

/// Environment variable that names the test that runs in namespaces of its own.
const INSIDE: &str = "SYNCD_TESTS_INSIDE";

/// Whether this process was started again in namespaces of its own.
pub fn is_in_namespaces() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Runs the test of this name again under `unshare` with these options. Returns whether this process is that
/// run.
#[track_caller]
fn again_in_namespaces(test: &str, options: &[&str], limit: Duration) -> bool {
    if std::env::var(INSIDE).is_ok_and(|inside| inside == test) {
        return true;
    }
    let this = std::env::current_exe().expect("the path of this test executable");
    let mut command = Command::new("unshare");
    command
        .args(options)
        .arg(this)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(INSIDE, test);
    let outcome = run_within(&mut command, limit);
    println!("{}", outcome.stdout);
    if outcome.code != Some(0) {
        println!("{}", outcome.stderr);
        panic!("{test} failed in namespaces of its own: {}", panic_of(&outcome.stderr));
    }
    false
}

/// The first panic that a test program printed, without its backtrace.
fn panic_of(stderr: &str) -> String {
    const LINES: usize = 40;
    let lines = stderr.lines().skip_while(|line| !line.contains(" panicked at "));
    let panic =
        lines.take_while(|line| !line.starts_with("stack backtrace:") && !line.starts_with("note: run with"));
    panic.take(LINES).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn shell(line: &str) {
    let status = Command::new("sh").args(["-ec", line]).status().expect("start a shell");
    assert!(status.success(), "{line} failed: this test must be root, with iptables and iproute2 installed");
}

/// Controls what the kernel does to packets from and to a port in this namespace.
#[derive(Debug, Clone, Copy)]
pub struct Packets {
    port: u16,
}

impl Packets {
    /// For the port of the listener at `address`.
    #[track_caller]
    pub fn of(address: &str) -> Self {
        let address: SocketAddr = address.parse().expect("an address");
        Self { port: address.port() }
    }

    fn rule(self, target: &str) {
        for way in ["--dport", "--sport"] {
            shell(&format!("iptables -A INPUT -i lo -p tcp {way} {} {target}", self.port));
        }
    }

    /// Drops everything without an error.
    #[track_caller]
    pub fn drop_silently(self) {
        self.rule("-j DROP");
    }

    /// Answers every packet with a RST.
    #[track_caller]
    pub fn refuse(self) {
        // The RST is also a packet of this port.
        shell("iptables -A INPUT -i lo -p tcp --tcp-flags RST RST -j ACCEPT");
        self.rule("-j REJECT --reject-with tcp-reset");
    }

    /// Loses one packet in `one_in`.
    #[track_caller]
    pub fn lose(self, one_in: u32) {
        let share = 1.0 / f64::from(one_in);
        self.rule(&format!("-m statistic --mode random --probability {share} -j DROP"));
    }

    /// Number of packets lost by these rules.
    #[track_caller]
    pub fn lost(self) -> u64 {
        let list = run_within(Command::new("iptables").args(["-nvxL", "INPUT"]), Duration::from_secs(10));
        let rules = list.stdout.lines().filter(|line| line.contains("DROP"));
        rules.filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()).sum()
    }

    /// Lets everything pass again.
    #[track_caller]
    pub fn heal(self) {
        shell("iptables -F INPUT");
    }

    /// Limits each direction to this rate in kbit/s, with a queue of 400 ms. Must be called before the
    /// connection exists: TCP that has measured the loopback floods a line that becomes slow afterwards, and
    /// loses most of what it sends for many seconds.
    #[track_caller]
    pub fn slow_down(self, kbit_per_second: u32) {
        shell("tc qdisc add dev lo root handle 1: htb default 0");
        for (class, way) in [(1, "sport"), (2, "dport")] {
            // The class only separates the directions. TBF is the line: unlike HTB, it splits the large
            // segments that TCP sends.
            shell(&format!("tc class add dev lo parent 1: classid 1:{class} htb rate 10gbit"));
            let line = format!("rate {kbit_per_second}kbit burst 16kb latency 400ms");
            shell(&format!("tc qdisc add dev lo parent 1:{class} tbf {line}"));
            let filter = format!("protocol ip u32 match ip {way} {} 0xffff flowid 1:{class}", self.port);
            shell(&format!("tc filter add dev lo parent 1: {filter}"));
        }
    }
}
