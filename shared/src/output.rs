//! What a command prints: results on standard output, everything else on standard error.
//!
//! A reader may go away before the end (`history | head -1`). The command then ends without a word and with the code
//! that a shell gives for SIGPIPE; nothing panics, and a service, whose sockets break all the time, never takes the
//! signal itself.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::text::error_chain;

/// As a shell shows a program that SIGPIPE ended.
const READER_GONE: u8 = 128 + 13;

/// A result could not be written.
#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader went away, which is no failure.
    pub fn is_reader_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes a line of the result, at once: what reads it may act on it while the command goes on.
pub fn line(text: impl Display) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a line for a person. Where nobody reads standard error there is nobody to tell.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Tells why `program` failed, and returns what it ends with: `code`, but where only the reader went away.
pub fn failed(program: &str, error: &(dyn Error + 'static), code: u8) -> ExitCode {
    let reader_gone = std::iter::successors(Some(error), |error| (**error).source())
        .filter_map(|error| error.downcast_ref::<OutputError>())
        .any(OutputError::is_reader_gone);
    if reader_gone {
        return ExitCode::from(READER_GONE);
    }
    note(format_args!("{program}: {}", error_chain(error)));
    ExitCode::from(code)
}
