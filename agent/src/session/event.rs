//! What the session hears, and what it decides: the vocabulary of [`super::machine`].

use ed25519_dalek::VerifyingKey;
use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::identity::signing::SuccessionError;
use syncd_shared::wire::WireError;

use super::messages::{PROTOCOL_MAX, PROTOCOL_MIN};
use super::worker::{Command, Failure, Report, Verified};
use crate::hooks::HookState;
use crate::status::StageProgress;

/// What an origin did that no origin does. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// Nothing in it.
    #[error("the origin sent a message without content")]
    Empty,
    /// Not now.
    #[error("the origin sent a message out of order")]
    Order,
    /// A version that this agent does not speak.
    #[error(
        "the origin speaks protocol version {actual}, this agent {PROTOCOL_MIN} to {PROTOCOL_MAX}: update the older side"
    )]
    Protocol {
        /// The version.
        actual: u32,
    },
    /// Frames that are none.
    #[error("the origin announced a malformed update")]
    Update(#[from] WireError),
    /// The chain of keys does not hold.
    #[error("the origin's signing key can't be followed")]
    Successions(#[from] SuccessionError),
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The origin said something.
    Message(v1::OriginMessage),
    /// The connection is gone, or did not come about.
    Lost(String),
    /// The worker said something.
    Report(Report),
    /// The on-activate hook began, ended, or is due.
    Hook(HookState),
    /// Someone wants the replica verified.
    Verify,
    /// The certificate was renewed, or the node joined again.
    Renewed,
    /// A deadline passed.
    Tick,
    /// SIGTERM.
    Stop,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action {
    /// Connect, and say this first.
    Dial(Box<v1::Hello>),
    /// Give the connection up.
    Hang,
    /// Say it to the origin.
    Send(ToOrigin),
    /// Give the idle worker a command.
    Start(Box<Command>),
    /// End what the worker is doing.
    Cancel,
    /// Run the on-activate hook now, whatever pause it has after a failure.
    RetryHook,
    /// Trust this key from now on, also after a restart.
    Pin(VerifyingKey),
    /// Tell who asked for a verification.
    Verifying(StageProgress),
    /// Tell who asked for a verification; `Err`: it failed.
    Verified(Result<Verified, Failure>),
    /// The worker is idle and nothing more will be done.
    Stopped,
}
