//! Handmade HTTP/2 inside real TLS: data that no library sends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::{PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::bad_agent::Papers;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

/// Dials with its certificate, or as a stranger.
pub struct Dialler {
    connector: TlsConnector,
    name: ServerName<'static>,
    address: SocketAddr,
}

impl Dialler {
    pub fn new(address: &str, papers: &Papers, is_stranger: bool) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(papers.authority.clone()).expect("a root");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots);
        let mut config = if is_stranger {
            builder.with_no_client_auth()
        } else {
            let key = PrivatePkcs8KeyDer::from(papers.key.serialize_der());
            builder
                .with_client_auth_cert(vec![papers.certificate.clone()], key.into())
                .expect("a certificate")
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        let name = ServerName::try_from(papers.tree_id.origin_name()).expect("a name");
        Self {
            connector: TlsConnector::from(Arc::new(config)),
            name,
            address: address.parse().expect("an address"),
        }
    }

    /// A peer that does not read has a small receive buffer, so that the origin soon finds it full.
    pub async fn dial(&self, reads: bool) -> io::Result<Wire> {
        let socket = TcpSocket::new_v4()?;
        if !reads {
            socket.set_recv_buffer_size(8 << 10)?;
        }
        let tcp = socket.connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let stream = self.connector.connect(self.name.clone(), tcp).await?;
        let (read, write) = tokio::io::split(stream);
        Ok(Wire { read, write, since: Instant::now() })
    }
}

/// A connection after the TLS handshake.
pub struct Wire {
    read: ReadHalf<TlsStream<TcpStream>>,
    write: WriteHalf<TlsStream<TcpStream>>,
    since: Instant,
}

impl Wire {
    /// Sends the output of `next`, with a pause before each part, until it ends, and reads until the origin
    /// closes the connection. Returns how long it lasted; `None`: longer than `limit`.
    pub async fn attack(
        mut self,
        pause: Duration,
        limit: Duration,
        reads: bool,
        mut next: impl FnMut() -> Option<Vec<u8>>,
    ) -> Option<Duration> {
        let since = self.since;
        let writing = async {
            while let Some(bytes) = next() {
                tokio::time::sleep(pause).await;
                if self.write.write_all(&bytes).await.is_err() || self.write.flush().await.is_err() {
                    return;
                }
            }
            std::future::pending().await
        };
        let mut buffer = vec![0; 64 << 10];
        let reading = async {
            if !reads {
                std::future::pending::<()>().await;
            }
            while !matches!(self.read.read(&mut buffer).await, Ok(0) | Err(_)) {}
        };
        let ended = async {
            tokio::select! { () = writing => {}, () = reading => {} }
        };
        tokio::time::timeout(limit, ended).await.ok().map(|()| since.elapsed())
    }
}

/// Encodes a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(payload.len(), kind, flags, stream);
    bytes.extend(payload);
    bytes
}

/// Encodes the header of a frame of any claimed length.
pub fn head(length: usize, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    let mut bytes = (length as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes
}

/// The preface and settings.
pub fn hello() -> Vec<u8> {
    [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()
}

/// The headers of a call, compressed only by the static table.
pub fn call(path: &str) -> Vec<u8> {
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.push(text.len() as u8);
        bytes.extend(text.as_bytes());
    };
    let mut block = vec![0x83, 0x86, 0x04];
    text(&mut block, path);
    block.push(0x01);
    text(&mut block, "origin");
    block.extend([0x0f, 0x10]);
    text(&mut block, "application/grpc");
    block.push(0x00);
    text(&mut block, "te");
    text(&mut block, "trailers");
    block
}
