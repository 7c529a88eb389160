//! The rules for enrolment, tokens and revocation, without IO and clock.
//!
//! Every change is noted as records to write. The caller must make them durable before reporting success.

mod admission;
mod agent_records;
mod tokens;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use syncd_shared::identity::authority::{AGENT_CERTIFICATE_LIFE, AuthorityKey};
use syncd_shared::identity::{AgentName, PeerIdentity, Serial};

use crate::fleet::records::{NamedRecord, RecordChange, RecordError};

pub use self::admission::Admission;
pub(super) use self::agent_records::{AgentRecord, Issued, Told};
pub use self::agent_records::{NodeOrder, NodeOrders};
use self::agent_records::{RevokedRecord, VERSION, agent_name, decode, issued};
use self::tokens::TokenRecord;
pub use self::tokens::TokenView;
pub(crate) use self::tokens::token_id;

pub(super) const AGENTS: &str = "fleet.agents";
pub(super) const TOKENS: &str = "fleet.tokens";
pub(super) const REVOKED: &str = "fleet.revoked";
/// Certificates issued to an agent within an hour. Fewer than are kept, so that the kept ones suffice to
/// count them.
const RENEWALS_PER_HOUR: usize = 2;
const HOUR_MS: i64 = 60 * 60 * 1000;

/// Reasons to refuse a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// The secret belongs to no token.
    #[error(
        "the join token is not of this origin, or was spent long ago: make a new one with `syncd-origin token`"
    )]
    UnknownToken,
    #[error("the join token was revoked: make a new one with `syncd-origin token`")]
    RevokedToken,
    #[error("the join token has expired: make a new one with `syncd-origin token`")]
    ExpiredToken,
    /// No uses are left.
    #[error("the join token was used already: make a new one with `syncd-origin token`")]
    SpentToken,
    /// An agent of that name is enrolled; case is ignored. Revoking it frees the name.
    #[error(
        "the name {name} is taken by an enrolled node: choose another with --name. If that node is gone, or is this one, \
         free the name at the origin with `syncd-origin revoke {name}`; it shuts that node out, should it still run"
    )]
    NameTaken {
        /// The enrolled name.
        name: AgentName,
    },
    /// Less than half of the certificate's lifetime has passed.
    #[error("the certificate of {name} is renewed once half of its life is over, and not before")]
    RenewedTooEarly { name: AgentName },
    /// The agent has received enough new certificates for now.
    #[error("{name} got {RENEWALS_PER_HOUR} new certificates within an hour: it gets another one later")]
    RenewedTooOften { name: AgentName },
    /// No token, or more than one, begins with this ID.
    #[error("no single token has the ID {id:?}: `syncd-origin token list` shows those that are good")]
    UnknownTokenId {
        /// The given ID.
        id: String,
    },
    #[error("{name} is connected: `syncd-origin revoke {name}` shuts a node out")]
    Connected { name: AgentName },
    #[error("the certificate of {name} was revoked: join again with a new token")]
    Revoked { name: AgentName },
    /// A certificate of a replaced authority that is not on record. A thief of that authority's key can make
    /// one.
    #[error(
        "the certificate of {name} is of a replaced authority, and this origin has no record of it: join again with a \
         new token"
    )]
    Unrecorded { name: AgentName },
    /// No agent of that name is enrolled.
    #[error("no agent {name:?} is enrolled{}: `syncd-origin status` lists those that are", meant(near))]
    UnknownAgent {
        name: String,
        /// An enrolled name that differs in case only.
        near: Option<AgentName>,
    },
}

fn meant(near: &Option<AgentName>) -> String {
    near.as_ref().map(|near| format!(", but {near} is")).unwrap_or_default()
}

/// How to undo a change whose record could not be written, after its sender was told that it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Undo {
    /// A revocation stays in force, written or not.
    Nothing,
    Token {
        secret_hash: [u8; 32],
    },
    Join {
        secret_hash: [u8; 32],
        name: AgentName,
        serial: Serial,
    },
    Renew {
        name: AgentName,
        serial: Serial,
    },
}

/// Lifetime of an agent's certificate.
const LIFE_MS: i64 = AGENT_CERTIFICATE_LIFE.whole_seconds() * 1000;

/// Expiry of a certificate issued now, in whole seconds.
fn not_after_issued_at(now_ms: i64) -> i64 {
    now_ms.div_euclid(1000).saturating_mul(1000).saturating_add(LIFE_MS)
}

fn not_before_ms(peer: &PeerIdentity) -> i64 {
    peer.not_before.unix_timestamp().saturating_mul(1000)
}

