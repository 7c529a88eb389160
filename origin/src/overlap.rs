//! Checks that TREE overlaps neither DATA, before anything is opened, nor a backup.
//!
//! A content tree that contains DATA would publish its keys, and one inside DATA would publish the store.
//! Both are rejected, even behind a symlink or a bind mount: two paths are compared by the device of their
//! mounts and the path in that file system, which is the same wherever a directory is mounted. Directories
//! that enter the tree later are recognised by their marks when they are scanned.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use syncd_shared::marks::{self, Mark};

use crate::watch::mounts::{self, Mounted};

/// Reasons that TREE and DATA cannot be used together.
#[derive(Debug, thiserror::Error)]
pub enum OverlapError {
    /// DATA lies inside TREE.
    #[error("the data directory {data} lies inside the content tree {tree}, so that its keys would be published: move it out of the tree, and give its new place as --data", data = data.display(), tree = tree.display())]
    DataInTree {
        /// DATA.
        data: PathBuf,
        /// TREE.
        tree: PathBuf,
    },
    /// TREE lies inside DATA.
    #[error("the content tree {tree} lies inside the data directory {data}: give a --tree outside of it", data = data.display(), tree = tree.display())]
    TreeInData {
        /// TREE.
        tree: PathBuf,
        /// DATA.
        data: PathBuf,
    },
    /// A mount inside TREE shows DATA or a part of it.
    #[error("the mount {mount} inside the content tree shows the data directory {data}, so that its keys would be published: unmount it", mount = mount.display(), data = data.display())]
    DataMounted {
        /// Path of the mount.
        mount: PathBuf,
        /// DATA.
        data: PathBuf,
    },
    /// A backup inside TREE.
    #[error("the backup {to} would lie inside the content tree {tree}, so that the keys would be published: give a directory outside of it", to = to.display(), tree = tree.display())]
    BackupInTree { to: PathBuf, tree: PathBuf },
    /// TREE inside a backup.
    #[error("the content tree {tree} lies inside {to}: give another directory for the backup", to = to.display(), tree = tree.display())]
    TreeInBackup { to: PathBuf, tree: PathBuf },
    /// The directory lies in another origin's DATA, or in the private part of an agent's ROOT.
    #[error("{path} lies inside {above}, {mark}: give a directory outside of it", path = path.display(), above = above.display())]
    Inside {
        /// The given path.
        path: PathBuf,
        /// The enclosing directory.
        above: PathBuf,
        /// Kind of the enclosing directory.
        mark: Mark,
    },
    /// A path cannot be resolved.
    #[error("resolve {path}", path = path.display())]
    Resolve {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// Rejects a DATA inside another origin's DATA or an agent's ROOT. DATA need not exist yet.
pub fn check_data(data: &Path) -> Result<(), OverlapError> {
    let resolve = |source| OverlapError::Resolve { path: data.to_owned(), source };
    match marks::above(data).map_err(resolve)? {
        Some((above, mark)) => Err(OverlapError::Inside { path: data.to_owned(), above, mark }),
        None => Ok(()),
    }
}

/// Rejects a TREE and DATA if one contains the other. A missing TREE passes, because there is nothing to
/// publish.
pub fn check(tree: &Path, data: &Path) -> Result<(), OverlapError> {
    check_data(data)?;
    let (Ok(real_tree), Ok(real_data)) = (tree.canonicalize(), data.canonicalize()) else { return Ok(()) };
    let (tree_named, data_named) = (|| tree.to_owned(), || data.to_owned());
    match Overlap::of(&real_tree, &real_data) {
        Some(Overlap::InTree) => Err(OverlapError::DataInTree { data: data_named(), tree: tree_named() }),
        Some(Overlap::AroundTree) => Err(OverlapError::TreeInData { tree: tree_named(), data: data_named() }),
        Some(Overlap::Mounted(mount)) => Err(OverlapError::DataMounted { mount, data: data_named() }),
        None => check_strangers(tree, &real_tree),
    }
}

/// Rejects a directory for a backup that lies inside TREE or contains it. It need not exist yet.
pub fn check_backup(tree: &Path, to: &Path) -> Result<(), OverlapError> {
    let resolve = |source| OverlapError::Resolve { path: to.to_owned(), source };
    let (Ok(real_tree), real_to) = (tree.canonicalize(), resolved(to).map_err(resolve)?) else {
        return Ok(());
    };
    match Overlap::of(&real_tree, &real_to) {
        Some(Overlap::AroundTree) => {
            Err(OverlapError::TreeInBackup { to: to.to_owned(), tree: tree.to_owned() })
        }
        Some(_) => Err(OverlapError::BackupInTree { to: to.to_owned(), tree: tree.to_owned() }),
        None => Ok(()),
    }
}

/// Resolves the symlinks of a path whose last components may be missing.
fn resolved(path: &Path) -> std::io::Result<PathBuf> {
    let mut missing = Vec::new();
    let mut above = path;
    while above.symlink_metadata().is_err() {
        let (Some(parent), Some(name)) = (above.parent(), above.file_name()) else { break };
        missing.push(name);
        above = parent;
    }
    let mut real = above.canonicalize()?;
    real.extend(missing.iter().rev());
    Ok(real)
}

/// How TREE and another directory overlap.
#[derive(Debug, PartialEq, Eq)]
enum Overlap {
    InTree,
    AroundTree,
    /// A mount inside TREE shows the directory or a part of it.
    Mounted(PathBuf),
}

impl Overlap {
    /// Compares two resolved paths. `None` if neither contains the other.
    fn of(tree: &Path, other: &Path) -> Option<Self> {
        let mounted = mounts::mounted();
        let place = |path: &Path| Place::of(path, &mounted);
        let (tree_place, other_place) = (place(tree), place(other));
        let is_inside = |place: &Option<Place>, above: &Option<Place>| match (place, above) {
            (Some(place), Some(above)) => place.is_inside(above),
            _ => false,
        };
        if is_below(other, tree) || is_inside(&other_place, &tree_place) {
            return Some(Self::InTree);
        }
        if is_below(tree, other) || is_inside(&tree_place, &other_place) {
            return Some(Self::AroundTree);
        }
        let shows = |mount: &&Mounted| {
            let shown = Some(Place { device: mount.device.clone(), path: mount.root.clone() });
            is_inside(&other_place, &shown) || is_inside(&shown, &other_place)
        };
        let mut below = mounted.iter().filter(|mount| mount.point.starts_with(tree));
        below.find(shows).map(|mount| Self::Mounted(mount.point.clone()))
    }
}

/// Rejects a TREE inside private directories of another origin or agent. The trees of a replica are allowed,
/// because they may be published again.
fn check_strangers(tree: &Path, real_tree: &Path) -> Result<(), OverlapError> {
    for above in real_tree.ancestors() {
        let Some(mark) = marks::of(above) else { continue };
        let is_replica = real_tree.strip_prefix(above).is_ok_and(|below| below.starts_with("generations"));
        if mark == Mark::OriginData || !is_replica {
            return Err(OverlapError::Inside { path: tree.to_owned(), above: above.to_owned(), mark });
        }
    }
    Ok(())
}

/// Whether `above` is `path` or one of its ancestors, compared by inode.
fn is_below(path: &Path, above: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let above = identity(above);
    above.is_some() && path.ancestors().any(|ancestor| identity(ancestor) == above)
}

/// The location of a directory, independent of mount points.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    device: String,
    /// Path from the root of the file system.
    path: PathBuf,
}

impl Place {
    /// `None` if the mount table has no answer.
    fn of(path: &Path, mounted: &[Mounted]) -> Option<Self> {
        // If several mounts share a mount point, the last one is on top.
        let mut best: Option<&Mounted> = None;
        for mount in mounted.iter().filter(|mount| path.starts_with(&mount.point)) {
            if best.is_none_or(|best| mount.point.starts_with(&best.point)) {
                best = Some(mount);
            }
        }
        let mount = best?;
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(Self { device: mount.device.clone(), path: mount.root.join(below) })
    }

