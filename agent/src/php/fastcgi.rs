//! A FastCGI client: one request a connection, an answer of bounded length, one deadline for all of it.
//!
//! Specification: <https://fastcgi-archives.github.io/FastCGI_Specification.html>. A record is a header of
//! eight bytes (version, type, request id, length of content, length of padding, reserved) and its content.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};

/// A request may take so long, with connecting and waiting for a free worker.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Bytes of an answer.
const ANSWER_MAX_BYTES: usize = 1 << 20;
/// Bytes of content in a record that this client sends.
const CONTENT_MAX_BYTES: usize = 32 * 1024;

const VERSION: u8 = 1;
const REQUEST_ID: u16 = 1;
const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
const RESPONDER: u8 = 1;

/// The address of a FastCGI server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of the file system.
    Socket(PathBuf),
    /// HOST:PORT.
    Host(String),
}

/// A text that is no [`Address`].
#[derive(Debug, thiserror::Error)]
#[error("not a socket's absolute path, nor HOST:PORT")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text.starts_with('/') {
            return Ok(Self::Socket(text.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Host(text.to_owned()))
            }
            _ => Err(AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Host(host) => f.write_str(host),
        }
    }
}

/// A request without a complete answer.
#[derive(Debug, thiserror::Error)]
pub enum FastCgiError {
    /// Nobody listens, or this user may not connect.
    #[error("can't connect")]
    Connect(#[source] io::Error),
    /// The connection broke.
    #[error("the connection broke before the answer was complete")]
    Broken(#[source] io::Error),
    /// Hung, or all its workers are busy.
    #[error("no answer within {} s", ANSWER_WITHIN.as_secs())]
    TimedOut,
    /// More than [`ANSWER_MAX_BYTES`].
    #[error("the answer is longer than {ANSWER_MAX_BYTES} bytes")]
    TooLong,
    /// Another protocol.
    #[error("the answer is not FastCGI")]
    NotFastCgi,
    /// The server could not take the request.
    #[error("the request was refused (protocol status {status})")]
    Refused {
        /// 1 to 3 in the specification.
        status: u8,
    },
}

/// The answer of a script.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The bytes after the headers.
    pub body: Vec<u8>,
    /// The server's log of this request.
    pub errors: Vec<u8>,
}

/// Sends one request and waits for its answer. Cancel safe: the connection is closed.
pub async fn request(
    address: &Address,
    params: &[(&str, &[u8])],
    body: &[u8],
) -> Result<Answer, FastCgiError> {
    let exchange = async {
        match address {
            Address::Socket(path) => {
                converse(connect(|| UnixStream::connect(path)).await?, params, body).await
            }
            Address::Host(host) => converse(connect(|| TcpStream::connect(host)).await?, params, body).await,
        }
    };
    tokio::time::timeout(ANSWER_WITHIN, exchange).await.map_err(|_| FastCgiError::TimedOut)?
}

/// A socket whose queue is full refuses at once: tries again until the deadline.
async fn connect<S, F: Future<Output = io::Result<S>>>(connect: impl Fn() -> F) -> Result<S, FastCgiError> {
    loop {
        match connect().await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            other => return other.map_err(FastCgiError::Connect),
        }
    }
}

async fn converse<S: AsyncRead + AsyncWrite>(
    stream: S,
    params: &[(&str, &[u8])],
    body: &[u8],
) -> Result<Answer, FastCgiError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let request = encode(params, body);
    let sending = async {
        writer.write_all(&request).await?;
        writer.flush().await
    };
    // A server that refuses does not read the body: its answer tells more than the broken pipe.
    let (sent, answer) = tokio::join!(sending, receive(&mut reader));
    match (sent, answer) {
        (_, Ok(answer)) => Ok(answer),
        (Err(error), Err(FastCgiError::Broken(_))) => Err(FastCgiError::Broken(error)),
        (_, Err(error)) => Err(error),
    }
}

fn encode(params: &[(&str, &[u8])], body: &[u8]) -> Vec<u8> {
    let mut pairs = Vec::new();
    for (name, value) in params {
        for part in [name.as_bytes(), value] {
            match u8::try_from(part.len()) {
                Ok(length @ ..=127) => pairs.push(length),
                _ => pairs.extend_from_slice(&(part.len() as u32 | 1 << 31).to_be_bytes()),
            }
        }
        pairs.extend_from_slice(name.as_bytes());
        pairs.extend_from_slice(value);
    }
    let mut out = Vec::with_capacity(pairs.len() + body.len() + 1024);
    record(&mut out, BEGIN_REQUEST, &[0, RESPONDER, 0, 0, 0, 0, 0, 0]);
    for (kind, content) in [(PARAMS, &*pairs), (STDIN, body)] {
        content.chunks(CONTENT_MAX_BYTES).for_each(|chunk| record(&mut out, kind, chunk));
        record(&mut out, kind, &[]);
    }
    out
}

/// `content` is at most [`CONTENT_MAX_BYTES`].
fn record(out: &mut Vec<u8>, kind: u8, content: &[u8]) {
    let ([id1, id0], [length1, length0]) = (REQUEST_ID.to_be_bytes(), (content.len() as u16).to_be_bytes());
    out.extend_from_slice(&[VERSION, kind, id1, id0, length1, length0, 0, 0]);
    out.extend_from_slice(content);
}

