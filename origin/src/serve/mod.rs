//! The gRPC services: agents dial in, and are who their certificate says.
//!
//! [`replication`] holds one control stream for each agent, [`fetch`] answers with bulk bytes, [`enrolment`] hands out
//! certificates. What [`body`] sends is in memory until then and no longer. Each stream is one task with bounded
//! memory; all of them end when the origin stops, when the agent's certificate is revoked, or when the agent stops
//! reading.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]
#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

mod body;
mod enrolment;
mod error;
mod fetch;
#[doc(hidden)]
pub mod fuzzing;
mod replication;
mod session;
#[cfg(test)]
mod tests;
mod turns;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use syncd_proto::v1::enrolment_server::EnrolmentServer;
use syncd_proto::v1::replication_server::ReplicationServer;
use syncd_shared::identity::tls::{Admit, TlsError};
use syncd_shared::limits::{CERTIFICATE_REQUEST_MAX_BYTES, CONTROL_MESSAGE_MAX_BYTES};
use syncd_shared::rate::Bucket;
use syncd_shared::wire::FEATURE_DELTAS;
use tokio::net::TcpListener;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tower::util::MapResponseLayer;

use crate::fleet::Fleet;
use crate::keys::Keys;
use crate::listener::{incoming, server_builder};
use crate::plan::Planner;

pub use error::{ServeError, status};
pub use fetch::answer;
pub use session::run as converse;
pub use turns::StreamTurns;

use enrolment::Enrol;
use replication::Replicate;

/// Version of the protocol that this origin speaks.
pub const PROTOCOL: u32 = 1;
/// Optional abilities that this origin names. Every encoded update may have deltas: who does not name them gets none, and
/// takes the general path.
const FEATURES: &[&str] = &[FEATURE_DELTAS];
/// How often agents are asked to say that they live.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// A `JoinRequest` has little more than its certificate request.
const ENROLMENT_MESSAGE_MAX_BYTES: usize = 2 * CERTIFICATE_REQUEST_MAX_BYTES;
/// How long connections may take to end after the origin was told to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// Messages of a peer, as they come: a gRPC stream, or what plays one.
pub trait FromPeer<T>: Stream<Item = Result<T, Status>> + Unpin + Send {}

impl<T, S: Stream<Item = Result<T, Status>> + Unpin + Send> FromPeer<T> for S {}

/// Whether who named these features takes encoded updates.
fn takes_updates(features: &[String]) -> bool {
    FEATURES.iter().all(|feature| features.iter().any(|named| named == feature))
}

/// What the services work with.
#[derive(Clone)]
pub struct Services {
    /// Certificates and signing keys.
    pub keys: Arc<Keys>,
    /// Who is enrolled, and what is announced.
    pub fleet: Fleet,
    /// Updates and objects.
    pub planner: Planner,
    /// `--bwlimit`: for all bulk bytes together.
    pub limit: Option<Arc<Bucket>>,
}

/// Serves agents on `listener` until `shutdown`. The future ends when all connections have, or after a deadline; it is
/// not cancel safe. Must be called on the runtime.
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
    let bodies = MapResponseLayer::new(body::put_in_place);
    let router = server_builder().layer(bodies).add_service(replication).add_service(enrolment);
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
