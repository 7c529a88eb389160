//! Clients that read pages while generations are switched, and judge every answer.
//!
//! The first line of a page names its version. The rest follows from version and page number, and every
//! version has another length. A body that mixes two versions, or that is cut short or padded, is therefore
//! detected.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::http;

/// Content of page `number` in `version`.
pub fn page(version: u64, number: usize) -> Vec<u8> {
    let lines = 20 + (version as usize * 37 + number * 11) % 400;
    let mut body = format!("version {version} page {number} lines {lines}\n").into_bytes();
    for line in 0..lines {
        body.extend_from_slice(format!("<p>version {version} page {number} line {line}</p>\n").as_bytes());
    }
    body.extend_from_slice(format!("end of version {version} page {number}\n").as_bytes());
    body
}

/// Version of a page's body; `Err`: the body is not exactly one version of this page.
pub fn judge(number: usize, body: &[u8]) -> Result<u64, String> {
    let first = body.split(|b| *b == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first);
    let version = first
        .strip_prefix("version ")
        .and_then(|rest| rest.split(' ').next())
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| format!("no version in {first:?}"))?;
    if page(version, number) == body {
        Ok(version)
    } else {
        Err(format!("page {number} starts as version {version}, but is a mix of {} bytes", body.len()))
    }
}

/// Results of the clients.
#[derive(Debug, Default, Clone)]
pub struct Verdict {
    /// Number of requests, answered or failed.
    pub requests: u64,
    /// Requests without a complete answer of status 200.
    pub failed: u64,
    /// Bodies that are not exactly one version.
    pub mixed: u64,
    /// Some of the complaints.
    pub complaints: Vec<String>,
    /// The highest version seen.
    pub newest: u64,
}

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    requests: AtomicU64,
    failed: AtomicU64,
    mixed: AtomicU64,
    newest: AtomicU64,
    complaints: Mutex<Vec<String>>,
}

/// Threads that repeatedly request `/page-N.html` from a server.
pub struct Clients {
    tally: Arc<Tally>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts `threads` clients on `pages` pages at `HOST:PORT`.
    pub fn start(address: &str, pages: usize, threads: usize) -> Self {
        let tally = Arc::new(Tally::default());
        let spawn = |thread: usize| {
            let (tally, address) = (tally.clone(), address.to_string());
            std::thread::spawn(move || {
                let mut number = thread;
                while !tally.stop.load(Ordering::Relaxed) {
                    number = (number + 1) % pages;
                    tally.visit(&address, number);
                }
            })
        };
        let threads = (0..threads).map(spawn).collect();
        Self { tally, threads }
    }

    /// The highest version seen so far.
    pub fn newest(&self) -> u64 {
        self.tally.newest.load(Ordering::Relaxed)
    }

    /// Stops the clients and returns their results.
    pub fn finish(self) -> Verdict {
        self.tally.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().expect("a client does not panic");
        }
        Verdict {
            requests: self.tally.requests.load(Ordering::Relaxed),
            failed: self.tally.failed.load(Ordering::Relaxed),
            mixed: self.tally.mixed.load(Ordering::Relaxed),
            complaints: self.tally.complaints.lock().expect("no client panicked").clone(),
            newest: self.tally.newest.load(Ordering::Relaxed),
        }
    }
}

impl Tally {
    fn visit(&self, address: &str, number: usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match http::get(address, &format!("/page-{number}.html")) {
            Ok(response) if response.status == 200 => match judge(number, &response.body) {
                Ok(version) => {
                    self.newest.fetch_max(version, Ordering::Relaxed);
                }
                Err(complaint) => self.complain(&self.mixed, complaint),
            },
            Ok(response) => self.complain(&self.failed, format!("page {number}: status {}", response.status)),
            Err(broken) => self.complain(&self.failed, format!("page {number}: {broken}")),
        }
    }

    fn complain(&self, counter: &AtomicU64, complaint: String) {
        counter.fetch_add(1, Ordering::Relaxed);
        let mut complaints = self.complaints.lock().expect("no client panicked");
        if complaints.len() < 10 {
            complaints.push(complaint);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_cuts_and_padding_are_seen() {
        assert_eq!(judge(3, &page(8, 3)), Ok(8));
        let (old, new) = (page(8, 3), page(9, 3));
        let mix: Vec<u8> = old[..300].iter().chain(&new[300..]).copied().collect();
        assert!(judge(3, &mix).is_err());
        assert!(judge(3, &old[..old.len() - 1]).is_err());
        assert!(judge(3, &[old.clone(), b"\n".to_vec()].concat()).is_err());
        assert!(judge(4, &old).is_err());
        assert!(judge(3, b"").is_err());
    }
}