pub(super) fn not_after_ms(peer: &PeerIdentity) -> i64 {
    peer.not_after.unix_timestamp().saturating_mul(1000)
}

/// The enrolled agents, tokens and revocations, with changes to write.
#[derive(Debug, Default)]
pub(super) struct Roster {
    agents: BTreeMap<AgentName, AgentRecord>,
    tokens: HashMap<[u8; 32], TokenRecord>,
    revoked: BTreeMap<AgentName, RevokedRecord>,
    changes: Vec<RecordChange>,
}

impl Roster {
    /// Decodes the stored records.
    pub(super) fn decode(
        agents: Vec<NamedRecord>,
        tokens: Vec<NamedRecord>,
        revoked: Vec<NamedRecord>,
    ) -> Result<Self, RecordError> {
        let mut roster = Self::default();
        for (name, value) in agents {
            roster.agents.insert(agent_name(AGENTS, &name)?, decode(AGENTS, &name, &value)?);
        }
        for (name, value) in tokens {
            let hash = name.as_slice().try_into().map_err(|_| RecordError::damaged(TOKENS, &name))?;
            roster.tokens.insert(hash, decode(TOKENS, &name, &value)?);
        }
        for (name, value) in revoked {
            let record: RevokedRecord = decode(REVOKED, &name, &value)?;
            roster.revoked.entry(agent_name(REVOKED, &name)?).or_default().merge(record);
        }
        // The list of revocations may be newer than the index that enrols the agent.
        let revoked: HashSet<Serial> =
            roster.revoked.values().flat_map(|r| r.serials.iter().map(|c| c.serial)).collect();
        roster.agents.retain(|_, agent| {
            agent.certificates.is_empty() || agent.certificates.iter().any(|c| !revoked.contains(&c.serial))
        });
        Ok(roster)
    }

