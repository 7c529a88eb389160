//! PHP-FPM, asked through packaging/php/opcache.php, which runs inside it.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};

use super::fastcgi::{self, Address, FastCgiError};

/// How the script is reached.
#[derive(Debug, Args)]
pub struct Masters {
    /// Address of a PHP-FPM master: the socket or HOST:PORT of any of its pools. Give it once for each
    /// master.
    #[arg(long = "fpm", value_name = "SOCKET|HOST:PORT")]
    pub addresses: Vec<Address>,
    /// Installed copy of packaging/php/opcache.php.
    #[arg(long, default_value = "/usr/local/lib/syncd/opcache.php", value_name = "FILE")]
    pub script: PathBuf,
}

/// A question.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// `SYNCD_TASK`: `invalidate` or `settings`.
    pub task: &'a str,
    /// `SYNCD_SCOPE`: `paths`, `tree` or `all`.
    pub scope: &'a str,
    /// `SYNCD_TREE`.
    pub tree: &'a Path,
    /// The request's body.
    pub body: &'a [u8],
}

/// A question that PHP-FPM did not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum FpmError {
    /// No answer.
    #[error("PHP-FPM at {address} does not answer")]
    Ask {
        /// The master.
        address: Address,
        /// The cause.
        source: FastCgiError,
    },
    /// The script did not run.
    #[error("PHP-FPM at {address} can't run {}: {said}: install packaging/php/opcache.php there, readable for the pool's user", script.display())]
    Script {
        /// The master.
        address: Address,
        /// The script.
        script: PathBuf,
        /// Its answer, on one line.
        said: String,
    },
    /// It ran and failed.
    #[error("PHP-FPM at {address}: {said}")]
    Failed {
        /// The master.
        address: Address,
        /// The reason, on one line.
        said: String,
    },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reply<T> {
    Error { error: String },
    Done(T),
}

/// Asks the FPM at `address`.
pub async fn ask<T: DeserializeOwned>(
    address: &Address,
    script: &Path,
    question: Question<'_>,
) -> Result<T, FpmError> {
    let length = question.body.len().to_string();
    let params: [(&str, &[u8]); 7] = [
        ("REQUEST_METHOD", b"POST"),
        ("SCRIPT_FILENAME", script.as_os_str().as_bytes()),
        ("CONTENT_TYPE", b"application/octet-stream"),
        ("CONTENT_LENGTH", length.as_bytes()),
        ("SYNCD_TASK", question.task.as_bytes()),
        ("SYNCD_SCOPE", question.scope.as_bytes()),
        ("SYNCD_TREE", question.tree.as_os_str().as_bytes()),
    ];
    let answer = fastcgi::request(address, &params, question.body)
        .await
        .map_err(|source| FpmError::Ask { address: address.clone(), source })?;
    let said = || {
        let said = [&*answer.body, b" ", &*answer.errors].concat();
        one_line(String::from_utf8_lossy(&said).trim(), REASON_MAX_BYTES)
    };
    if answer.status != 200 {
        let script = script.to_owned();
        return Err(FpmError::Script { address: address.clone(), script, said: said() });
    }
    match serde_json::from_slice(&answer.body) {
        Ok(Reply::Done(done)) => Ok(done),
        Ok(Reply::Error { error }) => {
            Err(FpmError::Failed { address: address.clone(), said: one_line(&error, REASON_MAX_BYTES) })
        }
        Err(error) => {
            let said = format!("{} ({})", said(), error_chain(&error));
            Err(FpmError::Failed { address: address.clone(), said })
        }
    }
}
