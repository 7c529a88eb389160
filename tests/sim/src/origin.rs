//! The origin: its real store, sealer, fleet, planner and conversations, without TLS and without the
//! committer's timers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use syncd_origin::audit::Audit;
use syncd_origin::commit::{CollectionGate, Parts, Sealer};
use syncd_origin::fleet::rollout::Policies;
use syncd_origin::fleet::{Fleet, NamedRecord, RecordChange, RecordError, RecordStore};
use syncd_origin::keys::Keys;
use syncd_origin::plan::{PlanBudget, Planner};
use syncd_origin::publish::{Deposed, FencedCommits, PublishOptions, Publisher};
use syncd_origin::scan::ScanOptions;
use syncd_origin::serve::Services;
use syncd_origin::source::WorkTree;
use syncd_origin::store::Store;
use syncd_origin::watch::Watch;
use syncd_runtime::bucket::Bucket;
use syncd_shared::diff::PartLimits;
use syncd_shared::{GenerationNumber, RootHash, SignedGeneration};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Longer than any run, because the tree's mount sends events.
const POLL: Duration = Duration::from_secs(3600);

/// Policies of the simulated rollouts.
const POLICIES: &str = "
[canary]
steps = [ { nodes = 1 }, { rest = true } ]
hold = '3s'
deadline = '60s'

[half]
steps = [ { percent = 50 }, { rest = true } ]
flip = 'each'
hold = '0s'
deadline = '60s'
quorum = '50%'
";

/// A running origin.
pub struct Origin {
    pub services: Services,
    pub sealer: Sealer,
    pub observed: mpsc::Receiver<SignedGeneration>,
    pub store: Arc<Store>,
    life: Arc<Life>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// An object store that an origin publishes to.
pub struct Publishing {
    pub bucket: Arc<dyn Bucket>,
    /// Commits need the store.
    pub fenced: bool,
}

/// How long the process lives.
#[derive(Default)]
struct Life {
    /// The process was killed, so unwritten state is lost.
    killed: AtomicBool,
    /// Writes of the fleet's records until it dies; 0: it does not.
    left: AtomicU64,
    /// The last write is done.
    after: AtomicBool,
}

/// Store of the fleet's records that ends with the process.
struct Mortal {
    store: Arc<Store>,
    life: Arc<Life>,
}

impl RecordStore for Mortal {
    fn load(&self, namespace: &'static str) -> Result<Vec<NamedRecord>, RecordError> {
        self.store.load(namespace)
    }

    fn save(&self, changes: &[RecordChange]) -> Result<(), RecordError> {
        let life = &self.life;
        if life.killed.load(Ordering::Relaxed) {
            return Err(RecordError::Interrupted);
        }
        let left = life.left.load(Ordering::Relaxed);
        life.left.store(left.saturating_sub(1), Ordering::Relaxed);
        if left != 1 {
            return self.store.save(changes);
        }
        life.killed.store(true, Ordering::Relaxed);
        if life.after.load(Ordering::Relaxed) {
            self.store.save(changes)?;
        }
        Err(RecordError::Interrupted)
    }

    fn root_of(&self, number: GenerationNumber) -> Result<Option<RootHash>, RecordError> {
        self.store.root_of(number)
    }
}

impl Origin {
    /// Does what `serve` does at its start, including the first scan.
    pub fn start(tree: &Path, data: &Path, part: PartLimits) -> anyhow::Result<Self> {
        let mut origin = Self::open(tree, data, part, None)?;
        origin.sealer.scan().context("the first scan")?;
        Ok(origin)
    }

