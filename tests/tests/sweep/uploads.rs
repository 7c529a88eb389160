//! Power cuts and kills while two nodes exchange uploads.

use std::time::Duration;

use syncd_tests::mounts::Mount;
use syncd_tests::node::{Case, End};
use syncd_tests::tracer::Point;
use syncd_tests::uploads::{Exchange, Side};
use syncd_tests::{Scene, Seeded, assert_none};

use super::{Lane, choose, make_way, share};

/// Number of cuts at each side, unless `SYNCD_SWEEP` is set.
const SHARE: usize = 10;
/// Number of rounds within which a planted bug must be found.
const PLANTED_ROUNDS: usize = 5;

/// Cuts at the calls by which one side exchanges uploads. Each begins where the last one ended.
fn sweep(side: Side, is_meant: impl Fn(&Point) -> bool) {
    let what = format!("uploads, cuts at {side:?}");
    let mut random = Seeded::announced(&what);
    let scene = Scene::in_memory(&format!("sweep-uploads-{side:?}"));
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let mut exchange = Exchange::new(&scene, mount, side);
    let points: Vec<Point> = exchange.count().into_iter().filter(is_meant).collect();
    assert!(!points.is_empty(), "no call was counted");
    let cases = choose(&points, share(SHARE), Lane::ALL, &mut random);
    let (mut fired, mut complaints) = (0, Vec::new());
    for case in &cases {
        make_way();
        match exchange.run(*case) {
            Ok(point) => fired += usize::from(point.is_some()),
            // The next cut would start from there.
            Err(complaint) => {
                complaints.push(complaint);
                break;
            }
        }
    }
    println!("{what}: {} calls counted, {} cases, {fired} fired", points.len(), cases.len());
    assert_none(&complaints);
    assert!(fired * 2 >= cases.len(), "the rounds are not alike: {fired} of {} fired", cases.len());
}

#[test]
fn no_cut_at_a_node_loses_an_upload_that_the_origin_has_taken() {
    sweep(Side::Node, |point| point.path.contains("collected"));
}

#[test]
fn no_cut_at_the_origin_loses_an_upload_that_it_has_taken() {
    sweep(Side::Origin, |point| point.path.contains("collected"));
}

/// A power cut after call `ordinal`.
fn power_cut(ordinal: usize) -> Case {
    Case { ordinal, after: true, end: End::PowerCut, linger: Duration::ZERO }
}

/// An exchange whose side of this kind has a bug.
fn planted(side: Side, bug: &'static str) -> (Scene, Exchange) {
    let scene = Scene::in_memory(&format!("sweep-{bug}"));
    let mount = Mount::ext4(&scene.path("disk"), 64);
    let mut exchange = Exchange::new(&scene, mount, side);
    exchange.planted = Some(bug);
    exchange.patience = Duration::from_secs(8);
    (scene, exchange)
}

fn is_caught_at_the_end(side: Side, bug: &'static str) {
    let (_scene, mut exchange) = planted(side, bug);
    let complaint = (0..PLANTED_ROUNDS).find_map(|_| exchange.run(power_cut(usize::MAX)).err());
    println!("{bug}: {}", complaint.expect("the planted bug was not caught"));
}

#[test]
fn an_upload_that_is_sent_before_it_is_durable_is_caught() {
    is_caught_at_the_end(Side::Node, "unsynced-uploads");
}

#[test]
fn an_upload_that_is_taken_before_it_is_durable_is_caught() {
    is_caught_at_the_end(Side::Origin, "unsynced-contents");
}

/// The content is durable a moment after the name. The file system writes names of its own accord within five
/// seconds, and contents later.
#[test]
fn a_version_that_is_named_before_it_is_durable_is_caught() {
    let (_scene, mut exchange) = planted(Side::Node, "unsynced-versions");
    let is_placed = |point: &Point| point.call == "renameat2" && point.path.contains("collected/uploads/");
    let bug = exchange.planted.take();
    exchange.run_after(is_placed, Duration::from_secs(7)).expect("no bug is planted");
    exchange.planted = bug;
    let cut = || exchange.run_after(is_placed, Duration::from_secs(7)).err();
    let complaint = std::iter::repeat_with(cut).take(PLANTED_ROUNDS).flatten().next();
    println!("unsynced-versions: {}", complaint.expect("the planted bug was not caught"));
}
