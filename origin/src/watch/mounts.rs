//! The file systems of the tree, and whether they report changes.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use syncd_shared::TreePath;

use super::hints::PollReason;

/// File systems whose changes all go through this kernel and are therefore reported. This includes overlay,
/// because its layers must not be changed while it is mounted.
const REPORTING: &[&str] = &[
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "nilfs2",
    "ntfs3", "overlay", "ramfs", "reiserfs", "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Path of the mount.
    pub point: PathBuf,
    /// Major and minor number.
    pub device: String,
    /// Mounted part of the file system, as a path from its root.
    pub root: PathBuf,
}

/// All mounts of this process, in the kernel's order. Empty if /proc cannot be read.
pub(crate) fn mounted() -> Vec<Mounted> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let root = |line: &[u8]| {
        let field = line.split(|byte| *byte == b' ').nth(3)?;
        Some(PathBuf::from(OsString::from_vec(unescape(field))))
    };
    let parse = |line| {
        let (point, mount) = parse_line(line)?;
        Some(Mounted { point, device: mount.device, root: root(line)? })
    };
    table.split(|byte| *byte == b'\n').filter_map(parse).collect()
}

/// One line of /proc/self/mountinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    id: u64,
    device: String,
    kind: String,
}

/// The mount of the tree's root, and the mounts inside the tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Mounts {
    /// The mount of the root is under the root's path.
    of: BTreeMap<TreePath, Mount>,
    /// Absolute mount points.
    points: BTreeSet<PathBuf>,
}

impl Mounts {
    /// Reads the mounts of the tree at `root`. Empty if /proc cannot be read.
    pub(super) fn of(root: &Path) -> Self {
        let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        Self::parse(&table, root)
    }

    pub(super) fn parse(table: &[u8], root: &Path) -> Self {
        let mut inside = BTreeMap::new();
        let mut above: Option<(PathBuf, Mount)> = None;
        for (point, mount) in table.split(|byte| *byte == b'\n').filter_map(parse_line) {
            if root.starts_with(&point) {
                // If several mounts share a mount point, the last one is on top.
                if above.as_ref().is_none_or(|(best, _)| point.starts_with(best)) {
                    above = Some((point, mount));
                }
            } else if let Ok(below) = point.strip_prefix(root)
                && let Ok(path) = TreePath::from_bytes(below.as_os_str().as_bytes())
            {
                inside.insert(path, mount);
            }
        }
        let mut points: BTreeSet<PathBuf> = inside.keys().map(|path: &TreePath| path.below(root)).collect();
        if let Some((point, mount)) = above {
            inside.insert(TreePath::root(), mount);
            points.insert(point);
        }
        Self { of: inside, points }
    }

    /// The mount points in the tree and the one of its root; absolute.
    pub(super) fn points(&self) -> &BTreeSet<PathBuf> {
        &self.points
    }

    /// Subtrees for which events do not report every change, with reasons.
    pub(super) fn polled(&self) -> BTreeMap<TreePath, PollReason> {
        let mut devices = BTreeSet::new();
        let mut polled = BTreeMap::new();
        for (path, mount) in &self.of {
            let first = devices.insert(&mount.device);
            if !REPORTING.contains(&mount.kind.as_str()) {
                polled.insert(path.clone(), PollReason::FileSystem { kind: mount.kind.clone() });
            } else if !first {
                polled.insert(path.clone(), PollReason::MountedTwice);
            }
        }
        polled
    }
}

/// Parses a line such as `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`,
/// see proc(5).
fn parse_line(line: &[u8]) -> Option<(PathBuf, Mount)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let text = |field: &[u8]| std::str::from_utf8(field).ok().map(str::to_owned);
    let id = text(fields.next()?)?.parse().ok()?;
    let device = text(fields.nth(1)?)?;
    let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let kind = text(fields.skip_while(|field| *field != b"-").nth(1)?)?;
    Some((point, Mount { id, device, kind }))
}

/// Decodes a space, tab, newline or backslash written as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| digits.iter().all(|d| (b'0'..b'8').contains(d)));
        match digits {
            Some(digits) if *first == b'\\' => {
                out.push(
                    digits.iter().fold(0u8, |sum, digit| sum.wrapping_mul(8).wrapping_add(digit - b'0')),
                );
                rest = &after[3..];
            }
            _ => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /proc rw - proc proc rw
40 22 8:1 / /srv rw - xfs /dev/sda1 rw
41 40 0:44 / /srv/site/media rw - nfs4 host:/export rw
42 40 0:45 / /srv/site/with\\040space rw - fuse.sshfs host: rw
43 40 8:1 /elsewhere /srv/site/bound rw - xfs /dev/sda1 rw
44 40 0:46 / /srv/site/cache rw - tmpfs tmpfs rw
45 40 0:47 / /srv/sites rw - cifs //host/x rw
";

    #[test]
    fn mounts_inside_the_tree_are_classified() {
        let polled = Mounts::parse(TABLE, Path::new("/srv/site")).polled();
        let file_system = |kind: &str| PollReason::FileSystem { kind: kind.into() };
        let path = |p: &str| TreePath::from_bytes(p.as_bytes()).unwrap();
        let expected = [
            (path("media"), file_system("nfs4")),
            (path("with space"), file_system("fuse.sshfs")),
            (path("bound"), PollReason::MountedTwice),
        ];
        assert_eq!(polled, BTreeMap::from(expected));
    }

    #[test]
    fn mount_points_are_those_in_the_tree_and_the_one_it_is_on() {
        let points = |root: &str| Mounts::parse(TABLE, Path::new(root)).points().clone();
        let inside = ["media", "with space", "bound", "cache"].map(|name| Path::new("/srv/site").join(name));
        let expected: BTreeSet<PathBuf> = inside.into_iter().chain([PathBuf::from("/srv")]).collect();
        assert_eq!(points("/srv/site"), expected);
        assert_eq!(points("/srv/sites/a"), BTreeSet::from(["/srv/sites".into()]));
    }

    #[test]
    fn the_file_system_of_the_root_is_the_deepest_mount_above() {
        assert!(Mounts::parse(TABLE, Path::new("/var/www")).polled().is_empty());
        let polled = Mounts::parse(TABLE, Path::new("/srv/sites/a")).polled();
        assert_eq!(polled[&TreePath::root()], PollReason::FileSystem { kind: "cifs".into() });
    }

    #[test]
    fn this_machine_can_be_read() {
        let mounts = Mounts::of(Path::new("/"));
        assert!(mounts.of.contains_key(&TreePath::root()) && mounts.points().contains(Path::new("/")));
    }
}
