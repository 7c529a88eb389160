//! Answers operators' requests over the socket in DATA.
//!
//! A request is one line of JSON, answered by any number of [`Reply`] lines. The last is [`Reply::Done`] or
//! [`Reply::Error`]. The socket is `DATA/admin.sock`, mode 0600: anybody who may open it may do everything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::local_socket::{LocalConnection, LocalListener};
use syncd_shared::{GenerationNumber, RootEntry, SignedGeneration};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::key_requests;
use crate::admin::offline::{AnswerError, Checked, DataDirectory, revoked, revoked_token};
use crate::admin::protocol::{GenerationLine, NodeLine, Reply, Request, TokenLine, Wait};
use crate::audit::Audit;
use crate::commit::{Answer, ChangedTimes, CommitOptions, Committer, Outcome, State};
use crate::error_chain;
use crate::events::{self, Events};
use crate::fleet::live_wait::{LiveWait, MissingNode, NodeResult, WaitVerdict};
use crate::fleet::rollout::{RolloutOrder, RolloutView};
use crate::fleet::{Fleet, FleetError};
use crate::line_log::Numbered;
use crate::page::Access;
use crate::publish::PublishAction;
use crate::state::OriginState;

/// Maximum number of concurrent commands.
const CLIENTS_MAX: usize = 64;
const SOCKET: &str = "admin.sock";
/// Delay before the first remark about agents still awaited; further ones follow at intervals.
const FIRST_REMARK: Duration = Duration::from_secs(2);
const REMARKS: Duration = Duration::from_secs(10);

/// Path of the socket of a data directory.
pub fn socket_path(data: &Path) -> PathBuf {
    data.join(SOCKET)
}

/// Sends the lines of an answer. If the client has disconnected, lines are dropped and the request is still
/// carried out.
pub(super) struct Replies {
    client: LocalConnection,
}

impl Replies {
    pub(super) async fn send(&mut self, reply: Reply) {
        if let Err(error) = self.client.respond(&reply).await {
            tracing::debug!(%error, "answer a command");
        }
    }
}

/// Sends a remark if the request was carried out. Returns the last reply.
async fn remarked(done: Result<(), FleetError>, text: String, replies: &mut Replies) -> Reply {
    if let Err(error) = done {
        return Reply::Error { message: error_chain(&error) };
    }
    replies.send(Reply::Remark { text }).await;
    Reply::Done { code: 0 }
}

/// Dependencies for answering requests while the origin serves.
#[derive(Clone)]
pub struct Admin {
    /// Answers requests that need only DATA.
    pub directory: Arc<DataDirectory>,
    pub committer: Committer,
    pub fleet: Fleet,
    pub state: OriginState,
    pub events: Events,
    pub audit: Audit,
    /// The ways to the page.
    pub page: Access,
}