    /// Does what `serve` does before its first scan.
    pub fn open(
        tree: &Path,
        data: &Path,
        part: PartLimits,
        publishing: Option<Publishing>,
    ) -> anyhow::Result<Self> {
        let policies = Policies::parse(&POLICIES.parse::<toml::Table>().context("read the policies")?, None)?;
        let keys = Arc::new(Keys::open(data).context("open the keys")?);
        let store = Arc::new(Store::open(data).context("open the store")?);
        let (shutdown, tasks, life) = (CancellationToken::new(), TaskTracker::new(), Arc::<Life>::default());
        let (observed_sender, observed) = mpsc::channel(16);
        let planner = Planner::new(store.clone(), data, PlanBudget { part, ..PlanBudget::default() })?;
        let records = Arc::new(Mortal { store: store.clone(), life: life.clone() });
        let fleet = Fleet::start(records, keys.clone(), observed_sender, shutdown.clone(), &tasks)?;
        let watch = Arc::new(Watch::start(tree, data, POLL)?);
        let audit = Audit::open(data).context("open the audit")?;
        let mut sealer = Sealer::open(Parts {
            source: Box::new(WorkTree::new(tree.to_path_buf(), watch)),
            options: ScanOptions { allow_mass_deletion: true, ..ScanOptions::default() },
            store: store.clone(),
            keys: keys.clone(),
            audit: audit.clone(),
            retention: Default::default(),
            policies: Arc::new(policies),
            fleet: fleet.clone(),
            gate: CollectionGate::default(),
            cancel: shutdown.clone(),
        })?;
        if let Some(current) = sealer.current() {
            fleet.publish(current.clone(), sealer.current_plan().clone());
        }
        sealer.source().take_changes();
        if let Some(publishing) = publishing {
            let parts = (store.clone(), keys.clone(), planner.clone());
            sealer = publish(sealer, publishing, parts, data, (&fleet, &shutdown, &tasks))?;
        }
        let (limit, collected, locations) = (None, None, None);
        let services = Services { keys, fleet, planner, audit, limit, collected, locations };
        Ok(Self { services, sealer, observed, store, life, shutdown, tasks })
    }

    /// Has the process die at the given write of the fleet's records, from now on; 0: at none.
    pub fn dies_at(&self, step: u64, after: bool) {
        self.life.after.store(after, Ordering::Relaxed);
        self.life.left.store(step, Ordering::Relaxed);
    }

    /// Whether the process is dead, and has to be [ended](Self::end).
    pub fn is_dead(&self) -> bool {
        self.life.killed.load(Ordering::Relaxed)
    }

    /// Ends the origin, orderly or as SIGKILL would. Its connections must have been cut before.
    pub async fn end(self, orderly: bool) -> anyhow::Result<()> {
        let Self { services, sealer, observed, store, life, shutdown, tasks } = self;
        life.killed.fetch_or(!orderly, Ordering::Relaxed);
        services.planner.stop();
        shutdown.cancel();
        tasks.close();
        tasks.wait().await;
        drop((services, sealer, observed));
        // An update being encoded ends soon.
        for _ in 0..20_000 {
            if Arc::strong_count(&store) == 1 {
                return Ok(());
            }
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_micros(200));
        }
        anyhow::bail!("the store of an origin that ended is still in use")
    }
}

/// Replaces `to` by a copy of the directory `from`.
pub fn copy_directory(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    for item in walkdir::WalkDir::new(from) {
        let item = item?;
        let target: PathBuf = to.join(item.path().strip_prefix(from)?);
        if item.file_type().is_dir() {
            std::fs::create_dir_all(&target)?;
            std::fs::set_permissions(&target, item.metadata()?.permissions())?;
        } else if item.file_type().is_file() {
            std::fs::copy(item.path(), &target)?;
        }
    }
    Ok(())
}

/// Fences commits where wanted, and starts to publish.
fn publish(
    sealer: Sealer,
    publishing: Publishing,
    (store, keys, planner): (Arc<Store>, Arc<Keys>, Planner),
    data: &Path,
    (fleet, shutdown, tasks): (&Fleet, &CancellationToken, &TaskTracker),
) -> anyhow::Result<Sealer> {
    let Publishing { bucket, fenced } = publishing;
    let fence = fenced.then(|| FencedCommits::open(bucket.clone(), &store, keys.clone())).transpose()?;
    let fence = fence.map(|fence| fence.within(Duration::ZERO));
    let deposed = Deposed::default();
    let url = "file:///in-memory".parse()?;
    let options = PublishOptions { url, read: None, fenced, deposed: deposed.clone(), bwlimit: None };
    let publisher = Publisher { bucket, store, keys, planner, data: data.to_owned(), options };
    let (_, task) = publisher.start(fleet.rollout(), shutdown.clone());
    tasks.spawn(task);
    Ok(sealer.with_fence(fence, deposed))
}
