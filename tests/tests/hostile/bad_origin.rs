//! The real agent against an origin that has valid certificates and a trusted signing key, and lies in all else.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use syncd_proto::v1;
use syncd_proto::v1::fetch_frame::Frame as F;
use syncd_proto::v1::origin_message::Message as ToAgent;
use syncd_shared::delta::{Basis, BasisFile, DeltaCopy, DeltaEncoding, DeltaFrame, DeltaPiece, Encoded};
use syncd_shared::stored_frame::{Piece, StoredFrame};
use syncd_shared::wire::{DirectoryPatch, directories_message, patches_message};
use syncd_shared::{
    ContentHash, ContentTag, Directory, Entry, Kind, Metadata, ObjectHash, RootEntry, SignedGeneration,
    Totals, TreeId, TreePath,
};
use syncd_tests::oracle::{fingerprint, try_facts};
use syncd_tests::{Agent, Scene};

use super::fake_origin::{Conversation, FakeOrigin, Heard, Twist, announce, announce_bytes, peak_mib};
use super::site::{FILE, FOLDER, RawEntry, Site, folder_entry, named, raw_directory, stored};

/// What the agent may take while it is attacked.
pub const MEMORY_MAX_MIB: u64 = 128;

pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// An agent that follows a lying origin, and what must not change.
pub struct World {
    origin: FakeOrigin,
    agent: Agent,
    conversation: Option<Conversation>,
    /// What is live.
    site: Arc<Site>,
    number: u64,
    live: String,
    outside: PathBuf,
    outside_before: String,
    tried: u32,
    _scene: Scene,
}

impl World {
    /// A first generation is live, honestly.
    pub fn new(name: &str) -> Self {
        let mut world = Self::empty(name);
        world.honest(1);
        world
    }

    /// An agent that has nothing yet.
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

    /// Announces what this site has.
    pub fn offer(&mut self, site: &Arc<Site>, twist: Option<Twist>) {
        self.origin.serve(site, twist);
        let generation = self.origin.sign(self.next(), site.root());
        self.say(announce(&generation, None));
    }

    fn next(&self) -> u64 {
        self.number + 1
    }

    /// Another version of the site.
    fn version(version: u64) -> Site {
        let page = |n: u64| [format!("page {n} of version {version}\n").into_bytes(), noise(n, 400)].concat();
        Site::new([
            ("index.html", page(0)),
            ("a/one.html", page(1)),
            ("a/two.html", noise(2, 900)),
            ("b/c/three.html", page(3)),
            ("large.bin", [noise(7, 300_000), version.to_le_bytes().to_vec(), noise(8, 300_000)].concat()),
        ])
    }

    /// An honest generation, which must come to live.
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

