//! Errors as reported to agents.

use syncd_shared::GenerationNumber;
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::authority::{AgentNameError, AuthorityError};
use syncd_shared::wire::WireError;
use tonic::{Code, Status};

use crate::audit::AuditError;
use crate::fleet::{FleetError, RosterError};
use crate::plan::PlanError;

/// Reasons that a call or a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("this call needs an agent's certificate: join first")]
    NoCertificate,
    #[error("the certificate of this agent was revoked: join again with a new token")]
    Revoked,
    #[error("the authority of this agent's certificate was retired: join again with a new token")]
    Retired,
    #[error(
        "this agent's certificate does not hold today: it expired, a clock is off, or the origin's authority was \
         replaced. Only its renewal is served"
    )]
    OutOfDate,
    #[error("another connection with this agent's certificate took its place")]
    Replaced,
    #[error("the origin is stopping")]
    Stopping,
    #[error("{what} was not said within {seconds} s")]
    Silent { what: &'static str, seconds: u64 },
    #[error("the agent does not read what it asked for: nothing passed for {seconds} s")]
    Stalled { seconds: u64 },
    #[error("more than {limit} fetch streams at once {of}")]
    Busy { limit: usize, of: &'static str },
    #[error("message has no {field}")]
    Missing { field: &'static str },
    #[error("{what} came out of order")]
    OutOfOrder { what: &'static str },
    #[error("{what}: {actual} exceeds {limit}")]
    Limit { what: &'static str, actual: usize, limit: usize },
    #[error("this origin speaks protocol {ours}, the agent {from} to {to}: update the older side")]
    Protocol { ours: u32, from: u32, to: u32 },
    #[error("generation {generation} is unknown here: connect again and show it")]
    Unshown { generation: GenerationNumber },
    #[error("generation {generation} is reported after {before}: no agent goes back")]
    Backwards { generation: GenerationNumber, before: GenerationNumber },
    #[error("this origin serves another tree: the token is of another origin")]
    OtherToken,
    #[error("this origin serves another tree than the one that this node has joined: check the address")]
    OtherTree,
    #[error(transparent)]
    Clock(AuthorityError),
    #[error("certificates can't be issued")]
    Issue(#[source] AuthorityError),
    #[error(transparent)]
    Request(AuthorityError),
    #[error(transparent)]
    Name(#[from] AgentNameError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("the agent shows a malformed generation")]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    Plan(#[from] std::sync::Arc<PlanError>),
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error("the origin can't record the join")]
    Audit(#[from] AuditError),
    #[error("a message can't be decoded")]
    Undecodable(#[source] Box<Status>),
    #[error("the connection broke")]
    Transport(#[source] Box<Status>),
}

impl From<PlanError> for ServeError {
    fn from(error: PlanError) -> Self {
        Self::Plan(std::sync::Arc::new(error))
    }
}

impl ServeError {
    /// Classifies an error received from a peer. For a message that does not decode, tonic reports INTERNAL
    /// without a source, like a defect of this program. Errors of the connection have a source.
    pub(super) fn received(status: Status) -> Self {
        let is_of_the_message =
            status.code() == Code::Internal && std::error::Error::source(&status).is_none();
        let status = Box::new(status);
        if is_of_the_message { Self::Undecodable(status) } else { Self::Transport(status) }
    }
}

/// Maps every error to a code, which determines what the agent does. `NOT_FOUND`: request objects instead of
/// an update. `UNAUTHENTICATED`: renew the certificate. `UNAVAILABLE`, `ABORTED` and `DEADLINE_EXCEEDED`:
/// retry. Any other code requires a person to act.
pub fn status(error: &ServeError) -> Status {
    let code = match error {
        ServeError::NoCertificate | ServeError::OutOfDate => Code::Unauthenticated,
        ServeError::Revoked | ServeError::Retired => Code::PermissionDenied,
        ServeError::Replaced | ServeError::Unshown { .. } => Code::Aborted,
        ServeError::Stopping | ServeError::Busy { .. } => Code::Unavailable,
        ServeError::Silent { .. } | ServeError::Stalled { .. } => Code::DeadlineExceeded,
        ServeError::Missing { .. }
        | ServeError::OutOfOrder { .. }
        | ServeError::Limit { .. }
        | ServeError::Backwards { .. }
        | ServeError::Request(_)
        | ServeError::Undecodable(_)
        | ServeError::Name(_)
        | ServeError::Wire(_)
        | ServeError::Generation(_) => Code::InvalidArgument,
        ServeError::Protocol { .. }
        | ServeError::OtherToken
        | ServeError::OtherTree
        | ServeError::Clock(_) => Code::FailedPrecondition,
        ServeError::Issue(_) | ServeError::Audit(_) => Code::Internal,
        ServeError::Plan(error) => plan_code(error),
        ServeError::Fleet(error) => fleet_code(error),
        ServeError::Transport(status) => status.code(),
    };
    Status::new(code, crate::error_chain(error))
}

fn plan_code(error: &PlanError) -> Code {
    match error {
        // The general path needs neither the old root nor the spool.
        PlanError::UnknownRoot { .. }
        | PlanError::TooLarge { .. }
        | PlanError::NotUnderstood
        | PlanError::Spool { .. }
        | PlanError::SpoolChanged { .. } => Code::NotFound,
        PlanError::Interrupted => Code::Unavailable,
        PlanError::MissingContent { .. }
        | PlanError::Damaged(_)
        | PlanError::Diff { .. }
        | PlanError::Directory(_) => Code::DataLoss,
        PlanError::Read(_) | PlanError::Compress(_) | PlanError::Encode(_) | PlanError::UpdateFile(_) => {
            Code::Internal
        }
    }
}

fn fleet_code(error: &FleetError) -> Code {
    match error {
        FleetError::Refused(refused) => match refused {
            RosterError::UnknownToken
            | RosterError::ExpiredToken
            | RosterError::RevokedToken
            | RosterError::SpentToken
            | RosterError::Revoked { .. }
            | RosterError::Unrecorded { .. } => Code::PermissionDenied,
            RosterError::NameTaken { .. } => Code::AlreadyExists,
            RosterError::UnknownAgent { .. } | RosterError::UnknownTokenId { .. } => Code::NotFound,
            RosterError::RenewedTooEarly { .. } => Code::FailedPrecondition,
            RosterError::RenewedTooOften { .. } => Code::ResourceExhausted,
            RosterError::Connected { .. } => Code::FailedPrecondition,
        },
        FleetError::Records(_) | FleetError::Save(_) | FleetError::NotDurable(_) | FleetError::Keys(_) => {
            Code::Internal
        }
        // No call of an agent gets it.
        FleetError::Rollout(_) => Code::FailedPrecondition,
        FleetError::Stopping => Code::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_does_not_decode_is_its_senders_fault() {
        let undecodable = ServeError::received(Status::internal("failed to decode Protobuf message"));
        assert_eq!(status(&undecodable).code(), Code::InvalidArgument);
        let broken = ServeError::received(Status::from_error(std::io::Error::other("reset").into()));
        assert!(matches!(broken, ServeError::Transport(_)));
    }
}
