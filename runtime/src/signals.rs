//! Signals that stop a service, and SIGHUP, which does not.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signal handlers of a service. From their creation on, none of these signals kills the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to listen. Called before anything is opened, so that everything can be closed in order.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns on SIGTERM or SIGINT. SIGHUP is logged and ignored: there is no configuration to reload, and a
    /// `systemctl reload` or a closed terminal must not stop a service. Cancel safe.
    pub async fn stop(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP changes nothing: options are read at the start, restart to change them");
                }
            }
        }
    }
}
