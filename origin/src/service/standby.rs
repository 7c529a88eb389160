//! An origin on standby: follows what another one publishes, until it is promoted.
//!
//! It listens for operators, and answers health and metrics. Agents that try its address are refused, and go
//! on trying. Its audit and
//! its events are those that the origin goes on with after the promotion.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::health;
use syncd_runtime::local_socket::{LocalConnection, LocalListener};
use syncd_shared::GenerationNumber;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sockets::{bind_admin, bind_http};
use super::{ServeOptions, StartError};
use crate::admin::offline::DataDirectory;
use crate::admin::protocol::{Reply, Request};
use crate::admin::status::PublishStatus;
use crate::audit::Audit;
use crate::commit::{CollectionGate, State};
use crate::events::{Event, StandbyEvents};
use crate::http::standby::{Followed, pages};
use crate::line_log::LineLogError;
use crate::publish::{Successor, TakeOverError};

/// Time between two looks at the published tree.
const LOOK: Duration = Duration::from_secs(2);
/// Time within which a client sends its request.
const REQUEST: Duration = Duration::from_secs(2);
/// Clients that may be sent answers at once.
const ANSWERS_MAX: usize = 64;

/// How standing by ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoodBy {
    /// This is the origin of the tree now, and is to be started.
    Promoted,
    Stopped,
}

/// Stands by until `stop`, or until an operator promotes this origin. Returns at once if that was before this
/// start. `options` have [`ServeOptions::publish`].
pub async fn stand_by(
    options: &ServeOptions,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<StoodBy, StartError> {
    let Some(publish) = options.publish.clone() else { return Ok(StoodBy::Promoted) };
    let data = options.data.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let successor = Successor::open(&data, publish.url.open()?)?;
        let is_promoted = successor.is_promoted()?;
        Ok::<_, TakeOverError>((successor, is_promoted, publish.url.to_string()))
    });
    let (successor, is_promoted, url) = opened.await.map_err(|_| StartError::Interrupted)??;
    if is_promoted {
        return Ok(StoodBy::Promoted);
    }
    let (audit, events) = open_logs(&options.data)?;
    let admin = bind_admin(options)?;
    let latest = successor.store().latest()?.map(|latest| latest.generation.number.get());
    let followed = watch::Sender::new(Followed { generation: latest, error: None });
    let http = Http::start(options, &followed).await?;
    tracing::info!(url, "standing by: `syncd-origin promote` makes this the origin");
    ready();
    let mut standby = Standby {
        successor: Arc::new(successor),
        url,
        audit,
        events,
        followed,
        http_address: http.as_ref().map(|http| http.address),
        look: None,
        next: Instant::now(),
        answers: TaskTracker::new(),
    };
    let end = standby.run(admin, stop).await;
    if let Some(http) = http {
        http.end().await;
    }
    Ok(end)
}

/// The port for health and metrics.
struct Http {
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Http {
    /// `None`: the default port is occupied.
    async fn start(
        options: &ServeOptions,
        followed: &watch::Sender<Followed>,
    ) -> Result<Option<Self>, StartError> {
        let Some((listener, address)) = bind_http(options).await? else { return Ok(None) };
        let stop = CancellationToken::new();
        let pages = pages(&followed.subscribe());
        let served = tokio::spawn(health::serve(listener, pages, stop.clone()));
        Ok(Some(Self { address, stop, served }))
    }

    /// Closes the port, which the promoted origin binds again.
    async fn end(self) {
        self.stop.cancel();
        let _ = self.served.await;
    }
}

/// Opens the logs of DATA, whose lock is held. Blocks.
fn open_logs(data: &Path) -> Result<(Audit, StandbyEvents), LineLogError> {
    let (audit, events) = (Audit::open(data)?, StandbyEvents::open(data)?);
    events.record(Event::StandingBy { version: env!("CARGO_PKG_VERSION").to_owned() });
    Ok((audit, events))
}

type Look = JoinHandle<Result<Option<GenerationNumber>, TakeOverError>>;

/// The result of the look that goes on. Cancel safe.
async fn ended(look: &mut Option<Look>) -> Result<<Look as Future>::Output, JoinError> {
    match look {
        Some(look) => Ok(look.await),
        None => std::future::pending().await,
    }
}

struct Standby {
    successor: Arc<Successor>,
    url: String,
    audit: Audit,
    events: StandbyEvents,
    followed: watch::Sender<Followed>,
    http_address: Option<SocketAddr>,
    look: Option<Look>,
    /// When to look next.
    next: Instant,
    /// Clients that are being sent their answers.
    answers: TaskTracker,
}

impl Standby {
    /// Looks and answers, until `stop` or a promotion.
    async fn run(&mut self, admin: LocalListener, stop: impl Future<Output = ()>) -> StoodBy {
        let mut promoting = Vec::new();
        tokio::pin!(stop);
        loop {
            let may_promote = self.look.is_none() && !promoting.is_empty();
            if may_promote && self.promote(std::mem::take(&mut promoting)).await {
                return StoodBy::Promoted;
            }
            tokio::select! {
                () = &mut stop => return StoodBy::Stopped,
                client = admin.accept() => if let Ok(client) = client {
                    promoting.extend(self.answer(client).await);
                },
                looked = ended(&mut self.look) => self.looked(looked),
                () = sleep_until(self.next), if self.look.is_none() => self.start(),
            }
        }
    }

