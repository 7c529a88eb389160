//! Attacks on the choice of generation that an agent accepts.

use syncd_shared::ed25519::SigningKey;
use syncd_shared::limits::NUMBERS_PER_KEY;
use syncd_shared::{Metadata, TreeId};

use super::fake_origin::{announce, announce_bytes, peak_mib};
use super::lying_origin::{World, noise};
use super::site::FOLDER;

#[test]
fn announcements_that_do_not_hold_are_refused_before_any_work() {
    let mut world = World::new("hostile-announcements");
    world.honest(2);
    let root = World::version(3).root();
    let honest = world.origin.sign(3, root);
    world.refused("no signature", announce_bytes(honest.record(), &[], None), "not signed");
    world.refused("a signature of zeros", announce_bytes(honest.record(), &[0; 64], None), "not signed");
    let other_key = SigningKey::from_bytes(&[5; 32]);
    let forged = world.origin.generation(3, root).sign(&other_key);
    world.refused("another key", announce(&forged, None), "not signed");
    let mut flipped = honest.record().to_vec();
    flipped[20] ^= 1;
    world.refused("a flipped bit", announce_bytes(&flipped, honest.signature(), None), "not signed");
    let mut other_tree = world.origin.generation(3, root);
    other_tree.tree_id = TreeId::from_bytes([8; 16]);
    let signed = other_tree.sign(&world.origin.signing_key);
    world.refused("another tree", announce(&signed, None), "is of tree");
    let mut other_epoch = world.origin.generation(3, root);
    other_epoch.epoch = 0;
    let signed = other_epoch.sign(&world.origin.signing_key);
    world.refused("an epoch that no document allows", announce(&signed, None), "epoch");
    let stale = world.origin.sign(1, World::version(1).root());
    world.refused("a lower number", announce(&stale, None), "older than the accepted");
    let conflict = world.origin.sign(1, root);
    world.refused("a lower number with another root", announce(&conflict, None), "has two roots");
    let conflict = world.origin.sign(2, root);
    world.refused("the same number with another root", announce(&conflict, None), "has two roots");
    for absurd in [u64::MAX, NUMBERS_PER_KEY + 1] {
        let absurd = world.origin.sign(absurd, root);
        world.refused("a number that no document allows", announce(&absurd, None), "trust document allows");
    }
    world.refused("an empty record", announce_bytes(&[], &[0; 64], None), "not signed");
    world.refused("a huge record", announce_bytes(&noise(1, 100_000), &[0; 64], None), "length|not signed");
    let mut setuid = root;
    setuid.metadata = Metadata { mode: 0o4755, ..FOLDER };
    let signed = world.origin.sign(3, setuid);
    world.refused("a setuid root", announce(&signed, None), "root entry");
    world.honest(3);
    println!("{} announcements refused, peak {} MiB", world.tried(), peak_mib(world.pid()));
}
