use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

fn path(bytes: &[u8]) -> TreePath {
    TreePath::from_bytes(bytes).unwrap()
}

fn root_rules(text: &[u8]) -> IgnoreRules {
    IgnoreRules::default().with_file(&TreePath::root(), text).unwrap()
}

#[test]
fn without_rules_only_own_files_are_out() {
    let rules = IgnoreRules::default();
    for out in [".git", "a/.git", ".syncdignore", "a/b/.syncdignore"] {
        assert!(rules.excludes(&path(out.as_bytes()), false), "{out}");
    }
    for published in [".htaccess", ".gitignore", ".github", "a/.well-known", "x.git"] {
        assert!(!rules.excludes(&path(published.as_bytes()), false), "{published}");
    }
    assert!(!rules.excludes(&TreePath::root(), true));
}

#[test]
fn patterns_are_relative_to_their_file_and_hold_below() {
    let rules = root_rules(b"# comment\n*.tmp\n/build\ncache/\nlogs/*.log\r\n");
    let is = |p: &str, dir| rules.excludes(&path(p.as_bytes()), dir);
    assert!(is("x.tmp", false) && is("a/b/x.tmp", false));
    assert!(is("build", true) && !is("a/build", true));
    assert!(is("a/cache", true) && !is("a/cache", false));
    assert!(is("logs/x.log", false) && !is("a/logs/x.log", false));
    let below = IgnoreRules::default().with_file(&path(b"a"), b"/build\nx/y\n").unwrap();
    assert!(below.excludes(&path(b"a/build"), true) && !below.excludes(&path(b"a/b/build"), true));
    assert!(below.excludes(&path(b"a/x/y"), false) && !below.excludes(&path(b"a/b/x/y"), false));
}

#[test]
fn the_deepest_file_decides_and_in_it_the_last_line() {
    let rules = root_rules(b"*.bak\n!keep.bak\n");
    assert!(rules.excludes(&path(b"b.bak"), false) && !rules.excludes(&path(b"keep.bak"), false));
    let below = rules.with_file(&path(b"a"), b"!*.bak\nworst.bak\n").unwrap();
    assert!(!below.excludes(&path(b"a/b.bak"), false));
    assert!(below.excludes(&path(b"a/worst.bak"), false));
    assert!(below.excludes(&path(b"a/keep.bak"), false) == rules.excludes(&path(b"a/keep.bak"), false));
}

#[test]
fn what_others_take_for_syntax_is_read_as_git_reads_it() {
    let rules = root_rules(b"[[:alpha:]]*.key\n{a,b}.html\nodd?\n");
    let is = |p: &[u8]| rules.excludes(&path(p), false);
    assert!(is(b"tls.key") && !is(b"1.key"));
    assert!(is(b"{a,b}.html") && !is(b"a.html"), "braces stand for themselves");
    assert!(is(b"odd\xff") && !is("odd\u{e9}".as_bytes()), "a question mark is one byte");
}

#[test]
fn a_pattern_that_can_never_match_is_named_not_ignored() {
    let refused = |text: &[u8]| match IgnoreRules::default().with_file(&path(b"a"), text).unwrap_err() {
        IgnoreError::Pattern { line: 2, path, source } if path.to_string() == "a/.syncdignore" => source,
        other => panic!("{other}"),
    };
    assert_eq!(refused(b"ok\n[z-a]\n"), PatternError::Range);
    assert_eq!(refused(b"ok\nx[a-\n"), PatternError::OpenSet);
    assert_eq!(refused(b"ok\nx[]\n"), PatternError::OpenSet);
    assert_eq!(refused(b"ok\n[[:secret:]]\n"), PatternError::Class);
    assert_eq!(refused(b"ok\nx\\\n"), PatternError::Backslash);
    assert_eq!(refused(b"ok\nx\\/\n"), PatternError::Backslash);
    assert_eq!(refused(b"ok\n!\n"), PatternError::Nothing);
    assert_eq!(refused(b"ok\na//b\n"), PatternError::Component);
    assert_eq!(refused(b"ok\nx\0y\n"), PatternError::Nul);
    assert_eq!(refused(&[b"ok\n", &[b'x'; 4_096][..]].concat()), PatternError::Length { actual: 4_096 });
}

#[test]
fn a_pattern_of_many_stars_takes_no_time() {
    let rules = root_rules(&[b"**/*a".repeat(600), b"\n".to_vec()].concat());
    let long = [b"a/".repeat(1_000), b"b".to_vec()].concat();
    assert!(!rules.0.as_ref().unwrap().patterns[0].matches(&long, false));
}

/// A repository whose tree has names that patterns may trip over, some levels deep.
struct Repository(tempfile::TempDir);

