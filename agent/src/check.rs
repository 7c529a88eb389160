//! The node's own check: asks whether the live generation works, by a command or by HTTP.
//!
//! `sh -c` runs a command as it runs hooks ([`crate::hooks`]), with the environment of an activation and
//! `SYNCD_PHASE`: `before` a switch, `trial` after it, `returned` after a return. A URL is asked by plain
//! HTTP ([`url`]). A check passes after a number of passes in a row, and fails with the first failure.
//! Within its time limit it always has a result. [`crate::session::machine`] decides what follows from it.

pub mod url;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use syncd_shared::SignedGeneration;
use syncd_shared::limits::REASON_MAX_BYTES;
use syncd_shared::text::{error_chain, one_line};
use tokio_util::sync::CancellationToken;

use crate::hooks::{Hook, HookName, Occasion};
use crate::state::layout;

use self::url::CheckUrl;

/// Default of `--check-times`.
pub const TIMES: u32 = 1;
/// Default of `--check-timeout`.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Moment at which the check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before a switch, for the generation that is live. One pass is enough.
    Before,
    /// After a switch and its hook.
    Trial,
    /// After a return.
    Returned,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Trial => "trial",
            Self::Returned => "returned",
        }
    }
}

/// Options of the check.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    pub ask: Ask,
    /// Passes in a row.
    pub times: u32,
    /// Pause between them.
    pub interval: Duration,
    /// Limit of one pass.
    pub timeout: Duration,
}

/// Value of `--check`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    Command(String),
    Url(CheckUrl),
}

/// The check of a node.
#[derive(Debug)]
pub struct Check {
    options: CheckOptions,
    /// ROOT.
    root: PathBuf,
}

impl Check {
    pub fn new(options: CheckOptions, root: PathBuf) -> Self {
        Self { options, root }
    }

    /// Runs the check for the live generation. Returns the failure as one line. Cancel safe: a command is
    /// killed with everything that it started.
    pub async fn run(self: Arc<Self>, live: SignedGeneration, phase: Phase) -> Result<(), String> {
        let times = if phase == Phase::Before { 1 } else { self.options.times };
        for pass in 0..times {
            if pass > 0 {
                tokio::time::sleep(self.options.interval).await;
            }
            self.clone().pass(&live, phase).await.map_err(|error| one_line(&error, REASON_MAX_BYTES))?;
        }
        Ok(())
    }

    async fn pass(self: Arc<Self>, live: &SignedGeneration, phase: Phase) -> Result<(), String> {
        let timeout = self.options.timeout;
        match &self.options.ask {
            Ask::Url(url) => match tokio::time::timeout(timeout, url.ask()).await {
                Ok(asked) => asked.map_err(|error| error_chain(&error)),
                Err(_) => Err(format!("no answer from {url} within {} ms", timeout.as_millis())),
            },
            Ask::Command(command) => {
                let link = self.root.join("live");
                let occasion = Occasion::of(live, None, layout::live_tree(&link), link);
                let hook = Hook::new(HookName::Check, command.clone(), timeout, &self.root.join("state"));
                let stop = CancellationToken::new();
                let _given_up = stop.clone().drop_guard();
                let ran = tokio::task::spawn_blocking(move || hook.check(&occasion, phase.name(), &stop));
                match ran.await {
                    Ok(ran) => ran.map_err(|error| error.brief()),
                    Err(_) => Err("the check has ended unexpectedly".to_owned()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixture::Site;

    const LONG: Duration = Duration::from_secs(1000);

    #[tokio::test]
    async fn a_check_that_is_given_up_is_killed_with_what_it_started() {
        let mut site = Site::new();
        let live = site.origin.seal(&site.tree());
        let pid = site.temp.path().join("pid");
        let command = format!("setsid sh -c 'echo $$ > {0}.new; mv {0}.new {0}; sleep 1000'", pid.display());
        let options = CheckOptions { ask: Ask::Command(command), times: 1, interval: LONG, timeout: LONG };
        let check = Arc::new(Check::new(options, site.root()));
        let run = tokio::spawn(check.run(live, Phase::Trial));
        let begun = until(|| fs::read_to_string(&pid).ok()).await;
        run.abort();
        let stat = format!("/proc/{}/stat", begun.trim());
        until(|| fs::read_to_string(&stat).map_or(Some(()), |stat| stat.contains(") Z ").then_some(())))
            .await;
    }

    async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
        for _ in 0..60_000 {
            if let Some(found) = look() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("waited for two minutes");
    }
}
