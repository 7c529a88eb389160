//! syncthing: two instances that know only each other, from the start of both (including the source's first
//! scan) until the destination is complete.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use syncd_tests::process::tool;
use syncd_tests::{Daemon, Scene, wait};

use super::Cost;

const LIMIT: Duration = Duration::from_secs(900);
const KEY: &str = "bench";

struct Instance {
    home: PathBuf,
    device: String,
    port: u16,
    gui: u16,
}

/// Fills `destination` from `source`.
pub fn first_sync(scene: &Scene, source: &Path, destination: &Path) -> Cost {
    // syncthing keeps a marker in the directory that it shares.
    let shared = destination.parent().unwrap_or(destination).join("source");
    super::copy::cp(source, &shared);
    fs::create_dir_all(shared.join(".stfolder")).expect("create a marker");
    fs::create_dir_all(destination.join(".stfolder")).expect("create a marker");
    let files = walkdir::WalkDir::new(source).into_iter().filter_map(Result::ok);
    let files = files.filter(|item| item.file_type().is_file()).count();
    let (from, to) = (Instance::new(scene, "syncthing-from"), Instance::new(scene, "syncthing-to"));
    from.configure("sendonly", &shared, &to);
    to.configure("receiveonly", destination, &from);
    Cost::of(destination, || {
        let _daemons = [from.start(scene), to.start(scene)];
        wait::within(LIMIT, "syncthing to be done", || {
            let status = to.get("/rest/db/status?folder=tree")?;
            let number = |key: &str| status.get(key).and_then(serde_json::Value::as_u64);
            let all = number("globalFiles") >= Some(files as u64);
            (all && number("needTotalItems") == Some(0) && status["state"] == "idle").then_some(())
        });
    })
}

impl Instance {
    fn new(scene: &Scene, name: &str) -> Self {
        let home = scene.path(name);
        let option = format!("--home={}", home.display());
        tool("syncthing", ["generate", "--no-default-folder", "--skip-port-probing", &option]);
        let device = tool("syncthing", ["--device-id", &option]).stdout.trim().to_string();
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [port, gui] = listeners.map(|l| l.local_addr().expect("a port").port());
        Self { home, device, port, gui }
    }

    fn configure(&self, kind: &str, path: &Path, other: &Self) {
        let device = |one: &Self| {
            format!(
                "<device id=\"{}\" name=\"x\" compression=\"metadata\"><address>tcp://127.0.0.1:{}</address></device>",
                one.device, one.port
            )
        };
        let off = ["globalAnnounceEnabled", "localAnnounceEnabled", "relaysEnabled", "natEnabled"];
        let off: String = off.iter().map(|name| format!("<{name}>false</{name}>")).collect();
        let text = format!(
            "<configuration version=\"36\"><folder id=\"tree\" path=\"{}\" type=\"{kind}\" rescanIntervalS=\"0\" \
             fsWatcherEnabled=\"false\"><filesystemType>basic</filesystemType><device id=\"{}\"/><device id=\"{}\"/>\
             </folder>{}{}<gui enabled=\"true\"><address>127.0.0.1:{}</address><apikey>{KEY}</apikey></gui>\
             <options><listenAddress>tcp://127.0.0.1:{}</listenAddress>{off}<urAccepted>-1</urAccepted>\
             <autoUpgradeIntervalH>0</autoUpgradeIntervalH></options></configuration>",
            path.display(),
            self.device,
            other.device,
            device(self),
            device(other),
            self.gui,
            self.port,
        );
        fs::write(self.home.join("config.xml"), text).expect("write config.xml");
    }

    fn start(&self, scene: &Scene) -> Daemon {
        let mut command = Command::new("syncthing");
        command.args(["serve", "--no-browser", "--no-restart", "--no-upgrade"]).env("STNOUPGRADE", "1");
        // Without a monitor process, which would outlive the process being stopped.
        command.env("STMONITORED", "1");
        command.arg(format!("--home={}", self.home.display()));
        let name = self.home.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Daemon::start(&mut command, scene.directory(), &name)
    }

    /// Answer of its REST interface; `None`: it does not answer yet.
    fn get(&self, path: &str) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.gui)).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nX-API-Key: {KEY}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }
}
