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
mod collected;
mod command;
mod difference;
mod document;
mod fleet;
mod generation;
mod guard;
mod history;
mod live;
pub mod login;
mod node;
mod rollout;
mod standing;
mod text;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use maud::Markup;
use syncd_shared::limits::PATH_MAX_BYTES;
use syncd_shared::text::{one_line, rfc3339};
use tokio::sync::Semaphore;

use crate::admin::offline::{DataDirectory, join_address};
use crate::admin::protocol::PageLine;
use crate::clock::now_ms;
use crate::collected::Collection;
use crate::error_chain;
use crate::keys::Keys;
use crate::state::OriginState;

use arrivals::Arrivals;
use board::{Boards, View};
use document::Place;
use history::Counts;
use live::STREAMS_MAX;
use login::{LINK_LIFE, Logins};

/// The parts of the origin that the page reads.
pub struct Sources {
    pub directory: Arc<DataDirectory>,
    pub state: OriginState,
    /// `None` without collected directories.
    pub collected: Option<Collection>,
    /// DATA, for the commands that the page shows.
    pub data: PathBuf,
}

/// Everything that requests share.
pub struct Page {
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

/// Ways by which people get to the page.
#[derive(Clone, Default)]
pub struct Access {
    /// The HTTP port, if it is on a loopback address.
    pub loopback: Option<SocketAddr>,
    /// The TLS port, with its logins.
    pub elsewhere: Option<(SocketAddr, Arc<Logins>)>,
}

/// Errors of making a link to the page.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(
        "the page is not served: --http is on no loopback address, or its port was occupied; give \
         `serve --page-listen`"
    )]
    Nowhere,
    #[error("make a secret")]
    Random(#[from] getrandom::Error),
}

impl Access {
    /// A new login link, or the address on loopback.
    pub fn line(&self, host: Option<String>, keys: &Keys) -> Result<PageLine, AccessError> {
        if let Some((address, logins)) = &self.elsewhere {
            let link = logins.link(Instant::now())?;
            let link = format!("https://{}/login/{link}", join_address(host, Some(*address)));
            let end = now_ms().saturating_add(LINK_LIFE.as_millis() as i64);
            return Ok(PageLine {
                link,
                sha256: Some(keys.certificate_sha256()),
                expires: Some(rfc3339(end)),
            });
        }
        let address = self.loopback.ok_or(AccessError::Nowhere)?;
        Ok(PageLine { link: format!("http://{address}/"), sha256: None, expires: None })
    }
}

impl Page {
    /// Starts to watch the fleet, until the origin stops.
    pub fn open(sources: Sources) -> Arc<Self> {
        let arrivals = Arc::new(Arrivals::default());
        tokio::spawn(arrivals.clone().watch(sources.state.clone()));
        Arc::new(Self {
            sources,
            boards: Boards::default(),
            arrivals,
            counts: Counts::default(),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
        })
    }

    /// The routes for a listener on a loopback address. They need no login.
    pub fn on_loopback(self: Arc<Self>) -> Router {
        self.routes()
            .layer(middleware::from_fn(guard::answers_loopback_names))
            .layer(middleware::from_fn(guard::restrict))
    }

    /// The routes for a listener inside TLS.
    pub fn elsewhere(self: Arc<Self>, logins: Arc<Logins>) -> Router {
        self.routes()
            .merge(Router::new().route("/login/{link}", get(login::login)).with_state(logins.clone()))
            .layer(middleware::from_fn_with_state(logins, login::require))
            .layer(middleware::from_fn(guard::restrict))
    }

    fn routes(self: Arc<Self>) -> Router {
        Router::new()
            .route("/", get(fleet_page))
            .route("/nodes/{page}", get(nodes_page))
            .route("/node/{name}", get(node_page))
            .route("/collected/{name}", get(collected_page))
            .route("/history", get(history_page))
            .route("/history/before/{number}", get(older_page))
            .route("/generation/{number}", get(generation_page))
            .route("/generation/{number}/file/{*path}", get(file_page))
            .route("/live/fleet", get(live::fleet))
            .route("/live/nodes/{page}", get(live::nodes))
            .route("/live/node/{name}", get(live::node))
            .route("/live/collected/{name}", get(live::collected))
            .route("/page/{asset}", get(assets::answer))
            .with_state(self)
    }
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

async fn collected_page(State(page): State<Arc<Page>>, Path(name): Path<String>) -> Response {
    page.shown(View::Collected(name)).await
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
