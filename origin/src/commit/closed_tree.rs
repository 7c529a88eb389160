//! Warns about a tree whose own mode keeps out the users of web servers.

use syncd_shared::RootEntry;

/// Mode bits that let everybody read and enter a directory.
const OPEN: u16 = 0o005;

/// A remark about the root of a generation that others may not read or enter, unless the generation before it
/// had the same mode.
pub(super) fn remark(before: Option<&RootEntry>, now: &RootEntry) -> Option<String> {
    let mode = now.metadata.mode;
    let is_news = before.is_none_or(|before| before.metadata.mode != mode);
    (mode & OPEN != OPEN && is_news).then(|| {
        format!(
            "the content tree has mode {mode:04o}, and so have its replicas: a web server that runs as another user and \
             group answers 403 on every node (chmod 755)"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_that_others_may_not_enter_is_told_once_for_each_mode() {
        let root = |mode| {
            let mut root = RootEntry::empty();
            root.metadata.mode = mode;
            root
        };
        for closed in [0o700, 0o750, 0o751, 0o754] {
            let told = remark(None, &root(closed)).unwrap();
            assert!(told.contains(&format!("mode {closed:04o}")), "{told}");
            assert!(remark(Some(&root(0o755)), &root(closed)).is_some());
            assert!(remark(Some(&root(closed)), &root(closed)).is_none());
        }
        assert!(remark(Some(&root(0o700)), &root(0o750)).is_some(), "mended, and not well");
        for open in [0o755, 0o775, 0o705] {
            assert!(remark(None, &root(open)).is_none());
        }
    }
}