    fn say(&mut self, message: ToAgent) {
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

    /// Nothing that counts was touched.
    #[track_caller]
    fn unharmed(&mut self, attack: &str) {
        self.tried += 1;
        assert!(self.agent.daemon().ended().is_none(), "{attack}: the agent ended");
        assert_eq!(self.agent.live_generation(), Some(self.number), "{attack}");
        assert_eq!(fingerprint(&self.agent.live()), self.live, "{attack}: live changed");
        assert_eq!(fingerprint(&self.outside), self.outside_before, "{attack}: written outside the root");
        let peak = peak_mib(self.agent.daemon().pid());
        assert!(peak < MEMORY_MAX_MIB, "{attack}: {peak} MiB");
    }

    /// Says it, and expects a refusal whose text has one of `words`, divided by `|`.
    #[track_caller]
    fn refused(&mut self, attack: &str, message: ToAgent, words: &str) {
        self.say(message);
        let heard = self.hear();
        let Heard::Failed(reason) = &heard else { panic!("{attack}: {heard:?}") };
        assert!(words.split('|').any(|word| reason.contains(word)), "{attack}: {reason}");
        println!("{attack}: {reason}");
        self.unharmed(attack);
    }

    /// A signed generation whose bytes on the way are twisted: refused, saying why.
    #[track_caller]
    pub fn refused_site(&mut self, attack: &str, site: Site, twist: Option<Twist>, words: &str) {
        let site = Arc::new(site);
        self.origin.serve(&site, twist);
        let generation = self.origin.sign(self.next(), site.root());
        self.refused(attack, announce(&generation, None), words);
    }

    /// An honest generation with a hostile update inside its announcement: the agent must get there by itself, by hash.
    #[track_caller]
    fn survived(&mut self, attack: &str, version: u64, frames: impl FnOnce(&Site, &Site) -> Vec<F>) {
        let site = Arc::new(Self::version(version));
        self.origin.serve(&site, None);
        let frames = frames(&self.site, &site);
        let frames = (0..).zip(frames).map(|(item, frame)| v1::FetchFrame { item, frame: Some(frame) });
        let from_root = Bytes::copy_from_slice(self.site.root().hash().as_bytes());
        let update = v1::InlineUpdate { from_root, frames: frames.collect() };
        let generation = self.origin.sign(self.next(), site.root());
        self.say(announce(&generation, Some(update)));
        let mut told = Vec::new();
        loop {
            let conversation = self.conversation.as_mut().expect("it is connected");
            match self.origin.hear(conversation) {
                Some(Heard::Activated(number)) if number == self.next() => break,
                Some(Heard::Activated(_)) => {}
                Some(Heard::Failed(reason)) => told.push(reason),
                None => {
                    // A malformed message ends the connection. Honestly now.
                    told.push("hung up".into());
                    self.conversation = None;
                    self.say(announce(&generation, None));
                }
            }
        }
        println!("{attack}: {}", if told.is_empty() { "fetched by hash".into() } else { told.join("; ") });
        self.activated(self.next(), site);
        self.unharmed(attack);
    }
}

#[test]
fn announcements_that_do_not_hold_are_refused_before_any_work() {
    let mut world = World::new("hostile-announcements");
    world.honest(2);
    let root = World::version(3).root();
    let honest = world.origin.sign(3, root);
    world.refused("no signature", announce_bytes(honest.record(), &[], None), "not signed");
    world.refused("a signature of zeros", announce_bytes(honest.record(), &[0; 64], None), "not signed");
    let other_key = SigningKey::from_bytes(&[5; 32]);
    let forged = world.origin.generation(3, root).sign(&other_key);
    world.refused("another key", announce(&forged, None), "not signed");
    let mut flipped = honest.record().to_vec();
    flipped[20] ^= 1;
    world.refused("a flipped bit", announce_bytes(&flipped, honest.signature(), None), "not signed");
    let mut other_tree = world.origin.generation(3, root);
    other_tree.tree_id = TreeId::from_bytes([8; 16]);
    let signed = other_tree.sign(&world.origin.signing_key);
    world.refused("another tree", announce(&signed, None), "is of tree");
    let stale = world.origin.sign(1, root);
    world.refused("a lower number", announce(&stale, None), "older than the accepted");
    let conflict = world.origin.sign(2, root);
    world.refused("the same number with another root", announce(&conflict, None), "was accepted with root");
    for absurd in [u64::MAX, 3 + (1 << 32)] {
        let absurd = world.origin.sign(absurd, root);
        world.refused("an absurd number", announce(&absurd, None), "more than");
    }
    world.refused("an empty record", announce_bytes(&[], &[0; 64], None), "not signed");
    world.refused("a huge record", announce_bytes(&noise(1, 100_000), &[0; 64], None), "length|not signed");
    let mut setuid = root;
    setuid.metadata = Metadata { mode: 0o4755, ..FOLDER };
    let signed = world.origin.sign(3, setuid);
    world.refused("a setuid root", announce(&signed, None), "root entry");
    world.honest(3);
    println!("{} announcements refused, peak {} MiB", world.tried, peak_mib(world.agent.daemon().pid()));
}

#[test]
fn trees_that_can_not_be_are_refused() {
    let mut world = World::new("hostile-trees");
    let one = Totals { entries: 1, files: 1, bytes: 0 };
    let two = Totals { entries: 2, files: 2, bytes: 0 };
    let raw =
        |entries: &[RawEntry<'_>], totals| World::version(2).with_root_bytes(raw_directory(entries), totals);
    for (attack, name) in [
        ("a name ..", &b".."[..]),
        ("a name .", b"."),
        ("an empty name", b""),
        ("a name with a slash", b"a/../../../outside/x"),
        ("an absolute name", b"/etc/passwd"),
        ("a name with NUL", b"a\0b"),
    ] {
        world.refused_site(attack, raw(&[RawEntry::file(name)], one), None, "name");
    }
    let unsorted = [RawEntry::file(b"b"), RawEntry::file(b"a")];
    world.refused_site("unsorted names", raw(&unsorted, two), None, "out of order");
    let twice = [RawEntry::file(b"a"), RawEntry::symlink(b"a", b"../../outside")];
    world.refused_site(
        "a file and a symlink of one name",
        raw(&twice, two),
        None,
        "out of order or repeated",
    );
    for (attack, kind) in [("a device", 4), ("a fifo", 5), ("kind 255", 255), ("kind 0", 0)] {
        let entry = RawEntry { kind, ..RawEntry::file(b"a") };
        world.refused_site(attack, raw(&[entry], one), None, "unknown kind");
    }
    for (attack, mode) in [("setuid", 0o4755), ("setgid", 0o2755), ("a mode beyond", 0o100_644)] {
        let entry = RawEntry { mode, ..RawEntry::file(b"a") };
        world.refused_site(attack, raw(&[entry], one), None, "metadata");
    }
    let entry = RawEntry { nanoseconds: 1_000_000_000, ..RawEntry::file(b"a") };
    world.refused_site("a time that is none", raw(&[entry], one), None, "metadata");
    for target in [&b""[..], b"a\0b", &vec![b't'; 5000]] {
        let entries = [RawEntry::symlink(b"a", target)];
        let totals = Totals { entries: 1, files: 0, bytes: 0 };
        world.refused_site("an invalid symlink target", raw(&entries, totals), None, "target");
    }
    world.refused_site(
        "a truncated object",
        World::version(2).with_root_bytes(vec![1, 200, 3], one),
        None,
        "truncated",
    );
    world.refused_site("another version", World::version(2).with_root_bytes(vec![9], one), None, "version");
    world.refused_site("lying totals", raw(&[RawEntry::file(b"a")], two), None, "totals");
    let absurd = Totals { entries: u64::MAX, files: u64::MAX, bytes: u64::MAX };
    world.refused_site("absurd totals", raw(&[RawEntry::file(b"a")], absurd), None, "totals");

    let mut deep = World::version(2);
    let (mut object, mut totals) = deep.put(Vec::new());
    for _ in 0..80 {
        (object, totals) = deep.put(vec![folder_entry("d", object, totals)]);
    }
    deep.root = Some(RootEntry { object, metadata: FOLDER, totals });
    world.refused_site("80 levels", deep, None, "exceeds 64|path");

    let mut vast = World::version(2);
    let size = 1u64 << 60;
    let kind = Kind::File { content: ContentHash::of(b"never sent"), size };
    let (object, totals) = vast.put(vec![Entry { name: named("vast"), metadata: FILE, kind }]);
    vast.root = Some(RootEntry { object, metadata: FOLDER, totals });
    world.refused_site("a file of an exabyte", vast, None, "bytes are needed");

    let mut unknown = World::version(2);
    unknown.root = Some(RootEntry { object: ObjectHash::from_bytes([1; 32]), ..unknown.root() });
    world.refused_site("a root object that nobody has", unknown, None, "directory object|no directory");
    world.honest(3);
    println!("{} trees refused, peak {} MiB", world.tried, peak_mib(world.agent.daemon().pid()));
}

/// Puts frames in the place of all stored ones.
fn instead(make: impl Fn(Vec<F>) -> Vec<F> + Send + Sync + 'static) -> Option<Twist> {
    Some(Arc::new(move |honest: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        let has_content = honest.iter().any(|frame| matches!(frame, F::Stored(_)));
        Box::new(if has_content { make(honest) } else { honest }.into_iter())
    }))
}

fn endless(make: impl Fn(u64) -> F + Send + Sync + 'static, directories: bool) -> Option<Twist> {
    let make = Arc::new(make);
    Some(Arc::new(move |honest: Vec<F>| -> Box<dyn Iterator<Item = F> + Send> {
        let is_it = |frame: &F| match frame {
            F::Stored(_) => !directories,
            F::Directories(_) => directories,
            _ => false,
        };
        if !honest.iter().any(is_it) {
            return Box::new(honest.into_iter());
        }
        let make = make.clone();
        Box::new((0..).map(move |index| make(index)))
    }))
}

/// zstd of very many zeros in very few bytes.
fn bomb() -> Bytes {
    zstd::bulk::compress(&vec![0; 64 << 20], 19).expect("compresses").into()
}

#[test]
fn content_that_does_not_hold_is_refused_and_bounded() {
    let mut world = World::new("hostile-content");
    let other = World::version(9);
    let swapped = instead(move |honest| {
        let mut contents: Vec<Bytes> = Vec::new();
        for frame in &honest {
            if let F::Stored(frame) = frame {
                contents.push(frame.compressed.clone());
            }
        }
        let last = contents.pop().expect("a frame");
        let twist = |frame| match frame {
            F::Stored(stored) => F::Stored(v1::StoredFrame { compressed: last.clone(), ..stored }),
            other => other,
        };
        honest.into_iter().map(twist).collect()
    });
    world.refused_site(
        "contents of other files",
        World::version(2),
        swapped,
        "expected|decompress|compressed|piece",
    );
    let site = World::version(3);
    let hashes: Vec<ContentHash> = site.contents.keys().copied().collect();
    let wrong = hashes.clone();
    let twist = instead(move |honest| {
        let frames = wrong.iter().map(|hash| F::Stored(stored(*hash, 0, b"malware").to_message()));
        frames.chain(honest.last().cloned()).collect()
    });
    world.refused_site(
        "other bytes under a right name",
        site.clone(),
        twist,
        "expected|lies outside|did not send|hash",
    );
    let twist = instead(|honest| honest.last().cloned().into_iter().collect());
    world.refused_site("nothing at all", site.clone(), twist, "did not send");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => F::Stored(v1::StoredFrame { compressed: bomb(), ..stored }),
                other => other,
            })
            .collect()
    });
    world.refused_site("a decompression bomb", site.clone(), twist, "compressed|decompress");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => {
                    F::Stored(v1::StoredFrame { places: bomb(), places_bytes: 500_000, ..stored })
                }
                other => other,
            })
            .collect()
    });
    world.refused_site("a bomb for places", site.clone(), twist, "compressed|decompress");
    let twist = instead(|honest| {
        honest
            .into_iter()
            .map(|frame| match frame {
                F::Stored(stored) => F::Stored(v1::StoredFrame { uncompressed_bytes: u32::MAX, ..stored }),
                other => other,
            })
            .collect()
    });
    world.refused_site("lying lengths", site.clone(), twist, "exceeds");
    let beyond = hashes.clone();
    let twist = instead(move |_| {
        let place = |hash: &ContentHash| {
            let piece = Piece {
                file: ContentTag::of(hash),
                file_offset: u64::MAX - 1,
                frame_offset: 0,
                length_bytes: 1,
            };
            let frame = StoredFrame { pieces: vec![piece], ..stored(*hash, 0, b"x") };
            F::Stored(frame.to_message())
        };
        beyond.iter().map(place).collect()
    });
    world.refused_site("offsets at the end of numbers", site.clone(), twist, "lies outside|outside");
    let twist = instead(|_| vec![F::Delta(v1::DeltaFrame { encoding: 77, ..Default::default() })]);
    world.refused_site("an unknown encoding", site.clone(), twist, "encoding");
    let twist = instead(|honest| {
        vec![
            F::End(v1::BatchEnd { request: 999, missing: vec![Bytes::from_static(b"short")] }),
            honest[0].clone(),
        ]
    });
    world.refused_site("a malformed end", site.clone(), twist, "invalid hash");
    let huge = Arc::new(noise(4, 200 << 20));
    let twist = instead(move |_| {
        let places = Bytes::new();
        let compressed = Bytes::copy_from_slice(&huge);
        vec![F::Stored(v1::StoredFrame { compressed, uncompressed_bytes: 1, places, places_bytes: 0 })]
    });
    world.refused_site("one huge message", site.clone(), twist, "limit|large|exceeds|big");
    let not_asked = other.contents.values().next().expect("a content").clone();
    let unasked = ContentHash::of(&not_asked);
    let twist = endless(move |_| F::Stored(stored(unasked, 0, &not_asked).to_message()), false);
    world.refused_site("content that nobody asked for, without end", site.clone(), twist, "more than");
    let wanted = hashes[0];
    let bytes = site.contents[&wanted].clone();
    let twist = endless(move |_| F::Stored(stored(wanted, 0, &bytes).to_message()), false);
    world.refused_site("the same content without end", site.clone(), twist, "more than");
    let twist = endless(|_| F::Directories(directories_message([])), false);
    world.refused_site("empty frames without end", site.clone(), twist, "more than");
    let twist = endless(|index| F::Directories(directories_message([noise(index, 2000).as_slice()])), true);
    world.refused_site("directory objects without end", World::version(4), twist, "more than|version");
    let twist = endless(|_| F::Directories(directories_message([])), true);
    world.refused_site("empty directory frames without end", World::version(5), twist, "more than");
    let twist = endless(
        |_| F::Directories(v1::DirectoryObjects { compressed: bomb(), uncompressed_bytes: 120 << 20 }),
        true,
    );
    world.refused_site("directory objects as a bomb", World::version(6), twist, "exceeds");
    world.honest(7);
    println!("{} answers refused, peak {} MiB", world.tried, peak_mib(world.agent.daemon().pid()));
}

