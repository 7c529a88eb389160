//! Takes a spare to build an update on.
//!
//! Before a spare is changed it must durably be no spare any more: its name is changed and `staging` synced. Nothing waits
//! for that on the path of a commit where background work has done it before ([`Replica::draw_ahead`]): to this process
//! `drawn-K` is a spare, to any other one it may have been changed and is not trusted. It is named `spare-K` again when the
//! process ends in order.
//!
//! The signed record's copy, which every activation needs, is known as soon as an update is announced, so a thread syncs it
//! while a small update is read.

use std::sync::Arc;
use std::thread::JoinHandle;

use syncd_shared::{RootEntry, SignedGeneration};

use crate::disk::DiskError;
use crate::replica::Replica;
use crate::stage::{StageError, building, drawn, spare};

/// A spare that an update is to be built on, and nothing of it was touched yet.
pub(crate) struct Draw {
    pub slot: u64,
    /// Its name was durable before.
    ahead: bool,
    /// The signed record, and the names where they were not durable.
    syncing: Syncing,
}

/// Something that a thread has the disk write; `None`: it is durable. Dropped, it is waited for.
#[derive(Debug, Default)]
pub(crate) struct Syncing(Option<JoinHandle<Result<(), DiskError>>>);

impl Syncing {
    /// Has it done by a thread, or at once where there is none to be had.
    fn start(run: impl Fn() -> Result<(), DiskError> + Send + Sync + 'static) -> Result<Self, DiskError> {
        let shared = Arc::new(run);
        let thread = shared.clone();
        match std::thread::Builder::new().name("draw".into()).spawn(move || thread()) {
            Ok(thread) => Ok(Self(Some(thread))),
            Err(_) => shared().map(|()| Self(None)),
        }
    }

    /// Waits until it is durable.
    pub fn wait(mut self) -> Result<(), DiskError> {
        let done = self.0.take().map(JoinHandle::join);
        done.map_or(Ok(()), |joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for Syncing {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Whoever drops it has an error of its own to tell.
            let _ = thread.join();
        }
    }
}

impl Replica {
    /// Draws a spare at the live root for an update that is still to come, durably; whether there was one to draw.
    pub(crate) fn draw_ahead(&mut self, live: &RootEntry) -> Result<bool, DiskError> {
        let is_drawn = |(slot, root): (&u64, &RootEntry)| root == live && self.upkeep.drawn.contains(slot);
        if self.known.spares.iter().any(is_drawn) {
            return Ok(false);
        }
        let Some(slot) = self.spare_at(live) else { return Ok(false) };
        self.name_drawn(slot)?;
        let synced = self.sync_staging();
        if synced.is_err() {
            self.forget_spare(slot);
        }
        synced.map(|()| true)
    }

    /// Durable once `staging` is synced.
    fn name_drawn(&mut self, slot: u64) -> Result<(), DiskError> {
        self.rename_spare(slot, &spare(slot), &drawn(slot))?;
        self.upkeep.drawn.insert(slot);
        Ok(())
    }

    /// Begins to take the spare for `target`.
    pub(crate) fn draw(&mut self, slot: u64, target: &SignedGeneration) -> Result<Draw, StageError> {
        let ahead = self.upkeep.drawn.contains(&slot);
        if !ahead {
            self.name_drawn(slot)?;
        }
        let syncing = self.sync_signed(target, !ahead);
        if !ahead && syncing.is_err() {
            self.doubt(slot);
        }
        Ok(Draw { slot, ahead, syncing: syncing? })
    }

    /// Whether its name is durable is not known.
    fn doubt(&mut self, slot: u64) {
        self.forget_spare(slot);
        self.upkeep.unsettled = true;
    }

    /// Keeps the signed record, and has it synced; after it the names in `staging`, if so told.
    fn sync_signed(&self, target: &SignedGeneration, names: bool) -> Result<Syncing, DiskError> {
        let (staging, signed) = (self.layout.staging.reopen()?, self.layout.signed.reopen()?);
        self.keep_signed(target)?;
        let number = target.number().to_string().into_bytes();
        Syncing::start(move || {
            // The record has to be allocated; the journal's commit that this takes carries the names, too.
            signed.sync_file(&number)?;
            signed.sync_names()?;
            if names { staging.sync_names() } else { Ok(()) }
        })
    }

    /// The tree is `building-K` and may be changed. The signed record is still to be waited for.
    pub(super) fn take(&mut self, draw: Draw) -> Result<(u64, Syncing), StageError> {
        let Draw { slot, ahead, mut syncing } = draw;
        if !ahead {
            let synced = std::mem::take(&mut syncing).wait();
            if synced.is_err() {
                self.doubt(slot);
            }
            synced?;
        }
        self.rename_spare(slot, &drawn(slot), &building(slot))?;
        self.forget_spare(slot);
        self.record.set_spare(slot, None)?;
        Ok((slot, syncing))
    }

    /// What was drawn is not needed now; nothing in it was touched. It stays drawn for the next update.
    pub(super) fn give_back(&mut self, draw: Draw, target: &SignedGeneration) -> Result<(), StageError> {
        let Draw { slot, ahead, syncing } = draw;
        let synced = syncing.wait();
        if !ahead && synced.is_err() {
            self.doubt(slot);
        }
        synced?;
        let number = target.number().get();
        if self.known.accepted != Some(number) && !self.known.generations.contains_key(&number) {
            self.layout.signed.unlink(number.to_string().as_bytes())?;
        }
        Ok(())
    }

    /// It is none any more, whatever its name.
    pub(crate) fn forget_spare(&mut self, slot: u64) {
        self.known.spares.remove(&slot);
        self.upkeep.drawn.remove(&slot);
    }

    /// Gives drawn spares their names back, so that the next start knows them. After a power cut they have either name.
    pub(crate) fn name_spares(&mut self) -> Result<(), DiskError> {
        let staging = &self.layout.staging;
        for slot in std::mem::take(&mut self.upkeep.drawn) {
            if self.known.spares.contains_key(&slot) {
                staging.rename_new(&drawn(slot), staging, &spare(slot))?;
            }
        }
        Ok(())
    }
}
