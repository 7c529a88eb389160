//! Attacks with encoded updates, which describe how new content is made from old.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::delta::{Basis, BasisFile, DeltaCopy, DeltaEncoding, DeltaFrame, DeltaPiece, Encoded};
use syncd_shared::diff::DirectorySource;
use syncd_shared::directory::{DecodeDirectoryError, Page};
use syncd_shared::wire::{DirectoryPatch, patches_message};
use syncd_shared::{ContentHash, ContentTag, Kind, ObjectHash, TreePath, update_file};

use super::fake_origin::peak_mib;
use super::lying_origin::{World, bomb, noise};
use super::site::Site;

/// The objects of two sites.
struct Both<'a>(&'a Site, &'a Site);

impl DirectorySource for Both<'_> {
    type Error = DecodeDirectoryError;

    fn page(&self, hash: &ObjectHash) -> Result<Arc<Page>, DecodeDirectoryError> {
        let bytes = self.0.objects.get(hash).or_else(|| self.1.objects.get(hash)).expect("an object");
        Page::decode_verified(bytes, *hash)
    }
}

/// Honest patches from one site's directories to the other's.
fn honest_patches(from: &Site, to: &Site) -> F {
    let known = Both(from, to);
    let mut patches = Vec::new();
    let mut pairs = vec![(from.root().object, to.root().object)];
    while let Some((a, b)) = pairs.pop() {
        let (before, after) = (known.directory(&a).expect("reads"), known.directory(&b).expect("reads"));
        let mut add = |patch| {
            patches.push(patch);
            Ok::<_, DecodeDirectoryError>(())
        };
        DirectoryPatch::between(&known, Some(a), b, &mut add).expect("compares");
        for entry in after.entries() {
            if let (Kind::Directory { object, .. }, Some(Kind::Directory { object: old, .. })) =
                (&entry.kind, before.get(&entry.name).map(|entry| &entry.kind))
                && old != object
            {
                pairs.push((*old, *object));
            }
        }
    }
    F::Patches(patches_message(&patches))
}

fn large(site: &Site) -> ContentHash {
    let found = site.contents.iter().find(|(_, bytes)| bytes.len() > 500_000);
    *found.expect("a large file").0
}

fn end() -> F {
    F::End(v1::BatchEnd::default())
}

fn delta(frame: DeltaFrame) -> F {
    F::Delta(frame.to_message())
}

fn empty_delta() -> DeltaFrame {
    let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: Bytes::new() };
    DeltaFrame { encoded, bases: vec![], pieces: vec![], copies: vec![], replaced: vec![] }
}

fn basis(site: &Site) -> BasisFile {
    BasisFile {
        content: ContentTag::of(&large(site)),
        path: Some(TreePath::from_bytes(b"large.bin").expect("a path")),
    }
}

