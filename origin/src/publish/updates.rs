//! Encoded updates as objects: the bytes that agents get from the origin.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use syncd_shared::RootHash;
use syncd_shared::update_file::{Index, read_whole, write_whole};

use crate::plan::{EncodedUpdate, Planner};

/// Longest update that is published, and held in memory meanwhile. Beyond it, fetching by hash costs about
/// the same.
const UPDATE_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// An update file, with its index.
pub(super) struct UpdateFile {
    pub(super) index: Index,
    pub(super) bytes: Bytes,
}

/// Encodes an update. `None` if there is none, or if it is too large: readers fetch by hash then.
pub(super) async fn encode(planner: &Planner, from: RootHash, to: RootHash) -> Option<UpdateFile> {
    let update = planner.update(from, to).await.ok()?;
    let bytes = match update.inline_file() {
        Some(file) => file,
        None => spooled(update, from, to).await?,
    };
    let (index, _) = read_whole(&bytes).ok()?;
    Some(UpdateFile { index, bytes })
}

/// Reads an update file from the spool while it is being written.
async fn spooled(update: Arc<EncodedUpdate>, from: RootHash, to: RootHash) -> Option<Bytes> {
    let (mut frames, mut sum) = (Vec::new(), 0u64);
    loop {
        let item = frames.len() as u64;
        update.reached(item).await;
        let reading = update.clone();
        match tokio::task::spawn_blocking(move || reading.item(item)).await.ok()?.ok()? {
            Some(frame) => frames.push(frame.encode_to_vec()),
            None => break,
        }
        sum = sum.saturating_add(frames.last().map_or(0, Vec::len) as u64);
        if sum > UPDATE_MAX_BYTES {
            tracing::info!(%from, %to, "an update is too large to be published: followers fetch by hash");
            return None;
        }
    }
    write_whole(&from, &to, &frames).ok()
}
