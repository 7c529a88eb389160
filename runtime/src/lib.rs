//! The kit of both daemons, beside the domain. Everything here touches the machine it runs on.
//!
//! Start and end: [`config_file`], [`trusted_file`], [`settings`], [`usage`], [`manual`], [`version`],
//! [`signals`], [`supervisor`], [`open_files`]. Threads: how many ([`threads`]), and their [`queue`] of work.
//! Programs of the operator: [`command`]. Talking to people and monitors: [`telemetry`], [`progress`],
//! [`output`], [`terminal`], [`health`], [`metrics`], [`local_socket`]. Files of their own:
//! [`own_directory`], [`key_file`], [`write_again`], [`accounts`], [`act_as`]. The network: [`channel`] is a
//! client's connection, [`tls`] holds every TLS configuration (TLS 1.3 with the ring provider only), [`rate`]
//! limits bytes and events, [`bucket`] is an object store, [`published`] reads a tree from one.

pub mod accounts;
pub mod act_as;
pub mod bucket;
pub mod channel;
pub mod command;
pub mod config_file;
pub mod health;
pub mod key_file;
pub mod local_socket;
pub mod manual;
pub mod metrics;
pub mod open_files;
pub mod output;
pub mod own_directory;
pub mod progress;
pub mod published;
pub mod queue;
pub mod rate;
pub mod settings;
pub mod signals;
pub mod supervisor;
pub mod telemetry;
pub mod terminal;
pub mod threads;
pub mod tls;
pub mod trusted_file;
pub mod usage;
pub mod version;
pub mod write_again;
