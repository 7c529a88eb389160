//! The decoders of the scan base and the rollback record, as functions over any bytes. Only for fuzz targets.

use syncd_shared::RootEntry;

use super::scan_base::ScanBase;

/// The tree that the stat records describe.
pub fn scan_base(bytes: &[u8]) {
    if let Some(base) = ScanBase::decode(bytes) {
        assert_eq!(base.encode(), bytes);
    }
}

/// A valid scan base.
pub fn some_scan_base(root: RootEntry, unpublished: bool) -> Vec<u8> {
    let mounts = ["/", "/srv/site/uploads"].map(Into::into).into();
    ScanBase { root, unpublished, mounts }.encode()
}
