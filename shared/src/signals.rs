//! What ends a service, and what does not.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals of a service. From when this is made none of them kills the process.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Begins to listen; before anything is opened, so that all of it is closed in order.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Returns with SIGTERM or SIGINT. SIGHUP is logged and changes nothing: there is nothing to read again, and a
    /// `systemctl reload` or a closed terminal must not end a service. Cancel safe.
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
