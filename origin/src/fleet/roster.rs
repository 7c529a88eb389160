//! Who is enrolled, which tokens are out, what is revoked: the rules, without IO and clock.
//!
//! Every change is noted as records to be written; the caller makes them durable before it tells anybody.

use std::collections::{BTreeMap, HashMap, HashSet};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use syncd_shared::identity::authority::AGENT_CERTIFICATE_LIFE;
use syncd_shared::identity::{AgentName, PeerIdentity, Serial};

use super::records::{NamedRecord, RecordChange, RecordError};

pub(super) const AGENTS: &str = "fleet.agents";
pub(super) const TOKENS: &str = "fleet.tokens";
pub(super) const REVOKED: &str = "fleet.revoked";
const VERSION: u32 = 1;
/// Tokens are remembered this long after they expired, so that it can be said what is wrong with them.
const EXPIRED_TOKENS_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Why a change was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    /// A secret that is of no token.
    #[error(
        "the join token is not of this origin, or was spent long ago: make a new one with `syncd-origin token`"
    )]
    UnknownToken,
    /// Too late.
    #[error("the join token has expired: make a new one with `syncd-origin token`")]
    ExpiredToken,
    /// No uses left.
    #[error("the join token was used already: make a new one with `syncd-origin token`")]
    SpentToken,
    /// The name has a certificate that holds.
    #[error(
        "the name {name} is taken: choose another with --name, or free it with `syncd-origin revoke {name}`"
    )]
    NameTaken {
        /// The name.
        name: AgentName,
    },
    /// The certificate was revoked.
    #[error("the certificate of {name} was revoked: join again with a new token")]
    Revoked {
        /// Whose.
        name: AgentName,
    },
    /// Nobody of that name is enrolled.
    #[error("no agent {name:?} is enrolled: `syncd-origin status` lists those that are")]
    UnknownAgent {
        /// The name.
        name: String,
    },
}

/// A certificate that was issued and may still hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Issued {
    #[serde(with = "serial_text")]
    pub(super) serial: Serial,
    pub(super) not_after_ms: i64,
}

/// A serial number as it is shown. One that is none is damage: a revoked certificate must not be forgotten for it.
mod serial_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use syncd_shared::identity::Serial;

    pub(super) fn serialize<S: Serializer>(serial: &Serial, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(serial)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Serial, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What is kept of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AgentRecord {
    version: u32,
    /// Oldest first; the last is the newest.
    pub(super) certificates: Vec<Issued>,
    /// BLAKE3 of the newest certificate that this origin issued, hexadecimal.
    pub(super) fingerprint: Option<String>,
    pub(super) enrolled_ms: i64,
    pub(super) last_seen_ms: i64,
    pub(super) generation: Option<u64>,
    pub(super) root: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TokenRecord {
    version: u32,
    expires_ms: i64,
    uses_left: u32,
}

/// Revoked certificates of one name.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct RevokedRecord {
    version: u32,
    serials: Vec<Issued>,
    /// No certificate that this origin does not know is accepted unless it outlives this: one that was issued before a
    /// restore from a backup is revoked with those that are known.
    until_ms: i64,
}

/// Whom to let in. A snapshot, for threads that must not wait.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    revoked: HashSet<Serial>,
    known: HashMap<AgentName, Vec<Serial>>,
    until_ms: HashMap<AgentName, i64>,
}

impl Admission {
    /// Whether a verified certificate was not revoked.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        let standing = Standing {
            is_revoked: self.revoked.contains(&peer.serial),
            is_known: self.known.get(&peer.name).is_some_and(|serials| serials.contains(&peer.serial)),
            until_ms: self.until_ms.get(&peer.name).copied(),
        };
        standing.admits(peer)
    }
}

/// What the records say of one certificate.
struct Standing {
    /// Under whatever name: serial numbers are unique, so another name is damage, and no way in.
    is_revoked: bool,
    /// As one of the name that it is for.
    is_known: bool,
    /// See [`RevokedRecord::until_ms`].
    until_ms: Option<i64>,
}

