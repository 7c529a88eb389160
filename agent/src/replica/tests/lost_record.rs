//! After the record was lost, no file that no manifest explains goes to the trash.

use super::held::return_back;
use super::visitors::{files, kept};
use super::*;
use crate::replica::Signers;
use crate::session::worker::Decision;
use crate::state::decisions::Named;

/// Removes the record while no agent runs, and starts the agent again. Only the live generation is to be
/// kept.
fn lose_the_record(site: &Site, replica: Replica) -> Replica {
    drop(replica);
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let mut replica = site.open();
    replica.options.keep = 1;
    replica
}

/// The live tree of generation 1 with a file added by a visitor, and without one that a visitor deleted.
fn visited() -> (Site, Replica) {
    let (site, replica) = settled();
    std::fs::write(site.live().join("docs/1/upload.jpg"), "a picture").unwrap();
    std::fs::remove_file(site.live().join("empty")).unwrap();
    let replica = lose_the_record(&site, replica);
    assert_eq!(replica.status().live, None);
    (site, replica)
}

#[test]
fn a_visitors_file_in_the_live_tree_is_kept_though_the_record_is_lost() {
    let (mut site, mut replica) = visited();
    let target = site.origin.last().clone();
    site.follow(&mut replica, &target);
    site.settle(&mut replica);
    site.assert_live_is_tree();
    assert_eq!(kept(&site), files(&[("1/docs/1/upload.jpg", "a picture")]));
    let drift = replica.status().drift.unwrap();
    assert_eq!((drift.generation, drift.paths, drift.lost, drift.live), (1, 1, 0, 1));
    assert_eq!(drift.first, "docs/1/upload.jpg");
    assert_tidy(&site, &replica);
}

#[test]
fn what_the_next_generation_does_not_explain_is_kept_where_the_manifest_is_lost_with_the_record() {
    let (mut site, mut replica) = visited();
    site.write("docs/0/page-0.html", "second");
    std::fs::rename(site.tree().join("docs/2"), site.tree().join("moved")).unwrap();
    site.publish(&mut replica);
    site.settle(&mut replica);
    let kept = kept(&site);
    let has = |name: &str, content: &str| kept.contains(&(name.to_owned(), content.to_owned()));
    assert!(has("1/docs/1/upload.jpg", "a picture"), "{kept:?}");
    // Nobody can tell any more that these were not a visitor's files.
    assert!(has("1/docs/0/page-0.html", "<p>0</p>"), "{kept:?}");
    assert!(has("1/docs/2/page-2.html", "<p>2</p>"), "{kept:?}");
    assert_eq!(kept.iter().filter(|(path, _)| !path.starts_with("1/docs/2/")).count(), 2, "{kept:?}");
    assert_eq!(replica.status().drift.unwrap().paths, 3);
    assert_tidy(&site, &replica);
}

#[test]
fn without_any_copy_of_its_signed_record_a_tree_is_compared_with_the_live_one() {
    let (mut site, replica) = settled();
    std::fs::write(site.live().join("docs/1/upload.jpg"), "a picture").unwrap();
    std::fs::remove_dir_all(site.root().join("state/signed")).unwrap();
    let mut replica = lose_the_record(&site, replica);
    let target = site.origin.last().clone();
    site.follow(&mut replica, &target);
    site.settle(&mut replica);
    assert_eq!(kept(&site), files(&[("0/docs/1/upload.jpg", "a picture")]));
    assert_eq!(replica.status().drift.unwrap().generation, 0);
}

#[test]
fn trees_beside_a_live_one_that_is_proven_are_inspected_too() {
    let (mut site, mut replica) = settled();
    replica.options.grace = Duration::from_secs(3600);
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    std::fs::write(site.generation(1).join("docs/1/upload.jpg"), "a picture").unwrap();
    let mut replica = lose_the_record(&site, replica);
    assert_eq!(replica.status().live.unwrap().number().get(), 2);
    site.settle(&mut replica);
    let expected = [("1/docs/0/page-0.html", "<p>0</p>"), ("1/docs/1/upload.jpg", "a picture")];
    assert_eq!(kept(&site), files(&expected), "spares have what the live tree has");
    assert_tidy(&site, &replica);
}

#[test]
fn a_tree_that_is_unknown_stays_so_until_it_is_inspected_also_after_a_restart() {
    let (mut site, mut replica) = visited();
    replica.options.grace = Duration::from_secs(3600);
    let target = site.origin.last().clone();
    site.follow(&mut replica, &target);
    site.settle(&mut replica);
    assert_eq!(kept(&site), files(&[]));
    drop(replica);
    let mut replica = site.open();
    // Out of use, but not inspected before the next start.
    replica.slots.resting().into_iter().for_each(|slot| replica.slots.end_rest(slot).unwrap());
    assert!(!replica.slots.retired().is_empty());
    drop(replica);
    let mut replica = site.open();
    site.settle(&mut replica);
    assert_eq!(kept(&site), files(&[("1/docs/1/upload.jpg", "a picture")]));
}

