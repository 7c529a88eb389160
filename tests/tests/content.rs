//! Real content and every kind of change, replicated to two agents and compared by tools that share no code
//! with syncd.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use syncd_tests::corpora::{self, Corpus};
use syncd_tests::edits::{remove, set_time, small_site, write};
use syncd_tests::oracle::{assert_same, facts};
use syncd_tests::replica::assert_no_litter;
use syncd_tests::{Agent, Origin, Scene, Seeded, is_root, wait};

/// An origin on `tree`, and two agents that have its first generation live. The second agent has no
/// privileges.
struct Fleet {
    origin: Origin,
    agents: Vec<Agent>,
    tree: PathBuf,
    // Last, so that the processes end before their directory is removed.
    _scene: Scene,
}

impl Fleet {
    fn of(name: &str, fill: impl FnOnce(&Path)) -> Self {
        let scene = Scene::new(name);
        let tree = scene.path("tree");
        fill(&tree);
        let origin = Origin::started(&scene, &tree);
        let mut agents = vec![Agent::new(&scene, "web1"), Agent::new(&scene, "web2").unprivileged(&scene)];
        for agent in &mut agents {
            agent.join(origin.address(), &origin.token()).expect_success();
            agent.start();
        }
        origin.wait_connected(&["web1", "web2"]);
        let fleet = Self { origin, agents, tree, _scene: scene };
        fleet.publish_and_compare("the first generation");
        fleet
    }

    fn small(name: &str) -> Self {
        Self::of(name, |tree| small_site(tree, 80))
    }

    fn publish_and_compare(&self, what: &str) -> u64 {
        println!("publishing: {what}");
        let number = self.origin.commit_live();
        for agent in &self.agents {
            assert_eq!(agent.live_generation(), Some(number), "{what}: live on {}", agent.name);
            agent.assert_live_is(&self.tree);
        }
        number
    }

    /// Publishes `edit`, and asserts that nothing is left over.
    fn edit(&self, what: &str, edit: impl FnOnce(&Path)) {
        edit(&self.tree);
        self.publish_and_compare(what);
    }

    fn finish(self) {
        for agent in &self.agents {
            assert_no_litter(agent);
        }
    }
}

#[test]
fn a_cms_and_its_next_release_arrive_whole() {
    let corpus = corpora::wordpress();
    println!("{}", corpus.versions());
    let fleet = Fleet::of("wordpress", |tree| Corpus::copy(&corpus.a(), tree));
    fleet.edit("the next release", |tree| Corpus::deploy(&corpus.b(), tree));
    fleet.edit("a plugin is installed", |tree| {
        Corpus::copy(&corpus.b().join("wp-includes/js"), &tree.join("wp-content/plugins/new-plugin"));
    });
    fleet.edit("uploads of editors", |tree| {
        let mut random = Seeded::new(1);
        for number in 0..20 {
            write(tree, &format!("wp-content/uploads/2026/11/image-{number}.jpg"), random.bytes(200_000));
        }
    });
    fleet.edit("the release is taken back", |tree| Corpus::deploy(&corpus.a(), tree));
    fleet.finish();
}

#[test]
fn a_large_documentation_tree_and_its_next_version_arrive_whole() {
    let corpus = corpora::docs_small();
    println!("{}", corpus.versions());
    let fleet = Fleet::of("docs", |tree| Corpus::copy(&corpus.a(), tree));
    fleet.edit("the next version", |tree| Corpus::deploy(&corpus.b(), tree));
    fleet.edit("a top directory is renamed", |tree| {
        fs::rename(tree.join("usr/share/doc"), tree.join("usr/share/documentation")).expect("rename");
    });
    fleet.edit("half of it is deleted", |tree| {
        let doc = tree.join("usr/share/documentation");
        for item in fs::read_dir(doc).expect("list").filter_map(Result::ok) {
            if item.file_name().to_string_lossy().starts_with("python") {
                remove(&item.path());
            }
        }
    });
    fleet.finish();
}

