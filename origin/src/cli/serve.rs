//! `serve`: its options, what is checked of them, and the running of the origin.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use syncd_runtime::accounts::group_id;
use syncd_runtime::bucket::BucketUrl;
use syncd_runtime::rate::Rate;
use syncd_runtime::signals::Signals;
use syncd_runtime::telemetry::{self, LogFormat};
use syncd_runtime::trusted_file::check_trusted;
use syncd_runtime::{config_file, supervisor};
use syncd_shared::TreePath;
use syncd_shared::address::listen_address;
use syncd_shared::byte_size::ByteSize;
use syncd_shared::time_span::{parse_time, time_or_zero};
use syncd_shared::tree_path::TreePathError;

use super::arguments::{Data, HTTP, LISTEN};
use super::collected::{self, no_option};
use crate::commit::Trigger;
use crate::fleet::rollout::Policies;
use crate::publish::Deposed;
use crate::scan::{MtimePolicy, SymlinkPolicy};
use crate::service::{self, PublishOptions, PurgeOptions, ServeOptions, StoodBy};
use crate::source::{GitOptions, Lfs, Mtime, Submodules};
use crate::store::Retention;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Content tree to publish.
    #[arg(long, env = "SYNCD_TREE", value_name = "DIR")]
    tree: PathBuf,
    #[command(flatten)]
    data: Data,
    /// Address to listen on for agents.
    #[arg(long, env = "SYNCD_LISTEN", default_value = LISTEN, value_name = "ADDR:PORT", value_parser = listen_address)]
    listen: SocketAddr,
    /// Address of the health page [default: 127.0.0.1:8874].
    #[arg(long, env = "SYNCD_ORIGIN_HTTP", value_name = "ADDR:PORT", value_parser = listen_address)]
    http: Option<SocketAddr>,
    /// Address of the page for other machines, with TLS and a login: see `syncd-origin page`. Without it the
    /// page is served with the health page alone, to this machine.
    #[arg(long, env = "SYNCD_PAGE_LISTEN", value_name = "ADDR:PORT", value_parser = listen_address)]
    page_listen: Option<SocketAddr>,
    /// When to publish changes.
    #[arg(long, env = "SYNCD_TRIGGER", value_enum, default_value = "settle")]
    trigger: TriggerName,
    /// File in the tree whose presence, for at most 10 minutes, delays publishing: somebody is changing the
    /// tree. A tree of WordPress has .maintenance by default.
    #[arg(long, env = "SYNCD_HOLD_WHILE", value_name = "PATH", value_parser = tree_path)]
    hold_while: Option<TreePath>,
    #[command(flatten)]
    git: GitArgs,
    /// Time without changes after which the tree is published.
    #[arg(long, env = "SYNCD_SETTLE", default_value = "500ms", value_name = "TIME", value_parser = parse_time)]
    settle: Duration,
    /// Time after which a tree that keeps changing causes a warning, which names the path. A file that is
    /// open for writing delays publishing for at most this long after its last write.
    #[arg(long, env = "SYNCD_SETTLE_MAX", default_value = "30s", value_name = "TIME", value_parser = parse_time)]
    settle_max: Duration,
    /// Time after which a file that keeps changing no longer delays the others. They are published, and the
    /// file stays as last published until it is quiet.
    #[arg(long, env = "SYNCD_SETTLE_MAX_PUBLISH", default_value = "5m", value_name = "TIME", value_parser = parse_time)]
    settle_max_publish: Duration,
    /// Interval at which the parts of the tree that send no events, such as network file systems, are walked.
    #[arg(long, env = "SYNCD_POLL", default_value = "10s", value_name = "TIME", value_parser = parse_time)]
    poll: Duration,
    /// Modification time that a file is published with.
    #[arg(long, env = "SYNCD_MTIME", value_enum, default_value = "tree")]
    mtime: MtimePolicy,
    /// Symlinks to publish.
    #[arg(long, env = "SYNCD_SYMLINKS", value_enum, default_value = "verbatim")]
    symlinks: SymlinkPolicy,
    /// Number of newest generations to keep, whatever their age and size.
    #[arg(long, env = "SYNCD_KEEP_GENERATIONS", default_value_t = 10, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..))]
    keep_generations: u32,
    /// Age of the history to keep: every generation of the last hour, one for each hour of the last day, then
    /// one for each day.
    #[arg(long, env = "SYNCD_KEEP_FOR", default_value = "7d", value_name = "TIME", value_parser = time_or_zero)]
    keep_for: Duration,
    /// Space that the history may take, as in 20G. The oldest generations are retired first [default:
    /// unlimited].
    #[arg(long, env = "SYNCD_KEEP_BYTES", value_name = "SIZE")]
    keep_bytes: Option<ByteSize>,
    /// Limit of the bytes per second sent to all agents together, as in 10M [default: unlimited].
    #[arg(long, env = "SYNCD_ORIGIN_BWLIMIT", value_name = "RATE")]
    bwlimit: Option<Rate>,
    /// Object store that every generation is also put into, for agents that follow it, as in
    /// s3://BUCKET/PREFIX or file:///srv/published. It never delays a commit.
    #[arg(long, env = "SYNCD_PUBLISH", value_name = "URL", value_parser = BucketUrl::writable)]
    publish: Option<BucketUrl>,
    /// URL of the web server or cache at which agents read the object store. Joined agents get the bytes of
    /// larger updates there, and from the origin if that fails.
    #[arg(long, env = "SYNCD_PUBLISH_READ", value_name = "URL", requires = "publish",
        value_parser = BucketUrl::remote)]
    publish_read: Option<BucketUrl>,
    /// Commit through the object store, so that of several origins with the same keys only one can. Commits
    /// wait for the store, and fail while it is down.
    #[arg(long, env = "SYNCD_FENCED", requires = "publish")]
    fenced: bool,
    /// Stand by: follow what another origin with the same keys publishes there, until `syncd-origin promote`.
    #[arg(long, env = "SYNCD_STANDBY", requires = "publish")]
    standby: bool,
    /// Limit of the bytes per second sent to the object store, as in 10M [default: unlimited].
    #[arg(long, env = "SYNCD_PUBLISH_BWLIMIT", value_name = "RATE", requires = "publish")]
    publish_bwlimit: Option<Rate>,
    /// Command that makes caches in front of all nodes, such as a CDN, forget what has changed. `sh -c` runs
    /// it once the nodes have a generation, and again after stragglers, with the changed paths on standard
    /// input.
    #[arg(long, env = "SYNCD_PURGE", value_name = "CMD")]
    purge: Option<String>,
    /// Address of the site, as in `https://www.example.org`. The command of --purge then gets URLs below it,
    /// not paths. May be repeated.
    #[arg(long, env = "SYNCD_PURGE_SITE", value_name = "URL", requires = "purge", value_delimiter = ',',
          value_parser = site)]
    purge_site: Vec<String>,
    /// Command for `sh -c` when a rollout fails or is aborted, or publication is held. It gets the JSON of
    /// `rollout status` on standard input.
    #[arg(long, env = "SYNCD_ON_ROLLOUT", value_name = "CMD")]
    on_rollout: Option<String>,
    /// Policy by which generations go to the nodes: `each`, `together`, or a table `[rollout.NAME]` of the
    /// configuration file. In that file, `default = "NAME"` in the table `[rollout]` chooses it.
    #[arg(long, env = "SYNCD_ROLLOUT", value_name = "POLICY")]
    rollout: Option<String>,
    /// Stands for the tables `[collect.NAME]` of the configuration file.
    #[arg(long, env = "SYNCD_COLLECT", hide = true, value_parser = no_option)]
    collect: Option<String>,
    /// Group whose members may use every command (commit, token, revoke ...), in addition to root and the
    /// user of this process.
    #[arg(long, env = "SYNCD_ADMIN_GROUP", value_name = "GROUP", value_parser = group_id)]
    admin_group: Option<u32>,
    /// Format of the log on standard error.
    #[arg(long, env = "SYNCD_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Args)]
