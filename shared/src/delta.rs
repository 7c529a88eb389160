//! New content made from old: the contents of a delta frame, and how its bytes are encoded and restored.
//!
//! ```text
//! basis  basis  basis          stretches of files of the tree that is updated from; concatenated: the prefix
//!    \      |     /
//!   encoded bytes + prefix     one zstd frame with the prefix referenced, or an rsync delta against it
//!           |
//! piece piece piece            stretches of new files, end to end
//! ```
//!
//! A copy restores the part that a new file shares with an old one without decoding. Files are named by the
//! first bytes of their hashes ([`ContentTag`]), because both sides know from the manifests which contents an
//! update is about. The result is trusted only after the whole content has been checked against its hash. A
//! damaged basis, or a tag that fits two contents, therefore costs a fetch and never a wrong byte.

#![cfg_attr(not(test), deny(clippy::arithmetic_side_effects, clippy::indexing_slicing))]

use bytes::Bytes;
use fast_rsync::{Signature, SignatureOptions};
use prost::Message;
use syncd_proto::v1;
use zstd::zstd_safe::{CCtx, CParameter, DCtx, get_error_name};

use crate::content_tag::ContentTag;
use crate::limits::{
    DELTA_BASES_MAX_BYTES, DELTA_ENCODED_MAX_BYTES, DELTA_OUTPUT_MAX_BYTES, DELTA_PLACES_MAX,
    DELTA_PLACES_MAX_BYTES,
};
use crate::tree_path::TreePath;
use crate::wire::{Fields, WireError, compress, decompress, limit};

/// zstd level of deltas, and the entries of its tables, as a power of two. The level's own tables are too
/// small for a prefix of megabytes. WIRE-7 in docs/decisions has the figures.
const QUICK: (i32, u32) = (3, 18);
/// The same for a second attempt at data that matches its basis poorly.
const CAREFUL: (i32, u32) = (8, 20);
/// A delta larger than this fraction of its output (1/32) counts as a poor match.
const POOR_SHARE: usize = 32;
/// Entropy in bits per byte from which data is taken to be incompressible at every level.
const ENTROPY_MAX: f64 = 7.0;
/// Smallest window log that zstd accepts.
const WINDOW_LOG_MIN: u32 = 10;
/// Field numbers of the repeated messages of `DeltaPlaces`: bases, pieces, copies.
const PLACES: [u32; 3] = [1, 2, 3];
/// The library panics or loops forever on unusual options, so it is only ever given these.
const RSYNC_OPTIONS: SignatureOptions = SignatureOptions { block_size: 256, crypto_hash_size: 8 };

/// Time that an encoding may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeltaEffort {
    /// For few readers, who wait for it.
    #[default]
    Low,
    /// For many readers or a thin line: fewer bytes where data matches its basis poorly.
    High,
}

/// A file of the tree that the update starts from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BasisFile {
    pub content: ContentTag,
    /// Path of the file. `None` means the path where the update replaces or removes this content.
    pub path: Option<TreePath>,
}

/// A range of a basis file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    pub file: BasisFile,
    /// Start of the range in the file, in bytes.
    pub offset: u64,
    pub length_bytes: u32,
}

/// A range of a new file, made of decoded bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaPiece {
    pub file: ContentTag,
    /// Start of the range in the new file, in bytes.
    pub file_offset: u64,
    pub length_bytes: u32,
}

/// A range of a new file that a basis file holds unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeltaCopy {
    pub file: ContentTag,
    /// Start of the range in the new file, in bytes.
    pub file_offset: u64,
    pub basis: BasisFile,
    /// Start of the range in the basis file, in bytes.
    pub basis_offset: u64,
    /// Any length, unlike a piece.
    pub length_bytes: u64,
}

/// How the bytes of a delta frame are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeltaEncoding {
    /// A zstd frame that references the prefix.
    ZstdPrefix,
    /// A zstd-compressed rsync delta against the prefix.
    Rsync {
        /// Uncompressed length of the delta.
        delta_bytes: usize,
    },
}

/// The encoded bytes of a delta frame, without its bases, pieces and copies.
#[derive(Debug, Clone)]
pub struct Encoded {
    pub encoding: DeltaEncoding,
    /// Empty for empty data.
    pub compressed: Bytes,
}

/// One message of deltas.
#[derive(Debug, Clone)]
pub struct DeltaFrame {
    /// Decodes to the pieces.
    pub encoded: Encoded,
    /// At most [`DELTA_BASES_MAX_BYTES`] in total.
    pub bases: Vec<Basis>,
    /// At most [`DELTA_OUTPUT_MAX_BYTES`] in total.
    pub pieces: Vec<DeltaPiece>,
    /// Interleaved with the pieces in the order of each file.
    pub copies: Vec<DeltaCopy>,
    /// Whole files that replace others. [`DeltaFrame::resolve`] turns them into bases and pieces.
    pub replaced: Vec<ContentTag>,
}

