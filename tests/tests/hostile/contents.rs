//! Attacks on content that an agent fetches by hash.

use std::sync::Arc;

use bytes::Bytes;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::wire::directories_message;
use syncd_shared::{ContentHash, ContentTag};

use super::fake_origin::{Twist, peak_mib};
use super::lying_origin::{World, bomb, noise};
use super::site::stored;

/// Replaces all stored frames by others.
fn instead(make: impl Fn(Vec<F>) -> Vec<F> + Send + Sync + 'static) -> Option<Twist> {
    Some(Arc::new(move |honest: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        let has_content = honest.iter().any(|frame| matches!(frame, F::Stored(_)));
        Box::new(if has_content { make(honest) } else { honest }.into_iter())
    }))
}

fn endless(make: impl Fn(u64) -> F + Send + Sync + 'static, directories: bool) -> Option<Twist> {
    let make = Arc::new(make);
    Some(Arc::new(move |honest: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        let is_it = |frame: &F| match frame {
            F::Stored(_) => !directories,
            F::Directories(_) => directories,
            _ => false,
        };
        if !honest.iter().any(is_it) {
            return Box::new(honest.into_iter());
        }
        let make = make.clone();
        Box::new((0..).map(move |index| make(index)))
    }))
}

#[test]
fn content_that_does_not_hold_is_refused_and_bounded() {
    // Made before anybody connects, because an agent would retry the previous attack during the time that it
    // takes.
    let huge = Arc::new(noise(4, 200 << 20));
    let mut world = World::new("hostile-content");
    let other = World::version(9);
    let swapped = instead(move |honest| {
        let mut contents: Vec<Bytes> = Vec::new();
        for frame in &honest {
            if let F::Stored(frame) = frame {
                contents.push(frame.compressed.clone());
            }
        }
        let last = contents.pop().expect("a frame");
        let twist = |frame| match frame {
            F::Stored(stored) => F::Stored(v1::StoredFrame { compressed: last.clone(), ..stored }),
            other => other,
        };
        honest.into_iter().map(twist).collect()
    });
    world.refused_site(
        "contents of other files",
        World::version(2),
        swapped,
        "expected|decompress|compressed|piece",
    );
    let site = World::version(3);
    let hashes: Vec<ContentHash> = site.contents.keys().copied().collect();
    let wrong = hashes.clone();
    let twist = instead(move |honest| {
        let frames = wrong.iter().map(|hash| F::Stored(stored(*hash, 0, b"malware").to_message()));
        frames.chain(honest.last().cloned()).collect()
    });
    world.refused_site(
        "other bytes under a right name",
        site.clone(),
        twist,
        "expected|lies outside|did not send|hash",
    );
    let twist = instead(|honest| honest.last().cloned().into_iter().collect());
    world.refused_site("nothing at all", site.clone(), twist, "did not send");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => F::Stored(v1::StoredFrame { compressed: bomb(), ..stored }),
                other => other,
            })
            .collect()
    });
    world.refused_site("a decompression bomb", site.clone(), twist, "compressed|decompress");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => {
                    F::Stored(v1::StoredFrame { places: bomb(), places_bytes: 500_000, ..stored })
                }
                other => other,
            })
            .collect()
    });
    world.refused_site("a bomb for places", site.clone(), twist, "compressed|decompress");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => F::Stored(v1::StoredFrame { uncompressed_bytes: u32::MAX, ..stored }),
                other => other,
            })
            .collect()
    });
    world.refused_site("lying lengths", site.clone(), twist, "exceeds");
    let beyond = hashes.clone();
    let twist = instead(move |_| {
        let place = |hash: &ContentHash| {
            let piece = Piece {
                file: ContentTag::of(hash),
                file_offset: u64::MAX - 1,
                frame_offset: 0,
                length_bytes: 1,
            };
            let frame = StoredFrame { pieces: vec![piece], ..stored(*hash, 0, b"x") };
            F::Stored(frame.to_message())
        };
        beyond.iter().map(place).collect()
    });
    world.refused_site("offsets at the end of numbers", site.clone(), twist, "lies outside|outside");
    let twist = instead(|_| vec![F::Delta(v1::DeltaFrame { encoding: 77, ..Default::default() })]);
    world.refused_site("an unknown encoding", site.clone(), twist, "encoding");
    let twist = instead(|honest| {
        vec![
            F::End(v1::BatchEnd { request: 999, missing: vec![Bytes::from_static(b"short")], more: false }),
            honest[0].clone(),
        ]
    });
    world.refused_site("a malformed end", site.clone(), twist, "invalid hash");
    let twist = instead(move |_| {
        let places = Bytes::new();
        let compressed = Bytes::copy_from_slice(&huge);
        vec![F::Stored(v1::StoredFrame { compressed, uncompressed_bytes: 1, places, places_bytes: 0 })]
    });
    world.refused_site("one huge message", site.clone(), twist, "limit|large|exceeds|big");
    let not_asked = other.contents.values().next().expect("a content").clone();
    let unasked = ContentHash::of(&not_asked);
    let twist = endless(move |_| F::Stored(stored(unasked, 0, &not_asked).to_message()), false);
    world.refused_site("content that nobody asked for, without end", site.clone(), twist, "more than");
    let wanted = hashes[0];
    let bytes = site.contents[&wanted].clone();
    let twist = endless(move |_| F::Stored(stored(wanted, 0, &bytes).to_message()), false);
    world.refused_site("the same content without end", site.clone(), twist, "more than");
    let twist = endless(|_| F::Directories(directories_message([])), false);
    world.refused_site("empty frames without end", site.clone(), twist, "more than");
    let twist = endless(|index| F::Directories(directories_message([noise(index, 2000).as_slice()])), true);
    world.refused_site("directory objects without end", World::version(4), twist, "more than|unknown format");
    let twist = endless(|_| F::Directories(directories_message([])), true);
    world.refused_site("empty directory frames without end", World::version(5), twist, "more than");
    let twist = endless(
        |_| F::Directories(v1::DirectoryObjects { compressed: bomb(), uncompressed_bytes: 120 << 20 }),
        true,
    );
    world.refused_site("directory objects as a bomb", World::version(6), twist, "exceeds");
    world.honest(7);
    println!("{} answers refused, peak {} MiB", world.tried(), peak_mib(world.pid()));
}
