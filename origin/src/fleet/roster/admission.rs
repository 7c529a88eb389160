//! Admission: which certificates may connect. The roster decides it once for a change, and every handshake
//! reads the result.

use std::collections::{HashMap, HashSet};

use syncd_shared::identity::{AgentName, PeerIdentity, Serial};

use super::agent_records::Issued;
use super::{Roster, not_after_ms};

/// The admission rules: a snapshot for threads that must not wait.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    revoked: HashSet<Serial>,
    known: HashMap<AgentName, Vec<Serial>>,
    until_ms: HashMap<AgentName, i64>,
}

impl Admission {
    /// Whether a verified certificate is neither revoked nor superseded. Does not check its validity period.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        let standing = Standing {
            is_revoked: self.revoked.contains(&peer.serial),
            is_known: self.known.get(&peer.name).is_some_and(|serials| serials.contains(&peer.serial)),
            until_ms: self.until_ms.get(&peer.name).copied(),
        };
        standing.admits(peer)
    }
}

/// The recorded state of one certificate.
struct Standing {
    /// Revoked under any name: serial numbers are unique, so another name is damage and must not grant
    /// access.
    is_revoked: bool,
    /// Listed under its own name.
    is_known: bool,
    /// The later of `until_ms` of a revoked certificate and `superseded_ms` of the agent.
    until_ms: Option<i64>,
}

impl Standing {
    /// The rule that decides every admission.
    pub(in crate::fleet) fn admits(&self, peer: &PeerIdentity) -> bool {
        let outlives = self.until_ms.is_none_or(|until_ms| not_after_ms(peer) > until_ms);
        !self.is_revoked && (self.is_known || outlives)
    }
}

impl Roster {
    pub(in crate::fleet) fn admission(&self) -> Admission {
        let serials = |all: &[Issued]| -> Vec<Serial> { all.iter().map(|c| c.serial).collect() };
        Admission {
            revoked: self.revoked.values().flat_map(|r| r.serials.iter().map(|c| c.serial)).collect(),
            known: self.agents.iter().map(|(name, a)| (name.clone(), serials(&a.certificates))).collect(),
            until_ms: self
                .revoked
                .keys()
                .chain(self.agents.keys())
                .filter_map(|name| Some((name.clone(), self.until_ms(name)?)))
                .collect(),
        }
    }

    /// Time that the expiry of an unknown certificate of this name must exceed.
    pub(super) fn until_ms(&self, name: &AgentName) -> Option<i64> {
        let revoked = self.revoked.get(name).map(|r| r.until_ms);
        let superseded = self.agents.get(name).map(|a| a.superseded_ms).filter(|ms| *ms > 0);
        revoked.max(superseded)
    }

    /// The answer of [`Self::admission`] for one certificate, without building the rules of the whole fleet.
    pub(in crate::fleet) fn admits(&self, peer: &PeerIdentity) -> bool {
        let has = |all: &[Issued]| all.iter().any(|c| c.serial == peer.serial);
        let standing = Standing {
            is_revoked: self.revoked.values().any(|r| has(&r.serials)),
            is_known: self.agents.get(&peer.name).is_some_and(|a| has(&a.certificates)),
            until_ms: self.until_ms(&peer.name),
        };
        standing.admits(peer)
    }
}
