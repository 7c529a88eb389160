//! Reports to the supervisor that started the service: ready, stopping, still alive (`sd_notify`).
//!
//! Without a supervisor that listens, nothing is sent.

use std::time::Duration;

use sd_notify::NotifyState;

/// Variables by which the supervisor says where and how often to report. A child that inherited them could
/// report in the service's name.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// A service that has reported its readiness. Reports that it stops when dropped.
#[derive(Debug)]
pub struct Ready(());

/// Reports that the service is ready, and from then on that it is alive, at half the interval that the
/// supervisor demands.
///
/// The reports come from a task of the runtime: they end if every thread of the runtime is blocked. Must be
/// called within a runtime.
pub fn ready() -> Ready {
    report(NotifyState::Ready);
    if let Some(limit) = sd_notify::watchdog_enabled() {
        tokio::spawn(stay_alive(limit / 2));
    }
    Ready(())
}

impl Drop for Ready {
    /// The watchdog goes on until the runtime ends: an orderly stop may take longer than its limit.
    fn drop(&mut self) {
        report(NotifyState::Stopping);
    }
}

async fn stay_alive(interval: Duration) {
    loop {
        report(NotifyState::Watchdog);
        tokio::time::sleep(interval).await;
    }
}

fn report(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!("the supervisor did not take a report: {error}");
    }
}
