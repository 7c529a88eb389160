//! Files and directories of a tree that group or others may write to: nodes get their modes as they are.

use syncd_shared::diff::DirectorySource;
use syncd_shared::text::counted;
use syncd_shared::{GenerationNumber, Kind, RootEntry, TreePath};

/// Mode bits that let others than the owner write.
const WRITABLE: u16 = 0o022;

/// Count and first path, in path order within each directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Writable {
    count: u64,
    first: Option<TreePath>,
}

impl Writable {
    /// Walks a tree. Directories that cannot be read are left out: they are reported as damage.
    pub(super) fn of(source: &impl DirectorySource, root: &RootEntry) -> Self {
        let mut found = Self::default();
        found.note(root.metadata.mode, &TreePath::root());
        let mut waiting = vec![(TreePath::root(), root.object)];
        while let Some((path, object)) = waiting.pop() {
            let Ok(directory) = source.directory(&object) else { continue };
            for entry in directory.entries() {
                let Ok(child) = path.join(&entry.name) else { continue };
                match entry.kind {
                    Kind::Symlink { .. } | Kind::Collected { .. } => continue,
                    Kind::File { .. } => {}
                    Kind::Directory { object, .. } => waiting.push((child.clone(), object)),
                }
                found.note(entry.metadata.mode, &child);
            }
        }
        found
    }

    fn note(&mut self, mode: u16, path: &TreePath) {
        if mode & WRITABLE != 0 {
            self.count += 1;
            self.first.get_or_insert_with(|| path.clone());
        }
    }

    /// One line for a person; `None` if nothing was found.
    pub(super) fn remark(&self, generation: GenerationNumber) -> Option<String> {
        let first = self.first.as_ref()?;
        let first = if first.is_root() { "the tree itself".to_owned() } else { first.to_string() };
        Some(format!(
            "warning: group or others may write to {} of generation {generation} (first {first}), and so on every node: \
             `syncd-agent run --owner` changes owners, not modes (chmod go-w)",
            counted(self.count, "file or directory", "files and directories"),
        ))
    }
}
