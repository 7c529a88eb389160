//! The protocol between operators and the origin: a request of one line of JSON, and any number of answer
//! lines.
//!
//! The same lines are used over the admin socket ([`super::server`]) and for answers from DATA itself
//! ([`super::offline`]).

use std::fmt;
use std::path::PathBuf;

use data_encoding::HEXLOWER;
use indicatif::HumanCount;
use serde::{Deserialize, Serialize};
use syncd_shared::SignedGeneration;
use syncd_shared::identity::{TrustDocument, authority, signing};
use syncd_shared::limits::LABEL_MAX_BYTES;
use syncd_shared::text::{one_line, rfc3339};

use crate::admin::RolloutAction;
use crate::admin::collected_requests::{CollectedAction, CollectedLine, ConflictLine, VersionLine};
use crate::admin::status::{PublishStatus, Status};
use crate::audit::Deed;
use crate::commit::{RollbackShown, SomeFiles};
use crate::events::Event;
use crate::fleet::TokenView;
use crate::fleet::live_wait::NodeResult;
use crate::fleet::rollout::RolloutStatus;
use crate::line_log::Numbered;
use crate::publish::PublishAction;

/// A request of an operator.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// `status`.
    Status,
    /// `commit`.
    Commit {
        /// `-m`.
        label: String,
        /// `--allow-mass-deletion`.
        allow_mass_deletion: bool,
        /// `--rescan`.
        rescan: bool,
        /// `--rollout`.
        #[serde(default)]
        rollout: Option<String>,
        /// `--now`.
        #[serde(default)]
        now: bool,
        /// `--wait`, `--require-all`.
        wait: Option<Wait>,
    },
    /// `wait`.
    Wait { generation: u64, wait: Wait },
    /// `rollback`.
    Rollback {
        /// The generation whose tree is published again. Without it, the one before the generation in effect.
        generation: Option<u64>,
        /// Content of the question before it; `None`: there was no question.
        shown: Option<RollbackShown>,
        /// `--wait`.
        wait: Option<Wait>,
    },
    /// The question before `rollback`.
    RollbackTarget {
        /// As in `Rollback`.
        generation: Option<u64>,
    },
    /// `rollout`.
    Rollout { action: RolloutAction },
    /// `drain`, `undrain`, `pin`, `unpin`, `group`, `forget`.
    Node {
        /// Name of the agent.
        agent: String,
        order: NodeRequest,
    },
    /// `token`.
    Token {
        /// `--ttl`, in seconds.
        ttl_s: u64,
        /// `--uses`.
        uses: u32,
    },
    /// `token list`.
    Tokens,
    /// `token revoke`.
    RevokeToken {
        /// The beginning of its ID.
        id: String,
    },
    /// `backup`.
    Backup {
        /// An absolute path.
        directory: PathBuf,
    },
    /// `history`.
    History,
    /// `diff`.
    Diff {
        /// Generation number; defaults to the parent of `to`.
        from: Option<u64>,
        /// Generation number; defaults to the current one.
        to: Option<u64>,
        /// `--pending`: compares the current generation with the tree.
        pending: bool,
    },
    /// `events`.
    Events {
        /// `--follow`.
        follow: bool,
    },
    /// `audit`.
    Audit,
    /// `revoke`.
    Revoke {
        /// Name of the agent.
        agent: String,
    },
    /// `check`.
    Check,
    /// `publish status`, `publish check` and `publish gc`.
    Publish { action: PublishAction },
    /// `collected`.
    Collected { action: CollectedAction },
    /// `promote`.
    Promote,
    /// `page`.
    Page,
    /// `key show`.
    Keys,
    /// `key rotate`.
    RotateKeys(RotateKeys),
    /// `key take`, and the end of `key sign`.
    TakeTrust {
        /// Text of the signed document.
        document: String,
    },
}

impl Request {
    /// Whether the request is carried out by sealing a generation, which makes its line in the audit durable.
    pub fn seals(&self) -> bool {
        matches!(self, Self::Commit { .. } | Self::Rollback { .. })
    }

    /// Whether the request changes nothing, and is not recorded in the audit.
    pub fn only_reads(&self) -> bool {
        if let Self::Collected { action } = self {
            return action.only_reads();
        }
        matches!(
            self,
            Self::Status
                | Self::Wait { .. }
                | Self::Tokens
                | Self::History
                | Self::Diff { .. }
                | Self::Events { .. }
                | Self::Audit
                | Self::Keys
                | Self::RollbackTarget { .. }
                | Self::Rollout { action: RolloutAction::Status }
                | Self::Publish { action: PublishAction::Status }
        )
    }
}

