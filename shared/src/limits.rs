//! Every bound shared by encoder and decoder. Nothing is allocated on a peer's behalf before it is checked
//! against these.

use crate::Totals;

/// Longest name of an entry, in bytes (NAME_MAX of Linux).
pub const COMPONENT_MAX_BYTES: usize = 255;
/// Longest path from the tree's root, in bytes (PATH_MAX of Linux without its NUL).
pub const PATH_MAX_BYTES: usize = 4_095;
/// Deepest nesting of directories below the root.
pub const DEPTH_MAX: usize = 64;
/// Longest symlink target, in bytes.
pub const SYMLINK_TARGET_MAX_BYTES: usize = 4_095;
/// Entries of one directory, in all of its pages.
pub const DIRECTORY_ENTRIES_MAX: u64 = 1 << 26;
/// Bytes of entries up to which a directory is a single page, whatever its names.
pub const SINGLE_PAGE_BYTES: u64 = 8 * 1024;
/// Items, entries or pages, after which a page may end because of a name. Without a least number, names
/// chosen for it would make pages of one entry, and trees of any height.
pub const PAGE_ITEMS_MIN: usize = 16;
/// Items after which a page ends in any case.
pub const PAGE_ITEMS_MAX: usize = 256;
/// Canonical bytes after which a page ends in any case.
pub const PAGE_BYTES: usize = 64 * 1024;
/// Levels of pages of one directory.
pub const PAGE_LEVELS_MAX: usize = 8;
/// Canonical bytes of the longest page, rounded up: an item ends it that begins before [`PAGE_BYTES`].
pub const PAGE_MAX_BYTES: usize = PAGE_BYTES + SYMLINK_ENTRY_MAX_BYTES;
/// Canonical bytes of the longest file or directory entry, rounded up.
pub const ENTRY_MAX_BYTES: usize = 336;
/// Canonical bytes of the longest symlink entry, rounded up.
pub const SYMLINK_ENTRY_MAX_BYTES: usize = ENTRY_MAX_BYTES + SYMLINK_TARGET_MAX_BYTES;
/// Canonical bytes of a generation record.
pub const GENERATION_RECORD_MAX_BYTES: usize = 8 * 1024;
/// Canonical bytes of a trust document with its signature.
pub const TRUST_DOCUMENT_MAX_BYTES: usize = 4 * 1024;
/// The authority's certificate in a trust document, DER.
pub const AUTHORITY_CERTIFICATE_MAX_BYTES: usize = 2 * 1024;
/// Longest label of a generation, in bytes.
pub const LABEL_MAX_BYTES: usize = 1_024;
/// Generation numbers that one signing key may use: thirty years of one a second.
pub const NUMBERS_PER_KEY: u64 = 1_000_000_000;
/// Epochs that one signing key may use.
pub const EPOCHS_PER_KEY: u32 = 16;
/// Uncompressed bytes of a stored frame.
pub const FRAME_MAX_BYTES: usize = 1024 * 1024;
/// Pieces of one stored frame.
pub const FRAME_PIECES_MAX: usize = 16 * 1024;
/// Uncompressed bytes of the piece positions of a stored frame.
pub const FRAME_PLACES_MAX_BYTES: usize = 512 * 1024;
/// Bytes of all bases of one delta frame.
pub const DELTA_BASES_MAX_BYTES: usize = 4 * 1024 * 1024;
/// Decoded bytes of one delta frame, without copies.
pub const DELTA_OUTPUT_MAX_BYTES: usize = 1024 * 1024;
/// Bytes of an encoded delta, before and after decompression: its output, plus the overhead on bytes without
/// a match.
pub const DELTA_ENCODED_MAX_BYTES: usize = DELTA_OUTPUT_MAX_BYTES + 64 * 1024;
/// Bases, pieces and copies of one delta frame in total.
pub const DELTA_PLACES_MAX: usize = 16 * 1024;
/// Uncompressed bytes of the positions of bases, pieces and copies.
pub const DELTA_PLACES_MAX_BYTES: usize = 512 * 1024;
/// Uncompressed bytes of a frame of directory objects or patches.
pub const DIRECTORY_FRAME_BYTES: usize = 1024 * 1024;
/// Names in one patch of a directory. A larger change is a chain of patches.
pub const PATCH_NAMES_MAX: usize = 2048;
/// Canonical bytes of entries after which a patch of a directory ends in any case.
pub const PATCH_BYTES: usize = 256 * 1024;
/// Files or directories named by one objects request.
pub const OBJECTS_BATCH_MAX: usize = 16_384;
/// Content bytes that one objects request should cover, to bound memory and progress.
pub const OBJECTS_BATCH_BYTES: u64 = 128 * 1024 * 1024;
/// An encoded gRPC message on a fetch stream: a frame of at most 1 MiB uncompressed, with the list of its
/// pieces, or a frame of directories.
pub const FETCH_MESSAGE_MAX_BYTES: usize = 4 * DIRECTORY_FRAME_BYTES;
/// An encoded gRPC message on a control stream.
pub const CONTROL_MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// Changes in one part of an update, which bound the memory that updating takes. Origin and agents must use
/// the same value: otherwise an update of several parts gains nothing.
pub const PART_CHANGES_MAX: usize = 20 * 1024;
/// Bytes of paths, names and symlink targets in one part of an update, rounded up.
pub const PART_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest encoded update that is carried inside an announcement.
pub const INLINE_UPDATE_MAX_BYTES: usize = 256 * 1024;
/// Generations that a `Hello` may list as held.
pub const HELD_GENERATIONS_MAX: usize = 64;
/// Generations that a `Hello` may list as refused.
pub const REFUSED_GENERATIONS_MAX: usize = 64;
/// Locations in an announcement.
pub const LOCATIONS_MAX: usize = 8;
/// Longest location, in bytes.
pub const LOCATION_MAX_BYTES: usize = 1_024;
/// Longest name of an agent, in bytes.
pub const AGENT_NAME_MAX_BYTES: usize = 63;
/// Longest reason in a `Failed`, in bytes.
pub const REASON_MAX_BYTES: usize = 4 * 1024;
/// DER bytes of a certificate request.
pub const CERTIFICATE_REQUEST_MAX_BYTES: usize = 8 * 1024;
/// Smallest chunk, in bytes. Changing a chunk size changes no root, only the chunks that contents share.
pub const CHUNK_MIN_BYTES: usize = 16 * 1024;
/// Average chunk, in bytes.
pub const CHUNK_AVERAGE_BYTES: usize = 64 * 1024;
/// Largest chunk, in bytes.
pub const CHUNK_MAX_BYTES: usize = 256 * 1024;
/// HTTP/2 window of one stream received by an origin, in bytes. Small, because agents send requests and no
/// bulk data.
pub const ORIGIN_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// HTTP/2 window of one connection received by an origin, in bytes.
pub const ORIGIN_CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// HTTP/2 window of one stream received by an agent, in bytes. A window is renewed when half of it is used,
/// so this covers 80 ms at 100 MB/s.
pub const STREAM_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// HTTP/2 window of one connection received by an agent, in bytes.
pub const CONNECTION_WINDOW_BYTES: u32 = 24 * 1024 * 1024;
/// Largest HTTP/2 frame, in bytes: a ping waits until the frame before it is out.
pub const HTTP2_FRAME_BYTES: u32 = 64 * 1024;