impl Admin {
    /// Answers requests until `shutdown` is cancelled.
    pub async fn serve(self, listener: LocalListener, shutdown: CancellationToken) {
        let clients = TaskTracker::new();
        loop {
            let client = tokio::select! {
                () = shutdown.cancelled() => break,
                client = listener.accept() => client,
            };
            match client {
                Ok(client) if clients.len() < CLIENTS_MAX => {
                    clients.spawn(self.clone().attend(client, shutdown.clone()));
                }
                Ok(_) => tracing::warn!("more than {CLIENTS_MAX} commands at once: one was refused"),
                Err(error) => {
                    tracing::warn!(%error, "accept a command");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        clients.close();
        clients.wait().await;
    }

    /// Serves one client until it is answered or the origin stops.
    async fn attend(self, client: LocalConnection, shutdown: CancellationToken) {
        let mut replies = Replies { client };
        let request = match replies.client.request().await {
            Ok(request) => request,
            Err(error) => return replies.send(Reply::Error { message: error_chain(&error) }).await,
        };
        if let Err(error) = self.audit.record_of(&replies.client, &request).await {
            return replies.send(Reply::Error { message: error_chain(&error) }).await;
        }
        tokio::select! {
            () = self.answer(request, &mut replies) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Sends the recorded events, and with `follow` further ones until the client disconnects.
    async fn events(&self, follow: bool, replies: &mut Replies) -> Reply {
        let mut news = self.events.subscribe();
        let mut last = 0;
        loop {
            let data = self.directory.data().to_owned();
            match tokio::task::spawn_blocking(move || events::read(&data)).await {
                Ok(Ok(lines)) => {
                    for line in lines.into_iter().filter(|line| line.number > last).collect::<Vec<_>>() {
                        last = line.number;
                        replies.send(Reply::Event(line)).await;
                    }
                }
                Ok(Err(error)) => return Reply::Error { message: error_chain(&error) },
                Err(_) => return Reply::Error { message: "the answer was interrupted".into() },
            }
            if !follow {
                return Reply::Done { code: 0 };
            }
            loop {
                let line = tokio::select! {
                    line = news.recv() => line,
                    () = replies.client.closed() => return Reply::Done { code: 0 },
                };
                match line {
                    Ok(line) if line.number > last => {
                        last = line.number;
                        replies.send(Reply::Event(Numbered::clone(&line))).await;
                    }
                    Ok(_) => {}
                    // Some were left out: they are in the file.
                    Err(RecvError::Lagged(_)) => break,
                    Err(RecvError::Closed) => {
                        return Reply::Error { message: "the origin is stopping".into() };
                    }
                }
            }
        }
    }

    async fn answer(&self, request: Request, replies: &mut Replies) {
        let end = match request {
            Request::Status => {
                let status = self.directory.status_while_serving(&self.state.snapshot());
                replies.send(Reply::Status(Box::new(status))).await;
                Reply::Done { code: 0 }
            }
            Request::Commit { label, allow_mass_deletion, rescan, rollout, now, wait } => {
                let options = CommitOptions { label, allow_mass_deletion, rescan, rollout, now };
                self.commit(options, wait, replies).await
            }
            Request::Wait { generation, wait } => self.wait_for(generation, wait, replies).await,
            Request::Rollback { generation: Some(0), .. } => {
                Reply::Error { message: "generations are numbered from 1".into() }
            }
            Request::Rollback { generation, shown, wait } => {
                let number = generation.and_then(GenerationNumber::new);
                let answer = self.committer.rollback(number, shown).await;
                match self.audit.synced().await {
                    Ok(()) => self.published(answer, wait, replies).await,
                    Err(error) => Reply::Error { message: error_chain(&error) },
                }
            }
            Request::RollbackTarget { generation } => self.rollback_target(generation, replies).await,
            Request::Rollout { action } => self.rollout(action, replies).await,
            Request::Node { agent, order } => self.order_node(agent, order, replies).await,
            Request::Token { ttl_s, uses } => self.token(ttl_s, uses, replies).await,
            Request::Page => match self.directory.page_link(&self.page) {
                Ok(line) => {
                    replies.send(Reply::Page(line)).await;
                    Reply::Done { code: 0 }
                }
                Err(error) => Reply::Error { message: error_chain(&error) },
            },
            Request::Tokens => self.tokens(replies).await,
            Request::RevokeToken { id } => {
                let done = self.fleet.revoke_token(id.clone()).await;
                remarked(done, revoked_token(&id), replies).await
            }
            Request::Revoke { agent } => {
                let done = self.fleet.revoke(agent.clone()).await;
                remarked(done, revoked(&agent), replies).await
            }
            Request::TakeTrust { document } => self.take_trust(&document, replies).await,
            Request::Events { follow } => self.events(follow, replies).await,
            Request::Check => self.check(replies).await,
            Request::Diff { pending: true, .. } => self.pending(replies).await,
            Request::Publish { action } => self.publish(action, replies).await,
            Request::Promote => {
                Reply::Error { message: "this is the origin already: it serves agents".into() }
            }
            request => {
                let answer =
                    self.on_data(replies, move |directory, lines| directory.answer(request, lines)).await;
                answer.unwrap_or(Reply::Error { message: "the answer was interrupted".into() })
            }
        };
        replies.send(end).await;
    }

    async fn rollback_target(&self, generation: Option<u64>, replies: &mut Replies) -> Reply {
        let fleet = self.fleet.view().borrow().clone();
        let found = self.on_data(replies, move |directory, _| directory.rollback_target(generation, &fleet));
        match found.await {
            Some(Ok(line)) => {
                replies.send(line).await;
                Reply::Done { code: 0 }
            }
            Some(Err(error)) => Reply::Error { message: error_chain(&error) },
            None => Reply::Error { message: "the answer was interrupted".into() },
        }
    }

    async fn commit(&self, options: CommitOptions, wait: Option<Wait>, replies: &mut Replies) -> Reply {
        if self.committer.view().borrow().state == State::Scanning {
            let text = "the whole tree is being read; the commit follows".to_owned();
            replies.send(Reply::Remark { text }).await;
        }
        let now = options.now;
        let answer = self.committer.commit(options).await;
        // If nothing was sealed, it is not durable yet.
        if let Err(error) = self.audit.synced().await {
            return Reply::Error { message: error_chain(&error) };
        }
        if let (true, Ok(Outcome::Unchanged(_))) = (now, &answer.result) {
            // Ends the rollout of the same tree, if one runs.
            let _ = self.fleet.order_rollout(RolloutOrder::Now).await;
        }
        self.published(answer, wait, replies).await
    }

    async fn token(&self, ttl_s: u64, uses: u32, replies: &mut Replies) -> Reply {
        match self.fleet.create_token(Duration::from_secs(ttl_s), uses).await {
            Ok(token) => {
                let bound = self.state.grpc_address;
                replies.send(self.directory.token(&token, ttl_s, uses, Some(bound))).await;
                Reply::Done { code: 0 }
            }
            Err(error) => Reply::Error { message: error_chain(&error) },
        }
    }

    async fn tokens(&self, replies: &mut Replies) -> Reply {
        match self.fleet.tokens().await {
            Ok(tokens) => {
                for token in &tokens {
                    replies.send(Reply::TokenListed(TokenLine::new(token))).await;
                }
                Reply::Done { code: 0 }
            }
            Err(error) => Reply::Error { message: error_chain(&error) },
        }
    }

    /// Runs blocking work and forwards its lines. `None` if it panicked.
    async fn on_data<T: Send + 'static>(
        &self,
        replies: &mut Replies,
        work: impl FnOnce(&DataDirectory, &mut dyn FnMut(Reply) -> bool) -> T + Send + 'static,
    ) -> Option<T> {
        let directory = self.directory.clone();
        let (sender, mut lines) = mpsc::channel(64);
        let work = tokio::task::spawn_blocking(move || {
            work(&directory, &mut |line| sender.blocking_send(line).is_ok())
        });
        while let Some(line) = lines.recv().await {
            replies.send(line).await;
        }
        work.await.ok()
    }

    /// Answers a request about the object store.
    async fn publish(&self, action: PublishAction, replies: &mut Replies) -> Reply {
        let Some(publishing) = self.state.publish.clone() else {
            let message = "this origin publishes to no object store: `syncd-origin serve --publish URL` does";
            return Reply::Error { message: message.into() };
        };
        match self.on_data(replies, move |_, lines| publishing.answer(action, lines)).await {
            Some(Ok(code)) => Reply::Done { code },
            Some(Err(error)) => Reply::Error { message: error_chain(&error) },
            None => Reply::Error { message: "the answer was interrupted".into() },
        }
    }

    /// Takes a signed trust document, and signs the current tree with its key.
    async fn take_trust(&self, text: &str, replies: &mut Replies) -> Reply {
        let document = match self.directory.trust_document(text) {
            Ok(document) => document,
            Err(error) => return Reply::Error { message: error_chain(&error) },
        };
        match self.committer.take_trust(document.clone()).await.result {
            Ok(_) => {
                replies.send(key_requests::taken(&document)).await;
                Reply::Done { code: 0 }
            }
            Err(error) => Reply::Error { message: error_chain(&error) },
        }
    }

    /// Lists the changes that a commit would publish.
    async fn pending(&self, replies: &mut Replies) -> Reply {
        let found = match self.committer.preview().await.result {
            Ok(Outcome::Found(found)) => found,
            Ok(_) => {
                return Reply::Error { message: "the tree was not read: see `syncd-origin status`".into() };
            }
            Err(error) => return Reply::Error { message: error_chain(&error) },
        };
        let current =
            self.committer.view().borrow().current.as_ref().map(|current| current.generation().root);
        let current = current.unwrap_or_else(RootEntry::empty);
        if let Some(reason) = &found.refused {
            replies.send(Reply::WouldHold { reason: reason.to_string() }).await;
        }
        let told = self
            .on_data(replies, move |directory, lines| directory.diff_pending(&current, &found, lines))
            .await;
        match told {
            Some(Ok(code)) => Reply::Done { code },
            Some(Err(error)) => Reply::Error { message: error_chain(&error) },
            None => Reply::Error { message: "the answer was interrupted".into() },
        }
    }

    /// Checks the store and, if it is damaged, stores again the content that the tree still has.
    async fn check(&self, replies: &mut Replies) -> Reply {
        let checked: Checked = match self.on_data(replies, |directory, lines| directory.check(lines)).await {
            Some(Ok(checked)) => checked,
            Some(Err(error)) => {
                let error: AnswerError = error;
                return Reply::Error { message: error_chain(&error) };
            }
            None => return Reply::Error { message: "the check was interrupted".into() },
        };
        let code = checked.code;
        if checked.may_be_mended() {
            let text = match self.committer.mend(checked.report).await.result {
                Ok(_) => {
                    "the whole tree was read again and what it still has was stored: check again to see what is left"
                        .to_owned()
                }
                Err(error) => format!("the damage was not repaired: {}", error_chain(&error)),
            };
            replies.send(Reply::Remark { text }).await;
        }
        Reply::Done { code }
    }

    async fn published(&self, answer: Answer, wait: Option<Wait>, replies: &mut Replies) -> Reply {
        let (generation, changed) = match answer.result {
            Err(error) => return Reply::Error { message: error_chain(&error) },
            Ok(Outcome::Sealed(generation)) => (generation, true),
            Ok(Outcome::Unchanged(generation)) => (generation, false),
            Ok(Outcome::Scanned | Outcome::Found(_)) => {
                return Reply::Error { message: "nothing was sealed: see `syncd-origin status`".into() };
            }
        };
        // Taken before replying, so that an agent that disconnects meanwhile is still awaited.
        let live = wait
            .map(|wait| (wait, LiveWait::new(&generation, wait.require_all, &self.fleet.view().borrow())));
        if let Some((_, live)) = live.as_ref().filter(|_| !changed)
            && live.awaits_a_hook(&self.fleet.view().borrow())
        {
            // The operator may have mended it.
            self.fleet.announce_again();
        }
        let ChangedTimes { indistinct, retimed } = answer.times;
        let line = GenerationLine { indistinct, retimed, ..GenerationLine::new(&generation, changed) };
        replies.send(Reply::Generation(line)).await;
        for text in answer.remarks {
            replies.send(Reply::Remark { text }).await;
        }
        match live {
            None => Reply::Done { code: 0 },
            Some((wait, live)) => Reply::Done { code: self.wait(live, wait, replies).await },
        }
    }

    /// Waits for a generation that was sealed earlier.
    async fn wait_for(&self, number: u64, wait: Wait, replies: &mut Replies) -> Reply {
        let found = self
            .on_data(replies, move |directory, _| {
                Ok((directory.generation(number)?, directory.is_put_aside(number)?))
            })
            .await;
        let (generation, is_put_aside) = match found {
            Some(Ok(found)) => found,
            Some(Err(error)) => {
                let error: AnswerError = error;
                return Reply::Error { message: error_chain(&error) };
            }
            None => return Reply::Error { message: "the answer was interrupted".into() },
        };
        let live = LiveWait::new(&generation, wait.require_all, &self.fleet.view().borrow());
        replies.send(Reply::Generation(GenerationLine::new(&generation, true))).await;
        if is_put_aside {
            // A later generation on the nodes is no success of this one.
            let text = format!("generation {number} was withdrawn or rolled back");
            replies.send(Reply::Remark { text }).await;
            return Reply::Done { code: 3 };
        }
        Reply::Done { code: self.wait(live, wait, replies).await }
    }

    /// Waits until every awaited agent has the generation live or has failed. Returns the exit code.
    async fn wait(&self, mut live: LiveWait, wait: Wait, replies: &mut Replies) -> u8 {
        let (mut fleet, mut origin) = (self.fleet.view(), self.committer.view());
        let mut rollout = self.fleet.rollout();
        let started = tokio::time::Instant::now();
        let deadline = tokio::time::sleep(Duration::from_millis(wait.timeout_ms));
        let mut remarks = tokio::time::interval_at(started + FIRST_REMARK, REMARKS);
        tokio::pin!(deadline);
        loop {
            let agents = fleet.borrow_and_update().clone();
            let newest = {
                let origin = origin.borrow_and_update();
                live.note_returns(&origin.returns);
                origin.current.as_ref().map(SignedGeneration::number)
            };
            let waited = started.elapsed();
            for name in newest.map(|newest| live.update(&agents, newest, waited)).unwrap_or_default() {
                let (result, error, after_ms) = (NodeResult::Live, None, millis(waited));
                replies.send(Reply::Node(NodeLine { name, result, error, after_ms })).await;
            }
            let progress = Progress::of(&rollout.borrow_and_update(), live.number());
            let is_settled = progress == Progress::Free || live.is_replaced();
            if progress == Progress::Failed || is_settled && live.is_decided(&agents, waited) {
                break;
            }
            let look_again = live.recheck_after(waited).map(|at| started + at);
            tokio::select! {
                Ok(()) = fleet.changed() => {}
                Ok(()) = origin.changed() => {}
                Ok(()) = rollout.changed() => {}
                () = at(look_again) => {}
                _ = remarks.tick() => {
                    let running = rollout.borrow().running().map(|rollout| format!("rollout of {rollout}"));
                    if let Some(text) = running.or_else(|| live.remark(&agents)) {
                        replies.send(Reply::Waiting { text }).await;
                    }
                }
                () = &mut deadline, if progress != Progress::Running => break,
                // The client has disconnected.
                () = replies.client.closed() => break,
            }
        }
        let agents = fleet.borrow().clone();
        let waited = started.elapsed();
        let WaitVerdict { missing, success, remark } = live.verdict(&agents, waited);
        for MissingNode { name, result, error } in missing {
            replies.send(Reply::Node(NodeLine { name, result, error, after_ms: millis(waited) })).await;
        }
        let failed = rollout.borrow().of(live.number()).filter(|rollout| rollout.phase.has_failed()).cloned();
        let failure = failed.map(|failed| {
            let missing = failed.missing.iter().map(|missing| format!("; missing: {missing}"));
            let missing: String = missing.collect();
            format!("rollout of {failed}{missing}. The origin withdraws it, and holds until `commit`")
        });
        let success = success && failure.is_none();
        if let Some(text) = failure.or(remark) {
            replies.send(Reply::Remark { text }).await;
        }
        if success { 0 } else { 3 }
    }
}

/// State of a generation's rollout, as far as waiting for it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Its own deadlines end it.
    Running,
    /// An operator paused it, so that the time of `--wait` counts.
    Paused,
    Failed,
    /// Nodes take the generation as they can.
    Free,
}

impl Progress {
    fn of(view: &RolloutView, generation: u64) -> Self {
        match view.of(generation) {
            _ if view.newest.is_none_or(|newest| newest < generation) => Self::Running,
            Some(rollout) if rollout.phase.has_failed() => Self::Failed,
            Some(rollout) if rollout.paused => Self::Paused,
            Some(rollout) if rollout.phase.is_running() => Self::Running,
            _ => Self::Free,
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

async fn at(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