/// An order for a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeRequest {
    Drain,
    Undrain,
    Pin,
    Unpin,
    /// Empty: none.
    Group {
        group: String,
    },
    Forget,
}

/// `key rotate`.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct RotateKeys {
    /// `--signing`.
    pub signing: bool,
    /// `--authority`.
    pub authority: bool,
    /// `--retire`.
    pub retire: bool,
    /// `--root`.
    pub root: bool,
    /// `--root-passphrase-file`.
    pub passphrase: Option<String>,
    /// `--after`.
    pub after: Option<u32>,
}

/// Omits the passphrase.
impl fmt::Debug for RotateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { signing, authority, retire, root, after, .. } = self;
        write!(
            f,
            "RotateKeys(signing {signing}, authority {authority}, retire {retire}, root {root}, after {after:?})"
        )
    }
}

/// Answer to `key show`, which `--json` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeysLine {
    pub tree_id: String,
    /// Fingerprint of the root key.
    pub root_key: String,
    /// The root key's file, as long as it is on this machine.
    pub root_key_file: Option<String>,
    /// The newest trust document.
    pub trust: TrustLine,
    /// End of the authority's life, RFC 3339. It is extended by itself.
    pub authority_ends: String,
    /// End of the life of the origin's certificate, RFC 3339. It is reissued by itself.
    pub certificate_ends: String,
    /// Replaced authorities whose certificates may still be renewed.
    pub earlier_authorities: usize,
    /// The trust document that waits for its signature.
    pub pending: Option<TrustLine>,
    /// Its text, with the document that it replaces.
    pub pending_document: Option<String>,
}

/// A trust document.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustLine {
    pub number: u32,
    /// Fingerprints.
    pub root_key: String,
    pub signing_key: String,
    pub authority: String,
    pub first_epoch: u32,
    pub last_epoch: u32,
    pub first_number: u64,
    pub last_number: u64,
    /// RFC 3339.
    pub issued: String,
    /// Date from which origin and agents warn, RFC 3339.
    pub warns: String,
}

impl From<&TrustDocument> for TrustLine {
    fn from(document: &TrustDocument) -> Self {
        Self {
            number: document.number,
            root_key: document.root_fingerprint().to_string(),
            signing_key: HEXLOWER.encode(&signing::fingerprint(&document.signing_key)),
            authority: HEXLOWER.encode(&authority::fingerprint(&document.authority)),
            first_epoch: document.epochs.first,
            last_epoch: document.epochs.last,
            first_number: document.numbers.first.get(),
            last_number: document.numbers.last.get(),
            issued: rfc3339(document.issued_ms),
            warns: rfc3339(document.warn_ms),
        }
    }
}

/// `--wait` and `--require-all`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Wait {
    pub timeout_ms: u64,
    /// Whether unreachable enrolled nodes count as failures.
    pub require_all: bool,
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Answer to `status`.
    Status(Box<Status>),
    /// A generation was sealed, or is current already.
    Generation(GenerationLine),
    /// Answer to `commit --wait`: one node.
    Node(NodeLine),
    /// Answer to `rollout status`; `None`: nothing was rolled out since the origin started.
    Rollout { rollout: Option<Box<RolloutStatus>> },
    /// The generations that `rollback` would go from and to.
    RollbackTarget {
        /// Generation in effect.
        from: Box<GenerationLine>,
        /// Generation whose tree would be published.
        to: Box<GenerationLine>,
        /// Names of nodes that refuse that tree.
        refused_by: Vec<String>,
    },
    /// Answer to `token`.
    Token {
        /// The token in its text form.
        token: String,
        about: TokenLine,
        /// HOST:PORT for agents to dial.
        address: String,
    },
    /// Answer to `publish status`.
    Publish(PublishStatus),
    /// Answer to `collected list`: one directory.
    Collected(CollectedLine),
    /// Answer to `collected conflicts`: one content, oldest first.
    Conflict(ConflictLine),
    /// Answer to `collected history`: one version, oldest first.
    Version(VersionLine),
    /// Answer to `key show`.
    Keys(Box<KeysLine>),
    /// Answer to `page`.
    Page(PageLine),
    /// Answer to `key rotate`: the document to be signed.
    Document { text: String },
    /// Answer to `token list`: one usable token.
    TokenListed(TokenLine),
    /// Answer to `history`: one generation, oldest first.
    History(HistoryLine),
    /// Answer to `diff`: one path.
    Diff(DiffLine),
    /// Answer to `events`: one event, oldest first.
    Event(Numbered<Event>),
    /// Answer to `audit`: one deed, oldest first.
    Deed(Numbered<Deed>),
    /// Progress of long work.
    Progress { bytes: u64, total_bytes: u64 },
    /// Answer to `check`: one damaged item.
    Damage {
        /// Description and location.
        damage: String,
    },
    /// State of waiting, for a person.
    Waiting {
        /// One line.
        text: String,
    },
    /// Answer to `diff --pending`: a commit would be refused.
    WouldHold {
        /// One line.
        reason: String,
    },
    /// A remark for a person, which is not part of the result.
    Remark {
        /// One line.
        text: String,
    },
    /// Last line: exit code 0, 1 or 3.
    Done { code: u8 },
    /// Last line: the request failed.
    Error {
        /// One line with the next step.
        message: String,
    },
}

