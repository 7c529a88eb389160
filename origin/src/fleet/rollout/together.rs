//! *together*: every agent stages the newest generation, and none activates it before all connected agents
//! have. Only for tests, which prove with it that assignments reach agents: a real barrier needs time limits
//! and checks.

use std::sync::Arc;

use syncd_shared::SignedGeneration;

use super::{AgentView, Assignment};

pub(super) fn assign(agents: &[&AgentView], newest: &Arc<SignedGeneration>) -> Vec<Assignment> {
    let wanted = (newest.number(), newest.root_hash());
    let is_ready =
        |agent: &&&AgentView| agent.staged == Some(wanted) || agent.generation == Some(newest.number());
    let connected = agents.iter().filter(|agent| agent.connected);
    let activate = connected.clone().count() == connected.filter(is_ready).count();
    agents.iter().map(|_| Assignment { generation: newest.clone(), activate }).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use syncd_shared::ed25519::SigningKey;
    use syncd_shared::{Generation, GenerationNumber, RootEntry, TreeId};

    use super::*;
    use crate::fleet::AgentState;

    pub(in crate::fleet::rollout) fn generation(number: u64) -> SignedGeneration {
        Generation {
            tree_id: TreeId::from_bytes([1; 16]),
            epoch: 1,
            trust: 1,
            number: GenerationNumber::new(number).unwrap(),
            root: RootEntry::empty(),
            parent: None,
            created_ms: 0,
            label: String::new(),
        }
        .sign(&SigningKey::from_bytes(&[1; 32]))
    }

    pub(in crate::fleet::rollout) fn agent(name: &str) -> AgentView {
        AgentView {
            name: name.into(),
            connected: true,
            generation: GenerationNumber::new(6),
            root: None,
            staged: None,
            hook: None,
            check: None,
            standing: syncd_shared::NodeStanding::default(),
            refused: Vec::new(),
            state: AgentState::Live,
            last_seen_ms: 0,
            error: None,
            needs_operator: false,
            serial: String::new(),
            not_after_ms: 0,
            progress: None,
            version: None,
            spare_misses: 0,
            drift: None,
            notes: Vec::new(),
        }
    }

    #[test]
    fn all_activate_once_the_last_connected_agent_has_staged() {
        let newest = Arc::new(generation(7));
        let mut agents = [agent("a"), agent("b"), agent("c")];
        agents[2].connected = false;
        let activates = |agents: &[AgentView; 3]| assign(&agents.each_ref(), &newest)[0].activate;
        assert!(!activates(&agents));
        agents[0].staged = Some((newest.number(), newest.root_hash()));
        assert!(!activates(&agents));
        agents[1].staged = agents[0].staged;
        assert!(activates(&agents));
        (agents[0].staged, agents[0].generation) = (None, Some(newest.number()));
        assert!(activates(&agents), "it is live there already");
    }
}
