//! The parser of the kernel's mount table, as a function over any bytes. Only for fuzz targets.

use std::path::Path;

use super::mounts::Mounts;

/// Parses a mountinfo. Any user who may mount can choose the names in it.
pub fn mounts(table: &[u8]) {
    let mounts = Mounts::parse(table, Path::new("/srv/site"));
    for path in mounts.polled().keys() {
        assert!(path.is_root() || Path::new("/srv/site").join(path.to_string()).starts_with("/srv/site"));
    }
}
