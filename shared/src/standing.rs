//! Orders that keep a node out of service or at its generation, from either side.

use serde::{Deserialize, Serialize};
use syncd_proto::v1;

/// Orders given on the node itself. They hold with the origin gone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStanding {
    /// Balancers are told that the node is not ready.
    pub drained: bool,
    pub pinned: Option<Pin>,
}

/// A generation at which a node stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub generation: u64,
    /// When it was ordered, in milliseconds since 1970.
    pub since_ms: i64,
}

/// Orders given at the origin for one node. The node keeps them while it is disconnected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderedStanding {
    /// Balancers are told that the node is not ready.
    pub drained: bool,
    /// The node stays where it is.
    pub pinned: bool,
}

impl From<&v1::NodeStanding> for NodeStanding {
    fn from(message: &v1::NodeStanding) -> Self {
        let (generation, since_ms) = (message.pinned, message.pinned_since_ms.max(0));
        Self { drained: message.drained, pinned: (generation > 0).then_some(Pin { generation, since_ms }) }
    }
}

impl From<NodeStanding> for v1::NodeStanding {
    fn from(standing: NodeStanding) -> Self {
        let Pin { generation, since_ms } = standing.pinned.unwrap_or(Pin { generation: 0, since_ms: 0 });
        Self { drained: standing.drained, pinned: generation, pinned_since_ms: since_ms }
    }
}

impl From<&v1::OrderedStanding> for OrderedStanding {
    fn from(message: &v1::OrderedStanding) -> Self {
        Self { drained: message.drained, pinned: message.pinned }
    }
}

impl From<OrderedStanding> for v1::OrderedStanding {
    fn from(standing: OrderedStanding) -> Self {
        Self { drained: standing.drained, pinned: standing.pinned }
    }
}
