//! Durable records of a rollout, in the namespace `rollout`, as JSON with a version.
//!
//! | name | written by | content |
//! | --- | --- | --- |
//! | `order` | the transaction that seals a generation | its number, policy and base: a rollout is to start |
//! | `state` | the fleet's task, before assignments that depend on it | the whole [`Rollout`] |
//!
//! Both count only for the newest generation. One without an order goes to every node at once, and costs no
//! record. A state counts only with the order of its generation.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use syncd_shared::{GenerationNumber, SignedGeneration};

use super::machine::{Kind, Rollout};
use super::policy::Policy;
use crate::fleet::records::{NamedRecord, RecordError};
use crate::keys::Keys;

pub const ROLLOUT: &str = "rollout";
pub const ORDER: &[u8] = b"order";
pub const STATE: &[u8] = b"state";
const VERSION: u32 = 1;

/// How a sealed generation goes to the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// To every node at once. `base` is published again if a node's own check fails on it soon.
    Immediate {
        base: Option<Box<SignedGeneration>>,
    },
    Rollout(Box<Order>),
}

impl Plan {
    /// To every node at once, and never withdrawn: rollbacks and withdrawals.
    pub fn unwatched() -> Self {
        Self::Immediate { base: None }
    }
}

/// A rollout that is to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub kind: Kind,
    pub policy: Policy,
    /// The newest released generation.
    pub base: SignedGeneration,
}

#[derive(Serialize, Deserialize)]
struct OrderRecord {
    version: u32,
    number: u64,
    kind: Kind,
    policy: Policy,
    /// Record and signature of the base, hexadecimal.
    base: (String, String),
}

#[derive(Serialize, Deserialize)]
struct StateRecord {
    version: u32,
    rollout: Rollout,
}

/// Records of an earlier process.
#[derive(Debug, Default)]
pub struct Stored {
    order: Option<(GenerationNumber, Order)>,
    state: Option<Rollout>,
}

impl Order {
    /// The record `order` for the generation with this number.
    pub fn encode(&self, number: GenerationNumber) -> Vec<u8> {
        let base = (HEXLOWER.encode(self.base.record()), HEXLOWER.encode(self.base.signature()));
        let (kind, policy) = (self.kind, self.policy.clone());
        let record = OrderRecord { version: VERSION, number: number.get(), kind, policy, base };
        serde_json::to_vec(&record).expect("records are plain structures of strings and numbers")
    }
}

/// The record `state`.
pub fn encode_state(rollout: &Rollout) -> Vec<u8> {
    let record = StateRecord { version: VERSION, rollout: rollout.clone() };
    serde_json::to_vec(&record).expect("records are plain structures of strings and numbers")
}

impl Stored {
    /// Decodes the records of the namespace.
    pub fn decode(records: Vec<NamedRecord>, keys: &Keys) -> Result<Self, RecordError> {
        let mut stored = Self::default();
        for (name, value) in records {
            let damaged = || RecordError::damaged(ROLLOUT, &name);
            match name.as_slice() {
                ORDER => stored.order = Some(decode_order(&value, keys).ok_or_else(damaged)?),
                STATE => {
                    let record: StateRecord = serde_json::from_slice(&value).map_err(|_| damaged())?;
                    stored.state = (record.version == VERSION).then_some(record.rollout);
                    stored.state.as_ref().ok_or_else(damaged)?;
                }
                _ => return Err(damaged()),
            }
        }
        Ok(stored)
    }

    /// The order of a generation.
    pub fn plan_of(&self, number: GenerationNumber) -> Plan {
        match &self.order {
            Some((of, order)) if *of == number => Plan::Rollout(Box::new(order.clone())),
            _ => Plan::unwatched(),
        }
    }

    /// The state of a generation's rollout.
    pub fn state_of(&self, generation: &SignedGeneration) -> Option<&Rollout> {
        let is_of = |rollout: &&Rollout| {
            rollout.target.number == generation.number().get()
                && rollout.target.root == generation.root_hash()
        };
        self.state.as_ref().filter(is_of)
    }
}

impl Stored {
    /// Whether the rollout of a generation with an order has ended well.
    pub fn is_released(&self, generation: &SignedGeneration) -> bool {
        self.state_of(generation).is_some_and(Rollout::is_released)
    }
}

fn decode_order(value: &[u8], keys: &Keys) -> Option<(GenerationNumber, Order)> {
    let record: OrderRecord = serde_json::from_slice(value).ok()?;
    let decode = |text: &str| HEXLOWER.decode(text.as_bytes()).ok();
    let base = keys.verify(&decode(&record.base.0)?, &decode(&record.base.1)?).ok()?;
    let number = GenerationNumber::new(record.number).filter(|_| record.version == VERSION)?;
    Some((number, Order { kind: record.kind, policy: record.policy, base }))
}