    /// Returns records to write since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn agents(&self) -> impl Iterator<Item = (&AgentName, &AgentRecord)> {
        self.agents.iter()
    }

    pub(super) fn has(&self, name: &AgentName) -> bool {
        self.agents.contains_key(name)
    }

    /// Checks whether an agent may join under this name with this secret, and returns the token. Looked up by
    /// hash, so that no comparison reveals anything about the secret.
    fn may_join(
        &self,
        secret_hash: &[u8; 32],
        name: &AgentName,
        now_ms: i64,
    ) -> Result<&TokenRecord, RosterError> {
        let token = self.tokens.get(secret_hash).ok_or(RosterError::UnknownToken)?;
        if token.is_revoked {
            return Err(RosterError::RevokedToken);
        }
        if token.uses_left == 0 {
            return Err(RosterError::SpentToken);
        }
        if token.expires_ms <= now_ms {
            return Err(RosterError::ExpiredToken);
        }
        let same = |taken: &&AgentName| taken.as_str().eq_ignore_ascii_case(name.as_str());
        match self.agents.keys().find(same) {
            Some(taken) => Err(RosterError::NameTaken { name: taken.clone() }),
            None => Ok(token),
        }
    }

    /// The answer that [`Self::join`] would give. Changes nothing.
    pub(super) fn check_join(
        &self,
        secret_hash: &[u8; 32],
        name: &AgentName,
        now_ms: i64,
    ) -> Result<(), RosterError> {
        self.may_join(secret_hash, name, now_ms).map(drop)
    }

    /// Uses a token once and enrols an agent, or does neither.
    pub(super) fn join(
        &mut self,
        secret_hash: &[u8; 32],
        peer: &PeerIdentity,
        group: Option<&AgentName>,
        now_ms: i64,
    ) -> Result<(), RosterError> {
        let token = self.may_join(secret_hash, &peer.name, now_ms)?;
        let token = TokenRecord { uses_left: token.uses_left - 1, ..token.clone() };
        self.put_token(*secret_hash, token);
        let group = group.map(ToString::to_string).unwrap_or_default();
        let agent = AgentRecord {
            certificates: vec![issued(peer)],
            orders: NodeOrders { group, ..NodeOrders::default() },
            ..AgentRecord::new(now_ms)
        };
        self.put(peer.name.clone(), agent);
        Ok(())
    }

    /// Records a new certificate of the agent with certificate `peer`, which need not be valid now.
    pub(super) fn renew(
        &mut self,
        peer: &PeerIdentity,
        new: &PeerIdentity,
        now_ms: i64,
    ) -> Result<(), RosterError> {
        self.check_renewal(peer, new.issuer, now_ms)?;
        self.admit(peer, now_ms)?;
        let Some(mut agent) = self.agents.get(&peer.name).cloned() else {
            return Err(RosterError::UnknownAgent { name: peer.name.to_string(), near: None });
        };
        agent.certificates.push(issued(new));
        agent.drop_oldest(peer.serial, now_ms);
        self.put(peer.name.clone(), agent);
        Ok(())
    }

    /// Whether a certificate may be replaced at this time by one of `authority`. One of an earlier authority
    /// may at once if it was on record before that one was replaced. Changes nothing.
    pub(super) fn check_renewal(
        &self,
        peer: &PeerIdentity,
        authority: AuthorityKey,
        now_ms: i64,
    ) -> Result<(), RosterError> {
        let name = || peer.name.clone();
        if !self.admits(peer) {
            return Err(RosterError::Revoked { name: name() });
        }
        if peer.issuer != authority && !self.has_record(peer) {
            return Err(RosterError::Unrecorded { name: name() });
        }
        let (begins, ends) = (not_before_ms(peer), not_after_ms(peer));
        let half = begins.saturating_add(ends.saturating_sub(begins) / 2);
        // A certificate that is not valid yet was issued by a fast clock.
        if (begins..half).contains(&now_ms) && peer.issuer == authority {
            return Err(RosterError::RenewedTooEarly { name: name() });
        }
        let hour_ago = now_ms.saturating_sub(HOUR_MS);
        let is_recent = |c: &&Issued| (hour_ago..=now_ms).contains(&c.not_after_ms.saturating_sub(LIFE_MS));
        let known = self.agents.get(&peer.name).map(|agent| agent.certificates.as_slice());
        if known.unwrap_or_default().iter().filter(is_recent).count() >= RENEWALS_PER_HOUR {
            return Err(RosterError::RenewedTooOften { name: name() });
        }
        Ok(())
    }

    /// Whether this very certificate was issued or admitted under its name.
    fn has_record(&self, peer: &PeerIdentity) -> bool {
        self.agents.get(&peer.name).is_some_and(|agent| agent.certificates.contains(&issued(peer)))
    }

    /// Admits an agent. An agent that this origin issued a certificate to and forgot, because it was restored
    /// from a backup, is enrolled again.
    pub(super) fn admit(&mut self, peer: &PeerIdentity, now_ms: i64) -> Result<(), RosterError> {
        if !self.admits(peer) {
            return Err(RosterError::Revoked { name: peer.name.clone() });
        }
        let known = self.agents.get(&peer.name).cloned();
        let mut agent = known.unwrap_or_else(|| AgentRecord::new(now_ms));
        let shown = issued(peer);
        if !agent.certificates.contains(&shown) {
            agent.certificates.push(shown);
            agent.drop_oldest(peer.serial, now_ms);
            self.put(peer.name.clone(), agent);
        }
        Ok(())
    }

    /// Undoes a change that could not be written. The caller must write the resulting changes after the
    /// failed ones.
    pub(super) fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::Token { secret_hash } => self.remove_token(&secret_hash),
            Undo::Join { secret_hash, name, serial } => {
                if let Some(token) = self.tokens.get(&secret_hash).filter(|token| !token.is_revoked).cloned()
                {
                    let uses_left = token.uses_left.saturating_add(1);
                    self.put_token(secret_hash, TokenRecord { uses_left, ..token });
                }
                // Nobody has that certificate. If it is not the only one, the name was revoked and taken
                // again.
                let is_it =
                    |agent: &AgentRecord| matches!(agent.certificates.as_slice(), [c] if c.serial == serial);
                if self.agents.get(&name).is_some_and(is_it) {
                    self.remove_agent(&name);
                }
            }
            Undo::Renew { name, serial } => {
                if let Some(mut agent) = self.agents.get(&name).cloned() {
                    agent.certificates.retain(|c| c.serial != serial);
                    self.put(name, agent);
                }
            }
        }
    }

    fn known(&self, name: &str) -> Result<(AgentName, AgentRecord), RosterError> {
        let unknown = || {
            let near = self.agents.keys().find(|near| near.as_str().eq_ignore_ascii_case(name));
            RosterError::UnknownAgent { name: name.to_owned(), near: near.cloned() }
        };
        let name: AgentName = name.parse().map_err(|_| unknown())?;
        let agent = self.agents.get(&name).cloned().ok_or_else(unknown)?;
        Ok((name, agent))
    }

    /// Carries out an operator's order for a node.
    pub(super) fn order(&mut self, name: &str, order: NodeOrder, now_ms: i64) -> Result<(), RosterError> {
        let (name, mut agent) = self.known(name)?;
        match order {
            NodeOrder::Drain => agent.orders.drained = true,
            NodeOrder::Undrain => agent.orders.drained = false,
            NodeOrder::Pin => drop(agent.orders.pinned_since_ms.get_or_insert(now_ms)),
            NodeOrder::Unpin => agent.orders.pinned_since_ms = None,
            NodeOrder::Group(group) => agent.orders.group = group.to_string(),
            NodeOrder::NoGroup => agent.orders.group.clear(),
        }
        self.put(name, agent);
        Ok(())
    }

    /// Removes a node that will not come back, without revoking it: with its certificate it would be enrolled
    /// again.
    pub(super) fn forget(&mut self, name: &str, is_connected: bool) -> Result<AgentName, RosterError> {
        let (name, _) = self.known(name)?;
        if is_connected {
            return Err(RosterError::Connected { name });
        }
        // Refuses nothing, and lets `revoke` know the name.
        let record = self.revoked.entry(name.clone()).or_default().clone();
        self.note(REVOKED, name.as_str().as_bytes(), &record);
        self.remove_agent(&name);
        Ok(name)
    }

    /// Revokes every certificate of a name and frees the name. A name that was forgotten can be revoked.
    pub(super) fn revoke(&mut self, name: &str, now_ms: i64) -> Result<AgentName, RosterError> {
        let (name, agent) = self.known(name).or_else(|unknown| {
            let left = self.revoked.keys().find(|left| left.as_str() == name);
            left.map(|left| (left.clone(), AgentRecord::new(now_ms))).ok_or(unknown)
        })?;
        let mut serials = self.revoked.remove(&name).map(|r| r.serials).unwrap_or_default();
        serials.retain(|c| c.not_after_ms > now_ms);
        // Covers everything issued to this name so far, even under a fast clock.
        let issued = agent.certificates.iter().chain(&serials).map(|c| c.not_after_ms).max();
        let ends = not_after_issued_at(now_ms).max(issued.unwrap_or_default());
        // An agent that joins again within the same second gets a certificate with the same expiry. The
        // revoked ones are refused by serial number. Dropped ones are not listed, so a new certificate must
        // expire later than they do.
        let until_ms = ends.saturating_sub(1).max(agent.superseded_ms);
        serials.extend(agent.certificates);
        let revoked = RevokedRecord { version: VERSION, serials, until_ms };
        self.note(REVOKED, name.as_str().as_bytes(), &revoked);
        self.revoked.insert(name.clone(), revoked);
        self.remove_agent(&name);
        Ok(name)
    }

    /// Records an agent's last sign of life and what it told.
    pub(super) fn seen(&mut self, name: &AgentName, ms: i64, told: Told) {
        let Some(agent) = self.agents.get(name) else { return };
        let agent = AgentRecord { last_seen_ms: ms, told, ..agent.clone() };
        self.put(name.clone(), agent);
    }

    fn remove_agent(&mut self, name: &AgentName) {
        self.agents.remove(name);
        let name = name.as_str().as_bytes().to_vec();
        self.changes.push(RecordChange { namespace: AGENTS, name, value: None });
    }

    fn put(&mut self, name: AgentName, agent: AgentRecord) {
        self.note(AGENTS, name.as_str().as_bytes(), &agent);
        self.agents.insert(name, agent);
    }

    fn note(&mut self, namespace: &'static str, name: &[u8], value: &impl Serialize) {
        let value = serde_json::to_vec(value).expect("records are plain structures of strings and numbers");
        self.changes.push(RecordChange { namespace, name: name.to_vec(), value: Some(value) });
    }
}

