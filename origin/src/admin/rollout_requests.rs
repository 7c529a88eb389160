//! Answers requests about rollouts, and orders for nodes, while the origin serves.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use syncd_shared::GenerationNumber;
use tokio::time::Instant;

use super::protocol::{NodeRequest, Reply};
use super::server::{Admin, Replies};
use crate::error_chain;
use crate::fleet::rollout::RolloutOrder;
use crate::fleet::{AgentView, FleetError, NodeOrder};

/// Longest wait of `undrain` for a node that is behind the others.
const UNDRAIN: Duration = Duration::from_secs(60);

/// The step that puts a node into service that was drained on the node.
const THERE: &str = "run `syncd-agent undrain` there to put it into service";

/// `rollout ...`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RolloutAction {
    Status,
    Pause,
    Resume,
    Advance,
    Abort,
}

impl Admin {
    pub(super) async fn rollout(&self, action: RolloutAction, replies: &mut Replies) -> Reply {
        let (order, text) = match action {
            RolloutAction::Status => {
                let rollout = self.fleet.rollout().borrow().rollout.clone();
                replies.send(Reply::Rollout { rollout: rollout.map(Box::new) }).await;
                return Reply::Done { code: 0 };
            }
            RolloutAction::Pause => {
                (RolloutOrder::Pause, "the rollout is paused: `rollout resume` continues it")
            }
            RolloutAction::Resume => (RolloutOrder::Resume, "the rollout continues"),
            RolloutAction::Advance => (RolloutOrder::Advance, "the hold was ended: the next step begins"),
            RolloutAction::Abort => (
                RolloutOrder::Abort,
                "the rollout was aborted: the origin publishes the tree of before again, and holds until `commit`",
            ),
        };
        finished(self.fleet.order_rollout(order).await, text.to_owned(), replies).await
    }

    pub(super) async fn order_node(
        &self,
        agent: String,
        request: NodeRequest,
        replies: &mut Replies,
    ) -> Reply {
        if request == NodeRequest::Undrain
            && let Err(message) = self.caught_up(&agent).await
        {
            return Reply::Error { message };
        }
        let is_undrain = request == NodeRequest::Undrain;
        let (order, text) = match node_order(&agent, request) {
            Ok((order, _)) if is_undrain && self.is_drained_there(&agent) => {
                (order, format!("{agent} is no longer drained here. It was drained on the node too: {THERE}"))
            }
            Ok(order) => order,
            Err(message) => return Reply::Error { message },
        };
        let done = match order {
            Some(order) => self.fleet.order(agent, order).await,
            None => self.fleet.forget(agent).await,
        };
        finished(done, text, replies).await
    }

    /// Whether a person drained the node on the node itself.
    fn is_drained_there(&self, name: &str) -> bool {
        let view = self.fleet.view();
        let view = view.borrow();
        view.agents.iter().any(|agent| agent.name == name && agent.standing.drained)
    }

    /// Waits until a node has what it was assigned, hook included. Fails with the next step.
    async fn caught_up(&self, name: &str) -> Result<(), String> {
        let mut fleet = self.fleet.view();
        let deadline = Instant::now() + UNDRAIN;
        loop {
            let view = fleet.borrow_and_update().clone();
            let Some(agent) = view.agents.iter().find(|agent| agent.name == name) else {
                // The order reports it.
                return Ok(());
            };
            if has_assigned(agent) {
                return Ok(());
            }
            if tokio::time::timeout_at(deadline, fleet.changed()).await.is_err() {
                return Err(still_behind(agent));
            }
        }
    }
}

/// The order of a request, and what is said after it. `None`: the node is forgotten.
pub(super) fn node_order(agent: &str, request: NodeRequest) -> Result<(Option<NodeOrder>, String), String> {
    let (order, text) = match request {
        NodeRequest::Forget => {
            let text =
                format!("{agent} is forgotten. Its certificate is still good: `revoke` shuts a node out");
            return Ok((None, text));
        }
        NodeRequest::Undrain => (NodeOrder::Undrain, format!("{agent} is in service again")),
        NodeRequest::Drain => {
            let text =
                format!("{agent} is drained: `/readyz` answers 503 there, and rollouts do not wait for it");
            (NodeOrder::Drain, text)
        }
        NodeRequest::Pin => (NodeOrder::Pin, format!("{agent} stays where it is until `unpin`")),
        NodeRequest::Unpin => (NodeOrder::Unpin, format!("{agent} follows the origin again")),
        NodeRequest::Group { group } if group.is_empty() => {
            (NodeOrder::NoGroup, format!("{agent} is in no group"))
        }
        NodeRequest::Group { group } => {
            let wrong = |error| format!("group names follow the rules of node names: {error}");
            (NodeOrder::Group(group.parse().map_err(wrong)?), format!("{agent} is in group {group}"))
        }
    };
    Ok((Some(order), text))
}

/// Whether a node has the generation that it is to activate.
fn has_assigned(agent: &AgentView) -> bool {
    let has = |(number, activate): (GenerationNumber, bool)| !activate || agent.generation == Some(number);
    agent.connected && !agent.is_hook_due() && !agent.is_on_trial() && agent.assigned.is_none_or(has)
}

fn still_behind(agent: &AgentView) -> String {
    let name = &agent.name;
    let step = "`syncd-origin status` has its state; try again when it has caught up";
    if !agent.connected {
        return format!("{name} stays drained: it is not connected; {step}");
    }
    let has = agent.generation.map_or("no generation".to_owned(), |number| format!("generation {number}"));
    match agent.assigned {
        Some((number, true)) if agent.generation != Some(number) => format!(
            "{name} stays drained: it has {has}, the others {number}, and it did not catch up within {} s; {step}",
            UNDRAIN.as_secs()
        ),
        _ if agent.is_hook_due() => {
            format!("{name} stays drained: its hook has not succeeded for {has}; {step}")
        }
        _ => format!("{name} stays drained: its check has not passed for {has}; {step}"),
    }
}

/// Sends a remark if the request was carried out. Returns the last reply.
async fn finished(done: Result<(), FleetError>, text: String, replies: &mut Replies) -> Reply {
    if let Err(error) = done {
        return Reply::Error { message: error_chain(&error) };
    }
    replies.send(Reply::Remark { text }).await;
    Reply::Done { code: 0 }
}
