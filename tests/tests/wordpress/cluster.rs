//! The hosts of the page: `main`, where people work on the site, and the nodes.

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::Value;
use syncd_tests::corpora::Corpus;
use syncd_tests::host::Host;
use syncd_tests::process::tool;
use syncd_tests::{Scene, instructions, wait};

use crate::visitors::{Answer, between, curl, get};

const PAGE: &str = "guide/wordpress.md";
const TREE: &str = "/srv/wordpress";
const REPLICA: &str = "/var/lib/syncd/agent/live";
const HOSTS: &str = "10.0.0.10 main www.example.org\n10.0.0.11 web1\n10.0.0.12 web2\n10.0.0.13 web3";
const NODES: [(&str, &str); 2] = [("web1", "10.0.0.11"), ("web2", "10.0.0.12")];
/// Parts of the corpus that are not of WordPress itself.
const FOREIGN: &[&str] = &[
    "wp-config.php",
    "wordpress-remote-asset-paths",
    ".default_theme",
    "wp-content/database",
    "wp-content/plugins/sqlite-database-integration",
];

/// A host, and the WordPress on it.
pub struct Site {
    pub host: Host,
    tree: &'static str,
}

impl Site {
    /// Runs a command of `site.php` as the web server's user. Returns its answer, if that is JSON.
    #[track_caller]
    pub fn site(&self, command: &str, arguments: &[&str]) -> Value {
        let answer = self.php(command, arguments);
        serde_json::from_str(&answer).unwrap_or(Value::String(answer))
    }

    /// Comments on a post at this host, as a visitor without a login.
    #[track_caller]
    pub fn comment(&self, post: u32, text: &str) {
        let fields = [
            format!("comment_post_ID={post}"),
            format!("comment={text}"),
            "author=Visitor".to_owned(),
            "email=visitor@example.org".to_owned(),
        ];
        let to = format!("::{}:80", self.host.address);
        let mut options = vec!["-H", "X-Forwarded-Proto: https", "--connect-to", &to];
        options.extend(fields.iter().flat_map(|field| ["--data-urlencode", field]));
        let answer = crate::visitors::curl_plain(&options, "/wp-comments-post.php");
        assert_eq!(answer.status, 302, "{answer:?}");
    }

    /// The last lines of the web server's log, and the state of the agent.
    fn trouble(&self) -> String {
        self.host.try_lines("tail -n 3 /var/log/apache2/error.log; syncd-agent status").stdout
    }

    /// Whether the site has a file of this path.
    #[track_caller]
    pub fn has(&self, path: &str) -> bool {
        self.host.try_lines(&format!("test -e {}{path}", self.tree)).code == Some(0)
    }

    /// Hash of the file at a path of the site, if there is one.
    fn sum(&self, path: &str) -> Option<String> {
        let told = self.host.try_lines(&format!("sha256sum {}{path}", self.tree));
        (told.code == Some(0)).then(|| told.stdout.split(' ').next().map(str::to_owned)).flatten()
    }

    #[track_caller]
    fn php(&self, command: &str, arguments: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wordpress/site.php");
        let user = "setpriv --reuid=www-data --regid=www-data --init-groups";
        let arguments = arguments.join(" ");
        self.host.follow(&format!("{user} php {script} {} {command} {arguments}", self.tree)).stdout
    }
}

/// A file in the media library.
#[derive(Debug, PartialEq)]
pub struct Media {
    pub id: u64,
    pub path: String,
    /// Width and height in pixels, `null` for what is no picture.
    pub extent: [Value; 2],
    /// Paths of its thumbnails, and of itself if it has any.
    pub sizes: Vec<String>,
}

impl Media {
    /// From an answer of REST.
    #[track_caller]
    fn of(answer: &Value) -> Self {
        let path = |of: &Value| {
            let url = of["source_url"].as_str().unwrap_or_else(|| panic!("no address: {answer}"));
            url.strip_prefix("https://www.example.org").unwrap_or_else(|| panic!("{answer}")).to_owned()
        };
        let details = &answer["media_details"];
        Self {
            id: answer["id"].as_u64().expect("a number"),
            path: path(answer),
            extent: ["width", "height"].map(|name| details[name].clone()),
            sizes: details["sizes"].as_object().into_iter().flat_map(|all| all.values().map(path)).collect(),
        }
    }
}

