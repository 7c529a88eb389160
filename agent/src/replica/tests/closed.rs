//! Files and directories whose modes deny their owner, which an agent without privileges is.

use super::*;
use crate::fixture::{as_somebody, somebody_owns};

const MODES: [u32; 7] = [0o000, 0o111, 0o311, 0o400, 0o444, 0o555, 0o644];

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// The origin's side works as root, which reads everything, and the agent's side as nobody.
struct Sides {
    site: Site,
    mode: u32,
}

impl Sides {
    fn new(mode: u32) -> Self {
        let mut site = Site::new();
        site.origin.deltas = true;
        site.furnish();
        site.write("closed/inner/page", "inner");
        site.write("closed/inner/last", "as it was");
        site.write("closed/page", "outer");
        site.write("closed/large.bin", noise(1, 400_000));
        std::os::unix::fs::symlink("page", site.tree().join("closed/link")).unwrap();
        Self { site, mode }
    }

    /// Closes what is to be closed, and seals. Everything is nobody's, as it is where the agent has written it.
    fn seal(&mut self) {
        let tree = self.site.tree();
        somebody_owns(self.site.temp.path());
        for name in ["closed/large.bin", "closed/page", "closed/inner", "closed"] {
            if tree.join(name).exists() {
                set_mode(&tree.join(name), self.mode);
            }
        }
        self.site.origin.seal(&tree);
    }

    /// Makes what was sealed live, and does what is to be done in the background.
    fn follow(&mut self, replica: &mut Replica) {
        let Self { site, mode } = self;
        let target = site.origin.last().clone();
        as_somebody(|| {
            let staged = site.stage(replica, &target).unwrap_or_else(|e| panic!("{mode:o}: {e:?}"));
            replica.activate(staged, &mut |_| Ok(())).unwrap_or_else(|e| panic!("{mode:o}: {e:?}"));
            site.settle(replica);
            assert!(replica.status().spares >= 2, "{mode:o}");
        });
        self.site.assert_live_is_tree();
    }

    fn verify(&mut self, replica: &mut Replica) -> (u64, bool) {
        let site = &mut self.site;
        let report =
            as_somebody(|| replica.verify(Some(&mut site.origin), &|_| {}, &AtomicBool::new(false)).unwrap());
        self.site.assert_live_is_tree();
        (report.drifted, report.healed)
    }

    fn open(&self) -> Replica {
        let mut replica = as_somebody(|| self.site.open());
        replica.options.keep = 1;
        replica
    }
}

#[test]
fn closed_files_and_directories_stop_no_update_of_an_agent_without_privileges() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: nobody could read what is to be published");
        return;
    }
    for mode in MODES {
        let mut sides = Sides::new(mode);
        sides.seal();
        let mut replica = sides.open();
        sides.follow(&mut replica);
        let tree = sides.site.tree();
        // Beside it, in it, below it; the basis of a delta is a file that nobody may read.
        sides.site.write("docs/0/page-0.html", "second");
        let mut large = noise(1, 400_000);
        large[200_000..200_010].fill(0);
        sides.site.write("closed/large.bin", large);
        sides.site.write("closed/inner/page", "inner, edited");
        sides.site.write("closed/inner/new", "new");
        sides.seal();
        sides.follow(&mut replica);
        assert_eq!(sides.verify(&mut replica), (0, false), "{mode:o}");
        // Names that go, as a whole and one by one; a directory that is renamed.
        std::fs::remove_file(tree.join("closed/link")).unwrap();
        std::fs::rename(tree.join("closed/inner"), tree.join("closed/moved")).unwrap();
        sides.seal();
        sides.follow(&mut replica);
        std::fs::remove_dir_all(tree.join("closed/moved")).unwrap();
        sides.seal();
        sides.follow(&mut replica);
        // After a restart; without the record; damaged.
        drop(replica);
        let mut replica = sides.open();
        sides.site.write("docs/0/page-0.html", "after a restart");
        sides.seal();
        sides.follow(&mut replica);
        drop(replica);
        std::fs::remove_file(sides.site.root().join("state/record.redb")).unwrap();
        let mut replica = sides.open();
        assert!(replica.status().live.is_some(), "{mode:o}: its manifest is built from its files");
        std::fs::write(sides.site.live().join("closed/page"), "defaced").unwrap();
        assert_eq!(sides.verify(&mut replica), (1, true), "{mode:o}");
        // The mode is mended.
        sides.mode = 0o755;
        sides.seal();
        sides.follow(&mut replica);
        // All of it is gone.
        std::fs::remove_dir_all(tree.join("closed")).unwrap();
        sides.site.write("docs/0/page-0.html", "the last");
        sides.seal();
        sides.follow(&mut replica);
        assert_tidy(&sides.site, &replica);
    }
}
