//! Servers between readers and a published tree: nginx as a web server or a cache, Varnish as a CDN.

use std::fs;
use std::process::Command;

use crate::process::Daemon;
use crate::{Scene, free_port, http, require_program, wait};

/// nginx with a configuration of the test's own.
pub struct Nginx {
    /// `HOST:PORT`.
    pub address: String,
    daemon: Daemon,
}

impl Nginx {
    /// Starts it with these blocks `server` and `http`, in which ADDRESS and DIRECTORY are its own.
    #[track_caller]
    pub fn start(scene: &Scene, name: &str, server: &str, http_block: &str) -> Self {
        let nginx = require_program("nginx", "nginx");
        let directory = scene.new_directory(name);
        let address = format!("127.0.0.1:{}", free_port());
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|kind| format!("{kind}_temp_path {}/{kind};", directory.display()));
        let text = format!(
            "daemon off; master_process on; worker_processes 1; user root; pid {0}/pid; error_log stderr warn;
             events {{ }}
             http {{ access_log {0}/access; {1} {http_block}
                 server {{ {server} }} }}",
            directory.display(),
            paths.join(" "),
        );
        let text = text.replace("ADDRESS", &address).replace("DIRECTORY", &directory.display().to_string());
        fs::write(directory.join("nginx.conf"), text).expect("write the configuration");
        let mut command = Command::new(nginx);
        command.arg("-c").arg(directory.join("nginx.conf")).arg("-p").arg(&directory);
        let mut daemon = Daemon::start(&mut command, scene.directory(), name);
        wait::until("nginx to listen", || {
            assert!(daemon.ended().is_none(), "nginx ended at once:\n{}", daemon.log());
            std::net::TcpStream::connect(&address).ok()
        });
        Self { address, daemon }
    }

    /// A cache as docs/guide/scale.md says, in front of a store.
    #[track_caller]
    pub fn cache(scene: &Scene, of: &str) -> Self {
        let http_block = "proxy_cache_path DIRECTORY/cache keys_zone=all:8m max_size=1g;";
        let server = format!(
            "listen ADDRESS; slice 1m; proxy_cache all; proxy_cache_lock on; proxy_cache_valid 206 1y;
             proxy_cache_key $uri$slice_range; proxy_set_header Range $slice_range; proxy_http_version 1.1;
             location / {{ proxy_pass http://{of}; }}
             location ~ /(head|gen/[0-9]+)$ {{ slice 0; proxy_set_header Range \"\"; proxy_cache off;
                 proxy_pass http://{of}; }}",
        );
        Self::start(scene, "nginx", &server, http_block)
    }

    /// The port of its address.
    pub fn port(&self) -> &str {
        self.address.split_once(':').expect("a port").1
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // SIGTERM reaches the workers, too.
        self.daemon.stop();
    }
}

/// Varnish as a CDN in front of a store, with the configuration of docs/guide/scale.md.
pub struct Varnish {
    /// `HOST:PORT`.
    pub address: String,
    _daemon: Daemon,
}

impl Varnish {
    /// One in front of the server at `of`.
    #[track_caller]
    pub fn cache(scene: &Scene, of: &str) -> Self {
        let varnishd = require_program("varnishd", "varnish");
        let (host, port) = of.split_once(':').expect("a port");
        let text = format!(
            "vcl 4.1;
             backend store {{ .host = \"{host}\"; .port = \"{port}\"; }}
             sub vcl_recv {{
                 if (req.url ~ \"/head$\") {{ return (pass); }}
                 return (hash);
             }}
             sub vcl_backend_response {{
                 if (bereq.url ~ \"/gen/[0-9]+$\") {{ set beresp.ttl = 1h; }}
                 if (beresp.status != 200) {{ set beresp.ttl = 0s; set beresp.uncacheable = true; }}
             }}",
        );
        let (configuration, instance) = (scene.path("cdn.vcl"), scene.path("varnish"));
        fs::write(&configuration, text).expect("write the configuration");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(varnishd);
        command.args(["-F", "-j", "none", "-s", "default,256m", "-a", &address]);
        command.arg("-f").arg(&configuration).arg("-n").arg(&instance);
        let mut daemon = Daemon::start(&mut command, scene.directory(), "varnish");
        wait::until("Varnish to answer", || {
            assert!(daemon.ended().is_none(), "Varnish ended at once:\n{}", daemon.log());
            http::get(&address, "/").ok()
        });
        Self { address, _daemon: daemon }
    }
}
