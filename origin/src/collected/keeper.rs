//! The thread that judges all changes. See [`super`].

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::WriteTransaction;
use syncd_shared::ContentHash;
use syncd_shared::collected::message::Decision;
use syncd_shared::collected::{Answer, CollectedName, Loser, Ruling, State, Verdict, Version};
use tokio::sync::{mpsc, oneshot, watch};

use super::index::{Index, Tables};
use super::{AT_ORIGIN, CollectError, NodeChange, Ruled, Shared};
use crate::events::Event;

/// Changes judged in one transaction.
const BATCH: usize = 256;

/// Paths looked at by one step of the expiry.
const EXPIRE: usize = 2_000;

type Reply = oneshot::Sender<Result<Decision, Arc<CollectError>>>;

pub(super) enum Job {
    Judge(Box<NodeChange>, Reply),
    Barrier(oneshot::Sender<()>),
    /// Give up contents that lost a conflict.
    Dismiss(CollectedName, Vec<u64>, oneshot::Sender<Result<(), Arc<CollectError>>>),
    /// Forget what is old, from a path on.
    Expire(Vec<u8>, oneshot::Sender<Result<Option<Vec<u8>>, Arc<CollectError>>>),
}

/// Contents that nothing uses any more. The keeper alone removes them, and not while a backup is made.
#[derive(Default)]
pub(super) struct Removals(Mutex<(u32, BTreeSet<ContentHash>)>);

/// No content is removed while this lives.
pub(super) struct NoRemovals<'a>(&'a Removals);

impl Removals {
    pub fn hold(&self) -> NoRemovals<'_> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 = held.0.saturating_add(1);
        NoRemovals(self)
    }

    /// Adds contents. Returns all that may be removed now.
    fn due(&self, unused: BTreeSet<ContentHash>) -> BTreeSet<ContentHash> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.1.extend(unused);
        if held.0 == 0 { std::mem::take(&mut held.1) } else { BTreeSet::new() }
    }
}

impl Drop for NoRemovals<'_> {
    fn drop(&mut self) {
        let mut held = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.0 = held.0.saturating_sub(1);
    }
}

/// Counters of batches, for those who wait for news.
pub(super) struct Signals {
    /// Batches that made versions.
    pub versions: watch::Sender<u64>,
    /// Batches that may have changed a figure of a directory.
    pub figures: watch::Sender<u64>,
}

/// Starts the thread. It ends with the last [`super::Collection`].
pub(super) fn start(
    shared: Weak<Shared>,
    mut queue: mpsc::Receiver<Job>,
    signals: Signals,
) -> io::Result<()> {
    let run = move || {
        while let Some(first) = queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < BATCH
                && let Ok(job) = queue.try_recv()
            {
                jobs.push(job);
            }
            let Some(shared) = shared.upgrade() else { return };
            answer(&shared, jobs, &signals);
        }
    };
    std::thread::Builder::new().name("collected".into()).spawn(run).map(drop)
}

fn answer(shared: &Shared, jobs: Vec<Job>, signals: &Signals) {
    let (mut changes, mut replies, mut barriers) = (Vec::new(), Vec::new(), Vec::new());
    for job in jobs {
        match job {
            Job::Judge(change, reply) => {
                changes.push(*change);
                replies.push(reply);
            }
            Job::Barrier(reply) => barriers.push(reply),
            Job::Dismiss(name, numbers, reply) => {
                let dismissed = dismiss(shared, &name, &numbers);
                signals.figures.send_modify(|count| *count = count.wrapping_add(1));
                let _ = reply.send(dismissed.map_err(Arc::new));
            }
            Job::Expire(from, reply) => drop(reply.send(expire(shared, &from).map_err(Arc::new))),
        }
    }
    match judge_all(shared, &changes) {
        Ok(decisions) => {
            let is_new = |decision: &Decision| {
                matches!(decision, Decision::Answered(Answer { verdict: Verdict::Take, .. }))
            };
            if decisions.iter().any(is_new) {
                signals.versions.send_modify(|count| *count = count.wrapping_add(1));
            }
            if decisions.iter().any(|decision| *decision != Decision::NeedsContent) {
                signals.figures.send_modify(|count| *count = count.wrapping_add(1));
            }
            for (decision, reply) in decisions.into_iter().zip(replies) {
                let _ = reply.send(Ok(decision));
            }
        }
        Err(error) => {
            let error = Arc::new(error);
            tracing::error!(error = crate::error_chain(&error), "changes of collected directories failed");
            replies.into_iter().for_each(|reply| drop(reply.send(Err(error.clone()))));
        }
    }
    for barrier in barriers {
        let _ = barrier.send(());
    }
}

