//! The decoder of stat records and symlink targets, as functions over any bytes. Only for fuzz targets.

use syncd_shared::{Component, ContentHash, Timestamp, TreePath};

use super::file_stat::Fingerprint;
use super::stat_record::{Own, ReadFile, StatRecord, decode_files, encode_files};
use super::symlink_target::leaves_tree;

/// The record of a directory.
pub fn stat_record(bytes: &[u8]) {
    if let Some(files) = decode_files(bytes) {
        assert_eq!(decode_files(&encode_files(&files)), Some(files));
    }
    let own = Own::of_record(bytes);
    let Some(record) = StatRecord::decode(bytes) else { return };
    assert_eq!(own, Some(record.own));
    assert_eq!(StatRecord::decode(&record.encode()).as_ref(), Some(&record));
    for file in &record.files {
        assert_eq!(record.file(&file.name), Some(file));
    }
}

/// Checks that a symlink classified as staying inside the tree does stay there, however it is followed.
pub fn symlink_target(path: &TreePath, target: &[u8]) {
    if leaves_tree(path, target) {
        return;
    }
    let mut at: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
    at.pop();
    for name in target.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => assert!(at.pop().is_some(), "it climbs out"),
            name => at.push(name),
        }
    }
}

/// A record with files of these names.
pub fn some_stat_record(names: &[Component]) -> Vec<u8> {
    let time = Timestamp::default();
    let fingerprint = Fingerprint { size: 1, mtime: time, ctime: time, inode: 2 };
    let file = |name: &Component| {
        let content = ContentHash::of(name.as_bytes());
        ReadFile { name: name.clone(), fingerprint, content, racy: false }
    };
    let own = Own { device: 1, inode: 2, mtime: time, ctime: time };
    StatRecord { own, ignore_file: Some(fingerprint), files: names.iter().map(file).collect() }.encode()
}
