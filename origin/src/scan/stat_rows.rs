//! The rows in which the store keeps stat records.
//!
//! ```text
//! PATH           the head: the directory itself, and its first files
//! PATH//NAME     further files, from NAME to the name of the next row (no path has an empty component)
//! ```
//!
//! A change of some names rewrites the head and the rows of those names, whatever the size of the directory.
//! A row of more than [`ROW_FILES_MAX`] files is split; one without files is removed. Rows are never merged:
//! the next listing of the directory, at the latest by the hourly walk, cuts them again.

use std::collections::{BTreeMap, BTreeSet};

use syncd_shared::{Component, TreePath};

use super::error::ScanError;
use super::stat_record::{ReadFile, StatRecord, decode_files, encode_files};
use crate::store::{StatRow, Store, Writer};

/// Files of a row before it is split.
const ROW_FILES_MAX: usize = 128;

/// The rows of a directory as the store has them.
pub(super) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Start of the keys of all rows but the head.
fn prefix(path: &TreePath) -> Vec<u8> {
    [path.as_bytes(), b"//"].concat()
}

fn key(path: &TreePath, first: &Component) -> Vec<u8> {
    [path.as_bytes(), b"//", first.as_bytes()].concat()
}

/// The whole record of a directory, and its rows.
pub(super) fn whole(writer: &Writer, path: &TreePath) -> Result<(Option<StatRecord>, Rows), ScanError> {
    let mut rows = writer.stats_of(&prefix(path))?;
    let further = rows.values().map(|row| decode_files(row)).collect::<Vec<_>>();
    let head = writer.stat(path.as_bytes())?;
    let record = head.as_deref().and_then(|head| joined(head, further));
    rows.extend(head.map(|head| (path.as_bytes().to_vec(), head)));
    Ok((record, rows))
}

/// The whole record that the store has, without changes of a writer.
pub(super) fn stored(store: &Store, path: &TreePath) -> Result<Option<StatRecord>, ScanError> {
    let Some(head) = store.stat(path.as_bytes())? else { return Ok(None) };
    let rows = store.stats_of(&prefix(path))?;
    Ok(joined(&head, rows.values().map(|row| decode_files(row)).collect()))
}

fn joined(head: &[u8], further: Vec<Option<Vec<ReadFile>>>) -> Option<StatRecord> {
    let mut record = StatRecord::decode(head)?;
    for files in further {
        record.files.extend(files?);
    }
    record.files.is_sorted_by(|a, b| a.name < b.name).then_some(record)
}

/// The record of a directory with the files of these names only.
pub(super) fn of_names<'a>(
    writer: &Writer,
    path: &TreePath,
    names: impl Iterator<Item = &'a Component>,
) -> Result<Option<StatRecord>, ScanError> {
    let head = writer.stat(path.as_bytes())?;
    let Some(mut head) = head.as_deref().and_then(StatRecord::decode) else { return Ok(None) };
    let in_head = std::mem::take(&mut head.files);
    for name in names {
        let row = row_of(writer, path, name)?;
        let files = match &row {
            Some((_, row)) => decode_files(row),
            None => None,
        };
        // A row that does not decode knows nothing of its files.
        let files = files.as_deref().unwrap_or(if row.is_none() { &in_head } else { &[] });
        head.files.extend(files.iter().find(|file| file.name == *name).cloned());
    }
    Ok(Some(head))
}

/// The row of a name; `None` for the head.
fn row_of(writer: &Writer, path: &TreePath, name: &Component) -> Result<Option<StatRow>, ScanError> {
    Ok(writer.last_stat(&prefix(path), &key(path, name))?)
}

/// Replaces the whole record of a directory. Returns whether anything changed.
pub(super) fn put_whole(
    writer: &Writer,
    path: &TreePath,
    record: &StatRecord,
    before: &Rows,
) -> Result<bool, ScanError> {
    let mut rows = Rows::new();
    let mut cut = record.files.chunks(ROW_FILES_MAX * 3 / 4);
    rows.insert(path.as_bytes().to_vec(), record.encode_with(cut.next().unwrap_or_default()));
    for files in cut {
        if let Some(first) = files.first() {
            rows.insert(key(path, &first.name), encode_files(files));
        }
    }
    put_rows(writer, &rows, before)
}

/// Replaces what the record knows of `names` by the files of `record`, which has no others, and the head.
/// Returns whether anything changed.
pub(super) fn put_names(
    writer: &Writer,
    path: &TreePath,
    record: &StatRecord,
    names: &BTreeSet<Component>,
) -> Result<bool, ScanError> {
    let head_key = path.as_bytes().to_vec();
    let head = writer.stat(&head_key)?;
    let in_head = head.as_deref().and_then(StatRecord::decode).map(|head| head.files).unwrap_or_default();
    let mut before = Rows::from_iter(head.map(|head| (head_key.clone(), head)));
    let mut files: BTreeMap<Vec<u8>, Vec<ReadFile>> = BTreeMap::from([(head_key.clone(), in_head)]);
    for name in names {
        let row_key = match row_of(writer, path, name)? {
            Some((row_key, row)) => {
                let decode = || decode_files(&row).unwrap_or_default();
                files.entry(row_key.clone()).or_insert_with(decode);
                before.insert(row_key.clone(), row);
                row_key
            }
            None => head_key.clone(),
        };
        let files = files.entry(row_key).or_default();
        let at = files.partition_point(|file| file.name < *name);
        let old = usize::from(files.get(at).is_some_and(|file| file.name == *name));
        files.splice(at..at + old, record.file(name).cloned());
    }
    let mut rows = Rows::new();
    for (row_key, files) in files {
        let is_head = row_key == head_key;
        let size = if files.len() > ROW_FILES_MAX { ROW_FILES_MAX / 2 } else { ROW_FILES_MAX };
        let mut cut = files.chunks(size);
        let first = cut.next().unwrap_or_default();
        if is_head {
            rows.insert(row_key, record.encode_with(first));
        } else if !first.is_empty() {
            rows.insert(row_key, encode_files(first));
        }
        for files in cut {
            if let Some(first) = files.first() {
                rows.insert(key(path, &first.name), encode_files(files));
            }
        }
    }
    put_rows(writer, &rows, &before)
}

