//! Has targets built: chooses the slot and the base, and frees space.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;

use syncd_shared::diff::{Change, Comparison, Released};
use syncd_shared::wire::Frame;
use syncd_shared::{Kind, Progress, RootEntry, RootHash, SignedGeneration, TreePath};

use crate::build::first_sync::FirstSync;
use crate::build::incoming::Incoming;
use crate::build::inodes::InodeLists;
use crate::build::missing_entries::MissingEntries;
use crate::build::patch::Patch;
use crate::build::plan::Plan;
use crate::build::{Job, StageError, Staged, manifest, space};
use crate::replica::Replica;
use crate::replica::base::Base;
use crate::source::Source;
use crate::state::cursor::DirCursor;
use crate::state::disk::Dir;
use crate::state::history::Touched;
use crate::state::record::Record;
use crate::state::syncing::Syncing;

/// An update that came with its announcement, and the root that it starts from.
type Inline = Option<(RootHash, Vec<Frame>)>;

/// The tree that an update is applied to.
struct Ground {
    slot: u64,
    /// Nothing in the tree has been changed yet.
    is_spare: bool,
    /// Copy of the signed record, if it was written ahead.
    signed: Option<Syncing>,
    /// Entries that the live tree cannot provide.
    missing: MissingEntries,
}

