//! Files and directories whose modes deny access to their owner, which is an agent without privileges.

use super::*;
use crate::fixture::{as_somebody, somebody_owns};

const MODES: [u32; 7] = [0o000, 0o111, 0o311, 0o400, 0o444, 0o555, 0o644];

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) as u8).collect()
}

/// The origin's side works as root, which can read everything; the agent's side works as nobody.
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

    /// Closes files and directories, and seals. Everything belongs to nobody, as it does when the agent has
    /// written it.
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

    /// Makes the last sealed generation live, and does all background work.
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
        // New names beside, in and below a closed directory. The base of a delta is a file that nobody may
        // read.
        sides.site.write("docs/0/page-0.html", "second");
        let mut large = noise(1, 400_000);
        large[200_000..200_010].fill(0);
        sides.site.write("closed/large.bin", large);
        sides.site.write("closed/inner/page", "inner, edited");
        sides.site.write("closed/inner/new", "new");
        sides.seal();
        sides.follow(&mut replica);
        assert_eq!(sides.verify(&mut replica), (0, false), "{mode:o}");
        // Names removed together and one by one, and a renamed directory.
        std::fs::remove_file(tree.join("closed/link")).unwrap();
        std::fs::rename(tree.join("closed/inner"), tree.join("closed/moved")).unwrap();
        sides.seal();
        sides.follow(&mut replica);
        std::fs::remove_dir_all(tree.join("closed/moved")).unwrap();
        sides.seal();
        sides.follow(&mut replica);
        // After a restart, without the record, and after damage.
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
        // The mode is corrected.
        sides.mode = 0o755;
        sides.seal();
        sides.follow(&mut replica);
        // Everything closed is removed.
        std::fs::remove_dir_all(tree.join("closed")).unwrap();
        sides.site.write("docs/0/page-0.html", "the last");
        sides.seal();
        sides.follow(&mut replica);
        assert_tidy(&sides.site, &replica);
    }
}