fn put_rows(writer: &Writer, rows: &Rows, before: &Rows) -> Result<bool, ScanError> {
    let mut changed = false;
    for key in before.keys().filter(|key| !rows.contains_key(*key)) {
        writer.remove_stat(key)?;
        changed = true;
    }
    for (key, row) in rows.iter().filter(|(key, row)| before.get(*key) != Some(row)) {
        writer.put_stat(key, row)?;
        changed = true;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::file_stat::Fingerprint;
    use crate::scan::stat_record::Own;
    use std::sync::Arc;
    use syncd_shared::{ContentHash, Timestamp};

    fn name(number: usize) -> Component {
        Component::new(format!("f{number:06}").as_bytes()).unwrap()
    }

    fn file(number: usize, size: u64) -> ReadFile {
        let time = Timestamp { seconds: 1, nanoseconds: 2 };
        let fingerprint = Fingerprint { size, mtime: time, ctime: time, inode: number as u64 };
        let name = name(number);
        ReadFile { content: ContentHash::of(name.as_bytes()), name, fingerprint, racy: false }
    }

    fn record(inode: u64, files: Vec<ReadFile>) -> StatRecord {
        let time = Timestamp { seconds: 1, nanoseconds: 2 };
        StatRecord { own: Own { device: 1, inode, mtime: time, ctime: time }, ignore_file: None, files }
    }

    #[test]
    fn rows_know_what_one_record_knows_and_few_change() {
        let data = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::create(data.path()).unwrap());
        let path = TreePath::from_bytes(b"a/b").unwrap();
        let mut expected: BTreeMap<usize, ReadFile> = (0..2_000).map(|n| (3 * n, file(3 * n, 1))).collect();
        let all = |expected: &BTreeMap<usize, ReadFile>| expected.values().cloned().collect::<Vec<_>>();
        let writer = store.writer().unwrap();
        // Neighbours in the order of keys.
        for other in ["a", "a/b0", "a/bb", "a/b/c"] {
            let other = TreePath::from_bytes(other.as_bytes()).unwrap();
            assert!(put_whole(&writer, &other, &record(9, vec![file(7, 7)]), &Rows::new()).unwrap());
        }
        let first = record(1, all(&expected));
        assert!(put_whole(&writer, &path, &first, &Rows::new()).unwrap());
        writer.save().unwrap();
        assert_eq!(stored(&store, &path).unwrap(), Some(first.clone()));
        let writer = store.writer().unwrap();
        let (read, rows) = whole(&writer, &path).unwrap();
        assert_eq!(read, Some(first.clone()));
        assert!(!put_whole(&writer, &path, &first, &rows).unwrap(), "nothing changes");
        let mut random = 1u64;
        for round in 0..600u64 {
            // Additions in one place, removals, replacements, and names that were never there.
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let place = (random >> 33) as usize % 6_000;
            let numbers = [place, 3_001 + round as usize % 200 * 3, place / 2];
            let mut new = Vec::new();
            for (index, number) in numbers.into_iter().enumerate() {
                expected.remove(&number);
                if index < 2 && round % 4 != 0 && !new.iter().any(|file: &ReadFile| file.name == name(number))
                {
                    new.push(file(number, round));
                    expected.insert(number, file(number, round));
                }
            }
            new.sort_by(|a, b| a.name.cmp(&b.name));
            new.retain(|file| expected.values().any(|e| e == file));
            let names: BTreeSet<_> = numbers.into_iter().map(name).collect();
            let known = of_names(&writer, &path, names.iter()).unwrap().unwrap();
            assert!(known.files.len() <= names.len());
            put_names(&writer, &path, &record(round, new), &names).unwrap();
            if round % 50 == 0 {
                assert_eq!(whole(&writer, &path).unwrap().0, Some(record(round, all(&expected))));
            }
        }
        let (read, rows) = whole(&writer, &path).unwrap();
        assert_eq!(read, Some(record(599, all(&expected))));
        assert!(rows.values().all(|row| row.len() <= 100 + ROW_FILES_MAX * 100));
        writer.save().unwrap();
        assert_eq!(stored(&store, &path).unwrap(), Some(record(599, all(&expected))));
        let writer = store.writer().unwrap();
        let names: BTreeSet<_> = expected.keys().map(|number| name(*number)).collect();
        put_names(&writer, &path, &record(2, Vec::new()), &names).unwrap();
        assert_eq!(whole(&writer, &path).unwrap().1.len(), 1, "rows without files go");
        writer.remove_stat_subtree(path.as_bytes()).unwrap();
        assert_eq!(whole(&writer, &path).unwrap(), (None, Rows::new()));
        let other = TreePath::from_bytes(b"a/bb").unwrap();
        assert!(whole(&writer, &other).unwrap().0.is_some());
    }
}
