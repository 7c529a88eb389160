//! Periodic checks of a serving origin: its certificate, and whether DATA is in place.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::collected::Collection;
use crate::error_chain;
use crate::keys::Keys;
use crate::state::DataTrouble;
use crate::store::Store;

/// Interval of checks of the origin's certificate.
const CERTIFICATE_LOOK: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval at which old versions of collected files are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(24 * 60 * 60);
/// Interval of checks of DATA.
const DATA_LOOK: Duration = Duration::from_secs(2);

/// Extends the authority and reissues the origin's certificate where due, and warns about the keys. Blocks.
pub(super) fn look_after(keys: &Keys) {
    let now = OffsetDateTime::now_utc();
    match keys.extend_authority(now) {
        Ok(true) => tracing::info!("the life of the tree's authority was extended"),
        Ok(false) => {}
        Err(error) => tracing::error!(error = %error_chain(&error), "extending the authority failed"),
    }
    match keys.reissue_origin_certificate(now) {
        Ok(true) => tracing::info!("the origin's certificate was reissued"),
        Ok(false) => {}
        Err(error) => {
            tracing::error!(error = %error_chain(&error), "reissuing the origin's certificate failed");
        }
    }
    for warning in keys.warnings(now) {
        tracing::warn!("{warning}");
    }
    if let Some(path) = keys.root_key_here() {
        tracing::info!(
            path = %path.display(),
            "the root key is still on this machine: move it to a safe place, it can replace every other key"
        );
    }
}

/// Checks the keys periodically while the origin serves.
pub(super) async fn keep_certificate(keys: Arc<Keys>, shutdown: CancellationToken) {
    while shutdown.run_until_cancelled(tokio::time::sleep(CERTIFICATE_LOOK)).await.is_some() {
        let keys = keys.clone();
        // Fails only if the runtime is shutting down.
        let _ = tokio::task::spawn_blocking(move || look_after(&keys)).await;
    }
}

/// Has old versions of collected files forgotten, once a day.
pub(super) async fn expire_collected(collection: Collection, shutdown: CancellationToken) {
    loop {
        let mut next = Some(Vec::new());
        while let Some(from) = next {
            next = collection.expire(from).await.unwrap_or_else(|error| {
                tracing::error!(error = %error_chain(&error), "old versions of collected files stay");
                None
            });
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_none() {
            return;
        }
    }
}

/// Checks DATA until `shutdown` and publishes what is wrong with it. Logs changes.
pub(super) async fn watch_data(
    store: Arc<Store>,
    keys: Arc<Keys>,
    trouble: watch::Sender<Option<DataTrouble>>,
    shutdown: CancellationToken,
) {
    let mut ticks = tokio::time::interval(DATA_LOOK);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        let (store, keys) = (store.clone(), keys.clone());
        let Ok(now) = tokio::task::spawn_blocking(move || data_trouble(&store, &keys)).await else { return };
        trouble.send_if_modified(|shown| {
            let changed = *shown != now;
            if changed {
                match &now {
                    Some(DataTrouble::Store(reason)) => tracing::error!("nothing can be published: {reason}"),
                    Some(DataTrouble::Keys(reason)) => tracing::error!("{reason}"),
                    None => tracing::info!("the data directory is complete again"),
                }
                *shown = now;
            }
            changed
        });
    }
}

/// Names what is missing in DATA, the worst first. Blocks for a few system calls.
fn data_trouble(store: &Store, keys: &Keys) -> Option<DataTrouble> {
    if let Err(error) = store.in_place() {
        return Some(DataTrouble::Store(error_chain(&error)));
    }
    keys.in_place().err().map(|error| DataTrouble::Keys(error_chain(&error)))
}
