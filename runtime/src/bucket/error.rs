//! Failures of calls of a [`super::Bucket`], each with the next step.

use std::io;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A call of a [`super::Bucket`] failed.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing} {name} in the object store")]
pub struct BucketError {
    pub doing: &'static str,
    pub name: String,
    #[source]
    pub fault: Fault,
}

/// The cause of a failed call, by what a person does about it.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The outcome of a write is not known.
    #[error("it does not answer: check that it runs and can be reached; the request is repeated")]
    Down(#[source] Source),
    #[error(
        "it refuses access: check the credentials, what they may do there, and this machine's clock ({next})"
    )]
    Refused {
        next: &'static str,
        #[source]
        source: Source,
    },
    #[error(
        "the object ends after {has} bytes, and {wanted} are wanted: \
         run `syncd-origin publish check` at the origin"
    )]
    Short { wanted: u64, has: u64 },
    #[error("the object is longer than the {limit} bytes that it may have")]
    Long { limit: usize },
    #[error("it failed")]
    Failed(#[source] Source),
}

impl BucketError {
    pub(super) fn new(doing: &'static str, name: &str, fault: impl Into<Fault>) -> Self {
        Self { doing, name: name.to_owned(), fault: fault.into() }
    }

    /// A call whose outcome is not known.
    pub fn unanswered(doing: &'static str, name: &str) -> Self {
        Self::new(doing, name, Fault::Down(io::Error::from(io::ErrorKind::TimedOut).into()))
    }
}

/// A failure of a store that is a directory.
impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::PermissionDenied => {
                Self::Refused { next: "owner and mode of the directory", source: error.into() }
            }
            io::ErrorKind::TimedOut | io::ErrorKind::StaleNetworkFileHandle => Self::Down(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}
