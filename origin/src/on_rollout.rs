//! Tells the operator's command that a rollout failed or was aborted, or that publication is held:
//! `serve --on-rollout`.
//!
//! One task follows the rollout and the hold. A withdrawal is both, and is told once, as the failure. The
//! record `told` in the namespace `on-rollout` is the generation that was last told of, as a little endian
//! u64. It is written after the command has succeeded, so that a crash has it run again. A failed run is
//! retried, unless there is newer news.

use std::sync::Arc;
use std::time::Duration;

use syncd_runtime::command::{Ended, ShellCommand, input_of};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::commit::{Hold, OriginView};
use crate::fleet::rollout::{Phase, RolloutStatus, RolloutView};
use crate::store::{Store, StoreError};

const NAMESPACE: &str = "on-rollout";
const TOLD: &[u8] = b"told";
const LIMIT: Duration = Duration::from_secs(30);
/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(300);

/// Parts of the origin that the task needs.
pub struct Herald {
    pub store: Arc<Store>,
    /// `--on-rollout`, for `sh -c`.
    pub command: String,
    pub rollout: watch::Receiver<Arc<RolloutView>>,
    pub committer: watch::Receiver<OriginView>,
    pub shutdown: CancellationToken,
}

/// An event that the command is told of.
#[derive(Debug, Clone, PartialEq, Eq)]
struct News {
    /// `SYNCD_EVENT`.
    event: &'static str,
    /// The generation that failed or was aborted; with `held` the one in effect.
    generation: u64,
    reason: String,
    /// The rollout of that generation, if it is known still.
    rollout: Option<RolloutStatus>,
}

/// The newest event that the state shows.
fn newest(rollout: Option<&RolloutStatus>, hold: Option<Hold>) -> Option<News> {
    let ended = rollout.filter(|rollout| rollout.phase.has_failed()).map(|rollout| News {
        event: if rollout.phase == Phase::Aborted { "aborted" } else { "failed" },
        generation: rollout.generation,
        reason: rollout.reason.clone().unwrap_or_default(),
        rollout: Some(rollout.clone()),
    });
    let held = hold.map(|hold| News {
        event: if hold.withdrawn.is_some() { "failed" } else { "held" },
        generation: hold.withdrawn.unwrap_or(hold.generation).get(),
        reason: hold.reason(),
        rollout: None,
    });
    match (ended, held) {
        (Some(ended), Some(held)) if held.generation > ended.generation => Some(held),
        (ended, held) => ended.or(held),
    }
}

impl Herald {
    /// Tells news until `shutdown`.
    pub async fn run(mut self) {
        let mut told = self.told().await.unwrap_or(0);
        let mut pause = Duration::ZERO;
        let mut retry_at = None;
        loop {
            let news = newest(
                self.rollout.borrow_and_update().rollout.as_ref(),
                self.committer.borrow_and_update().hold,
            );
            if let Some(news) = news.filter(|news| news.generation > told)
                && retry_at.is_none_or(|at| at <= Instant::now())
            {
                let generation = news.generation;
                if self.tell(news).await {
                    (told, pause, retry_at) = (generation, Duration::ZERO, None);
                } else {
                    pause = (pause * 2).clamp(Duration::from_secs(1), PAUSE_MAX);
                    retry_at = Some(Instant::now() + pause);
                }
                continue;
            }
            let is_over = tokio::select! {
                () = self.shutdown.cancelled() => true,
                changed = self.rollout.changed() => changed.is_err(),
                changed = self.committer.changed() => changed.is_err(),
                () = at(retry_at) => false,
            };
            if is_over {
                return;
            }
        }
    }