/// Address of the page.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageLine {
    /// A login link, if the page is served to other machines.
    pub link: String,
    /// SHA-256 of the certificate behind a login link, as browsers print it.
    pub sha256: Option<String>,
    /// End of the life of a login link, RFC 3339.
    pub expires: Option<String>,
}

/// A join token without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenLine {
    /// ID, as accepted by `token revoke`.
    pub id: String,
    /// Time of creation, RFC 3339.
    pub created: String,
    /// Time of expiry, RFC 3339.
    pub expires: String,
    /// Number of agents that may still join with it.
    pub uses_left: u32,
}

impl TokenLine {
    /// Describes a token, with times in whole seconds.
    pub fn new(token: &TokenView) -> Self {
        let seconds = |ms: i64| rfc3339(ms - ms.rem_euclid(1000));
        Self {
            id: token.id.clone(),
            created: seconds(token.created_ms),
            expires: seconds(token.expires_ms),
            uses_left: token.uses_left,
        }
    }
}

/// A generation, for `history` and `commit`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GenerationLine {
    pub generation: u64,
    /// Root hash, hexadecimal.
    pub root: String,
    pub label: String,
    /// Time of sealing, RFC 3339.
    pub created: String,
    /// Number of files.
    pub files: u64,
    /// Content bytes.
    pub bytes: u64,
    /// Whether this request sealed it.
    pub changed: bool,
    /// Files sealed by this request with other content than in the preceding generation and the same second.
    #[serde(default)]
    pub indistinct: SomeFiles,
    /// Files sealed by this request that `serve --mtime distinct` gave a later second.
    #[serde(default)]
    pub retimed: SomeFiles,
}

impl GenerationLine {
    pub fn new(signed: &SignedGeneration, changed: bool) -> Self {
        let generation = signed.generation();
        Self {
            generation: generation.number.get(),
            root: signed.root_hash().to_string(),
            // An adopted record may have been signed by another version with other rules for labels.
            label: one_line(&generation.label, LABEL_MAX_BYTES),
            created: rfc3339(generation.created_ms),
            files: generation.root.totals.files,
            bytes: generation.root.totals.bytes,
            changed,
            indistinct: SomeFiles::default(),
            retimed: SomeFiles::default(),
        }
    }
}

/// A retained generation, for `history`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HistoryLine {
    pub generation: u64,
    /// Whether it is the published one.
    pub current: bool,
    /// Time of sealing, RFC 3339.
    pub created: String,
    /// Number of files.
    pub files: u64,
    /// Content bytes.
    pub bytes: u64,
    /// Changes from the preceding generation; `None` if that is no longer retained.
    pub changes: Option<ChangeCounts>,
    /// Root hash, hexadecimal.
    pub root: String,
    pub label: String,
}

/// Numbers of changed paths: files, directories and symlinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// New paths.
    pub added: u64,
    /// Paths with other content or metadata.
    pub changed: u64,
    /// Removed paths.
    pub removed: u64,
    /// Changed files with other content and the same second.
    #[serde(default)]
    pub indistinct: u64,
}

impl fmt::Display for ChangeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, removed, .. } = *self;
        write!(f, "+{} ~{} -{}", HumanCount(added), HumanCount(changed), HumanCount(removed))
    }
}

/// A node, for `commit --wait`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeLine {
    /// Name of the agent.
    pub name: String,
    pub result: NodeResult,
    /// Reason that the generation is not live.
    pub error: Option<String>,
    /// Time waited for the node, in milliseconds.
    pub after_ms: u64,
}

/// One path that differs between two generations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiffLine {
    /// `added`, `removed`, `modified`, `metadata` or `renamed`.
    pub change: String,
    /// `file`, `directory` or `symlink`.
    pub kind: String,
    /// The path, with bytes that are not text escaped.
    pub path: String,
    /// Former path, if renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Size in bytes, of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Whether this is a file with other content and the same second.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub indistinct: bool,
}