#[cfg(test)]
mod tests {
    use syncd_shared::HookStatus;

    use super::agent_records::CERTIFICATES_MAX;
    use super::*;
    use syncd_shared::HookOutcome;
    use time::{Duration, OffsetDateTime};

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn peer(serial: u8, not_after_ms: i64) -> PeerIdentity {
        let not_after = OffsetDateTime::from_unix_timestamp(not_after_ms / 1000).unwrap();
        PeerIdentity {
            name: "web1".parse().unwrap(),
            serial: Serial::from_bytes([serial; 16]),
            fingerprint: [serial; 32],
            not_before: not_after - Duration::days(30),
            not_after,
            issuer: AuthorityKey([0; 20]),
        }
    }

    #[test]
    fn a_revoked_token_is_told_as_that_and_is_listed_no_more() {
        let mut roster = Roster::default();
        roster.add_token([7; 32], 3, DAY, 0);
        let id = token_id(&[7; 32]);
        roster.revoke_token(&id).unwrap();
        let name: AgentName = "web1".parse().unwrap();
        assert_eq!(roster.check_join(&[7; 32], &name, 1), Err(RosterError::RevokedToken));
        assert_eq!(roster.check_join(&[8; 32], &name, 1), Err(RosterError::UnknownToken));
        assert!(roster.tokens(1).is_empty());
        assert!(
            matches!(roster.revoke_token(&id), Err(RosterError::UnknownTokenId { .. })),
            "once is enough"
        );
        // Also to the next process, until expired ones are forgotten.
        let written = |roster: &mut Roster| -> Vec<NamedRecord> {
            let changes = roster.take_changes().into_iter();
            let last: BTreeMap<Vec<u8>, Option<Vec<u8>>> = changes.map(|c| (c.name, c.value)).collect();
            last.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        };
        let mut next = Roster::decode(Vec::new(), written(&mut roster), Vec::new()).unwrap();
        assert_eq!(next.check_join(&[7; 32], &name, 1), Err(RosterError::RevokedToken));
        next.add_token([9; 32], 1, 20 * DAY, 10 * DAY);
        assert_eq!(next.check_join(&[7; 32], &name, 1), Err(RosterError::UnknownToken));
    }

