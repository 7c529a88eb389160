//! Planted bugs, in a replica and a planner that lie. The oracle has to find them. The programs contain none
//! of them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use syncd_agent::build::Staged;
use syncd_agent::hooks::Changed;
use syncd_agent::replica::Replica;
use syncd_agent::session::worker::{
    BeforeSwitch, Decision, Failure, Inline, Maintenance, NotActivated, ReplicaState, ReplicaWork, Verified,
};
use syncd_agent::source::Source;
use syncd_shared::{Progress, SignedGeneration};
use walkdir::WalkDir;

/// A planted bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Plant {
    /// An agent switches back to an earlier generation.
    AcceptsLower,
    /// An agent reports a generation live before it is.
    ReportsEarly,
    /// An agent activates content that differs from what was signed.
    Unverified,
    /// An agent forgets the accepted generation at a restart.
    ForgetsAccepted,
    /// An agent leaves files of a failed update behind.
    Litters,
    /// The planner answers with the update to another root.
    WrongUpdate,
}

/// A replica with a planted bug.
pub struct Planted {
    replica: Replica,
    root: PathBuf,
    plant: Option<Plant>,
    early: Option<SignedGeneration>,
    /// Lets other events happen, or ends the thread.
    pause: Pause,
}

/// Waits until the scheduler continues.
pub type Pause = Box<dyn Fn() + Send>;

impl Planted {
    pub fn new(replica: Replica, root: PathBuf, plant: Option<Plant>, pause: Pause) -> Self {
        Self { replica, root, plant, early: None, pause }
    }

    /// Whether the bug acts now: after generation 2, so that an older one exists.
    fn is_due(&self, staged_number: u64) -> bool {
        staged_number > 2
    }

    fn switch_back(&self) {
        let numbers = self.replica.status().generations;
        if let [.., before, _] = numbers.as_slice() {
            let live = self.root.join("live");
            let slot = fs::read_link(self.root.join(format!("generations/{before}"))).unwrap_or_default();
            let _ = fs::remove_file(&live);
            let _ = symlink(slot.strip_prefix("..").unwrap_or(&slot), live);
        }
    }

    fn change_a_file(&self) {
        let live = self.root.join("live").canonicalize().unwrap_or_default();
        let mut files =
            WalkDir::new(live).into_iter().filter_map(Result::ok).filter(|i| i.file_type().is_file());
        if let Some(file) = files.find(|f| f.metadata().is_ok_and(|m| m.len() > 0)) {
            let mut content = fs::read(file.path()).unwrap_or_default();
            content[0] ^= 1;
            let _ = fs::write(file.path(), content);
        }
    }
}

impl ReplicaWork for Planted {
    type Staged = (Staged, SignedGeneration);

    fn state(&self) -> ReplicaState {
        let mut state = ReplicaWork::state(&self.replica);
        if let Some(early) = &self.early {
            state.live = Some(early.clone());
        }
        if self.plant == Some(Plant::ForgetsAccepted)
            && state.accepted.as_ref().is_some_and(|a| a.number().get() > 2)
        {
            state.accepted = None;
        }
        state
    }

    fn stage(
        &mut self,
        generation: &SignedGeneration,
        inline: Option<Inline>,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Self::Staged, Failure> {
        let staged = ReplicaWork::stage(&mut self.replica, generation, inline, source, progress, cancel);
        if staged.is_err() && self.plant == Some(Plant::Litters) {
            let _ = fs::write(self.root.join("staging/left-over"), "half a file");
        }
        Ok((staged?, generation.clone()))
    }

    fn activate(
        &mut self,
        (staged, generation): Self::Staged,
        before: &mut BeforeSwitch<'_>,
    ) -> Result<(), NotActivated<Self::Staged>> {
        let due = self.is_due(generation.number().get());
        if due && self.plant == Some(Plant::ReportsEarly) {
            self.early = Some(generation);
            return Ok(());
        }
        let pause = &self.pause;
        let mut paused = |occasion, changed: &Changed<'_>| {
            pause();
            before(occasion, changed)
        };
        let done = ReplicaWork::activate(&mut self.replica, staged, &mut paused);
        (self.pause)();
        match self.plant {
            Some(Plant::AcceptsLower) if due => self.switch_back(),
            Some(Plant::Unverified) if due => self.change_a_file(),
            _ => {}
        }
        done.map_err(|not| NotActivated { failure: not.failure, staged: not.staged.map(|s| (s, generation)) })
    }

    fn stage_return(
        &mut self,
        generation: &SignedGeneration,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Self::Staged, Failure> {
        let staged = ReplicaWork::stage_return(&mut self.replica, generation, source, progress, cancel)?;
        Ok((staged, generation.clone()))
    }

    fn decide(&mut self, decision: Decision) -> Result<(), Failure> {
        ReplicaWork::decide(&mut self.replica, decision)
    }

    fn bound(&mut self) {
        ReplicaWork::bound(&mut self.replica);
    }

    fn maintain(&mut self, cancel: &AtomicBool) -> Maintenance {
        ReplicaWork::maintain(&mut self.replica, cancel)
    }

    fn verify(
        &mut self,
        source: &mut dyn Source,
        progress: &dyn Fn(Progress),
        cancel: &AtomicBool,
    ) -> Result<Verified, Failure> {
        ReplicaWork::verify(&mut self.replica, source, progress, cancel)
    }
}
