//! Progress follows the bytes, also within one file.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use syncd_shared::Progress;

use super::*;
use crate::replica::Replica;

/// Content of a file that arrives in more pieces than wait for the workers.
const LARGE_BYTES: usize = 8 << 20;

fn noise(seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; LARGE_BYTES];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

/// Stages and activates the content tree. Returns the progress reported.
fn watched(site: &mut Site, replica: &mut Replica) -> Vec<Progress> {
    let target = site.origin.seal(&site.tree());
    let seen = Mutex::new(Vec::new());
    let progress = |now| seen.lock().unwrap().push(now);
    let never = AtomicBool::new(false);
    let staged = replica.stage(&target, None, &mut site.origin, &progress, &never).unwrap();
    replica.activate(staged, &mut |_| Ok(())).unwrap();
    seen.into_inner().unwrap()
}

#[track_caller]
fn assert_steady(seen: &[Progress]) {
    let within = |now: &&Progress| now.bytes_done > 0 && now.files_done == 0;
    assert!(seen.iter().filter(within).count() > 1, "nothing was reported within the file: {seen:?}");
    assert!(seen.is_sorted_by_key(|now| now.bytes_done), "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.bytes_done, last.files_done), (last.bytes_total, last.files_total));
}

#[test]
fn bytes_count_as_they_arrive() {
    let mut site = Site::new();
    let mut replica = site.open();
    site.write("large", noise(1));
    assert_steady(&watched(&mut site, &mut replica));
    site.write("large", noise(2));
    assert_steady(&watched(&mut site, &mut replica));
    site.assert_live_is_tree();
}
