//! Command output: results on standard output, everything else on standard error.
//!
//! A reader may close the pipe early (`history | head -1`). The command then exits silently, with the code
//! that a shell reports for SIGPIPE. The signal itself stays ignored: a service, whose sockets break all the
//! time, must not die of it.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use syncd_shared::text::error_chain;

/// Exit code that a shell reports for a program killed by SIGPIPE.
const READER_GONE: u8 = 128 + 13;

#[derive(Debug, thiserror::Error)]
#[error("standard output can't be written")]
pub struct OutputError(#[from] io::Error);

impl OutputError {
    /// Whether the reader closed the pipe, which is not a failure.
    pub fn is_reader_gone(&self) -> bool {
        self.0.kind() == io::ErrorKind::BrokenPipe
    }
}

/// Writes and flushes one line of the result, so that a reader can act on it while the command continues.
pub fn line(text: impl Display) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a line for a person. Errors are ignored: without standard error there is no place to report them.
pub fn note(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints why `program` failed and returns `code`, or only returns [`READER_GONE`] if the reader closed the
/// pipe.
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
