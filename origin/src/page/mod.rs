//! The page for people: the fleet, the history and its differences, for reading.
//!
//! ```text
//!   GET /            one request paints everything: document.rs around the fragments of a board
//!   GET /history, /generation/...   the history, as documents that do not change by themselves
//!   GET /live/...    the same fragments, as server-sent events, each when it changes (live.rs)
//!   GET /page/...    the style sheet, the script and the icon, named by their hash (assets.rs)
//! ```
//!
//! A [`board::Board`] is what one address shows, made of fragments with an id each. The first answer and the
//! events have the same fragments, so they can't disagree. A board is made from
//! [`crate::admin::status::Status`], at most once a second for all who look at it.
//!
//! Nothing here changes anything: the page shows commands, and people run them. Every text is escaped by
//! maud. The page has no inline style and no inline script, so that its policy can forbid them ([`guard`]).

mod arrivals;
mod assets;
mod board;
mod charts;
mod command;
mod difference;
mod document;
mod fleet;
mod generation;
mod guard;
mod history;
mod live;
mod node;
mod rollout;
mod standing;
mod text;

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::Markup;
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::text::one_line;
use tokio::sync::Semaphore;

use crate::admin::offline::DataDirectory;
use crate::error_chain;
use crate::state::OriginState;

use arrivals::Arrivals;
use board::{Boards, View};
use document::Place;
use history::Counts;
use live::STREAMS_MAX;

/// The parts of the origin that the page reads.
pub struct Sources {
    pub directory: Arc<DataDirectory>,
    pub state: OriginState,
    /// DATA, for the commands that the page shows.
    pub data: PathBuf,
}

/// Everything that requests share.
struct Page {
    sources: Sources,
    boards: Boards,
    arrivals: Arc<Arrivals>,
    counts: Counts,
    streams: Arc<Semaphore>,
    /// Permits to read the history, which takes time.
    readers: Arc<Semaphore>,
}

/// Requests that read the history at the same time. Further ones wait.
const READERS_MAX: usize = 2;

/// The routes of the page for a listener on a loopback address.
pub fn on_loopback(sources: Sources) -> Router {
    let arrivals = Arc::new(Arrivals::default());
    // Ends with the origin's state.
    tokio::spawn(arrivals.clone().watch(sources.state.clone()));
    let page = Page {
        sources,
        boards: Boards::default(),
        arrivals,
        counts: Counts::default(),
        streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        readers: Arc::new(Semaphore::new(READERS_MAX)),
    };
    Router::new()
        .route("/", get(fleet_page))
        .route("/nodes/{page}", get(nodes_page))
        .route("/node/{name}", get(node_page))
        .route("/history", get(history_page))
        .route("/history/before/{number}", get(older_page))
        .route("/generation/{number}", get(generation_page))
        .route("/generation/{number}/file/{*path}", get(file_page))
        .route("/live/fleet", get(live::fleet))
        .route("/live/nodes/{page}", get(live::nodes))
        .route("/live/node/{name}", get(live::node))
        .route("/page/{asset}", get(assets::answer))
        .with_state(Arc::new(page))
        .layer(middleware::from_fn(guard::answers_loopback_names))
        .layer(middleware::from_fn(guard::restrict))
}

async fn fleet_page(State(page): State<Arc<Page>>) -> Response {
    page.shown(View::Fleet).await
}

async fn nodes_page(State(page): State<Arc<Page>>, Path(number): Path<usize>) -> Response {
    page.shown(View::Nodes(number)).await
}

async fn node_page(State(page): State<Arc<Page>>, Path(name): Path<String>) -> Response {
    page.shown(View::Node(name)).await
}

async fn history_page(State(page): State<Arc<Page>>) -> Response {
    page.read("History", |page| history::part(&page.sources, &page.counts, None)).await
}

async fn older_page(State(page): State<Arc<Page>>, Path(number): Path<u64>) -> Response {
    page.read("History", move |page| history::part(&page.sources, &page.counts, Some(number))).await
}

async fn generation_page(State(page): State<Arc<Page>>, Path(number): Path<u64>) -> Response {
    page.read(&format!("Generation {number}"), move |page| generation::page(&page.sources, number)).await
}

async fn file_page(State(page): State<Arc<Page>>, Path((number, path)): Path<(u64, String)>) -> Response {
    let title = one_line(&path, PATH_MAX_BYTES);
    page.read(&title, move |page| generation::file(&page.sources, number, &path)).await
}

impl Page {
    /// Answers with content read from the store. `read` may block.
    async fn read<E: std::error::Error + Send + 'static>(
        self: &Arc<Self>,
        title: &str,
        read: impl FnOnce(&Page) -> Result<Option<Markup>, E> + Send + 'static,
    ) -> Response {
        let _permit = self.readers.clone().acquire_owned().await;
        let page = self.clone();
        match tokio::task::spawn_blocking(move || read(&page)).await {
            Ok(Ok(Some(content))) => {
                let tree = &self.sources.state.tree;
                html(StatusCode::OK, document::still(title, tree, Place::History, &content))
            }
            Ok(Ok(None)) => html(StatusCode::NOT_FOUND, document::missing()),
            Ok(Err(error)) => html(StatusCode::INTERNAL_SERVER_ERROR, document::failed(&error_chain(&error))),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    async fn shown(self: &Arc<Self>, view: View) -> Response {
        match self.board(view).await {
            Some(board) => html(StatusCode::OK, document::document(&board)),
            None => html(StatusCode::NOT_FOUND, document::missing()),
        }
    }
}

fn html(status: StatusCode, markup: Markup) -> Response {
    let kind = [("content-type", "text/html; charset=utf-8"), ("cache-control", "no-store")];
    (status, kind, markup.into_string()).into_response()
}