impl Standing {
    /// The one rule.
    fn admits(&self, peer: &PeerIdentity) -> bool {
        let outlives = self.until_ms.is_none_or(|until_ms| not_after_ms(peer) > until_ms);
        !self.is_revoked && (self.is_known || outlives)
    }
}

pub(super) fn not_after_ms(peer: &PeerIdentity) -> i64 {
    peer.not_after.unix_timestamp().saturating_mul(1000)
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Roster {
    agents: BTreeMap<AgentName, AgentRecord>,
    tokens: HashMap<[u8; 32], TokenRecord>,
    revoked: BTreeMap<AgentName, RevokedRecord>,
    changes: Vec<RecordChange>,
}

impl Roster {
    /// From what was written.
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
            roster.revoked.insert(agent_name(REVOKED, &name)?, decode(REVOKED, &name, &value)?);
        }
        Ok(roster)
    }

    /// Records to write since the last call.
    pub(super) fn take_changes(&mut self) -> Vec<RecordChange> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn agents(&self) -> impl Iterator<Item = (&AgentName, &AgentRecord)> {
        self.agents.iter()
    }

    pub(super) fn admission(&self) -> Admission {
        let serials = |all: &[Issued]| -> Vec<Serial> { all.iter().map(|c| c.serial).collect() };
        Admission {
            revoked: self.revoked.values().flat_map(|r| r.serials.iter().map(|c| c.serial)).collect(),
            known: self.agents.iter().map(|(name, a)| (name.clone(), serials(&a.certificates))).collect(),
            until_ms: self.revoked.iter().map(|(name, r)| (name.clone(), r.until_ms)).collect(),
        }
    }

    pub(super) fn add_token(&mut self, secret_hash: [u8; 32], uses: u32, expires_ms: i64, now_ms: i64) {
        let old: Vec<_> = self
            .tokens
            .iter()
            .filter(|(_, t)| t.expires_ms.saturating_add(EXPIRED_TOKENS_MS) < now_ms)
            .map(|(hash, _)| *hash)
            .collect();
        for hash in old {
            self.tokens.remove(&hash);
            self.changes.push(RecordChange { namespace: TOKENS, name: hash.to_vec(), value: None });
        }
        let token = TokenRecord { version: VERSION, expires_ms, uses_left: uses };
        self.note(TOKENS, &secret_hash, &token);
        self.tokens.insert(secret_hash, token);
    }

    /// Takes one use of a token and enrols an agent, or does neither. The secret is looked up by its hash, so that no
    /// comparison tells anything of it.
    pub(super) fn join(
        &mut self,
        secret_hash: &[u8; 32],
        peer: &PeerIdentity,
        fingerprint: &[u8; 32],
        now_ms: i64,
    ) -> Result<(), RosterError> {
        let token = self.tokens.get(secret_hash).ok_or(RosterError::UnknownToken)?;
        if token.uses_left == 0 {
            return Err(RosterError::SpentToken);
        }
        if token.expires_ms <= now_ms {
            return Err(RosterError::ExpiredToken);
        }
        let holds = |agent: &AgentRecord| agent.certificates.iter().any(|c| c.not_after_ms > now_ms);
        if self.agents.get(&peer.name).is_some_and(holds) {
            return Err(RosterError::NameTaken { name: peer.name.clone() });
        }
        let token = TokenRecord { uses_left: token.uses_left - 1, ..token.clone() };
        self.note(TOKENS, secret_hash, &token);
        self.tokens.insert(*secret_hash, token);
        let before = self.agents.get(&peer.name).cloned();
        let agent = AgentRecord {
            version: VERSION,
            certificates: vec![issued(peer)],
            fingerprint: Some(HEXLOWER.encode(fingerprint)),
            enrolled_ms: now_ms,
            // A node that joins again keeps its replica.
            last_seen_ms: before.as_ref().map_or(0, |a| a.last_seen_ms),
            generation: before.as_ref().and_then(|a| a.generation),
            root: before.and_then(|a| a.root),
        };
        self.put(peer.name.clone(), agent);
        Ok(())
    }

    /// Notes a new certificate of an agent that showed `peer`.
    pub(super) fn renew(
        &mut self,
        peer: &PeerIdentity,
        new: &PeerIdentity,
        fingerprint: &[u8; 32],
        now_ms: i64,
    ) -> Result<(), RosterError> {
        self.admit(peer, now_ms)?;
        let Some(mut agent) = self.agents.get(&peer.name).cloned() else {
            return Err(RosterError::UnknownAgent { name: peer.name.to_string() });
        };
        agent.certificates.retain(|c| c.not_after_ms > now_ms);
        agent.certificates.push(issued(new));
        agent.fingerprint = Some(HEXLOWER.encode(fingerprint));
        self.put(peer.name.clone(), agent);
        Ok(())
    }

    /// Lets an agent in. One that this origin issued a certificate to and forgot (it was restored from a backup) is
    /// enrolled again.
    pub(super) fn admit(&mut self, peer: &PeerIdentity, now_ms: i64) -> Result<(), RosterError> {
        if !self.admits(peer) {
            return Err(RosterError::Revoked { name: peer.name.clone() });
        }
        let mut agent = self.agents.get(&peer.name).cloned().unwrap_or_else(|| AgentRecord {
            version: VERSION,
            certificates: Vec::new(),
            fingerprint: None,
            enrolled_ms: now_ms,
            last_seen_ms: 0,
            generation: None,
            root: None,
        });
        let shown = issued(peer);
        if !agent.certificates.contains(&shown) {
            agent.certificates.push(shown);
            agent.certificates.sort_by_key(|c| c.not_after_ms);
            self.put(peer.name.clone(), agent);
        }
        Ok(())
    }

    /// What [`Self::admission`] would answer, without going through the fleet.
    pub(super) fn admits(&self, peer: &PeerIdentity) -> bool {
        let has = |all: &[Issued]| all.iter().any(|c| c.serial == peer.serial);
        let standing = Standing {
            is_revoked: self.revoked.values().any(|r| has(&r.serials)),
            is_known: self.agents.get(&peer.name).is_some_and(|a| has(&a.certificates)),
            until_ms: self.revoked.get(&peer.name).map(|r| r.until_ms),
        };
        standing.admits(peer)
    }

    /// Revokes every certificate of a name, and frees it.
    pub(super) fn revoke(&mut self, name: &str, now_ms: i64) -> Result<AgentName, RosterError> {
        let unknown = || RosterError::UnknownAgent { name: name.to_owned() };
        let name: AgentName = name.parse().map_err(|_| unknown())?;
        let agent = self.agents.remove(&name).ok_or_else(unknown)?;
        let life_ms = i64::try_from(AGENT_CERTIFICATE_LIFE.whole_milliseconds()).unwrap_or(i64::MAX);
        let mut serials = self.revoked.remove(&name).map(|r| r.serials).unwrap_or_default();
        serials.retain(|c| c.not_after_ms > now_ms);
        serials.extend(agent.certificates);
        let revoked = RevokedRecord { version: VERSION, serials, until_ms: now_ms.saturating_add(life_ms) };
        self.note(REVOKED, name.as_str().as_bytes(), &revoked);
        self.revoked.insert(name.clone(), revoked);
        let gone = RecordChange { namespace: AGENTS, name: name.as_str().as_bytes().to_vec(), value: None };
        self.changes.push(gone);
        Ok(name)
    }

    /// Notes what was heard of an agent.
    pub(super) fn seen(&mut self, name: &AgentName, ms: i64, generation: Option<u64>, root: Option<String>) {
        let Some(agent) = self.agents.get(name) else { return };
        let agent = AgentRecord { last_seen_ms: ms, generation, root, ..agent.clone() };
        self.put(name.clone(), agent);
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

fn issued(peer: &PeerIdentity) -> Issued {
    Issued { serial: peer.serial, not_after_ms: not_after_ms(peer) }
}

fn agent_name(namespace: &'static str, name: &[u8]) -> Result<AgentName, RecordError> {
    let text = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| RecordError::damaged(namespace, name))
}

