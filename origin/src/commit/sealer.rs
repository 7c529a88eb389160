//! The blocking side of a commit: flush, scan, store, sign, seal. One at a time, all calls block.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use syncd_shared::generation::GenerationError;
use syncd_shared::limits::LABEL_MAX_BYTES;
use syncd_shared::progress::Progress;
use syncd_shared::{Generation, GenerationNumber, RootEntry, RootHash, SignedGeneration, TreePath};

use crate::fleet::Fleet;
use crate::keys::Keys;
use crate::scan::{self, Notices, Scan, ScanError, ScanOptions, Scope};
use tokio_util::sync::CancellationToken;

use crate::store::{Retention, SealError, Store, StoreError};
use crate::watch::{Hints, Reason, Watch};

use super::scan_base::ScanBase;

/// Why nothing was sealed. The last generation stands.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The tree can't be read as one consistent state.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// The store could not be read.
    #[error("read the store")]
    Store(#[from] StoreError),
    /// A generation in the store that this origin did not sign.
    #[error("read a generation of the store")]
    Generation(#[from] GenerationError),
    /// The generation could not be made durable.
    #[error("seal the generation")]
    Seal(#[from] SealError),
    /// No such generation is retained.
    #[error("generation {number} is not retained; `syncd-origin history` lists those that are")]
    UnknownGeneration {
        /// The number asked for.
        number: GenerationNumber,
    },
    /// A label that does not fit a generation record.
    #[error("label of {actual} bytes exceeds {LABEL_MAX_BYTES}")]
    Label {
        /// Its length.
        actual: usize,
    },
    /// Generation numbers have come to their end.
    #[error("no generation number is left after {last}")]
    NoNumberLeft {
        /// The last number.
        last: GenerationNumber,
    },
    /// The origin stops.
    #[error("the origin is stopping; try again when it is back")]
    Stopping,
}

/// What a job came to.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// A new generation is durable and announced.
    Sealed(SignedGeneration),
    /// The tree is what the current generation says.
    Unchanged(SignedGeneration),
    /// The tree was scanned and nothing published.
    Scanned {
        /// Whether it differs from the current generation.
        unpublished: bool,
    },
}

/// Everything that sealing needs.
pub struct Sealer {
    tree: PathBuf,
    options: ScanOptions,
    store: Arc<Store>,
    watch: Arc<Watch>,
    keys: Arc<Keys>,
    fleet: Fleet,
    notices: Notices,
    cancel: CancellationToken,
    /// The tree as last scanned, which may not be published yet.
    base: Option<ScanBase>,
    current: Option<SignedGeneration>,
    /// The highest generation of ours that an agent holds and we don't.
    observed: Option<SignedGeneration>,
    /// Directories whose times alone changed: they go along with the next scan of anything else.
    times_only: BTreeSet<TreePath>,
    /// Directories with files that must be read again.
    racy: BTreeSet<TreePath>,
}

impl Sealer {
    /// Takes up where the store says that the last run ended.
    pub fn open(
        tree: PathBuf,
        options: ScanOptions,
        store: Arc<Store>,
        watch: Arc<Watch>,
        keys: Arc<Keys>,
        fleet: Fleet,
        cancel: CancellationToken,
    ) -> Result<Self, CommitError> {
        let base = ScanBase::load(&store)?;
        let current = store.latest()?.map(|g| keys.verify(&g.record, &g.signature)).transpose()?;
        Ok(Self {
            tree,
            options,
            store,
            watch,
            keys,
            fleet,
            notices: Notices::default(),
            cancel,
            base,
            current,
            observed: None,
            times_only: BTreeSet::new(),
            racy: BTreeSet::new(),
        })
    }

    /// The current generation.
    pub fn current(&self) -> Option<&SignedGeneration> {
        self.current.as_ref()
    }

    /// Whether files were read so soon after they changed that they must be read again.
    pub fn racy(&self) -> bool {
        !self.racy.is_empty()
    }

    /// What an operator must know before anything is published by itself.
    pub fn waits_for_operator(&self) -> Option<String> {
        let observed = self.observed.as_ref()?;
        Some(format!(
            "agents hold generation {}, which this origin does not know: it was restored from an older copy. Nothing is \
             published until `syncd-origin commit` publishes the tree as it is now, numbered past it",
            observed.number()
        ))
    }

    /// Brings stat records and store up to the tree. `hints` is emptied of what was served.
    pub fn scan(&mut self, hints: &mut Hints) -> Result<Outcome, CommitError> {
        if self.base.is_none() || self.current.is_none() {
            hints.merge(Hints::everything(Reason::Start));
        }
        self.run(hints, Publish::No)
    }

    /// Publishes what changed since the last scan, unless an operator is waited for.
    pub fn publish(&mut self, hints: &mut Hints) -> Result<Outcome, CommitError> {
        let publish = if self.observed.is_some() { Publish::No } else { Publish::Changes };
        self.run(hints, publish)
    }

    /// Publishes the tree as it is at the time of the call.
    pub fn commit(
        &mut self,
        hints: &mut Hints,
        label: String,
        allow_mass_deletion: bool,
    ) -> Result<Outcome, CommitError> {
        if label.len() > LABEL_MAX_BYTES {
            return Err(CommitError::Label { actual: label.len() });
        }
        self.watch.flush();
        hints.merge(self.watch.take());
        self.options.allow_mass_deletion = allow_mass_deletion;
        let result = self.run(hints, Publish::Tree { label });
        self.options.allow_mass_deletion = false;
        result
    }

    /// Publishes the tree of an earlier generation under a new number.
    pub fn rollback(&mut self, number: GenerationNumber) -> Result<Outcome, CommitError> {
        let target = self.store.generation(number)?.ok_or(CommitError::UnknownGeneration { number })?;
        let target = self.keys.verify(&target.record, &target.signature)?;
        if let Some(current) = &self.current
            && current.root_hash() == target.root_hash()
        {
            return Ok(Outcome::Unchanged(current.clone()));
        }
        let label = format!("rollback to {number}");
        let generation = self.next_generation(target.generation().root, label)?;
        self.store.writer()?.seal(&generation)?;
        Ok(self.sealed(generation))
    }

    /// A generation above ours, signed by our key, that an agent holds: its number is never used again. Where the tree
    /// is what it says, its record is taken back.
    pub fn observe(&mut self, observed: SignedGeneration, hints: &mut Hints) -> Result<Outcome, CommitError> {
        let above = |g: &SignedGeneration| g.number() >= observed.number();
        if self.current.as_ref().is_some_and(above) || self.observed.as_ref().is_some_and(above) {
            return Ok(Outcome::Scanned { unpublished: false });
        }
        tracing::warn!(
            generation = %observed.number(),
            "an agent holds a generation that this origin sealed and no longer knows: restored from an older copy?"
        );
        self.observed = Some(observed);
        self.run(hints, Publish::No)
    }

    /// Retires old generations and rewrites packs that hold too little that is still needed.
    pub fn collect_garbage(&mut self) -> Result<Outcome, CommitError> {
        let now_ms = unix_ms(SystemTime::now());
        let keep = self.fleet.retained_roots();
        let tree = self.base.as_ref().map(|b| b.root);
        let report = self.store.collect_garbage(Retention::default(), &keep, tree.as_ref(), now_ms)?;
        if !report.damaged_packs.is_empty() {
            tracing::error!(packs = ?report.damaged_packs, "the store is damaged: run `syncd-origin check`");
        }
        tracing::debug!(?report, "collected garbage");
        Ok(Outcome::Scanned { unpublished: false })
    }

    fn run(&mut self, hints: &mut Hints, publish: Publish) -> Result<Outcome, CommitError> {
        let mut scope = Scope::from(std::mem::take(hints));
        if matches!(publish, Publish::No) || !scope.is_empty() {
            scope.add(std::mem::take(&mut self.racy));
        }
        if scope.is_empty() {
            return self.without_changes(publish);
        }
        scope.add(std::mem::take(&mut self.times_only));
        let result = self.scan_and_seal(scope, publish);
        if result.is_err() {
            // A failed scan gives back to the watch what it was to look at.
            hints.merge(self.watch.take());
        }
        result
    }

    /// Nothing is dirty: no walk, no writer.
    fn without_changes(&mut self, publish: Publish) -> Result<Outcome, CommitError> {
        let Some(base) = &self.base else { return Ok(Outcome::Scanned { unpublished: false }) };
        let (root, base_unpublished) = (base.root, base.unpublished);
        let current_root = self.current.as_ref().map(SignedGeneration::root_hash);
        if let Some(outcome) = self.adopt(&root)? {
            return Ok(outcome);
        }
        match (&self.current, publish.seals(root.hash(), current_root, base_unpublished)) {
            (Some(current), None) if !matches!(publish, Publish::No) => {
                Ok(Outcome::Unchanged(current.clone()))
            }
            (_, None) => Ok(Outcome::Scanned { unpublished: base_unpublished }),
            (_, Some(label)) => {
                let generation = self.next_generation(root, label)?;
                let writer = self.store.writer()?;
                let base = ScanBase { root, unpublished: false };
                base.put(&writer)?;
                writer.seal(&generation)?;
                self.base = Some(base);
                Ok(self.sealed(generation))
            }
        }
    }

    fn scan_and_seal(&mut self, scope: Scope, publish: Publish) -> Result<Outcome, CommitError> {
        let started = std::time::Instant::now();
        let everything = matches!(scope, Scope::Everything);
        let writer = self.store.writer()?;
        let progress = if everything { Progress::start("scanning", None) } else { Progress::hidden() };
        let base = self.base.as_ref().map(|b| b.root);
        let scan = Scan {
            tree: &self.tree,
            writer: &writer,
            watch: Some(&self.watch),
            options: &self.options,
            notices: &self.notices,
            progress: &progress,
            cancel: &self.cancel,
        };
        let outcome = scan::scan(&scan, base, scope)?;
        progress.finish();
        tracing::debug!(
            files_read = outcome.files_read,
            bytes_read = outcome.bytes_read,
            directories = outcome.directories_listed,
            changed = outcome.changed,
            elapsed_ms = started.elapsed().as_millis() as u64,
            "scanned"
        );
        self.racy = outcome.racy;
        self.times_only = outcome.times_only;
        let root = outcome.root;
        let unpublished = outcome.changed || self.base.as_ref().is_none_or(|b| b.unpublished);
        let current_root = self.current.as_ref().map(SignedGeneration::root_hash);
        if let Some(label) = publish.seals(root.hash(), current_root, unpublished) {
            let generation = self.next_generation(root, label)?;
            let base = ScanBase { root, unpublished: false };
            base.put(&writer)?;
            writer.seal(&generation)?;
            self.base = Some(base);
            return Ok(self.sealed(generation));
        }
        let base = ScanBase { root, unpublished };
        if outcome.records_changed || self.base != Some(base) {
            base.put(&writer)?;
            writer.save()?;
        }
        self.base = Some(base);
        if let Some(outcome) = self.adopt(&root)? {
            return Ok(outcome);
        }
        match &self.current {
            Some(current) if !matches!(publish, Publish::No) => Ok(Outcome::Unchanged(current.clone())),
            _ => Ok(Outcome::Scanned { unpublished }),
        }
    }

    /// Takes back the record of an observed generation where the tree (or our current generation) is what it says.
    fn adopt(&mut self, root: &RootEntry) -> Result<Option<Outcome>, CommitError> {
        let Some(observed) = &self.observed else { return Ok(None) };
        let ours = self.current.as_ref().map(SignedGeneration::root_hash);
        if observed.root_hash() != root.hash() && Some(observed.root_hash()) != ours {
            return Ok(None);
        }
        let generation = observed.clone();
        let writer = self.store.writer()?;
        if observed.root_hash() == root.hash() {
            let base = ScanBase { root: *root, unpublished: false };
            base.put(&writer)?;
            self.base = Some(base);
        }
        writer.seal(&generation)?;
        tracing::info!(generation = %generation.number(), "took back a generation that the fleet has and the tree still is");
        Ok(Some(self.sealed(generation)))
    }

    fn next_generation(&self, root: RootEntry, label: String) -> Result<SignedGeneration, CommitError> {
        let last = self.current.iter().chain(&self.observed).map(SignedGeneration::number).max();
        let number = match last {
            None => GenerationNumber::FIRST,
            Some(last) => last.next().ok_or(CommitError::NoNumberLeft { last })?,
        };
        let generation = Generation {
            tree_id: self.keys.tree_id(),
            number,
            root,
            parent: self.current.as_ref().map(SignedGeneration::number),
            created_ms: unix_ms(SystemTime::now()),
            label,
        };
        Ok(generation.sign(self.keys.signing_key()))
    }

    /// After it is durable, and not before: the fleet hears of it.
    fn sealed(&mut self, generation: SignedGeneration) -> Outcome {
        self.current = Some(generation.clone());
        if self.observed.as_ref().is_some_and(|o| o.number() <= generation.number()) {
            self.observed = None;
        }
        self.fleet.announce(generation.clone());
        Outcome::Sealed(generation)
    }
}

/// Whether a scan is followed by sealing.
enum Publish {
    /// No.
    No,
    /// If the tree changed since it was last published.
    Changes,
    /// If the tree is anything but the current generation.
    Tree {
        /// Of the new generation.
        label: String,
    },
}

impl Publish {
    /// The label to seal with, if it is to be sealed.
    fn seals(&self, root: RootHash, current: Option<RootHash>, unpublished: bool) -> Option<String> {
        match self {
            Self::No => None,
            _ if current == Some(root) => None,
            Self::Changes => (unpublished || current.is_none()).then(String::new),
            Self::Tree { label } => Some(label.clone()),
        }
    }
}

fn unix_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
