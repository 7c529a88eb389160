//! Bytes at the sockets, both directions, TLS included, and nobody's CPU spent on counting them.
//!
//! The bench runs in a network namespace of its own: everything that its processes say to each other crosses that
//! namespace's loopback, once, and the kernel counts it (`/proc/net/netstat`, octets of IP packets; `/proc/net/snmp`,
//! TCP segments). Octets less the headers of each segment are what was written to sockets. A relay in user space would
//! cost whoever sends more bytes more of the two cores.

use std::fs;

/// IPv4 and TCP headers with timestamps, as on any Linux; a SYN has 8 bytes more, which stay in.
const HEADERS_BYTES: f64 = 20.0 + 32.0;

/// The counters at one moment.
pub struct Wire {
    octets: f64,
    segments: f64,
}

impl Wire {
    /// Reads the counters.
    pub fn now() -> Self {
        Self {
            octets: counter("/proc/net/netstat", "IpExt:", "InOctets"),
            segments: counter("/proc/net/snmp", "Tcp:", "InSegs"),
        }
    }

    /// Megabytes since then.
    pub fn megabytes(&self) -> f64 {
        let now = Self::now();
        (now.octets - self.octets - (now.segments - self.segments) * HEADERS_BYTES) / 1e6
    }
}

/// Two lines of one key: names, then values.
fn counter(file: &str, key: &str, name: &str) -> f64 {
    let text = fs::read_to_string(file).expect("read the kernel's network counters");
    let mut lines = text.lines().filter(|line| line.starts_with(key));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let place = names.split_whitespace().position(|word| word == name);
    let value = place.and_then(|place| values.split_whitespace().nth(place)).and_then(|v| v.parse().ok());
    value.unwrap_or_else(|| panic!("{file} has no {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn what_crosses_a_socket_is_counted_once() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let before = Wire::now();
        let sender = std::thread::spawn(move || {
            TcpStream::connect(address).and_then(|mut s| s.write_all(&[7; 4_000_000])).expect("send");
        });
        let mut received = Vec::new();
        listener.accept().expect("accept").0.read_to_end(&mut received).expect("receive");
        sender.join().expect("a sender");
        // Others may use this machine's loopback meanwhile; less than was sent it can't be.
        assert!(before.megabytes() > 3.99, "{}", before.megabytes());
    }
}