/// Patches that lead honestly from one site's directories to the other's.
fn honest_patches(from: &Site, to: &Site) -> F {
    let decode = |site: &Site, hash: &ObjectHash| Directory::decode(&site.objects[hash]).expect("an object");
    let mut patches = Vec::new();
    let mut pairs = vec![(from.root().object, to.root().object)];
    while let Some((a, b)) = pairs.pop() {
        let (before, after) = (decode(from, &a), decode(to, &b));
        patches.push(DirectoryPatch::between(Some((a, &before)), (b, &after)));
        for entry in after.entries() {
            if let (Kind::Directory { object, .. }, Some(Kind::Directory { object: old, .. })) =
                (&entry.kind, before.get(&entry.name).map(|entry| &entry.kind))
                && old != object
            {
                pairs.push((*old, *object));
            }
        }
    }
    F::Patches(patches_message(&patches))
}

fn large(site: &Site) -> ContentHash {
    let found = site.contents.iter().find(|(_, bytes)| bytes.len() > 500_000);
    *found.expect("a large file").0
}

fn end() -> F {
    F::End(v1::BatchEnd::default())
}

fn delta(frame: DeltaFrame) -> F {
    F::Delta(frame.to_message())
}

fn empty_delta() -> DeltaFrame {
    let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: Bytes::new() };
    DeltaFrame { encoded, bases: vec![], pieces: vec![], copies: vec![], replaced: vec![] }
}

