use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::hash::ContentHash;
use crate::wire::Frame;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn tag(seed: u8) -> ContentTag {
    ContentTag::of(&ContentHash::of(&[seed]))
}

fn frame() -> DeltaFrame {
    let file = BasisFile { content: tag(1), path: None };
    let elsewhere = BasisFile { content: tag(3), path: Some(TreePath::from_bytes(b"a/b").expect("valid")) };
    DeltaFrame {
        encoded: Encoded::by_zstd(b"prefix", &noise(1, 1000)).expect("encodes"),
        bases: vec![Basis { file: file.clone(), offset: 0, length_bytes: 6 }],
        pieces: vec![DeltaPiece { file: tag(2), file_offset: 0, length_bytes: 1000 }],
        copies: vec![
            DeltaCopy {
                file: tag(2),
                file_offset: 1000,
                basis: elsewhere,
                basis_offset: 9,
                length_bytes: 1 << 40,
            },
            DeltaCopy { file: tag(2), file_offset: 2000, basis: file, basis_offset: 0, length_bytes: 1 },
        ],
        replaced: vec![tag(4), tag(5)],
    }
}

fn read(message: v1::DeltaFrame) -> Result<DeltaFrame, WireError> {
    let frame = v1::FetchFrame { item: 0, frame: Some(v1::fetch_frame::Frame::Delta(message)) };
    match Frame::from_message(frame)? {
        Frame::Delta(delta) => Ok(delta),
        other => panic!("{other:?}"),
    }
}

/// A message with other places.
fn with_places(places: &v1::DeltaPlaces) -> v1::DeltaFrame {
    let bytes = places.encode_to_vec();
    v1::DeltaFrame { places_bytes: bytes.len() as u32, places: compress(&bytes), ..frame().to_message() }
}

#[test]
fn a_frame_survives_the_wire() {
    let (sent, received) = (frame(), read(frame().to_message()).expect("well-formed"));
    assert_eq!(received.bases, sent.bases);
    assert_eq!(received.pieces, sent.pieces);
    assert_eq!(received.copies, sent.copies);
    assert_eq!(received.replaced, sent.replaced);
    assert_eq!(received.encoded.restore(b"prefix", 1000).expect("restores"), noise(1, 1000));
}

#[test]
fn a_prefix_of_four_megabytes_is_searched_from_end_to_end() {
    let prefix = noise(2, DELTA_BASES_MAX_BYTES);
    for start in [0, 1_700_000, DELTA_BASES_MAX_BYTES - DELTA_OUTPUT_MAX_BYTES] {
        let mut data = prefix[start..start + DELTA_OUTPUT_MAX_BYTES].to_vec();
        data[500_000] ^= 1;
        let encoded = Encoded::by_zstd(&prefix, &data).expect("encodes");
        assert!(encoded.compressed.len() < 2_000, "{} at {start}", encoded.compressed.len());
        assert_eq!(encoded.restore(&prefix, data.len()).expect("restores"), data);
    }
}

/// Text in which the same words follow each other in another order.
fn text(seed: u64, length: usize) -> Vec<u8> {
    let words: Vec<String> = noise(1, 4096).chunks(4).map(|word| format!("{:x?} ", word)).collect();
    let order = noise(seed, 2 * length);
    let chosen =
        order.chunks(2).map(|two| &words[usize::from(u16::from_le_bytes([two[0], two[1]])) % words.len()]);
    chosen.flat_map(|word| word.bytes()).take(length).collect()
}

#[test]
fn text_is_found_all_over_a_long_prefix_and_more_effort_finds_more() {
    let prefix = text(2, DELTA_BASES_MAX_BYTES / 2);
    for start in [0, 700_000, prefix.len() - DELTA_OUTPUT_MAX_BYTES] {
        let mut data = prefix[start..start + DELTA_OUTPUT_MAX_BYTES].to_vec();
        data.iter_mut().step_by(50_000).for_each(|byte| *byte ^= 1);
        let encoded = Encoded::by_zstd(&prefix, &data).expect("encodes");
        assert!(encoded.compressed.len() < data.len() / 8, "{} at {start}", encoded.compressed.len());
    }
    let (prefix, data) = (include_bytes!("../delta.rs"), include_bytes!("tests.rs"));
    let [low, high] = [DeltaEffort::Low, DeltaEffort::High].map(|effort| {
        let encoded = Encoded::smallest(prefix, data, effort).expect("encodes");
        assert_eq!(encoded.restore(prefix, data.len()).expect("restores"), data);
        encoded.compressed.len()
    });
    assert!(high < low, "{high} and {low} bytes");
}

