//! Plain HTTP for monitors, load balancers and people, on its own port: `GET /healthz` ([`page`]), and the
//! pages that a program adds to it.
//!
//! HTTP/1 only. Anybody who can reach the port may connect, so nothing here waits for a client. At most
//! [`CONNECTIONS_MAX`] connections are open, and the oldest gives way to a new one. A request must arrive
//! within [`HEAD_TIMEOUT`], and no connection lives longer than [`CONNECTION_LIFE`].

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Maximum number of open connections.
pub const CONNECTIONS_MAX: usize = 64;
/// Time limit from the connection, or from the previous answer, to the end of a request's headers.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// A monitor that keeps its connection open reconnects after this time.
pub const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// Size limit of request line and headers.
const HEAD_MAX_BYTES: usize = 16 * 1024;
/// Pause before accepting again after a failure, such as a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Health of the program, as it reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Answered with status 200, otherwise 503.
    pub is_well: bool,
    /// One line.
    pub text: String,
}

/// The page `GET /healthz`. `health` is called for every request and must not block.
pub fn page(health: impl Fn() -> Health + Clone + Send + Sync + 'static) -> Router {
    line("/healthz", "text/plain; charset=utf-8", health)
}

/// A page with one line of that media type. `answer` is called for every request and must not block.
pub fn line(
    path: &str,
    media: &'static str,
    answer: impl Fn() -> Health + Clone + Send + Sync + 'static,
) -> Router {
    let answer = get(move || {
        let Health { is_well, text } = answer();
        let code = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        std::future::ready((code, [(CONTENT_TYPE, media)], format!("{text}\n")))
    });
    Router::new().route(path, answer)
}

/// Answers requests for the pages of `router` until `stop`, then closes open connections.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    serve_each(listener, stop, |stream| answer_on(stream, router.clone())).await;
}

/// Like [`serve`], inside TLS.
pub async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    serve_each(listener, stop, |stream| {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        async move {
            match tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => answer_on(stream, router).await,
                Ok(Err(error)) => tracing::debug!(%error, "a handshake of a page failed"),
                Err(_) => {}
            }
        }
    })
    .await;
}

async fn serve_each<F: Future<Output = ()> + Send + 'static>(
    listener: TcpListener,
    stop: CancellationToken,
    answer: impl Fn(TcpStream) -> F,
) {
    // Dropped on return, which closes every connection.
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => connections.open(answer(stream)),
            Err(error) => {
                tracing::debug!(%error, "a health connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection until the client closes it or its time is over. Errors affect no other connection.
async fn answer_on(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_LIFE, served).await {
        Ok(Ok(())) | Err(_) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a health connection broke"),
    }
}

/// The open connections, oldest first.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: VecDeque<AbortHandle>,
}

impl Connections {
    fn open(&mut self, connection: impl Future<Output = ()> + Send + 'static) {
        self.open.retain(|open| !open.is_finished());
        while self.open.len() >= CONNECTIONS_MAX {
            if let Some(oldest) = self.open.pop_front() {
                oldest.abort();
            }
        }
        self.open.push_back(self.tasks.spawn(connection));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    const LIMIT: Duration = Duration::from_secs(60);

    async fn started() -> (SocketAddr, CancellationToken, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let health = || Health { is_well: true, text: "ok".into() };
        let served = tokio::spawn(serve(listener, page(health), stop.clone()));
        (address, stop, served)
    }

    /// Says something and returns all that is answered until the connection is closed.
    async fn said(stream: &mut TcpStream, text: &str) -> String {
        let _ = stream.write_all(text.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut answer)).await.expect("it stays open");
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn health_is_answered_over_http_1_alone() {
        let (address, _stop, _served) = started().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = said(&mut stream, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nok\n"), "{answer}");
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = said(&mut stream, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer:?}");
    }

    #[tokio::test]
    async fn half_requests_end_and_a_thousand_of_them_keep_nobody_out() {
        crate::open_files::raise_limit();
        let (address, _stop, _served) = started().await;
        let mut half = Vec::new();
        for _ in 0..10 * CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: ").await;
            half.push(stream);
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        let answer = said(&mut stream, "GET /healthz HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains("200"), "{answer}");
        // The oldest was pushed out, the youngest runs out of time.
        let (mut oldest, mut youngest) = (half.remove(0), half.pop().unwrap());
        assert_eq!(said(&mut oldest, "").await, "");
        assert!(!said(&mut youngest, "").await.contains("200"));
    }

    #[tokio::test]
    async fn a_stop_waits_for_no_client() {
        let (address, stop, served) = started().await;
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
        stop.cancel();
        tokio::time::timeout(HEAD_TIMEOUT / 2, served).await.expect("it waits").unwrap();
        assert_eq!(said(&mut half, "").await, "");
    }
}
