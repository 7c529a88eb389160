use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;
use crate::fixture::{
    alone_with_few_descriptors, as_somebody, deepen, give, open_descriptors, peak_memory_kib,
};

fn trash(root: &Path) -> Trash {
    let path = root.join("trash");
    std::fs::create_dir_all(&path).unwrap();
    Trash::open(Dir::open_path(&path).unwrap()).unwrap()
}

fn names(root: &Path) -> Vec<String> {
    let listed = std::fs::read_dir(root.join("trash")).unwrap();
    let mut names: Vec<_> = listed.map(|item| item.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn emptied(trash: &Trash) -> usize {
    trash.empty(usize::MAX, &AtomicBool::new(false)).unwrap()
}

fn take(trash: &Trash, root: &Path, name: &str) {
    trash.take(&Dir::open_path(root).unwrap(), name.as_bytes()).unwrap();
}

#[test]
fn any_depth_is_removed_with_few_descriptors_and_little_memory() {
    alone_with_few_descriptors("state::trash::tests::deep_trees_alone");
}

#[test]
#[ignore = "run by the test above in a process of its own"]
fn deep_trees_alone() {
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let trash = trash(temp.path());
    let before = (open_descriptors(), peak_memory_kib());
    for (levels, name) in [(6_000, "n".repeat(255)), (20_000, "x".repeat(200))] {
        std::fs::create_dir(temp.path().join("tree")).unwrap();
        deepen(&temp.path().join("tree"), levels, name.as_bytes());
        take(&trash, temp.path(), "tree");
        let removed = emptied(&trash);
        // Some directories are renamed on the way, and count twice.
        assert!((levels..levels * 5 / 4).contains(&removed), "{removed} of {levels}");
        assert_eq!(names(temp.path()), [""; 0]);
    }
    assert!(trash.is_empty() && !trash.is_stuck());
    assert_eq!(open_descriptors(), before.0);
    let grown = peak_memory_kib() - before.1;
    assert!(grown < 8 * 1024, "{grown} KiB");
}

#[test]
fn a_limit_is_kept_and_the_next_call_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let trash = trash(temp.path());
    for tree in ["a", "b"] {
        for index in 0..25 {
            let directory = temp.path().join(tree).join(format!("d{}", index % 5));
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(index.to_string()), "x").unwrap();
        }
        take(&trash, temp.path(), tree);
    }
    let mut calls = Vec::new();
    while !trash.is_empty() {
        calls.push(trash.empty(10, &AtomicBool::new(false)).unwrap());
    }
    // Two trees of 25 files in 5 directories.
    assert_eq!(calls.iter().sum::<usize>(), 62);
    assert!(calls.iter().rev().skip(1).all(|removed| *removed == 10), "{calls:?}");
}

#[test]
fn numbers_go_on_after_those_that_an_earlier_process_left() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["trash/7", "trash/stuck/9"] {
        std::fs::create_dir_all(temp.path().join(name)).unwrap();
    }
    let trash = trash(temp.path());
    assert!(!trash.is_empty() && !trash.is_stuck());
    std::fs::write(temp.path().join("new"), "x").unwrap();
    take(&trash, temp.path(), "new");
    take(&trash, temp.path(), "nothing of this name");
    assert_eq!(names(temp.path()), ["10", "11", "7"]);
    assert_eq!(emptied(&trash), 3);
    assert!(trash.is_empty());
}

#[test]
fn modes_that_deny_the_owner_everything_keep_nothing_from_being_removed() {
    as_somebody(|| {
        let temp = tempfile::tempdir().unwrap();
        let trash = trash(temp.path());
        for mode in [0o000, 0o111, 0o311, 0o444, 0o644, 0o555] {
            let outer = temp.path().join("tree").join(format!("{mode:o}"));
            std::fs::create_dir_all(outer.join("inner/deep")).unwrap();
            std::fs::write(outer.join("inner/deep/file"), "x").unwrap();
            for path in [outer.join("inner/deep/file"), outer.join("inner/deep"), outer.join("inner"), outer]
            {
                std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
            }
        }
        std::fs::set_permissions(temp.path().join("tree"), PermissionsExt::from_mode(0o000)).unwrap();
        take(&trash, temp.path(), "tree");
        assert_eq!(emptied(&trash), 6 * 4 + 1);
        assert_eq!(names(temp.path()), [""; 0]);
    });
}