    fn start(&mut self) {
        let (successor, events) = (self.successor.clone(), self.events.clone());
        self.look = Some(tokio::task::spawn_blocking(move || {
            let followed = successor.follow()?;
            if let Some(generation) = followed {
                events.record(Event::Followed { generation: generation.get() });
            }
            Ok(followed)
        }));
    }

    fn looked(&mut self, looked: Result<<Look as Future>::Output, JoinError>) {
        (self.look, self.next) = (None, Instant::now() + LOOK);
        let error = match looked.and_then(|looked| looked) {
            Ok(Ok(number)) => {
                if let Some(generation) = number {
                    tracing::info!(%generation, "taken from the published tree");
                    self.followed.send_modify(|followed| followed.generation = Some(generation.get()));
                }
                None
            }
            Ok(Err(error)) => Some(one_line(&error_chain(&error), REASON_MAX_BYTES)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) =
            error.as_ref().filter(|error| self.followed.borrow().error.as_ref() != Some(error))
        {
            tracing::warn!(error, "the published tree is not followed; it is retried");
        }
        self.followed.send_modify(|followed| followed.error = error);
    }

    /// Answers one request. Returns the client if it asks for promotion.
    async fn answer(&self, mut client: LocalConnection) -> Option<LocalConnection> {
        let request = timeout(REQUEST, client.request()).await.ok()?;
        let lines = match request {
            Ok(request @ Request::Promote) => match self.audit.record_of(&client, &request).await {
                Ok(()) => return Some(client),
                Err(error) => vec![Reply::Error { message: error_chain(&error) }],
            },
            Ok(Request::Status) => self.status().await,
            Ok(
                request @ (Request::History
                | Request::Events { follow: false }
                | Request::Audit
                | Request::Keys
                | Request::Diff { pending: false, .. }),
            ) => self.read(request).await,
            Ok(_) => vec![Reply::Error {
                message: "this origin is on standby: `syncd-origin promote` makes it the origin".into(),
            }],
            Err(error) => vec![Reply::Error { message: error_chain(&error) }],
        };
        if self.answers.len() >= ANSWERS_MAX {
            tracing::warn!("more than {ANSWERS_MAX} commands at once: one was not answered");
            return None;
        }
        // A client that does not read delays nothing else.
        self.answers.spawn(async move {
            for line in lines {
                if client.respond(&line).await.is_err() {
                    return;
                }
            }
        });
        None
    }

    /// Answers a request that only reads, from DATA.
    async fn read(&self, request: Request) -> Vec<Reply> {
        let (keys, store) = (self.successor.keys().clone(), self.successor.store().clone());
        let answered = tokio::task::spawn_blocking(move || {
            let directory = DataDirectory::new(store, keys, CollectionGate::default(), None);
            let mut lines = Vec::new();
            let end = directory.answer(request, &mut |line| {
                lines.push(line);
                true
            });
            lines.push(end);
            lines
        });
        answered.await.unwrap_or_default()
    }

    async fn status(&self) -> Vec<Reply> {
        let mut lines = self.read(Request::Status).await;
        for line in &mut lines {
            if let Reply::Status(status) = line {
                (status.state, status.reason) = (State::Standby, None);
                status.http_address = self.http_address.map(|address| address.to_string());
                let (url, released) = (self.url.clone(), status.generation);
                let error = self.followed.borrow().error.clone();
                status.publish = Some(PublishStatus { url, released, error });
            }
        }
        lines
    }

    /// Promotes this origin, and answers those who asked for it. Returns whether it was.
    async fn promote(&self, clients: Vec<LocalConnection>) -> bool {
        let (successor, events) = (self.successor.clone(), self.events.clone());
        let promoted = tokio::task::spawn_blocking(move || {
            let promotion = successor.promote()?;
            events.record(Event::Promoted { epoch: promotion.epoch, first: promotion.number.get() });
            Ok::<_, TakeOverError>(promotion)
        });
        let promoted = promoted.await;
        let (lines, is_promoted) = match promoted {
            Ok(Ok(promotion)) => {
                tracing::info!(epoch = promotion.epoch, number = %promotion.number, "promoted");
                let text = format!(
                    "this is the origin now, with epoch {} and generations from {} on; it starts to serve",
                    promotion.epoch, promotion.number
                );
                (vec![Reply::Remark { text }, Reply::Done { code: 0 }], true)
            }
            Ok(Err(error)) => (vec![Reply::Error { message: error_chain(&error) }], false),
            Err(error) => (vec![Reply::Error { message: error.to_string() }], false),
        };
        for mut client in clients {
            for line in &lines {
                let _ = client.respond(line).await;
            }
        }
        is_promoted
    }
}
