//! Answers fetch requests, one after the other, as fast as the agent reads.
//!
//! Reading the store and compressing happen in turns of about a megabyte on a blocking thread; between turns no thread
//! is held. At most [`TURNS_AT_ONCE`] turns lie in memory, whatever the number of agents. They are handed out first come,
//! first served; where others wait, a stream keeps its turn until the connection has taken it in, but not for longer
//! than [`TAKE_IN`]: who reads fast is not held back by who reads slowly.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::fetch_request::Request;
use syncd_shared::wire::{ObjectsBatch, root_hash};
use tokio::sync::Semaphore;
use tonic::Streaming;

use super::Services;
use super::error::ServeError;
use super::replication::Outlet;
use crate::plan::{EncodedUpdate, PlanError};

/// Bytes that one turn produces before it hands over.
const TURN_BYTES: usize = 1024 * 1024;
/// Turns in memory at once, in all streams.
const TURNS_AT_ONCE: usize = 32;
/// How long a stream that reads slowly keeps others waiting for its turn.
const TAKE_IN: Duration = Duration::from_millis(500);
/// An agent that takes nothing for this long is cut off.
const STALL: Duration = Duration::from_secs(60);
/// An agent that asks for nothing for this long is cut off.
const IDLE: Duration = Duration::from_secs(600);

/// Hands out turns. Clones share them.
#[derive(Clone)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(TURNS_AT_ONCE)))
    }
}

type Frames = Box<dyn Iterator<Item = Result<v1::FetchFrame, PlanError>> + Send>;

/// Answers until the agent has no more requests.
pub(super) async fn answer(
    services: &Services,
    mut requests: Streaming<v1::FetchRequest>,
    outlet: &mut Outlet<v1::FetchFrame>,
) -> Result<(), ServeError> {
    let mut ordinal = 0;
    let mut updated = false;
    while let Some(request) = next(&mut requests).await? {
        if updated {
            return Err(ServeError::OutOfOrder { what: "a request after an update request" });
        }
        let frames: Frames = match request.request.ok_or(ServeError::Missing { field: "request" })? {
            Request::Update(_) if ordinal > 0 => {
                return Err(ServeError::OutOfOrder { what: "an update request" });
            }
            Request::Update(request) => {
                updated = true;
                let from = root_hash(&request.from_root, "from_root")?;
                let to = root_hash(&request.to_root, "to_root")?;
                let update = services.planner.update(from, to).await?;
                Box::new(Items { update, next: request.first_item })
            }
            Request::Objects(request) => {
                let (_root, batch) = ObjectsBatch::from_message(&request)?;
                Box::new(services.planner.objects(ordinal, batch))
            }
        };
        ordinal += 1;
        send(services, frames, outlet).await?;
    }
    Ok(())
}

async fn next(requests: &mut Streaming<v1::FetchRequest>) -> Result<Option<v1::FetchRequest>, ServeError> {
    let silent = ServeError::Silent { what: "a request", seconds: IDLE.as_secs() };
    let message = tokio::time::timeout(IDLE, requests.message()).await.map_err(|_| silent)?;
    message.map_err(|status| ServeError::Transport(Box::new(status)))
}

async fn send(
    services: &Services,
    mut frames: Frames,
    outlet: &mut Outlet<v1::FetchFrame>,
) -> Result<(), ServeError> {
    let stalled = || ServeError::Stalled { seconds: STALL.as_secs() };
    loop {
        // Nothing is read before there is room for it.
        let room = tokio::time::timeout(STALL, outlet.sender.reserve()).await.map_err(|_| stalled())?;
        if room.map(drop).is_err() {
            return Ok(());
        }
        let turn = services.turns.0.acquire().await.map_err(|_| ServeError::Stopping)?;
        let taken = tokio::task::spawn_blocking(move || take_turn(frames)).await;
        let (rest, batch) = taken.map_err(|_| PlanError::Interrupted)?;
        let mut frames_sent = 0;
        for frame in batch {
            let frame = frame?;
            if let Some(limit) = &services.limit {
                limit.pass(frame.encoded_len()).await;
            }
            let sent = tokio::time::timeout(STALL, outlet.sender.send(frame)).await.map_err(|_| stalled())?;
            if sent.is_err() {
                return Ok(());
            }
            frames_sent += 1;
        }
        if frames_sent == 0 {
            return Ok(());
        }
        frames = rest;
        if services.turns.0.available_permits() < TURNS_AT_ONCE / 2 {
            // Late or not: the next turn is asked for when there is room.
            let _ = tokio::time::timeout(TAKE_IN, taken_in(outlet)).await;
        }
        drop(turn);
    }
}

/// Waits until what was sent is with the connection. Cancel safe.
async fn taken_in(outlet: &mut Outlet<v1::FetchFrame>) {
    // Fails only where the stream has ended.
    drop(outlet.sender.reserve().await);
    let _ = outlet.hungry.wait_for(|hungry| *hungry).await;
}

fn take_turn(mut frames: Frames) -> (Frames, Vec<Result<v1::FetchFrame, PlanError>>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < TURN_BYTES
        && let Some(frame) = frames.next()
    {
        bytes += frame.as_ref().map_or(TURN_BYTES, Message::encoded_len);
        batch.push(frame);
    }
    (frames, batch)
}

/// An encoded update from some item on.
struct Items {
    update: Arc<EncodedUpdate>,
    next: u64,
}

impl Iterator for Items {
    type Item = Result<v1::FetchFrame, PlanError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.update.item(self.next).transpose();
        self.next = self.next.saturating_add(1);
        item
    }
}
