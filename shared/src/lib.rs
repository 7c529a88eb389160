//! The domain of syncd, shared by origin and agent: how a tree is described, named, signed, compared and
//! sent.
//!
//! Data model: [`tree_path`] and [`hash`] name things; [`directory`] describes one directory, and
//! [`tree`] a whole tree by its root entry. [`generation`] numbers and signs a root, [`head`] names the
//! released one, and [`diff`] compares two trees.
//!
//! Transfer: [`chunker`] cuts content, [`delta`] makes new content from old, and [`stored_frame`] carries
//! stored content. [`published`] is how a tree lies in an object store. [`wire`] turns messages into these
//! types and rejects invalid ones. [`limits`] holds every bound shared by encoder and decoder.
//!
//! Beside the tree: [`ignore_rules`] says what is left out. [`collected`] merges the changes of directories
//! that every node writes to.
//! [`format_pages`] reads the pinned examples of docs/formats, for tests of every crate.

pub mod address;
pub mod agent_state;
pub mod byte_size;
pub mod check_status;
pub mod chunker;
pub mod collected;
pub mod content_tag;
pub mod delta;
pub mod diff;
pub mod directory;
pub mod ed25519;
pub mod format_pages;
pub mod generation;
pub mod hash;
pub mod head;
pub mod hook_status;
pub mod identity;
pub mod ignore_rules;
pub mod limits;
pub mod manifest_cursor;
pub mod marks;
pub mod progress;
pub mod published;
pub mod standing;
pub mod stored_frame;
pub mod text;
pub mod time_span;
pub mod tree;
pub mod tree_path;
pub mod update_file;
pub mod wire;

pub use agent_state::AgentState;
pub use check_status::{CheckOutcome, CheckStatus};
pub use content_tag::ContentTag;
pub use directory::{Directory, Entry, Kind, Metadata, Timestamp, Totals};
pub use generation::{Fork, Generation, GenerationNumber, SignedGeneration, TreeId};
pub use hash::{ContentHash, ObjectHash, RootHash};
pub use head::Head;
pub use hook_status::{HookOutcome, HookStatus};
pub use progress::Progress;
pub use standing::{NodeStanding, OrderedStanding, Pin};
pub use tree::RootEntry;
pub use tree_path::{Component, TreePath};