struct GitArgs {
    /// Branch, tag or other reference to publish with --trigger git [default: HEAD].
    #[arg(long, env = "SYNCD_GIT_REF", value_name = "REF")]
    git_ref: Option<String>,
    /// Modification time of files with --trigger git [default: file-commit].
    #[arg(long, env = "SYNCD_GIT_MTIME", value_enum)]
    git_mtime: Option<Mtime>,
    /// Fate of submodules with --trigger git [default: refuse].
    #[arg(long, env = "SYNCD_GIT_SUBMODULES", value_enum)]
    git_submodules: Option<Submodules>,
    /// Fate of pointers of git-lfs with --trigger git [default: refuse].
    #[arg(long, env = "SYNCD_GIT_LFS", value_enum)]
    git_lfs: Option<Lfs>,
}

impl GitArgs {
    /// The options with `--trigger git`; `None` with any other.
    fn options(self, serve: TriggerName, mtime: MtimePolicy) -> Result<Option<GitOptions>, &'static str> {
        let Self { git_ref, git_mtime, git_submodules, git_lfs } = self;
        if !matches!(serve, TriggerName::Git) {
            let is_given =
                git_ref.is_some() || git_mtime.is_some() || git_submodules.is_some() || git_lfs.is_some();
            return if is_given {
                Err("--git-ref and the other --git options need --trigger git")
            } else {
                Ok(None)
            };
        }
        if mtime != MtimePolicy::Tree {
            return Err(
                "--mtime is for directories: with --trigger git, --git-mtime says which times are published",
            );
        }
        Ok(Some(GitOptions {
            reference: git_ref.unwrap_or_else(|| "HEAD".into()),
            mtime: git_mtime.unwrap_or_default(),
            submodules: git_submodules.unwrap_or_default(),
            lfs: git_lfs.unwrap_or_default(),
        }))
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TriggerName {
    /// Once the tree has been quiet for --settle.
    Settle,
    /// Only on `syncd-origin commit`.
    Manual,
    /// When --git-ref moves. --tree is a work tree or a bare repository.
    Git,
}

/// The address of a site, without the slash at its end.
fn site(text: &str) -> Result<String, String> {
    let is_site = ["https://", "http://"].iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '['))
    });
    if !is_site || text.contains(|c: char| c.is_whitespace() || c.is_control() || "?#".contains(c)) {
        return Err("give an address as in https://www.example.org".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn tree_path(text: &str) -> Result<TreePath, TreePathError> {
    TreePath::from_bytes(text.as_bytes())
}

impl Serve {
    /// The options, with the policies of the configuration file. Checks who may write that file if commands
    /// are to be run.
    pub(super) fn options(self) -> anyhow::Result<ServeOptions> {
        let policies = self.policies()?;
        let runs_commands = self.purge.is_some() || self.on_rollout.is_some() || policies.run_commands();
        if let (Some(file), true) = (&self.data.config, runs_commands) {
            check_trusted(file)?;
        }
        let collected = collected::directories(self.data.config.as_deref())?;
        let trigger = self.trigger();
        let git = self.git.options(self.trigger, self.mtime).map_err(anyhow::Error::msg)?;
        Ok(ServeOptions {
            hold_while: self.hold_while,
            git,
            policies,
            tree: std::path::absolute(&self.tree).context("the directory that --tree is relative to")?,
            data: self.data.data,
            listen: self.listen,
            http_required: self.http.is_some(),
            http: match self.http {
                Some(http) => http,
                None => HTTP.parse().context("the default of --http")?,
            },
            page_listen: self.page_listen,
            trigger,
            poll: self.poll,
            mtime: self.mtime,
            symlinks: self.symlinks,
            retention: Retention {
                generations: usize::try_from(self.keep_generations).unwrap_or(usize::MAX),
                age: self.keep_for,
                bytes: self.keep_bytes.map(ByteSize::bytes),
            },
            bwlimit: self.bwlimit,
            publish: self.publish.map(|url| PublishOptions {
                url,
                read: self.publish_read,
                fenced: self.fenced,
                deposed: Deposed::default(),
                bwlimit: self.publish_bwlimit,
            }),
            purge: self.purge.map(|command| PurgeOptions { command, sites: self.purge_site }),
            on_rollout: self.on_rollout,
            collected,
            admin_group: self.admin_group,
        })
    }

    /// Checks what options and tables mean together, and whether TREE is there. Returns warnings.
    pub(super) fn check(self) -> anyhow::Result<Vec<String>> {
        // An origin on standby gets its tree before it is promoted.
        let needs_tree = !self.standby;
        let options = self.options()?;
        let mut warnings = options.policies.warnings();
        if needs_tree {
            check_tree(&options.tree)?;
        }
        let location = options.location();
        for directory in &options.collected {
            let (name, path) = (&directory.name, &directory.path);
            if needs_tree {
                directory.check_parent(&location)?;
            }
            // An unreadable repository is an error above.
            if directory.has_files(&location).unwrap_or(false) {
                warnings.push(format!(
                    "[collect.{name}]: the tree has files in {path}, which nodes keep until `syncd-origin collected adopt \
                     {name}` takes them"
                ));
            }
        }
        Ok(warnings)
    }

    fn policies(&self) -> anyhow::Result<Policies> {
        let default = self.rollout.as_deref();
        let Some(path) = &self.data.config else { return Ok(Policies::parse(&toml::Table::new(), default)?) };
        let tables = config_file::table(path, "rollout")?;
        Policies::parse(&tables, default).with_context(|| format!("the policies of {}", path.display()))
    }

    fn trigger(&self) -> Trigger {
        let (max, busy_after) = (self.settle_max, self.settle_max_publish);
        match self.trigger {
            TriggerName::Manual => Trigger::Manual,
            TriggerName::Settle => Trigger::Settle { quiet: self.settle, max, busy_after },
            // A reference moves at once, when all objects are there.
            TriggerName::Git => Trigger::Settle { quiet: Duration::ZERO, max, busy_after },
        }
    }
}

fn check_tree(tree: &Path) -> anyhow::Result<()> {
    let shown = tree.display();
    match std::fs::metadata(tree) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => bail!("the content tree {shown} is not a directory: name one as `tree`"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("the content tree {shown} is missing: create or mount it, or name another one as `tree`")
        }
        Err(error) => Err(error).with_context(|| format!("look at the content tree {shown}")),
    }
}

/// Runs the origin until SIGTERM. With `--standby`, waits for its promotion first.
pub(super) async fn serve_until_signal(serve: Serve) -> anyhow::Result<ExitCode> {
    telemetry::set_format(serve.log_format);
    let standby = serve.standby;
    let options = serve.options()?;
    for warning in options.policies.warnings() {
        tracing::warn!("{warning}");
    }
    // Before anything is opened, so that from here on a SIGTERM shuts down in order.
    let mut signals = Signals::listen()?;
    let mut ready = None;
    if standby {
        let is_ready = || ready = Some(supervisor::ready());
        match service::stand_by(&options, is_ready, signals.stop()).await? {
            StoodBy::Promoted => {}
            StoodBy::Stopped => return Ok(ExitCode::SUCCESS),
        }
    }
    let running = service::start(options).await?;
    let ready = ready.unwrap_or_else(supervisor::ready);
    tokio::select! {
        () = signals.stop() => {}
        () = running.ended() => bail!("the origin stopped by itself; the log above says why"),
    }
    tracing::info!("stopping");
    drop(ready);
    running.stop().await;
    Ok(ExitCode::SUCCESS)
}
