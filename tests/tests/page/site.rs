//! A site with releases, nodes, rollouts and uploads, as the guide shows it.

use std::ffi::OsString;

use serde_json::Value;
use syncd_tests::edits::write;
use syncd_tests::{Agent, Origin, Scene, Seeded, WrongClock, wait};

/// A site in its third day, with a canary group, uploads and a policy for rollouts.
pub struct Site {
    pub origin: Origin,
    pub agents: Vec<Agent>,
    releases: usize,
    pub scene: Scene,
}

/// Labels of releases, again from the first after the last.
const LABELS: [&str; 8] = [
    "Relaunch",
    "Opening hours",
    "Winter catalogue",
    "Fix the footer on phones",
    "Prices of December",
    "Job offers",
    "Smaller pictures",
    "Winter sale",
];

impl Site {
    /// Two days of `releases` each before any node.
    pub fn new(name: &str, releases: usize) -> Self {
        let scene = Scene::new(name);
        let (tree, config) = (scene.new_directory("tree"), scene.path("origin.toml"));
        write(&tree, "media/logo.svg", "<svg/>");
        let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let tables = format!(
            "[rollout.careful]\nsteps = [ {{ group = 'canary' }}, {{ percent = 25 }}, {{ rest = true }} ]\nhold = '10m'\ncheck = 'true'\n\
             [collect.uploads]\npath = 'media/uploads'\nowner = '{user}:{group}'\n"
        );
        std::fs::write(&config, tables).expect("write the configuration");
        let options = ["--trigger", "manual", "--config", config.to_str().expect("text")];
        let origin = Origin::existing(&scene, "origin", &tree).with_options(&options);
        let clock = WrongClock::new(&scene);
        let mut site = Self { origin, agents: Vec::new(), releases: 0, scene };
        for day in [-2, -1, 0] {
            let text =
                |(name, value): (&str, OsString)| (name.to_owned(), value.into_string().expect("text"));
            let variables: Vec<_> = clock.variables(day).map(text).into_iter().filter(|_| day < 0).collect();
            site.origin = site.origin.with_environment(&variables);
            if day == -2 {
                site.origin.cli("init", &["--host", "127.0.0.1"]).expect_success();
            }
            site.origin.start();
            if day < 0 {
                for _ in 0..releases {
                    site.release(&[]);
                }
                site.origin.stop();
            }
        }
        site
    }

    /// Changes the site, and commits it with these options. Returns the number.
    pub fn release(&mut self, options: &[&str]) -> u64 {
        let (number, tree) = (self.releases, &self.origin.tree);
        let [hue, width] = [number % 10, 60 + number % 7];
        let mut random = Seeded::new(number as u64);
        for picture in 0..1 + number * 7 % 5 {
            let length = 2_000 + random.below(60_000) as usize;
            write(tree, &format!("img/{picture}.webp"), random.bytes(length));
        }
        write(
            tree,
            &format!("news/2026-{number:02}.html"),
            format!("<h1>{}</h1>\n", LABELS[number % LABELS.len()]),
        );
        write(tree, "index.html", format!("<h1>Shop</h1>\n<p>Edition {number}</p>\n"));
        let style = format!(
            ":root {{\n  --accent: #1f{hue}f5c;\n  --paper: #fffef{hue};\n}}\n\nbody {{\n  margin: 0 auto;\n  max-width: {width}rem;\n  \
             padding: 0 1.25rem;\n}}\n\nheader {{\n  display: flex;\n  gap: 1rem;\n}}\n\nfooter {{\n  margin-top: {hue}rem;\n  \
             font-size: .9rem;\n}}\n"
        );
        write(tree, "css/site.css", style);
        self.releases += 1;
        let label = ["-m", LABELS[number % LABELS.len()]];
        let outcome = self.origin.cli("commit", &[&label[..], options].concat()).expect_success();
        outcome.only_line().parse().expect("a number")
    }

    /// Adds running nodes, the first two of them as canaries.
    pub fn add_nodes(&mut self, count: usize) {
        for number in 1..=count {
            let name = format!("web{number:02}");
            self.agents.push(Agent::started(&self.scene, &self.origin, &name));
            if number <= 2 {
                self.origin.cli("group", &[&name, "canary"]).expect_success();
            }
        }
        let names: Vec<&str> = self.agents.iter().map(|agent| agent.name.as_str()).collect();
        self.origin.wait_connected(&names);
    }

    /// The newest rollout.
    pub fn rollout(&self) -> Value {
        self.origin.cli("rollout", &["status", "--json"]).expect_success().json()
    }

    /// Starts a rollout that holds after its canaries. Returns its generation.
    pub fn hold_rollout(&mut self) -> u64 {
        let number = self.release(&["--rollout", "careful"]);
        wait::until_ok("the rollout to hold", || {
            let rollout = self.rollout();
            if rollout["phase"] == "holding" { Ok(()) } else { Err(rollout.to_string()) }
        });
        number
    }
}
