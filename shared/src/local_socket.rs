//! The admin socket: one request, many answers, between a command and the running origin or agent.
//!
//! A UNIX stream socket, mode 0600. The client writes one line of JSON, the server answers with lines of JSON and
//! closes. The kernel limits a socket's path to 107 bytes; here it is named through the descriptor of its directory
//! (`/proc/self/fd/N/name`), so that only the last component is limited.
//!
//! Who binds must hold the lock of its data directory or root: a socket file that is in the way is of a process that is
//! gone, and is replaced. A crash leaves the file behind.

use std::fs::File;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Longest request, in bytes.
pub const REQUEST_MAX_BYTES: usize = 64 * 1024;
/// Longest line of an answer, in bytes.
pub const RESPONSE_MAX_BYTES: usize = 16 * 1024 * 1024;
/// A client sends its request within this time.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// After the shutdown, answers under way have this long.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);
/// Clients at once; more wait.
pub const CLIENTS_MAX: usize = 32;
/// Pause after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const BACKLOG: i32 = 16;

/// What went wrong with a local socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It could not be made.
    #[error("making the socket {path} failed", path = path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing serves it.
    #[error("nothing is running that serves {path}", path = path.display())]
    NotServed {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Reading or writing broke off.
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
    /// The client did not send its request in [`REQUEST_TIMEOUT`].
    #[error("no request came over the local socket")]
    Timeout,
    /// Not the JSON that is expected: the two programs are of different versions.
    #[error("a line on the local socket is not understood: is the running syncd of another version?")]
    Json(#[source] serde_json::Error),
}

impl SocketError {
    /// Whether no process serves the socket, so that one may open what it would have answered from.
    pub fn nobody_listens(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::NotServed { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
}

/// A directory's descriptor, and the short path of a name in it.
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

/// A bound socket. Dropping it removes the file, if it is still its own.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
    inode: (u64, u64),
}

impl Listener {
    /// Binds `path`, replacing a socket that a crash left. Nobody can connect before the mode is 0600: it listens only
    /// then, and only then gets its name. Must be called within a runtime.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        Self::bind_inner(path).map_err(|source| SocketError::Bind { path: path.to_owned(), source })
    }

    fn bind_inner(path: &Path) -> io::Result<Self> {
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
        rustix::net::listen(&socket, BACKLOG)?;
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
        std::fs::rename(&temporary, &short)?;
        let found = std::fs::symlink_metadata(&short)?;
        Ok(Self { listener, path: path.to_owned(), inode: (found.dev(), found.ino()) })
    }

    /// Answers requests, several at once, until `shutdown` is cancelled; then gives those under way
    /// [`SHUTDOWN_TIMEOUT`]. `answer` gets each request and where its answers go; dropping that ends them. A request
    /// that is not understood gets no answer. Not cancel safe.
    pub async fn serve<Req, Resp, Answer, Done>(
        self,
        shutdown: CancellationToken,
        answer: Answer,
    ) -> Result<(), SocketError>
    where
        Req: DeserializeOwned + Send + 'static,
        Resp: Serialize + Send + 'static,
        Answer: Fn(Req, Replies<Resp>) -> Done + Clone + Send + 'static,
        Done: Future<Output = ()> + Send + 'static,
    {
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = clients.join_next() => {}
                client = self.listener.accept(), if clients.len() < CLIENTS_MAX => match client {
                    Ok((stream, _)) => {
                        let answer = answer.clone();
                        clients.spawn(async move {
                            let mut stream = BufReader::new(stream);
                            match read_request(&mut stream).await {
                                Ok(request) => answer(request, Replies { stream, reply: PhantomData }).await,
                                Err(error) => tracing::debug!(%error, "a request was not understood"),
                            }
                        });
                    }
                    Err(error) if passes(&error) => {
                        tracing::warn!(%error, "accepting on the local socket failed, trying again");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                    Err(error) => return Err(SocketError::Io(error)),
                },
            }
        }
        let ended = async { while clients.join_next().await.is_some() {} };
        // Who is left then is cut off with the set.
        let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, ended).await;
        Ok(())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let own = std::fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        if own {
            // Nothing more can be done; the next bind replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Where the answers to one request go.
#[derive(Debug)]
pub struct Replies<Resp> {
    stream: BufReader<UnixStream>,
    reply: PhantomData<fn(Resp)>,
}

impl<Resp: Serialize> Replies<Resp> {
    /// Sends one answer of any number; waits while the client does not read. `false` once the client has gone away:
    /// further answers go nowhere. Not cancel safe.
    pub async fn send(&mut self, reply: Resp) -> bool {
        write_line(self.stream.get_mut(), &reply).await.is_ok()
    }

    /// Returns when the client has gone away. Cancel safe.
    pub async fn closed(&mut self) {
        let mut rest = [0; 64];
        // Clients send nothing after their request; what comes all the same is dropped.
        while matches!(self.stream.read(&mut rest).await, Ok(1..)) {}
    }
}

/// Whether accepting may work again: descriptors or memory ran out, or a client gave up.
fn passes(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNABORTED, Errno::INTR];
    Errno::from_io_error(error).is_some_and(|errno| passing.contains(&errno))
}

async fn read_request<Req: DeserializeOwned>(
    stream: &mut (impl AsyncBufRead + Unpin),
) -> Result<Req, SocketError> {
    tokio::time::timeout(REQUEST_TIMEOUT, read_line(stream, REQUEST_MAX_BYTES))
        .await
        .map_err(|_| SocketError::Timeout)??
        .ok_or(SocketError::Closed)
}

/// The answers to a request, in order.
#[derive(Debug)]
pub struct Answers<Resp> {
    stream: BufReader<UnixStream>,
    answer: PhantomData<fn() -> Resp>,
}

impl<Resp: DeserializeOwned> Answers<Resp> {
    /// The next answer; `None` when the server has closed. Not cancel safe.
    pub async fn next(&mut self) -> Result<Option<Resp>, SocketError> {
        read_line(&mut self.stream, RESPONSE_MAX_BYTES).await
    }
}

/// Sends `request` to who serves `path`. No time limit on the answers: that is the caller's.
pub async fn request<Req: Serialize, Resp: DeserializeOwned>(
    path: &Path,
    request: &Req,
) -> Result<Answers<Resp>, SocketError> {
    let not_served = |source| SocketError::NotServed { path: path.to_owned(), source };
    let (_directory, short, _) = short_path(path).map_err(not_served)?;
    let mut stream = UnixStream::connect(&short).await.map_err(not_served)?;
    write_line(&mut stream, request).await?;
    Ok(Answers { stream: BufReader::new(stream), answer: PhantomData })
}

/// Like [`request`], for a request that has one answer.
pub async fn request_one<Req: Serialize, Resp: DeserializeOwned>(
    path: &Path,
    request: &Req,
) -> Result<Resp, SocketError> {
    self::request(path, request).await?.next().await?.ok_or(SocketError::Closed)
}

async fn write_line(stream: &mut UnixStream, value: &impl Serialize) -> Result<(), SocketError> {
    let mut line = serde_json::to_vec(value).map_err(SocketError::Json)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(SocketError::Io)
}

async fn read_line<T: DeserializeOwned>(
    stream: &mut (impl AsyncBufRead + Unpin),
    limit: usize,
) -> Result<Option<T>, SocketError> {
    let mut line = Vec::new();
    let mut bounded = stream.take(limit as u64 + 1);
    bounded.read_until(b'\n', &mut line).await.map_err(SocketError::Io)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => serde_json::from_slice(&line).map(Some).map_err(SocketError::Json),
        Some(_) if line.len() >= limit => Err(SocketError::Length { limit }),
        Some(_) => Err(SocketError::Closed),
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

    /// Answers `n` with 1 to n, and 0 never.
    async fn serve(listener: Listener, shutdown: CancellationToken) {
        let answer = |n: u32, mut replies: Replies<u32>| async move {
            if n == 0 {
                std::future::pending::<()>().await;
            }
            for i in 1..=n {
                replies.send(i).await;
            }
        };
        listener.serve(shutdown, answer).await.unwrap();
    }

    #[tokio::test]
    async fn a_long_path_serves_requests_and_is_private() {
        let base = tempfile::tempdir().unwrap();
        let path = long_path(base.path());
        assert!(path.as_os_str().len() > 150);
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(Listener::bind(&path).unwrap(), shutdown.clone()));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut answers = request::<u32, u32>(&path, &3).await.unwrap();
        let mut got = Vec::new();
        while let Some(n) = answers.next().await.unwrap() {
            got.push(n);
        }
        assert_eq!(got, [1, 2, 3]);
        assert_eq!(request_one::<u32, u32>(&path, &1).await.unwrap(), 1);
        shutdown.cancel();
        server.await.unwrap();
        assert!(!path.exists(), "the socket file stays behind");
        assert!(request::<u32, u32>(&path, &1).await.unwrap_err().nobody_listens());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_not() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("admin.sock");
        assert!(request::<u32, u32>(&path, &1).await.unwrap_err().nobody_listens());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(request::<u32, u32>(&path, &1).await.unwrap_err().nobody_listens());
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(Listener::bind(&path).unwrap(), shutdown.clone()));
        assert_eq!(request_one::<u32, u32>(&path, &1).await.unwrap(), 1);
        shutdown.cancel();
        server.await.unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Listener::bind(&path), Err(SocketError::Bind { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_request_under_way_does_not_hold_up_others_nor_the_shutdown_for_ever() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("admin.sock");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(Listener::bind(&path).unwrap(), shutdown.clone()));
        let mut endless = request::<u32, u32>(&path, &0).await.unwrap();
        assert_eq!(request_one::<u32, u32>(&path, &1).await.unwrap(), 1);
        tokio::time::pause();
        shutdown.cancel();
        server.await.unwrap();
        assert!(endless.next().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn an_endless_cut_or_foreign_line_is_refused() {
        for (bytes, part) in [
            (vec![b'1'; REQUEST_MAX_BYTES + 1], "longer than"),
            (b"12".to_vec(), "too early"),
            (b"\"x\"\n".to_vec(), "not understood"),
        ] {
            let error = read_request::<u32>(&mut bytes.as_slice()).await.unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(read_request::<u32>(&mut &b"12\n"[..]).await.unwrap(), 12);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_is_noticed() {
        let (client, server) = UnixStream::pair().unwrap();
        let mut replies = Replies::<u32> { stream: BufReader::new(server), reply: PhantomData };
        let early = tokio::time::timeout(Duration::from_millis(50), replies.closed()).await;
        assert!(early.is_err(), "the client is still there");
        assert!(replies.send(1).await);
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), replies.closed()).await.expect("not noticed");
        assert!(!replies.send(2).await);
    }
}