fn basis(site: &Site) -> BasisFile {
    BasisFile {
        content: ContentTag::of(&large(site)),
        path: Some(TreePath::from_bytes(b"large.bin").expect("a path")),
    }
}

#[test]
fn hostile_updates_cost_a_fetch_and_nothing_else() {
    let mut world = World::new("hostile-updates");
    world.survived("no frames", 2, |_, _| vec![]);
    world.survived("no end", 3, |a, b| vec![honest_patches(a, b)]);
    world.survived("patches of nothing known", 4, |_, b| vec![honest_patches(b, b), end()]);
    let copy = |a: &Site, b: &Site, basis_offset, length_bytes, file_offset| {
        let file = ContentTag::of(&large(b));
        let copy = DeltaCopy { file, file_offset, basis: basis(a), basis_offset, length_bytes };
        vec![honest_patches(a, b), delta(DeltaFrame { copies: vec![copy], ..empty_delta() }), end()]
    };
    world.survived("a copy beyond the basis", 5, |a, b| copy(a, b, 500_000, 200_000, 0));
    world.survived("a copy far beyond the basis", 6, |a, b| copy(a, b, 1 << 62, 100, 0));
    world.survived("a copy longer than the file", 7, |a, b| copy(a, b, 0, 1 << 62, 0));
    world.survived("a copy to beyond the file", 8, |a, b| copy(a, b, 0, 1000, 1 << 40));
    world.survived("a copy of all of the old", 9, |a, b| copy(a, b, 0, 600_008, 0));
    world.survived("a thousand copies of the same", 10, |a, b| {
        let file = ContentTag::of(&large(b));
        let copy =
            DeltaCopy { file, file_offset: 0, basis: basis(a), basis_offset: 0, length_bytes: 600_000 };
        let frame = delta(DeltaFrame { copies: vec![copy; 1000], ..empty_delta() });
        vec![honest_patches(a, b), frame, end()]
    });
    let pieces = |b: &Site, lengths: &[u32]| -> Vec<DeltaPiece> {
        let file = ContentTag::of(&large(b));
        lengths
            .iter()
            .map(|length_bytes| DeltaPiece { file, file_offset: 0, length_bytes: *length_bytes })
            .collect()
    };
    world.survived("a delta that is noise", 11, |a, b| {
        let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: noise(5, 5000).into() };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("a delta that is a bomb", 12, |a, b| {
        let encoded = Encoded { encoding: DeltaEncoding::ZstdPrefix, compressed: bomb() };
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("an rsync delta that is noise", 13, |a, b| {
        let raw = [&[0x72, 0x73, 0x02, 0x36], &noise(6, 500)[..]].concat();
        let compressed = zstd::bulk::compress(&raw, 1).expect("compresses").into();
        let encoded = Encoded { encoding: DeltaEncoding::Rsync { delta_bytes: raw.len() }, compressed };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("an rsync delta that copies without end", 14, |a, b| {
        // 0x54: COPY with eight-byte offset and length.
        let mut raw = vec![0x72, 0x73, 0x02, 0x36];
        for _ in 0..1000 {
            raw.push(0x54);
            raw.extend(0u64.to_be_bytes());
            raw.extend(u64::MAX.to_be_bytes());
        }
        let compressed = zstd::bulk::compress(&raw, 1).expect("compresses").into();
        let encoded = Encoded { encoding: DeltaEncoding::Rsync { delta_bytes: raw.len() }, compressed };
        let bases = vec![Basis { file: basis(a), offset: 0, length_bytes: 600_000 }];
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { encoded, bases, pieces: pieces(b, &[600_008]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("more output than allowed", 15, |a, b| {
        vec![
            honest_patches(a, b),
            delta(DeltaFrame { pieces: pieces(b, &[u32::MAX; 4]), ..empty_delta() }),
            end(),
        ]
    });
    world.survived("replacing what is no replacement", 16, |a, b| {
        let replaced = vec![ContentTag::of(&ContentHash::of(b"nobody"))];
        vec![honest_patches(a, b), delta(DeltaFrame { replaced, ..empty_delta() }), end()]
    });
    world.survived("replaced a thousand times", 17, |a, b| {
        let replaced = vec![ContentTag::of(&large(b)); 1000];
        vec![honest_patches(a, b), delta(DeltaFrame { replaced, ..empty_delta() }), end()]
    });
    world.survived("local content from elsewhere", 18, |a, b| {
        let local = |path: &'static [u8]| {
            F::Local(v1::LocalContent {
                file: Bytes::copy_from_slice(large(b).as_bytes()),
                source_path: Bytes::from_static(path),
            })
        };
        vec![honest_patches(a, b), local(b"index.html"), local(b"not/there"), end()]
    });
    println!("{} updates survived, peak {} MiB", world.tried, peak_mib(world.agent.daemon().pid()));
}

#[test]
fn what_no_origin_says_ends_the_connection_and_no_more() {
    let mut world = World::new("hostile-messages");
    let honest: SignedGeneration = world.origin.sign(2, World::version(2).root());
    let welcome = |protocol, key_successions| {
        ToAgent::Welcome(v1::Welcome {
            protocol,
            heartbeat_interval_ms: 500,
            key_successions,
            ..Default::default()
        })
    };
    let forged =
        v1::KeySuccession { new_key: Bytes::from_static(&[5; 32]), signature: Bytes::from_static(&[0; 64]) };
    let local = F::Local(v1::LocalContent {
        file: Bytes::from_static(&[1; 32]),
        source_path: Bytes::from_static(b"../../outside/precious"),
    });
    let with = |frames: Vec<F>| {
        let frames = frames.into_iter().map(|frame| v1::FetchFrame { item: 0, frame: Some(frame) }).collect();
        announce(&honest, Some(v1::InlineUpdate { from_root: Bytes::from_static(&[2; 32]), frames }))
    };
    let said: Vec<(&str, bool, v1::OriginMessage)> = vec![
        ("nothing", true, v1::OriginMessage { message: None }),
        ("welcome twice", true, message(welcome(1, vec![]))),
        ("an announcement before welcome", false, message(announce(&honest, None))),
        ("protocol 99", false, message(welcome(99, vec![]))),
        ("a forged signing key", false, message(welcome(1, vec![forged]))),
        ("an announcement of nothing", true, message(ToAgent::Announce(v1::Announce::default()))),
        ("a path out of the root", true, message(with(vec![local]))),
    ];
    for (attack, welcomed, said) in said {
        let mut conversation = world.conversation.take().expect("it is connected");
        if !welcomed {
            // This one was welcomed already: the next one is not.
            drop(conversation);
            conversation = world.origin.conversation(false);
        }
        world.origin.say_raw(&conversation, said);
        while world.origin.hear(&mut conversation).is_some() {}
        drop(conversation);
        world.conversation = Some(world.origin.conversation(true));
        world.unharmed(attack);
        let error = world.agent.status().error;
        println!("{attack}: {error:?}");
    }
    world.honest(3);
    println!("{} messages survived, peak {} MiB", world.tried, peak_mib(world.agent.daemon().pid()));
}

fn message(message: ToAgent) -> v1::OriginMessage {
    v1::OriginMessage { message: Some(message) }
}
