//! Lexical resolution of symlinks.

use syncd_shared::TreePath;

/// Whether a symlink at `path` is absolute or rises above the tree's root, judged by its text.
pub(crate) fn leaves_tree(path: &TreePath, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    let mut depth = path.depth().saturating_sub(1);
    for name in target.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_that_climb_out_leave_the_tree() {
        let leaves = |path: &str, target: &str| {
            leaves_tree(&TreePath::from_bytes(path.as_bytes()).unwrap(), target.as_bytes())
        };
        assert!(
            leaves("a", "/srv")
                && leaves("a", "../x")
                && leaves("a/b", "../../x")
                && leaves("a/b", "c/../../../x")
        );
        assert!(
            !leaves("a", "b")
                && !leaves("a/b", "../x")
                && !leaves("a/b", ".././c/../x")
                && !leaves("a", "..x")
        );
    }
}
