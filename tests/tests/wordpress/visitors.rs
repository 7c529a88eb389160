//! Visitors behind the balancer: they come by TLS, and believe what a browser would.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use syncd_tests::process::run;
use syncd_tests::wait;

const CLIENTS: usize = 2;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// 0: none.
    pub status: u16,
    pub body: String,
}

/// `curl` with these options, by way of the balancer. The site's certificate is its own.
pub fn curl(options: &[&str], path: &str) -> Answer {
    ask(
        &[&["-k", "--connect-to", "::10.0.0.10:"], options].concat(),
        &format!("https://www.example.org{path}"),
    )
}

/// `curl` with these options, past the balancer.
pub fn curl_plain(options: &[&str], path: &str) -> Answer {
    ask(options, &format!("http://www.example.org{path}"))
}

fn ask(options: &[&str], url: &str) -> Answer {
    let mut command = Command::new("curl");
    let outcome =
        run(command.args(["-s", "--max-time", "60", "-w", "\n%{http_code}"]).args(options).arg(url));
    let (body, status) = outcome.stdout.rsplit_once('\n').expect("curl writes the status");
    Answer { status: status.parse().expect("a number"), body: body.to_owned() }
}

pub fn get(path: &str) -> Answer {
    curl(&[], path)
}

/// Clients that read pages and a style sheet of each, without pause.
pub struct Visitors {
    stop: Arc<AtomicBool>,
    done: Arc<[AtomicU64; CLIENTS]>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Visitors {
    pub fn start() -> Self {
        let (stop, done) =
            (Arc::new(AtomicBool::new(false)), Arc::new([const { AtomicU64::new(0) }; CLIENTS]));
        let visit = |client: usize| {
            let (stop, done) = (stop.clone(), done.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    visit("/")?;
                    visit("/hello-world/")?;
                    done[client].fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        Self { threads: (0..CLIENTS).map(visit).collect(), stop, done }
    }

    fn counts(&self) -> Vec<u64> {
        self.done.iter().map(|done| done.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every client has completed a round that it began after the call, or has failed.
    #[track_caller]
    pub fn wait_round(&self) {
        let before = self.counts();
        wait::until("every client to go on", || {
            let all = self.counts().iter().zip(&before).all(|(now, before)| *now >= before + 2);
            (all || self.threads.iter().any(JoinHandle::is_finished)).then_some(())
        });
    }

    /// Asserts that no request has failed.
    #[track_caller]
    pub fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        println!("{:?} rounds of visitors", self.counts());
        let results = self.threads.into_iter().map(|thread| thread.join().expect("a client"));
        let failed: Vec<_> = results.filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }
}

/// Reads a page and the first style sheet that it names.
fn visit(path: &str) -> Result<(), String> {
    let page = whole(path)?;
    if !page.contains("</html>") || ["Fatal error", "<b>Warning</b>"].iter().any(|bad| page.contains(bad)) {
        return Err(format!("{path}: {page}"));
    }
    let version = between(&page, "content=\"WordPress ", "\"").ok_or_else(|| format!("{path}: {page}"))?;
    let style = page
        .split(['"', '\''])
        .find(|text| text.contains("/wp-includes/") && text.contains(".css?ver=") && text.ends_with(version));
    let Some(style) = style else { return Ok(()) };
    whole(style.strip_prefix("https://www.example.org").unwrap_or(style)).map(drop)
}

fn whole(path: &str) -> Result<String, String> {
    let answer = get(path);
    if answer.status == 200 { Ok(answer.body) } else { Err(format!("{path}: {answer:?}")) }
}

pub fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.split_once(before)?.1.split_once(after).map(|(found, _)| found)
}