#[test]
fn what_does_not_compress_stays_within_the_limit() {
    let (prefix, data) = (noise(3, 100_000), noise(4, DELTA_OUTPUT_MAX_BYTES));
    assert!(Encoded::by_zstd(&prefix, &data).expect("encodes").compressed.len() <= DELTA_ENCODED_MAX_BYTES);
    assert!(Encoded::by_rsync(&prefix, &data).is_none_or(|e| e.compressed.len() <= DELTA_ENCODED_MAX_BYTES));
}

#[test]
fn another_length_is_refused() {
    let (prefix, data) = (noise(5, 10_000), noise(5, 9_000));
    for encoded in [Encoded::by_zstd(&prefix, &data).ok(), Encoded::by_rsync(&prefix, &data)] {
        let encoded = encoded.expect("encodes");
        assert!(encoded.restore(&prefix, 8_999).is_err());
        assert!(encoded.restore(&prefix, 9_001).is_err());
        assert!(encoded.restore(&prefix[..100], 9_000).is_err());
    }
}

#[test]
fn amounts_above_the_limits_are_refused() {
    let is_limit = |message| matches!(read(message), Err(WireError::Limit { .. }));
    let mut message = frame().to_message();
    message.compressed = vec![0; DELTA_ENCODED_MAX_BYTES + 1].into();
    assert!(is_limit(message));
    let mut message = frame().to_message();
    message.places_bytes = DELTA_PLACES_MAX_BYTES as u32 + 1;
    assert!(is_limit(message));
    let mut message = frame().to_message();
    message.encoding = v1::DeltaEncoding::Rsync.into();
    message.delta_bytes = DELTA_ENCODED_MAX_BYTES as u32 + 1;
    assert!(is_limit(message));

    let (basis, piece) = (basis_message(&frame().bases[0]), piece_message(&frame().pieces[0]));
    let half = v1::DeltaBasis { length_bytes: DELTA_BASES_MAX_BYTES as u32 / 2 + 1, ..basis };
    assert!(is_limit(with_places(&v1::DeltaPlaces {
        bases: vec![half.clone(), half],
        ..Default::default()
    })));
    let half = v1::DeltaPiece { length_bytes: DELTA_OUTPUT_MAX_BYTES as u32 / 2 + 1, ..piece };
    let pieces = vec![half.clone(), half];
    assert!(is_limit(with_places(&v1::DeltaPlaces { pieces, ..Default::default() })));
    let pieces = vec![v1::DeltaPiece::default(); DELTA_PLACES_MAX + 1];
    assert!(is_limit(with_places(&v1::DeltaPlaces { pieces, ..Default::default() })));
}

#[test]
fn what_is_replaced_becomes_a_basis_and_a_piece() {
    let known = |old_bytes, new_bytes| {
        move |new| (new != tag(9)).then_some(Replacement { old: tag(8), old_bytes, new_bytes })
    };
    let mut resolved = frame();
    resolved.resolve(&known(10, 20)).expect("known");
    assert_eq!((resolved.bases.len(), resolved.pieces.len(), resolved.output_bytes()), (3, 3, 1040));
    assert_eq!(resolved.bases[2].file.content, tag(8));
    assert_eq!(resolved.pieces[2], DeltaPiece { file: tag(5), file_offset: 0, length_bytes: 20 });
    let half = DELTA_BASES_MAX_BYTES as u64 / 2;
    assert!(matches!(frame().resolve(&known(half, 20)), Err(WireError::Limit { .. })));
    assert!(matches!(frame().resolve(&known(10, u64::MAX)), Err(WireError::Limit { .. })));
    let mut unknown = DeltaFrame { replaced: vec![tag(9)], ..frame() };
    assert!(matches!(unknown.resolve(&known(10, 20)), Err(WireError::UnknownTag)));
}

