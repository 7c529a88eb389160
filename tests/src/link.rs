//! A long link: a TCP proxy that delays, limits the rate, and counts bytes.
//!
//! All connections through one [`Link`] share its rate, as on a real line. Bytes wait for their turn on the
//! line, and then for the delay. A queue of [`QUEUE`] precedes the line, and a sender is not read while it is
//! full. A new connection waits for one round trip, like a SYN. Congestion control is not simulated: the rate
//! of one plain TCP connection through the same link ([`Link::plain_tcp_rate`]) is the reference.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Length of the queue before the line, as time on the line.
const QUEUE: Duration = Duration::from_millis(50);
/// Buffer between the link and the connecting side.
const SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Bytes read at a time.
const CHUNK_BYTES: usize = 32 * 1024;

/// Properties of a line, the same in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    pub round_trip: Duration,
    /// Bytes per second.
    pub bytes_per_second: f64,
}

/// A running proxy. It ends with the process.
pub struct Link {
    address: SocketAddr,
    line: Line,
    down: Arc<Mutex<Lane>>,
}

/// One direction of the link.
#[derive(Default)]
struct Lane {
    busy_until: Option<Instant>,
    /// Times and sizes of deliveries.
    passed: VecDeque<(Instant, u64)>,
}

impl Link {
    /// A link to the listener at `to`.
    #[track_caller]
    pub fn new(to: &str, line: Line) -> Self {
        let to: SocketAddr = to.parse().expect("an address");
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let (up, down) = (Arc::<Mutex<Lane>>::default(), Arc::<Mutex<Lane>>::default());
        let link = Self { address, line, down: down.clone() };
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let (up, down) = (up.clone(), down.clone());
                thread::spawn(move || {
                    thread::sleep(line.round_trip);
                    let Ok(far) = TcpStream::connect(to) else { return };
                    let copies = near.try_clone().and_then(|n| Ok((n, far.try_clone()?)));
                    let Ok((near_too, far_too)) = copies else { return };
                    let _ = near.set_nodelay(true).and_then(|()| far.set_nodelay(true));
                    // Bytes in this buffer have not been delivered.
                    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&near, SEND_BUFFER_BYTES);
                    pass(near, far, line, up);
                    pass(far_too, near_too, line, down);
                });
            }
        });
        link
    }

    /// Address to connect to.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Forgets all deliveries.
    pub fn reset(&self) {
        lock(&self.down).passed.clear();
    }

    /// Bytes delivered to the connecting side since [`Self::reset`], and the time from `since` to the last
    /// delivery.
    pub fn delivered(&self, since: Instant) -> (u64, Duration) {
        let lane = lock(&self.down);
        let last = lane.passed.back().map_or(since, |(at, _)| *at);
        (lane.passed.iter().map(|(_, bytes)| bytes).sum(), last.saturating_duration_since(since))
    }

    /// Bytes per second during the middle 90 % of the deliveries, which excludes the time before and after a
    /// bulk transfer.
    pub fn steady_rate(&self) -> f64 {
        let lane = lock(&self.down);
        let total: u64 = lane.passed.iter().map(|(_, bytes)| bytes).sum();
        let at = |share: f64| {
            let mut sum = 0;
            lane.passed.iter().find_map(|(at, bytes)| {
                sum += bytes;
                (sum as f64 >= total as f64 * share).then_some(*at)
            })
        };
        let (Some(start), Some(end)) = (at(0.05), at(0.95)) else { return f64::NAN };
        total as f64 * 0.9 / end.saturating_duration_since(start).as_secs_f64()
    }

    /// Largest number of bytes delivered within one second.
    pub fn fullest_second(&self) -> u64 {
        let lane = lock(&self.down);
        let (mut sum, mut most, mut first) = (0, 0, 0);
        for (at, bytes) in &lane.passed {
            sum += bytes;
            while lane.passed[first].0 + Duration::from_secs(1) < *at {
                sum -= lane.passed[first].1;
                first += 1;
            }
            most = most.max(sum);
        }
        most
    }

    /// Bytes per second of one plain TCP connection that transfers `bytes` through such a link, from its
    /// start to the last byte.
    #[track_caller]
    pub fn plain_tcp_rate(line: Line, bytes: usize) -> f64 {
        let source = TcpListener::bind("127.0.0.1:0").expect("listen");
        let to = source.local_addr().expect("an address").to_string();
        thread::spawn(move || {
            let (mut stream, _) = source.accept().expect("a connection");
            let block = vec![7; 256 * 1024];
            let mut left = bytes;
            while left > 0 {
                let now = left.min(block.len());
                if stream.write_all(&block[..now]).is_err() {
                    return;
                }
                left -= now;
            }
        });
        let link = Self::new(&to, line);
        let started = Instant::now();
        let mut stream = TcpStream::connect(link.address).expect("connect");
        let received = std::io::copy(&mut stream, &mut std::io::sink()).expect("receive");
        assert_eq!(received, bytes as u64);
        bytes as f64 / started.elapsed().as_secs_f64()
    }

    /// Times, in milliseconds since `since`, and sizes of the first deliveries. Shows where a start spends
    /// its round trips.
    pub fn first(&self, count: usize, since: Instant) -> Vec<(u128, u64)> {
        let lane = lock(&self.down);
        let passed = lane.passed.iter().take(count);
        passed.map(|(at, bytes)| (at.saturating_duration_since(since).as_millis(), *bytes)).collect()
    }

    pub fn line(&self) -> Line {
        self.line
    }
}

fn lock(lane: &Mutex<Lane>) -> MutexGuard<'_, Lane> {
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Transfers one direction of one connection, on two threads.
fn pass(from: TcpStream, to: TcpStream, line: Line, lane: Arc<Mutex<Lane>>) {
    let (on_the_way, arriving) = channel();
    let receiving_lane = lane.clone();
    thread::spawn(move || receive(from, line, &receiving_lane, &on_the_way));
    thread::spawn(move || deliver(to, &arriving, &lane));
}

fn receive(mut from: TcpStream, line: Line, lane: &Mutex<Lane>, on_the_way: &Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let Ok(length @ 1..) = from.read(&mut chunk) else { return };
        chunk.truncate(length);
        let sent_at = {
            let mut lane = lock(lane);
            let start = lane.busy_until.map_or_else(Instant::now, |busy| busy.max(Instant::now()));
            *lane.busy_until.insert(start + Duration::from_secs_f64(length as f64 / line.bytes_per_second))
        };
        if on_the_way.send((sent_at + line.round_trip / 2, chunk)).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
        thread::sleep(sent_at.saturating_duration_since(Instant::now()).saturating_sub(QUEUE));
    }
}

fn deliver(mut to: TcpStream, arriving: &Receiver<(Instant, Vec<u8>)>, lane: &Mutex<Lane>) {
    for (due, chunk) in arriving {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&chunk).is_err() {
            break;
        }
        lock(lane).passed.push_back((Instant::now(), chunk.len() as u64));
    }
    // Passes on the end of the stream, or ends a broken one.
    let _ = to.shutdown(Shutdown::Write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_delays_and_limits() {
        let line = Line { round_trip: Duration::from_millis(60), bytes_per_second: 10e6 };
        let rate = Link::plain_tcp_rate(line, 5_000_000);
        // Half a second on the line, and at most two round trips.
        assert!((6.5e6..10e6).contains(&rate), "{rate}");
    }
}
