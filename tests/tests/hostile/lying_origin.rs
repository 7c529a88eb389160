//! A real agent that follows an origin with valid certificates and a trusted signing key, which lies in
//! everything else; and what must not change.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::{ContentHash, update_file};
use syncd_tests::oracle::{fingerprint, try_facts};
use syncd_tests::{Agent, Scene};

use super::fake_origin::{Conversation, FakeOrigin, Heard, Twist, announce, peak_mib};
use super::site::Site;

/// Limit of the agent's memory during an attack.
pub const MEMORY_MAX_MIB: u64 = 128;

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An agent that follows a lying origin, and the state that must not change.
pub struct World {
    pub origin: FakeOrigin,
    pub agent: Agent,
    pub conversation: Option<Conversation>,
    /// Content of the live generation.
    site: Arc<Site>,
    number: u64,
    live: String,
    outside: PathBuf,
    outside_before: String,
    tried: u32,
    _scene: Scene,
}

impl World {
    /// Makes a first generation live, honestly.
    pub fn new(name: &str) -> Self {
        let mut world = Self::empty(name);
        world.honest(1);
        world
    }

    /// Starts an agent that has nothing yet.
    pub fn empty(name: &str) -> Self {
        let scene = Scene::new(name);
        let outside = scene.new_directory("outside");
        std::fs::write(outside.join("precious"), "untouched").expect("write");
        let mut origin = FakeOrigin::start();
        let mut agent = Agent::new(&scene, "web1");
        agent.join(&origin.address, &origin.token.to_string()).expect_success();
        agent.start();
        let conversation = Some(origin.conversation(true));
        let outside_before = fingerprint(&outside);
        let site = Arc::new(Site::default());
        Self {
            origin,
            agent,
            conversation,
            site,
            number: 0,
            live: String::new(),
            outside,
            outside_before,
            tried: 0,
            _scene: scene,
        }
    }

    pub fn pid(&mut self) -> u32 {
        self.agent.daemon().pid()
    }

    pub fn tried(&self) -> u32 {
        self.tried
    }

    /// Announces the content of this site.
    pub fn offer(&mut self, site: &Arc<Site>, twist: Option<Twist>) {
        self.origin.serve(site, twist);
        let generation = self.origin.sign(self.next(), site.root());
        self.say(announce(&generation, None));
    }

    pub fn next(&self) -> u64 {
        self.number + 1
    }

    /// Another version of the site.
    pub fn version(version: u64) -> Site {
        let page = |n: u64| [format!("page {n} of version {version}\n").into_bytes(), noise(n, 400)].concat();
        Site::new([
            ("index.html", page(0)),
            ("a/one.html", page(1)),
            ("a/two.html", noise(2, 900)),
            ("b/c/three.html", page(3)),
            ("large.bin", [noise(7, 300_000), version.to_le_bytes().to_vec(), noise(8, 300_000)].concat()),
        ])
    }

    /// Announces an honest generation, which must become live.
    #[track_caller]
    pub fn honest(&mut self, version: u64) {
        let site = Arc::new(Self::version(version));
        self.origin.serve(&site, None);
        let generation = self.origin.sign(self.next(), site.root());
        self.say(announce(&generation, None));
        let live = loop {
            match self.hear() {
                Heard::Activated(number) if number == self.next() => break number,
                Heard::Activated(_) | Heard::Failed(_) => {}
            }
        };
        self.activated(live, site);
    }

    fn activated(&mut self, number: u64, site: Arc<Site>) {
        self.number = number;
        assert_eq!(self.agent.live_generation(), Some(number));
        for (path, fact) in try_facts(&self.agent.live()).expect("a live tree") {
            if fact.kind == 'f' {
                let hash = ContentHash::from_bytes(fact.content.try_into().expect("32 bytes"));
                assert!(site.contents.contains_key(&hash), "{} is of no version", path.display());
            }
        }
        self.site = site;
        self.live = fingerprint(&self.agent.live());
    }

