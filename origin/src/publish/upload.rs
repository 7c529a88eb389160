//! Puts the objects of one generation after the other.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use syncd_runtime::bucket::Bucket;
use syncd_runtime::rate::{self, Rate};
use syncd_shared::published::fencing::Reason;
use syncd_shared::published::garbage::{GARBAGE, GARBAGE_MAX_BYTES, GarbageList};
use syncd_shared::published::pack::{BuiltPack, read_table};
use syncd_shared::published::{
    self, HEAD, HEAD_OBJECT_MAX_BYTES, Nonce, PackRef, PublishedError, RELEASE_MAX_BYTES, Release, UpdateRef,
};
use syncd_shared::{GenerationNumber, Head, RootHash, SignedGeneration};
use tokio_util::sync::CancellationToken;

use super::contents::{Collector, Present};
use super::error::PublishError;
use super::journal::Journal;
use super::updates::UpdateFile;
use crate::clock::now_ms;
use crate::keys::Keys;
use crate::store::Store;

/// Distances back in the history from which a generation gets updates: a reader that missed a few
/// generations still needs few bytes.
const UPDATES_FROM: [usize; 3] = [1, 2, 4];

pub(super) struct Parts {
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) store: Arc<Store>,
    pub(super) keys: Arc<Keys>,
    pub(super) data: PathBuf,
    pub(super) bwlimit: Option<Rate>,
    pub(super) stop: CancellationToken,
}

/// The content of the object store, and the way there. All calls block.
pub(super) struct Upload {
    parts: Parts,
    limit: Option<rate::Bucket>,
    nonce: Nonce,
    present: Present,
    /// The packs that the next generation lists: those of the last one, and those of the journal.
    packs: Vec<PackRef>,
    /// Those of `packs` that no generation lists yet.
    unlisted: HashSet<[u8; 32]>,
    /// Packs and updates of the last generation that must be put again.
    lost: HashSet<[u8; 32]>,
    journal: Journal,
}

impl Upload {
    /// Reads what is there: the packs of the last published generation, and the tables of all packs.
    pub(super) fn open(parts: Parts, current: &SignedGeneration) -> Result<Self, PublishError> {
        let nonce = random()?;
        let journal = Journal::new(&parts.data);
        let limit = parts.bwlimit.map(rate::Bucket::new);
        let pending = journal.read()?;
        let mut open = Self {
            parts,
            limit,
            nonce,
            present: Present::default(),
            packs: Vec::new(),
            unlisted: HashSet::new(),
            lost: pending.lost.clone(),
            journal,
        };
        let head = open.head()?;
        if let Some(head) = head {
            open.check_epoch(&head, current)?;
        }
        let listed = match open.release(current.number())? {
            // One that was only committed lists nothing yet.
            Some(release) if !release.packs.is_empty() => Some(release),
            _ => head.map(|head| open.release(head.number)).transpose()?.flatten(),
        };
        let listed = listed.map(|release| release.packs).unwrap_or_default();
        // A tree is whole in the packs of a generation, unless some of them are left out.
        let is_whole = !listed.iter().any(|pack| pending.leaves_out(&pack.name));
        for pack in listed.iter().filter(|pack| !pending.leaves_out(&pack.name)) {
            if !open.learn(pack, is_whole)? {
                // The next attempt goes on without it.
                open.journal.lose(&[pack.name])?;
                return Err(PublishError::Missing { name: published::pack_name(&pack.name) });
            }
        }
        let garbage = open.garbage()?.unwrap_or_default();
        for pack in pending.packs.iter().filter(|pack| !pending.leaves_out(&pack.name)) {
            let is_garbage = garbage.names.contains(&published::pack_name(&pack.name));
            if !is_garbage && !open.packs.contains(pack) && open.learn(pack, false)? {
                open.unlisted.insert(pack.name);
            }
        }
        Ok(open)
    }

