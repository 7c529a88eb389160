//! Keeps a stream of collected directories to the origin, while this node has any.

use std::path::{Path, PathBuf};
use std::time::Duration;

use syncd_proto::v1;
use syncd_proto::v1::collected_client::CollectedClient;
use syncd_shared::collected::CollectedName;
use syncd_shared::limits::CONTROL_MESSAGE_MAX_BYTES;
use syncd_shared::text::error_chain;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::engine::{Engine, Event};
use super::error::CollectedError;
use super::opening::{Surroundings, existing};
use super::report::CollectedReport;
use super::transfer::Stream;
use super::watch::Watch;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::dialer::Dialer;
use crate::state::disk::Owners;
use crate::status::AgentStatus;

const SHORTEST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
const EVENTS: usize = 1_024;
const MESSAGES: usize = 64;

/// Serves the collected directories of ROOT until `stop`. While there are none, it only looks for them when
/// another generation is live.
pub async fn serve(
    root: PathBuf,
    dialer: Dialer,
    owners: Owners,
    mut status: watch::Receiver<AgentStatus>,
    report: watch::Sender<Option<CollectedReport>>,
    stop: CancellationToken,
) {
    let known = loop {
        let before = status.borrow_and_update().generation;
        match existing(&root) {
            Ok(names) if !names.is_empty() => break names,
            Ok(_) => {}
            Err(error) => tracing::warn!(error = error_chain(&error), "can't read ROOT/collected"),
        }
        tokio::select! {
            () = other_generation(&mut status, before) => {}
            () = stop.cancelled() => return,
        }
    };
    let (events, queue) = mpsc::channel(EVENTS);
    let opening = Opening { root: root.clone(), owners, events: events.clone(), report, stop: stop.clone() };
    let runtime = Handle::current();
    let engine = tokio::task::spawn_blocking(move || {
        if let Some(engine) = opening.until_opened(&runtime) {
            engine.run(&runtime, queue);
        }
    });
    tokio::select! {
        () = connect(dialer, status.clone(), &events) => {}
        () = notice(&root, known, status, &events) => {}
        () = stop.cancelled() => {}
    }
    let _ = events.send(Event::Stop).await;
    let _ = engine.await;
}

/// Opens an engine.
struct Opening {
    root: PathBuf,
    owners: Owners,
    events: mpsc::Sender<Event>,
    report: watch::Sender<Option<CollectedReport>>,
    stop: CancellationToken,
}

impl Opening {
    /// Tries until it works. `None`: the agent stops. Blocks.
    fn until_opened(&self, runtime: &Handle) -> Option<Engine> {
        while !self.stop.is_cancelled() {
            match self.open() {
                Ok(engine) => return Some(engine),
                Err(error) => {
                    let error = error_chain(&error);
                    tracing::error!(error, "collected directories are not served");
                    self.report
                        .send_replace(Some(CollectedReport { error: Some(error), ..Default::default() }));
                }
            }
            let pause = async { tokio::time::timeout(LONGEST_PAUSE, self.stop.cancelled()).await };
            let _ = runtime.block_on(pause);
        }
        None
    }

    fn open(&self) -> Result<Engine, CollectedError> {
        let watch = Watch::start(&self.root.join("collected"), self.events.clone(), self.stop.clone());
        let watch = Box::new(watch.map_err(CollectedError::Watch)?);
        let surroundings =
            Surroundings { owners: self.owners, watch, clock: Clock::default(), report: self.report.clone() };
        surroundings.open(&self.root)
    }
}

/// Has the engine look again when there are other directories.
async fn notice(
    root: &Path,
    mut known: Vec<CollectedName>,
    mut status: watch::Receiver<AgentStatus>,
    events: &mpsc::Sender<Event>,
) {
    loop {
        let before = status.borrow_and_update().generation;
        if let Ok(names) = existing(root)
            && names != known
        {
            known = names;
            if events.send(Event::Everything).await.is_err() {
                return;
            }
        }
        other_generation(&mut status, before).await;
    }
}

