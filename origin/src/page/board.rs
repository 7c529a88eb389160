//! Boards: what one address shows, as fragments.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use maud::Markup;
use serde::Serialize;
use syncd_shared::text::rfc3339;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::charts::charts;
use super::command::Commands;
use super::{Page, collected, fleet, node};
use crate::admin::status::Status;

/// A board is made again after this time at the earliest.
pub const BOARD_LIFE: Duration = Duration::from_secs(1);
/// Maximum number of boards that are kept.
const BOARDS_MAX: usize = 64;

/// An address whose content changes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum View {
    Fleet,
    /// A part of the table of nodes, from 1.
    Nodes(usize),
    /// A node, by name.
    Node(String),
    /// A collected directory, by name.
    Collected(String),
}

impl View {
    /// Address of its events.
    pub fn live_address(&self) -> String {
        match self {
            Self::Fleet => "/live/fleet".to_owned(),
            Self::Nodes(page) => format!("/live/nodes/{page}"),
            Self::Node(name) => format!("/live/node/{name}"),
            Self::Collected(name) => format!("/live/collected/{name}"),
        }
    }

    /// Whether figures of collected directories are on it.
    pub fn has_collected(&self) -> bool {
        matches!(self, Self::Fleet | Self::Collected(_))
    }
}

/// An element of the page that is replaced as a whole.
pub struct Fragment {
    pub html: String,
    /// Differs when the element has to be replaced.
    pub version: blake3::Hash,
    /// The number of fragments after this one that are parts of it.
    pub parts: usize,
    /// The event that replaces it.
    pub event: Bytes,
}

/// See [`Fragment::event`].
#[derive(Serialize)]
struct Replacement<'a> {
    id: &'a str,
    html: &'a str,
}

impl Fragment {
    /// `markup` is one element with this id.
    pub fn new(id: &str, markup: Markup) -> Self {
        let html = markup.into_string();
        let version = blake3::hash(html.as_bytes());
        Self { event: event(id, &html), html, version, parts: 0 }
    }

    /// An element with parts of its own. It is replaced when `frame` changes, which is everything except for
    /// the content of the parts.
    pub fn with_parts(id: &str, markup: Markup, frame: &str, parts: usize) -> Self {
        Self { version: blake3::hash(frame.as_bytes()), parts, ..Self::new(id, markup) }
    }
}

fn event(id: &str, html: &str) -> Bytes {
    // Two strings are always encodable, and JSON has no line feed.
    let json = serde_json::to_string(&Replacement { id, html }).unwrap_or_default();
    Bytes::from(format!("event: replace\ndata: {json}\n\n"))
}

/// The content of an address at one moment.
pub struct Board {
    pub view: View,
    /// Title of the document.
    pub title: String,
    /// The content tree.
    pub tree: String,
    pub tree_id: String,
    pub origin_version: String,
    pub fragments: Vec<Fragment>,
}

impl Board {
    pub fn new(view: View, title: String, status: &Status, fragments: Vec<Fragment>) -> Self {
        let tree = status.tree.clone().unwrap_or_default();
        let (tree_id, origin_version) = (status.tree_id.clone(), status.version.clone());
        Self { view, title, tree, tree_id, origin_version, fragments }
    }

    /// Differs when any fragment does.
    pub fn version(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for fragment in &self.fragments {
            hasher.update(fragment.version.as_bytes());
        }
        hasher.finalize().to_hex().as_str().get(..16).unwrap_or_default().to_owned()
    }

    /// The fragments that are part of no other.
    pub fn outermost(&self) -> impl Iterator<Item = &Fragment> {
        let mut skipped = 0;
        self.fragments.iter().filter(move |fragment| {
            if skipped > 0 {
                skipped -= 1;
                return false;
            }
            skipped = fragment.parts;
            true
        })
    }
}

/// The boards that somebody looks at.
#[derive(Default)]
pub struct Boards {
    kept: Mutex<HashMap<View, (Instant, Arc<Board>)>>,
}

impl Page {
    /// The board of an address, at most [`BOARD_LIFE`] old; `None` if nothing is at that address. Cancel
    /// safe.
    pub async fn board(self: &Arc<Self>, view: View) -> Option<Arc<Board>> {
        // Held while the board is made, so that it is made once for all who wait.
        let mut kept = self.boards.kept.lock().await;
        let now = Instant::now();
        kept.retain(|_, (made, _)| now.duration_since(*made) < BOARD_LIFE);
        if let Some((_, board)) = kept.get(&view) {
            return Some(board.clone());
        }
        let (page, wanted) = (self.clone(), view.clone());
        let board = tokio::task::spawn_blocking(move || page.make(wanted)).await.ok()??;
        let board = Arc::new(board);
        if kept.len() < BOARDS_MAX {
            kept.insert(view, (now, board.clone()));
        }
        Some(board)
    }

    /// Blocks for a few reads of the index.
    fn make(&self, view: View) -> Option<Board> {
        let status = self.sources.directory.status_while_serving(&self.sources.state.snapshot());
        let commands = Commands::new(&self.sources.data);
        match &view {
            View::Fleet => {
                let arrivals = self.arrivals.all(&self.sources.directory, &self.sources.data);
                let charts = charts(&arrivals, &rfc3339(self.arrivals.since_ms()));
                Some(fleet::board(&status, &commands, charts))
            }
            View::Nodes(number) => fleet::nodes_board(&status, *number),
            View::Node(name) => node::board(&status, &commands, name),
            View::Collected(name) => {
                let conflicts = collected::conflicts(self.sources.collected.as_ref()?, name)?;
                collected::board(&status, &commands, name, &conflicts)
            }
        }
    }
}
