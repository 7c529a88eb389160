//! The fleet's records while nothing serves: tokens and revocation straight on the store. Blocks.

use std::sync::Arc;
use std::time::Duration;

use syncd_shared::identity::JoinToken;
#[cfg(test)]
use syncd_shared::identity::PeerIdentity;

use super::records::{RecordError, RecordStore};
use super::roster::{AGENTS, REVOKED, Roster, TOKENS, TokenView};
use super::view::AgentView;
use super::{FleetError, agent_view, now_ms};
use crate::keys::Keys;

/// The fleet's records. Not to be used beside a [`super::Fleet`] for anything but reading.
pub struct Registry {
    records: Arc<dyn RecordStore>,
}

impl Registry {
    /// Of this store.
    pub fn new(records: Arc<dyn RecordStore>) -> Self {
        Self { records }
    }

    pub(super) fn load(&self) -> Result<Roster, RecordError> {
        Roster::decode(self.records.load(AGENTS)?, self.records.load(TOKENS)?, self.records.load(REVOKED)?)
    }

    /// A join token, durable when this returns.
    pub fn create_token(&self, keys: &Keys, ttl: Duration, uses: u32) -> Result<JoinToken, FleetError> {
        let token = keys.token()?;
        let mut roster = self.load()?;
        let now = now_ms();
        roster.add_token(token.secret_hash(), uses, expiry_ms(now, ttl), now);
        self.records.save(&roster.take_changes())?;
        Ok(token)
    }

    /// The tokens that are good.
    pub fn tokens(&self) -> Result<Vec<TokenView>, FleetError> {
        Ok(self.load()?.tokens(now_ms()))
    }

    /// Makes a token worthless, durably when this returns.
    pub fn revoke_token(&self, id: &str) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.revoke_token(id)?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// Revokes every certificate of an agent, durable when this returns.
    pub fn revoke(&self, name: &str) -> Result<(), FleetError> {
        let mut roster = self.load()?;
        roster.revoke(name, now_ms())?;
        Ok(self.records.save(&roster.take_changes())?)
    }

    /// As if it had joined.
    #[cfg(test)]
    pub(crate) fn enrol_for_test(&self, peer: &PeerIdentity) {
        let mut roster = self.load().unwrap();
        roster.admit(peer, now_ms()).unwrap();
        self.records.save(&roster.take_changes()).unwrap();
    }

    /// Whether an origin with these records would let it in.
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