fn decode<T: for<'de> Deserialize<'de>>(
    namespace: &'static str,
    name: &[u8],
    value: &[u8],
) -> Result<T, RecordError> {
    serde_json::from_slice(value).map_err(|_| RecordError::damaged(namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::{Duration, OffsetDateTime};

    const DAY: i64 = 24 * 60 * 60 * 1000;

    fn peer(serial: u8, not_after_ms: i64) -> PeerIdentity {
        let not_after = OffsetDateTime::from_unix_timestamp(not_after_ms / 1000).unwrap();
        PeerIdentity {
            name: "web1".parse().unwrap(),
            serial: Serial::from_bytes([serial; 16]),
            not_before: not_after - Duration::days(30),
            not_after,
        }
    }

    fn joined(now: i64) -> Roster {
        let mut roster = Roster::default();
        roster.add_token([1; 32], 3, now + 10 * DAY, now);
        roster.join(&[1; 32], &peer(1, now + 30 * DAY), &[0; 32], now).unwrap();
        roster
    }

    #[test]
    fn a_name_is_free_once_its_certificates_have_expired() {
        let mut roster = joined(0);
        let again = peer(2, 40 * DAY);
        let refused = roster.join(&[1; 32], &again, &[0; 32], DAY);
        assert_eq!(refused, Err(RosterError::NameTaken { name: again.name.clone() }));
        roster.seen(&again.name, DAY, Some(7), Some("root".into()));
        roster.add_token([2; 32], 1, 50 * DAY, 31 * DAY);
        roster.join(&[2; 32], &again, &[0; 32], 31 * DAY).unwrap();
        let (_, record) = roster.agents().next().unwrap();
        assert_eq!((record.generation, record.certificates.len()), (Some(7), 1));
    }

    #[test]
    fn revoking_a_name_refuses_all_that_was_issued_to_it_known_or_not() {
        let mut roster = joined(0);
        let renewed = peer(2, 45 * DAY);
        roster.renew(&peer(1, 30 * DAY), &renewed, &[0; 32], 15 * DAY).unwrap();
        roster.revoke("web1", 20 * DAY).unwrap();
        let forgotten = peer(3, 49 * DAY);
        for certificate in [&peer(1, 30 * DAY), &renewed, &forgotten] {
            assert!(!roster.admission().admits(certificate));
            assert!(matches!(roster.admit(certificate, 21 * DAY), Err(RosterError::Revoked { .. })));
        }
        roster.add_token([2; 32], 1, 30 * DAY, 20 * DAY);
        let anew = peer(4, 50 * DAY);
        roster.join(&[2; 32], &anew, &[0; 32], 20 * DAY).unwrap();
        assert!(roster.admission().admits(&anew) && !roster.admission().admits(&renewed));
        assert!(matches!(roster.revoke("nobody", 0), Err(RosterError::UnknownAgent { .. })));
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
        roster.join(&[2; 32], &peer(2, 60 * DAY), &[0; 32], DAY).unwrap();
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
        let spent = again.join(&[2; 32], &peer(3, 60 * DAY), &[0; 32], 2 * DAY);
        assert_eq!(spent, Err(RosterError::SpentToken));
        let damaged = vec![(agents[0].0.clone(), b"{".to_vec())];
        assert!(Roster::decode(damaged, Vec::new(), Vec::new()).is_err());
    }
    fn record(serials: &[&str], rest: &str) -> Vec<u8> {
        let issued: Vec<String> =
            serials.iter().map(|s| format!(r#"{{"serial":"{s}","not_after_ms":{}}}"#, 30 * DAY)).collect();
        format!(r#"{{"version":1,{rest}:[{}]}}"#, issued.join(",")).into_bytes()
    }

    fn enrolled(name: &str, serials: &[&str]) -> NamedRecord {
        let rest = r#""fingerprint":null,"enrolled_ms":0,"last_seen_ms":0,"generation":null,"root":null,"certificates""#;
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
