//! Answers to requests that need only DATA, whether or not an origin serves it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::local_socket::Peer;
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{DecodeDirectoryError, Page};
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::{JoinToken, SignedTrust};
use syncd_shared::text::counted;
use syncd_shared::tree_path::TreePathError;
use syncd_shared::{GenerationNumber, ObjectHash, RootEntry, RootHash, SignedGeneration, TreePath};
use time::OffsetDateTime;

use crate::admin::collected_requests::{self, CollectedAction, CollectedLine, CollectedRequestError, Served};
use crate::admin::key_requests;
use crate::admin::protocol::{GenerationLine, HistoryLine, NodeRequest, PageLine, Reply, Request, TokenLine};
use crate::admin::rollout_requests::node_order;
use crate::admin::status::{AgentStatus, HoldStatus, PublishStatus, PurgeStatus, Status};
use crate::admin::writable::Writable;
use crate::audit::{self, Audit, AuditError};
use crate::backup::{self, BackupError};
use crate::clock::now_ms;
use crate::collected::{CollectError, Collection, OnNodes};
use crate::commit::{CollectionGate, CommitError, Rollbacks, State, forget_damaged, status_warning};
use crate::error_chain;
use crate::events;
use crate::fleet::registry::Registry;
use crate::fleet::{AgentView, FleetView, RecordError, TokenView, token_id};
use crate::keys::{Keys, KeysError};
use crate::overlap;
use crate::page::{Access, AccessError};
use crate::source::SourceLocation;
use crate::state::Snapshot;
use crate::store::{CheckReport, Damage, OpenStoreError, Store, StoreError};

/// Bytes of progress between two reports.
const PROGRESS_BYTES: u64 = 64 << 20;
/// Default port for agents.
const DEFAULT_PORT: u16 = 8873;

/// Answers to what only a serving origin can do.
const NO_ORIGIN: &str = "no origin serves this data directory: start `syncd-origin serve` first";
/// Reason of the state of an origin that does not run.
const STOPPED: &str = "no origin serves this data directory: start `syncd-origin serve`";
const NO_STANDBY: &str =
    "no origin stands by in this data directory: start `syncd-origin serve --standby` first";
const NOT_WATCHED: &str = "no origin serves this data directory, and the tree is not being watched: start `syncd-origin serve` first";

