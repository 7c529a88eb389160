//! Several sources of objects as one: each is asked for what those before it could not give.
//!
//! Order is preference; the last source is the one that has everything. Another source may lack an object
//! ("not here"), be unreachable, or send bytes whose hash is wrong:
//!
//! | failure | then |
//! | --- | --- |
//! | the root of an update is unknown | the next source is asked for the update |
//! | the source has the tree, and no update to it | everything is fetched by hash, from this source first |
//! | an answer names missing objects | the next source is asked for those, and the answer goes on |
//! | a call fails, or a request is not answered at all | the source is given up; the next gets all open requests |
//! | an answer breaks off | the source is given up, and this attempt fails as it would without a chain |
//! | [`Source::distrust`]: the receiver found a wrong hash | the source is given up for the next attempt |
//!
//! A source that was given up is not asked again for the same target, also by later chains with the same
//! [`GivenUp`]. Each is logged once. An error of the last source is returned unchanged.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use syncd_shared::text::error_chain;
use syncd_shared::wire::{Frame, ObjectsBatch};
use syncd_shared::{ContentHash, ObjectHash, RootHash, Totals};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{Batches, FetchError, Frames, Source, all_of};

/// Sources given up for a target. Kept from one attempt to the next.
#[derive(Clone, Default)]
pub(crate) struct GivenUp(Arc<Mutex<Option<ForTarget>>>);

