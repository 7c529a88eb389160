//! Records of agents and of revoked certificates, as they are stored.

use serde::{Deserialize, Serialize};
use syncd_shared::identity::{AgentName, PeerIdentity, Serial};
use syncd_shared::{HookStatus, OrderedStanding};

use super::{LIFE_MS, not_after_ms};
use crate::fleet::records::RecordError;
use crate::fleet::view::AgentDrift;

pub(super) const VERSION: u32 = 1;

/// Certificates admitted per agent: the one it shows, and two whose answers may have been lost.
pub(super) const CERTIFICATES_MAX: usize = 3;

/// An issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fleet) struct Issued {
    #[serde(with = "serial_text")]
    pub(in crate::fleet) serial: Serial,
    /// BLAKE3 of the certificate.
    #[serde(with = "fingerprint_text")]
    fingerprint: [u8; 32],
    pub(in crate::fleet) not_after_ms: i64,
}

/// Serialises a serial number as text. An invalid one is damage: ignoring it could forget a revocation.
mod serial_text {
    use serde::{Deserialize, Deserializer, Serializer, de};
    use syncd_shared::identity::Serial;

    pub(in crate::fleet) fn serialize<S: Serializer>(
        serial: &Serial,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(serial)
    }

    pub(in crate::fleet) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Serial, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Serialises a fingerprint as 64 hexadecimal digits.
mod fingerprint_text {
    use data_encoding::HEXLOWER;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(in crate::fleet) fn serialize<S: Serializer>(
        fingerprint: &[u8; 32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(fingerprint))
    }

    pub(in crate::fleet) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[u8; 32], D::Error> {
        let bytes = HEXLOWER.decode(String::deserialize(deserializer)?.as_bytes()).ok();
        bytes.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| de::Error::custom("not a fingerprint"))
    }
}

/// The stored state of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fleet) struct AgentRecord {
    pub(super) version: u32,
    /// In order of issue or first appearance, at most [`CERTIFICATES_MAX`]; the last is the newest.
    pub(in crate::fleet) certificates: Vec<Issued>,
    /// An unlisted certificate of this name must expire later than this. Raised when a certificate is dropped
    /// from the list.
    pub(super) superseded_ms: i64,
    pub(in crate::fleet) enrolled_ms: i64,
    pub(in crate::fleet) last_seen_ms: i64,
    #[serde(default)]
    pub(in crate::fleet) orders: NodeOrders,
    #[serde(flatten)]
    pub(in crate::fleet) told: Told,
}

/// The agent's last report of itself. It still holds when the agent is away and the origin was restarted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::fleet) struct Told {
    /// The linked generation.
    pub(in crate::fleet) generation: Option<u64>,
    pub(in crate::fleet) root: Option<String>,
    /// A hook that has not succeeded, without what changes from attempt to attempt.
    #[serde(default)]
    pub(in crate::fleet) hook: Option<HookStatus>,
    #[serde(default)]
    pub(in crate::fleet) drift: Option<AgentDrift>,
    /// Fingerprint of the root key that it has pinned.
    #[serde(default)]
    pub(in crate::fleet) root_key: Option<String>,
}

/// An operator's orders for a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeOrders {
    /// Group for the steps of rollouts; empty: none.
    pub group: String,
    /// Balancers are told that the node is not ready, and rollouts do not count it.
    pub drained: bool,
    /// The node stays where it is, since this time in milliseconds since 1970.
    pub pinned_since_ms: Option<i64>,
}

impl NodeOrders {
    /// The orders that the node itself must know.
    pub fn standing(&self) -> OrderedStanding {
        OrderedStanding { drained: self.drained, pinned: self.pinned_since_ms.is_some() }
    }
}

/// A change of [`NodeOrders`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeOrder {
    Drain,
    Undrain,
    Pin,
    Unpin,
    Group(AgentName),
    NoGroup,
}

/// Revoked certificates of one name.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct RevokedRecord {
    pub(super) version: u32,
    pub(super) serials: Vec<Issued>,
    /// An unknown certificate is accepted only if it expires later than this. This also revokes certificates
    /// that were issued before a restore from a backup.
    pub(super) until_ms: i64,
}

impl RevokedRecord {
    /// Combines the revocations of both records.
    pub(super) fn merge(&mut self, other: Self) {
        self.version = VERSION;
        self.until_ms = self.until_ms.max(other.until_ms);
        for certificate in other.serials {
            if !self.serials.contains(&certificate) {
                self.serials.push(certificate);
            }
        }
    }
}

impl AgentRecord {
    pub(super) fn new(enrolled_ms: i64) -> Self {
        Self {
            version: VERSION,
            certificates: Vec::new(),
            superseded_ms: 0,
            enrolled_ms,
            last_seen_ms: 0,
            orders: NodeOrders::default(),
            told: Told::default(),
        }
    }

    /// Drops the oldest certificates beyond [`CERTIFICATES_MAX`], but never `shown`. A dropped certificate is
    /// refused from then on, as is any unknown one that does not expire later.
    pub(super) fn drop_oldest(&mut self, shown: Serial, now_ms: i64) {
        while self.certificates.len() > CERTIFICATES_MAX
            && let Some(at) = self.certificates.iter().position(|c| c.serial != shown)
        {
            let dropped = self.certificates.remove(at);
            // Capped, so that a certificate issued by a fast clock does not exclude all later ones.
            let ends = dropped.not_after_ms.min(now_ms.saturating_add(LIFE_MS));
            self.superseded_ms = self.superseded_ms.max(ends);
        }
    }
}

pub(super) fn issued(peer: &PeerIdentity) -> Issued {
    Issued { serial: peer.serial, fingerprint: peer.fingerprint, not_after_ms: not_after_ms(peer) }
}

pub(super) fn agent_name(namespace: &'static str, name: &[u8]) -> Result<AgentName, RecordError> {
    let text = std::str::from_utf8(name).ok().and_then(|text| text.parse().ok());
    text.ok_or_else(|| RecordError::damaged(namespace, name))
}

pub(super) fn decode<T: for<'de> Deserialize<'de>>(
    namespace: &'static str,
    name: &[u8],
    value: &[u8],
) -> Result<T, RecordError> {
    serde_json::from_slice(value).map_err(|_| RecordError::damaged(namespace, name))
}