    #[test]
    fn a_name_in_another_case_is_proposed() {
        let now = 40 * DAY;
        let error = joined(now).revoke("WEB1", now).unwrap_err().to_string();
        assert!(error.contains("no agent \"WEB1\" is enrolled, but web1 is"), "{error}");
        let error = joined(now).revoke("web2", now).unwrap_err().to_string();
        assert!(error.contains("no agent \"web2\" is enrolled: "), "{error}");
    }

    fn joined(now: i64) -> Roster {
        let mut roster = Roster::default();
        roster.add_token([1; 32], 3, now + 10 * DAY, now);
        roster.join(&[1; 32], &peer(1, now + 30 * DAY), None, now).unwrap();
        roster
    }

    #[test]
    fn a_name_is_free_once_it_is_revoked_and_not_by_expiry() {
        let mut roster = joined(0);
        roster.add_token([2; 32], 1, 50 * DAY, 31 * DAY);
        let again = peer(2, 61 * DAY);
        let refused = roster.join(&[2; 32], &again, None, 31 * DAY);
        assert_eq!(refused, Err(RosterError::NameTaken { name: again.name.clone() }));
        assert_eq!(roster.tokens(31 * DAY)[0].uses_left, 1, "a refusal takes nothing");
        roster.revoke("web1", 31 * DAY).unwrap();
        roster.join(&[2; 32], &again, None, 31 * DAY).unwrap();
    }

    #[test]
    fn names_that_differ_in_case_alone_are_one_name() {
        let mut roster = joined(0);
        let shouted = PeerIdentity { name: "WEB1".parse().unwrap(), ..peer(2, 30 * DAY) };
        let refused = roster.join(&[1; 32], &shouted, None, 0);
        assert_eq!(refused, Err(RosterError::NameTaken { name: "web1".parse().unwrap() }));
    }

    #[test]
    fn an_expired_certificate_is_renewed_for_as_long_as_it_is_not_revoked() {
        let mut roster = joined(0);
        let expired = peer(1, 30 * DAY);
        assert!(roster.admission().admits(&expired), "whether it holds is asked elsewhere");
        roster.renew(&expired, &peer(2, 90 * DAY), 60 * DAY).unwrap();
        assert!(roster.admission().admits(&peer(2, 90 * DAY)));
        roster.revoke("web1", 61 * DAY).unwrap();
        for revoked in [expired, peer(2, 90 * DAY)] {
            let refused = roster.renew(&revoked, &peer(3, 150 * DAY), 120 * DAY);
            assert!(matches!(refused, Err(RosterError::Revoked { .. })));
        }
    }

    #[test]
    fn renewals_wait_for_half_of_the_life_and_a_third_one_for_the_next_hour() {
        let mut roster = joined(0);
        let (own, half) = (peer(1, 30 * DAY), 15 * DAY);
        let mut renew = |serial, now| roster.renew(&own, &peer(serial, now + 30 * DAY), now);
        assert!(matches!(renew(2, half - 1), Err(RosterError::RenewedTooEarly { .. })));
        // Not too early for a certificate of another authority than the current one.
        assert_eq!(roster.check_renewal(&own, AuthorityKey([1; 20]), half - 1), Ok(()));
        let stranger = PeerIdentity { fingerprint: [9; 32], ..own.clone() };
        for made in [stranger, peer(9, 30 * DAY)] {
            let refused = roster.check_renewal(&made, AuthorityKey([1; 20]), half - 1);
            assert!(
                matches!(refused, Err(RosterError::Unrecorded { .. })),
                "whoever has the old key can make it"
            );
            assert!(matches!(
                roster.check_renewal(&made, own.issuer, half - 1),
                Err(RosterError::RenewedTooEarly { .. })
            ));
        }
        let mut renew = |serial, now| roster.renew(&own, &peer(serial, now + 30 * DAY), now);
        assert_eq!((renew(2, half), renew(3, half + 1000)), (Ok(()), Ok(())));
        assert!(matches!(renew(4, half + 2000), Err(RosterError::RenewedTooOften { .. })));
        assert_eq!(renew(4, half + HOUR_MS + 2000), Ok(()));
        let (_, record) = roster.agents().next().unwrap();
        assert_eq!(record.certificates.len(), CERTIFICATES_MAX);
        let admission = roster.admission();
        let admitted = |serial, now: i64| admission.admits(&peer(serial, now + 30 * DAY));
        assert!(admission.admits(&own), "what the agent shows is never dropped");
        assert!(!admitted(2, half), "the oldest whose answer was lost makes room");
        assert!(admitted(3, half + 1000) && admitted(4, half + HOUR_MS + 2000));
    }

