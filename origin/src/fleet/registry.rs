//! Access to the fleet's records while no origin is serving: tokens and revocation directly on the store.
//! Blocks.

use std::sync::Arc;
use std::time::Duration;

use syncd_shared::identity::JoinToken;
#[cfg(test)]
use syncd_shared::identity::PeerIdentity;

use super::records::{RecordError, RecordStore};
use super::roster::{AGENTS, NodeOrder, REVOKED, Roster, TOKENS, TokenView};
use super::view::AgentView;
use super::{FleetError, agent_view};
use crate::clock::now_ms;
use crate::keys::Keys;

/// The fleet's records. Beside a running [`super::Fleet`], it must only be used for reading.
pub struct Registry {
    records: Arc<dyn RecordStore>,
}

impl Registry {
    pub fn new(records: Arc<dyn RecordStore>) -> Self {
        Self { records }
    }

    pub(super) fn load(&self) -> Result<Roster, RecordError> {
        Roster::decode(self.records.load(AGENTS)?, self.records.load(TOKENS)?, self.records.load(REVOKED)?)
    }

    /// Creates a join token, durable on return.
    pub fn create_token(&self, keys: &Keys, ttl: Duration, uses: u32) -> Result<JoinToken, FleetError> {
        let token = keys.token()?;
        let mut roster = self.load()?;
        let now = now_ms();
        roster.add_token(token.secret_hash(), uses, expiry_ms(now, ttl), now);
        self.records.save(&roster.take_changes())?;
        Ok(token)
    }

    /// The usable tokens.
    pub fn tokens(&self) -> Result<Vec<TokenView>, FleetError> {
        Ok(self.load()?.tokens(now_ms()))
    }

    /// Invalidates a token, durably on return.
    pub fn revoke_token(&self, id: &str) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.revoke_token(id)?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// Carries out an operator's order for a node, durably on return.
    pub fn order(&self, name: &str, order: NodeOrder) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.order(name, order, now_ms())?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// Removes a node that will not come back, durably on return.
    pub fn forget(&self, name: &str) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.forget(name, false)?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// Revokes every certificate of an agent, durably on return.
    pub fn revoke(&self, name: &str) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.revoke(name, now_ms())?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// Enrols an agent as if it had joined.
    #[cfg(test)]
    pub(crate) fn enrol_for_test(&self, peer: &PeerIdentity) {
        let mut roster = self.load().unwrap();
        roster.admit(peer, now_ms()).unwrap();
        self.records.save(&roster.take_changes()).unwrap();
    }

    /// Whether an origin with these records would admit the agent.
    #[cfg(test)]
    pub(crate) fn admits_for_test(&self, peer: &PeerIdentity) -> bool {
        self.load().unwrap().admits(peer)
    }

    /// All enrolled agents, sorted by name, as last written.
    pub fn agents(&self) -> Result<Vec<AgentView>, RecordError> {
        let roster = self.load()?;
        Ok(roster.agents().map(|(name, record)| agent_view(name, record)).collect())
    }
}

pub(super) fn expiry_ms(now_ms: i64, ttl: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX))
}