#[test]
fn hostile_updates_cost_a_fetch_and_nothing_else() {
    let mut world = World::new("hostile-updates");
    world.survived("no frames", 2, |_, _| vec![]);
    world.survived("no end", 3, |a, b| vec![honest_patches(a, b)]);
    world.survived("patches of nothing known", 4, |_, b| vec![honest_patches(b, b), end()]);
    let copy = |a: &Site, b: &Site, basis_offset, length_bytes, file_offset| {
        let file = ContentTag::of(&large(b));
        let copy = DeltaCopy { file, file_offset, basis: basis(a), basis_offset, length_bytes };
        vec![honest_patches(a, b), delta(DeltaFrame { copies: vec![copy], ..empty_delta() }), end()]
    };
    world.survived("a copy beyond the basis", 5, |a, b| copy(a, b, 500_000, 200_000, 0));
    world.survived("a copy far beyond the basis", 6, |a, b| copy(a, b, 1 << 62, 100, 0));
    world.survived("a copy longer than the file", 7, |a, b| copy(a, b, 0, 1 << 62, 0));
    world.survived("a copy to beyond the file", 8, |a, b| copy(a, b, 0, 1000, 1 << 40));
    world.survived("a copy of all of the old", 9, |a, b| copy(a, b, 0, 600_008, 0));
    world.survived("a thousand copies of the same", 10, |a, b| {
        let file = ContentTag::of(&large(b));
        let copy =
            DeltaCopy { file, file_offset: 0, basis: basis(a), basis_offset: 0, length_bytes: 600_000 };
        let frame = delta(DeltaFrame { copies: vec![copy; 1000], ..empty_delta() });
        vec![honest_patches(a, b), frame, end()]
    });
    let pieces = |b: &Site, lengths: &[u32]| -> Vec<DeltaPiece> {
        let file = ContentTag::of(&large(b));
        lengths
            .iter()
            .map(|length_bytes| DeltaPiece { file, file_offset: 0, length_bytes: *length_bytes })
            .collect()
    };
    world.survived("a delta that is noise", 11, |a, b| {
        let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: noise(5, 5000).into() };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("a delta that is a bomb", 12, |a, b| {
        let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: bomb() };
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("an rsync delta that is noise", 13, |a, b| {
        let raw = [&[0x72, 0x73, 0x02, 0x36], &noise(6, 500)[..]].concat();
        let compressed = zstd::bulk::compress(&raw, 1).expect("compresses").into();
        let encoded = Encoded { encoding: DeltaEncoding::Rsync { delta_bytes: raw.len() }, compressed };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("an rsync delta that copies without end", 14, |a, b| {
        // 0x54: COPY with eight bytes each for offset and length.
        let mut raw = vec![0x72, 0x73, 0x02, 0x36];
        for _ in 0..1000 {
            raw.push(0x54);
            raw.extend(0u64.to_be_bytes());
            raw.extend(u64::MAX.to_be_bytes());
        }
        let compressed = zstd::bulk::compress(&raw, 1).expect("compresses").into();
        let encoded = Encoded { encoding: DeltaEncoding::Rsync { delta_bytes: raw.len() }, compressed };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("more output than allowed", 15, |a, b| {
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { pieces: pieces(b, &[u32::MAX; 4]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("replacing what is no replacement", 16, |a, b| {
        let replaced = vec![ContentTag::of(&ContentHash::of(b"nobody"))];
        vec![honest_patches(a, b), delta(DeltaFrame { replaced, ..empty_delta() }), end()]
    });
    world.survived("replaced a thousand times", 17, |a, b| {
        let replaced = vec![ContentTag::of(&large(b)); 1000];
        vec![honest_patches(a, b), delta(DeltaFrame { replaced, ..empty_delta() }), end()]
    });
    world.survived("local content from elsewhere", 18, |a, b| {
        let local = |path: &'static [u8]| {
            F::Local(v1::LocalContent {
                file: Bytes::copy_from_slice(large(b).as_bytes()),
                source_path: Bytes::from_static(path),
            })
        };
        vec![honest_patches(a, b), local(b"index.html"), local(b"not/there"), end()]
    });
    let file = |a: &Site, b: &Site| {
        let frames = [v1::FetchFrame { item: 0, frame: Some(honest_patches(a, b)) }.encode_to_vec()];
        update_file::write_whole(&a.root().hash(), &b.root().hash(), &frames).expect("fits")
    };
    world.survived_file("a file that is none", 19, |_, _| Bytes::from_static(b"no update"));
    world.survived_file("a file cut short", 20, |a, b| file(a, b).slice(..200));
    world.survived_file("a damaged frame", 21, |a, b| {
        let mut bytes = file(a, b).to_vec();
        bytes[80] ^= 1;
        bytes.into()
    });
    world.survived_file("a file that leads elsewhere", 22, |a, b| file(b, a));
    world.survived_file("a frame that is no message", 23, |a, b| {
        update_file::write_whole(&a.root().hash(), &b.root().hash(), &[[0xff; 90]]).expect("fits")
    });
    println!("{} updates survived, peak {} MiB", world.tried(), peak_mib(world.pid()));
}
