//! The page for people: the fleet, the history and its differences, for reading.
//!
//! ```text
//!   GET /            one request paints everything: document.rs around the fragments of a board
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

mod assets;
mod board;
mod command;
mod document;
mod fleet;
mod guard;
mod live;
mod node;
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
use tokio::sync::Semaphore;

use crate::admin::offline::DataDirectory;
use crate::state::OriginState;

use board::{Boards, View};
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
    streams: Arc<Semaphore>,
}

/// The routes of the page for a listener on a loopback address.
pub fn on_loopback(sources: Sources) -> Router {
    let page = Page { sources, boards: Boards::default(), streams: Arc::new(Semaphore::new(STREAMS_MAX)) };
    Router::new()
        .route("/", get(fleet_page))
        .route("/nodes/{page}", get(nodes_page))
        .route("/node/{name}", get(node_page))
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

impl Page {
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
