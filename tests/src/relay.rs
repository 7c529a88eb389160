//! An HTTP relay that spoils what passes, for clients of object stores and caches: one request for each
//! connection. It changes what it is told to, and nothing else.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// A change to the requests whose first line contains a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spoil {
    /// The connection is closed without an answer, and the request is not passed on.
    Close,
    /// The request is passed on, and the connection closed without an answer.
    LoseAnswer,
    /// Half of the request's body is passed on, and everything closed.
    CutRequest,
    /// Nothing is passed on, and the connection stays open.
    Stall,
    /// This header of requests is removed.
    Strip(&'static str),
    /// The store is not asked: this is the status.
    Status(u16),
    /// The answer ends after half of its body.
    CutAnswer,
    /// The answer is the first one that the same request ever had, as a cache without a limit gives it.
    Stale,
    /// A byte in the middle of the answer's body is another one.
    Flip,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<(&'static str, Spoil)>>,
    spoiled: AtomicU64,
    passed: AtomicU64,
    /// First answers to requests for small objects, by the first line of the request.
    first: Mutex<HashMap<String, Vec<u8>>>,
}

/// Longest answer that is kept.
const KEPT_BYTES: usize = 64 * 1024;

/// A running relay. It ends with the process.
pub struct Relay {
    address: String,
    shared: Arc<Shared>,
}

impl Relay {
    /// A relay to the server at `to`.
    #[track_caller]
    pub fn new(to: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address").to_string();
        let shared = Arc::new(Shared::default());
        let (to, with) = (to.to_owned(), shared.clone());
        thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let (to, shared) = (to.clone(), with.clone());
                thread::spawn(move || serve(near, &to, &shared));
            }
        });
        Self { address, shared }
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Spoils requests whose first line contains `text`, until [`Self::heal`].
    pub fn spoil(&self, text: &'static str, how: Spoil) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).push((text, how));
    }

    /// Spoils nothing more.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Requests that were spoiled so far.
    pub fn spoiled(&self) -> u64 {
        self.shared.spoiled.load(Ordering::SeqCst)
    }

    /// Bytes of answers that were passed on so far.
    pub fn passed(&self) -> u64 {
        self.shared.passed.load(Ordering::SeqCst)
    }
}

/// One message: everything up to the empty line, and the body that its headers announce.
fn read_message(stream: &mut TcpStream, is_answer_to_head: bool) -> Option<(String, Vec<u8>)> {
    let (mut received, mut buffer) = (Vec::new(), [0; 64 * 1024]);
    let end = loop {
        if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        match stream.read(&mut buffer) {
            Ok(length @ 1..) => received.extend_from_slice(&buffer[..length]),
            _ => return None,
        }
    };
    let mut body = received.split_off(end);
    let head = String::from_utf8_lossy(&received).into_owned();
    let length = header(&head, "content-length").and_then(|value| value.parse::<usize>().ok());
    if is_answer_to_head {
        return Some((head, Vec::new()));
    }
    let is_request = !head.starts_with("HTTP/");
    let wanted = match length {
        Some(length) => length,
        None if is_request => 0,
        // Answers without a length end with the connection.
        None => usize::MAX,
    };
    while body.len() < wanted {
        match stream.read(&mut buffer) {
            Ok(length @ 1..) => body.extend_from_slice(&buffer[..length]),
            _ => break,
        }
    }
    Some((head, body))
}

fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The head without a header, and with a connection that is closed after the answer.
fn rewritten(head: &str, strip: Option<&str>) -> String {
    let keep = |line: &&str| {
        let name = line.split(':').next().unwrap_or_default();
        !name.eq_ignore_ascii_case("connection")
            && strip.is_none_or(|strip| !name.eq_ignore_ascii_case(strip))
    };
    let lines: Vec<&str> = head.trim_end().lines().filter(keep).collect();
    format!("{}\r\nConnection: close\r\n\r\n", lines.join("\r\n"))
}

fn serve(mut near: TcpStream, to: &str, shared: &Shared) {
    let Some((head, body)) = read_message(&mut near, false) else { return };
    let line = head.lines().next().unwrap_or_default().to_owned();
    let rules = shared.rules.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let spoil = rules.into_iter().find(|(text, _)| line.contains(text)).map(|(_, how)| how);
    if spoil.is_some() {
        shared.spoiled.fetch_add(1, Ordering::SeqCst);
    }
    let strip = match spoil {
        Some(Spoil::Close) => return,
        Some(Spoil::Stall) => {
            // Until the client gives up, or the test ends.
            let _ = near.set_read_timeout(Some(Duration::from_secs(600)));
            let _ = near.read(&mut [0; 1]);
            return;
        }
        Some(Spoil::Status(status)) => {
            let answer =
                format!("HTTP/1.1 {status} Spoiled\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = near.write_all(answer.as_bytes());
            return;
        }
        Some(Spoil::Stale) => {
            let first = shared.first.lock().unwrap_or_else(PoisonError::into_inner).get(&line).cloned();
            if let Some(answer) = first {
                let _ = near.write_all(&answer);
                return;
            }
            None
        }
        Some(Spoil::Strip(name)) => Some(name),
        _ => None,
    };
    let Ok(mut far) = TcpStream::connect(to) else { return };
    let sent = if spoil == Some(Spoil::CutRequest) { body.len() / 2 } else { body.len() };
    let request = [rewritten(&head, strip).as_bytes(), &body[..sent]].concat();
    if far.write_all(&request).is_err() || spoil == Some(Spoil::CutRequest) {
        return;
    }
    let Some((head, mut body)) = read_message(&mut far, line.starts_with("HEAD ")) else { return };
    match spoil {
        Some(Spoil::LoseAnswer) => return,
        Some(Spoil::CutAnswer) => body.truncate(body.len() / 2),
        Some(Spoil::Flip) => {
            let at = body.len() / 2;
            body.get_mut(at).into_iter().for_each(|byte| *byte ^= 1);
        }
        _ => {}
    }
    let answer = [rewritten(&head, None).as_bytes(), &body].concat();
    if spoil.is_none() && answer.len() <= KEPT_BYTES && head.starts_with("HTTP/1.1 200") {
        let mut first = shared.first.lock().unwrap_or_else(PoisonError::into_inner);
        first.entry(line).or_insert_with(|| answer.clone());
    }
    if near.write_all(&answer).is_ok() {
        shared.passed.fetch_add(body.len() as u64, Ordering::SeqCst);
    }
}