const DIRECTORIES: [&[u8]; 8] = [b"", b"a", b"a/b", b"a/b/a", b"b", b"[a]", b"ab", b"ab/ "];
const NAMES: [&[u8]; 24] = [
    b"x",
    b"xa",
    b"ax",
    b"a.b",
    b".a",
    b"[",
    b"]",
    b"!a",
    b"#a",
    b"a x",
    b"x ",
    b"\\",
    b"*",
    b"?",
    b"-",
    b"^",
    b"A",
    b"{a,b}",
    b"\xc3\xa9",
    b"\xff",
    b"\t",
    b"0",
    b"aab",
    b"a\\x",
];

impl Repository {
    fn new() -> Self {
        let repository = Self(tempfile::tempdir().unwrap());
        let made = repository.git(&["init", "-q"]);
        assert!(made.is_empty());
        for directory in DIRECTORIES {
            fs::create_dir_all(repository.at(directory)).unwrap();
            for name in NAMES {
                fs::write(repository.at(directory).join(OsStr::from_bytes(name)), "").unwrap();
            }
        }
        repository
    }

    fn at(&self, path: &[u8]) -> std::path::PathBuf {
        self.0.path().join(OsStr::from_bytes(path))
    }

    fn git(&self, arguments: &[&str]) -> Vec<u8> {
        let output = Command::new("git")
            .current_dir(self.0.path())
            .envs([("GIT_CONFIG_GLOBAL", "/dev/null"), ("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_DIR", ".git")])
            .args(arguments)
            .output()
            .expect("git is missing: apt-get install git");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// The files that git would not ignore.
    fn published_by_git(&self) -> BTreeSet<Vec<u8>> {
        let listed = self.git(&["ls-files", "-o", "-z", "--exclude-per-directory=.syncdignore"]);
        let own = |path: &[u8]| path.split(|byte| *byte == b'/').any(|name| name == IGNORE_FILE.as_bytes());
        listed.split(|b| *b == 0).filter(|path| !path.is_empty() && !own(path)).map(<[u8]>::to_vec).collect()
    }

    /// The files that these rules leave.
    fn published(&self) -> BTreeSet<Vec<u8>> {
        let mut published = BTreeSet::new();
        self.walk(&TreePath::root(), &IgnoreRules::default(), &mut published);
        published
    }

    fn walk(&self, directory: &TreePath, above: &IgnoreRules, published: &mut BTreeSet<Vec<u8>>) {
        let here = directory.below(self.0.path());
        let rules = match fs::read(here.join(IGNORE_FILE)) {
            Ok(bytes) => above.with_file(directory, &bytes).unwrap(),
            Err(_) => above.clone(),
        };
        for entry in fs::read_dir(&here).unwrap() {
            let entry = entry.unwrap();
            let name = Component::new(entry.file_name().as_bytes()).unwrap();
            let path = directory.join(&name).unwrap();
            let is_directory = entry.file_type().unwrap().is_dir();
            match (rules.excludes(&path, is_directory), is_directory) {
                (true, _) => {}
                (false, true) => self.walk(&path, &rules, published),
                (false, false) => drop(published.insert(path.as_bytes().to_vec())),
            }
        }
    }

    #[track_caller]
    fn assert_as_git(&self) {
        let (ours, git) = (self.published(), self.published_by_git());
        let show =
            |paths: Vec<&Vec<u8>>| paths.iter().map(|p| p.escape_ascii().to_string()).collect::<Vec<_>>();
        let too_many = show(ours.difference(&git).collect());
        let too_few = show(git.difference(&ours).collect());
        assert!(too_many.is_empty() && too_few.is_empty(), "too many: {too_many:?}, too few: {too_few:?}");
    }

    fn write_rules(&self, directory: &[u8], lines: &[Vec<u8>]) {
        // Rejected lines are not compared: git accepts them, and they match nothing.
        let taken = |line: &&Vec<u8>| Pattern::parse(line).is_ok();
        let text: Vec<u8> = lines.iter().filter(taken).flat_map(|line| [&line[..], b"\n"].concat()).collect();
        fs::write(self.at(directory).join(IGNORE_FILE), text).unwrap();
    }
}

/// A line of pieces that mean something, or nearly do.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let pieces: [&[u8]; 44] = [
        b"a",
        b"a",
        b"b",
        b"x",
        b"a/b",
        b"/",
        b"/",
        b"*",
        b"*",
        b"**",
        b"**/",
        b"/**",
        b"?",
        b"[",
        b"]",
        b"[a-b]",
        b"[!a]",
        b"[^x]",
        b"[]a]",
        b"[]-a]",
        b"[a-]",
        b"[\\]]",
        b"[[:alpha:]]",
        b"[[:space:]]x",
        b"[![:punct:]]",
        b"[[:alpha:]-z]",
        b"[[:",
        b"[--0]",
        b"[a",
        b"\\",
        b"\\ ",
        b"\\*",
        b"\\/",
        b" ",
        b"  ",
        b"!",
        b"#",
        b".",
        b"-",
        b"{a,b}",
        b"\xc3\xa9",
        b"\xff",
        b"\r",
        b"\t",
    ];
    let piece = prop::sample::select(pieces.to_vec());
    (any::<bool>(), prop::collection::vec(piece, 0..7)).prop_map(|(negated, pieces)| {
        let bang: &[u8] = if negated { b"!" } else { b"" };
        [bang, &pieces.concat()].concat()
    })
}

