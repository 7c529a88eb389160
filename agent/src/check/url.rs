//! A check by URL: one `GET` over plain HTTP/1.1, to the node itself as a rule.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;

use bytes::Bytes;
use http::header::{HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Uri};
use http_body::Body;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Bytes of an answer that are searched for the text.
const BODY_MAX_BYTES: usize = 1024 * 1024;

/// A URL with the answer that it must give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckUrl {
    authority: Authority,
    path: PathAndQuery,
    /// `None`: any of 200 to 299.
    pub status: Option<u16>,
    /// Text that the body must contain.
    pub text: Option<String>,
}

/// Reason why a URL can't be a check.
#[derive(Debug, thiserror::Error)]
pub enum UrlError {
    #[error("--check {url} is not a URL: give http://HOST:PORT/PATH, or a command")]
    Form { url: String },
    #[error("--check by URL speaks http alone: for https give a command, as in --check 'curl -fsS {url}'")]
    Encrypted { url: String },
}

/// Reason why a check by URL failed.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("can't connect to {address}")]
    Connect { address: String, source: std::io::Error },
    #[error("no whole answer from {url}")]
    Answer { url: String, source: hyper::Error },
    #[error("{url} answered {status}, not {expected}")]
    Status { url: String, status: u16, expected: String },
    #[error("the answer of {url} does not contain {text:?}")]
    Text { url: String, text: String },
}

impl fmt::Display for CheckUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Whether the value of `--check` is a URL; otherwise it is a command.
pub fn is_url(text: &str) -> bool {
    let is_scheme = |scheme: &str| text.get(..scheme.len()).is_some_and(|t| t.eq_ignore_ascii_case(scheme));
    (is_scheme("http://") || is_scheme("https://")) && !text.contains(char::is_whitespace)
}

impl CheckUrl {
    /// # Errors
    /// It is not plain HTTP, or has no host.
    pub fn new(url: &str, status: Option<u16>, text: Option<String>) -> Result<Self, UrlError> {
        let form = || UrlError::Form { url: url.to_owned() };
        let parts = url.parse::<Uri>().map_err(|_| form())?.into_parts();
        if parts.scheme != Some(Scheme::HTTP) {
            return Err(UrlError::Encrypted { url: url.to_owned() });
        }
        let authority = parts.authority.filter(|authority| !authority.host().is_empty()).ok_or_else(form)?;
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        Ok(Self { authority, path, status, text })
    }

    /// Asks once. Cancel safe.
    pub async fn ask(&self) -> Result<(), AskError> {
        let host = self.authority.host().trim_start_matches('[').trim_end_matches(']');
        let address = (host, self.authority.port_u16().unwrap_or(80));
        let stream = TcpStream::connect(address).await.map_err(|source| AskError::Connect {
            address: format!("{}:{}", address.0, address.1),
            source,
        })?;
        let failed = |source| AskError::Answer { url: self.to_string(), source };
        let (mut sender, connection) =
            http1::handshake::<_, NoBody>(TokioIo::new(stream)).await.map_err(failed)?;
        let asking = async move {
            let mut request = Request::new(NoBody);
            *request.uri_mut() = Uri::from(self.path.clone());
            let headers = request.headers_mut();
            if let Ok(host) = self.authority.as_str().parse() {
                headers.insert(HOST, host);
            }
            headers.insert(USER_AGENT, http::HeaderValue::from_static("syncd-agent check"));
            let answer = sender.send_request(request).await.map_err(failed)?;
            self.judge(answer).await
        };
        tokio::pin!(asking, connection);
        tokio::select! {
            asked = &mut asking => asked,
            // The connection may end before its answer was read.
            _ = &mut connection => asking.await,
        }
    }

    async fn judge(&self, answer: http::Response<hyper::body::Incoming>) -> Result<(), AskError> {
        let (url, status) = (self.to_string(), answer.status().as_u16());
        let is_right = self.status.map_or((200..300).contains(&status), |expected| expected == status);
        if !is_right {
            let expected = self.status.map_or_else(|| "200 to 299".to_owned(), |status| status.to_string());
            return Err(AskError::Status { url, status, expected });
        }
        let Some(text) = &self.text else { return Ok(()) };
        let body = read(answer.into_body()).await.map_err(|source| AskError::Answer { url, source })?;
        if body.windows(text.len().max(1)).any(|part| part == text.as_bytes()) || text.is_empty() {
            return Ok(());
        }
        Err(AskError::Text { url: self.to_string(), text: text.clone() })
    }
}

/// The first [`BODY_MAX_BYTES`] of a body.
async fn read(mut body: hyper::body::Incoming) -> Result<Vec<u8>, hyper::Error> {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_MAX_BYTES {
        let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await else { break };
        if let Ok(data) = frame?.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    bytes.truncate(BODY_MAX_BYTES);
    Ok(bytes)
}

/// The empty body of a request.
struct NoBody;

impl Body for NoBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
        std::task::Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn url(text: &str) -> CheckUrl {
        CheckUrl::new(text, None, None).unwrap()
    }

    #[test]
    fn a_url_is_http_and_everything_else_is_a_command() {
        assert!(is_url("http://localhost/") && is_url("HTTPS://localhost/"));
        assert!(!is_url("curl -fsS http://localhost/") && !is_url("/usr/bin/true"));
        assert_eq!(url("http://localhost:81").to_string(), "http://localhost:81/");
        let error = CheckUrl::new("https://localhost/", None, None).unwrap_err();
        assert!(error.to_string().contains("curl -fsS https://localhost/"), "{error}");
        assert!(matches!(CheckUrl::new("http:///x", None, None), Err(UrlError::Form { .. })));
    }

    /// Answers one connection with `answer`.
    async fn answering(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 4096];
            let length = stream.read(&mut asked).await.unwrap();
            let asked = String::from_utf8_lossy(&asked[..length]).to_ascii_lowercase();
            assert!(
                asked.starts_with("get /a?b http/1.1\r\n") && asked.contains("host: 127.0.0.1"),
                "{asked}"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        format!("http://{address}/a?b")
    }

    #[tokio::test]
    async fn status_and_text_decide() {
        const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        assert!(url(&answering(OK).await).ask().await.is_ok());
        let with = |text: &str| Some(text.to_owned());
        let asked = |url: String, status, text| async move {
            CheckUrl::new(&url, status, text).unwrap().ask().await.map_err(|error| error.to_string())
        };
        assert!(asked(answering(OK).await, Some(200), with("ell")).await.is_ok());
        let error = asked(answering(OK).await, None, with("bye")).await.unwrap_err();
        assert!(error.contains("does not contain \"bye\""), "{error}");
        let error = asked(answering(OK).await, Some(204), None).await.unwrap_err();
        assert!(error.contains("answered 200, not 204"), "{error}");
        let broken = "HTTP/1.1 502 Bad Gateway\r\nConnection: close\r\n\r\n";
        let error = asked(answering(broken).await, None, None).await.unwrap_err();
        assert!(error.contains("answered 502, not 200 to 299"), "{error}");
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";
        assert!(asked(answering(chunked).await, None, with("hello")).await.is_ok());
        assert!(asked(answering("no HTTP").await, None, None).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_nobody_serves_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = url(&format!("http://{address}/")).ask().await.unwrap_err();
        assert!(error.to_string().contains(&format!("can't connect to {address}")), "{error}");
    }
}