/// A content that replaces another one at the same path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    pub old: ContentTag,
    pub old_bytes: u64,
    pub new_bytes: u64,
}

/// Encoding failed. The only cause is lack of memory.
#[derive(Debug, thiserror::Error)]
#[error("encoding a delta failed: {0}")]
pub struct EncodeError(&'static str);

fn encode_failed(code: usize) -> EncodeError {
    EncodeError(get_error_name(code))
}

fn decode_failed(code: usize) -> WireError {
    WireError::Compression(std::io::Error::other(get_error_name(code)))
}

/// Order-0 entropy of `data`, in bits per byte.
fn entropy(data: &[u8]) -> f64 {
    let mut counts = [0u32; 256];
    for byte in data {
        if let Some(count) = counts.get_mut(usize::from(*byte)) {
            *count = count.saturating_add(1);
        }
    }
    let all = data.len() as f64;
    let shares = counts.iter().filter(|count| **count > 0).map(|count| f64::from(*count) / all);
    shares.map(|share| -share * share.log2()).sum()
}

impl Encoded {
    /// Encodes `data`, at most [`DELTA_OUTPUT_MAX_BYTES`], against a prefix with zstd.
    pub fn by_zstd(prefix: &[u8], data: &[u8]) -> Result<Self, EncodeError> {
        Self::at_level(prefix, data, QUICK)
    }

    /// Returns the smallest encoding that is worth trying. zstd wins if it finds most of the data in the
    /// prefix. Otherwise, incompressible data is also tried with rsync's algorithm, which marks edits more
    /// tersely, and compressible data, if the effort is high, with a higher level.
    pub fn smallest(prefix: &[u8], data: &[u8], effort: DeltaEffort) -> Result<Self, EncodeError> {
        let quick = Self::by_zstd(prefix, data)?;
        let bytes = quick.compressed.len();
        if bytes <= data.len() / POOR_SHARE {
            return Ok(quick);
        }
        let other = match effort {
            _ if entropy(data) > ENTROPY_MAX => Self::by_rsync(prefix, data),
            DeltaEffort::Low => None,
            DeltaEffort::High => Some(Self::at_level(prefix, data, CAREFUL)?),
        };
        Ok(other.filter(|other| other.compressed.len() <= bytes).unwrap_or(quick))
    }

    fn at_level(prefix: &[u8], data: &[u8], (level, table_log): (i32, u32)) -> Result<Self, EncodeError> {
        let encoding = DeltaEncoding::ZstdPrefix;
        if data.is_empty() {
            return Ok(Self { encoding, compressed: Bytes::new() });
        }
        let mut context = CCtx::try_create().ok_or(EncodeError("out of memory"))?;
        // A prefix outside of the window silently has no effect.
        let both = prefix.len().saturating_add(data.len()) as u64;
        let window_log = u64::BITS.saturating_sub(both.leading_zeros()).max(WINDOW_LOG_MIN);
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(window_log),
            CParameter::HashLog(table_log),
            CParameter::ChainLog(QUICK.1),
            // It finds far copies in noise, where the search skips ever more. Elsewhere it hides better
            // matches.
            CParameter::EnableLongDistanceMatching(entropy(data) > ENTROPY_MAX),
            CParameter::ChecksumFlag(false),
        ] {
            context.set_parameter(parameter).map_err(encode_failed)?;
        }
        context.ref_prefix(prefix).map_err(encode_failed)?;
        let mut out = Vec::with_capacity(zstd::zstd_safe::compress_bound(data.len()));
        context.compress2(&mut out, data).map_err(encode_failed)?;
        out.shrink_to_fit();
        Ok(Self { encoding, compressed: out.into() })
    }

    /// Encodes `data`, at most [`DELTA_OUTPUT_MAX_BYTES`], against a prefix with rsync's algorithm. The delta
    /// is applied and compared with `data` first. `None` if the library fails or its result differs.
    pub fn by_rsync(prefix: &[u8], data: &[u8]) -> Option<Self> {
        if prefix.is_empty() || data.is_empty() || prefix.len() > DELTA_BASES_MAX_BYTES {
            return None;
        }
        let signature = Signature::calculate(prefix, RSYNC_OPTIONS);
        let mut delta = Vec::new();
        fast_rsync::diff(&signature.index(), data, &mut delta).ok()?;
        let encoding = DeltaEncoding::Rsync { delta_bytes: delta.len() };
        let mut applied = Vec::with_capacity(data.len());
        fast_rsync::apply_limited(prefix, &delta, &mut applied, data.len()).ok()?;
        (delta.len() <= DELTA_ENCODED_MAX_BYTES && applied == data)
            .then(|| Self { encoding, compressed: compress(&delta) })
    }

    /// Restores the data: exactly `length` bytes, at most [`DELTA_OUTPUT_MAX_BYTES`]. A prefix other than the
    /// one used to encode yields an error or different bytes.
    pub fn restore(&self, prefix: &[u8], length: usize) -> Result<Vec<u8>, WireError> {
        let mut out = Vec::new();
        self.restore_to(prefix, length, &mut out)?;
        Ok(out)
    }

    /// Like [`Encoded::restore`], into a reused buffer whose previous content is discarded.
    pub fn restore_to(&self, prefix: &[u8], length: usize, out: &mut Vec<u8>) -> Result<(), WireError> {
        out.clear();
        if length == 0 {
            return Ok(());
        }
        out.reserve_exact(length);
        match self.encoding {
            DeltaEncoding::ZstdPrefix => {
                let out_of_memory = || WireError::Compression(std::io::ErrorKind::OutOfMemory.into());
                let mut context = DCtx::try_create().ok_or_else(out_of_memory)?;
                context.ref_prefix(prefix).map_err(decode_failed)?;
                context.decompress(out, &self.compressed).map_err(decode_failed)?;
            }
            DeltaEncoding::Rsync { delta_bytes } => {
                let delta = decompress(&self.compressed, delta_bytes)?;
                fast_rsync::apply_limited(prefix, &delta, out, length).map_err(WireError::Rsync)?;
            }
        }
        if out.len() != length {
            return Err(WireError::Length { expected: length, actual: out.len() });
        }
        Ok(())
    }
}

