//! `publish check` and `publish gc`: reads what is in the object store, and deletes what nobody needs.
//!
//! Runs beside the task that publishes, and leaves DATA/published to it: see [`super::Order`].

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use syncd_runtime::bucket::Bucket;
use syncd_runtime::published::{ReadError, Reader};
use syncd_shared::published::fencing::Reason;
use syncd_shared::published::garbage::{GARBAGE, GARBAGE_MAX_BYTES, GarbageList, Stored, look};
use syncd_shared::published::pack::{FrameRow, read_table};
use syncd_shared::published::{
    self, HEAD, HEAD_OBJECT_MAX_BYTES, PREFIXES, PackRef, PublishedError, RELEASE_MAX_BYTES, Release,
    UpdateRef,
};
use syncd_shared::text::error_chain;
use syncd_shared::{GenerationNumber, Head};

use super::error::PublishError;
use super::journal::Journal;
use super::share;
use crate::clock::now_ms;
use crate::keys::Keys;
use crate::store::Store;

/// Bytes of a pack that are read at once.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// Access to the object store and to what is published from. All calls block.
pub(super) struct Keeper {
    pub(super) bucket: Arc<dyn Bucket>,
    pub(super) store: Arc<Store>,
    pub(super) keys: Arc<Keys>,
    pub(super) data: PathBuf,
}

/// Options of a collection.
#[derive(Debug, Clone, Copy)]
pub struct GcOptions {
    /// Time from the look that lists an object to its deletion.
    pub grace: Duration,
    /// Newest generations that are kept, the released one included.
    pub keep: usize,
}

/// Result of a collection.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub(super) deleted: usize,
    pub(super) deleted_bytes: u64,
    pub(super) waiting: usize,
    pub(super) waiting_bytes: u64,
    pub(super) due_ms: Option<i64>,
    /// Packs that the next generation is not to list.
    pub(super) wasteful: Vec<[u8; 32]>,
}

/// Result of a check.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub(super) packs: usize,
    pub(super) updates: usize,
    pub(super) bytes: u64,
    /// Packs and updates that must be put again.
    pub(super) lost: Vec<[u8; 32]>,
    /// The object of the released generation must be put again. Nothing else was checked then.
    pub(super) lost_release: bool,
}

impl Keeper {
    /// The head, verified.
    pub(super) fn head(&self) -> Result<Head, PublishError> {
        let object = self.bucket.get(HEAD, HEAD_OBJECT_MAX_BYTES)?.ok_or(PublishError::NothingPublished)?;
        Ok(published::verify_head(&object, self.keys.trust().document())?)
    }

    fn release(&self, number: GenerationNumber) -> Result<Release, PublishError> {
        let name = published::generation_name(number);
        let object = self.bucket.get(&name, RELEASE_MAX_BYTES)?;
        let Some(object) = object else { return Err(PublishError::Missing { name }) };
        let release = Release::decode(&object).map_err(|source| match source {
            PublishedError::Hash { .. } => PublishError::Damaged { name, source },
            other => other.into(),
        })?;
        self.keys.verify(release.record(), release.signature()).map_err(PublishedError::from)?;
        Ok(release)
    }

    /// Deletes what an earlier call has listed, and lists what the next one may delete.
    pub(super) fn collect(&self, options: GcOptions) -> Result<Collected, PublishError> {
        let head = self.head()?;
        let earlier = self.bucket.get(GARBAGE, GARBAGE_MAX_BYTES)?;
        let earlier = earlier.and_then(|object| GarbageList::decode(&object));
        let objects = self.objects()?;
        let needed = self.needed(&objects, head.number, options.keep)?;
        let grace_ms = i64::try_from(options.grace.as_millis()).unwrap_or(i64::MAX);
        let found = look(&objects, &needed, earlier.as_ref(), now_ms(), grace_ms);
        for object in &found.delete {
            self.bucket.delete(&object.name)?;
        }
        match &found.list {
            Some(list) if list.names.is_empty() => self.bucket.delete(GARBAGE)?,
            Some(list) => self.bucket.put(GARBAGE, list.encode().into())?,
            None => {}
        }
        let sum = |objects: &[Stored]| objects.iter().map(|object| object.bytes).sum();
        Ok(Collected {
            deleted: found.delete.len(),
            deleted_bytes: sum(&found.delete),
            waiting: found.waiting.len(),
            waiting_bytes: sum(&found.waiting),
            due_ms: found.due_ms,
            wasteful: share::wasteful(&*self.bucket, &self.store, &self.release(head.number)?)?,
        })
    }

    fn objects(&self) -> Result<Vec<Stored>, PublishError> {
        let mut objects = Vec::new();
        for prefix in PREFIXES {
            objects.extend(self.bucket.list(prefix)?.into_iter().map(|listed| {
                let since = listed.modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let modified_ms = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
                Stored { name: listed.name, bytes: listed.bytes, modified_ms }
            }));
        }
        Ok(objects)
    }