/// Waits until another generation than `before` is live. Cancel safe.
async fn other_generation(status: &mut watch::Receiver<AgentStatus>, before: Option<u64>) {
    if status.wait_for(|status| status.generation != before).await.is_err() {
        std::future::pending().await
    }
}

/// Connects again and again. Cancel safe.
async fn connect(mut dialer: Dialer, mut status: watch::Receiver<AgentStatus>, events: &mpsc::Sender<Event>) {
    let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
    loop {
        let ended = follow(&mut dialer, events, &mut backoff).await;
        if events.send(Event::Disconnected).await.is_err() {
            return;
        }
        if let Err(error) = &ended {
            tracing::debug!(error = error_chain(error), "the stream of collected directories ended");
        }
        pause(&ended, &mut backoff, &mut status).await;
    }
}

/// Waits until a stream that ended is to be opened again. An origin without collected directories is asked
/// again only once a `Welcome` names them. Cancel safe.
async fn pause(
    ended: &Result<(), CollectedError>,
    backoff: &mut Backoff,
    status: &mut watch::Receiver<AgentStatus>,
) {
    let is_unserved =
        matches!(ended, Err(CollectedError::Origin(status)) if status.code() == Code::Unimplemented);
    // The last `Welcome` may be that of the origin before a restart.
    if !is_unserved || status.borrow().origin_collects {
        return tokio::time::sleep(backoff.pause()).await;
    }
    backoff.reset();
    if status.wait_for(|status| status.origin_collects).await.is_err() {
        std::future::pending().await
    }
}

/// Hands one stream's messages to the engine, until it ends.
async fn follow(
    dialer: &mut Dialer,
    events: &mpsc::Sender<Event>,
    backoff: &mut Backoff,
) -> Result<(), CollectedError> {
    let channel = dialer.dial().await.map_err(|error| CollectedError::Connect(Box::new(error)))?;
    let mut client = CollectedClient::new(channel).max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
    let (messages, queue) = mpsc::channel::<v1::CollectedUp>(MESSAGES);
    let mut incoming = client.exchange(ReceiverStream::new(queue)).await?.into_inner();
    let link = Box::new(Stream { runtime: Handle::current(), messages, client });
    events.send(Event::Connected(link)).await.map_err(|_| CollectedError::Disconnected)?;
    while let Some(message) = incoming.message().await? {
        backoff.reset();
        let event = Event::Received(Box::new(message));
        events.send(event).await.map_err(|_| CollectedError::Disconnected)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;
    use crate::status::tests::sample;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[tokio::test(start_paused = true)]
    async fn an_origin_without_collected_directories_is_asked_again_once_its_welcome_names_them() {
        let (sender, mut status) = watch::channel(sample());
        let unserved: Result<(), CollectedError> = Err(Status::unimplemented("no such service").into());
        let mut backoff = Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE);
        let waits = pause(&unserved, &mut backoff, &mut status);
        tokio::pin!(waits);
        assert!(tokio::time::timeout(DAY, &mut waits).await.is_err(), "another welcome has to come first");
        sender.send_modify(|status| status.origin_collects = true);
        let welcomed = tokio::time::Instant::now();
        waits.await;
        assert_eq!(welcomed.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn other_ends_and_an_outdated_welcome_lead_to_a_short_pause() {
        let (sender, mut status) = watch::channel(sample());
        let lost = Err(CollectedError::Disconnected);
        let unserved = Err(Status::unimplemented("no such service").into());
        for (ended, origin_collects) in [(lost, false), (unserved, true), (Ok(()), false)] {
            sender.send_modify(|status| status.origin_collects = origin_collects);
            let (mut backoff, began) =
                (Backoff::new(SHORTEST_PAUSE, LONGEST_PAUSE), tokio::time::Instant::now());
            pause(&ended, &mut backoff, &mut status).await;
            let paused = began.elapsed();
            assert!(paused > Duration::ZERO && paused <= 2 * SHORTEST_PAUSE, "{paused:?}");
        }
    }
}
