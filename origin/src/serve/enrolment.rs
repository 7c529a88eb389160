//! The enrolment service: issues certificates to new agents, and renews those of enrolled ones.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use std::net::SocketAddr;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::enrolment_server::Enrolment;
use syncd_shared::identity::authority::AuthorityError;
use syncd_shared::identity::token::secret_hash;
use syncd_shared::identity::{AgentName, PeerIdentity};
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::Services;
use super::error::{ServeError, status};
use super::replication::holder;
use crate::fleet::token_id;
use crate::keys::AuthorityStanding;
use crate::line_budget::LineBudget;
use crate::listener::ConnectionInfo;
use crate::metrics::{Refused, metrics};

/// Limits log lines that strangers can cause by joining without a valid token.
static REFUSED_JOINS: LineBudget = LineBudget::new();

pub(super) struct Enrol {
    services: Services,
}

impl Enrol {
    pub(super) fn new(services: Services) -> Self {
        Self { services }
    }

    async fn join_checked(
        &self,
        request: v1::JoinRequest,
        address: Option<SocketAddr>,
    ) -> Result<v1::JoinResponse, ServeError> {
        let Services { keys, fleet, audit, .. } = &self.services;
        if request.tree_id.as_ref() != keys.tree_id().as_bytes() {
            return Err(ServeError::OtherToken);
        }
        let name: AgentName = String::from_utf8_lossy(&request.name).parse()?;
        let group = Some(&request.group).filter(|group| !group.is_empty());
        let group: Option<AgentName> = group.map(|group| group.parse()).transpose()?;
        let secret_hash = secret_hash(&request.secret);
        // Checked before anything is signed, so that guessing costs the guesser more than this origin.
        fleet.check_join(secret_hash, name.clone()).await?;
        let (certificate, identity) = self.issue(&name, &request.certificate_request)?;
        let token = token_id(&secret_hash);
        audit.record_join(&name, address, &token).await?;
        fleet.join(secret_hash, identity, group).await?;
        tracing::info!(agent = %name, token, address = address.map(tracing::field::display), "joined");
        Ok(v1::JoinResponse { certificate })
    }

    async fn renew_checked(
        &self,
        request: Request<v1::RenewRequest>,
    ) -> Result<v1::RenewResponse, ServeError> {
        let fleet = &self.services.fleet;
        let peer = holder(&request, fleet)?;
        // The connection may be older than the retirement.
        if self.services.keys.standing(peer.issuer) == AuthorityStanding::Retired {
            return Err(ServeError::Retired);
        }
        fleet.check_renewal(peer.clone(), self.services.keys.authority().key_id()).await?;
        let request = request.into_inner();
        let (certificate, identity) = self.issue(&peer.name, &request.certificate_request)?;
        let name = peer.name.clone();
        fleet.renew(peer, identity).await?;
        tracing::info!(agent = %name, "certificate renewed");
        Ok(v1::RenewResponse { certificate })
    }

    fn issue(&self, name: &AgentName, request: &[u8]) -> Result<(Bytes, PeerIdentity), ServeError> {
        let issued = self.services.keys.authority().issue_agent(name, request, OffsetDateTime::now_utc());
        let (certificate, identity) = issued.map_err(|error| match error {
            AuthorityError::RequestLength { .. }
            | AuthorityError::Request(_)
            | AuthorityError::RequestKey => ServeError::Request(error),
            AuthorityError::Clock { .. } => ServeError::Clock(error),
            error => ServeError::Issue(error),
        })?;
        Ok((Bytes::copy_from_slice(&certificate), identity))
    }
}

#[tonic::async_trait]
impl Enrolment for Enrol {
    async fn trust(&self, request: Request<v1::TrustRequest>) -> Result<Response<v1::TrustDocument>, Status> {
        let keys = &self.services.keys;
        if request.into_inner().tree_id.as_ref() != keys.tree_id().as_bytes() {
            return Err(status(&ServeError::OtherTree));
        }
        let document = Bytes::copy_from_slice(keys.trust().bytes());
        Ok(Response::new(v1::TrustDocument { document }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let address = request.extensions().get::<ConnectionInfo>().map(|info| info.peer_address);
        let joined = self.join_checked(request.into_inner(), address).await;
        joined.map(Response::new).map_err(|error| {
            metrics().refused(Refused::Join);
            if let Some(left_out) = REFUSED_JOINS.admit() {
                tracing::warn!(reason = %crate::error_chain(&error), left_out, "join refused");
            }
            status(&error)
        })
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewResponse>, Status> {
        self.renew_checked(request).await.map(Response::new).map_err(|error| status(&error))
    }
}