#[test]
fn edits_of_content_arrive() {
    let fleet = Fleet::small("edits");
    let mut random = Seeded::new(2);
    fleet.edit("a file is rewritten in place", |tree| write(tree, "index.html", "<h1>new</h1>"));
    fleet.edit("a file is replaced by rename", |tree| {
        write(tree, ".new", "replaced");
        fs::rename(tree.join(".new"), tree.join("index.html")).expect("rename");
    });
    fleet.edit("a file becomes empty", |tree| write(tree, "section-1/page-1.html", ""));
    fleet.edit("an empty file gets content", |tree| write(tree, "empty", "no longer"));
    fleet.edit("a large file appears", |tree| write(tree, "video.bin", random.bytes(9_000_000)));
    fleet.edit("a few bytes are inserted in the large file", |tree| {
        let mut content = fs::read(tree.join("video.bin")).expect("read");
        content.splice(1000..1000, *b"inserted");
        write(tree, "video.bin", content);
    });
    fleet.edit("a file keeps size and time and gets other content", |tree| {
        let time = fs::metadata(tree.join("empty")).and_then(|m| m.modified()).expect("a time");
        write(tree, "empty", "NO LONGER");
        fs::File::options()
            .write(true)
            .open(tree.join("empty"))
            .and_then(|f| f.set_modified(time))
            .expect("set the time");
    });
    fleet.edit("the same content under many names", |tree| {
        for number in 0..30 {
            write(tree, &format!("copies/{number}.txt"), "one content");
        }
    });
    fleet.edit("hard links at the origin are files of their own on the nodes", |tree| {
        fs::hard_link(tree.join("index.html"), tree.join("index-link.html")).expect("link");
    });
    fleet.finish();
}

#[test]
fn large_files_arrive_as_what_changed_in_them() {
    const MIB: usize = 1 << 20;
    let mut random = Seeded::new(3);
    let (image, archive) = (random.bytes(24 * MIB), random.bytes(8 * MIB));
    let fleet = Fleet::of("large", |tree| {
        small_site(tree, 10);
        write(tree, "image.bin", &image);
        write(tree, "archive.tar", &archive);
    });
    fleet.edit("scattered writes of 4 KiB", |tree| {
        let mut image = image.clone();
        for _ in 0..60 {
            let at = random.below(image.len() as u64 - 4096) as usize;
            image[at..at + 4096].copy_from_slice(&random.bytes(4096));
        }
        write(tree, "image.bin", image);
    });
    fleet.edit("an insertion near the front", |tree| {
        let mut archive = archive.clone();
        archive.splice(10_000..10_000, random.bytes(1_000));
        write(tree, "archive.tar", archive);
    });
    fleet.edit("two halves change places", |tree| {
        write(tree, "archive.tar", [&archive[4 * MIB..], &archive[..4 * MIB]].concat());
    });
    fleet.edit("much is cut off", |tree| write(tree, "archive.tar", &archive[..3 * MIB]));
    fleet.edit("a file shrinks below a megabyte", |tree| write(tree, "archive.tar", &archive[1000..100_000]));
    fleet.edit("it grows beyond what it was", |tree| {
        write(tree, "archive.tar", [&archive[..], &archive[..]].concat())
    });
    fleet.edit("nothing of it is left", |tree| write(tree, "archive.tar", random.bytes(5 * MIB)));
    fleet.finish();
}

#[test]
fn a_basis_that_was_changed_on_a_node_never_reaches_the_next_generation() {
    let mut random = Seeded::new(4);
    let (large, small) = (random.bytes(3 << 20), random.bytes(30_000));
    let fleet = Fleet::of("damaged-basis", |tree| {
        small_site(tree, 40);
        write(tree, "large.bin", &large);
        write(tree, "small.bin", &small);
    });
    // Content changes, but size and time do not: only a hash shows the difference.
    for name in ["large.bin", "small.bin", "section-1/page-1.html"] {
        let path = fleet.agents[0].live().join(name);
        let time = fs::metadata(&path).and_then(|m| m.modified()).expect("a time");
        let mut bytes = fs::read(&path).expect("read");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        let file = fs::File::options().write(true).open(&path).expect("open");
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("write");
        file.set_modified(time).expect("set the time");
    }
    fleet.edit("all that were damaged on a node are edited", |tree| {
        write(tree, "large.bin", [&large[..1_000_000], b"edited", &large[1_000_000..]].concat());
        write(tree, "small.bin", [&small[..10_000], b"edited", &small[10_000..]].concat());
        let page = fs::read(tree.join("section-1/page-1.html")).expect("read");
        write(tree, "section-1/page-1.html", [&page[..], b"edited"].concat());
        write(tree, "section-2/page-2.html", "edited beside them");
    });
    fleet.finish();
}

