//! Attacks with the directory objects of a signed root.

use syncd_shared::{ContentHash, Entry, Kind, ObjectHash, RootEntry, Totals};

use super::fake_origin::peak_mib;
use super::lying_origin::World;
use super::site::{FILE, FOLDER, RawEntry, folder_entry, named, raw_directory};

#[test]
fn trees_that_can_not_be_are_refused() {
    let mut world = World::new("hostile-trees");
    let one = Totals { entries: 1, files: 1, bytes: 0 };
    let two = Totals { entries: 2, files: 2, bytes: 0 };
    let raw =
        |entries: &[RawEntry<'_>], totals| World::version(2).with_root_bytes(raw_directory(entries), totals);
    for (attack, name) in [
        ("a name ..", &b".."[..]),
        ("a name .", b"."),
        ("an empty name", b""),
        ("a name with a slash", b"a/../../../outside/x"),
        ("an absolute name", b"/etc/passwd"),
        ("a name with NUL", b"a\0b"),
    ] {
        world.refused_site(attack, raw(&[RawEntry::file(name)], one), None, "name");
    }
    let unsorted = [RawEntry::file(b"b"), RawEntry::file(b"a")];
    world.refused_site("unsorted names", raw(&unsorted, two), None, "out of order");
    let twice = [RawEntry::file(b"a"), RawEntry::symlink(b"a", b"../../outside")];
    world.refused_site(
        "a file and a symlink of one name",
        raw(&twice, two),
        None,
        "out of order or repeated",
    );
    for (attack, kind) in [("a device", 5), ("a fifo", 6), ("kind 255", 255), ("kind 0", 0)] {
        let entry = RawEntry { kind, ..RawEntry::file(b"a") };
        world.refused_site(attack, raw(&[entry], one), None, "unknown kind");
    }
    for (attack, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("a mode beyond", 0o100_644)] {
        let entry = RawEntry { mode, ..RawEntry::file(b"a") };
        world.refused_site(attack, raw(&[entry], one), None, "metadata");
    }
    let entry = RawEntry { nanoseconds: 1_000_000_000, ..RawEntry::file(b"a") };
    world.refused_site("a time that is none", raw(&[entry], one), None, "metadata");
    for target in [&b""[..], b"a\0b", &vec![b't'; 5000]] {
        let entries = [RawEntry::symlink(b"a", target)];
        let totals = Totals { entries: 1, files: 0, bytes: 0 };
        world.refused_site("an invalid symlink target", raw(&entries, totals), None, "target");
    }
    world.refused_site(
        "a truncated object",
        World::version(2).with_root_bytes(vec![1, 200, 3], one),
        None,
        "truncated",
    );
    world.refused_site(
        "another version",
        World::version(2).with_root_bytes(vec![9], one),
        None,
        "unknown format",
    );
    world.refused_site("lying totals", raw(&[RawEntry::file(b"a")], two), None, "totals");
    let absurd = Totals { entries: u64::MAX, files: u64::MAX, bytes: u64::MAX };
    world.refused_site("absurd totals", raw(&[RawEntry::file(b"a")], absurd), None, "totals");

    let mut deep = World::version(2);
    let (mut object, mut totals) = deep.put(Vec::new());
    for _ in 0..80 {
        (object, totals) = deep.put(vec![folder_entry("d", object, totals)]);
    }
    deep.root = Some(RootEntry { object, metadata: FOLDER, totals });
    world.refused_site("80 levels", deep, None, "exceeds 64|path");

    let mut long = World::version(2);
    let name = "n".repeat(250);
    let (mut object, mut totals) = long.put(Vec::new());
    for _ in 0..20 {
        (object, totals) = long.put(vec![folder_entry(&name, object, totals)]);
    }
    long.root = Some(RootEntry { object, metadata: FOLDER, totals });
    world.refused_site("a path of 5,000 bytes", long, None, "exceeds 4095|path");

    let mut vast = World::version(2);
    let size = 1u64 << 60;
    let kind = Kind::File { content: ContentHash::of(b"never sent"), size };
    let (object, totals) = vast.put(vec![Entry { name: named("vast"), metadata: FILE, kind }]);
    vast.root = Some(RootEntry { object, metadata: FOLDER, totals });
    world.refused_site("a file of an exabyte", vast, None, "are needed on the file system");

    let mut unknown = World::version(2);
    unknown.root = Some(RootEntry { object: ObjectHash::from_bytes([1; 32]), ..unknown.root() });
    world.refused_site("a root object that nobody has", unknown, None, "directory object|no directory");
    world.honest(3);
    println!("{} trees refused, peak {} MiB", world.tried(), peak_mib(world.pid()));
}
