//! Fetch streams: the origin's real answers, frame by frame, with faults of lines and peers.

use std::time::Duration;

use bytes::Bytes;
use syncd_agent::fetch::refused;
use syncd_agent::session::worker::Cancellation;
use syncd_agent::source::FetchError;
use syncd_origin::serve::{ServeError, StreamSlots, answer, status};
use syncd_proto::v1;
use syncd_proto::v1::fetch_request::Request;
use syncd_shared::wire::{FEATURE_DELTAS, Frame};
use syncd_tests::Seeded;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use crate::lies::{self, FrameLie};
use crate::node::{Ask, ToWorker};
use crate::plant::Plant;
use crate::world::{Event, Transfer, Violation, World};

type Next = Option<Result<Frame, FetchError>>;

/// Time without data after which an agent gives a stream up.
const STALL_MS: u64 = 60_000;

/// Whether this frame completes an answer.
pub fn is_end(message: &v1::FetchFrame) -> bool {
    matches!(&message.frame, Some(v1::fetch_frame::Frame::End(end)) if !end.more)
}

impl World {
    pub fn open_transfer(&mut self, n: usize, id: u64, ask: Ask) -> Result<(), Violation> {
        let random = Seeded::new(self.random.next_u64());
        let (requests, incoming) = mpsc::unbounded_channel();
        let (outgoing, frames) = mpsc::channel(4);
        let answer = match &self.origin {
            Some(origin) => {
                let services = origin.services.clone();
                tokio::spawn(async move {
                    let name = format!("web{n}").parse().map_err(|_| ServeError::Stopping)?;
                    let slots = StreamSlots::alone(&name)?;
                    answer(&services, &slots, UnboundedReceiverStream::new(incoming), &outgoing).await
                })
            }
            None => tokio::spawn(async { Err(ServeError::Transport(Box::new(Status::unavailable("down")))) }),
        };
        let (root, is_update, batches) = match ask {
            Ask::Update { from, to } => {
                self.note(format!("node {n} fetches an update"));
                let to_root = if self.plant == Some(Plant::WrongUpdate) { self.another_root(to) } else { to };
                let update = v1::UpdateRequest {
                    from_root: Bytes::copy_from_slice(from.as_bytes()),
                    to_root: Bytes::copy_from_slice(to_root.as_bytes()),
                    first_item: 0,
                    features: vec![FEATURE_DELTAS.to_owned()],
                };
                let request = v1::FetchRequest { request: Some(Request::Update(update)) };
                // The task has the receiver.
                let _ = requests.send(Ok(request));
                (from, true, None)
            }
            Ask::Objects { root, batches } => {
                self.note(format!("node {n} fetches objects"));
                if self.nodes[n].intact_update && self.nodes[n].damaged.is_empty() {
                    return Err(
                        self.violation(format!("node {n}: an update that came as it was sent did not do"))
                    );
                }
                (root, false, Some(batches))
            }
        };
        self.count(if is_update { "update streams" } else { "object streams" });
        let requests = (!is_update).then_some(requests);
        let transfer = Transfer {
            root,
            is_update,
            batches,
            requests,
            frames,
            answer,
            random,
            tampered: false,
            end_lost: false,
            next_item: 0,
        };
        if let Some(running) = &mut self.nodes[n].running {
            running.transfers.insert(id, transfer);
        }
        Ok(())
    }

    pub fn close_transfer(&mut self, n: usize, id: u64) {
        if let Some(running) = &mut self.nodes[n].running
            && let Some(transfer) = running.transfers.remove(&id)
        {
            transfer.answer.abort();
        }
    }

    pub fn is_tampered(&self, n: usize, id: u64) -> bool {
        let running = self.nodes[n].running.as_ref();
        running.and_then(|r| r.transfers.get(&id)).is_none_or(|t| t.tampered)
    }

    pub fn hand_over(&self, n: usize, frame: Next) {
        if let Some(running) = &self.nodes[n].running {
            running.worker.tell(ToWorker::Frame(frame));
        }
    }

    pub async fn frame_due(&mut self, n: usize, life: u64, id: u64, since: u64) -> Result<(), Violation> {
        if self.nodes[n].life != life {
            return Ok(());
        }
        let now = self.now_ms();
        if self.nodes[n].partitioned_until > now && now < since + STALL_MS && !self.is_cancelled(n) {
            // The frame arrives after the partition, or the agent gives up before. The check is repeated
            // until then.
            let next = self.nodes[n].partitioned_until.min(now + 5_000).max(now + 1);
            self.at(next, Event::Frame { node: n, life, transfer: id, since });
            return Ok(());
        }
        let frame = if self.nodes[n].partitioned_until > now {
            self.spoil(n, id);
            Some(Err(FetchError::Disconnected(None)))
        } else {
            self.next_frame(n, id).await?
        };
        let word = match &frame {
            Some(Ok(Frame::End { .. })) => "the end",
            Some(Ok(_)) => "a frame",
            Some(Err(FetchError::Disconnected(_))) => "a broken stream",
            Some(Err(FetchError::UnknownRoot { .. })) => "that the root is unknown",
            Some(Err(FetchError::Superseded)) => "nothing, it is superseded",
            Some(Err(_)) => "an error",
            None => "no more",
        };
        self.note(format!("node {n} gets {word}"));
        self.hand_over(n, frame);
        self.drive(n).await
    }

