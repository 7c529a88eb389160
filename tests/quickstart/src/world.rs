//! An origin and its agents in this process.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use syncd_agent::join::{self, JoinOptions};
use syncd_agent::service::RunOptions;
use syncd_origin::service::{MtimePolicy, ServeOptions, SymlinkPolicy, Trigger};

use crate::web;

const QUIET: Duration = Duration::from_millis(100);
/// Deadline that only a defect exceeds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A node: its agent, and the web server of its replica.
pub struct Node {
    pub name: String,
    pub root: PathBuf,
    pub web: SocketAddr,
    agent: syncd_agent::service::Running,
}

impl Node {
    /// Number of the live generation, 0 before the first.
    pub fn generation(&self) -> u64 {
        self.agent.status().borrow().generation.unwrap_or(0)
    }

    /// Path that the web server reads.
    pub fn live(&self) -> PathBuf {
        self.root.join("live")
    }

    /// Waits until `generation` or a later one is live.
    pub async fn wait_for(&self, generation: u64) -> anyhow::Result<()> {
        let mut status = self.agent.status();
        let arrived = status.wait_for(|s| s.generation.is_some_and(|g| g >= generation));
        match tokio::time::timeout(PATIENCE, arrived).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("{} stopped", self.name),
            Err(_) => bail!("{} did not get generation {generation}", self.name),
        }
    }
}

/// The origin and its nodes.
pub struct World {
    directory: PathBuf,
    pub tree: PathBuf,
    pub nodes: Vec<Node>,
    address: SocketAddr,
    origin: Option<syncd_origin::service::Running>,
}

impl World {
    /// Starts an origin on `tree`, and two nodes that join it with tokens.
    pub async fn create(directory: &Path, tree: PathBuf) -> anyhow::Result<Self> {
        let data = directory.join("origin");
        syncd_origin::service::init(&data)?;
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { directory: directory.into(), tree, nodes: Vec::new(), address, origin: None };
        world.start_origin().await?;
        world.add_node().await?;
        world.add_node().await?;
        Ok(world)
    }

    fn data(&self) -> PathBuf {
        self.directory.join("origin")
    }

    /// Starts the origin, on its former address if it had one.
    pub async fn start_origin(&mut self) -> anyhow::Result<()> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = ServeOptions {
            git: None,
            hold_while: None,
            policies: Default::default(),
            tree: self.tree.clone(),
            data: self.data(),
            listen: self.address,
            http: loopback,
            http_required: true,
            trigger: Trigger::Settle {
                quiet: QUIET,
                max: Duration::from_secs(30),
                busy_after: Duration::from_secs(300),
            },
            page_listen: None,
            poll: Duration::from_secs(10),
            mtime: MtimePolicy::Tree,
            symlinks: SymlinkPolicy::Verbatim,
            retention: Default::default(),
            bwlimit: None,
            publish: None,
            purge: None,
            on_rollout: None,
            collected: Vec::new(),
            admin_group: None,
        };
        let origin = syncd_origin::service::start(options).await.context("start the origin")?;
        self.address = origin.grpc_address();
        self.origin = Some(origin);
        Ok(())
    }

    pub async fn stop_origin(&mut self) -> anyhow::Result<()> {
        self.origin.take().context("the origin runs")?.stop().await;
        Ok(())
    }

    pub fn origin(&self) -> anyhow::Result<&syncd_origin::service::Running> {
        self.origin.as_ref().context("the origin runs")
    }

    /// Number of the origin's current generation, 0 before the first.
    pub fn current(&self) -> anyhow::Result<u64> {
        Ok(self.origin()?.committer().view().borrow().current.as_ref().map_or(0, |g| g.number().get()))
    }

    /// Waits until the origin has sealed a generation after `number`. Returns its number.
    pub async fn sealed_after(&self, number: u64) -> anyhow::Result<u64> {
        let mut view = self.origin()?.committer().view();
        let sealed = view.wait_for(|v| v.current.as_ref().is_some_and(|g| g.number().get() > number));
        tokio::time::timeout(PATIENCE, sealed).await.context("nothing was sealed")??;
        self.current()
    }

    /// Joins one more node with its own token, and starts its agent.
    pub async fn add_node(&mut self) -> anyhow::Result<&Node> {
        let name = format!("web{}", self.nodes.len() + 1);
        let root = self.directory.join(&name);
        let token = self.origin()?.fleet().create_token(Duration::from_secs(300), 1).await?;
        join::join(JoinOptions {
            address: self.address.to_string(),
            root: root.clone(),
            token,
            name: Some(name.parse()?),
            rename: false,
            group: None,
            adopt: None,
        })
        .await?;
        let options = RunOptions {
            http: SocketAddr::from(([127, 0, 0, 1], 0)),
            http_required: true,
            ..RunOptions::new(root.clone())
        };
        let agent = syncd_agent::service::start(options).await.context("start an agent")?;
        let web = web::serve(root.join("live")).await?;
        self.nodes.push(Node { name, root, web, agent });
        self.nodes.last().context("just added")
    }

    /// Stops everything.
    pub async fn stop(mut self) {
        for node in self.nodes.drain(..) {
            node.agent.stop().await;
        }
        if let Some(origin) = self.origin.take() {
            origin.stop().await;
        }
    }
}

/// Requests a page from a node's web server.
pub async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: quickstart\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    ensure!(
        answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
        "GET {path}: {answer:.40}"
    );
    Ok(answer)
}