/// Errors of answering a request.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// Reading the store failed.
    #[error("read the store")]
    Store(#[from] StoreError),
    /// Reading the records of the agents failed.
    #[error("read the records of the agents")]
    Records(#[from] RecordError),
    /// The store has a generation that this origin did not sign.
    #[error("read a generation of the store")]
    Generation(#[from] GenerationError),
    /// The generation does not exist.
    #[error("generation {number} is not retained; `syncd-origin history` lists those that are")]
    UnknownGeneration { number: u64 },
    /// No generation has this number yet.
    #[error("generation {number} does not exist yet: the newest is {newest}")]
    Future { number: u64, newest: GenerationNumber },
    /// No generation exists yet.
    #[error("there is no generation yet: run `syncd-origin serve`")]
    NoGeneration,
    /// No earlier generation is left to return to.
    #[error(transparent)]
    NothingBefore { source: CommitError },
    /// A path that is too long or nested too deep.
    #[error("a path in one of the two trees is invalid, below {path}: run `syncd-origin check`")]
    Path { path: TreePath, source: TreePathError },
    /// A directory object of a generation is missing.
    #[error("directory object {object} is missing: run `syncd-origin check`")]
    MissingObject { object: ObjectHash },
    /// The pages of a directory do not fit together.
    #[error("the pages of a directory do not fit together: run `syncd-origin check`")]
    Pages(#[from] DecodeDirectoryError),
}

/// Errors of opening DATA.
#[derive(Debug, thiserror::Error)]
pub enum OpenDataError {
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] OpenStoreError),
}

/// An open data directory.
pub struct DataDirectory {
    pub(super) store: Arc<Store>,
    pub(super) keys: Arc<Keys>,
    gate: CollectionGate,
    /// The source of trees. `None` while no origin serves.
    pub(super) location: Option<SourceLocation>,
    /// The collected directories that an origin serves.
    collected: Option<Collection>,
}

/// Result of a check.
pub struct Checked {
    pub report: CheckReport,
    pub code: u8,
}

impl Checked {
    /// Whether reading the tree again may repair the damage.
    pub fn may_be_mended(&self) -> bool {
        let mendable = |damage: &Damage| {
            matches!(damage, Damage::Chunk { .. } | Damage::Directory { .. } | Damage::Content { .. })
        };
        self.report.damage.iter().any(mendable)
    }
}

impl DirectorySource for DataDirectory {
    type Error = AnswerError;

    /// The empty directory exists without being stored, because the first generation is compared with it.
    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, AnswerError> {
        if *hash == RootEntry::empty().object {
            return Ok(Arc::default());
        }
        self.store.page(hash)?.ok_or(AnswerError::MissingObject { object: *hash })
    }
}

impl DataDirectory {
    /// Uses an open store and its keys. `gate` must be the one of its garbage collection. `location`
    /// is where trees come from, if an origin serves them.
    pub fn new(
        store: Arc<Store>,
        keys: Arc<Keys>,
        gate: CollectionGate,
        location: Option<SourceLocation>,
    ) -> Self {
        Self { store, keys, gate, location, collected: None }
    }

    /// Uses the collected directories that the origin serves.
    pub fn with_collected(self, collected: Option<Collection>) -> Self {
        Self { collected, ..self }
    }

    /// The collected directories of DATA, if there are any.
    fn collected(&self) -> Result<Option<Collection>, CollectError> {
        match &self.collected {
            None if self.location.is_none() => Collection::open_existing(self.keys.data()),
            served => Ok(served.clone()),
        }
    }

    /// Opens DATA under its lock, so no origin can be serving it.
    pub fn open(data: &Path) -> Result<Self, OpenDataError> {
        let keys = Arc::new(Keys::open(data)?);
        Ok(Self::new(Arc::new(Store::open(data)?), keys, CollectionGate::default(), None))
    }

    /// Like [`Self::answer`], for a command that opened DATA: records the request first.
    pub fn answer_recorded(&self, request: Request, lines: &mut dyn FnMut(Reply) -> bool) -> Reply {
        if request.only_reads() {
            return self.answer(request, lines);
        }
        let audit = Audit::open(self.keys.data()).map_err(AuditError::from);
        match audit.and_then(|audit| audit.record(Peer::this_process(), &request)) {
            Ok(()) => self.answer(request, lines),
            Err(error) => Reply::Error { message: error_chain(&error) },
        }
    }

    /// The directory itself.
    pub fn data(&self) -> &Path {
        self.keys.data()
    }

    fn events(&self, follow: bool, lines: &mut dyn FnMut(Reply) -> bool) -> Reply {
        let answer = answered(events::read(self.keys.data()), |events| {
            _ = events.into_iter().all(|event| lines(Reply::Event(event)));
        });
        match answer {
            Reply::Done { .. } if follow => Reply::Error {
                message: "no origin serves this data directory, so nothing more happens: start `syncd-origin serve`"
                    .into(),
            },
            answer => answer,
        }
    }

    /// Answers a request. Passes each line to `lines`, which returns whether the client is still listening,
    /// and returns the last line.
    pub fn answer(&self, request: Request, lines: &mut dyn FnMut(Reply) -> bool) -> Reply {
        let registry = || Registry::new(self.store.clone());
        match request {
            Request::Status => answered(self.status(), |status| _ = lines(Reply::Status(Box::new(status)))),
            Request::History => ended(self.history(lines)),
            Request::Diff { from, to, pending: false } => ended(self.diff(from, to, lines)),
            Request::Events { follow } => self.events(follow, lines),
            Request::Audit => answered(audit::read(self.keys.data()), |deeds| {
                _ = deeds.into_iter().all(|deed| lines(Reply::Deed(deed)));
            }),
            Request::Check => ended(self.check_and_forget(lines)),
            Request::Token { ttl_s, uses } => {
                let token = registry().create_token(&self.keys, Duration::from_secs(ttl_s), uses);
                answered(token, |token| _ = lines(token_reply(&token, ttl_s, uses, &self.keys, None)))
            }
            Request::Tokens => answered(registry().tokens(), |tokens| {
                tokens.iter().all(|token| lines(Reply::TokenListed(TokenLine::new(token))));
            }),
            Request::RevokeToken { id } => answered(registry().revoke_token(&id), |()| {
                lines(Reply::Remark { text: revoked_token(&id) });
            }),
            Request::Backup { directory } => answered(self.backup(&directory, lines), |()| {}),
            Request::Revoke { agent } => answered(registry().revoke(&agent), |()| {
                lines(Reply::Remark { text: revoked(&agent) });
            }),
            Request::Keys => answered(key_requests::show(&self.keys), |line| _ = lines(line)),
            Request::RotateKeys(request) => {
                let serves = self.location.is_some();
                answered(key_requests::rotate(&self.keys, &request, serves, lines), |()| {})
            }
            Request::TakeTrust { document } => answered(self.take_trust(&document), |line| _ = lines(line)),
            Request::RollbackTarget { generation } => {
                // Nobody is connected.
                let fleet = FleetView::default();
                answered(self.rollback_target(generation, &fleet), |line| _ = lines(line))
            }
            Request::Node { agent, order } => self.order_node(&agent, order, lines),
            Request::Collected { action } => answered(self.answer_collected(action, lines), |()| {}),
            Request::Diff { pending: true, .. } => refused(NOT_WATCHED),
            Request::Promote => refused(NO_STANDBY),
            Request::Page
            | Request::Commit { .. }
            | Request::Wait { .. }
            | Request::Rollback { .. }
            | Request::Rollout { .. }
            | Request::Publish { .. } => refused(NO_ORIGIN),
        }
    }

    fn order_node(&self, agent: &str, order: NodeRequest, lines: &mut dyn FnMut(Reply) -> bool) -> Reply {
        let registry = Registry::new(self.store.clone());
        match node_order(agent, order) {
            Err(message) => Reply::Error { message },
            Ok((order, text)) => {
                let done = match order {
                    Some(order) => registry.order(agent, order),
                    None => registry.forget(agent),
                };
                answered(done, |()| _ = lines(Reply::Remark { text }))
            }
        }
    }

    fn answer_collected(
        &self,
        action: CollectedAction,
        lines: &mut dyn FnMut(Reply) -> bool,
    ) -> Result<(), CollectedRequestError> {
        let collected = self.collected()?;
        let on_nodes = |options: &_| OnNodes::of(&self.store, &self.keys, options);
        let served = self.location.as_ref().map(|location| Served { location, on_nodes: &on_nodes });
        collected_requests::answer(collected, served, action, lines)
    }

    /// Reads a signed trust document of this tree.
    pub fn trust_document(&self, text: &str) -> Result<SignedTrust, KeysError> {
        key_requests::read(&self.keys, text)
    }

    /// Takes a trust document while no origin serves. The next one signs the current tree again.
    fn take_trust(&self, text: &str) -> Result<Reply, KeysError> {
        let document = self.trust_document(text)?;
        self.keys.take(&document)?;
        Ok(key_requests::taken(&document))
    }

    /// The answer to `token` while agents are served at `bound`.
    pub fn token(&self, token: &JoinToken, ttl_s: u64, uses: u32, bound: Option<SocketAddr>) -> Reply {
        token_reply(token, ttl_s, uses, &self.keys, bound)
    }

    /// The answer to `page`.
    pub fn page_link(&self, access: &Access) -> Result<PageLine, AccessError> {
        access.line(self.keys.host(), &self.keys)
    }

    fn backup(&self, to: &Path, lines: &mut dyn FnMut(Reply) -> bool) -> Result<(), BackupError> {
        if let Some(location) = &self.location {
            overlap::check_backup(&location.tree, to)?;
        }
        let mut told = 0;
        let collected = self.collected()?;
        backup::backup(
            &self.store,
            &self.keys,
            collected.as_ref(),
            &self.gate,
            to,
            &mut |bytes, total_bytes| {
                if bytes - told >= PROGRESS_BYTES {
                    told = bytes;
                    lines(Reply::Progress { bytes, total_bytes });
                }
            },
        )?;
        let text = format!(
            "{to} is a complete copy of the data directory, keys included: keep it as secret. To restore it: \
             `syncd-origin serve --data {to}`, with the options that the origin had",
            to = to.display()
        );
        lines(Reply::Remark { text });
        Ok(())
    }

    /// The status of DATA while no origin serves it.
    fn status(&self) -> Result<Status, AnswerError> {
        let current = self.latest()?;
        let agents = Registry::new(self.store.clone()).agents()?;
        let mut status = describe(&self.keys, &self.store, current.as_ref());
        (status.state, status.reason) = (State::Stopped, Some(STOPPED.to_owned()));
        status.hold = Rollbacks::load(&self.store)?.hold().map(HoldStatus::from);
        status.agents = agents.iter().map(|agent| self.describe_agent(agent)).collect();
        Ok(status)
    }

    /// The status while an origin serves DATA. Blocks for a few reads of the index.
    pub fn status_while_serving(&self, now: &Snapshot) -> Status {
        let Snapshot { tree, grpc_address, http_address, origin, fleet, rollout, publish, purge, polled } =
            now;
        Status {
            tree: Some(tree.clone()),
            grpc_address: Some(grpc_address.to_string()),
            http_address: http_address.map(|address| address.to_string()),
            state: origin.state,
            reason: origin.reason.clone(),
            hold: origin.hold.map(HoldStatus::from),
            publish: publish.clone().map(PublishStatus::from),
            purge: purge.clone().map(PurgeStatus::from),
            polled: polled.clone(),
            rollout: rollout.rollout.clone(),
            agents: fleet.agents.iter().map(|agent| self.describe_agent(agent)).collect(),
            collected: self.describe_collected(),
            ..describe(&self.keys, &self.store, origin.current.as_ref())
        }
    }

    /// The status of an agent, with a note if it follows another root key than the origin's.
    fn describe_agent(&self, agent: &AgentView) -> AgentStatus {
        let mut status = AgentStatus::new(agent);
        let root_key = self.keys.trust().document().root_fingerprint();
        if agent.root_key.is_some_and(|pinned| pinned != root_key) {
            status
                .notes
                .push(format!("it trusts another root key: run `syncd-agent trust {root_key}` on that node"));
        }
        status
    }

    /// The served collected directories. Blocks for a few reads of their index.
    pub fn describe_collected(&self) -> Vec<CollectedLine> {
        let Some(collected) = &self.collected else { return Vec::new() };
        let on_nodes = |options: &_| OnNodes::of(&self.store, &self.keys, options);
        let served = self.location.as_ref().map(|location| Served { location, on_nodes: &on_nodes });
        collected_requests::describe(collected, served).unwrap_or_else(|error| {
            tracing::error!(error = error_chain(&error), "collected directories can't be read");
            Vec::new()
        })
    }

    fn history(&self, lines: &mut dyn FnMut(Reply) -> bool) -> Result<u8, AnswerError> {
        let current = self.store.latest()?.map(|latest| latest.generation.number);
        for generation in self.store.generations()? {
            let generation = self.keys.verify(&generation.record, &generation.signature)?;
            let changes = self.changes(&generation)?;
            let GenerationLine { generation: number, root, label, created, files, bytes, .. } =
                GenerationLine::new(&generation, false);
            let current = current == Some(generation.number());
            let line =
                HistoryLine { generation: number, current, created, files, bytes, changes, root, label };
            if !lines(Reply::History(line)) {
                break;
            }
        }
        Ok(0)
    }

    /// Names the generations that a rollback, with or without a number, would go from and to, and the nodes
    /// that refuse the latter.
    pub(super) fn rollback_target(
        &self,
        generation: Option<u64>,
        fleet: &FleetView,
    ) -> Result<Reply, AnswerError> {
        let current = self.latest()?.ok_or(AnswerError::NoGeneration)?;
        let target = match generation {
            Some(number) => number,
            None => {
                let generations = self.store.generations()?.into_iter().map(|stored| stored.generation);
                let is_refused = |root: &RootHash| !fleet.refusing(root).is_empty();
                let previous =
                    Rollbacks::load(&self.store)?.previous(current.generation(), generations, is_refused);
                let nothing = || CommitError::NothingBefore { current: current.number() };
                previous.ok_or_else(|| AnswerError::NothingBefore { source: nothing() })?.get()
            }
        };
        let target = self.generation(target)?;
        let line = |generation| Box::new(GenerationLine::new(generation, false));
        let refused_by = fleet.refusing(&target.root_hash()).into_iter().map(str::to_owned).collect();
        Ok(Reply::RollbackTarget { from: line(&current), to: line(&target), refused_by })
    }

    pub(super) fn latest(&self) -> Result<Option<SignedGeneration>, AnswerError> {
        let stored = self.store.latest()?;
        Ok(stored.map(|g| self.keys.verify(&g.record, &g.signature)).transpose()?)
    }

    pub fn generation(&self, number: u64) -> Result<SignedGeneration, AnswerError> {
        let newest = self.store.latest()?.map(|latest| latest.generation.number);
        if let Some(newest) = newest.filter(|newest| newest.get() < number) {
            return Err(AnswerError::Future { number, newest });
        }
        let unknown = || AnswerError::UnknownGeneration { number };
        let known = GenerationNumber::new(number).ok_or_else(unknown)?;
        let stored = self.store.generation(known)?.ok_or_else(unknown)?;
        Ok(self.keys.verify(&stored.record, &stored.signature)?)
    }

    /// Whether a generation was withdrawn or rolled back, and its tree was not published since.
    pub(super) fn is_put_aside(&self, number: u64) -> Result<bool, AnswerError> {
        Ok(Rollbacks::load(&self.store)?.is_put_aside(number))
    }

    /// Without a serving origin: checks, and forgets damaged content so that the next scan stores it again.
    fn check_and_forget(&self, lines: &mut dyn FnMut(Reply) -> bool) -> Result<u8, AnswerError> {
        let checked = self.check(lines)?;
        if checked.may_be_mended() {
            forget_damaged(&self.store, &checked.report)?;
            let text = "damaged objects now count as missing: the next `syncd-origin serve` reads the whole tree and \
                        stores what it still has; check again afterwards"
                .to_owned();
            lines(Reply::Remark { text });
        }
        Ok(checked.code)
    }

    /// Reads every byte. Changes nothing; holds off garbage collection only.
    pub fn check(&self, lines: &mut dyn FnMut(Reply) -> bool) -> Result<Checked, AnswerError> {
        let _closed = self.gate.close();
        let mut damages = 0;
        for generation in self.store.generations()? {
            if let Err(error) = self.keys.verify(&generation.record, &generation.signature) {
                damages += 1;
                let damage = format!("generation {}: {}", generation.generation.number, error_chain(&error));
                lines(Reply::Damage { damage });
            }
        }
        let mut told = 0;
        let report = self.store.check(|progress| {
            // Not for every frame.
            if progress.pack_bytes - told >= PROGRESS_BYTES {
                told = progress.pack_bytes;
                lines(Reply::Progress { bytes: progress.pack_bytes, total_bytes: progress.pack_bytes_total });
            }
        });
        for damage in &report.damage {
            lines(Reply::Damage { damage: error_chain(damage) });
        }
        damages += report.damage.len();
        if let Some(current) = self.latest()? {
            let writable = Writable::of(self, &current.generation().root).remark(current.number());
            if let Some(text) = writable {
                lines(Reply::Remark { text });
            }
        }
        let text = format!(
            "checked {}, {} and {} of {}: {}",
            counted(report.chunks, "chunk", "chunks"),
            counted(report.directories, "directory", "directories"),
            counted(report.files, "file", "files"),
            counted(report.generations, "generation", "generations"),
            if damages == 0 { "all intact".to_owned() } else { format!("{damages} damaged") },
        );
        lines(Reply::Remark { text });
        Ok(Checked { report, code: u8::from(damages > 0) })
    }
}

fn refused(message: &str) -> Reply {
    Reply::Error { message: message.into() }
}

/// The last reply to a request, after the lines that `write` writes of its result.
fn answered<T, E: std::error::Error + 'static>(result: Result<T, E>, write: impl FnOnce(T)) -> Reply {
    ended(result.map(|value| {
        write(value);
        0
    }))
}

