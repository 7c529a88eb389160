//! Answers fetch requests one after another, as fast as the agent reads.
//!
//! The store is read and data compressed in short batches on a blocking thread. No thread is held between
//! batches, so slow agents only cost memory. [`super::fetch_slots`] decides which requests are answered
//! concurrently.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use prost::Message;
use syncd_proto::v1;
use syncd_proto::v1::fetch_request::Request;
use syncd_shared::wire::{ObjectsBatch, root_hash};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Status;

use super::error::ServeError;
use super::fetch_slots::StreamSlots;
use super::{FromPeer, Services, takes_updates};
use crate::metrics::{Sent, metrics};
use crate::plan::{EncodedUpdate, ObjectsAnswer, PlanError};

/// Bytes after which a batch ends.
const BATCH_BYTES: usize = 256 * 1024;
/// Unsent bytes, about one message, up to which more is read from the store.
const AHEAD_BYTES: u64 = 256 * 1024;
/// An agent that requests nothing for this long is disconnected.
const IDLE: Duration = Duration::from_secs(600);

/// The answer to a request.
enum Frames {
    Update(Items),
    Objects(Box<ObjectsAnswer>),
}

impl Frames {
    /// Waits until the next frame is available, or known not to come.
    async fn ready(&self) {
        if let Self::Update(Items { update, next }) = self {
            update.reached(*next).await;
        }
    }

    fn kind(&self) -> Sent {
        match self {
            Self::Update(_) => Sent::Update,
            Self::Objects(_) => Sent::Objects,
        }
    }

    /// The next answer, if it was begun together with this one.
    fn begun(self) -> Option<Self> {
        match self {
            Self::Update(_) => None,
            Self::Objects(answer) => answer.into_next().map(Self::Objects),
        }
    }
}

impl Iterator for Frames {
    type Item = Result<v1::FetchFrame, Arc<PlanError>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Update(items) => items.next(),
            Self::Objects(answer) => answer.next().map(|frame| frame.map_err(Arc::new)),
        }
    }
}

/// Answers requests until the agent has no more.
pub async fn answer(
    services: &Services,
    slots: &StreamSlots,
    requests: impl FromPeer<v1::FetchRequest>,
    sender: &mpsc::Sender<v1::FetchFrame>,
) -> Result<(), ServeError> {
    let mut requests = Requests { stream: requests, ahead: None, ordinal: 0, updated: false };
    while let Some(request) = requests.next().await? {
        let _slot = slots.take().await?;
        let mut frames = Some(requests.frames_of(services, request).await?);
        // An answer begun together with this one belongs to the same slot.
        while let Some(begun) = frames.take() {
            frames = send(services, slots, begun, &mut requests, sender).await?;
        }
    }
    Ok(())
}

/// The requests of one stream.
struct Requests<S> {
    stream: S,
    /// The next item of the stream, if it was received ahead of time.
    ahead: Option<Option<Result<v1::FetchRequest, Status>>>,
    /// Ordinal of the next request.
    ordinal: u64,
    /// Whether an update was requested.
    updated: bool,
}

impl<S: FromPeer<v1::FetchRequest>> Requests<S> {
    async fn next(&mut self) -> Result<Option<v1::FetchRequest>, ServeError> {
        let message = match self.ahead.take() {
            Some(message) => message,
            None => {
                let silent = ServeError::Silent { what: "a request", seconds: IDLE.as_secs() };
                tokio::time::timeout(IDLE, self.stream.next()).await.map_err(|_| silent)?
            }
        };
        message.transpose().map_err(ServeError::received)
    }

    /// The next request, if it has arrived and may be answered together with the current one.
    fn early(&mut self) -> Option<v1::ObjectsRequest> {
        if self.ahead.is_none() {
            self.ahead = self.stream.next().now_or_never();
        }
        match self.ahead.take() {
            Some(Some(Ok(v1::FetchRequest { request: Some(Request::Objects(request)) })))
                if request.early =>
            {
                Some(request)
            }
            other => {
                self.ahead = other;
                None
            }
        }
    }

