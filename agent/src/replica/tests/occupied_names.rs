//! Foreign files under names in ROOT that the agent creates itself: they move away, and updates succeed.

use super::visitors::kept;
use super::*;
use crate::fixture::{as_somebody, somebody_owns};

fn plant_directory(path: &Path) {
    std::fs::create_dir(path).unwrap();
    std::fs::write(path.join("inside"), path.file_name().unwrap().as_bytes()).unwrap();
}

/// Publishes several generations, and asserts that each is live and that the links are right.
fn goes_on(site: &mut Site, replica: &mut Replica, rounds: u32) {
    for round in 0..rounds {
        site.write("docs/0/page-0.html", format!("round {round} of {}", site.new_number()));
        site.publish(replica);
        site.assert_live_is_tree();
        site.settle(replica);
    }
}

fn has(site: &Site, name: &str) -> bool {
    kept(site).iter().any(|(path, _)| path == name)
}

/// Names of links, one of each kind.
const LINKS: [&str; 3] = ["live.next", "previous.next", "generations/3"];

#[test]
fn directories_under_the_names_of_links_move_to_lost_found() {
    for is_restarted in [false, true] {
        let (mut site, mut replica) = settled();
        goes_on(&mut site, &mut replica, 1);
        LINKS.iter().for_each(|name| plant_directory(&site.root().join(name)));
        if is_restarted {
            drop(replica);
            replica = site.open();
        }
        goes_on(&mut site, &mut replica, 3);
        for name in ["live.next", "previous.next", "3"] {
            assert!(has(&site, &format!("0/{name}/inside")), "{name}: {:?}", kept(&site));
        }
        assert_tidy(&site, &replica);
    }
}

#[test]
fn files_under_the_names_of_links_keep_their_bytes() {
    let (mut site, mut replica) = settled();
    LINKS.iter().for_each(|name| std::fs::write(site.root().join(name), name).unwrap());
    goes_on(&mut site, &mut replica, 3);
    for name in ["live.next", "previous.next", "3"] {
        assert!(has(&site, &format!("0/{name}")), "{name}: {:?}", kept(&site));
    }
    assert_tidy(&site, &replica);
}

#[test]
fn links_that_were_replaced_while_the_agent_runs_are_made_again() {
    let (mut site, mut replica) = settled();
    goes_on(&mut site, &mut replica, 1);
    for name in ["live", "previous"] {
        std::fs::remove_file(site.root().join(name)).unwrap();
        plant_directory(&site.root().join(name));
    }
    goes_on(&mut site, &mut replica, 2);
    assert!(has(&site, "0/live/inside") && has(&site, "0/previous/inside"), "{:?}", kept(&site));
    assert!(site.root().join("previous").is_symlink());
    assert_tidy(&site, &replica);
}

#[test]
fn files_under_the_names_of_directories_and_directories_under_those_of_files_stop_nothing() {
    let (mut site, mut replica) = settled();
    replica.options.keep = 1;
    std::fs::write(site.live().join("upload.jpg"), "a picture").unwrap();
    std::fs::write(site.root().join("lost+found"), "not a directory").unwrap();
    let _ = std::fs::remove_dir_all(site.root().join("staging/incoming"));
    std::fs::write(site.root().join("staging/incoming"), "not a directory").unwrap();
    for slot in 2..6 {
        let signed = site.root().join("state/signed").join(slot.to_string());
        let _ = std::fs::remove_file(&signed);
        plant_directory(&signed);
    }
    // Names of the next slots, and of a spare.
    for slot in 4..6 {
        std::fs::write(site.root().join("slots").join(slot.to_string()), "no slot").unwrap();
    }
    let spare = site.spares(&replica)[0].clone();
    std::fs::remove_dir_all(&spare).unwrap();
    std::fs::write(&spare, "no slot").unwrap();
    goes_on(&mut site, &mut replica, 4);
    assert!(has(&site, "1/upload.jpg"), "{:?}", kept(&site));
    assert_eq!(std::fs::read(site.root().join("lost+found.1")).unwrap(), b"not a directory");
    drop(replica);
    std::fs::write(site.root().join("lost+found/3"), "not a directory").unwrap();
    let mut replica = site.open();
    goes_on(&mut site, &mut replica, 1);
}

#[test]
fn a_directory_in_place_of_a_signed_copy_is_none_where_the_record_is_lost() {
    let (site, replica) = settled();
    drop(replica);
    plant_directory(&site.root().join("state/signed/9"));
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    assert_eq!(site.open().status().live.unwrap().number().get(), 1);
}

#[test]
fn directories_of_another_user_stop_no_update_of_an_agent_without_privileges() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no directory of another user can be made");
        return;
    }
    let mut site = Site::new();
    site.furnish();
    somebody_owns(site.temp.path());
    let mut replica = as_somebody(|| {
        let mut replica = site.open();
        site.publish(&mut replica);
        site.settle(&mut replica);
        goes_on(&mut site, &mut replica, 1);
        replica
    });
    LINKS.iter().for_each(|name| plant_directory(&site.root().join(name)));
    as_somebody(|| goes_on(&mut site, &mut replica, 3));
    assert!(site.root().join("live.next.1/inside").exists());
    as_somebody(|| {
        drop(replica);
        let mut replica = site.open();
        goes_on(&mut site, &mut replica, 1);
    });
}

#[test]
fn a_mount_where_a_generation_has_its_link_stops_nothing() {
    let (mut site, mut replica) = settled();
    let place = site.root().join("generations/2");
    std::fs::create_dir(&place).unwrap();
    let mount = |arguments: &[&str]| {
        let run = std::process::Command::new(arguments[0]).args(&arguments[1..]).arg(&place).status();
        run.is_ok_and(|status| status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "tmpfs"]) {
        eprintln!("this user may not mount: skipped");
        return;
    }
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for round in 0..3 {
            site.write("docs/0/page-0.html", format!("round {round}"));
            site.publish(&mut replica);
            site.assert_live_is_tree();
            site.settle(&mut replica);
        }
        drop(replica);
        assert_eq!(site.open().status().generations, [3, 4]);
    }));
    assert!(mount(&["umount"]));
    outcome.unwrap_or_else(|e| std::panic::resume_unwind(e));
}
