//! Harness of the end-to-end suites and of the bench: the real binaries in processes of their own, a real
//! Apache, real content, and oracles that share no code with syncd.
//!
//! [`Scene`] is one test's directory. [`Origin`] and [`Agent`] are the two programs in it, used only through
//! their command line (docs/reference.md). [`Apache`] serves a replica, and [`corpora`] provides real
//! content in two versions. [`oracle`] compares trees, and [`edits`] changes them at random, but repeatably
//! ([`Seeded`]).
//!
//! A harness function that fails panics and says why, because a test cannot handle the error. A failed test
//! prints the logs of all processes. `SYNCD_KEEP=1` keeps the directories, `SYNCD_SEED=N` repeats a random
//! run.

mod agent;
mod apache;
mod binaries;
mod calls;
pub mod cdn;
pub mod corpora;
mod debian;
pub mod device;
pub mod edits;
pub mod faults;
pub mod host;
pub mod http;
pub mod hub;
pub mod link;
pub mod load;
pub mod mounts;
pub mod node;
pub mod oracle;
mod origin;
pub mod process;
pub mod relay;
pub mod replica;
mod scene;
pub mod seaweed;
mod seeded;
pub mod strace;
pub mod tracer;
pub mod trouble;
pub mod uploads;
pub mod wait;
mod web_node;
mod wrong_clock;

pub use agent::{Agent, AgentStatus};
pub use apache::{Apache, DocumentRoot, free_port};
pub use binaries::binary;
pub use debian::{Debian, instructions};
pub use origin::{FleetMember, Origin, OriginStatus};
pub use process::{Daemon, Outcome};
pub use scene::{Scene, is_root, require_program, require_root};
pub use seeded::{Seeded, assert_none};
pub use web_node::WebNode;
pub use wrong_clock::WrongClock;