    fn is_cancelled(&self, n: usize) -> bool {
        let command = self.nodes[n].running.as_ref().and_then(|r| r.command.as_ref());
        command.is_some_and(Cancellation::is_cancelled)
    }

    fn spoil(&mut self, n: usize, id: u64) {
        if let Some(transfer) = self.nodes[n].running.as_mut().and_then(|r| r.transfers.get_mut(&id)) {
            transfer.tampered = true;
        }
    }

    /// Next frame as received by the agent.
    pub async fn next_frame(&mut self, n: usize, id: u64) -> Result<Next, Violation> {
        if self.is_cancelled(n) {
            return Ok(Some(Err(FetchError::Superseded)));
        }
        let (message, lie) = match self.message(n, id).await? {
            Ok(Some(message)) => {
                let rate = self.temper.bad_frames;
                let other = self.other_frame.clone();
                let Some(transfer) = self.transfer(n, id) else { return Ok(None) };
                let lie = (rate > 0 && !transfer.tampered && transfer.random.one_in(rate))
                    .then(|| lies::frame(&message, other.as_ref(), &mut transfer.random));
                (message, lie)
            }
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Err(error))),
        };
        let message = match lie {
            None => message,
            Some(lie) => {
                self.count("bad frames");
                self.note(format!("node {n}: a bad frame"));
                self.spoil(n, id);
                if let Some(transfer) = self.transfer(n, id) {
                    transfer.end_lost = is_end(&message);
                }
                match lie {
                    FrameLie::Instead(message) => message,
                    FrameLie::Broken => return Ok(Some(Err(FetchError::Disconnected(None)))),
                    FrameLie::Missing => match self.message(n, id).await? {
                        Ok(Some(message)) => message,
                        Ok(None) => return Ok(None),
                        Err(error) => return Ok(Some(Err(error))),
                    },
                }
            }
        };
        Ok(self.accept(n, id, message))
    }

    /// Makes the checks of the real transport, which precede staging.
    fn accept(&mut self, n: usize, id: u64, message: v1::FetchFrame) -> Next {
        let transfer = self.transfer(n, id)?;
        if message.item != transfer.next_item {
            let text = format!("item {} came where item {} was due", message.item, transfer.next_item);
            return Some(Err(FetchError::Refused(Status::data_loss(text))));
        }
        transfer.next_item += 1;
        let ends = is_end(&message);
        if ends {
            transfer.next_item = 0;
        }
        let intact = ends && transfer.is_update && !transfer.tampered;
        self.nodes[n].intact_update |= intact;
        self.other_frame = Some(message.clone());
        Some(Frame::from_message(message).map_err(Into::into))
    }

    fn transfer(&mut self, n: usize, id: u64) -> Option<&mut Transfer> {
        self.nodes[n].running.as_mut()?.transfers.get_mut(&id)
    }

    /// Next frame from the origin. No virtual time passes meanwhile, because the worker's threads may still
    /// be about to ask for it.
    async fn message(
        &mut self,
        n: usize,
        id: u64,
    ) -> Result<Result<Option<v1::FetchFrame>, FetchError>, Violation> {
        for round in 0..200_000_u32 {
            let Some(transfer) = self.transfer(n, id) else { return Ok(Ok(None)) };
            transfer.forward();
            match transfer.frames.try_recv() {
                Ok(message) => return Ok(Ok(Some(message))),
                Err(TryRecvError::Disconnected) if transfer.answer.is_finished() => {
                    let root = transfer.root;
                    let ended = match (&mut transfer.answer).await {
                        Ok(Ok(())) => Ok(None),
                        Ok(Err(error)) => Err(refused(status(&error), root)),
                        Err(_) => Err(FetchError::Disconnected(None)),
                    };
                    transfer.tampered = true;
                    return Ok(ended);
                }
                // The origin is idle, and nothing arrived.
                Err(_) if transfer.end_lost && round > 0 => return Ok(Err(FetchError::Disconnected(None))),
                Err(_) if transfer.end_lost => tokio::time::sleep(Duration::from_millis(1)).await,
                Err(_) => {}
            }
            tokio::task::yield_now().await;
            if round > 50 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        Err(self.violation(format!("node {n} waits for a frame that never comes")))
    }
}

impl Transfer {
    /// Forwards new requests.
    fn forward(&mut self) {
        let Some(batches) = &mut self.batches else { return };
        loop {
            match (batches.try_recv(), &self.requests) {
                (Ok(batch), Some(requests)) => {
                    let request = Request::Objects(batch.to_message(self.root));
                    // The end of the stream is reported where it is read.
                    let _ = requests.send(Ok(v1::FetchRequest { request: Some(request) }));
                }
                (Err(TryRecvError::Disconnected), _) => {
                    self.requests = None;
                    return;
                }
                _ => return,
            }
        }
    }
}