#[test]
fn deletions_and_renames_arrive() {
    let fleet = Fleet::small("renames");
    fleet.edit("a file is deleted", |tree| remove(&tree.join("section-2/page-2.html")));
    fleet.edit("a directory is deleted", |tree| remove(&tree.join("section-3")));
    fleet.edit("a file is renamed", |tree| {
        fs::rename(tree.join("index.html"), tree.join("home.html")).expect("rename");
    });
    fleet.edit("a directory is renamed", |tree| {
        fs::rename(tree.join("section-4"), tree.join("chapter-4")).expect("rename");
    });
    fleet.edit("a directory moves into another", |tree| {
        fs::rename(tree.join("chapter-4"), tree.join("section-5/chapter-4")).expect("rename");
    });
    fleet.edit("two files swap their names", |tree| {
        let (a, b, c) =
            (tree.join("section-6/page-6.html"), tree.join("section-7/page-7.html"), tree.join("c"));
        for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
            fs::rename(from, to).expect("rename");
        }
    });
    fleet.edit("two directories swap their names", |tree| {
        let (a, b, c) = (tree.join("section-6"), tree.join("section-7"), tree.join("c"));
        for (from, to) in [(&a, &c), (&b, &a), (&c, &b)] {
            fs::rename(from, to).expect("rename");
        }
    });
    fleet.edit("a name changes its case", |tree| {
        fs::rename(tree.join("home.html"), tree.join("Home.html")).expect("rename");
    });
    fleet.finish();
}

#[test]
fn type_changes_arrive() {
    let fleet = Fleet::small("types");
    let file = "section-1/page-1.html";
    fleet.edit("file to directory", |tree| {
        remove(&tree.join(file));
        write(tree, &format!("{file}/inside.html"), "inside");
    });
    fleet.edit("directory to symlink", |tree| {
        remove(&tree.join(file));
        symlink("page-13.html", tree.join(file)).expect("symlink");
    });
    fleet.edit("symlink to file", |tree| {
        remove(&tree.join(file));
        write(tree, file, "a file again");
    });
    fleet.edit("file to symlink", |tree| {
        remove(&tree.join(file));
        symlink("/absolute/target", tree.join(file)).expect("symlink");
    });
    fleet.edit("symlink to directory", |tree| {
        remove(&tree.join(file));
        write(tree, &format!("{file}/deep/er/file"), "deep");
    });
    fleet.edit("full directory to file", |tree| {
        remove(&tree.join("section-2"));
        write(tree, "section-2", "no directory");
    });
    fleet.edit("directory to symlink to its moved self", |tree| {
        fs::rename(tree.join("section-3"), tree.join("moved")).expect("rename");
        symlink("moved", tree.join("section-3")).expect("symlink");
    });
    fleet.edit("symlinks lead in a circle, and to what they are in", |tree| {
        symlink("circle-b", tree.join("circle-a")).expect("symlink");
        symlink("circle-a", tree.join("circle-b")).expect("symlink");
        symlink(".", tree.join("itself")).expect("symlink");
        symlink("../../..", tree.join("section-4/out")).expect("symlink");
    });
    fleet.edit("a symlink gets another target", |tree| {
        remove(&tree.join("link"));
        symlink("section-4", tree.join("link")).expect("symlink");
    });
    fleet.finish();
}