    /// Takes a pack as it lies in the object store. `false`: it is not there. `is_whole`: every tree that it
    /// has a page of is complete there.
    fn learn(&mut self, pack: &PackRef, is_whole: bool) -> Result<bool, PublishError> {
        self.parts.check_stop()?;
        let name = published::pack_name(&pack.name);
        let Some(table) = self.parts.bucket.read(&name, pack.table())? else { return Ok(false) };
        self.present.add(&read_table(&table, &pack.name, pack.bytes)?, is_whole);
        self.packs.push(*pack);
        Ok(true)
    }

    /// The objects that are about to be deleted.
    fn garbage(&self) -> Result<Option<GarbageList>, PublishError> {
        let object = self.parts.bucket.get(GARBAGE, GARBAGE_MAX_BYTES)?;
        Ok(object.and_then(|object| GarbageList::decode(&object)))
    }

    /// The head, verified. One that an older key has signed counts as none, and is replaced.
    fn head(&self) -> Result<Option<Head>, PublishError> {
        let Some(object) = self.parts.bucket.get(HEAD, HEAD_OBJECT_MAX_BYTES)? else { return Ok(None) };
        Ok(published::verify_head(&object, self.parts.keys.trust().document()).ok())
    }

    fn check_epoch(&self, head: &Head, current: &SignedGeneration) -> Result<(), PublishError> {
        if head.epoch > current.epoch() {
            return Err(Reason::Deposed { epoch: head.epoch }.into());
        }
        // A higher number of the own epoch: this origin was restored, or runs twice.
        if head.epoch == current.epoch() && head.number > current.number() {
            return Err(Reason::Copied.into());
        }
        Ok(())
    }

    /// The object of a generation. A damaged one is deleted, since no reader can use it: it is put again.
    fn release(&self, number: GenerationNumber) -> Result<Option<Release>, PublishError> {
        let name = published::generation_name(number);
        let Some(object) = self.parts.bucket.get(&name, RELEASE_MAX_BYTES)? else { return Ok(None) };
        match Release::decode(&object) {
            // Another version's object has a true hash, and stays.
            Err(PublishedError::Hash { .. }) => {
                tracing::warn!(name, "an object in the object store is damaged, and put again");
                self.parts.bucket.delete(&name)?;
                Ok(None)
            }
            decoded => Ok(Some(decoded?)),
        }
    }

    /// Roots from which the generation gets updates.
    pub(super) fn bases(&self, of: &SignedGeneration) -> Result<Vec<RootHash>, PublishError> {
        let mut history = self.parts.store.generations()?;
        history.retain(|earlier| earlier.generation.number < of.number());
        let back = |distance: usize| history.len().checked_sub(distance).and_then(|at| history.get(at));
        let roots = UPDATES_FROM.into_iter().filter_map(back).map(|earlier| earlier.generation.root.hash());
        let mut bases: Vec<RootHash> = Vec::new();
        for root in roots.filter(|root| *root != of.root_hash()) {
            if !bases.contains(&root) {
                bases.push(root);
            }
        }
        Ok(bases)
    }

    /// Puts everything of a generation. Nothing names it yet.
    pub(super) fn place(
        &mut self,
        generation: &SignedGeneration,
        updates: Vec<UpdateFile>,
    ) -> Result<(), PublishError> {
        let there = self.release(generation.number())?;
        match there {
            Some(there) => {
                check_same(&there, generation)?;
                if there.packs.is_empty() || self.is_lost(&there) {
                    let release = self.put_content(generation, updates, there.nonce)?;
                    let name = published::generation_name(generation.number());
                    self.parts.bucket.put(&name, release.encode().into())?;
                    self.listed()?;
                }
            }
            None => {
                let release = self.put_content(generation, updates, self.nonce)?;
                self.create(generation, &release)?;
                self.listed()?;
            }
        }
        Ok(())
    }

    /// Whether a generation lists what must be put again.
    fn is_lost(&self, release: &Release) -> bool {
        let packs = release.packs.iter().map(|pack| &pack.name);
        packs.chain(release.updates.iter().map(|update| &update.name)).any(|name| self.lost.contains(name))
    }

