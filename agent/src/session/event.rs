//! Events that reach the session and actions that it decides on: the vocabulary of [`super::machine`].

use syncd_proto::v1;
use syncd_proto::v1::agent_message::Message as ToOrigin;
use syncd_shared::identity::SignedTrust;
use syncd_shared::identity::trust::TrustError;
use syncd_shared::wire::WireError;
use syncd_shared::{Progress, SignedGeneration};

use super::messages::{PROTOCOL_MAX, PROTOCOL_MIN};
use super::worker::{Command, Decision, Failure, Report, Verified};
use crate::check::Phase;
use crate::hooks::HookState;
use crate::identity::Trusted;

/// Message that no correct origin sends. The connection is closed.
#[derive(Debug, thiserror::Error)]
pub enum Violation {
    /// The message is empty.
    #[error("the origin sent a message without content")]
    Empty,
    /// The message is not allowed in this state.
    #[error("the origin sent a message out of order")]
    Order,
    /// The origin speaks a protocol version that this agent does not.
    #[error(
        "the origin speaks protocol version {actual}, this agent {PROTOCOL_MIN} to {PROTOCOL_MAX}: update the older side"
    )]
    Protocol {
        /// Version of the origin.
        actual: u32,
    },
    /// The announced update contains malformed frames.
    #[error("the origin announced a malformed update")]
    Update(#[from] WireError),
    /// The trust document is malformed, of another tree, or not signed.
    #[error("the origin's trust document can't be followed")]
    Trust(#[from] TrustError),
}

/// Input of the state machine.
#[derive(Debug)]
pub enum Event {
    /// A message arrived from the origin.
    Message(v1::OriginMessage),
    /// The connection broke, or could not be made. Contains the reason for people.
    Lost(String),
    /// The origin refuses this node's certificate for good, and ended the connection. Contains the reason for
    /// people.
    Revoked(String),
    /// The worker sent a report.
    Report(Report),
    /// The on-activate hook began, ended, or became due.
    Hook(HookState),
    /// The check with this number of its run has ended: passed, or its failure for people.
    Checked(u64, Result<(), String>),
    /// A person has given an order on the node.
    Order(Decision),
    /// A verification was requested.
    Verify,
    /// The certificate was renewed, or the keys that are trusted changed, by joining again for example.
    Renewed(Box<Trusted>),
    /// A deadline passed.
    Tick,
    /// The agent was asked to stop.
    Stop,
}

/// Output of the state machine.
#[expect(clippy::large_enum_variant, reason = "few exist at a time, and each is handled at once")]
#[derive(Debug)]
pub enum Action {
    /// Connect, and send this first.
    Dial(Box<v1::Hello>),
    /// Close the connection.
    Hang,
    /// Send a message to the origin.
    Send(ToOrigin),
    /// Give the idle worker a command.
    Start(Box<Command>),
    /// Cancel the worker's command.
    Cancel,
    /// Run the on-activate hook now, without the pause after a failure.
    RetryHook,
    /// Run the check for the live generation. The answer has the same number.
    Check(u64, Box<SignedGeneration>, Phase),
    /// The running check is not needed any more.
    StopCheck,
    /// Answer the oldest order.
    Ordered(Result<(), Failure>),
    /// Trust this newer document from now on, also after a restart.
    Follow(Box<SignedTrust>),
    /// Report progress to those who requested a verification.
    Verifying(Progress),
    /// Report the result to those who requested a verification; `Err`: it failed.
    Verified(Result<Verified, Failure>),
    /// The worker is idle and nothing more will be done.
    Stopped,
}