#[test]
fn what_can_not_be_removed_keeps_back_only_its_own_tree() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no directory of another user can be made");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    for tree in ["a", "b", "c"] {
        for name in ["before", "middle", "yonder"] {
            std::fs::create_dir_all(root.join(tree).join(name)).unwrap();
            std::fs::write(root.join(tree).join(name).join("file"), "x").unwrap();
        }
    }
    std::fs::create_dir(root.join("trash")).unwrap();
    let theirs = root.join("b/middle/theirs");
    std::fs::create_dir_all(theirs.join("inside")).unwrap();
    give(root, 65_534);
    give(&theirs, 33);
    std::fs::set_permissions(&theirs, PermissionsExt::from_mode(0o700)).unwrap();
    as_somebody(|| {
        let trash = trash(root);
        for tree in ["a", "b", "c"] {
            take(&trash, root, tree);
        }
        // Three times nine names, without the two that lead to the foreign one: the tree and a directory.
        assert_eq!(emptied(&trash), 3 * 7 - 2);
        assert_eq!(names(root), ["stuck"]);
        assert!(trash.is_empty() && trash.is_stuck());
        // A later name is removed all the same, and the stuck one is not visited.
        std::fs::write(root.join("later"), "x").unwrap();
        take(&trash, root, "later");
        assert_eq!(emptied(&trash), 1);
    });
    give(&root.join("trash/stuck/2"), 65_534);
    as_somebody(|| {
        let trash = trash(root);
        assert!(!trash.is_empty());
        assert_eq!(emptied(&trash), 4);
        assert_eq!(names(root), [""; 0]);
    });
}

#[test]
fn a_mount_in_a_tree_is_not_emptied() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    std::fs::create_dir_all(root.join("tree/mounted")).unwrap();
    std::fs::create_dir_all(root.join("elsewhere/deep")).unwrap();
    std::fs::write(root.join("elsewhere/deep/precious"), "x").unwrap();
    let mounted = std::process::Command::new("mount")
        .arg("--bind")
        .args([root.join("elsewhere"), root.join("tree/mounted")])
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("nothing can be mounted here");
        return;
    }
    let trash = trash(root);
    take(&trash, root, "tree");
    emptied(&trash);
    let there = root.join("elsewhere/deep/precious").exists();
    let left = names(root);
    std::process::Command::new("umount").arg(root.join("trash/stuck/1/mounted")).status().unwrap();
    assert!(there, "the mount was emptied");
    assert_eq!(left, ["stuck"]);
    trash.retry_stuck().unwrap();
    assert_eq!(emptied(&trash), 2);
}

#[test]
fn names_and_work_are_bounded_however_many_trees_can_not_be_removed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: no directory of another user can be made");
        return;
    }
    let temp = tempfile::tempdir_in("/dev/shm").unwrap();
    let root = temp.path();
    std::fs::create_dir(root.join("trash")).unwrap();
    let trees: Vec<String> = (0..RETRIED_MAX + 44).map(|tree| format!("tree-{tree}")).collect();
    for tree in &trees {
        std::fs::create_dir_all(root.join(tree).join("theirs/inside")).unwrap();
    }
    give(root, 65_534);
    for tree in &trees {
        give(&root.join(tree).join("theirs"), 33);
    }
    as_somebody(|| {
        let trash = trash(root);
        trees.iter().for_each(|tree| take(&trash, root, tree));
        emptied(&trash);
        assert_eq!(names(root), ["stuck"]);
        trash.retry_stuck().unwrap();
        assert_eq!(names(root).len(), RETRIED_MAX + 1);
        emptied(&trash);
        assert_eq!(names(root), ["stuck"]);
        assert_eq!(std::fs::read_dir(root.join("trash/stuck")).unwrap().count(), trees.len());
    });
    give(root, 65_534);
    as_somebody(|| {
        let trash = trash(root);
        emptied(&trash);
        trash.retry_stuck().unwrap();
        emptied(&trash);
        assert_eq!(names(root), [""; 0]);
    });
}
