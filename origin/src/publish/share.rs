//! Finds packs that are not worth listing: most of what they hold is out of use, or they are many and small.

use std::collections::HashSet;

use syncd_runtime::bucket::Bucket;
use syncd_shared::ObjectHash;
use syncd_shared::directory::{Kind, Page};
use syncd_shared::published::pack::{FrameKind, FrameRow, read_table};
use syncd_shared::published::{self, PackRef, Release};

use super::contents::{Key, key};
use super::error::PublishError;
use crate::store::Store;

/// A pack below this length is small.
const SMALL_BYTES: u64 = 1024 * 1024;
/// More small packs than this are made into few.
const SMALL_MAX: usize = 64;

/// Packs of a release whose content is to be put again, as far as it is in use. Takes 40 bytes of memory for
/// each object of the tree.
pub(super) fn wasteful(
    bucket: &dyn Bucket,
    store: &Store,
    release: &Release,
) -> Result<Vec<[u8; 32]>, PublishError> {
    let Some(root) = store.root(&release.generation.root.hash())? else { return Ok(Vec::new()) };
    let live = live(store, root.object)?;
    let (mut found, mut small) = (Vec::new(), Vec::new());
    for pack in &release.packs {
        if is_mostly_dead(bucket, pack, &live)? {
            found.push(pack.name);
        } else if pack.bytes < SMALL_BYTES {
            small.push(pack.name);
        }
    }
    if small.len() > SMALL_MAX {
        found.append(&mut small);
    }
    Ok(found)
}

fn is_mostly_dead(bucket: &dyn Bucket, pack: &PackRef, live: &HashSet<Key>) -> Result<bool, PublishError> {
    let name = published::pack_name(&pack.name);
    let table = bucket.read(&name, pack.table())?.ok_or(PublishError::Missing { name })?;
    let frames = read_table(&table, &pack.name, pack.bytes)?;
    let live_bytes: u64 = frames.iter().map(|frame| live_bytes(frame, live)).sum();
    Ok(live_bytes < pack.bytes / 2)
}

/// Compressed bytes of the items in use.
fn live_bytes(frame: &FrameRow, live: &HashSet<Key>) -> u64 {
    let is_live = |hash: &[u8; 32]| live.contains(&key(frame.kind, hash));
    let plain: u64 =
        frame.items.iter().filter(|item| is_live(&item.hash)).map(|item| u64::from(item.length)).sum();
    plain * u64::from(frame.compressed_bytes) / u64::from(frame.plain_bytes).max(1)
}

/// Everything that a tree refers to.
fn live(store: &Store, root: ObjectHash) -> Result<HashSet<Key>, PublishError> {
    let (mut live, mut open) = (HashSet::new(), vec![root]);
    while let Some(object) = open.pop() {
        if !live.insert(key(FrameKind::Pages, object.as_bytes())) {
            continue;
        }
        let bytes = store.page_bytes(&object)?.ok_or(PublishError::DirectoryMissing { object })?;
        let page = Page::decode(&bytes).map_err(|_| PublishError::DirectoryDamaged { object })?;
        for entry in page.entries() {
            let Kind::File { content, size: size @ 1.. } = entry.kind else { continue };
            if live.insert(key(FrameKind::Lists, content.as_bytes())) {
                let chunks = store.chunks_of(&content, size)?;
                let chunks = chunks.ok_or(PublishError::ContentMissing { content })?;
                live.extend(chunks.iter().map(|chunk| key(FrameKind::Chunks, chunk.hash.as_bytes())));
            }
        }
        open.extend(page.children());
    }
    Ok(live)
}
