//! Counts bytes at the sockets, in both directions and with TLS, without using CPU.
//!
//! The bench runs in its own network namespace. All traffic between its processes crosses that namespace's
//! loopback once, where the kernel counts it (`/proc/net/netstat`: octets of IP packets; `/proc/net/snmp`:
//! TCP segments). Octets minus the headers of each segment are the bytes written to sockets. A relay in user
//! space would take CPU from the two cores in proportion to the bytes sent.

use std::fs;

/// IPv4 and TCP headers with timestamps, as on any Linux. The 8 more bytes of a SYN are not subtracted.
const HEADERS_BYTES: f64 = 20.0 + 32.0;

/// Values of the counters at one moment.
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

/// Reads a value from two lines with the same key: names, then values.
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
        // Other processes may use this machine's loopback meanwhile, so there may be more bytes, but not
        // fewer.
        assert!(before.megabytes() > 3.99, "{}", before.megabytes());
    }
}