/// Judges changes in order. Durable on `Ok`; nothing is changed on `Err`.
fn judge_all(shared: &Shared, changes: &[NodeChange]) -> Result<Vec<Decision>, CollectError> {
    if changes.is_empty() {
        return Ok(Vec::new());
    }
    let transaction = shared.index.begin()?;
    let Judged { decisions, added, unused, news } = Batch::new(shared, &transaction)?.judge_all(changes)?;
    // A commit waits for the disk, and such a batch has changed nothing.
    if decisions.iter().all(|decision| *decision == Decision::NeedsContent) {
        Index::abort(transaction)?;
        return Ok(decisions);
    }
    // Before the commit refers to them.
    shared.contents.sync(&added)?;
    Index::commit(transaction)?;
    remove(shared, unused);
    // Fails only while nobody listens.
    news.into_iter().for_each(|event| drop(shared.news.send(event)));
    Ok(decisions)
}

/// Durable on `Ok`. Nothing is changed on `Err`.
fn dismiss(shared: &Shared, name: &CollectedName, numbers: &[u64]) -> Result<(), CollectError> {
    let transaction = shared.index.begin()?;
    let mut tables = Tables::open(&transaction)?;
    let mut unused = BTreeSet::new();
    for number in numbers {
        unused.extend(tables.give_up_loser(name, *number)?);
    }
    drop(tables);
    Index::commit(transaction)?;
    remove(shared, unused);
    Ok(())
}

fn expire(shared: &Shared, from: &[u8]) -> Result<Option<Vec<u8>>, CollectError> {
    let transaction = shared.index.begin()?;
    let (unused, next) = Tables::open(&transaction)?.expire(from, EXPIRE, now_ms())?;
    Index::commit(transaction)?;
    remove(shared, unused.into_iter().collect());
    Ok(next)
}

/// Removes contents that are still unused. Those that stay are removed at the next start.
fn remove(shared: &Shared, unused: BTreeSet<ContentHash>) {
    for content in shared.removals.due(unused) {
        let removed = shared.index.is_used(&content).and_then(|is_used| match is_used {
            true => Ok(()),
            false => shared.contents.remove(&content),
        });
        if let Err(error) = removed {
            tracing::warn!(error = crate::error_chain(&error), "an unused content stays for now");
        }
    }
}

/// The outcome of a batch that is not committed yet.
struct Judged {
    decisions: Vec<Decision>,
    /// Contents that the index refers to from now on.
    added: BTreeSet<ContentHash>,
    /// Contents that it does not refer to any more.
    unused: BTreeSet<ContentHash>,
    news: Vec<Event>,
}

struct Batch<'a, 't> {
    shared: &'a Shared,
    tables: Tables<'t>,
    now_ms: u64,
    added: BTreeSet<ContentHash>,
    unused: BTreeSet<ContentHash>,
    news: Vec<Event>,
}

