//! Data that origin and agent read from their disks.

use arbitrary::{Result, Unstructured};
pub(super) use syncd_agent::fuzzing::record_value;
use syncd_origin::scan::fuzzing::{some_stat_record, stat_record as decode_stat_record};
pub(super) use syncd_origin::store::fuzzing::{chunk_list, frame as pack, index_entry};
use syncd_origin::store::fuzzing::{packed_object, some_chunk_list, some_frame};

use crate::mutation::{mutate, number};
use crate::values::{self, bytes, compressed};

fn lengths(u: &mut Unstructured<'_>) -> Result<Vec<u32>> {
    (0..u.int_in_range(0..=4usize)?).map(|_| Ok(number(u)? as u32)).collect()
}

pub(super) fn any_pack(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let content = bytes(u, 300)?;
    let mut lengths = lengths(u)?;
    let mut said = content.len() as u32;
    if u.ratio(3, 4)? {
        lengths = vec![said / 2, said - said / 2];
    }
    if u.ratio(1, 8)? {
        said = number(u)? as u32;
    }
    let frame = some_frame(&lengths, said, &compressed(&content));
    mutate(u, frame)
}

pub(super) fn any_chunk_list(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let list = some_chunk_list(&lengths(u)?);
    mutate(u, list)
}

pub(super) fn any_index_entry(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let table = u.int_in_range(0..=3u8)?;
    let value = match table {
        0 => u.arbitrary::<[u8; 20]>()?.to_vec(),
        1 => [&[1, 0, 0, 0], &values::root(u)?.encode()[..]].concat(),
        2 => {
            let signed = values::signed(u)?;
            [signed.signature().as_slice(), signed.record()].concat()
        }
        _ => packed_object(&values::page(u)?),
    };
    mutate(u, [&[table], &value[..]].concat())
}

pub(super) fn any_record_value(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let table = u.int_in_range(0..=2u8)?;
    let value = match table {
        0 => {
            let signed = values::signed(u)?;
            [signed.signature().as_slice(), signed.record()].concat()
        }
        1 => bytes(u, 64)?,
        _ => values::root(u)?.encode(),
    };
    mutate(u, [&[table], &value[..]].concat())
}

/// The scan's record of a directory.
pub(super) fn stat_record(input: &[u8]) {
    decode_stat_record(input);
}

pub(super) fn any_stat_record(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut names =
        (0..u.int_in_range(0..=4usize)?).map(|_| values::component(u)).collect::<Result<Vec<_>>>()?;
    names.sort();
    names.dedup();
    let record = some_stat_record(&names);
    mutate(u, record)
}
