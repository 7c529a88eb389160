//! Memory that directory objects cost an agent: those of a lying origin, and honest ones of large
//! directories.
//!
//! `SYNCD_ENTRIES=1000000` makes the honest directory that large, and only prints the result.

use std::sync::Arc;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::limits::{DIRECTORY_FRAME_BYTES, PAGE_MAX_BYTES};
use syncd_shared::wire::directories_message;
use syncd_shared::{ContentHash, Entry, Kind, ObjectHash, RootEntry, Totals};

use super::fake_origin::{Heard, Twist, peak_mib};
use super::lying_origin::{MEMORY_MAX_MIB, World, noise};
use super::site::{FILE, FOLDER, RawEntry, Site, named, raw_directory};

/// Default number of entries of the honest directory.
const ENTRIES: usize = 30_000;

/// Bytes of the largest messages of a lying origin.
const BOMB_BYTES: usize = 128 * 1024 * 1024;

/// Totals of a tree of 35,000 files: signed by an honest origin, and abused by a lying one.
const ORDINARY: Totals = Totals { entries: 38_000, files: 35_000, bytes: 600_000_000 };

/// A site whose signed totals alone are true.
fn site_with(totals: Totals) -> Site {
    let root = RootEntry { object: ObjectHash::from_bytes([7; 32]), metadata: FOLDER, totals };
    Site { root: Some(root), ..Site::default() }
}

/// Answers every request with these frames.
fn frames(frames: Vec<F>) -> Option<Twist> {
    Some(Arc::new(move |_: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        Box::new(frames.clone().into_iter())
    }))
}

/// A well-formed object of nearly this size that hardly compresses.
fn large_object(bytes: usize, seed: u64) -> Vec<u8> {
    let names: Vec<(Vec<u8>, Vec<u8>)> = (0..bytes / 320)
        .map(|number| {
            let mut name = format!("{number:08}").into_bytes();
            name.extend(noise(seed ^ number as u64, 240).iter().map(|byte| byte | 0x80));
            (name, noise(seed ^ !(number as u64), 32))
        })
        .collect();
    let entries: Vec<RawEntry<'_>> = names
        .iter()
        .map(|(name, hash)| {
            let rest = [hash.as_slice(), &9u64.to_le_bytes()].concat();
            RawEntry { rest, ..RawEntry::file(name) }
        })
        .collect();
    raw_directory(&entries)
}

#[test]
fn a_lying_origin_takes_no_more_memory_than_the_signed_totals_allow() {
    // Made before anybody connects, because an agent would be silent during the time that it takes.
    let page = |seed| large_object(PAGE_MAX_BYTES - 2_000, seed);
    let pages: Vec<Vec<u8>> = (0..12).map(page).collect();
    let mut objects = vec![F::Directories(directories_message(pages.iter().map(Vec::as_slice))); 6_000];
    objects.push(F::End(v1::BatchEnd::default()));
    let largest = zstd::bulk::compress(&vec![0; DIRECTORY_FRAME_BYTES], 19).expect("compresses");
    let zeros = zstd::bulk::compress(&vec![0; BOMB_BYTES], 19).expect("compresses");
    let huge = Bytes::from(noise(1, BOMB_BYTES - 1000));
    let mut world = World::new("hostile-memory");
    let uncompressed_bytes = BOMB_BYTES as u32;
    let bomb = F::Directories(v1::DirectoryObjects { compressed: zeros.into(), uncompressed_bytes });
    world.refused_site("a bomb of 128 MiB", site_with(ORDINARY), frames(vec![bomb]), "exceeds");
    let message = F::Directories(v1::DirectoryObjects { compressed: huge, uncompressed_bytes });
    world.refused_site("a message of 128 MiB", site_with(ORDINARY), frames(vec![message]), "large|limit");
    let uncompressed_bytes = DIRECTORY_FRAME_BYTES as u32;
    let bomb = F::Directories(v1::DirectoryObjects { compressed: largest.into(), uncompressed_bytes });
    world.refused_site(
        "a bomb as large as may be",
        site_with(ORDINARY),
        frames(vec![bomb]),
        "no directory object|length",
    );
    let words = "more than|no directory object";
    world.refused_site("objects that nobody asked for", site_with(ORDINARY), frames(objects), words);
    world.honest(2);
    println!("{} attacks, peak {} MiB", world.tried(), peak_mib(world.pid()));
}

#[test]
fn a_large_directory_is_taken_within_the_same_bounds() {
    let asked = std::env::var("SYNCD_ENTRIES").ok().map(|text| text.parse().expect("a number"));
    let count: usize = asked.unwrap_or(ENTRIES);
    let mut world = World::empty("large-directory");
    let mut site = Site::default();
    let entry = |number: usize| {
        let content = ContentHash::of(&number.to_le_bytes());
        Entry {
            name: named(&format!("page-{number:07}-of-many.html")),
            metadata: FILE,
            kind: Kind::File { content, size: 8 },
        }
    };
    let (object, totals) = site.put((0..count).map(entry).collect());
    site.root = Some(RootEntry { object, metadata: FOLDER, totals });
    let bytes: usize = site.objects.values().map(Vec::len).sum();
    let idle = peak_mib(world.pid());
    // The whole manifest, and no content.
    world.offer(&Arc::new(site), frames_of_directories());
    let Heard::Failed(reason) = world.hear() else { panic!("it has no content") };
    let peak = peak_mib(world.pid());
    println!(
        "a directory of {count} entries, {:.1} MiB: peak {peak} MiB (idle {idle}): {reason}",
        bytes as f64 / f64::from(1 << 20)
    );
    assert!(asked.is_some() || peak < MEMORY_MAX_MIB, "{peak} MiB");
}

/// Passes directory objects and the ends of answers, which report everything else as missing.
fn frames_of_directories() -> Option<Twist> {
    Some(Arc::new(|honest: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        Box::new(honest.into_iter().filter(|frame| matches!(frame, F::Directories(_) | F::End(_))))
    }))
}
