//! A minimal HTTP/1.1 client that judges responses: one request for each connection, and the whole answer or
//! the reason why it broke.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A complete answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Status line and headers, unchanged.
    pub head: String,
    /// Exactly as many bytes as the headers or chunks announced.
    pub body: Vec<u8>,
}

impl Response {
    /// Value of a header. Names are compared without case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// Reason why there is no complete answer.
pub type Broken = String;

/// A request whose answer is read by the caller, at any pace.
pub struct Download {
    stream: TcpStream,
    /// Status code.
    pub status: u16,
    /// Length of the body in bytes.
    pub length: u64,
    head: String,
    received: Vec<u8>,
}

impl Download {
    /// Sends `GET path` to `address` (`HOST:PORT`) and reads the headers.
    pub fn start(address: &str, path: &str) -> Result<Self, Broken> {
        let mut stream = TcpStream::connect(address).map_err(|error| format!("connect: {error}"))?;
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).map_err(|error| format!("set a timeout: {error}"))?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
            )
            .map_err(|error| format!("send: {error}"))?;
        let mut received = Vec::new();
        let end = loop {
            if let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
                break end;
            }
            let mut buffer = [0; 2048];
            match stream.read(&mut buffer) {
                Ok(0) => return Err(format!("closed after {} bytes of headers", received.len())),
                Ok(n) => received.extend_from_slice(&buffer[..n]),
                Err(error) => return Err(format!("read headers: {error}")),
            }
        };
        let body = received.split_off(end + 4);
        let head = String::from_utf8_lossy(&received).into_owned();
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status code")?;
        if header(&head, "transfer-encoding") == Some("chunked") {
            let mut chunks = body;
            stream.read_to_end(&mut chunks).map_err(|error| format!("read chunks: {error}"))?;
            let body = joined(&chunks).ok_or("cut short between or within chunks")?;
            return Ok(Self { stream, status, length: body.len() as u64, head, received: body });
        }
        let length = header(&head, "content-length")
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("no length: {head}"))?;
        Ok(Self { stream, status, length, head, received: body })
    }

    /// Bytes of the body received so far.
    pub fn received(&self) -> usize {
        self.received.len()
    }

    /// Reads at most `limit` more bytes; 0 at the end of the body or of the connection.
    pub fn read_some(&mut self, limit: usize) -> Result<usize, Broken> {
        let wanted = limit.min((self.length as usize).saturating_sub(self.received.len()));
        let mut buffer = vec![0; wanted];
        let n = self.stream.read(&mut buffer).map_err(|error| format!("read body: {error}"))?;
        self.received.extend_from_slice(&buffer[..n]);
        Ok(n)
    }

    /// Reads the rest.
    pub fn finish(mut self) -> Result<Response, Broken> {
        while (self.received.len() as u64) < self.length {
            if self.read_some(256 * 1024)? == 0 {
                return Err(format!("closed after {} of {} bytes", self.received.len(), self.length));
            }
        }
        Ok(Response { status: self.status, head: self.head, body: self.received })
    }
}

/// Joins a chunked body; `None`: it is incomplete.
fn joined(mut chunks: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = chunks.windows(2).position(|two| two == b"\r\n")?;
        let length = usize::from_str_radix(str::from_utf8(&chunks[..end]).ok()?.trim(), 16).ok()?;
        let rest = &chunks[end + 2..];
        body.extend_from_slice(rest.get(..length)?);
        chunks = rest[length..].strip_prefix(b"\r\n")?;
        if length == 0 {
            return Some(body);
        }
    }
}

/// Sends `GET path` and returns the whole answer.
pub fn get(address: &str, path: &str) -> Result<Response, Broken> {
    Download::start(address, path)?.finish()
}

#[cfg(test)]
mod tests {
    use super::joined;

    #[test]
    fn chunks_are_joined_and_cuts_are_seen() {
        let chunks = b"4\r\nabcd\r\nA\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(joined(chunks).expect("complete"), b"abcd0123456789");
        for cut in 0..chunks.len() {
            assert_eq!(joined(&chunks[..cut]), None, "{cut}");
        }
    }
}