#[test]
fn changes_of_metadata_alone_arrive() {
    let fleet = Fleet::small("metadata");
    let mode = |path: PathBuf, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    };
    let inode = |agent: &Agent, path: &str| fs::metadata(agent.live().join(path)).expect("stat").ino();
    let before: Vec<u64> = fleet.agents.iter().map(|a| inode(a, "section-1/page-1.html")).collect();
    fleet.edit("mode of a file", |tree| mode(tree.join("section-1/page-1.html"), 0o604));
    for (agent, old) in fleet.agents.iter().zip(before) {
        assert_ne!(
            inode(agent, "section-1/page-1.html"),
            old,
            "a file that was live is never chmod-ed in place"
        );
    }
    fleet.edit("mode of a directory", |tree| mode(tree.join("section-1"), 0o750));
    fleet.edit("mode of the tree itself", |tree| mode(tree.to_path_buf(), 0o751));
    fleet.edit("time of a file", |tree| set_time(&tree.join("section-1/page-1.html"), 1_500_000_000, 1));
    fleet.edit("time of a file by one nanosecond", |tree| {
        set_time(&tree.join("section-1/page-1.html"), 1_500_000_000, 2);
    });
    fleet.edit("a time before 1970 and one after 2038", |tree| {
        let old = fs::File::open(tree.join("section-1/page-13.html")).expect("open");
        old.set_modified(std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500)).expect("set a time");
        set_time(&tree.join("section-2/page-2.html"), 5_000_000_000, 999_999_999);
    });
    if is_root() {
        // Root can read them at the origin. Modes that deny an owning agent access must not stop any update.
        for closed in [0o000, 0o111, 0o311, 0o444, 0o644] {
            fleet.edit(&format!("mode {closed:04o} of directories and a file"), |tree| {
                write(tree, "closed/inner/page.html", format!("{closed:o}"));
                mode(tree.join("closed/inner/page.html"), closed);
                mode(tree.join("closed/inner"), closed);
                mode(tree.join("closed"), closed);
            });
            fleet.edit("something else", |tree| write(tree, "index.html", format!("beside {closed:o}")));
        }
        fleet.edit("they are open again", |tree| {
            mode(tree.join("closed/inner"), 0o755);
            mode(tree.join("closed"), 0o755);
        });
    }
    fleet.edit("an executable", |tree| mode(tree.join("section-1/page-1.html"), 0o755));
    if is_root() {
        fleet.edit("owners", |tree| {
            lchown(tree.join("section-1/page-1.html"), Some(1234), Some(4321)).expect("chown");
            lchown(tree.join("section-2"), Some(33), Some(33)).expect("chown");
            lchown(tree.join("link"), Some(33), Some(33)).expect("chown");
        });
    }
    fleet.edit("directory times go along with a change", |tree| {
        write(tree, "section-5/new.html", "new");
        set_time(&tree.join("section-5"), 1_400_000_000, 123_456_789);
        set_time(&tree.join("section-6"), 1_400_000_001, 987_654_321);
    });
    fleet.finish();
}

#[test]
fn directory_times_alone_make_no_generation() {
    let fleet = Fleet::small("directory-times");
    let before = fleet.origin.status().generation;
    set_time(&fleet.tree.join("section-1"), 1_300_000_000, 5);
    let outcome = fleet.origin.cli("commit", &["--wait"]).expect_success();
    assert_eq!(outcome.only_line().parse().ok(), before, "{outcome:?}");
    fleet.finish();
}

#[test]
fn odd_names_and_empty_directories_arrive() {
    let fleet = Fleet::small("names");
    let name = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    fleet.edit("names that are not UTF-8, with newlines, quotes, escapes", |tree| {
        for bytes in [
            &b"\xff\xfe"[..],
            b"new\nline",
            b"quote'\"",
            b"\x1b[31mred",
            b"-rf",
            b" ",
            b"a\\b",
            b"*?",
            b"~",
            b"%00",
            b"...",
            b".hidden",
        ] {
            fs::write(tree.join(name(bytes)), bytes).expect("write");
            let directory = tree.join(name(&[b"dir-", bytes].concat()));
            fs::create_dir(&directory).expect("mkdir");
            fs::write(directory.join(name(bytes)), bytes).expect("write");
        }
        fs::write(tree.join(name(&[b'n'; 255])), "a name of 255 bytes").expect("write");
    });
    fleet.edit("empty directories, and one that becomes empty", |tree| {
        fs::create_dir_all(tree.join("hollow/hollow/hollow")).expect("mkdir");
        remove(&tree.join("section-1"));
        fs::create_dir(tree.join("section-1")).expect("mkdir");
    });
    fleet.edit("a path of 40 directories", |tree| {
        write(tree, &format!("{}/leaf", vec!["deep"; 40].join("/")), "leaf");
    });
    fleet.edit("a directory of 3,000 names", |tree| {
        for number in 0..3000 {
            write(tree, &format!("wide/{number:05}"), format!("{number}"));
        }
    });
    fleet.finish();
}

