//! Enrols agents by the real `join`, each with its own key and certificate.

use std::path::Path;

use anyhow::Context;
use syncd_agent::identity::AgentIdentity;
use syncd_agent::join::{JoinOptions, Joined, join};
use syncd_shared::identity::JoinToken;
use tokio::task::JoinSet;

/// Simultaneous joins. The origin admits 32 from one address, counted until their connections are closed.
const AT_ONCE: usize = 16;

/// Enrols `agents` agents with one token. Their identity files go below `roots`.
pub async fn enrol(
    address: &str,
    token: &JoinToken,
    agents: usize,
    roots: &Path,
) -> anyhow::Result<Vec<AgentIdentity>> {
    let mut joins = JoinSet::new();
    let mut identities = Vec::with_capacity(agents);
    for number in 0..agents {
        if joins.len() >= AT_ONCE {
            identities.extend(finished(&mut joins).await?);
        }
        let name = format!("load-{number}");
        let options = JoinOptions {
            address: address.to_owned(),
            root: roots.join(&name),
            token: token.clone(),
            name: Some(name.parse().context("an agent's name")?),
            rename: false,
            group: None,
            adopt: None,
        };
        joins.spawn(join(options));
    }
    while !joins.is_empty() {
        identities.extend(finished(&mut joins).await?);
    }
    Ok(identities)
}

async fn finished(
    joins: &mut JoinSet<Result<Joined, syncd_agent::join::JoinError>>,
) -> anyhow::Result<Option<AgentIdentity>> {
    match joins.join_next().await {
        Some(joined) => Ok(Some(joined.context("a join")?.context("join")?.identity)),
        None => Ok(None),
    }
}
