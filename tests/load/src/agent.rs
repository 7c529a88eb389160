//! One agent that follows the protocol, but discards all content.
//!
//! It behaves like `syncd-agent`: it joins with a token and keeps one control stream (hello, heartbeats,
//! progress, activated). It verifies the signature of announcements and the form of every frame, fetches over
//! a separate connection what is not inline, and reconnects after a jittered pause. It has no replica: its
//! live generation exists only in memory.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use syncd_agent::backoff::Backoff;
use syncd_agent::identity::AgentIdentity;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_proto::v1::origin_message::Message as FromOrigin;
use syncd_proto::v1::replication_client::ReplicationClient;
use syncd_runtime::channel::connect;
use syncd_runtime::tls::ClientTls;
use syncd_shared::SignedGeneration;
use syncd_shared::limits::CONTROL_MESSAGE_MAX_BYTES;
use syncd_shared::update_file::read_whole;
use syncd_shared::wire::{FEATURE_DELTAS, Frame};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::fetch::{Fetched, fetch, fetch_located};

/// Messages to the origin that may wait for the connection.
const OUTBOX: usize = 32;
/// Shortest and longest pause before dialling, as in the real agent.
const REDIAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));
/// Shortest and longest pause after a failed update, as in the real agent.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Report of an agent to the board.
#[derive(Debug)]
pub enum Event {
    /// The agent was welcomed.
    Welcomed,
    /// The control stream broke, or could not be opened.
    Lost(String),
    /// A generation was announced.
    Announced { inline: bool },
    /// The agent reported a generation live.
    Activated { number: u64, bytes: u64 },
    /// The announced generation could not be fetched.
    Failed(String),
}

/// Time, index of the agent, event.
pub type Report = (Instant, usize, Event);

/// An enrolled agent.
pub struct LoadAgent {
    index: usize,
    identity: AgentIdentity,
    tls: ClientTls,
    live: Option<SignedGeneration>,
    board: mpsc::UnboundedSender<Report>,
}

impl LoadAgent {
    /// Creates an agent without a live generation. It reports to the board under `index`.
    pub fn new(
        index: usize,
        identity: AgentIdentity,
        board: mpsc::UnboundedSender<Report>,
    ) -> anyhow::Result<Self> {
        let tls = identity.tls()?;
        Ok(Self { index, identity, tls, live: None, board })
    }

    fn tell(&self, event: Event) {
        // Fails only when the load test ends.
        let _ = self.board.send((Instant::now(), self.index, event));
    }

    /// Follows the origin while `wanted`, and is disconnected otherwise.
    pub async fn run(mut self, mut wanted: watch::Receiver<bool>) {
        let mut redial = Backoff::new(REDIAL.0, REDIAL.1);
        while wanted.wait_for(|wanted| *wanted).await.is_ok() {
            let mut leave = wanted.clone();
            let lost = tokio::select! {
                left = leave.wait_for(|wanted| !*wanted) => {
                    if left.is_err() { return }
                    continue;
                }
                lost = self.follow(&mut redial) => lost,
            };
            let reason = lost.err().unwrap_or_else(|| Status::unavailable("the origin ended the stream"));
            self.tell(Event::Lost(reason.message().to_owned()));
            tokio::time::sleep(redial.pause()).await;
        }
    }