    #[test]
    fn a_certificate_that_has_not_begun_is_renewed() {
        let mut roster = joined(0);
        roster.admit(&peer(7, 3_000 * DAY), DAY).unwrap();
        roster.renew(&peer(7, 3_000 * DAY), &peer(8, 32 * DAY), 2 * DAY).unwrap();
        assert!(roster.admission().admits(&peer(8, 32 * DAY)));
    }

    #[test]
    fn good_tokens_are_listed_and_revoked_by_id() {
        let mut roster = Roster::default();
        roster.add_token([2; 32], 2, 20, 0);
        roster.add_token([1; 32], 1, 10, 0);
        roster.add_token([3; 32], 1, 5, 0);
        let listed: Vec<_> = roster.tokens(5).into_iter().map(|t| (t.id, t.uses_left)).collect();
        assert_eq!(listed, [("01010101".to_owned(), 1), ("02020202".to_owned(), 2)]);
        for unknown in ["", "04", "0101010101"] {
            let refused = roster.revoke_token(unknown);
            assert_eq!(refused, Err(RosterError::UnknownTokenId { id: unknown.into() }));
        }
        roster.revoke_token("0101").unwrap();
        assert_eq!(roster.join(&[1; 32], &peer(1, DAY), None, 5), Err(RosterError::RevokedToken));
        roster.join(&[2; 32], &peer(1, DAY), None, 5).unwrap();
    }

    #[test]
    fn what_is_taken_back_leaves_the_token_and_the_name_as_they_were() {
        let mut roster = Roster::default();
        roster.add_token([1; 32], 1, DAY, 0);
        let (name, serial) = (peer(1, 30 * DAY).name, Serial::from_bytes([1; 16]));
        roster.join(&[1; 32], &peer(1, 30 * DAY), None, 0).unwrap();
        roster.undo(Undo::Join { secret_hash: [1; 32], name: name.clone(), serial });
        assert_eq!(roster.agents().count(), 0);
        roster.join(&[1; 32], &peer(2, 30 * DAY), None, 0).unwrap();
        // A name that was taken by somebody else since then stays theirs.
        roster.undo(Undo::Join { secret_hash: [1; 32], name: name.clone(), serial });
        assert_eq!(roster.agents().count(), 1);
        roster.renew(&peer(2, 30 * DAY), &peer(3, 50 * DAY), 20 * DAY).unwrap();
        roster.undo(Undo::Renew { name, serial: Serial::from_bytes([3; 16]) });
        let (_, record) = roster.agents().next().unwrap();
        assert_eq!(record.certificates, [issued(&peer(2, 30 * DAY))]);
    }

    #[test]
    fn revoking_a_name_refuses_all_that_was_issued_to_it_known_or_not() {
        let mut roster = joined(0);
        let renewed = peer(2, 45 * DAY);
        roster.renew(&peer(1, 30 * DAY), &renewed, 15 * DAY).unwrap();
        roster.revoke("web1", 20 * DAY).unwrap();
        let forgotten = peer(3, 49 * DAY);
        for certificate in [&peer(1, 30 * DAY), &renewed, &forgotten] {
            assert!(!roster.admission().admits(certificate));
            assert!(matches!(roster.admit(certificate, 21 * DAY), Err(RosterError::Revoked { .. })));
        }
        roster.add_token([2; 32], 1, 30 * DAY, 20 * DAY);
        let anew = peer(4, 50 * DAY);
        roster.join(&[2; 32], &anew, None, 20 * DAY).unwrap();
        assert!(roster.admission().admits(&anew) && !roster.admission().admits(&renewed));
        assert!(matches!(roster.revoke("nobody", 0), Err(RosterError::UnknownAgent { .. })));
    }