#[test]
fn the_highest_copy_that_the_origin_signed_is_accepted_after_a_power_cut_and_the_loss_of_the_record() {
    let (mut site, mut replica) = settled();
    site.write("docs/0/page-0.html", "second");
    site.publish(&mut replica);
    let slot = |number: u64| site.generation(number).file_name().unwrap().to_str().unwrap().to_owned();
    let (first, second) = (slot(1), slot(2));
    let stranger = syncd_shared::ed25519::SigningKey::from_bytes(&[8; 32]);
    let target = site.origin.last().generation().clone();
    let forged =
        syncd_shared::Generation { number: syncd_shared::GenerationNumber::new(9).unwrap(), ..target };
    let forged = forged.sign(&stranger);
    // In a slot that nothing uses.
    replica.slots.write_signed(7, &forged).unwrap();
    drop(replica);
    // The power cut came after the record was committed and before `live` was renamed.
    std::fs::remove_file(site.live()).unwrap();
    symlink(format!("slots/{first}"), site.live()).unwrap();
    let signed = site.root().join("state/signed");
    std::fs::write(signed.join("8"), "torn").unwrap();
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    let keys = vec![syncd_shared::ed25519::SigningKey::from_bytes(&[9; 32]).verifying_key()];
    site.options.signers = Some(Signers { tree_id: syncd_shared::TreeId::from_bytes([1; 16]), keys });
    let replica = site.open();
    let number = |generation: Option<syncd_shared::SignedGeneration>| generation.map(|g| g.number().get());
    assert_eq!(number(replica.status().live), Some(1));
    assert_eq!(number(replica.status().accepted), Some(2), "of slots/{second}");
}

#[test]
fn what_was_accepted_stays_known_though_live_leads_to_a_tree_that_the_record_does_not_have() {
    let (mut site, mut replica) = settled();
    for content in ["second", "third"] {
        site.write("docs/0/page-0.html", content);
        site.publish(&mut replica);
    }
    drop(replica);
    // A restored tree of somebody's, and no copies of signed records that could tell.
    let other = site.root().join("slots/77");
    let copied = std::process::Command::new("cp").arg("-a").arg(site.generation(2)).arg(&other).status();
    assert!(copied.unwrap().success());
    std::fs::remove_file(site.live()).unwrap();
    symlink("slots/77", site.live()).unwrap();
    for name in names(&site.root().join("state/signed")) {
        std::fs::remove_file(site.root().join("state/signed").join(name)).unwrap();
    }
    let replica = site.open();
    let status = replica.status();
    assert_eq!(status.live, None, "nothing is known about the tree");
    assert_eq!(status.accepted.unwrap().number().get(), 3, "no older generation may follow");
}

#[test]
fn a_record_that_is_deleted_under_a_running_agent_is_built_again_after_an_error() {
    let (site, mut replica) = settled();
    std::fs::remove_file(site.root().join("state/record.redb")).unwrap();
    replica.slots.unsettle();
    replica.revive().unwrap();
    assert_eq!(replica.status().live.map(|live| live.number().get()), Some(1));
}

/// Generation 1 has passed and generation 2 is refused; the record is lost before the return.
fn refused(site: Site) -> (Site, Replica) {
    let (mut site, mut replica) = settled_in(site);
    site.options.checks = true;
    replica.options.checks = true;
    let good = Named::of(replica.slots.live().unwrap());
    replica.decide(Decision::Pass(good)).unwrap();
    edit(&site);
    site.publish(&mut replica);
    let bad = Named::of(replica.slots.live().unwrap());
    replica.decide(Decision::Refuse(bad, "502".into())).unwrap();
    (site, replica)
}

#[test]
fn a_node_whose_record_is_lost_between_refusal_and_return_returns_without_the_origin() {
    for site in [Site::new(), Site::in_memory().exchanging()] {
        let (mut site, replica) = refused(site);
        let old = snapshot(&site.generation(1));
        let mut replica = lose_the_record(&site, replica);
        let live = replica.slots.live().unwrap().clone();
        assert!(live.number().get() == 2 && replica.slots.decisions().refusal(&live).is_some());
        let good = replica.slots.held().find(|(_, held)| replica.slots.decisions().is_good(held));
        let good = good.expect("the way back").1.clone();
        site.origin.sent.clear();
        return_back(&mut site, &mut replica, &good);
        assert_eq!((site.live_number(), site.origin.sent.len()), (1, 0));
        assert_eq!(snapshot(&site.live().canonicalize().unwrap()), old);
    }
}

#[test]
fn a_tree_to_return_to_that_was_changed_is_not_trusted_after_the_record_was_lost() {
    let (site, replica) = refused(Site::new());
    std::fs::write(site.generation(1).join("docs/1/upload.jpg"), "a picture").unwrap();
    let replica = lose_the_record(&site, replica);
    assert_eq!((replica.slots.held().count(), replica.slots.decisions().good), (1, None));
}