impl DeltaFrame {
    /// Total length of the pieces. Replaced files count only after [`Self::resolve`].
    pub fn output_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.length_bytes as usize).sum()
    }

    /// Turns the [`DeltaFrame::replaced`] files into bases and pieces, using sizes from the manifests.
    pub fn resolve(
        &mut self,
        replacement: &dyn Fn(ContentTag) -> Option<Replacement>,
    ) -> Result<(), WireError> {
        let (mut bases_bytes, mut output) = (sum_bases(&self.bases), self.output_bytes() as u64);
        for file in std::mem::take(&mut self.replaced) {
            let known = replacement(file).ok_or(WireError::UnknownTag)?;
            bases_bytes = bases_bytes.saturating_add(known.old_bytes);
            output = output.saturating_add(known.new_bytes);
            limit("bases of a delta", bases_bytes as usize, DELTA_BASES_MAX_BYTES)?;
            limit("output of a delta", output as usize, DELTA_OUTPUT_MAX_BYTES)?;
            let basis = BasisFile { content: known.old, path: None };
            self.bases.push(Basis { file: basis, offset: 0, length_bytes: known.old_bytes as u32 });
            self.pieces.push(DeltaPiece { file, file_offset: 0, length_bytes: known.new_bytes as u32 });
        }
        Ok(())
    }

    pub fn to_message(&self) -> v1::DeltaFrame {
        let places = v1::DeltaPlaces {
            bases: self.bases.iter().map(basis_message).collect(),
            pieces: self.pieces.iter().map(piece_message).collect(),
            copies: self.copies.iter().map(copy_message).collect(),
            replaced: self.replaced.iter().flat_map(|tag| *tag.as_bytes()).collect::<Vec<u8>>().into(),
        }
        .encode_to_vec();
        let (encoding, delta_bytes) = match self.encoded.encoding {
            DeltaEncoding::ZstdPrefix => (v1::DeltaEncoding::ZstdPrefix, 0),
            DeltaEncoding::Rsync { delta_bytes } => (v1::DeltaEncoding::Rsync, delta_bytes as u32),
        };
        v1::DeltaFrame {
            encoding: encoding.into(),
            compressed: self.encoded.compressed.clone(),
            delta_bytes,
            places_bytes: places.len() as u32,
            places: compress(&places),
        }
    }

    /// Checks the form of a message: lengths, ranges and limits.
    pub(crate) fn from_message(message: v1::DeltaFrame) -> Result<Self, WireError> {
        limit("encoded delta", message.compressed.len(), DELTA_ENCODED_MAX_BYTES)?;
        let encoding = match v1::DeltaEncoding::try_from(message.encoding) {
            Ok(v1::DeltaEncoding::ZstdPrefix) => DeltaEncoding::ZstdPrefix,
            Ok(v1::DeltaEncoding::Rsync) => {
                let delta_bytes = message.delta_bytes as usize;
                limit("rsync delta", delta_bytes, DELTA_ENCODED_MAX_BYTES)?;
                DeltaEncoding::Rsync { delta_bytes }
            }
            _ => return Err(WireError::Missing { field: "encoding" }),
        };
        let places_bytes = message.places_bytes as usize;
        limit("places of a delta", places_bytes, DELTA_PLACES_MAX_BYTES)?;
        let places = decompress(&message.places, places_bytes)?;
        limit("places of a delta", Fields::count_of(&places, &PLACES)?, DELTA_PLACES_MAX)?;
        let places = v1::DeltaPlaces::decode(places.as_slice())?;
        let replaced = ContentTag::read_all(&places.replaced, "replaced")?;
        let counts = [places.bases.len(), places.pieces.len(), places.copies.len(), replaced.len()];
        let count = counts.into_iter().fold(0, usize::saturating_add);
        limit("places of a delta", count, DELTA_PLACES_MAX)?;
        let bases = places.bases.iter().map(read_basis).collect::<Result<Vec<_>, _>>()?;
        let pieces = places.pieces.iter().map(read_piece).collect::<Result<Vec<_>, _>>()?;
        let copies = places.copies.iter().map(read_copy).collect::<Result<Vec<_>, _>>()?;
        let encoded = Encoded { encoding, compressed: message.compressed };
        let frame = Self { encoded, bases, pieces, copies, replaced };
        limit("bases of a delta", sum_bases(&frame.bases) as usize, DELTA_BASES_MAX_BYTES)?;
        limit("output of a delta", frame.output_bytes(), DELTA_OUTPUT_MAX_BYTES)?;
        Ok(frame)
    }
}

