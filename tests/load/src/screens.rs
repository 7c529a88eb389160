//! Screens: readers of the page's events, as browsers that stay open on the fleet.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Pause before a screen connects again, as the page tells browsers.
const RETRY: Duration = Duration::from_secs(1);
/// A screen looks this often whether it is to close.
const LOOK: Duration = Duration::from_millis(200);
const ID: &[u8] = b"id: ";
/// Digits of an event's ID.
const ID_BYTES: usize = 16;
/// Part of an answer in which an ID may be cut.
const TAIL_BYTES: usize = 256;

/// Open screens.
pub struct Screens {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

/// Sums over all screens.
#[derive(Debug, Default)]
pub struct Counts {
    pub bytes: AtomicU64,
    /// Boards, or parts of them.
    pub boards: AtomicU64,
    /// Streams that were refused or could not be opened.
    pub refused: AtomicU64,
}

impl Screens {
    /// Opens `number` screens on the fleet of the page at `address`.
    pub fn open(address: &str, number: usize) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let screen = |_| {
            let screen = Screen {
                address: address.to_owned(),
                stop: stop.clone(),
                counts: counts.clone(),
                last: String::new(),
            };
            std::thread::spawn(move || screen.run())
        };
        let threads = (0..number).map(screen).collect();
        Self { stop, counts, threads }
    }

    /// Closes all screens.
    pub fn close(self) -> Arc<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| drop(thread.join()));
        self.counts
    }
}

struct Screen {
    address: String,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    /// ID of the last board.
    last: String,
}

impl Screen {
    fn run(mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            if self.watch().is_none() {
                self.counts.refused.fetch_add(1, Ordering::Relaxed);
            }
            std::thread::sleep(RETRY);
        }
    }

    /// Reads one stream to its end. `None` if there was none.
    fn watch(&mut self) -> Option<()> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(LOOK)).ok()?;
        write!(stream, "GET /live/fleet HTTP/1.1\r\nHost: {}\r\n", self.address).ok()?;
        write!(stream, "Last-Event-ID: {}\r\n\r\n", self.last).ok()?;
        let (mut buffer, mut tail) = (vec![0; 256 * 1024], Vec::new());
        let mut is_first = true;
        while !self.stop.load(Ordering::Relaxed) {
            let length = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => continue,
                Err(_) => break,
            };
            if std::mem::take(&mut is_first) && !buffer.starts_with(b"HTTP/1.1 200 ") {
                return None;
            }
            self.counts.bytes.fetch_add(length as u64, Ordering::Relaxed);
            tail.extend_from_slice(&buffer[..length]);
            for id in ids(&tail) {
                self.counts.boards.fetch_add(1, Ordering::Relaxed);
                self.last = id;
            }
            tail.drain(..consumed(&tail));
        }
        (!is_first || self.stop.load(Ordering::Relaxed)).then_some(())
    }
}

/// IDs of events that are complete.
fn ids(text: &[u8]) -> impl Iterator<Item = String> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(ID));
    lines.filter(|id| id.len() == ID_BYTES).map(|id| String::from_utf8_lossy(id).into_owned())
}

/// Bytes that need not be looked at again: up to the last event with an ID, and all but a tail.
fn consumed(text: &[u8]) -> usize {
    let whole = ID.len() + ID_BYTES;
    let seen = text.windows(whole).rposition(|id| id.starts_with(ID)).map_or(0, |at| at + whole);
    seen.max(text.len().saturating_sub(TAIL_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_counted_once_however_the_answer_is_cut() {
        let event = "event: replace\ndata: {}\n\nid: 0123456789abcdef\nevent: done\ndata\n\n";
        let text = event.repeat(3).into_bytes();
        for step in 1..text.len() {
            let (mut tail, mut seen) = (Vec::new(), 0);
            for part in text.chunks(step) {
                tail.extend_from_slice(part);
                seen += ids(&tail).count();
                tail.drain(..consumed(&tail));
            }
            assert_eq!(seen, 3, "in steps of {step}");
        }
    }
}