    fn is_inside(&self, above: &Place) -> bool {
        self.device == above.device && self.path.starts_with(&above.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::store::Store;

    struct Base(tempfile::TempDir);

    impl Base {
        fn new() -> Self {
            let base = tempfile::tempdir().unwrap();
            fs::create_dir_all(base.path().join("tree/sub")).unwrap();
            Self(base)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn data(&self, name: &str) -> PathBuf {
            let data = self.at(name);
            drop(Store::create(&data).unwrap());
            data
        }
    }

    #[test]
    fn directories_side_by_side_are_apart() {
        let base = Base::new();
        let data = base.data("data");
        check(&base.at("tree"), &data).unwrap();
        check(&base.at("missing"), &data).unwrap();
        // A name that begins like another one is not inside it.
        check(&base.at("tree"), &base.data("tree-data")).unwrap();
    }

    #[test]
    fn one_inside_the_other_is_refused_through_symlinks_too() {
        let base = Base::new();
        let inside = base.data("tree/sub/data");
        std::os::unix::fs::symlink(base.at("tree"), base.at("link")).unwrap();
        for tree in ["tree", "tree/sub", "link", "link/sub/../sub"] {
            let error = check(&base.at(tree), &inside).unwrap_err();
            assert!(matches!(error, OverlapError::DataInTree { .. }), "{tree}: {error}");
        }
        let data = base.data("data");
        fs::create_dir(data.join("site")).unwrap();
        for tree in ["data", "data/site"] {
            let error = check(&base.at(tree), &data).unwrap_err();
            let expected = if tree == "data" { "DataInTree" } else { "TreeInData" };
            assert!(format!("{error:?}").starts_with(expected), "{tree}: {error}");
        }
    }

    #[test]
    fn a_backup_is_apart_from_the_tree_also_before_it_exists() {
        let base = Base::new();
        let tree = base.at("tree");
        std::os::unix::fs::symlink(&tree, base.at("link")).unwrap();
        for inside in ["tree/backup", "tree/sub/new/backup", "link/backup", "tree", "tree/sub"] {
            let error = check_backup(&tree, &base.at(inside)).unwrap_err();
            assert!(matches!(error, OverlapError::BackupInTree { .. }), "{inside}: {error}");
        }
        let error = check_backup(&tree, base.0.path()).unwrap_err();
        assert!(matches!(error, OverlapError::TreeInBackup { .. }), "{error}");
        check_backup(&tree, &base.at("backups/monday")).unwrap();
        check_backup(&tree, &base.at("tree-backup")).unwrap();
    }

    #[test]
    fn another_origins_data_and_a_replicas_private_part_are_refused() {
        let base = Base::new();
        let (data, other) = (base.data("data"), base.data("other"));
        fs::create_dir(other.join("site")).unwrap();
        let error = check(&other.join("site"), &data).unwrap_err();
        assert!(matches!(error, OverlapError::Inside { mark: Mark::OriginData, .. }), "{error}");
        assert!(matches!(check_data(&other.join("new")), Err(OverlapError::Inside { .. })));
        for name in ["generations/1", "staging/1", "state", "trash"] {
            fs::create_dir_all(base.at("node").join(name)).unwrap();
        }
        for refused in ["node", "node/staging/1", "node/state"] {
            let error = check(&base.at(refused), &data).unwrap_err();
            assert!(matches!(error, OverlapError::Inside { mark: Mark::AgentRoot, .. }), "{error}");
        }
        check(&base.at("node/generations/1"), &data).unwrap();
        assert!(matches!(check_data(&base.at("node/data")), Err(OverlapError::Inside { .. })));
    }

    #[test]
    fn a_place_is_the_same_wherever_it_is_mounted() {
        let mount = |point: &str, device: &str, root: &str| Mounted {
            point: point.into(),
            device: device.into(),
            root: root.into(),
        };
        let table = [
            mount("/", "8:1", "/"),
            mount("/srv/site", "8:2", "/"),
            mount("/mnt/sub", "8:2", "/sub"),
            mount("/srv/site/x", "8:1", "/var/lib"),
        ];
        let place = |path: &str| Place::of(Path::new(path), &table).unwrap();
        assert_eq!(place("/mnt/sub/a"), place("/srv/site/sub/a"));
        assert!(place("/mnt/sub/a").is_inside(&place("/srv/site")));
        assert!(place("/srv/site/x/syncd").is_inside(&place("/var/lib")));
        assert!(!place("/srv/site/sub").is_inside(&place("/mnt/sub/a")));
        assert!(!place("/srv/site").is_inside(&place("/")));
    }
}