async fn receive(reader: &mut (impl AsyncRead + Unpin)) -> Result<Answer, FastCgiError> {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        let mut header = [0; 8];
        reader.read_exact(&mut header).await.map_err(FastCgiError::Broken)?;
        let [version, kind, id1, id0, length1, length0, padding, _] = header;
        if version != VERSION || u16::from_be_bytes([id1, id0]) != REQUEST_ID {
            return Err(FastCgiError::NotFastCgi);
        }
        let length = usize::from(u16::from_be_bytes([length1, length0]));
        let mut content = vec![0; length + usize::from(padding)];
        reader.read_exact(&mut content).await.map_err(FastCgiError::Broken)?;
        content.truncate(length);
        match kind {
            STDOUT => output.append(&mut content),
            STDERR => errors.append(&mut content),
            END_REQUEST => {
                return match content.get(4) {
                    Some(0) => answer(&output, errors),
                    Some(&status) => Err(FastCgiError::Refused { status }),
                    None => Err(FastCgiError::NotFastCgi),
                };
            }
            _ => {}
        }
        if output.len() + errors.len() > ANSWER_MAX_BYTES {
            return Err(FastCgiError::TooLong);
        }
    }
}

/// Splits headers and body; without a `Status` header it is 200.
fn answer(output: &[u8], errors: Vec<u8>) -> Result<Answer, FastCgiError> {
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").ok_or(FastCgiError::NotFastCgi)?;
    let head = String::from_utf8_lossy(&output[..end]);
    let status = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("status"))
        .and_then(|(_, value)| value.split_whitespace().next()?.parse().ok());
    Ok(Answer { status: status.unwrap_or(200), body: output[end + 4..].to_vec(), errors })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    #[test]
    fn addresses_are_paths_or_hosts_with_a_port() {
        assert_eq!("/run/php.sock".parse::<Address>().unwrap(), Address::Socket("/run/php.sock".into()));
        assert_eq!("127.0.0.1:9000".parse::<Address>().unwrap(), Address::Host("127.0.0.1:9000".into()));
        for wrong in ["", "run/php.sock", "localhost", ":9000", "localhost:port"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_request_is_what_the_specification_says() {
        let long = [b'v'; 200];
        let encoded = encode(&[("A", b"1"), ("B", &long)], b"body");
        let mut expected = vec![1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        expected.extend([1, 4, 0, 1, 0, 210, 0, 0, 1, 1, b'A', b'1', 1, 0x80, 0, 0, 200, b'B']);
        expected.extend(long);
        expected.extend([1, 4, 0, 1, 0, 0, 0, 0]);
        expected.extend([1, 5, 0, 1, 0, 4, 0, 0]);
        expected.extend(b"body");
        expected.extend([1, 5, 0, 1, 0, 0, 0, 0]);
        assert_eq!(encoded, expected);
    }

    /// Asks a server that sends `bytes`, and then hangs up or not.
    async fn answered(bytes: Vec<u8>, hangs_up: bool) -> Result<Answer, FastCgiError> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(&bytes).await;
            if !hangs_up {
                std::future::pending::<()>().await;
            }
        });
        let answer = request(&Address::Socket(path), &[("A", b"1")], &[0; 100_000]).await;
        server.abort();
        answer
    }

    fn records(parts: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        parts.iter().for_each(|(kind, content)| record(&mut out, *kind, content));
        out
    }

    #[tokio::test]
    async fn an_answer_is_put_together_also_where_the_body_was_not_read() {
        let end = [0; 8];
        let bytes = records(&[
            (STDERR, b"complaint"),
            (STDOUT, b"Status: 404 Not Found\r\nX: y\r\n"),
            (STDOUT, b"\r\nno"),
            (STDOUT, b"thing"),
            (STDOUT, b""),
            (END_REQUEST, &end),
        ]);
        let answer = answered(bytes, true).await.unwrap();
        let expected = Answer { status: 404, body: b"nothing".to_vec(), errors: b"complaint".to_vec() };
        assert_eq!(answer, expected);
    }

    #[tokio::test]
    async fn answers_that_are_broken_refused_too_long_or_no_fastcgi_are_errors() {
        let ok = records(&[(STDOUT, b"A: b\r\n\r\nall"), (END_REQUEST, &[0; 8])]);
        for cut in 0..ok.len() {
            let broken = answered(ok[..cut].to_vec(), true).await;
            assert!(matches!(broken, Err(FastCgiError::Broken(_))), "{cut}: {broken:?}");
        }
        let refused = answered(records(&[(END_REQUEST, &[0, 0, 0, 0, 2, 0, 0, 0])]), true).await;
        assert!(matches!(refused, Err(FastCgiError::Refused { status: 2 })), "{refused:?}");
        let other = answered(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), true).await;
        assert!(matches!(other, Err(FastCgiError::NotFastCgi)), "{other:?}");
        let endless = records(&[(STDOUT, &[0; CONTENT_MAX_BYTES])]).repeat(40);
        assert!(matches!(answered(endless, true).await, Err(FastCgiError::TooLong)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_hangs_is_given_up() {
        assert!(matches!(answered(Vec::new(), false).await, Err(FastCgiError::TimedOut)));
    }

    #[tokio::test]
    async fn nobody_who_listens_is_an_error() {
        let nobody = request(&Address::Socket("/nonexistent/php.sock".into()), &[], b"").await;
        assert!(matches!(nobody, Err(FastCgiError::Connect(_))), "{nobody:?}");
    }
}