/// The last reply to a request with this exit code.
fn ended(result: Result<u8, impl std::error::Error + 'static>) -> Reply {
    match result {
        Ok(code) => Reply::Done { code },
        Err(error) => Reply::Error { message: error_chain(&error) },
    }
}

/// The reply with a new token and the address to join.
fn token_reply(token: &JoinToken, ttl_s: u64, uses: u32, keys: &Keys, bound: Option<SocketAddr>) -> Reply {
    let now = now_ms();
    let view = TokenView {
        id: token_id(&token.secret_hash()),
        created_ms: now,
        expires_ms: now.saturating_add_unsigned(ttl_s.saturating_mul(1000)),
        uses_left: uses,
    };
    let address = join_address(keys.host(), bound);
    Reply::Token { token: token.to_string(), about: TokenLine::new(&view), address }
}

/// Result of `revoke`, for a person. `name` is that of an agent that was enrolled.
pub fn revoked(name: &str) -> String {
    format!(
        "{name} is revoked: its certificate is refused for ever, its name is free. The node goes on serving what it has, \
         until you stop its web server or join it again with a new token"
    )
}

/// Result of `token revoke`, for a person. `id` is the beginning of the ID of a token that existed.
pub fn revoked_token(id: &str) -> String {
    format!(
        "token {id} is revoked: no further node joins with it. Nodes that have joined with it stay enrolled"
    )
}