impl<'a, 't> Batch<'a, 't> {
    fn new(shared: &'a Shared, transaction: &'t WriteTransaction) -> Result<Self, CollectError> {
        let tables = Tables::open(transaction)?;
        let (added, unused) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { shared, tables, now_ms: now_ms(), added, unused, news: Vec::new() })
    }

    fn judge_all(mut self, changes: &[NodeChange]) -> Result<Judged, CollectError> {
        let decisions = changes.iter().map(|change| self.judge(change)).collect::<Result<Vec<_>, _>>()?;
        let mut unused = BTreeSet::new();
        for content in self.unused {
            if !self.tables.is_used(&content)? {
                unused.insert(content);
            }
        }
        Ok(Judged { decisions, added: self.added, unused, news: self.news })
    }

    fn judge(&mut self, node_change: &NodeChange) -> Result<Decision, CollectError> {
        let NodeChange { directory, node, path, change } = node_change;
        let ruled = self.shared.directories.get(directory).ok_or(CollectError::UnknownDirectory)?;
        let is_directory = matches!(change.state, State::Directory { .. });
        match ruled.rules.ruling(path, is_directory) {
            _ if change.state == State::Absent => {}
            Ruling::Taken => {}
            Ruling::Denied => return Ok(self.refuse(ruled, node_change, "the rule deny of this directory")),
            Ruling::Ignored => {
                return Ok(self.refuse(ruled, node_change, "the rule ignore of this directory"));
            }
        }
        let chain = self.tables.chain(directory, path)?;
        let current = chain.current();
        let verdict = self.tables.judge(directory, path, &chain, change)?;
        if verdict == Verdict::Take
            && let Some(limit) = self.exceeded(ruled, node, &current, &change.state)?
        {
            // It may have arrived before another file took the room.
            self.unused.extend(change.state.content());
            return Ok(self.refuse(ruled, node_change, limit));
        }
        if let (State::File(file), Verdict::Take | Verdict::Conflict) = (&change.state, verdict) {
            if !self.shared.contents.has(&file.content, file.size) {
                return Ok(Decision::NeedsContent);
            }
            self.added.insert(file.content);
        }
        let decision = match (verdict, &change.state) {
            (Verdict::Take, state) => {
                let taken = self.tables.take((directory, path), chain, *state, node, self.now_ms)?;
                self.unused.extend(taken.1);
                let most = ruled.options.past_max_bytes;
                self.unused.extend(self.tables.give_up_past(directory, most)?);
                Decision::Answered(Answer { verdict, current: taken.0 })
            }
            (Verdict::Conflict, State::File(file)) => {
                let loser = Loser { path: path.clone(), file: *file, node: node.clone(), at_ms: self.now_ms };
                let most = ruled.options.losers_max_bytes;
                if let Some(unused) = self.tables.keep_loser(directory, &loser, most)? {
                    self.unused.extend(unused);
                    tracing::warn!(%directory, %path, %node, "conflict: another change came first, this content is kept");
                    self.news.push(Event::CollectedConflict {
                        directory: directory.to_string(),
                        path: path.to_string(),
                        node: node.clone(),
                    });
                }
                Decision::Answered(Answer { verdict, current })
            }
            _ => Decision::Answered(Answer { verdict, current }),
        };
        ruled.refusals().end(node, path);
        Ok(decision)
    }

    fn refuse(&mut self, ruled: &Ruled, change: &NodeChange, reason: &str) -> Decision {
        let NodeChange { directory, node, path, .. } = change;
        let reason = reason.to_owned();
        // A person gets the answer.
        if node != AT_ORIGIN && ruled.refusals().add(node, path, self.now_ms) {
            self.news_of_refusal(Event::CollectedRefused {
                directory: directory.to_string(),
                path: path.to_string(),
                node: node.clone(),
                reason: reason.clone(),
                more: 0,
            });
        }
        Decision::Refused { reason }
    }

    /// Adds a refusal, or counts it with the one before if only the path is another.
    fn news_of_refusal(&mut self, event: Event) {
        if let (
            Some(Event::CollectedRefused { directory, node, reason, more, .. }),
            Event::CollectedRefused { directory: in_directory, node: by, reason: why, .. },
        ) = (self.news.last_mut(), &event)
            && (directory, node, reason) == (&mut in_directory.clone(), &mut by.clone(), &mut why.clone())
        {
            *more = more.saturating_add(1);
            return;
        }
        self.news.push(event);
    }

    /// The limit that a change would exceed. Shrinking is always possible.
    fn exceeded(
        &self,
        ruled: &Ruled,
        node: &str,
        current: &Version,
        state: &State,
    ) -> Result<Option<&'static str>, CollectError> {
        let options = &ruled.options;
        let bytes = self.tables.bytes_with(&options.name, &current.state, state)?;
        let grows = bytes > self.tables.bytes_with(&options.name, &State::Absent, &State::Absent)?;
        if grows && bytes > options.max_bytes {
            return Ok(Some("max_bytes of this directory"));
        }
        let Some(most) = options.node_max_bytes.filter(|_| grows && node != AT_ORIGIN) else {
            return Ok(None);
        };
        let bytes = self.tables.node_bytes_with(&options.name, node, current, state)?;
        Ok((bytes > most).then_some("node_max_bytes of this directory"))
    }
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
