//! The admin socket between a command and the running origin or agent: one request, any number of answers.
//!
//! A UNIX stream socket of mode 0600, or 0660 with a group ([`LocalListener::bind_for`]). The client writes
//! one line of JSON; the server answers with lines of JSON and closes. The kernel limits a socket path to 107
//! bytes. The socket is therefore addressed through the descriptor of its directory (`/proc/self/fd/N/name`),
//! which limits only the last component.
//!
//! Callers must hold the lock of their data directory or root before they bind. An existing socket file then
//! belongs to a dead process and is replaced. A crash leaves the file behind.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Gid, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

/// Longest request, in bytes.
pub const REQUEST_MAX_BYTES: usize = 64 * 1024;
/// Longest line of an answer, in bytes.
pub const RESPONSE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// Time limit for a client to send its request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 16;

/// Errors of the local socket.
#[derive(Debug, thiserror::Error)]
pub enum LocalSocketError {
    /// The socket could not be created.
    #[error("making the socket {path} failed", path = path.display())]
    Bind { path: PathBuf, source: io::Error },
    /// No process serves the socket, so the caller may open the underlying data itself.
    #[error("nothing is running that serves {path}", path = path.display())]
    NotServed { path: PathBuf, source: io::Error },
    /// The socket belongs to another user.
    #[error(
        "no permission to use {path}: run this as root or as the user of the running program, or, for an origin, as a member of its --admin-group",
        path = path.display()
    )]
    Forbidden { path: PathBuf, source: io::Error },
    /// A process may be serving the socket, but connecting to it failed.
    #[error("connecting to the socket {path} failed", path = path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// Reading or writing failed.
    #[error("talking over the local socket failed")]
    Io(#[source] io::Error),
    /// Closed before a line was complete.
    #[error("the local socket was closed too early")]
    Closed,
    /// A line is longer than its limit.
    #[error("a line on the local socket is longer than {limit} bytes")]
    Length {
        /// [`REQUEST_MAX_BYTES`] or [`RESPONSE_MAX_BYTES`].
        limit: usize,
    },
    /// The client sent no request within [`REQUEST_TIMEOUT`].
    #[error("no request came over the local socket")]
    Timeout,
    /// A line is not the expected JSON: the two programs have different versions.
    #[error("a line on the local socket is not understood: is the running syncd of another version?")]
    Json(#[source] serde_json::Error),
}

/// Opens the directory of `path`. Returns its descriptor and the short paths of the socket and of its
/// temporary name.
fn short_path(path: &Path) -> io::Result<(File, PathBuf, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = File::from(rustix::fs::open(parent, flags, Mode::empty())?);
    let base = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    Ok((directory, base.join(name), base.join(temporary)))
}

/// A bound socket. Dropping it removes the file if it still belongs to this socket.
#[derive(Debug)]
pub struct LocalListener {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl LocalListener {
    /// Binds `path` and replaces a socket left by a crash. Nobody can connect before the mode is 0600: the
    /// socket starts to listen, and gets its name, after that. Must be called within a runtime.
    pub fn bind(path: &Path) -> Result<Self, LocalSocketError> {
        Self::bind_for(path, None)
    }

    /// Like [`Self::bind`], and lets members of `group` connect. The caller must also let them pass through
    /// the directory.
    pub fn bind_for(path: &Path, group: Option<Gid>) -> Result<Self, LocalSocketError> {
        Self::bind_inner(path, group)
            .map_err(|source| LocalSocketError::Bind { path: path.to_owned(), source })
    }

    fn bind_inner(path: &Path, group: Option<Gid>) -> io::Result<Self> {
        let (_directory, short, temporary) = short_path(path)?;
        match std::fs::symlink_metadata(&short) {
            Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            _ => {}
        }
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(&temporary)?)?;
        rustix::fs::chmod(&temporary, Mode::RUSR | Mode::WUSR)?;
        if let Some(group) = group {
            rustix::fs::chown(&temporary, None, Some(group))?;
            rustix::fs::chmod(&temporary, Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::WGRP)?;
        }
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
        std::fs::rename(&temporary, &short)?;
        let found = std::fs::symlink_metadata(&short)?;
        Ok(Self { listener, path: path.to_owned(), inode: (found.dev(), found.ino()) })
    }

    /// The next client. Cancel safe.
    pub async fn accept(&self) -> io::Result<LocalConnection> {
        let (stream, _) = self.listener.accept().await?;
        Ok(LocalConnection { stream: BufReader::new(stream) })
    }
}

impl Drop for LocalListener {
    fn drop(&mut self) {
        let own = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        if own {
            // Ignored: the next bind replaces the file.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The process at the other end of a connection, as the kernel reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub uid: u32,
    /// User who logged in, whatever `sudo` made of it since; `None` without a login.
    pub login: Option<u32>,
    pub pid: Option<i32>,
}

impl Peer {
    /// This process. Blocks.
    pub fn this_process() -> Self {
        let pid = rustix::process::getpid().as_raw_pid();
        Self { uid: rustix::process::geteuid().as_raw(), login: login(pid), pid: Some(pid) }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uid {}", self.uid)?;
        if let Some(login) = self.login {
            write!(f, ", login {login}")?;
        }
        if let Some(pid) = self.pid {
            write!(f, ", pid {pid}")?;
        }
        Ok(())
    }
}

/// The user who logged in, as the kernel's audit keeps it for a process.
fn login(pid: i32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/loginuid")).ok()?;
    text.trim().parse().ok().filter(|&user| user != u32::MAX)
}

/// The server's side of a connection.
#[derive(Debug)]
pub struct LocalConnection {
    stream: BufReader<UnixStream>,
}

impl LocalConnection {
    /// Reads the single request. Not cancel safe.
    pub async fn request<Req: DeserializeOwned>(&mut self) -> Result<Req, LocalSocketError> {
        tokio::time::timeout(REQUEST_TIMEOUT, read_line(&mut self.stream, REQUEST_MAX_BYTES))
            .await
            .map_err(|_| LocalSocketError::Timeout)??
            .ok_or(LocalSocketError::Closed)
    }

    /// The client. It may have passed the connection on.
    pub fn peer(&self) -> io::Result<Peer> {
        let credentials = self.stream.get_ref().peer_cred()?;
        let pid = credentials.pid();
        Ok(Peer { uid: credentials.uid(), login: pid.and_then(login), pid })
    }

    /// Writes one of any number of answers. Not cancel safe.
    pub async fn respond<Resp: Serialize>(&mut self, response: &Resp) -> Result<(), LocalSocketError> {
        write_line(self.stream.get_mut(), response).await
    }

    /// Returns when the client has disconnected. Call it after the request only. Cancel safe.
    pub async fn closed(&mut self) {
        let mut rest = [0; 64];
        // Clients send nothing after their request; anything that arrives is dropped.
        while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
    }
}

/// The answers to a request, in order.
#[derive(Debug)]
pub struct Responses<Resp> {
    stream: BufReader<UnixStream>,
    answer: PhantomData<fn() -> Resp>,
}

impl<Resp: DeserializeOwned> Responses<Resp> {
    /// The next answer; `None` when the server has closed. Not cancel safe.
    pub async fn next(&mut self) -> Result<Option<Resp>, LocalSocketError> {
        read_line(&mut self.stream, RESPONSE_MAX_BYTES).await
    }
}

/// Sends `request` to the process that serves `path`. Applies no time limit to the answers; callers set their
/// own.
pub async fn request<Req: Serialize, Resp: DeserializeOwned>(
    path: &Path,
    request: &Req,
) -> Result<Responses<Resp>, LocalSocketError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            LocalSocketError::NotServed { path: path.to_owned(), source }
        }
        io::ErrorKind::PermissionDenied => LocalSocketError::Forbidden { path: path.to_owned(), source },
        _ => LocalSocketError::Connect { path: path.to_owned(), source },
    };
    let (_directory, short, _) = short_path(path).map_err(failed)?;
    let mut stream = UnixStream::connect(&short).await.map_err(failed)?;
    write_line(&mut stream, request).await?;
    Ok(Responses { stream: BufReader::new(stream), answer: PhantomData })
}