#[test]
fn what_is_never_replicated_is_warned_about_and_left_out() {
    let fleet = Fleet::small("skipped");
    let fifo = fleet.tree.join("fifo");
    syncd_tests::process::tool("mkfifo", [fifo.as_os_str()]);
    fs::set_permissions(fleet.tree.join("index.html"), fs::Permissions::from_mode(0o4755)).expect("chmod");
    write(&fleet.tree, ".git/config", "[core]\n");
    let number = fleet.origin.commit_live();
    for agent in &fleet.agents {
        assert_eq!(agent.live_generation(), Some(number));
        assert!(fs::symlink_metadata(agent.live().join("fifo")).is_err(), "fifos are skipped");
        assert!(fs::symlink_metadata(agent.live().join(".git")).is_err(), ".git is always out");
        let mode = fs::metadata(agent.live().join("index.html")).expect("stat").mode();
        assert_eq!(mode & 0o7777, 0o755, "setuid is dropped");
    }
    fleet.finish();
}

#[test]
fn syncdignore_keeps_names_out_and_hidden_files_in() {
    let fleet = Fleet::small("ignore");
    let published = |fleet: &Fleet| {
        fleet.origin.commit_live();
        let mut listed: Vec<Vec<PathBuf>> = Vec::new();
        for agent in &fleet.agents {
            let all = facts(&agent.live());
            listed.push(all.into_keys().filter(|p| !p.ends_with(".syncdignore")).collect());
        }
        assert_eq!(listed[0], listed[1]);
        listed.remove(0)
    };
    let has = |list: &[PathBuf], path: &str| list.iter().any(|p| p == Path::new(path));
    write(&fleet.tree, "cache/a.tmp", "cache");
    write(&fleet.tree, "section-1/b.tmp", "temporary");
    write(&fleet.tree, "section-1/keep.tmp", "kept");
    write(&fleet.tree, ".htaccess", "Options -Indexes\n");
    write(&fleet.tree, ".gitignore", "index.html\n");
    let all = published(&fleet);
    assert!(
        ["cache/a.tmp", "section-1/b.tmp", ".htaccess", ".gitignore", "index.html"]
            .iter()
            .all(|p| has(&all, p))
    );

    write(&fleet.tree, ".syncdignore", "/cache/\n*.tmp\n");
    write(&fleet.tree, "section-1/.syncdignore", "!keep.tmp\n/page-1.html\n");
    let some = published(&fleet);
    for gone in ["cache", "cache/a.tmp", "section-1/b.tmp", "section-1/page-1.html"] {
        assert!(!has(&some, gone), "{gone} became ignored, which is a deletion");
    }
    for kept in ["section-1/keep.tmp", ".htaccess", ".gitignore", "index.html", "section-1/page-13.html"] {
        assert!(has(&some, kept), "{kept} is published");
    }

    remove(&fleet.tree.join(".syncdignore"));
    remove(&fleet.tree.join("section-1/.syncdignore"));
    fleet.publish_and_compare("everything again");
    fleet.finish();
}

#[test]
fn the_settle_trigger_publishes_when_writers_rest() {
    let scene = Scene::new("settle");
    let tree = scene.path("tree");
    small_site(&tree, 40);
    let mut origin = Origin::create(&scene, &tree).with_options(&["--settle", "200ms"]);
    origin.start();
    let first = origin.wait_generation(1);
    let agent = Agent::started(&scene, &origin, "web1");
    agent.wait_live(first);
    assert_same(&tree, &agent.live());
    // New directories are filled immediately: files written before the watches exist must not be missed.
    for round in 0..10 {
        let before = origin.status().generation.unwrap_or(0);
        for number in 0..40 {
            write(&tree, &format!("round-{round}/a{number}/b/c/file"), format!("{round} {number}"));
        }
        write(&tree, "index.html", format!("round {round}"));
        origin.wait_generation(before + 1);
        syncd_tests::wait::until_ok("the replica to be what the tree is", || {
            let differences = syncd_tests::oracle::differences(&facts(&tree), &facts(&agent.live()));
            if differences.is_empty() { Ok(()) } else { Err(differences.join("\n")) }
        });
    }
    assert_same(&tree, &agent.live());
    assert_no_litter(&agent);
}

