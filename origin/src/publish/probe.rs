//! Probes what an object store keeps of its promises. Fencing needs all of them.
//!
//! The probe writes objects below `probe/`, each with a name of its own, and deletes them.

use bytes::Bytes;
use data_encoding::HEXLOWER;
use syncd_runtime::bucket::{Bucket, BucketError};

/// Writers that create one object at once.
const WRITERS: u8 = 8;
/// Objects that they create.
const ROUNDS: usize = 3;

/// A promise that the store does not keep, or an error on the way there.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Bucket(#[from] BucketError),
    #[error("draw a random number")]
    Random(#[from] getrandom::Error),
    #[error("it let {writers} writers create the same object: it does not create if absent (If-None-Match)")]
    Created { writers: usize },
    #[error("an object that was created is not read back as it was written")]
    ReadAfterWrite,
    #[error("it let an object be created that was there")]
    CreatedAgain,
    #[error("a part of an object has other bytes than were asked for (Range)")]
    Range,
    #[error("an object that was replaced is read back as it was before")]
    Replaced,
    #[error("it does not list an object that is there")]
    Listed,
    #[error("an object that was deleted is still read")]
    Deleted,
}

/// Blocks for about 50 requests.
pub fn probe(bucket: &dyn Bucket) -> Result<(), ProbeError> {
    let mut random = [0; 8];
    getrandom::fill(&mut random)?;
    let prefix = format!("probe/{}", HEXLOWER.encode(&random));
    let names: Vec<String> = (0..ROUNDS).map(|round| format!("{prefix}x{round}")).collect();
    let probed = names.iter().try_for_each(|name| probe_object(bucket, name));
    let deleted = names.iter().try_for_each(|name| {
        bucket.delete(name)?;
        if bucket.get(name, CONTENT_BYTES)?.is_none() { Ok(()) } else { Err(ProbeError::Deleted) }
    });
    probed.and(deleted)
}

const CONTENT_BYTES: usize = 64 * 1024;

fn content(writer: u8) -> Bytes {
    (0..CONTENT_BYTES).map(|at| (at % 251) as u8 ^ writer).collect::<Vec<u8>>().into()
}

fn probe_object(bucket: &dyn Bucket, name: &str) -> Result<(), ProbeError> {
    let created: Vec<Result<bool, BucketError>> = std::thread::scope(|scope| {
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || bucket.create(name, content(writer)))).collect();
        writers.into_iter().filter_map(|writer| writer.join().ok()).collect()
    });
    let created: Vec<bool> = created.into_iter().collect::<Result<_, _>>()?;
    let winners: Vec<u8> =
        (0..WRITERS).zip(created).filter(|(_, created)| *created).map(|(w, _)| w).collect();
    if winners.len() > 1 {
        return Err(ProbeError::Created { writers: winners.len() });
    }
    // A writer whose answer was lost repeats its request, and finds its own object.
    let there = bucket.get(name, CONTENT_BYTES)?;
    let is_there = |writer: &u8| there == Some(content(*writer));
    let winner = winners.first().copied().or_else(|| (0..WRITERS).find(is_there));
    let winner = winner.filter(is_there).ok_or(ProbeError::ReadAfterWrite)?;
    let expected = content(winner);
    if bucket.create(name, content(WRITERS))? {
        return Err(ProbeError::CreatedAgain);
    }
    let part = bucket.read(name, 1000..3000)?.ok_or(ProbeError::ReadAfterWrite)?;
    if part[..] != expected[1000..3000] {
        return Err(ProbeError::Range);
    }
    bucket.put(name, content(WRITERS))?;
    if bucket.get(name, CONTENT_BYTES)? != Some(content(WRITERS)) {
        return Err(ProbeError::Replaced);
    }
    match bucket.list("probe/")?.iter().any(|listed| listed.name == name) {
        true => Ok(()),
        false => Err(ProbeError::Listed),
    }
}
