//! Orders given on the node, and questions about them: `drain`, `pin`, `accept`, `refused`, `check`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use syncd_runtime::health::Health;
use syncd_runtime::local_socket;
use syncd_runtime::output::{self, note};
use syncd_shared::OrderedStanding;

use super::{current_status, running_status};
use crate::admin::{self, Order, Reply, Request, nobody_serves};
use crate::{http, offline};

/// Gives an order to the running agent, or records it for the next start.
pub(super) async fn order(root: &Path, order: Order) -> anyhow::Result<ExitCode> {
    let is_running = match local_socket::request_one::<_, Reply>(
        &admin::socket_path(root),
        &Request::Order(order),
    )
    .await
    {
        Ok(Reply::Ordered) => true,
        Ok(Reply::Error { message }) => bail!("{message}"),
        Ok(_) => bail!("the running agent is of another version: restart it"),
        Err(error) if nobody_serves(&error) => {
            let root = std::path::absolute(root)?;
            tokio::task::spawn_blocking(move || offline::order(&root, order)).await??;
            false
        }
        Err(error) => return Err(error).context("can't ask the running agent"),
    };
    let ordered = match order {
        Order::Undrain | Order::Unpin => current_status(root).await?.ordered,
        _ => OrderedStanding::default(),
    };
    match order {
        Order::Undrain if ordered.drained => note(
            "no longer drained here. The origin drains this node too: run `syncd-origin undrain NODE` there to put it \
             into service",
        ),
        Order::Unpin if ordered.pinned => note(
            "no longer pinned here. The origin pins this node too: `syncd-origin unpin NODE` there ends it",
        ),
        Order::Drain => note("drained: load balancers are told that this node is not ready"),
        Order::Undrain => note("no longer drained here"),
        Order::Pin { generation: Some(number) } => note(format_args!("pinned to generation {number}")),
        Order::Pin { generation: None } => note("pinned to the live generation"),
        Order::Unpin => note("no longer pinned here"),
        Order::Accept { generation } => note(format_args!("generation {generation} is not refused any more")),
    }
    if !is_running {
        note("no agent runs: the order holds from its next start");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn refused(root: &Path) -> anyhow::Result<ExitCode> {
    for refused in current_status(root).await?.refused {
        output::line(refused)?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn ready(root: &Path) -> anyhow::Result<ExitCode> {
    let Some(status) = running_status(root).await? else {
        bail!("not ready: no agent runs on {}", root.display())
    };
    let Health { is_well, text } = http::readiness(&status);
    output::line(text)?;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
