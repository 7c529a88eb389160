//! Machines beside the object store: origins, an origin on standby, and followers.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use syncd_origin::publish::{Successor, TakeOverError};
use syncd_runtime::bucket::Bucket;
use syncd_runtime::published::{ReadError, Reader};
use syncd_shared::diff::PartLimits;
use syncd_shared::generation::GenerationError;
use syncd_shared::identity::SignedTrust;
use syncd_shared::{Fork, SignedGeneration};

use super::cloud::{Cloud, Reach};
use crate::origin::{Origin, Publishing, copy_directory};
use crate::site::Site;

/// A machine that is the origin, or is to take its place.
pub struct Host {
    pub tree: PathBuf,
    pub data: PathBuf,
    pub site: Site,
    pub reach: Arc<Reach>,
    pub running: Running,
}

pub enum Running {
    Off,
    Standby(Successor),
    Origin(Box<Origin>),
}

impl Host {
    /// Starts what DATA is for: the origin.
    pub fn serve(&mut self, cloud: &Arc<Cloud>, fenced: bool) -> anyhow::Result<()> {
        self.reach = Reach::new(cloud);
        let publishing = Publishing { bucket: self.reach.clone(), fenced };
        let origin = Origin::open(&self.tree, &self.data, PartLimits::default(), Some(publishing))?;
        self.running = Running::Origin(Box::new(origin));
        Ok(())
    }

    pub fn origin(&mut self) -> Option<&mut Origin> {
        match &mut self.running {
            Running::Origin(origin) => Some(origin),
            _ => None,
        }
    }

    /// Kills the process.
    pub async fn end(&mut self) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.running, Running::Off) {
            Running::Origin(origin) => origin.end(false).await,
            Running::Standby(_) | Running::Off => Ok(()),
        }
    }

    /// Generations that it has, oldest first.
    pub fn generations(&mut self) -> anyhow::Result<Vec<SignedGeneration>> {
        let (store, keys) = match &self.running {
            Running::Origin(origin) => (&origin.store, &origin.services.keys),
            Running::Standby(successor) => (successor.store(), successor.keys()),
            Running::Off => return Ok(Vec::new()),
        };
        let stored = store.generations()?;
        stored.iter().map(|one| Ok(keys.verify(&one.record, &one.signature)?)).collect()
    }
}

/// Gives `to` the keys of the origin in `from`, as a backup of the small set has them.
pub fn copy_keys(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    fs::copy(from.join("format"), to.join("format"))?;
    copy_directory(&from.join("keys"), &to.join("keys"))
}

/// A node that reads the object store alone. It takes what an agent takes, and keeps the tree in a store.
pub struct Follower {
    reader: Reader,
    trust: Arc<SignedTrust>,
    successor: Successor,
    pub accepted: Option<SignedGeneration>,
}

/// Result of a follower's look.
pub enum Looked {
    Nothing,
    Accepted(SignedGeneration),
    /// The store did not answer, or is not whole at the moment.
    Failed(String),
    /// An earlier generation than the accepted one.
    Stale,
    Forked(Fork),
}

impl Follower {
    pub fn new(data: &Path, bucket: Arc<dyn Bucket>, trust: Arc<SignedTrust>) -> anyhow::Result<Self> {
        let successor = Successor::open(data, bucket.clone()).context("open a follower's store")?;
        Ok(Self { reader: Reader::new(bucket), trust, successor, accepted: None })
    }

    fn released(&self) -> Result<SignedGeneration, ReadError> {
        let object = self.reader.head_object()?;
        let (_, generation, _) = self.reader.release(&object, self.trust.document())?;
        Ok(generation)
    }

    /// Takes the released generation with its whole tree.
    pub fn look(&mut self) -> Looked {
        let generation = match self.released() {
            Ok(generation) => generation,
            Err(error) => return Looked::Failed(syncd_shared::text::error_chain(&error)),
        };
        match generation.may_follow(self.accepted.as_ref()) {
            Err(GenerationError::Fork(fork)) => return Looked::Forked(fork),
            Err(_) => return Looked::Stale,
            Ok(()) => {}
        }
        if self.accepted.as_ref().is_some_and(|accepted| accepted.number() == generation.number()) {
            return Looked::Nothing;
        }
        match self.successor.follow() {
            Ok(Some(number)) if number == generation.number() => {
                self.accepted = Some(generation.clone());
                Looked::Accepted(generation)
            }
            Ok(other) => Looked::Failed(format!("took {other:?} in place of {}", generation.number())),
            Err(error @ TakeOverError::Read(_)) => Looked::Failed(syncd_shared::text::error_chain(&error)),
            Err(error) => Looked::Failed(syncd_shared::text::error_chain(&error)),
        }
    }
}