    async fn frames_of(
        &mut self,
        services: &Services,
        request: v1::FetchRequest,
    ) -> Result<Frames, ServeError> {
        if self.updated {
            return Err(ServeError::OutOfOrder { what: "a request after an update request" });
        }
        match request.request.ok_or(ServeError::Missing { field: "request" })? {
            Request::Update(_) if self.ordinal > 0 => {
                Err(ServeError::OutOfOrder { what: "an update request" })
            }
            Request::Update(request) => {
                self.updated = true;
                let from = root_hash(&request.from_root, "from_root")?;
                let to = root_hash(&request.to_root, "to_root")?;
                if !takes_updates(&request.features) {
                    return Err(PlanError::NotUnderstood.into());
                }
                let update = services.planner.update(from, to).await?;
                Ok(Frames::Update(Items { update, next: request.first_item }))
            }
            Request::Objects(request) => Ok(Frames::Objects(self.objects(services, &request)?)),
        }
    }

    fn objects(
        &mut self,
        services: &Services,
        request: &v1::ObjectsRequest,
    ) -> Result<Box<ObjectsAnswer>, ServeError> {
        let (root, batch) = ObjectsBatch::from_message(request)?;
        let answer = services.planner.objects(self.ordinal, root, batch);
        self.ordinal = self.ordinal.saturating_add(1);
        Ok(Box::new(answer))
    }
}

/// Sends frames and waits until the kernel has accepted them. Returns the next answer, if it was begun.
async fn send(
    services: &Services,
    slots: &StreamSlots,
    mut frames: Frames,
    requests: &mut Requests<impl FromPeer<v1::FetchRequest>>,
    sender: &mpsc::Sender<v1::FetchFrame>,
) -> Result<Option<Frames>, ServeError> {
    let start = slots.written_bytes();
    let kind = frames.kind();
    let mut handed = 0u64;
    loop {
        // Nothing is read before there is room for it.
        slots.written(start.saturating_add(handed.saturating_sub(AHEAD_BYTES))).await?;
        let room = slots.taken(sender.reserve()).await?;
        let Ok(room) = room else { return Ok(None) };
        drop(room);
        frames.ready().await;
        // A slot covers only one answer while other agents wait.
        if let Frames::Objects(answer) = &mut frames
            && answer.wants_next()
            && !slots.others_wait()
            && let Some(request) = requests.early()
        {
            answer.set_next(requests.objects(services, &request)?);
        }
        let read = tokio::task::spawn_blocking(move || read_batch(frames)).await;
        let (rest, batch) = read.map_err(|_| PlanError::Interrupted)?;
        let mut frames_sent = 0usize;
        for frame in batch {
            let frame = frame?;
            let frame_bytes = frame.encoded_len();
            if let Some(limit) = &services.limit {
                limit.pass(frame_bytes).await;
            }
            handed = handed.saturating_add(frame_bytes as u64);
            let sent = slots.taken(sender.send(frame)).await?;
            if sent.is_err() {
                return Ok(None);
            }
            metrics().sent(kind, frame_bytes);
            frames_sent = frames_sent.saturating_add(1);
        }
        if frames_sent == 0 {
            slots.written(start.saturating_add(handed)).await?;
            return Ok(rest.begun());
        }
        frames = rest;
    }
}

fn read_batch(mut frames: Frames) -> (Frames, Vec<Result<v1::FetchFrame, Arc<PlanError>>>) {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while bytes < BATCH_BYTES
        && let Some(frame) = frames.next()
    {
        bytes = bytes.saturating_add(frame.as_ref().map_or(BATCH_BYTES, Message::encoded_len));
        batch.push(frame);
    }
    (frames, batch)
}

/// The available frames of an encoded update, from `next` on.
struct Items {
    update: Arc<EncodedUpdate>,
    next: u64,
}

impl Iterator for Items {
    type Item = Result<v1::FetchFrame, Arc<PlanError>>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.update.item(self.next).transpose()?;
        self.next = self.next.saturating_add(1);
        Some(item)
    }
}
