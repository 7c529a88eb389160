//! Links to collected directories.

use super::*;

const LINK: &str = "docs/uploads";

/// A site whose generations have a collected directory, and one file that a visitor left in it.
fn collecting(site: Site) -> (Site, Replica) {
    std::fs::create_dir_all(site.tree().join("docs")).unwrap();
    symlink("collected:uploads", site.tree().join(LINK)).unwrap();
    let (site, replica) = settled_in(site);
    std::fs::write(site.live().join(LINK).join("picture.jpg"), "picture").unwrap();
    (site, replica)
}

fn assert_linked(site: &Site, replica: &mut Replica) {
    let target = site.root().join("collected/uploads");
    assert_eq!(site.live().join(LINK).read_link().unwrap(), target);
    assert_eq!(std::fs::read(site.live().join(LINK).join("picture.jpg")).unwrap(), b"picture");
    let [link, directory] = [site.live().join(LINK), target].map(|path| path.symlink_metadata().unwrap());
    assert_eq!((link.uid(), link.gid()), (directory.uid(), directory.gid()), "SymLinksIfOwnerMatch");
    assert_eq!(directory.permissions().mode() & 0o7777, 0o755);
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.drifted, 0, "{report:?}");
}

#[test]
fn a_collected_directory_is_an_absolute_link_and_outlives_generations() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, mut replica) = collecting(site);
        assert_linked(&site, &mut replica);
        for _ in 0..3 {
            site.write("docs/0/page-0.html", site.new_number().to_string());
            site.publish(&mut replica);
            site.settle(&mut replica);
            assert_linked(&site, &mut replica);
        }
    }
}

#[test]
fn a_collected_directory_is_added_and_removed_by_an_update() {
    let (mut site, mut replica) = settled();
    symlink("collected:uploads", site.tree().join(LINK)).unwrap();
    site.publish(&mut replica);
    std::fs::write(site.live().join(LINK).join("picture.jpg"), "picture").unwrap();
    assert_linked(&site, &mut replica);
    std::fs::remove_file(site.tree().join(LINK)).unwrap();
    site.publish(&mut replica);
    assert!(site.live().join(LINK).symlink_metadata().is_err());
    assert!(site.root().join("collected/uploads/picture.jpg").exists(), "its files are nobody's to remove");
}

#[test]
fn a_tree_with_a_collected_directory_is_proven_without_the_record() {
    let (site, replica) = collecting(Site::new());
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    assert_eq!(site.live_number(), 1);
    assert!(replica.status().live.is_some(), "the tree was not recognised");
    assert_linked(&site, &mut replica);
}

#[test]
fn a_link_that_leads_elsewhere_is_found() {
    let (site, mut replica) = collecting(Site::new());
    let link = site.live().join(LINK);
    std::fs::remove_file(&link).unwrap();
    symlink(site.root().join("collected/other"), &link).unwrap();
    let report = replica.verify(None, &|_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(report.drifted, 2, "the link, and the time of its directory: {report:?}");
}

/// A crash after the directory was made, and before it had its owner.
#[test]
fn a_directory_without_its_owner_gets_it() {
    let mut site = Site::new();
    let directory = site.root().join("collected/uploads");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
    std::fs::create_dir(site.tree().join("docs")).unwrap();
    symlink("collected:uploads", site.tree().join(LINK)).unwrap();
    let mut replica = site.open();
    site.publish(&mut replica);
    std::fs::write(directory.join("picture.jpg"), "picture").unwrap();
    assert_linked(&site, &mut replica);
}
