//! Conversion of messages of the service `Collected`. Everything is checked.

use bytes::Bytes;
use syncd_proto::v1;

use super::{Answer, Change, FileState, State, Verdict, Version, VersionNumber};
use crate::directory::{MODE_MASK, Timestamp};
use crate::hash::ContentHash;
use crate::tree_path::{TreePath, TreePathError};

/// Reasons to reject a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("message has no {field}")]
    Missing { field: &'static str },
    #[error("invalid {field} in a message")]
    Field { field: &'static str },
    #[error("invalid path in a collected directory")]
    Path(#[from] TreePathError),
}

/// The decision of an origin on a change, as sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Answered(Answer),
    /// The content has to be uploaded before the change is judged.
    NeedsContent,
    /// Against the rules of the directory; for people.
    Refused {
        reason: String,
    },
}

/// A path below a collected directory.
pub fn path(bytes: &[u8]) -> Result<TreePath, MessageError> {
    match TreePath::from_bytes(bytes)? {
        path if path.is_root() => Err(MessageError::Field { field: "path" }),
        path => Ok(path),
    }
}

pub fn content(bytes: &[u8]) -> Result<ContentHash, MessageError> {
    ContentHash::try_from(bytes).map_err(|_| MessageError::Field { field: "content" })
}

impl State {
    pub fn to_message(&self) -> v1::CollectedState {
        let kind = match self {
            Self::Absent => v1::CollectedKind::Absent,
            Self::Directory { .. } => v1::CollectedKind::Directory,
            Self::File(_) => v1::CollectedKind::File,
        };
        let message = v1::CollectedState { kind: kind.into(), ..v1::CollectedState::default() };
        match self {
            Self::Absent => message,
            Self::Directory { mode } => v1::CollectedState { mode: (*mode).into(), ..message },
            Self::File(file) => v1::CollectedState {
                mode: file.mode.into(),
                content: Bytes::copy_from_slice(file.content.as_bytes()),
                size: file.size,
                mtime_seconds: file.mtime.seconds,
                mtime_nanoseconds: file.mtime.nanoseconds,
                ..message
            },
        }
    }

    pub fn from_message(message: Option<&v1::CollectedState>) -> Result<Self, MessageError> {
        let message = message.ok_or(MessageError::Missing { field: "state" })?;
        let mode = u16::try_from(message.mode).ok().filter(|mode| mode & !MODE_MASK == 0);
        let mode = mode.ok_or(MessageError::Field { field: "mode" });
        match message.kind() {
            v1::CollectedKind::Unspecified => Err(MessageError::Field { field: "kind" }),
            v1::CollectedKind::Absent => Ok(Self::Absent),
            v1::CollectedKind::Directory => Ok(Self::Directory { mode: mode? }),
            v1::CollectedKind::File => {
                let (seconds, nanoseconds) = (message.mtime_seconds, message.mtime_nanoseconds);
                if nanoseconds >= 1_000_000_000 {
                    return Err(MessageError::Field { field: "mtime" });
                }
                Ok(Self::File(FileState {
                    content: content(&message.content)?,
                    size: message.size,
                    mode: mode?,
                    mtime: Timestamp { seconds, nanoseconds },
                }))
            }
        }
    }
}

impl Version {
    pub fn from_message(number: u64, state: Option<&v1::CollectedState>) -> Result<Self, MessageError> {
        Ok(Self { number: VersionNumber::new(number), state: State::from_message(state)? })
    }
}

impl Change {
    pub fn from_message(message: &v1::CollectedChange) -> Result<Self, MessageError> {
        let state = State::from_message(message.state.as_ref())?;
        Ok(Self { base: VersionNumber::new(message.base), state })
    }
}

impl Decision {
    pub fn to_message(&self, id: u64) -> v1::CollectedAnswer {
        let answer = |verdict: v1::CollectedVerdict| v1::CollectedAnswer {
            id,
            verdict: verdict.into(),
            ..v1::CollectedAnswer::default()
        };
        match self {
            Self::NeedsContent => answer(v1::CollectedVerdict::NeedsContent),
            Self::Refused { reason } => {
                v1::CollectedAnswer { reason: reason.clone(), ..answer(v1::CollectedVerdict::Refused) }
            }
            Self::Answered(Answer { verdict, current }) => v1::CollectedAnswer {
                number: current.number.get(),
                state: Some(current.state.to_message()),
                ..answer(match verdict {
                    Verdict::Take => v1::CollectedVerdict::Take,
                    Verdict::Same => v1::CollectedVerdict::Same,
                    Verdict::Old => v1::CollectedVerdict::Old,
                    Verdict::Conflict => v1::CollectedVerdict::Conflict,
                })
            },
        }
    }

    pub fn from_message(message: &v1::CollectedAnswer) -> Result<Self, MessageError> {
        let verdict = match message.verdict() {
            v1::CollectedVerdict::Unspecified => return Err(MessageError::Field { field: "verdict" }),
            v1::CollectedVerdict::NeedsContent => return Ok(Self::NeedsContent),
            v1::CollectedVerdict::Refused => return Ok(Self::Refused { reason: message.reason.clone() }),
            v1::CollectedVerdict::Take => Verdict::Take,
            v1::CollectedVerdict::Same => Verdict::Same,
            v1::CollectedVerdict::Old => Verdict::Old,
            v1::CollectedVerdict::Conflict => Verdict::Conflict,
        };
        let current = Version::from_message(message.number, message.state.as_ref())?;
        Ok(Self::Answered(Answer { verdict, current }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::file;
    use super::*;

    #[test]
    fn states_and_decisions_survive_the_wire() {
        for state in [State::Absent, State::Directory { mode: 0o1755 }, file(3)] {
            assert_eq!(State::from_message(Some(&state.to_message())), Ok(state));
            let current = Version { number: VersionNumber::new(7), state };
            for verdict in [Verdict::Take, Verdict::Same, Verdict::Old, Verdict::Conflict] {
                let decision = Decision::Answered(Answer { verdict, current });
                assert_eq!(Decision::from_message(&decision.to_message(1)), Ok(decision));
            }
        }
        for decision in [Decision::NeedsContent, Decision::Refused { reason: "no".into() }] {
            assert_eq!(Decision::from_message(&decision.to_message(1)), Ok(decision));
        }
    }

    #[test]
    fn what_no_node_can_have_is_rejected() {
        assert!(State::from_message(None).is_err());
        let good = file(3).to_message();
        for bad in [
            v1::CollectedState { kind: 9, ..good.clone() },
            v1::CollectedState { mode: 0o4755, ..good.clone() },
            v1::CollectedState { content: Bytes::from_static(b"short"), ..good.clone() },
            v1::CollectedState { mtime_nanoseconds: 1_000_000_000, ..good },
        ] {
            assert!(State::from_message(Some(&bad)).is_err(), "{bad:?}");
        }
        assert!(path(b"").is_err() && path(b"../x").is_err() && path(b"/x").is_err());
    }
}
