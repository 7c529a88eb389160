//! Files and directories of syncd are never published, whichever installation they come from.

use super::*;
use syncd_runtime::key_file;
use syncd_shared::marks::Mark;

/// A directory with the names that an agent's ROOT has.
fn make_root(site: &Site, path: &str) {
    for name in ["generations/1", "staging", "state/identity", "trash"] {
        fs::create_dir_all(site.at(path).join(name)).unwrap();
    }
}

#[test]
fn a_store_in_the_tree_fails_the_scan_by_name() {
    let mut site = Site::new();
    site.write("var/f", "1");
    drop(Store::create(&site.at("var/data")).unwrap());
    let error = site.try_scan(Scope::Everything).unwrap_err();
    assert!(matches!(&error, ScanError::Marked { mark: Mark::OriginData, .. }), "{error}");
    assert!(error.to_string().contains("var/data is the data directory of a syncd origin"), "{error}");
    // A person who knows of it may leave it out.
    site.write(".syncdignore", "/var/data\n");
    site.scan(Scope::Everything);
    assert_eq!(site.names("var"), ["f"]);
}

#[test]
fn a_replica_that_is_moved_into_a_published_tree_is_seen() {
    let mut site = Site::watched();
    site.write("a/f", "1");
    site.calm();
    make_root(&site, "a/node");
    let scope = site.hinted();
    let error = site.try_scan(scope).unwrap_err();
    assert!(matches!(&error, ScanError::Marked { mark: Mark::AgentRoot, .. }), "{error}");
    assert!(error.to_string().contains("a/node is the replica of a syncd agent"), "{error}");
}

#[test]
fn a_published_directory_that_becomes_a_replica_is_seen() {
    let mut site = Site::watched();
    for name in ["state", "staging", "trash", "other"] {
        site.write(&format!("a/{name}/f"), "1");
    }
    site.calm();
    fs::create_dir(site.at("a/generations")).unwrap();
    let scope = site.hinted();
    assert!(matches!(scope, Scope::Parts { .. }));
    let error = site.try_scan(scope).unwrap_err();
    assert!(matches!(&error, ScanError::Marked { mark: Mark::AgentRoot, .. }), "{error}");
}

#[test]
fn the_tree_itself_may_not_be_a_replica() {
    let mut site = Site::new();
    make_root(&site, "");
    assert!(matches!(site.try_scan(Scope::Everything), Err(ScanError::Marked { .. })));
}

#[test]
fn a_copied_key_file_is_recognised_under_any_name() {
    let mut site = Site::watched();
    site.write("f", "1");
    site.calm();
    fs::create_dir(site.at("backup")).unwrap();
    key_file::write(&site.at("backup/old.txt"), "0123456789abcdef").unwrap();
    let scope = site.hinted();
    let error = site.try_scan(scope).unwrap_err();
    assert!(matches!(&error, ScanError::PrivateFile { .. }), "{error}");
    assert!(error.to_string().starts_with("backup/old.txt is a private file of syncd"), "{error}");
    // Nothing of it has come into the base meanwhile.
    fs::remove_dir_all(site.at("backup")).unwrap();
    site.scan(Scope::Everything);
    site.assert_identical();
}
