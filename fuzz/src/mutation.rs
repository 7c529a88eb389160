//! Mutations that a structured generator applies to a valid value, one per input.

use arbitrary::{Result, Unstructured};

/// Values at which lengths and counts tend to fail.
const ODD: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_fffe,
    0xffff_ffff_ffff_ffff,
];

/// An integer, often an odd one.
pub(crate) fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3u8)? {
        0 => *u.choose(&ODD)?,
        1 => u.arbitrary()?,
        _ => u.int_in_range(0..=4096)?,
    })
}

/// Makes at most one change.
pub(crate) fn mutate(u: &mut Unstructured<'_>, mut bytes: Vec<u8>) -> Result<Vec<u8>> {
    if bytes.is_empty() {
        return Ok(bytes);
    }
    let at = u.int_in_range(0..=bytes.len() - 1)?;
    match u.int_in_range(0..=9u8)? {
        0 => bytes[at] ^= 1 << u.int_in_range(0..=7u8)?,
        1 => bytes[at] = u.arbitrary()?,
        2 => bytes.truncate(at),
        3 => bytes.insert(at, u.arbitrary()?),
        4 => drop(bytes.remove(at)),
        5 => {
            let width = *u.choose(&[1, 2, 4, 8])?;
            let value = u.choose(&ODD)?.to_le_bytes();
            let end = (at + width).min(bytes.len());
            bytes[at..end].copy_from_slice(&value[..end - at]);
        }
        6 => {
            let end = u.int_in_range(at..=bytes.len())?;
            let again = bytes[at..end].to_vec();
            bytes.splice(at..at, again);
        }
        _ => {}
    }
    Ok(bytes)
}