/// Contents of one path of a collected directory that are remembered after they were current.
pub const COLLECTED_PAST_MAX: usize = 1_000;
/// Milliseconds for which they, and removals, are remembered: a year.
pub const COLLECTED_PAST_MS: u64 = 365 * 24 * 60 * 60 * 1_000;

/// Most directory objects that a tree with these totals can have: one for each directory, and at most one
/// more for each name, because a directory of several pages has at least 16 names.
pub fn directory_objects_max(totals: &Totals) -> u64 {
    totals.entries.saturating_mul(2).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::encode_entries;
    use crate::{Component, ContentHash, Entry, Kind, Metadata, ObjectHash, Timestamp};

    #[test]
    fn no_entry_is_larger_than_its_bound() {
        let time = Timestamp { seconds: i64::MAX, nanoseconds: 999_999_999 };
        let metadata = Metadata { mode: 0o777, uid: u32::MAX, gid: u32::MAX, mtime: time };
        let kinds = [
            Kind::File { content: ContentHash::of(b""), size: u64::MAX },
            Kind::Directory { object: ObjectHash::from_bytes([9; 32]), totals: Totals::default() },
            Kind::Symlink { target: vec![b't'; SYMLINK_TARGET_MAX_BYTES].into() },
        ];
        for (kind, most) in kinds.into_iter().zip([ENTRY_MAX_BYTES, ENTRY_MAX_BYTES, SYMLINK_ENTRY_MAX_BYTES])
        {
            let name = Component::new(&[b'n'; COMPONENT_MAX_BYTES]).expect("a name");
            let bytes = encode_entries(&[Entry { name, metadata, kind }]).len();
            assert!(bytes <= most, "{bytes}");
        }
    }
}
