//! New content made from content of the live tree.

use std::os::unix::fs::FileExt;

use syncd_shared::ContentHash;

use super::*;

const LARGE: &str = "media/large.bin";

/// A settled replica whose origin sends deltas, with edits of a large file and of small ones.
fn edited() -> (Site, Replica) {
    let (mut site, replica) = settled();
    site.origin.deltas = true;
    let mut large = std::fs::read(site.tree().join(LARGE)).unwrap();
    large.splice(300_000..300_010, *b"edited in the middle");
    site.write(LARGE, large);
    for number in 0..20 {
        site.write(&format!("docs/{}/page-{number}.html", number % 3), format!("<p>{number}</p> edited"));
    }
    site.origin.sent.clear();
    (site, replica)
}

/// Changes bytes of a live file without changing its inode, size or time.
fn damage(site: &Site, name: &str, at: u64) {
    let path = site.live().join(name);
    let time = path.metadata().unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"?", at).unwrap();
    file.set_modified(time).unwrap();
}

fn content(site: &Site, name: &str) -> ContentHash {
    ContentHash::of(&std::fs::read(site.tree().join(name)).unwrap())
}

#[test]
fn replaced_files_are_made_from_their_old_versions() {
    let (mut site, mut replica) = edited();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(site.origin.sent.all(), [], "nothing was fetched whole");
}

#[test]
fn content_of_a_damaged_basis_is_fetched_whole_and_nothing_else() {
    // Damage in a copied range, in a range that deltas are decoded against, and in a small file.
    for (name, at) in [(LARGE, 1_000), (LARGE, 290_000), (LARGE, 699_000), ("docs/0/page-3.html", 0)] {
        let (mut site, mut replica) = edited();
        damage(&site, name, at);
        site.publish(&mut replica);
        site.assert_live_is_tree();
        assert_eq!(site.origin.sent.all(), [content(&site, name)], "{name} at {at}");
    }
}

#[test]
fn a_basis_that_is_another_file_now_is_not_used() {
    let (mut site, mut replica) = edited();
    let path = site.live().join("docs/1/page-4.html");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    std::fs::write(site.live().join(LARGE), "short").unwrap();
    site.publish(&mut replica);
    site.assert_live_is_tree();
    let expected = [content(&site, "docs/1/page-4.html"), content(&site, LARGE)];
    assert!(expected.iter().all(|content| site.origin.sent.all().contains(content)));
    assert_eq!(site.origin.sent.len(), 2);
}

#[test]
fn an_origin_that_lies_about_bases_costs_bytes_alone() {
    let (mut site, mut replica) = edited();
    site.origin.lies = true;
    site.publish(&mut replica);
    site.assert_live_is_tree();
}

#[test]
fn an_update_with_deltas_that_breaks_off_is_finished_the_next_time() {
    let (mut site, mut replica) = edited();
    site.write("media/new.bin", vec![3u8; 400_000]);
    site.origin.breaks_after = Some(1);
    let target = site.origin.seal(&site.tree());
    let broken = site.stage(&mut replica, &target).unwrap_err();
    assert!(matches!(broken, StageError::Fetch(FetchError::Disconnected(_))), "{broken:?}");
    site.origin.breaks_after = None;
    site.follow(&mut replica, &target);
    site.assert_live_is_tree();
}