#[test]
fn malformed_places_are_refused() {
    let (basis, piece) = (basis_message(&frame().bases[0]), piece_message(&frame().pieces[0]));
    let copy = copy_message(&frame().copies[0]);
    let bases = |basis| v1::DeltaPlaces { bases: vec![basis], ..Default::default() };
    let pieces = |piece| v1::DeltaPlaces { pieces: vec![piece], ..Default::default() };
    let copies = |copy| v1::DeltaPlaces { copies: vec![copy], ..Default::default() };
    let short = Bytes::from_static(b"1234");
    for bad in [
        bases(v1::DeltaBasis { offset: u64::MAX, ..basis.clone() }),
        pieces(v1::DeltaPiece { file_offset: u64::MAX, ..piece.clone() }),
        pieces(v1::DeltaPiece { length_bytes: 0, ..piece.clone() }),
        copies(v1::DeltaCopy { length_bytes: 0, ..copy.clone() }),
        copies(v1::DeltaCopy { length_bytes: u64::MAX, ..copy.clone() }),
        copies(v1::DeltaCopy { basis_offset: u64::MAX, ..copy.clone() }),
    ] {
        assert!(matches!(read(with_places(&bad)), Err(WireError::PieceRange)), "{bad:?}");
    }
    for bad in [
        bases(v1::DeltaBasis { content: short.clone(), ..basis.clone() }),
        pieces(v1::DeltaPiece { file: short.clone(), ..piece }),
        copies(v1::DeltaCopy { file: short.clone(), ..copy.clone() }),
        copies(v1::DeltaCopy { basis_content: short, ..copy }),
    ] {
        assert!(matches!(read(with_places(&bad)), Err(WireError::Tag { .. })), "{bad:?}");
    }
    let bad = v1::DeltaBasis { path: Bytes::from_static(b"../etc/passwd"), ..basis };
    assert!(matches!(read(with_places(&bases(bad))), Err(WireError::Path(_))));
    let unknown = v1::DeltaFrame { encoding: 9, ..frame().to_message() };
    assert!(matches!(read(unknown), Err(WireError::Missing { field: "encoding" })));
}

/// A basis, and what an edit makes of it.
fn edited() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
    let edit = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        proptest::collection::vec(any::<u8>(), 0..300),
    );
    (any::<u64>(), 0usize..60_000, proptest::collection::vec(edit, 0..6)).prop_map(|(seed, length, edits)| {
        let basis = noise(seed, length);
        let mut data = basis.clone();
        for (start, end, bytes) in edits {
            let (start, end) = (start.index(data.len() + 1), end.index(data.len() + 1));
            data.splice(start.min(end)..start.max(end).min(start.min(end) + 5_000), bytes);
        }
        (basis, data)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_was_encoded_is_restored((basis, data) in edited()) {
        let encoded = Encoded::by_zstd(&basis, &data).expect("encodes");
        prop_assert_eq!(&encoded.restore(&basis, data.len()).expect("restores"), &data);
        if let Some(encoded) = Encoded::by_rsync(&basis, &data) {
            prop_assert_eq!(encoded.restore(&basis, data.len()).expect("restores"), data);
        }
    }

    #[test]
    fn damaged_deltas_never_panic(
        (basis, data) in edited(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        length in 0usize..70_000,
    ) {
        for encoded in Encoded::by_zstd(&basis, &data).ok().into_iter().chain(Encoded::by_rsync(&basis, &data)) {
            let mut damaged = encoded.compressed.to_vec();
            if !damaged.is_empty() {
                let at = at.index(damaged.len());
                damaged[at] ^= 1 << bit;
            }
            let damaged = Encoded { compressed: damaged.into(), ..encoded };
            let _ = damaged.restore(&basis, data.len());
            let _ = damaged.restore(&basis[..basis.len() / 2], length);
        }
    }

    #[test]
    fn random_rsync_deltas_never_panic(basis in proptest::collection::vec(any::<u8>(), 0..300), tail in proptest::collection::vec(any::<u8>(), 0..60)) {
        let delta = [&[0x72, 0x73, 0x02, 0x36][..], &tail].concat();
        let encoding = DeltaEncoding::Rsync { delta_bytes: delta.len() };
        let _ = Encoded { encoding, compressed: compress(&delta) }.restore(&basis, 100);
    }
}

#[test]
fn a_basis_whose_weak_hashes_all_collide_costs_little_time_and_literals() {
    // Every window of the data has the weak hash of the basis' blocks: neither sum changes by +1, -2, +1.
    let data = vec![100; 1 << 20];
    let block = RSYNC_OPTIONS.block_size as usize;
    let mut basis = data.clone();
    for at in (0..basis.len()).step_by(block) {
        // Another place in every block, so that the strong hashes differ as well.
        let inside = at + at / block % (block - 2);
        basis[inside..inside + 3].copy_from_slice(&[101, 98, 101]);
    }
    // Processor time of this thread, which load beside it does not change.
    let used = || rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime).tv_sec;
    let before = used();
    let encoded = Encoded::by_rsync(&basis, &data).expect("encodes");
    // One strong hash for each of a million windows takes some 10 s in a debug build.
    assert!(used() - before < 5, "{} s", used() - before);
    assert!(matches!(encoded.encoding, DeltaEncoding::Rsync { delta_bytes } if delta_bytes >= data.len()));
    assert_eq!(encoded.restore(&basis, data.len()).expect("restores"), data);
}
