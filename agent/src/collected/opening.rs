//! Opens the engine of a node, from its journal and the collected directories in ROOT.

use std::path::Path;

use syncd_shared::collected::CollectedName;
use tokio::sync::watch;

use super::engine::{Engine, Parts, Watches};
use super::error::CollectedError;
use super::files::Files;
use super::journal::Journal;
use super::report::CollectedReport;
use crate::clock::Clock;
use crate::state::disk::{Dir, Owners};

const INCOMING: &[u8] = b".incoming";

/// The surroundings of an engine.
pub struct Surroundings {
    pub owners: Owners,
    pub watch: Box<dyn Watches>,
    pub clock: Clock,
    pub report: watch::Sender<Option<CollectedReport>>,
}

impl Surroundings {
    /// Opens the engine of ROOT, and removes what an earlier one left half done.
    pub fn open(self, root: &Path) -> Result<Engine, CollectedError> {
        let Self { owners, watch, clock, report } = self;
        let journal = Journal::open(&root.join("state/collected.redb"))?;
        let parent = Dir::open_path(&root.join("collected"))?;
        Files::tidy(&parent.ensure_dir(INCOMING, 0o700)?)?;
        let (at, given) = (root.to_owned(), clock.clone());
        let open = move || {
            let mut opened = Vec::new();
            for name in existing(&at)? {
                let (dir, incoming) = (parent.open_dir(name.as_bytes())?, parent.open_dir(INCOMING)?);
                opened.push((name, Files::open(dir, incoming, owners, given.clone())?));
            }
            Ok(opened)
        };
        Ok(Engine::new(Parts { journal, watch, open: Box::new(open), clock, report }))
    }
}

/// Names of the collected directories of a node.
pub(super) fn existing(root: &Path) -> Result<Vec<CollectedName>, CollectedError> {
    let parent = match Dir::open_path(&root.join("collected")) {
        Ok(parent) => parent,
        Err(e) if e.is_absent() => return Ok(Vec::new()),
        Err(e) => return Err(e.into()),
    };
    let mut names: Vec<CollectedName> =
        parent.list()?.iter().filter_map(|listed| CollectedName::new(&listed.name).ok()).collect();
    names.sort_unstable();
    Ok(names)
}
