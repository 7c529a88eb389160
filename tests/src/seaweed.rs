//! SeaweedFS in a process of its own: an object store that speaks S3, with data in the scene.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use crate::process::{Daemon, Outcome, run, tool};
use crate::{Scene, free_port, http, wait};

/// Ports that it listens on, each named in its command: otherwise it takes numbers of its own.
const PORTS: [&str; 8] = [
    "-s3.port",
    "-s3.port.grpc",
    "-master.port",
    "-master.port.grpc",
    "-volume.port",
    "-volume.port.grpc",
    "-filer.port",
    "-filer.port.grpc",
];

/// Time for a start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Key and secret with all rights.
pub const KEYS: (&str, &str) = ("key", "secret");

/// Rights of requests without a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anonymous {
    Nothing,
    Reads,
    Everything,
}

/// A store with one bucket, `bucket`.
pub struct Seaweed {
    directory: PathBuf,
    logs: PathBuf,
    ports: Vec<u16>,
    daemon: Option<Daemon>,
}

impl Seaweed {
    /// Starts one in the scene.
    #[track_caller]
    pub fn started(scene: &Scene, anonymous: Anonymous) -> Self {
        let directory = scene.new_directory("seaweed");
        let ports = PORTS.iter().map(|_| free_port()).collect();
        let mut store = Self { directory, logs: scene.directory().to_path_buf(), ports, daemon: None };
        store.allow(KEYS, anonymous);
        store.start();
        store
    }

    /// Changes the keys that it accepts from its next start on.
    pub fn allow(&self, (key, secret): (&str, &str), anonymous: Anonymous) {
        let rights = match anonymous {
            Anonymous::Nothing => "",
            Anonymous::Reads => r#","Read""#,
            Anonymous::Everything => r#","Admin","Read","Write","List""#,
        };
        let anonymous = match rights.strip_prefix(',') {
            Some(rights) => format!(r#",{{"name":"anonymous","actions":[{rights}]}}"#),
            None => String::new(),
        };
        let all = r#"["Admin","Read","Write","List","Tagging"]"#;
        let keys = format!(r#"[{{"accessKey":"{key}","secretKey":"{secret}"}}]"#);
        let text =
            format!(r#"{{"identities":[{{"name":"all","credentials":{keys},"actions":{all}}}{anonymous}]}}"#);
        fs::write(self.directory.join("s3.json"), text).expect("write the keys of the store");
    }

    /// Starts it again with the data that it has.
    #[track_caller]
    pub fn start(&mut self) {
        let mut command = Command::new(program());
        command.args(["-logtostderr=true", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]);
        command.args(["-master.telemetry=false", "-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        command.args(["-volume.max=20", "-master.volumeSizeLimitMB=256", "-s3.autoCreateBucket"]);
        command.arg(format!("-dir={}", self.directory.display()));
        command.arg(format!("-s3.config={}", self.directory.join("s3.json").display()));
        command.args(PORTS.iter().zip(&self.ports).map(|(name, port)| format!("{name}={port}")));
        command.current_dir(&self.directory);
        let daemon = self.daemon.insert(Daemon::start(&mut command, &self.logs, "seaweed"));
        let address = format!("127.0.0.1:{}", self.ports[0]);
        wait::within(START, "the object store to answer", || {
            assert!(daemon.ended().is_none(), "the object store ended at once:\n{}", daemon.log());
            http::get(&address, "/").ok().filter(|answer| answer.status < 500)
        });
        // Until a volume is there, it can't store anything. Keys that are not the usual ones can't probe.
        let probe = self.directory.join("probe");
        fs::write(&probe, "probe").expect("write the probe");
        wait::within(START, "the object store to store something", || {
            let path = probe.to_str().expect("text");
            let put = self.request("PUT", "probe", &["--upload-file", path]);
            ["200", "403"].contains(&put.stdout.as_str()).then_some(())
        });
    }

    /// Sends SIGKILL.
    pub fn kill9(&mut self) {
        self.daemon.take().expect("the object store runs").kill9();
    }

    /// `HOST:PORT`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.ports[0])
    }

    /// Variables for a client that reaches the store at `address`.
    pub fn environment(address: &str) -> Vec<(String, String)> {
        let variables = [
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_ACCESS_KEY_ID", KEYS.0.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", KEYS.1.to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// A signed request by curl for an object of the bucket. Prints the status.
    fn request(&self, method: &str, object: &str, more: &[&str]) -> Outcome {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--max-time",
            "20",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        command.args(["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{}:{}", KEYS.0, KEYS.1)]);
        command.args(["--request", method]).args(more);
        command.arg(format!("http://{}/bucket/{object}", self.address()));
        run(&mut command)
    }

    /// Names below a prefix, which ends with a slash, without it.
    #[track_caller]
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let user = format!("{}:{}", KEYS.0, KEYS.1);
        let prefix_text = prefix.replace('/', "%2F");
        let url = format!("http://{}/bucket?list-type=2&prefix={prefix_text}", self.address());
        let signed = ["--silent", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &user, &url];
        let listing = tool("curl", signed).expect_success().stdout;
        let keys = listing.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        keys.map(|(key, _)| key.trim_start_matches(prefix).to_owned()).collect()
    }

    /// Deletes an object behind the origin's back.
    #[track_caller]
    pub fn delete(&self, object: &str) {
        assert_eq!(self.request("DELETE", object, &[]).stdout, "204", "delete {object}");
    }

    /// Replaces the content of an object behind the origin's back.
    #[track_caller]
    pub fn replace(&self, object: &str, content: &[u8]) {
        let file = self.directory.join("content");
        fs::write(&file, content).expect("write a file");
        let put = self.request("PUT", object, &["--upload-file", file.to_str().expect("text")]);
        assert_eq!(put.stdout, "200", "put {object}");
    }

    /// Resident bytes of the process.
    pub fn daemon(&mut self) -> &mut Daemon {
        self.daemon.as_mut().expect("the object store runs")
    }
}

/// Fails the test if the program can't be had.
#[track_caller]
fn program() -> PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/seaweedfs");
    let find = || {
        let found = crate::process::run_within(&mut Command::new(script), Duration::from_secs(300));
        let hint = "SeaweedFS is missing: .ci/seaweedfs gets it from PyPI";
        assert!(found.code == Some(0), "{hint}: {found:#?}");
        PathBuf::from(found.only_line())
    };
    PROGRAM.get_or_init(find).clone()
}