#[test]
fn the_settle_trigger_waits_for_open_files_in_new_and_renamed_directories() {
    let scene = Scene::new("settle-new");
    let tree = scene.path("tree");
    small_site(&tree, 10);
    let options = ["--settle", "5s", "--settle-max", "10m"];
    let mut origin = Origin::create(&scene, &tree).with_options(&options);
    origin.start();
    let first = origin.wait_generation(1);
    let waits_for = |name: &str| {
        syncd_tests::wait::until("the open file to be named", || {
            origin.status().reason.filter(|reason| reason.contains(name))
        })
    };
    fs::create_dir_all(tree.join("new/deep")).expect("make directories");
    let mut photo = fs::File::create(tree.join("new/deep/photo")).expect("make a file");
    photo.write_all(b"half").expect("write");
    waits_for("new/deep/photo");
    fs::rename(tree.join("new"), tree.join("renamed")).expect("rename a directory");
    waits_for("renamed/deep/photo");
    assert_eq!(origin.status().generation, Some(first));
    photo.write_all(b" and half").expect("write");
    drop(photo);
    let second = origin.wait_generation(first + 1);
    let agent = Agent::started(&scene, &origin, "web1");
    agent.wait_live(second);
    let live = fs::read(agent.live().join("renamed/deep/photo")).expect("read the replica");
    assert_eq!(live, b"half and half");
}

#[test]
fn a_rollback_brings_an_old_root_back_under_a_new_number() {
    let fleet = Fleet::small("rollback");
    let first = fleet.origin.status();
    let before: Vec<_> = fleet.agents.iter().map(|agent| agent.expects(&fleet.tree)).collect();
    fleet.edit("an edit to regret", |tree| write(tree, "index.html", "regret"));
    let second = fleet.origin.status().generation.expect("a generation");
    let number = first.generation.expect("a generation").to_string();
    fleet.origin.cli("rollback", &[&number, "--wait"]).expect_success();
    let rolled = fleet.origin.status();
    assert_eq!(rolled.root, first.root);
    assert!(rolled.generation > Some(second));
    for (agent, before) in fleet.agents.iter().zip(before) {
        assert_eq!(agent.live_generation(), rolled.generation);
        assert_eq!(facts(&agent.live()), before);
    }
    fleet.publish_and_compare("the tree as it is again");
    fleet.finish();
}

#[test]
fn an_upgrade_of_wordpress_is_published_whole() {
    let scene = Scene::new("upgrade");
    let tree = scene.path("tree");
    write(&tree, "wp-includes/version.php", "6.4");
    write(&tree, "index.php", "6.4");
    let mut origin = Origin::create(&scene, &tree).with_options(&["--trigger", "settle", "--settle", "50ms"]);
    origin.start();
    origin.wait_generation(1);

    write(&tree, ".maintenance", "<?php $upgrading = 1;");
    write(&tree, "wp-includes/version.php", "6.5");
    wait::until_ok("the origin to wait", || {
        let status = origin.status();
        match (status.state.as_str(), &status.reason) {
            ("waiting", Some(reason)) if reason.contains(".maintenance exists") => Ok(()),
            _ => Err(format!("{status:?}")),
        }
    });
    write(&tree, "index.php", "6.5");
    assert_eq!(origin.status().generation, Some(1));
    std::fs::remove_file(tree.join(".maintenance")).expect("end the upgrade");
    assert_eq!(origin.wait_generation(2), 2);
    let changes = origin.cli("diff", &["1", "2"]).expect_success().stdout;
    assert!(changes.contains("wp-includes/version.php") && changes.contains("index.php"), "{changes}");
    assert!(!changes.contains(".maintenance"), "{changes}");

    // A leftover of an upgrade that died holds nothing back, and neither does one hold back an operator.
    write(&tree, ".maintenance", "<?php $upgrading = 1;");
    let number = origin.commit();
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(660);
    let file = std::fs::File::options().write(true).open(tree.join(".maintenance")).expect("open");
    file.set_modified(old).expect("make the file old");
    drop(file);
    write(&tree, "index.php", "6.5.1");
    origin.wait_generation(number + 1);
}