    #[test]
    fn a_forgotten_name_can_be_revoked_and_its_certificate_is_refused() {
        let mut roster = joined(0);
        roster.forget("web1", false).unwrap();
        assert!(roster.admission().admits(&peer(1, 30 * DAY)), "nothing is refused yet");
        let of = |namespace: &str, changes: &[RecordChange]| -> Vec<NamedRecord> {
            let changes = changes.iter().filter(|change| change.namespace == namespace);
            let last: BTreeMap<_, _> = changes.map(|c| (c.name.clone(), c.value.clone())).collect();
            last.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        };
        let changes = roster.take_changes();
        let mut next = Roster::decode(of(AGENTS, &changes), Vec::new(), of(REVOKED, &changes)).unwrap();
        next.revoke("web1", DAY).unwrap();
        assert!(!next.admission().admits(&peer(1, 30 * DAY)));
        assert!(matches!(next.admit(&peer(1, 30 * DAY), DAY), Err(RosterError::Revoked { .. })));
    }

    #[test]
    fn who_joins_again_in_the_second_of_the_revocation_stays_admitted_after_a_restore_of_the_keys() {
        let now = 20 * DAY + 700;
        for first_ends in [40 * DAY, 50 * DAY] {
            let first = peer(1, first_ends);
            let mut roster = Roster::default();
            roster.admit(&first, now - 100).unwrap();
            roster.revoke("web1", now).unwrap();
            let list = roster.take_changes().into_iter().filter(|change| change.namespace == REVOKED);
            let list = list.map(|change| (change.name, change.value.unwrap())).collect();
            let mut restored = Roster::decode(Vec::new(), Vec::new(), list).unwrap();
            let (again, unknown) = (peer(2, now + 200 + 30 * DAY), peer(3, now - 1_000 + 30 * DAY));
            assert!(!restored.admission().admits(&first) && !restored.admission().admits(&unknown));
            assert!(restored.admission().admits(&again), "the first ended at {first_ends}");
            restored.admit(&again, now + 5_000).unwrap();
        }
    }

    #[test]
    fn a_certificate_that_was_dropped_before_the_revocation_stays_refused() {
        let mut roster = joined(0);
        for serial in 2..=4 {
            roster.admit(&peer(serial, 30 * DAY), 0).unwrap();
        }
        let dropped = peer(1, 30 * DAY);
        assert!(!roster.admission().admits(&dropped));
        roster.revoke("web1", 0).unwrap();
        assert!(!roster.admission().admits(&dropped));
    }

    #[test]
    fn an_agent_that_a_restored_origin_forgot_is_enrolled_again() {
        let mut roster = Roster::default();
        roster.admit(&peer(1, 30 * DAY), DAY).unwrap();
        assert_eq!(roster.agents().count(), 1);
        assert_eq!(roster.take_changes().len(), 1);
        roster.admit(&peer(1, 30 * DAY), DAY).unwrap();
        assert!(roster.take_changes().is_empty(), "nothing new is nothing to write");
    }