    /// Puts packs and updates.
    fn put_content(
        &mut self,
        generation: &SignedGeneration,
        updates: Vec<UpdateFile>,
        nonce: Nonce,
    ) -> Result<Release, PublishError> {
        let salt = self.garbage()?.map(|_| random()).transpose()?;
        let Self { parts, limit, present, packs, unlisted, journal, .. } = self;
        let mut put = |pack: BuiltPack| {
            let bytes = pack.bytes.len() as u64;
            let reference = PackRef { name: pack.hash, bytes, table_bytes: pack.table_bytes };
            parts.put(limit.as_ref(), &published::pack_name(&pack.hash), pack.bytes.into())?;
            journal.add(&reference)?;
            packs.retain(|known| known.name != reference.name);
            packs.push(reference);
            unlisted.insert(pack.hash);
            Ok(())
        };
        Collector::new(&parts.store, present, &mut put, salt).tree(generation.generation().root.object)?;
        let mut listed = Vec::new();
        for UpdateFile { index, bytes } in updates {
            let length = bytes.len() as u64;
            parts.put(limit.as_ref(), &published::update_name(index.name()), bytes)?;
            listed.push(UpdateRef { from: index.from(), name: *index.name(), bytes: length });
        }
        // Written after the packs were put, and before a generation lists them.
        let garbage = self.garbage()?.unwrap_or_default();
        let names = self.unlisted.iter().map(published::pack_name);
        if let Some(name) = names.into_iter().find(|name| garbage.names.contains(name)) {
            return Err(PublishError::Garbage { name });
        }
        Ok(Release::new(generation, nonce, self.packs.clone(), listed))
    }

    /// A generation lists everything that was put.
    fn listed(&mut self) -> Result<(), PublishError> {
        self.present.complete_all();
        self.unlisted.clear();
        self.lost.clear();
        self.journal.clear()
    }

    /// Creates the generation's object. One with the same record is as good: it was put before a restart.
    fn create(&mut self, generation: &SignedGeneration, release: &Release) -> Result<(), PublishError> {
        let name = published::generation_name(generation.number());
        if self.parts.bucket.create(&name, release.encode().into())? {
            return Ok(());
        }
        let there = self.release(generation.number())?.ok_or(PublishError::Missing { name })?;
        check_same(&there, generation)
    }

    /// Has `head` name a generation, for those who follow.
    pub(super) fn move_head(&self, generation: &SignedGeneration) -> Result<(), PublishError> {
        let current = self.head()?;
        if let Some(head) = current {
            self.check_epoch(&head, generation)?;
        }
        let trust = self.parts.keys.trust();
        let head = match current {
            Some(head) if head.names(generation) => head,
            _ => Head::of(generation, now_ms()),
        };
        let object = published::head_object(&head.sign(&self.parts.keys.signing_key()), &trust);
        Ok(self.parts.bucket.put(HEAD, object.into())?)
    }
}

/// Refuses another generation under the same number.
fn check_same(there: &Release, own: &SignedGeneration) -> Result<(), PublishError> {
    if there.record() == own.record() {
        return Ok(());
    }
    let epoch = there.generation.epoch;
    Err(if epoch > own.epoch() { Reason::Deposed { epoch } } else { Reason::Copied }.into())
}

fn random<const N: usize>() -> Result<[u8; N], PublishError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(PublishError::Random)?;
    Ok(bytes)
}

impl Parts {
    fn check_stop(&self) -> Result<(), PublishError> {
        if self.stop.is_cancelled() { Err(PublishError::Stopped) } else { Ok(()) }
    }

    fn put(&self, limit: Option<&rate::Bucket>, name: &str, bytes: Bytes) -> Result<(), PublishError> {
        self.check_stop()?;
        if let Some(limit) = limit {
            self.wait(limit.take(bytes.len(), Instant::now()))?;
        }
        Ok(self.bucket.put(name, bytes)?)
    }

    fn wait(&self, pause: Duration) -> Result<(), PublishError> {
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            self.check_stop()?;
            std::thread::sleep(left.min(Duration::from_millis(200)));
        }
        Ok(())
    }
}