#[test]
fn any_rules_leave_out_what_git_leaves_out() {
    let repository = Repository::new();
    let lines = || prop::collection::vec(line(), 0..4);
    let config = ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(root in lines(), a in lines(), b in lines())| {
        repository.write_rules(b"", &root);
        repository.write_rules(b"a", &a);
        repository.write_rules(b"a/b", &b);
        repository.assert_as_git();
    });
}

#[test]
fn rules_that_are_easily_got_wrong_are_gits() {
    let repository = Repository::new();
    let cases: [&[u8]; 32] = [
        b"a**/x",
        b"a**//x",
        b"a**/./x",
        b"a*/.*",
        b"[.]/x",
        b"[a//]/x",
        b".*",
        b"a/**",
        b"**/a",
        b"/**/x",
        b"a/**/x",
        b"a/**/b/x",
        b"**",
        b"***/x",
        b"a/***/x",
        b"a**b/x",
        b"**\\/x",
        b"a/*/x",
        b"*/x",
        b"/*",
        b"*/",
        b"/*/",
        b"a\n!a/b",
        b"a/\n!a/b/x",
        b"a/*\n!a/b",
        b"x \\ ",
        b"x\\  ",
        b"\\#a",
        b"\\!a",
        b"[a]/x",
        b"\\[a]/x",
        b"\xef\xbb\xbfx",
    ];
    for case in cases {
        fs::write(repository.at(IGNORE_FILE.as_bytes()), case).unwrap();
        println!("{}", case.escape_ascii());
        repository.assert_as_git();
    }
}

#[test]
fn patterns_that_name_no_path_are_refused_and_match_nothing_in_git() {
    let repository = Repository::new();
    let all = repository.published_by_git();
    let cases: [&[u8]; 32] = [
        b"a[/]b",
        b"a[/]x",
        b"a[//]b/x",
        b"[/]",
        b"![/]x",
        b"a[/-/]b",
        b"/",
        b"//",
        b"!",
        b"!/",
        b"/ ",
        b"a//",
        b"//a",
        b"a//x",
        b"./x",
        b"/./x",
        b"/../x",
        b"a/../b/x",
        b"a/./x",
        b"a/.",
        b"a/..",
        b".",
        b"..",
        b"./",
        b"\\./x",
        b"a\\//x",
        b"**//x",
        b"**/./x",
        b"a/**//x",
        b"*//x",
        b"**\\/./x",
        b"./*",
    ];
    for case in cases {
        let refused = Pattern::parse(case).unwrap_err();
        assert!(
            matches!(refused, PatternError::Nothing | PatternError::Component | PatternError::Slash),
            "{}",
            case.escape_ascii()
        );
        fs::write(repository.at(IGNORE_FILE.as_bytes()), case).unwrap();
        assert_eq!(repository.published_by_git(), all, "{}", case.escape_ascii());
    }
}

#[test]
fn any_pattern_refused_for_a_component_matches_nothing_in_git() {
    let repository = Repository::new();
    let all = repository.published_by_git();
    let piece = prop::sample::select(vec![
        "a", "b", "x", "/", "/", ".", "*", "**", "**/", "/**", "?", "[a/]", "\\", "!",
    ]);
    let refused =
        prop::collection::vec(piece, 1..7).prop_map(|pieces| pieces.concat()).prop_filter("taken", |line| {
            matches!(Pattern::parse(line.as_bytes()), Err(PatternError::Nothing | PatternError::Component))
        });
    let config = ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(line in refused)| {
        fs::write(repository.at(IGNORE_FILE.as_bytes()), &line).unwrap();
        prop_assert_eq!(repository.published_by_git(), all.clone(), "{}", line);
    });
}

#[test]
fn every_class_has_the_bytes_that_git_gives_it() {
    let repository = Repository::new();
    fs::create_dir(repository.at(b"bytes")).unwrap();
    for byte in (1..=u8::MAX).filter(|byte| !b"/.".contains(byte)) {
        fs::write(repository.at(&[b"bytes/", &[byte][..]].concat()), "").unwrap();
    }
    let classes = [
        "alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
        "xdigit",
    ];
    for class in classes {
        for form in [format!("[[:{class}:]]"), format!("[![:{class}:]]")] {
            fs::write(repository.at(IGNORE_FILE.as_bytes()), form.as_bytes()).unwrap();
            println!("{form}");
            repository.assert_as_git();
        }
    }
}

#[test]
fn a_rules_file_is_in_its_directory() {
    assert_eq!(file_in(&path(b"a/b")), path(b"a/b/.syncdignore"));
    assert_eq!(file_in(&TreePath::root()).below(Path::new("/t")), Path::new("/t/.syncdignore"));
}
