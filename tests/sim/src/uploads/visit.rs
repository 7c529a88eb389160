//! Writes of visitors to the files of a node.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use syncd_tests::Seeded;
use walkdir::WalkDir;

const FILES: [&str; 8] = ["a.jpg", "b.jpg", "d/a.jpg", "d/b.jpg", "d/e/a.jpg", "x", "x/a.jpg", "f/a.jpg"];
const DIRECTORIES: [&str; 5] = ["d", "d/e", "x", "f", "g/h"];
const MODES: [u32; 3] = [0o644, 0o600, 0o664];

/// Something that a visitor does.
#[derive(Debug, Clone)]
pub enum Visit {
    Write { path: String, content: u64, in_place: bool },
    Remove { path: String },
    Rename { from: String, to: String },
    Mode { path: String, mode: u32 },
    MakeDirectory { path: String },
    RemoveTree { path: String },
}

/// The outcome of a visit: contents at their paths, which it found and which it left.
#[derive(Debug, Clone, Default)]
pub struct Visited {
    pub removed: Vec<(String, u64)>,
    pub overwritten: Vec<(String, u64)>,
    pub written: Vec<(String, u64)>,
    pub touched: Vec<(String, u64)>,
    /// Names that a watch reports as closed or moved here.
    pub settled: Vec<String>,
    /// Names that a watch reports otherwise.
    pub changed: Vec<String>,
}

/// The bytes of a content. Each has a length of its own, so that no two files look alike.
pub fn bytes_of(content: u64) -> Vec<u8> {
    let mut bytes = format!("content {content} ").into_bytes();
    bytes.resize(40 + content as usize, b'.');
    bytes
}

/// The content of a file; `None`: there is no such file.
pub fn content_at(path: &Path) -> Option<u64> {
    if !path.symlink_metadata().ok()?.is_file() {
        return None;
    }
    String::from_utf8(fs::read(path).ok()?).ok()?.split(' ').nth(1)?.parse().ok()
}

/// All contents below a path, by their paths in `top`.
pub fn contents_below(top: &Path, path: &str) -> Vec<(String, u64)> {
    let files = WalkDir::new(top.join(path)).sort_by_file_name().into_iter().filter_map(Result::ok);
    let named = files.filter_map(|file| {
        let name = file.path().strip_prefix(top).ok()?.to_str()?.to_owned();
        Some((name, content_at(file.path())?))
    });
    named.collect()
}

impl Visit {
    /// A random one. `next_content` is the newest content so far.
    pub fn random(random: &mut Seeded, next_content: &mut u64) -> Self {
        let file = |random: &mut Seeded| (*random.pick(&FILES).unwrap_or(&"a.jpg")).to_owned();
        let directory = |random: &mut Seeded| (*random.pick(&DIRECTORIES).unwrap_or(&"d")).to_owned();
        match random.below(20) {
            0..=9 => {
                let again = *next_content > 3 && random.one_in(12);
                let content = if again { 1 + random.below(*next_content) } else { *next_content + 1 };
                *next_content = content.max(*next_content);
                Self::Write { path: file(random), content, in_place: random.one_in(2) }
            }
            10..=13 => Self::Remove { path: file(random) },
            14 => Self::Rename { from: file(random), to: file(random) },
            15 => Self::Rename { from: directory(random), to: directory(random) },
            16 => Self::Mode { path: file(random), mode: *random.pick(&MODES).unwrap_or(&0o644) },
            17..=18 => Self::MakeDirectory { path: directory(random) },
            _ => Self::RemoveTree { path: directory(random) },
        }
    }

    /// Does it in a directory. `None`: nothing was there to do it with.
    pub fn perform(&self, top: &Path) -> Option<Visited> {
        let mut done = Visited::default();
        match self {
            Self::Write { path, content, in_place } => {
                let at = top.join(path);
                fs::create_dir_all(at.parent()?).ok()?;
                let before = content_at(&at);
                if at.is_dir() {
                    return None;
                }
                write(&at, *content, *in_place).ok()?;
                done.overwritten.extend(before.map(|before| (path.clone(), before)));
                done.written.push((path.clone(), *content));
                done.settled.push(path.clone());
            }
            Self::Remove { path } => {
                let before = content_at(&top.join(path))?;
                fs::remove_file(top.join(path)).ok()?;
                done.removed.push((path.clone(), before));
                done.changed.push(path.clone());
            }
            Self::Rename { from, to } => return rename(top, from, to),
            Self::Mode { path, mode } => {
                let before = content_at(&top.join(path))?;
                fs::set_permissions(top.join(path), fs::Permissions::from_mode(*mode)).ok()?;
                done.touched.push((path.clone(), before));
                done.changed.push(path.clone());
            }
            Self::MakeDirectory { path } => fs::create_dir_all(top.join(path)).ok()?,
            Self::RemoveTree { path } => {
                if !top.join(path).is_dir() {
                    return None;
                }
                done.removed = contents_below(top, path);
                fs::remove_dir_all(top.join(path)).ok()?;
                done.changed = done.removed.iter().map(|(path, _)| path.clone()).collect();
                done.changed.push(path.clone());
            }
        }
        Some(done)
    }
}

fn write(at: &Path, content: u64, in_place: bool) -> std::io::Result<()> {
    if in_place {
        return fs::write(at, bytes_of(content));
    }
    // The rules ignore the name.
    let temporary = at.with_extension("part");
    fs::write(&temporary, bytes_of(content))?;
    fs::rename(&temporary, at)
}

fn rename(top: &Path, from: &str, to: &str) -> Option<Visited> {
    let (source, target) = (top.join(from), top.join(to));
    let is_directory = source.is_dir();
    if target.starts_with(&source) || (is_directory && target.exists()) || target.is_dir() {
        return None;
    }
    let moved = contents_below(top, from);
    source.symlink_metadata().ok()?;
    fs::create_dir_all(target.parent()?).ok()?;
    let before = content_at(&target);
    fs::rename(&source, &target).ok()?;
    let there = |path: &str| format!("{to}{}", path.strip_prefix(from).unwrap_or_default());
    let mut done = Visited {
        overwritten: before.map(|before| (to.to_owned(), before)).into_iter().collect(),
        written: moved.iter().map(|(path, content)| (there(path), *content)).collect(),
        changed: vec![from.to_owned()],
        removed: moved,
        ..Visited::default()
    };
    // The files in a moved directory are found with it.
    if !is_directory {
        done.settled.push(to.to_owned());
    }
    Some(done)
}