fn sum_bases(bases: &[Basis]) -> u64 {
    bases.iter().map(|basis| u64::from(basis.length_bytes)).sum()
}

fn path_message(file: &BasisFile) -> Bytes {
    file.path.as_ref().map_or(Bytes::new(), |path| Bytes::copy_from_slice(path.as_bytes()))
}

fn read_basis_file(content: &[u8], path: &[u8]) -> Result<BasisFile, WireError> {
    let path = if path.is_empty() { None } else { Some(TreePath::from_bytes(path)?) };
    Ok(BasisFile { content: ContentTag::read(content, "basis")?, path })
}

fn basis_message(basis: &Basis) -> v1::DeltaBasis {
    v1::DeltaBasis {
        content: basis.file.content.to_bytes(),
        path: path_message(&basis.file),
        offset: basis.offset,
        length_bytes: basis.length_bytes,
    }
}

fn read_basis(message: &v1::DeltaBasis) -> Result<Basis, WireError> {
    let (offset, length_bytes) = (message.offset, message.length_bytes);
    offset.checked_add(u64::from(length_bytes)).ok_or(WireError::PieceRange)?;
    Ok(Basis { file: read_basis_file(&message.content, &message.path)?, offset, length_bytes })
}

fn piece_message(piece: &DeltaPiece) -> v1::DeltaPiece {
    v1::DeltaPiece {
        file: piece.file.to_bytes(),
        file_offset: piece.file_offset,
        length_bytes: piece.length_bytes,
    }
}

fn read_piece(message: &v1::DeltaPiece) -> Result<DeltaPiece, WireError> {
    let (file_offset, length_bytes) = (message.file_offset, message.length_bytes);
    let end = file_offset.checked_add(u64::from(length_bytes));
    if length_bytes == 0 || end.is_none() {
        return Err(WireError::PieceRange);
    }
    Ok(DeltaPiece { file: ContentTag::read(&message.file, "piece")?, file_offset, length_bytes })
}

fn copy_message(copy: &DeltaCopy) -> v1::DeltaCopy {
    v1::DeltaCopy {
        file: copy.file.to_bytes(),
        file_offset: copy.file_offset,
        basis_content: copy.basis.content.to_bytes(),
        basis_path: path_message(&copy.basis),
        basis_offset: copy.basis_offset,
        length_bytes: copy.length_bytes,
    }
}

fn read_copy(message: &v1::DeltaCopy) -> Result<DeltaCopy, WireError> {
    let (file_offset, basis_offset) = (message.file_offset, message.basis_offset);
    let length_bytes = message.length_bytes;
    let ends = file_offset.checked_add(length_bytes).zip(basis_offset.checked_add(length_bytes));
    if length_bytes == 0 || ends.is_none() {
        return Err(WireError::PieceRange);
    }
    let file = ContentTag::read(&message.file, "copy")?;
    let basis = read_basis_file(&message.basis_content, &message.basis_path)?;
    Ok(DeltaCopy { file, file_offset, basis, basis_offset, length_bytes })
}

#[cfg(test)]
mod tests;
