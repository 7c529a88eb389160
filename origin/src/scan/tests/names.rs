//! Scans of names that were hinted at.

use super::*;

/// A watched site with a directory of some files, quiet.
fn site() -> Site {
    let mut site = Site::watched();
    for number in 0..20 {
        site.write(&format!("d/f{number}"), number.to_string());
    }
    site.write("d/sub/f", "1");
    site.calm();
    site.hinted();
    site
}

/// Scans what is hinted at; how many directories were listed.
fn listed(site: &mut Site) -> u64 {
    let scope = site.hinted();
    assert!(matches!(&scope, Scope::Parts { .. }), "{scope:?}");
    let outcome = site.scan(scope);
    assert!(outcome.changed);
    site.assert_identical();
    outcome.directories_listed
}

#[test]
fn names_that_changed_are_looked_up_and_no_directory_is_listed() {
    let mut site = site();
    site.write("d/f1", "changed");
    assert_eq!(listed(&mut site), 0);
    site.write("d/new", "created");
    assert_eq!(listed(&mut site), 0);
    fs::remove_file(site.at("d/f2")).unwrap();
    assert_eq!(listed(&mut site), 0);
    fs::rename(site.at("d/f3"), site.at("d/sub/f3")).unwrap();
    assert_eq!(listed(&mut site), 0);
    site.write("d/.f4", "replaced");
    fs::rename(site.at("d/.f4"), site.at("d/f4")).unwrap();
    assert_eq!(listed(&mut site), 0);
    fs::set_permissions(site.at("d/f5"), fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(listed(&mut site), 0);
    assert!(!site.scan(Scope::Everything).changed);
}

#[test]
fn names_that_change_their_kind_are_what_they_are_now() {
    let mut site = site();
    let replace = |site: &Site, name: &str| fs::remove_file(site.at(name)).unwrap();
    replace(&site, "d/f1");
    symlink("f2", site.at("d/f1")).unwrap();
    listed(&mut site);
    replace(&site, "d/f2");
    site.write("d/f2/below/f", "1");
    listed(&mut site);
    fs::remove_dir_all(site.at("d/sub")).unwrap();
    site.write("d/sub", "a file now");
    listed(&mut site);
    // A name in a directory that is new is below one that was not there.
    site.write("d/f2/below/g", "2");
    assert_eq!(listed(&mut site), 0);
    assert!(!site.scan(Scope::Everything).changed);
}

#[test]
fn names_that_change_between_event_and_scan_are_what_they_are_at_the_scan() {
    let mut site = site();
    for name in ["f1", "f2", "f3", "f4"] {
        site.write(&format!("d/{name}"), "first");
    }
    site.write("d/gone", "1");
    let scope = site.hinted();
    fs::remove_file(site.at("d/f1")).unwrap();
    fs::rename(site.at("d/f2"), site.at("d/f2-moved")).unwrap();
    fs::remove_file(site.at("d/f3")).unwrap();
    fs::create_dir(site.at("d/f3")).unwrap();
    site.write("d/f3/f", "1");
    site.write("d/f4", "second");
    fs::remove_file(site.at("d/gone")).unwrap();
    assert!(site.scan(scope).changed);
    site.assert_identical();
}

#[test]
fn a_name_that_no_event_told_of_is_found_where_the_directory_shows_it_and_by_a_walk_of_everything() {
    let mut site = site();
    site.write("d/f1", "told");
    site.write("d/untold", "1");
    // Nothing told of explains the directory's time: it is listed.
    let outcome = site.scan(named("d", &["f1"]).into());
    assert_eq!((outcome.changed, outcome.directories_listed), (true, 1));
    site.assert_identical();
    site.calm();
    site.watch = None;
    site.write("d/f1", "told once more");
    site.write("d/f2", "never told");
    assert_eq!(site.scan(named("d", &["f1"]).into()).files_read, 1);
    let outcome = site.scan(Scope::Everything);
    assert!(outcome.changed && outcome.files_read >= 1);
    site.assert_identical();
}

#[test]
fn a_file_with_further_names_has_its_directory_listed() {
    let mut site = site();
    fs::hard_link(site.at("d/f1"), site.at("d/linked")).unwrap();
    assert_eq!(listed(&mut site), 1);
    // Told of under one name only.
    site.write("d/linked", "changed under both names");
    assert_eq!(listed(&mut site), 1);
    fs::hard_link(site.at("d/f2"), site.at("d/short")).unwrap();
    site.write("d/short", "changed under a name that is gone");
    fs::remove_file(site.at("d/short")).unwrap();
    assert_eq!(listed(&mut site), 1);
}

#[test]
fn other_rules_have_the_directory_listed() {
    let mut site = site();
    site.write("d/.syncdignore", "f1\nsub\n");
    let scope = site.hinted();
    assert!(site.scan(scope).directories_listed >= 1);
    assert!(!site.names("d").contains(&"f1".to_owned()));
    site.write("d/f1", "ignored");
    site.write("d/f2", "published");
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.directories_listed), (true, 0));
    assert!(!site.names("d").contains(&"f1".to_owned()));
    fs::remove_file(site.at("d/.syncdignore")).unwrap();
    assert!(listed(&mut site) >= 1);
}

#[test]
fn a_renamed_directory_is_found_under_its_new_name() {
    let mut site = site();
    fs::rename(site.at("d/sub"), site.at("d/moved")).unwrap();
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.files_read), (true, 0));
    site.assert_identical();
    site.write("d/moved/f", "2");
    assert_eq!(listed(&mut site), 0);
}

#[test]
fn times_of_a_directory_need_no_listing() {
    let mut site = site();
    let before = site.root.unwrap();
    fs::create_dir(site.at("d/fleeting")).unwrap();
    fs::remove_dir(site.at("d/fleeting")).unwrap();
    let scope = site.hinted();
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.root), (false, before));
    site.write("d/sub/f", "2");
    let mut scope = site.hinted();
    scope.add_metadata_of(outcome.times_only);
    let outcome = site.scan(scope);
    assert_eq!((outcome.changed, outcome.directories_listed), (true, 0));
    site.assert_identical();
}