/// Writes to the site by REST.
#[derive(Clone)]
pub struct Writer {
    /// Name and application password.
    user: String,
    /// `--connect-to` of a host that is asked past the balancer.
    to: Option<String>,
}

impl Writer {
    /// The same person, at one host.
    pub fn on(&self, site: &Site) -> Self {
        Self { to: Some(format!("::{}:80", site.host.address)), ..self.clone() }
    }

    #[track_caller]
    pub fn rest(&self, method: &str, path: &str, options: &[&str]) -> Value {
        let mut all = vec!["-X", method, "-u", &self.user];
        all.extend(options);
        let answer = match &self.to {
            Some(to) => {
                all.extend(["-H", "X-Forwarded-Proto: https", "--connect-to", to]);
                crate::visitors::curl_plain(&all, path)
            }
            None => curl(&all, path),
        };
        assert!([200, 201].contains(&answer.status), "{method} {path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// Uploads `picture.png`, whose content ends with `text`.
    #[track_caller]
    pub fn upload(&self, text: &str) -> Media {
        // The smallest PNG, so that WordPress takes it for a picture.
        const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU\
            \0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82";
        self.upload_as("picture.png", text, |at| {
            fs::write(at, [PNG, text.as_bytes()].concat()).expect("write a picture");
        })
    }

    /// Uploads a drawing of 400 by 300 pixels, of which WordPress makes thumbnails.
    #[track_caller]
    pub fn upload_drawing(&self) -> Media {
        const DRAW: &str = "$image = imagecreatetruecolor(400, 300);
            imageline($image, 0, 0, 399, 299, 0xffffff);
            imagepng($image, $argv[1]);";
        self.upload_as("drawing.png", "drawing", |at| {
            tool("php", ["-r", DRAW, "--", at]);
        })
    }

    #[track_caller]
    fn upload_as(&self, name: &str, text: &str, write: impl FnOnce(&str)) -> Media {
        let at = format!("/tmp/{}-{}.png", std::process::id(), text.replace(' ', "-"));
        write(&at);
        let disposition = format!("Content-Disposition: attachment; filename=\"{name}\"");
        let data = format!("@{at}");
        let options = ["-H", &disposition, "-H", "Content-Type: image/png", "--data-binary", &data];
        let answer = self.rest("POST", "/wp-json/wp/v2/media", &options);
        fs::remove_file(&at).expect("remove the picture");
        Media::of(&answer)
    }

    /// Has WordPress make another picture of one, by these fields.
    #[track_caller]
    pub fn edit(&self, media: &Media, fields: &[&str]) -> Media {
        let source = format!("src=https://www.example.org{}", media.path);
        let options: Vec<&str> =
            [source.as_str()].iter().chain(fields).flat_map(|field| ["-d", *field]).collect();
        Media::of(&self.rest("POST", &format!("/wp-json/wp/v2/media/{}/edit", media.id), &options))
    }

    /// Deletes a file for good.
    #[track_caller]
    pub fn delete(&self, media: &Media) {
        self.rest("DELETE", &format!("/wp-json/wp/v2/media/{}?force=true", media.id), &[]);
    }
}

pub struct Cluster {
    pub main: Site,
    pub nodes: Vec<Site>,
    writer: Writer,
}

impl Cluster {
    /// Follows the page from bare hosts to WordPress on two nodes.
    #[track_caller]
    pub fn start(scene: &Scene, versions: &Corpus) -> Self {
        let host = Host::new(scene, "main", "10.0.0.10", HOSTS);
        unpack(&versions.a(), &host, TREE);
        let main = Site { host, tree: TREE };
        without_mod_php(&main.host);
        for block in instructions(PAGE, "## 1. The main host") {
            main.host.follow(&block);
        }
        wait_for_work();
        let form = [
            "weblog_title=Example",
            "user_name=editor",
            "admin_password=correct-horse",
            "pw_weak=1",
            "admin_password2=correct-horse",
            "admin_email=editor@example.org",
            "language=",
        ];
        let options: Vec<&str> = form.iter().flat_map(|field| ["-d", field]).collect();
        let installed = curl(&options, "/wp-admin/install.php?step=2");
        assert!(installed.body.contains("Success!"), "{installed:?}");
        main.php("permalinks", &[]);
        let user = format!("editor:{}", main.php("password", &[]));
        let nodes = thread::scope(|scope| {
            let nodes = NODES.map(|(name, address)| scope.spawn(|| node(scene, &main.host, name, address)));
            nodes.into_iter().map(|node| node.join().expect("a node")).collect()
        });
        let this = Self { main, nodes, writer: Writer { user, to: None } };
        this.wait_everywhere("/", &format!("content=\"WordPress {}\"", this.version()));
        wait::until("the balancer to use them", || (get("/hello-world/").status == 200).then_some(()));
        this
    }

    pub fn writer(&self) -> Writer {
        self.writer.clone()
    }

    #[track_caller]
    pub fn upload(&self, text: &str) -> Media {
        self.writer.upload(text)
    }

    /// Asks by way of the balancer. The answer must be 200.
    #[track_caller]
    pub fn browse(&self, method: &str, path: &str, options: &[&str]) -> String {
        let mut all = vec!["-X", method, "-L", "-u", &self.writer.user];
        all.extend(options);
        let answer = curl(&all, path);
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        answer.body
    }

    /// Waits until every node answers this path with a text.
    #[track_caller]
    pub fn wait_everywhere(&self, path: &str, text: &str) {
        for node in &self.nodes {
            wait::until_ok(&format!("{path} on {}", node.host.name), || {
                let answer = ask(&node.host, path);
                let is_there = answer.status == 200 && answer.body.contains(text);
                if is_there { Ok(()) } else { Err(format!("no {text} in {answer:?}; {}", node.trouble())) }
            });
        }
    }

    /// Waits until all hosts have the same file at each of these paths, and the nodes answer it.
    #[track_caller]
    pub fn wait_same(&self, paths: &[String]) {
        for path in paths {
            wait::until_ok(&format!("{path} on all hosts"), || {
                let sums: Vec<_> = self.sites().map(|site| site.sum(path)).collect();
                let are_same = sums.iter().all(|sum| sum.is_some() && *sum == sums[0]);
                let answers: Vec<_> = self.nodes.iter().map(|node| ask(&node.host, path).status).collect();
                let are_there = answers.iter().all(|status| *status == 200);
                if are_same && are_there { Ok(()) } else { Err(format!("{sums:?} {answers:?}")) }
            });
        }
    }

    /// Waits until no host has a file at these paths.
    #[track_caller]
    pub fn wait_gone(&self, paths: &[String]) {
        for (site, path) in self.sites().flat_map(|site| paths.iter().map(move |path| (site, path))) {
            wait::until(&format!("no {path} on {}", site.host.name), || (!site.has(path)).then_some(()));
        }
    }

    fn sites(&self) -> impl Iterator<Item = &Site> {
        self.nodes.iter().chain([&self.main])
    }

    /// Waits until the balancer has a host for people who work.
    #[track_caller]
    pub fn wait_for_work(&self) {
        wait_for_work();
    }

    /// Has WordPress' own code replace its files by those of `version`.
    #[track_caller]
    pub fn upgrade(&self, version: &Path) {
        let unpacked = format!("{TREE}/wp-content/upgrade/new");
        unpack(version, &self.main.host, &format!("{unpacked}/wordpress"));
        self.main.site("upgrade", &[&unpacked]);
    }

    /// Version of WordPress in the content tree.
    #[track_caller]
    pub fn version(&self) -> String {
        version_of(&self.main.host.follow(&format!("cat {TREE}/wp-includes/version.php")).stdout)
    }

    /// Replaces a node by one that is built from nothing.
    #[track_caller]
    pub fn rebuild(&mut self, scene: &Scene, name: &str) {
        let index = self.nodes.iter().position(|node| node.host.name == name).expect("a node");
        let address = self.nodes.remove(index).host.address.clone();
        self.main.host.follow(&format!("syncd-origin revoke {name}"));
        let node = node(scene, &self.main.host, name, &address);
        self.nodes.insert(index, node);
    }

    /// Follows "One node more".
    #[track_caller]
    pub fn add_third(&mut self, scene: &Scene) {
        let third = node(scene, &self.main.host, "web3", "10.0.0.13");
        for block in instructions(PAGE, "## 3. One node more") {
            self.main.host.follow(&block);
        }
        self.nodes.push(third);
        let media = self.upload("on three");
        self.wait_everywhere(&media.path, "on three");
        // The balancer sends visitors there.
        let log = || self.nodes.last().map(|third| third.host.log("apache2/access.log")).unwrap_or_default();
        wait::until("a visitor on the third node", || {
            get("/hello-world/");
            log().contains("GET /hello-world/ ").then_some(())
        });
    }

    /// Puts a program among the uploads of a node, as a plugin with a hole would: it does not run or travel.
    #[track_caller]
    pub fn assert_no_upload_runs(&self) {
        let [first, second] = &self.nodes[..] else { panic!("two nodes") };
        let path = "/wp-content/uploads/hole.php";
        first.host.follow(&format!("echo '<?php echo 6 * 7;' > {REPLICA}{path}"));
        assert_eq!(ask(&first.host, path).status, 403);
        // A file that is written after it arrives.
        first.host.follow(&format!("echo after > {REPLICA}/wp-content/uploads/after.txt"));
        self.wait_everywhere("/wp-content/uploads/after.txt", "after");
        assert!(!second.has(path), "it did not travel");
    }

    #[track_caller]
    pub fn assert_no_php_errors(&self) {
        for site in &self.nodes {
            let log = site.host.log("apache2/error.log");
            let bad: Vec<_> = log.lines().filter(|line| line.contains("PHP ")).collect();
            assert!(bad.is_empty(), "{}: {bad:#?}", site.host.name);
        }
    }
}

/// Puts a version of WordPress at a path of a host, for the web server's user.
#[track_caller]
fn unpack(version: &Path, host: &Host, to: &str) {
    let foreign: String = FOREIGN.iter().map(|foreign| format!(" --exclude=/{foreign}")).collect();
    let version = version.display();
    host.follow(&format!(
        "mkdir -p {to}\nrsync -a --chown=www-data:www-data{foreign} {version}/ {to}/\n\
         chown www-data:www-data {to} $(dirname {to})"
    ));
}

/// mod_php is on this machine for other suites.
#[track_caller]
fn without_mod_php(host: &Host) {
    host.follow("a2dismod -q \"php$(phpquery -V)\" mpm_prefork || :");
}

/// Follows "The nodes" on a host of its own.
#[track_caller]
fn node(scene: &Scene, main: &Host, name: &str, address: &str) -> Site {
    let host = Host::new(scene, name, address, HOSTS);
    without_mod_php(&host);
    let token = main.follow("syncd-origin token").stdout.trim().to_owned();
    for block in instructions(PAGE, "## 2. The nodes") {
        host.follow(&block.replace("syncd1-...", &token));
    }
    let site = Site { host, tree: REPLICA };
    wait::until_ok(&format!("{name} to serve"), || {
        let answer = ask(&site.host, "/wp-includes/images/blank.gif");
        if answer.status == 200 { Ok(()) } else { Err(site.host.try_lines("syncd-agent status").stdout) }
    });
    site
}

fn ask(host: &Host, path: &str) -> Answer {
    let to = format!("::{}:80", host.address);
    let options = ["-H", "X-Forwarded-Proto: https", "--connect-to", &to];
    crate::visitors::curl_plain(&options, path)
}

#[track_caller]
fn wait_for_work() {
    wait::until("a host for people who work", || {
        [200, 302].contains(&get("/wp-login.php").status).then_some(())
    });
}

fn version_of(text: &str) -> String {
    between(text, "$wp_version = '", "'").unwrap_or_else(|| panic!("no version in {text}")).to_owned()
}