    /// Runs the command, and records its success. Returns whether it has succeeded.
    async fn tell(&self, news: News) -> bool {
        let (command, stop, store) = (self.command.clone(), self.shutdown.clone(), self.store.clone());
        let (event, generation) = (news.event, news.generation);
        let ran = tokio::task::spawn_blocking(move || {
            let failure = run(&command, &news, stop);
            if failure.is_none()
                && let Err(error) = save(&store, news.generation)
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the command of --on-rollout may run again after a restart");
            }
            failure
        });
        match ran.await.unwrap_or_else(|_| Some("it was interrupted".to_owned())) {
            _ if self.shutdown.is_cancelled() => false,
            None => {
                tracing::info!(generation, event, "the command of --on-rollout has succeeded");
                true
            }
            Some(error) => {
                tracing::warn!(
                    generation,
                    event,
                    error,
                    "the command of --on-rollout failed and will be retried"
                );
                false
            }
        }
    }

    /// The generation that was last told of. A record that can't be read counts as none.
    async fn told(&self) -> Option<u64> {
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || load(&store)).await.ok()?;
        read.inspect_err(|error| tracing::warn!(%error, "read what --on-rollout was told of")).ok()?
    }
}

fn load(store: &Store) -> Result<Option<u64>, StoreError> {
    let record = store.record(NAMESPACE, TOLD)?;
    Ok(record.and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?))))
}

fn save(store: &Store, told: u64) -> Result<(), StoreError> {
    store.update_records(|records| records.put(NAMESPACE, TOLD, &told.to_le_bytes()))
}

/// Runs the command. Returns its failure: one line.
fn run(command: &str, news: &News, stop: CancellationToken) -> Option<String> {
    let environment = vec![
        ("SYNCD_EVENT", news.event.into()),
        ("SYNCD_GENERATION", news.generation.to_string().into()),
        ("SYNCD_REASON", news.reason.clone().into()),
    ];
    let mut json = serde_json::to_vec(&news.rollout).unwrap_or_default();
    json.push(b'\n');
    let ran = input_of(&json)
        .and_then(|input| ShellCommand { command, environment, input, limit: LIMIT, stop }.run());
    match ran {
        Ok(Ended::Succeeded) => None,
        Ok(Ended::Failed { status, output }) => Some(format!("{status}: {output}")),
        Ok(Ended::Killed { output }) => Some(format!("killed after {} s: {output}", LIMIT.as_secs())),
        Err(error) => Some(format!("can't start it: {error}")),
    }
}

/// Never returns for `None`.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::GenerationNumber;

    use super::*;
    use crate::fleet::rollout::machine::tests::{GOOD, NEW};
    use crate::fleet::rollout::machine::{Kind, Rollout};
    use crate::fleet::rollout::policy::Policy;

    fn ended(abort: bool) -> RolloutStatus {
        let mut rollout = Rollout::start(Kind::Commit, NEW, GOOD, Policy::together(), 0);
        if abort {
            rollout.order(crate::fleet::rollout::RolloutOrder::Abort, 1).unwrap();
        }
        RolloutStatus::new(&rollout, &[])
    }

    fn hold(generation: u64, withdrawn: u64) -> Hold {
        let number = |number| GenerationNumber::new(number).unwrap();
        let (target, withdrawn) = (number(6), GenerationNumber::new(withdrawn));
        Hold { target, generation: number(generation), since_ms: 0, withdrawn }
    }

    #[test]
    fn a_withdrawal_is_told_as_the_failure_and_a_rollback_as_a_hold() {
        let told = |rollout: Option<&RolloutStatus>, hold| {
            let news = newest(rollout, hold)?;
            Some((news.event, news.generation, news.rollout.is_some()))
        };
        let (running, aborted) = (ended(false), ended(true));
        assert_eq!(told(Some(&running), None), None);
        assert_eq!(told(Some(&aborted), None), Some(("aborted", 7, true)));
        assert_eq!(told(Some(&aborted), Some(hold(8, 7))), Some(("aborted", 7, true)));
        // After a restart the rollout is forgotten.
        assert_eq!(told(None, Some(hold(8, 7))), Some(("failed", 7, false)));
        assert_eq!(told(Some(&aborted), Some(hold(9, 0))), Some(("held", 9, false)));
        assert_eq!(told(Some(&aborted), Some(hold(6, 5))), Some(("aborted", 7, true)));
    }
}