    /// Names of what the kept generations list, and of packs on their way. Fails if a generation can't be
    /// read, or if another origin was promoted, whose tree this one must not clean up.
    fn needed(
        &self,
        objects: &[Stored],
        released: GenerationNumber,
        keep: usize,
    ) -> Result<HashSet<String>, PublishError> {
        let numbers = objects.iter().filter_map(|object| published::generation_of_name(&object.name));
        let (mut older, newer): (Vec<_>, Vec<_>) = numbers.partition(|number| *number <= released);
        older.sort_unstable();
        let mut needed = HashSet::new();
        for number in older.iter().rev().take(keep.max(1)).chain(&newer) {
            let release = match self.release(*number) {
                // Nobody reads an earlier generation any more, and this one nobody can.
                Err(PublishError::Damaged { .. }) if *number < released => continue,
                release => release?,
            };
            self.check_epoch(release.generation.epoch)?;
            needed.insert(published::generation_name(*number));
            needed.extend(release.packs.iter().map(|pack| published::pack_name(&pack.name)));
            needed.extend(release.updates.iter().map(|update| published::update_name(&update.name)));
        }
        let pending = Journal::new(&self.data).read()?;
        needed.extend(pending.packs.iter().map(|pack| published::pack_name(&pack.name)));
        Ok(needed)
    }

    fn check_epoch(&self, epoch: u32) -> Result<(), PublishError> {
        let own = self.store.latest()?.map_or(0, |latest| latest.generation.epoch);
        if epoch > own { Err(Reason::Deposed { epoch }.into()) } else { Ok(()) }
    }

    /// Reads everything that the released generation lists. Passes what is damaged to `told`. Fails if the
    /// object store does not answer: nothing is called damaged then.
    pub(super) fn check(
        &self,
        told: &mut dyn FnMut(String),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Checked, PublishError> {
        let release = match self.head().and_then(|head| self.release(head.number)) {
            Err(
                error @ (PublishError::Damaged { .. }
                | PublishError::Missing { .. }
                | PublishError::NothingPublished),
            ) => {
                told(error_chain(&error));
                return Ok(Checked { lost_release: true, ..Checked::default() });
            }
            release => release?,
        };
        let sizes: HashMap<String, u64> =
            self.objects()?.into_iter().map(|object| (object.name, object.bytes)).collect();
        let all = release.packs.iter().map(|pack| pack.bytes);
        let total = all.chain(release.updates.iter().map(|update| update.bytes)).sum();
        let mut checked =
            Checked { packs: release.packs.len(), updates: release.updates.len(), ..Checked::default() };
        let packs = release.packs.iter().map(|pack| (published::pack_name(&pack.name), Listed::Pack(pack)));
        let updates = release
            .updates
            .iter()
            .map(|update| (published::update_name(&update.name), Listed::Update(update)));
        for (name, listed) in packs.chain(updates) {
            let damage = match sizes.get(&name) {
                None => Some("it is missing".to_owned()),
                Some(bytes) if *bytes != listed.bytes() => {
                    Some(format!("it has {bytes} bytes, and {} are listed", listed.bytes()))
                }
                Some(_) => self.damage(&name, listed)?,
            };
            if let Some(damage) = damage {
                checked.lost.push(listed.hash());
                told(format!("{name}: {damage}"));
            }
            checked.bytes += listed.bytes();
            progress(checked.bytes, total);
        }
        Ok(checked)
    }

    fn damage(&self, name: &str, listed: Listed<'_>) -> Result<Option<String>, PublishError> {
        let read = match listed {
            Listed::Pack(pack) => self.read_pack(name, pack),
            Listed::Update(update) => self.read_update(update),
        };
        match read {
            Ok(()) => Ok(None),
            Err(ReadError::Bucket(error)) => Err(error.into()),
            Err(error) => Ok(Some(error_chain(&error))),
        }
    }

    fn read_pack(&self, name: &str, pack: &PackRef) -> Result<(), ReadError> {
        let read = |range| {
            let bytes = self.bucket.read(name, range)?;
            bytes.ok_or_else(|| ReadError::Missing { name: name.to_owned() })
        };
        let rows = read_table(&read(pack.table())?, &pack.name, pack.bytes)?;
        let mut rows = &rows[..];
        while let Some(first) = rows.first() {
            let is_near = |row: &&FrameRow| row.range().end - first.start <= READ_BYTES;
            let (near, rest) = rows.split_at(rows.iter().take_while(is_near).count().max(1));
            let bytes = read(first.start..near.last().map_or(first.start, |row| row.range().end))?;
            let is_whole = |row: &FrameRow| {
                let at = |position: u64| usize::try_from(position - first.start).unwrap_or(usize::MAX);
                bytes.get(at(row.start)..at(row.range().end)).is_some_and(|bytes| row.is_of(bytes))
            };
            if !near.iter().all(is_whole) {
                return Err(PublishedError::Hash { object: "a frame of a pack" }.into());
            }
            rows = rest;
        }
        Ok(())
    }

    fn read_update(&self, update: &UpdateRef) -> Result<(), ReadError> {
        let reader = Reader::new(self.bucket.clone());
        let index = reader.update(update)?;
        let mut places = index.frames();
        while !places.is_empty() {
            let read = reader.update_frames(&update.name, places)?.len();
            places = &places[read..];
        }
        Ok(())
    }
}

/// An object that a generation lists.
#[derive(Clone, Copy)]
enum Listed<'a> {
    Pack(&'a PackRef),
    Update(&'a UpdateRef),
}

impl Listed<'_> {
    fn hash(&self) -> [u8; 32] {
        match self {
            Self::Pack(pack) => pack.name,
            Self::Update(update) => update.name,
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Self::Pack(pack) => pack.bytes,
            Self::Update(update) => update.bytes,
        }
    }
}