    pub fn say(&mut self, message: ToAgent) {
        let conversation = self.conversation.get_or_insert_with(|| self.origin.conversation(true));
        self.origin.say(conversation, message);
    }

    #[track_caller]
    pub fn hear(&mut self) -> Heard {
        loop {
            let conversation = self.conversation.get_or_insert_with(|| self.origin.conversation(true));
            match self.origin.hear(conversation) {
                Some(heard) => return heard,
                None => self.conversation = None,
            }
        }
    }

    /// Asserts that nothing has changed.
    #[track_caller]
    pub fn unharmed(&mut self, attack: &str) {
        self.tried += 1;
        assert!(self.agent.daemon().ended().is_none(), "{attack}: the agent ended");
        assert_eq!(self.agent.live_generation(), Some(self.number), "{attack}");
        assert_eq!(fingerprint(&self.agent.live()), self.live, "{attack}: live changed");
        assert_eq!(fingerprint(&self.outside), self.outside_before, "{attack}: written outside the root");
        let peak = peak_mib(self.agent.daemon().pid());
        assert!(peak < MEMORY_MAX_MIB, "{attack}: {peak} MiB");
    }

    /// Sends a message and expects a refusal whose text contains one of `words`, separated by `|`.
    #[track_caller]
    pub fn refused(&mut self, attack: &str, message: ToAgent, words: &str) {
        self.say(message);
        let heard = self.hear();
        let Heard::Failed(reason) = &heard else { panic!("{attack}: {heard:?}") };
        assert!(words.split('|').any(|word| reason.contains(word)), "{attack}: {reason}");
        println!("{attack}: {reason}");
        self.unharmed(attack);
    }

    /// Offers a signed generation whose bytes are changed on the way, and expects a refusal with the reason.
    #[track_caller]
    pub fn refused_site(&mut self, attack: &str, site: Site, twist: Option<Twist>, words: &str) {
        let site = Arc::new(site);
        self.origin.serve(&site, twist);
        let generation = self.origin.sign(self.next(), site.root());
        self.refused(attack, announce(&generation, None), words);
    }

    /// Announces an honest generation with a hostile update inside. The agent must make it live without help,
    /// by hash, over the same connection.
    #[track_caller]
    pub fn survived(&mut self, attack: &str, version: u64, frames: impl FnOnce(&Site, &Site) -> Vec<F>) {
        self.survived_file(attack, version, |from, to| {
            let frames = (0..).zip(frames(from, to));
            let frames =
                frames.map(|(item, frame)| v1::FetchFrame { item, frame: Some(frame) }.encode_to_vec());
            let frames = frames.collect::<Vec<_>>();
            update_file::write_whole(&from.root().hash(), &to.root().hash(), &frames).expect("fits")
        });
    }

    /// Like [`Self::survived`], with any bytes in place of the update file.
    #[track_caller]
    pub fn survived_file(&mut self, attack: &str, version: u64, file: impl FnOnce(&Site, &Site) -> Bytes) {
        let site = Arc::new(Self::version(version));
        self.origin.serve(&site, None);
        let file = file(&self.site, &site);
        let generation = self.origin.sign(self.next(), site.root());
        self.say(announce(&generation, Some(file)));
        let mut told = Vec::new();
        loop {
            let conversation = self.conversation.as_mut().expect("it is connected");
            match self.origin.hear(conversation) {
                Some(Heard::Activated(number)) if number == self.next() => break,
                Some(Heard::Activated(_)) => {}
                Some(Heard::Failed(reason)) => told.push(reason),
                // The next connection would bring the same update again.
                None => panic!("{attack}: it hung up, {told:?}"),
            }
        }
        println!("{attack}: {}", if told.is_empty() { "fetched by hash".into() } else { told.join("; ") });
        self.activated(self.next(), site);
        self.unharmed(attack);
    }
}

/// Compresses very many zeros to very few bytes with zstd.
pub fn bomb() -> Bytes {
    zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses").into()
}
