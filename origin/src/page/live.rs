//! Server-sent events: the fragments of a board, each when it changes.
//!
//! A stream sends at most once a second, and only the newest state: a slow reader skips what is between. It
//! ends after [`STREAM_LIFE`], and the browser then opens a new one, with the version of the board that it
//! has. Nothing is sent again unless that version differs.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;

use super::assets::EDITION;
use super::board::{BOARD_LIFE, Board, View};
use super::{Page, html};
use crate::collected::Collection;

/// Maximum number of open streams. Half of the connections are left to monitors and first requests.
pub const STREAMS_MAX: usize = 32;
/// Less than the life of a connection, so that a stream ends between two events.
const STREAM_LIFE: Duration = Duration::from_secs(50);
/// A silent stream sends a comment after this time, which finds out whether anybody still listens.
const SILENCE_MAX: Duration = Duration::from_secs(15);

pub async fn fleet(State(page): State<Arc<Page>>, headers: HeaderMap, uri: Uri) -> Response {
    open(page, View::Fleet, &headers, &uri).await
}

pub async fn nodes(
    State(page): State<Arc<Page>>,
    Path(number): Path<usize>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    open(page, View::Nodes(number), &headers, &uri).await
}

pub async fn node(
    State(page): State<Arc<Page>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    open(page, View::Node(name), &headers, &uri).await
}

pub async fn collected(
    State(page): State<Arc<Page>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    uri: Uri,
) -> Response {
    open(page, View::Collected(name), &headers, &uri).await
}

async fn open(page: Arc<Page>, view: View, headers: &HeaderMap, uri: &Uri) -> Response {
    let Ok(permit) = page.streams.clone().try_acquire_owned() else {
        let text = "too many pages are open: this one is refreshed when you load it again\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "10")], text).into_response();
    };
    let Some(board) = page.board(view).await else {
        return html(StatusCode::NOT_FOUND, super::document::missing());
    };
    // A browser that reconnects sends the last id; the first time the address has the version of the page.
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok());
    let known = last.or(uri.query()).unwrap_or_default().to_owned();
    let (sender, events) = mpsc::channel(1);
    tokio::spawn(Stream { page, sender, sent: Vec::new(), _permit: permit }.run(board, known));
    let kind = [("content-type", "text/event-stream"), ("cache-control", "no-store")];
    (kind, Body::from_stream(ReceiverStream::new(events))).into_response()
}

/// One stream.
struct Stream {
    page: Arc<Page>,
    sender: mpsc::Sender<Result<Bytes, Infallible>>,
    /// Versions of the fragments that the reader has, in the order of the board.
    sent: Vec<blake3::Hash>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    /// Ends when the reader is gone, the board is gone, or its time is over.
    async fn run(mut self, board: Arc<Board>, known: String) {
        let end = Instant::now() + spread(STREAM_LIFE);
        let state = &self.page.sources.state;
        // Changes since the board was made count as unseen.
        let (mut committer, mut fleet) = (state.committer.clone(), state.fleet.clone());
        let mut rollout = state.rollout.clone();
        let view = board.view.clone();
        let mut collected = self.page.sources.collected.as_ref().map(Collection::figure_changes);
        collected = collected.filter(|_| view.has_collected());
        let hello = Bytes::from(format!("retry: 1000\nevent: edition\ndata: {}\n\n", *EDITION));
        if self.sender.send(Ok(hello)).await.is_err() {
            return;
        }
        if board.version() == known {
            self.sent = board.fragments.iter().map(|fragment| fragment.version).collect();
        }
        let mut next = Some(board);
        while let Some(board) = next {
            if !self.send(&board).await {
                return;
            }
            let earliest = Instant::now() + BOARD_LIFE;
            tokio::select! {
                Ok(()) = committer.changed() => {}
                Ok(()) = fleet.changed() => {}
                Ok(()) = rollout.changed() => {}
                Ok(()) = moved(&mut collected) => {}
                () = tokio::time::sleep(SILENCE_MAX) => {}
                () = tokio::time::sleep_until(end) => return,
                () = self.sender.closed() => return,
            }
            tokio::time::sleep_until(earliest).await;
            next = self.page.board(view.clone()).await;
        }
    }

    /// Sends the fragments that the reader does not have. Returns whether anybody is listening.
    async fn send(&mut self, board: &Board) -> bool {
        let mut changed = BytesMut::new();
        let mut covered = 0;
        for (place, fragment) in board.fragments.iter().enumerate() {
            let is_known = self.sent.get(place) == Some(&fragment.version);
            if covered > 0 {
                covered -= 1;
            } else if !is_known {
                changed.put_slice(&fragment.event);
                covered = fragment.parts;
            }
        }
        self.sent = board.fragments.iter().map(|fragment| fragment.version).collect();
        let bytes = match changed.is_empty() {
            true => Bytes::from_static(b": still here\n\n"),
            false => {
                changed.put_slice(format!("id: {}\nevent: done\ndata\n\n", board.version()).as_bytes());
                changed.freeze()
            }
        };
        self.sender.send(Ok(bytes)).await.is_ok()
    }
}

/// Waits for other figures of collected directories; for ever where none are shown. Cancel safe.
async fn moved(collected: &mut Option<watch::Receiver<u64>>) -> Result<(), watch::error::RecvError> {
    match collected {
        Some(figures) => figures.changed().await,
        None => std::future::pending().await,
    }
}

/// Up to a tenth less, so that streams opened together do not end together.
fn spread(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(Instant::now());
    time.mul_f64(1.0 - (random % 100) as f64 / 1_000.0)
}