/// Whether a service listens at `path`. Blocks.
pub fn is_served(path: &Path) -> bool {
    short_path(path)
        .is_ok_and(|(_directory, short, _)| std::os::unix::net::UnixStream::connect(short).is_ok())
}

/// Like [`request`], for a request with exactly one answer.
pub async fn request_one<Req: Serialize, Resp: DeserializeOwned>(
    path: &Path,
    request: &Req,
) -> Result<Resp, LocalSocketError> {
    self::request(path, request).await?.next().await?.ok_or(LocalSocketError::Closed)
}

async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> Result<(), LocalSocketError> {
    let mut line = serde_json::to_vec(value).map_err(LocalSocketError::Json)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(LocalSocketError::Io)
}

/// Reads one line of JSON of at most `limit` bytes; `None` at the end. Not cancel safe.
#[doc(hidden)]
pub async fn read_line<T: DeserializeOwned>(
    stream: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> Result<Option<T>, LocalSocketError> {
    let mut line = Vec::new();
    let mut bounded = stream.take(limit as u64 + 1);
    bounded.read_until(b'\n', &mut line).await.map_err(LocalSocketError::Io)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(LocalSocketError::Json),
        Some(_) if line.len() >= limit => Err(LocalSocketError::Length { limit }),
        Some(_) => Err(LocalSocketError::Closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn long_path(base: &Path) -> PathBuf {
        let directory = base.join("d".repeat(70)).join("e".repeat(80));
        std::fs::create_dir_all(&directory).unwrap();
        directory.join("admin.sock")
    }

    /// Answers `n` with 1 to n.
    async fn serve(listener: LocalListener) {
        loop {
            let mut client = listener.accept().await.unwrap();
            match client.request::<u32>().await {
                Ok(n) => {
                    for i in 1..=n {
                        client.respond(&i).await.unwrap();
                    }
                }
                Err(error) => client.respond(&error.to_string()).await.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn a_long_path_serves_requests_and_is_private() {
        let base = tempfile::tempdir().unwrap();
        let path = long_path(base.path());
        assert!(path.as_os_str().len() > 150);
        let server = tokio::spawn(serve(LocalListener::bind(&path).unwrap()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut responses = request::<u32, u32>(&path, &3).await.unwrap();
        let mut got = Vec::new();
        while let Some(n) = responses.next().await.unwrap() {
            got.push(n);
        }
        assert_eq!(got, [1, 2, 3]);
        assert_eq!(request_one::<u32, u32>(&path, &1).await.unwrap(), 1);
        server.abort();
        assert!(server.await.unwrap_err().is_cancelled());
        assert!(!path.exists(), "the socket file stays behind");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("admin.sock");
        let missing = request::<u32, u32>(&path, &1).await;
        assert!(matches!(missing, Err(LocalSocketError::NotServed { .. })));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stale = request::<u32, u32>(&path, &1).await;
        assert!(matches!(stale, Err(LocalSocketError::NotServed { .. })));
        let server = tokio::spawn(serve(LocalListener::bind(&path).unwrap()));
        assert_eq!(request_one::<u32, u32>(&path, &1).await.unwrap(), 1);
        server.abort();
        let _ = server.await;
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(LocalListener::bind(&path), Err(LocalSocketError::Bind { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn an_endless_cut_or_foreign_request_is_refused() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("admin.sock");
        let listener = LocalListener::bind(&path).unwrap();
        for (bytes, part) in [
            (vec![b'1'; REQUEST_MAX_BYTES + 1], "longer than"),
            (b"12".to_vec(), "too early"),
            (b"\"x\"\n".to_vec(), "not understood"),
        ] {
            let mut client = UnixStream::connect(&path).await.unwrap();
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let error = listener.accept().await.unwrap().request::<u32>().await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_noticed() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("admin.sock");
        let listener = LocalListener::bind(&path).unwrap();
        let responses = request::<u32, u32>(&path, &1).await.unwrap();
        let mut client = listener.accept().await.unwrap();
        client.request::<u32>().await.unwrap();
        assert_eq!(client.peer().unwrap(), Peer::this_process());
        let early = tokio::time::timeout(Duration::from_millis(50), client.closed()).await;
        assert!(early.is_err(), "the client is still there");
        drop(responses);
        tokio::time::timeout(Duration::from_secs(5), client.closed()).await.expect("not noticed");
    }
}
