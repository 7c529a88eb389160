//! The gRPC services. Agents connect to the origin and are identified by their certificates.
//!
//! [`replication`] holds one control stream for each agent, [`fetch`] sends bulk bytes, and [`enrolment`]
//! issues certificates. Messages sent through [`response_body`] stay in memory only until they are sent.
//! Each stream is one task with bounded memory. All streams end when the origin stops, when the agent's
//! certificate is revoked, or when the agent stops reading.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod collected;
mod enrolment;
mod error;
mod fetch;
mod fetch_slots;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod heap_trim;
mod replication;
mod response_body;
mod session;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use syncd_proto::v1::collected_server::CollectedServer;
use syncd_proto::v1::enrolment_server::EnrolmentServer;
use syncd_proto::v1::replication_server::ReplicationServer;
use syncd_runtime::rate::Bucket;
use syncd_runtime::tls::{Admit, TlsError};
use syncd_shared::limits::{CERTIFICATE_REQUEST_MAX_BYTES, CONTROL_MESSAGE_MAX_BYTES};
use syncd_shared::wire::{FEATURE_COLLECTED, FEATURE_DELTAS};
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::util::MapResponseLayer;

use crate::audit::Audit;
use crate::collected::Collection;
use crate::fleet::Fleet;
use crate::keys::Keys;
use crate::listener::{incoming, server_builder};
use crate::plan::Planner;
use crate::publish::Locations;

#[cfg(feature = "testing")]
pub use {
    collected::{ExchangeError, Sessions},
    error::{ServeError, status},
    fetch::answer,
    fetch_slots::StreamSlots,
    session::run as converse,
};

use collected::Collect;
use enrolment::Enrol;
use replication::Replicate;

/// Version of the protocol.
pub const PROTOCOL: u32 = 1;
/// Optional features of this origin. Every encoded update may have deltas, so an agent that does not name
/// this feature gets no updates and takes the general path.
const FEATURES: &[&str] = &[FEATURE_DELTAS];
/// Interval at which agents send heartbeats.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// Large enough for a `JoinRequest`, which has little besides its certificate request.
const ENROLMENT_MESSAGE_MAX_BYTES: usize = 2 * CERTIFICATE_REQUEST_MAX_BYTES;
/// Time limit for connections to end when the origin stops.
const DRAIN: Duration = Duration::from_secs(5);

/// Messages of a peer in order: a gRPC stream, or a substitute in tests and simulations.
pub trait FromPeer<T>: Stream<Item = Result<T, Status>> + Unpin + Send {}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin + Send> FromPeer<T> for S {}

/// Features for `Welcome`. Agents never name [`FEATURE_COLLECTED`]: it says which services this origin has.
fn features(collects: bool) -> Vec<String> {
    let collected = collects.then_some(FEATURE_COLLECTED);
    FEATURES.iter().copied().chain(collected).map(str::to_owned).collect()
}

/// Whether an agent with these features accepts encoded updates.
fn takes_updates(features: &[String]) -> bool {
    FEATURES.iter().all(|feature| features.iter().any(|named| named == feature))
}

/// Shared state of the services.
#[derive(Clone)]
pub struct Services {
    pub keys: Arc<Keys>,
    /// Enrolled agents and announcements.
    pub fleet: Fleet,
    /// Planner of updates and objects.
    pub planner: Planner,
    /// `--bwlimit`, shared by all bulk bytes.
    pub limit: Option<Arc<Bucket>>,
    /// Collected directories; `None` if none is configured.
    pub collected: Option<Collection>,
    /// `--publish-read`.
    pub locations: Option<Locations>,
    pub audit: Audit,
}

/// Serves agents on `listener` until `shutdown`. The future completes when all connections have ended, or
/// after a deadline. Not cancel safe. Must be called on the runtime.
pub fn serve(
    listener: TcpListener,
    services: Services,
    shutdown: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + 'static, TlsError> {
    let fleet = services.fleet.clone();
    let admit: Admit = Arc::new(move |peer| {
        let admitted = fleet.admits(peer);
        if !admitted {
            tracing::warn!(agent = %peer.name, "refused: its certificate was revoked, it has to join again");
        }
        admitted
    });
    let tls = services.keys.server_tls(admit)?;
    let replication = ReplicationServer::new(Replicate::new(services.clone(), shutdown.clone()))
        .max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
    let enrolment = EnrolmentServer::new(Enrol::new(services.clone()))
        .max_decoding_message_size(ENROLMENT_MESSAGE_MAX_BYTES)
        .max_encoding_message_size(CONTROL_MESSAGE_MAX_BYTES);
    let collected = services.collected.clone().map(|collection| {
        CollectedServer::new(Collect::new(services.clone(), collection, shutdown.clone()))
            .max_decoding_message_size(CONTROL_MESSAGE_MAX_BYTES)
    });
    let bodies = MapResponseLayer::new(response_body::swap_in_body);
    let router = server_builder()
        .layer(bodies)
        .add_service(replication)
        .add_service(enrolment)
        .add_optional_service(collected);
    Ok(async move {
        let stop = shutdown.clone().cancelled_owned();
        let served = router.serve_with_incoming_shutdown(incoming(listener, tls), stop);
        let deadline = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = served => if let Err(error) = served {
                tracing::error!(error = %crate::error_chain(&error), "serving agents ended");
            },
            () = deadline => tracing::warn!("connections of agents did not end in time"),
        }
        services.planner.stop();
    })
}
