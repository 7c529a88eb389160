//! Scans keep where contents are, and plans find them there.

use super::*;
use crate::plan::{PlanBudget, Planner};
use syncd_shared::ContentHash;

fn place(site: &Site, content: &[u8]) -> Option<TreePath> {
    site.store.path_of(&ContentHash::of(content)).unwrap()
}

#[test]
fn a_path_is_kept_until_it_is_lost() {
    let mut site = Site::watched();
    let (one, two) = (noise(1000), noise(2000));
    site.write("a/one", &one);
    site.write("a/sub/two", &two);
    site.write("short", "too short to be worth it");
    site.calm();
    site.hinted();
    assert_eq!(place(&site, &one), Some(path("a/one")));
    assert_eq!(place(&site, b"too short to be worth it"), None);
    // A copy does not take its place, a rename does.
    site.write("copy/one", &one);
    let scope = site.hinted();
    site.scan(scope);
    assert_eq!(place(&site, &one), Some(path("a/one")));
    fs::rename(site.at("a"), site.at("b")).unwrap();
    let scope = site.hinted();
    site.scan(scope);
    assert_eq!(place(&site, &one), Some(path("b/one")));
    assert_eq!(place(&site, &two), Some(path("b/sub/two")));
    fs::remove_file(site.at("b/one")).unwrap();
    let scope = site.hinted();
    site.scan(scope);
    assert_eq!(place(&site, &one), None);
    // Paths lost with a whole directory are replaced once the content is found elsewhere.
    fs::remove_dir_all(site.at("b")).unwrap();
    let scope = site.hinted();
    site.scan(scope);
    site.write("c/two", &two);
    let scope = site.hinted();
    site.scan(scope);
    assert_eq!(place(&site, &two), Some(path("c/two")));
}

#[test]
fn garbage_collection_takes_paths_of_dead_content() {
    let mut site = Site::new();
    site.write("a/one", noise(1000));
    site.scan(Scope::Everything);
    let seal = |site: &Site| {
        let writer = site.store.writer().unwrap();
        writer.put_path(&ContentHash::of(b"dead"), 1000, &path("a/dead")).unwrap();
        writer.save().unwrap();
    };
    seal(&site);
    assert!(place(&site, b"dead").is_some());
    site.store.collect_garbage(Default::default(), &Default::default(), None, 0, &|| false).unwrap();
    assert_eq!(place(&site, b"dead"), None);
    assert_eq!(place(&site, &noise(1000)), Some(path("a/one")));
}

#[tokio::test]
async fn a_copied_directory_costs_no_content() {
    let mut site = Site::watched();
    for number in 0..30 {
        site.write(&format!("a/sub/{number}"), noise(20_000 + number));
    }
    site.calm();
    site.hinted();
    let before = site.root.unwrap();
    for number in 0..30 {
        site.write(&format!("copy/{number}"), noise(20_000 + number));
    }
    let scope = site.hinted();
    assert!(site.scan(scope).changed);
    let planner = Planner::new(site.store.clone(), site.store.data(), PlanBudget::default()).unwrap();
    let update = planner.update(before.hash(), site.root.unwrap().hash()).await.unwrap();
    assert!(update.bytes() < 12_000, "{} bytes for 600,000 that are there", update.bytes());
}
