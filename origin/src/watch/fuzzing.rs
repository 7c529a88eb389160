//! The kernel's list of mounts, as a function over any bytes: for the fuzz targets alone.

use std::path::Path;

use super::mounts::Mounts;

/// A mountinfo. Names in it are anybody's who may mount.
pub fn mounts(table: &[u8]) {
    let mounts = Mounts::parse(table, Path::new("/srv/site"));
    for path in mounts.polled().keys() {
        assert!(path.is_root() || Path::new("/srv/site").join(path.to_string()).starts_with("/srv/site"));
    }
}