impl Replica {
    /// Builds `target` beside the live tree. `inline` is an update that came with the announcement, and the
    /// root that it starts from. Blocks, and checks `cancel` often.
    ///
    /// An error leaves the live tree unchanged and keeps the content that arrived.
    pub fn stage(
        &mut self,
        target: &SignedGeneration,
        inline: Option<(RootHash, Vec<Frame>)>,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Staged, StageError> {
        self.slots.may_activate(target)?;
        self.slots.unstage();
        self.forget_lost_live()?;
        let sync = self.slots.layout().staging.reopen()?;
        let job = Job { target, progress, cancel };
        if self.slots.live().is_some_and(|live| live.number() == target.number()) {
            return Ok(Staged::new(target, None, Some(target.number().get()), sync));
        }
        if let Some(staged) = self.stage_held(job, &sync)? {
            return Ok(staged);
        }
        if self.slots.held().next().is_none() {
            let built = self.build_first(job, source, sync);
            if matches!(&built, Err(StageError::Disk(error)) if error.is_denied()) {
                // A leftover tree contains something foreign, so the next attempt starts from nothing.
                self.discard_buildings()?;
            }
            return built;
        }
        self.build(job, inline, source, None, sync)
    }

    /// If the live tree was deleted behind the agent's back, there is nothing to build on: everything is
    /// staged anew.
    fn forget_lost_live(&mut self) -> Result<(), StageError> {
        let live = self.slots.live().map(|live| live.number().get());
        self.slots.forget_absent(self.options.clock.now())?;
        if let (Some(live), None) = (live, self.slots.live()) {
            tracing::warn!(generation = live, "the live tree is gone: it is fetched again");
            self.upkeep.history.forget();
        }
        Ok(())
    }

    /// Builds the target when nothing is live and no other generation is held.
    fn build_first(
        &mut self,
        job: Job<'_>,
        source: &mut dyn Source,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let trees = self.slots.trees();
        let (slot, resumes) = self.first_slot()?;
        let mut gives_way = || self.lost_found_gives_way(job.cancel).map(drop);
        let first = FirstSync { trees: &trees, job, slot, resumes };
        first.run(&mut gives_way, source)?;
        self.slots.stage(slot);
        Ok(Staged { changed: None, ..Staged::new(job.target, Some(slot), None, sync) })
    }

    /// Slot for a first sync, and whether an earlier attempt was interrupted in it.
    fn first_slot(&mut self) -> Result<(u64, bool), StageError> {
        self.slots.end_parts()?;
        let buildings = self.slots.buildings();
        for slot in buildings.iter().skip(1) {
            self.slots.discard(*slot)?;
        }
        match buildings.first() {
            Some(slot) => Ok((*slot, true)),
            None => Ok((self.slots.make()?, false)),
        }
    }

    /// Builds the target from the live tree. When healing, every name is checked, and files at `distrusted`
    /// are not linked.
    pub(crate) fn build(
        &mut self,
        job: Job<'_>,
        inline: Inline,
        source: &mut dyn Source,
        distrusted: Option<&HashSet<TreePath>>,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let built = self.build_once(job, inline, source, distrusted, sync);
        self.upkeep.disturbed = matches!(&built, Err(StageError::Disk(error)) if error.is_disturbed());
        built
    }

    fn build_once(
        &mut self,
        job: Job<'_>,
        inline: Inline,
        source: &mut dyn Source,
        distrusted: Option<&HashSet<TreePath>>,
        sync: Dir,
    ) -> Result<Staged, StageError> {
        let from = self.slots.live().map(|live| live.generation().root);
        let may_be_spare = inline.is_some() && distrusted.is_none() && !self.upkeep.disturbed;
        let early = self.early_spare(job, from.filter(|_| may_be_spare))?;
        let (record, limits) = (self.slots.record().clone(), self.options.part);
        let to = job.target.generation().root;
        let manifest = manifest::obtain(&record, from.as_ref(), &to, limits, inline, source)?;
        let (comparison, update) = (manifest.comparison, manifest.update);
        let mut released = comparison.released()?;
        let incoming = Incoming::open(self.slots.layout(), self.slots.owners())?;
        let kept = early.as_ref().map(|(slot, _)| *slot);
        self.make_ready(&comparison, &mut released, kept, &incoming, job.cancel)?;
        let mut ground = self.ground(job, from.as_ref(), early, distrusted)?;
        let missing = std::mem::take(&mut ground.missing);
        // The update carries only differences, so missing entries come by the general path.
        let mut update = update.filter(|_| missing.is_empty());
        let touched = if missing.is_empty() { Touched::by(&comparison)? } else { None };
        let (trees, renames) = (self.slots.trees(), comparison.renamed_directories());
        let mut inodes = InodeLists::new(&record, from.as_ref(), &to, renames)?;
        let durable_basis = ground.is_spare && renames.is_empty();
        let (mut done, mut patch, mut changed) = (Progress::default(), None, None);
        let of_update = comparison.parts().map(|part| Ok::<_, StageError>((part?, false)));
        let filling = missing.parts(&record, renames, &to, limits)?.map(|part| Ok((part?, true)));
        for part in of_update.chain(filling) {
            let (part, are_missing) = part?;
            let mut plan = Plan::make(&trees, from.as_ref(), &part, &mut released, &incoming, are_missing)?;
            let progress = |now| (job.progress)(done.and(now));
            let so_far = Job { progress: &progress, ..job };
            let came = plan.fetch(&trees, so_far, &mut update, source)?;
            done = done.and(came);
            job.go_on()?;
            let patch = match &mut patch {
                Some(patch) => patch,
                none => {
                    let tree = self.break_ground(job, &mut ground, part.is_last && missing.is_empty())?;
                    none.insert(Patch::start(&trees.layout, trees.owners, ground.slot, renames, tree)?)
                }
            };
            let placed = patch.part(&trees.layout, &part.changes, &mut plan.supply(&trees)?)?;
            incoming.end_part();
            inodes.add(&part.changes, &placed)?;
            if comparison.is_small() && !are_missing {
                changed = Some(paths_of(&part.changes));
            }
        }
        patch.map_or(Ok(()), Patch::finish)?;
        self.slots.end_parts()?;
        incoming.clear(&trees.layout)?;
        self.slots.stage(ground.slot);
        let basis = self.slots.live().map(|live| live.number().get());
        let Ground { slot, signed, .. } = ground;
        let staged = Staged::new(job.target, Some(slot), basis, sync);
        Ok(Staged { durable_basis, changed, touched, signed, inodes: inodes.finish()?, ..staged })
    }

    /// The spare at `root` on which an update from an announcement will be built. Writes the copy of its
    /// signed record ahead of the rest.
    fn early_spare(
        &self,
        job: Job<'_>,
        root: Option<RootEntry>,
    ) -> Result<Option<(u64, Syncing)>, StageError> {
        let Some(slot) = root.and_then(|root| self.slots.spare_at(&root)) else { return Ok(None) };
        Ok(Some((slot, self.slots.keep_signed(slot, job.target)?)))
    }

    /// Chooses the tree to build in. `early` is a spare that was already chosen.
    fn ground(
        &mut self,
        job: Job<'_>,
        from: Option<&RootEntry>,
        early: Option<(u64, Syncing)>,
        distrusted: Option<&HashSet<TreePath>>,
    ) -> Result<Ground, StageError> {
        let spare =
            |slot, signed| Ground { slot, is_spare: true, signed, missing: MissingEntries::default() };
        if let Some((slot, signed)) = early {
            return Ok(spare(slot, Some(signed)));
        }
        let (slot, missing, farm) = match self.base(from, distrusted, job.cancel)? {
            Base::Spare(slot) => return Ok(spare(slot, None)),
            Base::Building { slot, missing, farm } => (slot, missing, farm),
        };
        if farm && distrusted.is_none() {
            self.count_spare_miss();
        }
        if !missing.is_empty() {
            tracing::warn!(
                paths = missing.len(),
                "live files are not what was activated: they are not used again"
            );
        }
        Ok(Ground { slot, is_spare: false, signed: None, missing })
    }

    /// Notes that the tree is about to be changed, so that nobody trusts it. An update in parts is recorded
    /// as partial.
    fn break_ground(&mut self, job: Job<'_>, ground: &mut Ground, at_once: bool) -> Result<Dir, StageError> {
        if std::mem::take(&mut ground.is_spare) {
            if ground.signed.is_none() {
                ground.signed = Some(self.slots.keep_signed(ground.slot, job.target)?);
            }
            self.slots.open_up(ground.slot)?;
        }
        if !at_once {
            self.slots.begin_parts(ground.slot)?;
        }
        Ok(self.slots.open(ground.slot)?)
    }

    /// Takes over leftovers of earlier attempts, and makes sure that the update fits. `kept` is the spare
    /// that it is built on.
    fn make_ready(
        &mut self,
        comparison: &Comparison<&Record>,
        released: &mut Released<'_, &Record>,
        kept: Option<u64>,
        incoming: &Incoming,
        cancel: &AtomicBool,
    ) -> Result<(), StageError> {
        let from = self.slots.live().map(|live| live.generation().root);
        self.salvage(comparison, incoming)?;
        self.slots.end_parts()?;
        let space = self.slots.layout().staging.space()?;
        let mut demand = space::Demand::of(comparison, released, space.block_bytes)?;
        if let Some(from) = &from
            && self.slots.spares().next().is_none()
            && self.slots.buildings().is_empty()
        {
            demand.add_farm(from, space.block_bytes);
        }
        if demand.check(&space, space::Demand::default()).is_ok() {
            return Ok(());
        }
        // Leftovers of this target count as present; those of others are removed.
        incoming.purge(self.slots.layout(), comparison)?;
        if from.is_none() {
            self.discard_buildings()?;
        }
        let fits =
            |replica: &Self| demand.check(&replica.slots.layout().staging.space()?, incoming.present()?);
        self.make_room(kept, &fits, cancel)
    }

    /// Takes new files out of trees in which an earlier attempt was interrupted.
    fn salvage(&self, comparison: &Comparison<&Record>, incoming: &Incoming) -> Result<(), StageError> {
        for slot in self.slots.buildings().into_iter().chain(self.slots.partials()) {
            let mut tree = DirCursor::new(self.slots.open(slot)?);
            for part in comparison.parts() {
                for change in part?.changes.iter() {
                    let (Change::Added { path, entry } | Change::Modified { path, to: entry, .. }) = change
                    else {
                        continue;
                    };
                    if let Kind::File { content, size } = entry.kind
                        && size > 0
                        && let Some((parent, name)) = path.split_last()
                        && let Ok(dir) = tree.at(&parent)
                        && !incoming.has(content, size)?
                    {
                        match incoming.salvage(content, size, dir, name.as_bytes()) {
                            // A web user changes the tree meanwhile: what is lost is fetched again.
                            Err(StageError::Disk(error)) if error.is_disturbed() => {}
                            salvaged => drop(salvaged?),
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Paths of changes, each once.
fn paths_of(changes: &[Change]) -> Vec<TreePath> {
    let mut paths: Vec<_> = changes.iter().map(|change| change.path().clone()).collect();
    paths.dedup();
    paths
}
