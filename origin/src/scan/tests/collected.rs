//! Collected directories in the published tree.

use super::*;

const UPLOADS: &str = "wp-content/uploads";

fn collecting(mut site: Site) -> Site {
    let place = (path(UPLOADS), "uploads".parse().unwrap(), (33, 34));
    site.options.collected = CollectedPlaces::new([place]);
    site
}

fn entry(site: &Site) -> Option<Entry> {
    site.directory("wp-content").get(&Component::new(b"uploads").unwrap()).cloned()
}

fn assert_collected(site: &Site) {
    let entry = entry(site).expect("an entry");
    assert_eq!(entry.kind, Kind::Collected { name: "uploads".parse().unwrap() });
    assert_eq!((entry.metadata.uid, entry.metadata.gid), (33, 34));
}

#[test]
fn a_collected_directory_is_published_and_never_read() {
    let mut site = collecting(Site::watched());
    site.write("wp-content/plugin.php", "1");
    site.write("wp-content/uploads/2026/picture.jpg", noise(10_000));
    let outcome = site.scan(Scope::Everything);
    assert_collected(&site);
    assert_eq!((outcome.files_read, site.directory("wp-content").entries().len()), (1, 2));

    site.write("wp-content/uploads/2026/other.jpg", noise(10_000));
    fs::rename(site.at(UPLOADS), site.at("wp-content/elsewhere")).unwrap();
    let scope = site.hinted();
    site.scan(scope);
    assert_collected(&site);
    assert_eq!(site.directory("wp-content/elsewhere/2026").entries().len(), 2);
    site.write("wp-content/uploads", "a file");
    let scope = site.hinted();
    assert!(!site.scan(scope).changed);
    assert_collected(&site);
}

#[test]
fn a_collected_directory_needs_nothing_in_the_tree_but_its_parent() {
    let mut site = collecting(Site::new());
    site.write("index.php", "1");
    site.scan(Scope::Everything);
    assert_eq!(site.directory("").entries().len(), 1, "the parent is missing");
    site.write("wp-content/plugin.php", "1");
    site.scan(Scope::Everything);
    assert_collected(&site);
}

/// A walk that only looks up the names that the watch reported, and one that passes by.
#[test]
fn changes_beside_a_collected_directory_keep_it() {
    let mut site = collecting(Site::watched());
    site.write("wp-content/plugin.php", "1");
    site.write("wp-content/plugins/a/a.php", "1");
    site.calm();
    for changed in ["wp-content/plugin.php", "wp-content/plugins/a/a.php", "wp-content/new.php"] {
        site.write(changed, changed);
        let scope = site.hinted();
        assert!(site.scan(scope).changed, "{changed}");
        assert_collected(&site);
    }
    let below = path("wp-content/uploads/2026");
    assert!(!site.scan(Scope::directories([below])).changed);
    assert_collected(&site);
}

#[test]
fn a_directory_that_is_no_longer_collected_is_published_again() {
    let mut site = collecting(Site::new());
    site.write("wp-content/uploads/picture.jpg", noise(10_000));
    site.scan(Scope::Everything);
    assert_collected(&site);
    site.options.collected = CollectedPlaces::default();
    site.scan(Scope::Everything);
    assert_eq!(site.directory(UPLOADS).entries().len(), 1);
    site = collecting(site);
    site.options.allow_mass_deletion = true;
    site.scan(Scope::Everything);
    assert_collected(&site);
}