    /// Runs one control stream, from dialling to its end.
    async fn follow(&mut self, redial: &mut Backoff) -> Result<(), Status> {
        let address = self.identity.origin_address().to_owned();
        let channel = connect(&address, self.tls.clone()).await.map_err(|error| {
            Status::unavailable(format!("{error}: {:?}", std::error::Error::source(&error)))
        })?;
        let mut client = ReplicationClient::new(channel)
            .max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES)
            .max_encoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
        let (outbox, to_send) = mpsc::channel(OUTBOX);
        send(&outbox, ToOrigin::Hello(self.hello()));
        let mut stream = client.subscribe(ReceiverStream::new(to_send)).await?.into_inner();
        let Some(FromOrigin::Welcome(welcome)) = stream.message().await?.and_then(|m| m.message) else {
            return Err(Status::data_loss("no welcome came"));
        };
        redial.reset();
        self.tell(Event::Welcomed);
        let interval = Duration::from_millis(welcome.heartbeat_interval_ms.clamp(100, 60_000).into());
        let mut heartbeat = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        let mut sequence = 0;
        let mut target: Option<v1::Announce> = None;
        let mut retry = Backoff::new(RETRY.0, RETRY.1);
        let mut retry_at = tokio::time::Instant::now();
        loop {
            tokio::select! {
                message = stream.message() => match message?.map(|m| m.message) {
                    Some(Some(FromOrigin::Announce(announce))) => {
                        self.tell(Event::Announced { inline: !announce.update_file.is_empty() });
                        target = Some(announce);
                        retry_at = tokio::time::Instant::now();
                    }
                    Some(Some(FromOrigin::Heartbeat(_))) => {}
                    Some(_) => return Err(Status::data_loss("a message out of order")),
                    None => return Ok(()),
                },
                _ = heartbeat.tick() => {
                    sequence += 1;
                    send(&outbox, ToOrigin::Heartbeat(v1::Heartbeat { sequence }));
                }
                () = tokio::time::sleep_until(retry_at), if target.is_some() => {
                    let Some(announce) = &target else { continue };
                    match self.stage(announce, &outbox).await {
                        Ok(()) => {
                            target = None;
                            retry.reset();
                        }
                        Err(error) => {
                            self.tell(Event::Failed(error.message().to_owned()));
                            retry_at = tokio::time::Instant::now() + retry.pause();
                        }
                    }
                }
            }
        }
    }

    fn hello(&self) -> v1::Hello {
        let shown = self.live.as_ref().map(|live| v1::SignedGeneration {
            record: Bytes::copy_from_slice(live.record()),
            signature: Bytes::copy_from_slice(live.signature()),
        });
        v1::Hello {
            protocol_min: 1,
            protocol_max: 1,
            features: vec![FEATURE_DELTAS.to_owned()],
            boot_id: format!("load-{}", self.index),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            live: shown.clone(),
            accepted: shown,
            held: Vec::new(),
            hook: None,
            drift: None,
            trust: self.identity.trust().document.number(),
            refused: Vec::new(),
            check: None,
            standing: None,
            has_check: false,
            root_key: Bytes::copy_from_slice(self.identity.trust().root.as_bytes()),
        }
    }

    /// Verifies an announcement, receives and discards its content, and reports it live.
    async fn stage(
        &mut self,
        announce: &v1::Announce,
        outbox: &mpsc::Sender<v1::AgentMessage>,
    ) -> Result<(), Status> {
        let signed = announce.generation.as_ref().ok_or_else(|| Status::data_loss("no generation"))?;
        let trust = self.identity.trust().document.document();
        let generation = trust.verify_generation(&signed.record, &signed.signature).map_err(malformed)?;
        generation.may_follow(self.live.as_ref()).map_err(malformed)?;
        let root = generation.root_hash();
        let live = self.live.as_ref().map(SignedGeneration::root_hash);
        let file = Some(&announce.update_file).filter(|file| !file.is_empty());
        let inline = file.map(read_whole).transpose().map_err(malformed)?;
        let inline = inline.filter(|(index, _)| live == Some(index.from()));
        let fetched = match inline {
            _ if live == Some(root) => Fetched::default(),
            Some((_, frames)) => {
                let mut fetched = Fetched::default();
                for frame in frames {
                    fetched.bytes += frame.len() as u64;
                    let frame = v1::FetchFrame::decode(frame).map_err(malformed)?;
                    Frame::from_message(frame).map_err(malformed)?;
                }
                fetched
            }
            None => {
                self.progress(&generation, outbox);
                let address = self.identity.origin_address();
                let located = match (live, announce.locations.first()) {
                    (Some(live), Some(url)) => fetch_located(url.clone(), live, generation.clone()).await,
                    _ => None,
                };
                if let Some(fetched) = located {
                    return self.activated(generation, fetched, outbox);
                }
                match fetch(address, self.tls.clone(), live, &generation).await {
                    Err(status) if status.code() == Code::NotFound && live.is_some() => {
                        fetch(address, self.tls.clone(), None, &generation).await?
                    }
                    fetched => fetched?,
                }
            }
        };
        self.activated(generation, fetched, outbox)
    }

    /// Reports a generation live.
    fn activated(
        &mut self,
        generation: SignedGeneration,
        fetched: Fetched,
        outbox: &mpsc::Sender<v1::AgentMessage>,
    ) -> Result<(), Status> {
        let (number, root, bytes) = (generation.number().get(), generation.root_hash(), fetched.bytes);
        let activated = v1::Activated {
            generation: number,
            root: Bytes::copy_from_slice(root.as_bytes()),
            spare_misses: 0,
            hook_due: false,
        };
        send(outbox, ToOrigin::Activated(activated));
        self.tell(Event::Activated { number, bytes });
        self.live = Some(generation);
        Ok(())
    }

    fn progress(&self, generation: &SignedGeneration, outbox: &mpsc::Sender<v1::AgentMessage>) {
        let progress = v1::Progress {
            generation: generation.number().get(),
            state: v1::AgentState::Fetching.into(),
            files_done: 0,
            bytes_done: 0,
            files_total: 0,
            bytes_total: 0,
        };
        send(outbox, ToOrigin::Progress(progress));
    }
}

/// Drops a message that does not fit: the connection is dead then, as in the real agent.
fn send(outbox: &mpsc::Sender<v1::AgentMessage>, message: ToOrigin) {
    let _ = outbox.try_send(v1::AgentMessage { message: Some(message) });
}

fn malformed(error: impl std::error::Error) -> Status {
    Status::data_loss(error.to_string())
}
