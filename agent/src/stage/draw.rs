//! Takes a spare to build an update on.
//!
//! Before a spare is changed it must durably be no spare any more: its name is changed and `staging` synced. That, and the
//! signed record's copy that every activation needs, are known before anything of an update is read, so that a small one
//! has a thread sync them meanwhile. A spare that was drawn for nothing is untouched, and given back.

use std::thread::JoinHandle;

use syncd_shared::{RootEntry, SignedGeneration};

use crate::disk::{Dir, DiskError};
use crate::replica::Replica;
use crate::stage::{StageError, building, spare};

/// A spare that was drawn. Dropped, it waits for the disk.
pub(crate) struct Draw {
    /// It is `building-K` now.
    pub slot: u64,
    root: Option<RootEntry>,
    /// `None`: it was waited for.
    syncing: Option<Syncing>,
}

enum Syncing {
    Thread(JoinHandle<Result<(), DiskError>>),
    Done(Result<(), DiskError>),
}

impl Syncing {
    /// Has it done by a thread, or at once where there is none to be had.
    fn start(staging: Dir, signed: Dir, number: Vec<u8>) -> Self {
        let run = move || {
            // The record has to be allocated; the journal's commit that this takes carries the names, too.
            signed.sync_file(&number)?;
            signed.sync_names()?;
            staging.sync_names()
        };
        let shared = std::sync::Arc::new(run);
        let thread = shared.clone();
        match std::thread::Builder::new().name("draw".into()).spawn(move || thread()) {
            Ok(thread) => Self::Thread(thread),
            Err(_) => Self::Done(shared()),
        }
    }

    fn wait(self) -> Result<(), DiskError> {
        match self {
            Self::Thread(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Self::Done(result) => result,
        }
    }
}

impl Draw {
    fn wait(&mut self) -> Result<(), DiskError> {
        self.syncing.take().map_or(Ok(()), Syncing::wait)
    }
}

impl Drop for Draw {
    fn drop(&mut self) {
        if let Some(Syncing::Thread(thread)) = self.syncing.take() {
            // Whoever drops it has an error of its own to tell.
            let _ = thread.join();
        }
    }
}

impl Replica {
    /// Begins to take `spare-K` for `target`.
    pub(crate) fn draw(&mut self, slot: u64, target: &SignedGeneration) -> Result<Draw, StageError> {
        let staging = self.layout.staging.reopen()?;
        let signed = self.layout.signed.reopen()?;
        staging.rename_new(&spare(slot), &staging, &building(slot))?;
        let root = self.known.spares.remove(&slot);
        self.upkeep.drawn = Some(slot);
        self.keep_signed(target)?;
        let number = target.number().to_string().into_bytes();
        Ok(Draw { slot, root, syncing: Some(Syncing::start(staging, signed, number)) })
    }

    /// From here on the tree may be changed.
    pub(super) fn take(&mut self, mut draw: Draw) -> Result<u64, StageError> {
        self.upkeep.drawn = None;
        draw.wait()?;
        self.record.set_spare(draw.slot, None)?;
        Ok(draw.slot)
    }

    /// What was drawn is not needed; nothing in it was touched.
    pub(super) fn give_back(&mut self, mut draw: Draw, target: &SignedGeneration) -> Result<(), StageError> {
        self.upkeep.drawn = None;
        draw.wait()?;
        let staging = &self.layout.staging;
        // The record still has it as a spare. After a crash it is one or is not, by its name.
        staging.rename_new(&building(draw.slot), staging, &spare(draw.slot))?;
        self.known.spares.extend(draw.root.take().map(|root| (draw.slot, root)));
        let number = target.number().get();
        if self.known.accepted != Some(number) && !self.known.generations.contains_key(&number) {
            self.layout.signed.unlink(number.to_string().as_bytes())?;
        }
        Ok(())
    }
}
