//! What operators and the origin say to each other: one line of JSON asks, any number of lines answer.
//!
//! The same lines whether they cross the admin socket ([`crate::admin`]) or DATA answers by itself ([`crate::desk`]).

use std::fmt;
use std::path::PathBuf;

use indicatif::HumanCount;
use serde::{Deserialize, Serialize};
use syncd_shared::SignedGeneration;
use syncd_shared::limits::LABEL_MAX_BYTES;
use syncd_shared::text::{one_line, rfc3339};

use crate::fleet::TokenView;
use crate::status::Status;

/// What an operator asks for.
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
        /// `--wait`, `--require-all`.
        wait: Option<Wait>,
    },
    /// `rollback`.
    Rollback {
        /// The generation whose tree is wanted back.
        generation: u64,
        /// `--wait`.
        wait: Option<Wait>,
    },
    /// `token`.
    Token {
        /// `--ttl`, seconds.
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
        /// Number; the parent of `to` where absent.
        from: Option<u64>,
        /// Number; the current generation where absent.
        to: Option<u64>,
        /// `--pending`: from the current generation to the tree as it is now.
        pending: bool,
    },
    /// `revoke`.
    Revoke {
        /// Name of the agent.
        agent: String,
    },
    /// `check`.
    Check,
}

/// `--wait` and `--require-all`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Wait {
    /// Milliseconds.
    pub timeout_ms: u64,
    /// Enrolled but unreachable nodes fail it too.
    pub require_all: bool,
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// To `status`.
    Status(Box<Status>),
    /// A generation is sealed, or was found to be current already.
    Generation(GenerationLine),
    /// To `commit --wait`: one node.
    Node(NodeLine),
    /// To `token`.
    Token {
        /// The token, in its text form.
        token: String,
        /// What it is.
        about: TokenLine,
        /// Where agents dial, HOST:PORT.
        address: String,
    },
    /// To `token list`: one token that is good.
    TokenListed(TokenLine),
    /// To `history`: one generation, oldest first.
    History(HistoryLine),
    /// To `diff`: one path.
    Diff(DiffLine),
    /// Long work goes on.
    Progress {
        /// Bytes done.
        bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// To `check`: one damage.
    Damage {
        /// What and where.
        damage: String,
    },
    /// For a person: a remark that is no result.
    Remark {
        /// One line.
        text: String,
    },
    /// The end: exit code 0, 1 or 3.
    Done {
        /// Exit code.
        code: u8,
    },
    /// The end: it failed.
    Error {
        /// One line that says what to do next.
        message: String,
    },
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TokenLine {
    /// What `token revoke` takes.
    pub id: String,
    /// When it was made, RFC 3339.
    pub created: String,
    /// When it expires, RFC 3339.
    pub expires: String,
    /// How many agents may still join with it.
    pub uses_left: u32,
}

impl TokenLine {
    /// Describes a token, to the second.
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
    /// Its number.
    pub generation: u64,
    /// Root hash, hexadecimal.
    pub root: String,
    /// Its label.
    pub label: String,
    /// When it was sealed, RFC 3339.
    pub created: String,
    /// Files in it.
    pub files: u64,
    /// Content bytes in it.
    pub bytes: u64,
    /// Whether it was sealed by this very request.
    pub changed: bool,
}

impl GenerationLine {
    /// Describes a generation.
    pub fn new(signed: &SignedGeneration, changed: bool) -> Self {
        let generation = signed.generation();
        Self {
            generation: generation.number.get(),
            root: signed.root_hash().to_string(),
            // An adopted record may have been signed by another version, which let other labels pass.
            label: one_line(&generation.label, LABEL_MAX_BYTES),
            created: rfc3339(generation.created_ms),
            files: generation.root.totals.files,
            bytes: generation.root.totals.bytes,
            changed,
        }
    }
}

/// A retained generation, for `history`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct HistoryLine {
    /// Its number.
    pub generation: u64,
    /// Whether it is the one that is published.
    pub current: bool,
    /// When it was sealed, RFC 3339.
    pub created: String,
    /// Files in it.
    pub files: u64,
    /// Content bytes in it.
    pub bytes: u64,
    /// What it changed in the generation before it; `None` where that is not retained any more.
    pub changes: Option<ChangeCounts>,
    /// Root hash, hexadecimal.
    pub root: String,
    /// Its label.
    pub label: String,
}

/// How many paths changed, files, directories and symlinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeCounts {
    /// New ones.
    pub added: u64,
    /// With other content or metadata.
    pub changed: u64,
    /// Gone.
    pub removed: u64,
}

impl fmt::Display for ChangeCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { added, changed, removed } = *self;
        write!(f, "+{} ~{} -{}", HumanCount(added), HumanCount(changed), HumanCount(removed))
    }
}

/// A node, for `commit --wait`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeLine {
    /// Name of the agent.
    pub name: String,
    /// How it went.
    pub result: NodeResult,
    /// Why it is not live.
    pub error: Option<String>,
    /// Milliseconds that were waited for it.
    pub after_ms: u64,
}

/// How it went on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeResult {
    /// The generation, or a later one, is live there.
    Live,
    /// The node could not build it, or not switch to it.
    Failed,
    /// The node has switched, and its on-activate hook has failed; or waits, because that failed before.
    HookFailed,
    /// The time was over before it was live.
    Late,
    /// The node is not connected.
    Unreachable,
}

/// One path that differs between two generations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DiffLine {
    /// `added`, `removed`, `modified`, `metadata` or `renamed`.
    pub change: String,
    /// `file`, `directory` or `symlink`.
    pub kind: String,
    /// The path, escaped where it is not text.
    pub path: String,
    /// Where it was, if renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Size in bytes, of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}