/// HOST:PORT for `join`. The host is that of `init --host`, otherwise the listening address if it is a
/// specific one, otherwise this machine's name. The port is the listening one, otherwise the default.
pub fn join_address(host: Option<String>, bound: Option<SocketAddr>) -> String {
    let port = bound.map_or(DEFAULT_PORT, |bound| bound.port());
    let listened =
        || bound.map(|bound| bound.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
    let own = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    let host = host.or_else(listened).unwrap_or_else(own);
    if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// The part of the status that DATA determines.
fn describe(keys: &Keys, store: &Store, current: Option<&SignedGeneration>) -> Status {
    let line = current.map(|g| GenerationLine::new(g, false));
    let mut warnings = keys.warnings(OffsetDateTime::now_utc());
    warnings.extend(current.and_then(|current| status_warning(store, current.number())));
    Status {
        tree_id: keys.tree_id().to_string(),
        tree: None,
        grpc_address: None,
        http_address: None,
        state: State::Ready,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        reason: None,
        hold: None,
        rollout: None,
        generation: line.as_ref().map(|l| l.generation),
        root: line.as_ref().map(|l| l.root.clone()),
        label: line.as_ref().map(|l| l.label.clone()),
        created: line.as_ref().map(|l| l.created.clone()),
        files: line.as_ref().map_or(0, |l| l.files),
        bytes: line.as_ref().map_or(0, |l| l.bytes),
        // Damage is reported by `check`.
        history_bytes: store.history_bytes().unwrap_or_default(),
        publish: None,
        purge: None,
        collected: Vec::new(),
        polled: Vec::new(),
        warnings,
        agents: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::Directory;

    use super::*;
    use crate::admin::protocol::ChangeCounts;
    use syncd_shared::{Component, ContentHash, Entry, Generation, Kind, Metadata, Timestamp};

    fn replies(directory: &DataDirectory, request: Request) -> Vec<Reply> {
        let mut replies = Vec::new();
        let last = directory.answer(request, &mut |reply| {
            replies.push(reply);
            true
        });
        assert!(matches!(last, Reply::Done { code: 0 }), "{last:?}");
        replies
    }

    #[test]
    fn all_of_the_first_generation_is_added() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::create(data.path()).unwrap();
        let store = Arc::new(Store::create(data.path()).unwrap());
        let writer = store.writer().unwrap();
        let metadata = Metadata { mode: 0o777, uid: 0, gid: 0, mtime: Timestamp::default() };
        let kind = Kind::Symlink { target: b"releases/1".as_slice().into() };
        let entry = Entry { name: Component::new(b"current").unwrap(), metadata, kind };
        let top = Directory::new(vec![entry]).unwrap();
        let object = writer.put_directory(&top).unwrap();
        let root = RootEntry { object, totals: top.totals().unwrap(), ..RootEntry::empty() };
        let generation = Generation {
            tree_id: keys.tree_id(),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(1).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        };
        writer.seal(&generation.sign(&keys.signing_key())).unwrap();
        let directory = DataDirectory::new(store, Arc::new(keys), CollectionGate::default(), None);
        let diff = replies(&directory, Request::Diff { from: None, to: None, pending: false });
        assert!(
            matches!(&*diff, [Reply::Diff(line)] if line.change == "added" && line.path == "current"),
            "{diff:?}"
        );
        let history = replies(&directory, Request::History);
        let added = ChangeCounts { added: 1, ..ChangeCounts::default() };
        assert!(matches!(&*history, [Reply::History(line)] if line.changes == Some(added)), "{history:?}");
        let path = TreePath::from_bytes(b"current").unwrap();
        assert!(directory.version(&RootEntry::empty(), &path).unwrap().is_none());
        assert!(directory.version(&root, &path).unwrap().is_some());
    }

    #[test]
    fn a_path_that_no_tree_has_is_told_as_that() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::create(data.path()).unwrap();
        let store = Arc::new(Store::create(data.path()).unwrap());
        let writer = store.writer().unwrap();
        let metadata = Metadata { mode: 0o755, uid: 0, gid: 0, mtime: Timestamp::default() };
        let mut root = RootEntry::empty();
        // Longer than any path.
        for _ in 0..40 {
            let kind = Kind::Directory { object: root.object, totals: root.totals };
            let entry = Entry { name: Component::new(&[b'd'; 200]).unwrap(), metadata, kind };
            let directory = Directory::new(vec![entry]).unwrap();
            let (object, totals) = (writer.put_directory(&directory).unwrap(), directory.totals().unwrap());
            root = RootEntry { object, totals, ..root };
        }
        let generation = Generation {
            tree_id: keys.tree_id(),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(1).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        };
        writer.seal(&generation.sign(&keys.signing_key())).unwrap();
        let directory = DataDirectory::new(store, Arc::new(keys), CollectionGate::default(), None);
        let told = directory.answer(Request::Diff { from: None, to: None, pending: false }, &mut |_| true);
        assert!(
            matches!(&told, Reply::Error { message } if message.contains("a path in one of the two trees")),
            "{told:?}"
        );
    }

    #[test]
    fn check_warns_of_what_others_than_the_owner_may_write() {
        let data = tempfile::tempdir().unwrap();
        let keys = Keys::create(data.path()).unwrap();
        let store = Arc::new(Store::create(data.path()).unwrap());
        let writer = store.writer().unwrap();
        let metadata = |mode| Metadata { mode, uid: 0, gid: 0, mtime: Timestamp::default() };
        let entry = |name: &str, mode, kind| Entry {
            name: Component::new(name.as_bytes()).unwrap(),
            metadata: metadata(mode),
            kind,
        };
        let file = || Kind::File { content: ContentHash::of(b""), size: 0 };
        let below = Directory::new(vec![entry("a", 0o664, file()), entry("b", 0o644, file())]).unwrap();
        let kind = Kind::Directory {
            object: writer.put_directory(&below).unwrap(),
            totals: below.totals().unwrap(),
        };
        let link = Kind::Symlink { target: b"b".as_slice().into() };
        let top = Directory::new(vec![entry("d", 0o777, kind), entry("link", 0o777, link)]).unwrap();
        let object = writer.put_directory(&top).unwrap();
        let mut root = RootEntry { object, totals: top.totals().unwrap(), ..RootEntry::empty() };
        root.metadata.mode = 0o755;
        let generation = Generation {
            tree_id: keys.tree_id(),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(1).unwrap(),
            root,
            parent: None,
            created_ms: 0,
            label: String::new(),
        };
        writer.seal(&generation.sign(&keys.signing_key())).unwrap();
        let directory = DataDirectory::new(store, Arc::new(keys), CollectionGate::default(), None);
        let told = replies(&directory, Request::Check);
        let warning =
            "warning: group or others may write to 2 files and directories of generation 1 (first d)";
        let is_warning = |reply: &Reply| matches!(reply, Reply::Remark { text } if text.starts_with(warning));
        assert!(told.iter().any(is_warning), "{told:?}");
    }

    #[test]
    fn the_join_address_is_what_the_operator_named_and_what_is_listened_at() {
        let bound = |text: &str| Some(text.parse().unwrap());
        let named = || Some("www.example.org".to_owned());
        assert_eq!(join_address(named(), None), "www.example.org:8873");
        assert_eq!(join_address(named(), bound("0.0.0.0:9000")), "www.example.org:9000");
        assert_eq!(join_address(None, bound("192.0.2.7:9000")), "192.0.2.7:9000");
        assert_eq!(join_address(Some("2001:db8::1".into()), bound("[::]:8873")), "[2001:db8::1]:8873");
        assert!(join_address(None, bound("0.0.0.0:9000")).ends_with(":9000"));
    }
}
