//! Files that operators copy: the example files of both programs, and the files for containers.

use std::fs;
use std::process::Command;

use parse_dockerfile::{Command as Words, Instruction};
use syncd_tests::{Scene, binary};

use super::{repository, within_limit};

#[test]
fn the_shipped_configuration_has_every_key_with_its_default() {
    for program in ["origin", "agent"] {
        let text = fs::read_to_string(repository().join(format!("packaging/etc/{program}.toml")));
        let text = text.expect("read the shipped file");
        let mut show = Command::new(binary(&format!("syncd-{program}")));
        show.args(["config", "show", "--json", "--config", "/dev/null"]).env_clear();
        let settings = within_limit(&mut show).expect_success().json();
        let settings = settings.as_array().expect("a list");
        assert!(settings.len() > 20, "{settings:?}");
        for setting in settings.iter().filter(|setting| setting["name"] != "config") {
            let name = setting["name"].as_str().expect("a name");
            let lines = text.lines().map(|line| line.trim_start_matches('#'));
            let has_table = lines.clone().any(|line| line.starts_with(&format!("[{name}")));
            let shown = lines.clone().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
            assert!(has_table || shown.is_some(), "{program}.toml lacks {name}");
            // Others are flags, or have their default in words.
            let default = setting["value"].as_str().filter(|value| !value.contains(' '));
            if let Some(default) = default.filter(|value| !["true", "false", "unlimited"].contains(value)) {
                let shown = shown.map(|value| value.trim_matches('"'));
                assert_eq!(shown, Some(default), "{program}.toml: {name}");
            }
        }
    }
}

/// The shipped file with every key and table in effect: those of git and of a published tree, or those that
/// need a directory and an origin.
fn uncommented(text: &str, git: bool) -> String {
    let is_key = |line: &&str| line.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    let text = if git { text.split("#[collect.").next().unwrap_or_default() } else { text };
    let others = if git { ["#origin", "#origin"] } else { ["#git-", "#follow"] };
    let lines = text.lines().filter(|line| !others.iter().any(|other| line.starts_with(other)));
    let lines = lines.map(|line| line.strip_prefix('#').filter(is_key).unwrap_or(line));
    let whole = lines.collect::<Vec<_>>().join("\n").replace("\"deploy\"", "\"root\"");
    if git { whole.replace("trigger = \"settle\"", "trigger = \"git\"") } else { whole }
}

#[test]
fn the_shipped_configuration_loads_with_every_key() {
    let scene = Scene::new("shipped");
    for program in ["origin", "agent"] {
        let shipped = repository().join(format!("packaging/etc/{program}.toml"));
        let text = fs::read_to_string(&shipped).expect("read the shipped file");
        // A content tree that is missing is found.
        let text = text.replace("/srv/site", &scene.directory().display().to_string());
        let file = scene.path(&format!("{program}.toml"));
        let command = |action: &str, text: &str| {
            fs::write(&file, text).expect("write a configuration");
            let mut command = Command::new(binary(&format!("syncd-{program}")));
            within_limit(command.args(["config", action, "--config"]).arg(&file)).expect_success()
        };
        command("check", &text);
        for whole in [true, false].map(|git| uncommented(&text, git)) {
            command("check", &whole);
            let shown = command("show", &whole).stdout;
            let from_file = shown.lines().filter(|line| line.contains(&file.display().to_string()));
            let from_file = from_file.filter(|line| !line.starts_with("config ")).count();
            let (options, tables) = whole.split_once("[rollout]").unwrap_or((&whole, ""));
            let keys = options.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')).count();
            // The policy that is the default is an option, too.
            assert_eq!(from_file, keys + usize::from(!tables.is_empty()), "{shown}");
        }
    }
}

/// Words of an instruction that starts a program without a shell.
#[track_caller]
fn words<'a>(words: &Words<'a>) -> Vec<String> {
    match words {
        Words::Exec(words) => words.value.iter().map(|word| word.value.to_string()).collect(),
        shell => panic!("a shell would be process 1: {shell:?}"),
    }
}

#[test]
fn the_files_for_containers_name_what_exists() {
    let read = |name: &str| {
        fs::read_to_string(repository().join("packaging/container").join(name)).expect("read a file")
    };
    let text = read("Dockerfile");
    let file = parse_dockerfile::parse(&text).expect("a Dockerfile");
    // Each image's name, with the command that it runs.
    let mut images: Vec<(String, Vec<String>)> = Vec::new();
    for instruction in &file.instructions {
        match instruction {
            Instruction::From(from) => {
                let (_, name) = from.as_.as_ref().expect("each image has a name");
                images.push((name.value.to_string(), Vec::new()));
            }
            Instruction::Copy(copy) => {
                let from = copy.options.iter().find(|option| option.name.value == "from");
                let Some(from) = from.and_then(|option| option.value.as_ref()) else { continue };
                assert!(images.iter().any(|(name, _)| *name == from.value), "{copy:?}");
            }
            Instruction::Entrypoint(entry) => images.last_mut().expect("FROM").1 = words(&entry.arguments),
            Instruction::Cmd(command) => {
                images.last_mut().expect("FROM").1.extend(words(&command.arguments));
            }
            _ => {}
        }
    }
    let names: Vec<_> = images.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["build", "origin", "agent"]);
    // Help shows that the program understands the words before it.
    let understands = |command: &[String]| {
        let mut program = Command::new(binary(&command[0]));
        within_limit(program.args(&command[1..]).arg("--help")).expect_success();
    };
    images[1..].iter().for_each(|(_, command)| understands(command));

    // In the compose file a service has its image on one line, and the words after it on a later one.
    let compose = read("compose.yaml");
    let value = |line: &str, key: &str| line.trim().strip_prefix(key).map(|value| value.trim().to_owned());
    let mut image = String::new();
    let mut started = Vec::new();
    for line in compose.lines() {
        image = value(line, "image:").unwrap_or(image);
        let Some(list) = value(line, "command:") else { continue };
        let list = list.trim_matches(['[', ']']).split(',');
        let words: Vec<_> = list.map(|word| word.trim().trim_matches('"').to_owned()).collect();
        let (name, command) =
            images.iter().find(|(name, _)| image == format!("syncd-{name}")).expect("an image of ours");
        understands(&[&command[..1], &words].concat());
        started.push(name.as_str());
    }
    assert_eq!(started, ["origin", "agent"]);
    // The pages' commands are those of services and programs that exist.
    let page = fs::read_to_string(repository().join("docs/guide/containers.md")).expect("read the page");
    for line in page.lines().filter_map(|line| line.split("docker compose ").nth(1)) {
        let service =
            line.split([' ', ')', '`', ':']).filter(|word| ["origin", "node", "web"].contains(word));
        assert!(line.starts_with("build") || line.starts_with("up -d") || service.count() > 0, "{line}");
    }
}