/// The target, and the names of the sources given up for it.
type ForTarget = (RootHash, Vec<&'static str>);

impl GivenUp {
    fn has(&self, root: RootHash, name: &'static str) -> bool {
        lock(&self.0).as_ref().is_some_and(|(of, names)| *of == root && names.contains(&name))
    }

    fn add(&self, root: RootHash, name: &'static str, reason: &str) {
        if self.has(root, name) {
            return;
        }
        tracing::warn!(source = name, error = reason, "the source is given up for this generation");
        let mut known = lock(&self.0);
        match &mut *known {
            Some((of, names)) if *of == root => names.push(name),
            _ => *known = Some((root, vec![name])),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shared with the answers under way, which may have to ask.
#[derive(Clone)]
struct Link {
    name: &'static str,
    source: Arc<Mutex<Box<dyn Source>>>,
}

/// See the module.
pub(crate) struct Chain {
    links: Vec<Link>,
    given_up: GivenUp,
    /// Target of the last request, and the source that answered it.
    last: Option<(RootHash, &'static str)>,
}

impl Chain {
    /// Asks `sources`, each with its name for the log, in this order.
    pub(crate) fn new(
        given_up: GivenUp,
        sources: impl IntoIterator<Item = (&'static str, Box<dyn Source>)>,
    ) -> Self {
        let link = |(name, source)| Link { name, source: Arc::new(Mutex::new(source)) };
        Self { links: sources.into_iter().map(link).collect(), given_up, last: None }
    }

    /// The sources to ask for this target. The last source is always among them.
    fn open_to(&self, root: RootHash) -> Vec<Link> {
        let last = self.links.len().saturating_sub(1);
        let links = self.links.iter().enumerate();
        let links = links.filter(|(at, link)| *at == last || !self.given_up.has(root, link.name));
        links.map(|(_, link)| link.clone()).collect()
    }
}

impl Source for Chain {
    fn expect(&mut self, totals: &Totals) {
        self.links.iter().for_each(|link| lock(&link.source).expect(totals));
    }

    fn update(&mut self, from: RootHash, to: RootHash) -> Result<Frames, FetchError> {
        let mut links = self.open_to(to);
        let Some(last) = links.pop() else { return Err(FetchError::Disconnected(None)) };
        for link in links {
            self.last = Some((to, link.name));
            match lock(&link.source).update(from, to) {
                Ok(frames) => return Ok(self.watched(link.name, to, frames)),
                Err(error @ (FetchError::Superseded | FetchError::NoUpdate { .. })) => return Err(error),
                Err(FetchError::UnknownRoot { .. }) => {}
                Err(error) => self.given_up.add(to, link.name, &error_chain(&error)),
            }
        }
        self.last = Some((to, last.name));
        lock(&last.source).update(from, to)
    }

    fn objects(&mut self, root: RootHash, batches: Batches) -> Result<Frames, FetchError> {
        let links = self.open_to(root);
        let first = links.first().ok_or(FetchError::Disconnected(None))?;
        self.last = Some((root, first.name));
        if links.len() == 1 {
            return lock(&first.source).objects(root, batches);
        }
        let mut answers = Answers {
            links: links.into(),
            given_up: self.given_up.clone(),
            root,
            batches: Some(batches),
            open: VecDeque::new(),
            ask: None,
            frames: Box::new(std::iter::empty()),
            rest: None,
            is_begun: false,
            answered: 0,
        };
        answers.take_batches();
        answers.start()?;
        Ok(Box::new(answers))
    }

    fn distrust(&mut self) {
        if let Some((root, name)) = self.last {
            self.given_up.add(root, name, "what it sent does not have the hash that was asked for");
        }
        self.links.iter().for_each(|link| lock(&link.source).distrust());
    }
}

impl Chain {
    /// Gives the source up if its update breaks off. Everything can then be fetched by hash.
    fn watched(&self, name: &'static str, root: RootHash, frames: Frames) -> Frames {
        let given_up = self.given_up.clone();
        Box::new(frames.map(move |frame| {
            frame.map_err(|error| match error {
                FetchError::Superseded => error,
                error => {
                    given_up.add(root, name, &error_chain(&error));
                    FetchError::GivenUp
                }
            })
        }))
    }
}

/// Answers to requests by hash.
struct Answers {
    /// The source that is being asked, and those after it.
    links: VecDeque<Link>,
    given_up: GivenUp,
    root: RootHash,
    /// `None` once no further batch comes.
    batches: Option<Batches>,
    /// Batches without a complete answer.
    open: VecDeque<ObjectsBatch>,
    ask: Option<UnboundedSender<ObjectsBatch>>,
    frames: Frames,
    /// Answer with the objects that the source did not have, and how many sources were asked for them.
    rest: Option<(Frames, usize, ObjectsBatch)>,
    /// Whether a frame of the first open batch was taken.
    is_begun: bool,
    /// Batches answered, over all sources.
    answered: u64,
}

impl Answers {
    /// Takes the batches that were added since the last call, and passes them on.
    fn take_batches(&mut self) {
        while let Some(batches) = &mut self.batches {
            match batches.try_recv() {
                Ok(batch) => {
                    // A content that comes with the answer before its own would come twice after a change of
                    // source.
                    let batch = ObjectsBatch { early: false, ..batch };
                    if let Some(ask) = &self.ask {
                        let _ = ask.send(batch.clone());
                    }
                    self.open.push_back(batch);
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => (self.batches, self.ask) = (None, None),
            }
        }
    }

    /// Asks the first source that can be asked for all open batches.
    fn start(&mut self) -> Result<(), FetchError> {
        loop {
            let link = self.links.front().ok_or(FetchError::Disconnected(None))?.clone();
            let (ask, batches) = unbounded_channel();
            self.open.iter().for_each(|batch| drop(ask.send(batch.clone())));
            self.ask = self.batches.is_some().then_some(ask);
            let started = lock(&link.source).objects(self.root, batches);
            match started {
                Ok(frames) => {
                    self.frames = frames;
                    return Ok(());
                }
                Err(error) => self.go_on_without(error)?,
            }
        }
    }

    /// Gives up the source that is being asked. Fails with its error if there is no other.
    fn go_on_without(&mut self, error: FetchError) -> Result<(), FetchError> {
        if self.links.len() == 1 || matches!(error, FetchError::Superseded) {
            return Err(error);
        }
        self.give_up(0, &error);
        self.links.pop_front();
        Ok(())
    }

    /// Notes that a source is not to be asked again, unless it is the last.
    fn give_up(&self, at: usize, error: &FetchError) {
        let is_last = at.saturating_add(1) >= self.links.len();
        if let Some(link) = self.links.get(at).filter(|_| !is_last)
            && !matches!(error, FetchError::Superseded)
        {
            self.given_up.add(self.root, link.name, &error_chain(error));
        }
    }

    /// Handles the end of an answer: asks for what is missing, or returns the end.
    fn end_of(&mut self, missing: Vec<[u8; 32]>, asked: usize, of: ObjectsBatch) -> Option<Frame> {
        let next = self.links.get(asked).filter(|_| !missing.is_empty());
        let Some(link) = next.cloned() else {
            self.open.pop_front();
            self.is_begun = false;
            self.answered = self.answered.saturating_add(1);
            return Some(Frame::End { request: self.answered.saturating_sub(1), missing });
        };
        tracing::debug!(source = link.name, objects = missing.len(), "asked for objects that were missing");
        let batch = only(&of, &missing);
        let asked_of = lock(&link.source).objects(self.root, all_of([batch.clone()]));
        let frames = asked_of.unwrap_or_else(|error| Box::new(std::iter::once(Err(error))));
        self.rest = Some((frames, asked.saturating_add(1), batch));
        None
    }

    fn next_frame(&mut self) -> Option<Result<Frame, FetchError>> {
        loop {
            self.take_batches();
            if let Some((mut frames, asked, of)) = self.rest.take() {
                match frames.next().unwrap_or(Err(FetchError::Disconnected(None))) {
                    Ok(Frame::End { missing, .. }) => match self.end_of(missing, asked, of) {
                        Some(end) => return Some(Ok(end)),
                        None => continue,
                    },
                    Err(error) => {
                        // The next attempt does not ask it again.
                        self.give_up(asked.saturating_sub(1), &error);
                        return Some(Err(error));
                    }
                    frame => {
                        self.rest = Some((frames, asked, of));
                        return Some(frame);
                    }
                }
            }
            let of = self.open.front()?.clone();
            match self.frames.next().unwrap_or(Err(FetchError::Disconnected(None))) {
                Ok(Frame::End { missing, .. }) => {
                    if let Some(end) = self.end_of(missing, 1, of) {
                        return Some(Ok(end));
                    }
                }
                Ok(frame) => {
                    self.is_begun = true;
                    return Some(Ok(frame));
                }
                Err(error) if self.is_begun => {
                    // The next attempt asks another source.
                    let ends = FetchError::Disconnected(None);
                    return Some(Err(self.go_on_without(error).err().unwrap_or(ends)));
                }
                Err(error) => {
                    if let Err(error) = self.go_on_without(error).and_then(|()| self.start()) {
                        return Some(Err(error));
                    }
                }
            }
        }
    }
}

impl Iterator for Answers {
    type Item = Result<Frame, FetchError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_frame()
    }
}

/// The request for those objects of `batch` that are missing.
fn only(batch: &ObjectsBatch, missing: &[[u8; 32]]) -> ObjectsBatch {
    let is_directories = batch.files.is_empty() && batch.files_of.is_empty();
    let mut rest = ObjectsBatch { recursive: batch.recursive, ..ObjectsBatch::default() };
    for hash in missing {
        let directory = ObjectHash::from_bytes(*hash);
        if is_directories || batch.directories.contains(&directory) {
            rest.directories.push(directory);
        } else {
            rest.files.push(ContentHash::from_bytes(*hash));
        }
    }
    rest
}

#[cfg(test)]
mod tests;