    #[test]
    fn what_was_written_is_read_back_and_damage_is_refused() {
        let mut roster = joined(0);
        roster.revoke("web1", DAY).unwrap();
        roster.add_token([2; 32], 1, 30 * DAY, DAY);
        roster.join(&[2; 32], &peer(2, 60 * DAY), None, DAY).unwrap();
        let hook = HookStatus {
            generation: 2,
            outcome: HookOutcome::Failed,
            duration_ms: 0,
            output: "exit status: 1".into(),
            attempt: 0,
            succeeded: Some(1),
            waits: None,
        };
        let told = Told { generation: Some(2), hook: Some(hook), ..Told::default() };
        roster.seen(&peer(2, 60 * DAY).name, DAY, told);
        let mut tables: BTreeMap<&str, BTreeMap<Vec<u8>, Vec<u8>>> = BTreeMap::new();
        for change in roster.take_changes() {
            let table = tables.entry(change.namespace).or_default();
            match change.value {
                Some(value) => drop(table.insert(change.name, value)),
                None => drop(table.remove(&change.name)),
            }
        }
        let mut table = |name: &str| tables.remove(name).unwrap_or_default().into_iter().collect::<Vec<_>>();
        let (agents, tokens, revoked) = (table(AGENTS), table(TOKENS), table(REVOKED));
        let mut again = Roster::decode(agents.clone(), tokens, revoked).unwrap();
        assert!(again.agents().eq(roster.agents()));
        assert!(!again.admission().admits(&peer(1, 30 * DAY)));
        let spent = again.join(&[2; 32], &peer(3, 60 * DAY), None, 2 * DAY);
        assert_eq!(spent, Err(RosterError::SpentToken));
        let damaged = vec![(agents[0].0.clone(), b"{".to_vec())];
        assert!(Roster::decode(damaged, Vec::new(), Vec::new()).is_err());
    }
    fn record(serials: &[&str], rest: &str) -> Vec<u8> {
        let (print, ends) = ("ab".repeat(32), 30 * DAY);
        let issued =
            |s: &&str| format!(r#"{{"serial":"{s}","fingerprint":"{print}","not_after_ms":{ends}}}"#);
        let issued: Vec<String> = serials.iter().map(issued).collect();
        format!(r#"{{"version":1,{rest}:[{}]}}"#, issued.join(",")).into_bytes()
    }

    fn enrolled(name: &str, serials: &[&str]) -> NamedRecord {
        let rest = r#""superseded_ms":0,"enrolled_ms":0,"last_seen_ms":0,"generation":null,"root":null,"certificates""#;
        (name.into(), record(serials, rest))
    }

    fn revoked(name: &str, serials: &[&str], until_ms: i64) -> NamedRecord {
        (name.into(), record(serials, &format!(r#""until_ms":{until_ms},"serials""#)))
    }

    #[test]
    fn the_door_and_the_roster_agree_whatever_the_records_say() {
        let shown = peer(0xab, 30 * DAY);
        let (serial, upper) = (shown.serial.to_string(), shown.serial.to_string().to_uppercase());
        let other = Serial::from_bytes([3; 16]).to_string();
        let (none, serial, upper, other) = (Vec::new(), serial.as_str(), upper.as_str(), other.as_str());
        let cases = [
            ("nothing is known", none.clone(), none.clone(), true),
            ("it is known", vec![enrolled("web1", &[other, serial])], none.clone(), true),
            ("it is revoked", vec![enrolled("web1", &[other])], vec![revoked("web1", &[serial], 0)], false),
            (
                "known and revoked",
                vec![enrolled("web1", &[serial])],
                vec![revoked("web1", &[serial], 0)],
                false,
            ),
            ("in capitals", none.clone(), vec![revoked("web1", &[upper], 0)], false),
            ("revoked under another name", none.clone(), vec![revoked("web2", &[serial], 0)], false),
            ("older than a revocation", none.clone(), vec![revoked("web1", &[other], 40 * DAY)], false),
            (
                "older, but known",
                vec![enrolled("web1", &[upper])],
                vec![revoked("web1", &[other], 40 * DAY)],
                true,
            ),
            (
                "older, and known under another name alone",
                vec![enrolled("web2", &[serial])],
                vec![revoked("web1", &[other], 40 * DAY)],
                false,
            ),
        ];
        for (case, agents, revoked, expected) in cases {
            let mut roster = Roster::decode(agents, Vec::new(), revoked).unwrap();
            assert_eq!(roster.admission().admits(&shown), expected, "{case}");
            assert_eq!(roster.admit(&shown, DAY).is_ok(), expected, "{case}");
        }
    }

    #[test]
    fn a_revocation_that_the_index_does_not_know_holds_and_frees_the_name() {
        let serials: Vec<String> = (1..=2).map(|s| Serial::from_bytes([s; 16]).to_string()).collect();
        let [first, second] = [serials[0].as_str(), serials[1].as_str()];
        let lists = || vec![revoked("web1", &[first], 40 * DAY), revoked("web1", &[second], 20 * DAY)];
        let mut roster =
            Roster::decode(vec![enrolled("web1", &[first, second])], Vec::new(), lists()).unwrap();
        assert_eq!(roster.agents().count(), 0);
        for serial in 1..=3 {
            assert!(!roster.admission().admits(&peer(serial, 30 * DAY)), "{serial}");
        }
        roster.add_token([1; 32], 1, 30 * DAY, 20 * DAY);
        roster.join(&[1; 32], &peer(4, 50 * DAY), None, 20 * DAY).unwrap();
        // An agent that has joined again since then stays.
        let third = Serial::from_bytes([3; 16]).to_string();
        let again = Roster::decode(vec![enrolled("web1", &[first, &third])], Vec::new(), lists()).unwrap();
        assert!(again.admission().admits(&peer(3, 30 * DAY)));
    }

    #[test]
    fn a_serial_number_that_is_none_is_damage_and_not_forgotten() {
        for damaged in ["", "zz", "abcdef"] {
            let agents = Roster::decode(vec![enrolled("web1", &[damaged])], Vec::new(), Vec::new());
            let revoked = Roster::decode(Vec::new(), Vec::new(), vec![revoked("web1", &[damaged], 0)]);
            for refused in [agents, revoked] {
                assert!(matches!(refused, Err(RecordError::Damaged { .. })), "{damaged:?}");
            }
        }
    }
}
