//! Rules that always hold (see docs/reliability.md).

use std::fs;
use std::path::{Path, PathBuf};

use syncd_proto::v1;
use syncd_shared::{RootHash, SignedGeneration};
use syncd_tests::oracle::{fingerprint_of, try_facts};
use walkdir::WalkDir;

use crate::world::{Node, Violation, World};

impl World {
    /// Notes that a generation was sealed, or found to be current.
    pub fn remember(&mut self, generation: &SignedGeneration, of_tree: bool) -> Result<(), Violation> {
        let (number, root) = (generation.number().get(), generation.root_hash());
        if of_tree {
            let seen = self.fingerprint(&self.tree.clone())?;
            if self.fingerprints.insert(root, seen.clone()).is_some_and(|before| before != seen) {
                return Err(self.violation(format!("generation {number} is of a root that was another tree")));
            }
        }
        if !self.fingerprints.contains_key(&root) {
            return Err(self.violation(format!("generation {number} is of a root that was never committed")));
        }
        let reused = self.sealed.iter().any(|(n, r)| *n == number && *r != root);
        if reused && !self.restored {
            return Err(self.violation(format!("number {number} was sealed twice")));
        }
        self.sealed.insert((number, root));
        Ok(())
    }

    fn fingerprint(&self, tree: &Path) -> Result<String, Violation> {
        let facts =
            try_facts(tree).map_err(|error| self.violation(format!("walk {}: {error}", tree.display())))?;
        Ok(fingerprint_of(&facts))
    }

    /// Checks that `live` is exactly one sealed generation and not older than before, and that the accepted
    /// number never decreases.
    pub fn check_node(&mut self, n: usize) -> Result<(), Violation> {
        let Some(running) = &self.nodes[n].running else { return Ok(()) };
        let state = running.machine.replica();
        let (told, accepted) = (state.live.clone(), state.accepted.as_ref().map(SignedGeneration::number));
        let before = self.nodes[n].accepted;
        if accepted < before {
            return Err(self.violation(format!("node {n}: accepted fell from {before:?} to {accepted:?}")));
        }
        self.nodes[n].accepted = accepted;
        let link = self.nodes[n].root.join("live");
        let is_directory = || link.is_dir().then(|| "live".into());
        let on_disk: Option<PathBuf> = fs::read_link(&link).ok().or_else(is_directory);
        let number = on_disk.as_ref().and_then(|link| generation_of(&self.nodes[n].root, link));
        let told_number = told.as_ref().map(|t| t.number().get());
        if let Some(ahead) = number
            && self.nodes[n].unreported
            && (self.rolls || told_number.is_none_or(|told| ahead > told))
            && told_number != Some(ahead)
        {
            // Switched, but the session has not been told yet.
            return self.check_ahead(n, &link, ahead);
        }
        if number != told_number {
            return Err(
                self.violation(format!("node {n}: live is {on_disk:?}, its state says {told_number:?}"))
            );
        }
        let Some(told) = told else {
            return match self.nodes[n].live {
                None => Ok(()),
                Some(live) => Err(self.violation(format!("node {n} had {live:?} live, and has nothing"))),
            };
        };
        let now = (told.number().get(), told.root_hash());
        if !self.sealed.contains(&now) {
            return Err(self.violation(format!("node {n}: {now:?} is live and was never sealed")));
        }
        if let Some(was) = self.nodes[n].live
            && (now.0 < was.0 || now.0 == was.0 && now.1 != was.1)
            && !self.nodes[n].has_returned(was.1, now.1)
        {
            return Err(self.violation(format!("node {n}: live fell from {was:?} to {now:?}")));
        }
        let is_switch = self.nodes[n].live.is_none_or(|was| was.1 != now.1);
        if is_switch && self.nodes[n].refused.contains(&now.1) {
            return Err(self.violation(format!("node {n} took {now:?}, which it refuses")));
        }
        let refused = refused_by(&self.nodes[n]);
        self.nodes[n].refused.extend(refused);
        self.nodes[n].live = Some(now);
        self.check_tree(n, &link, now.1)
    }

    fn check_ahead(&mut self, n: usize, link: &Path, number: u64) -> Result<(), Violation> {
        let roots =
            self.sealed.range((number, RootHash::from_bytes([0; 32]))..).take_while(|(n, _)| *n == number);
        let roots: Vec<RootHash> = roots.map(|(_, root)| *root).collect();
        if roots.iter().any(|root| self.check_tree(n, link, *root).is_ok()) {
            return Ok(());
        }
        Err(self.violation(format!("node {n}: generation {number} is live and is not what was sealed")))
    }

    fn check_tree(&self, n: usize, tree: &Path, root: RootHash) -> Result<(), Violation> {
        let expected = self.fingerprints.get(&root);
        if expected == Some(&self.fingerprint(tree)?) {
            return Ok(());
        }
        Err(self.violation(format!("node {n}: {} is not what was sealed", tree.display())))
    }

    /// Checks that a generation reported live is live.
    pub fn check_report(&mut self, n: usize, activated: &v1::Activated) -> Result<(), Violation> {
        self.check_node(n)?;
        match self.nodes[n].live {
            Some((number, root))
                if number == activated.generation && root.as_bytes() == &activated.root[..] =>
            {
                Ok(())
            }
            live => {
                Err(self.violation(format!("node {n} reports {}, live is {live:?}", activated.generation)))
            }
        }
    }

    /// Checks that every tree of a node is whole, and that nothing is left over.
    pub fn check_rest(&self, n: usize) -> Result<(), Violation> {
        let root = &self.nodes[n].root;
        let Some(running) = &self.nodes[n].running else { return Ok(()) };
        let state = running.machine.replica();
        let held = state.held.iter().chain(&state.live);
        for generation in held.filter(|g| !self.nodes[n].damaged.contains(&g.number().get())) {
            let tree = root.join("generations").join(generation.number().to_string());
            self.check_tree(n, &tree, generation.root_hash())?;
        }
        let known = ["generations", "live", "lost+found", "previous", "slots", "staging", "state", "trash"];
        let surplus = |text: String| self.violation(format!("node {n}: litter: {text}"));
        if let Some(name) = names(root).into_iter().find(|name| !known.contains(&name.as_str())) {
            return Err(surplus(name));
        }
        let numbers: Vec<String> = state.generations.iter().map(ToString::to_string).collect();
        let mut on_disk = names(&root.join("generations"));
        on_disk.sort_by_key(|name| name.parse::<u64>().unwrap_or(0));
        if on_disk != numbers {
            return Err(surplus(format!("generations {on_disk:?}, its state says {numbers:?}")));
        }
        let mut staging = names(&root.join("staging"));
        staging.retain(|name| name != "incoming");
        let incoming = WalkDir::new(root.join("staging/incoming")).into_iter().filter_map(Result::ok);
        if let Some(file) = incoming.into_iter().find(|item| !item.file_type().is_dir()) {
            return Err(surplus(file.path().display().to_string()));
        }
        if !staging.is_empty() {
            return Err(surplus(format!("staging {staging:?}")));
        }
        let mut slots = names(&root.join("slots"));
        let live = root.join("live");
        slots.extend((live.is_dir() && !live.is_symlink()).then(|| "live".to_owned()));
        if slots.len() as u64 != numbers.len() as u64 + state.spares {
            let spares = state.spares;
            return Err(surplus(format!("slots {slots:?}, its state says {numbers:?}, {spares} spares")));
        }
        let trash = names(&root.join("trash"));
        if trash.is_empty() { Ok(()) } else { Err(surplus(format!("trash {trash:?}"))) }
    }
}

impl Node {
    /// Whether the node returned from one root to another: it refuses the first, and the second had passed.
    fn has_returned(&self, from: RootHash, to: RootHash) -> bool {
        refused_by(self).contains(&from) && self.passed.contains(&to)
    }
}

fn refused_by(node: &Node) -> Vec<RootHash> {
    let refused = node.running.iter().flat_map(|running| &running.machine.replica().decisions.refused);
    refused.map(|refusal| refusal.generation.root).collect()
}

/// Generation in a slot, or at `live`, according to the links in `generations/`.
fn generation_of(root: &Path, slot: &Path) -> Option<u64> {
    let target = Path::new("..").join(slot);
    let generations = root.join("generations");
    let of_slot = |name: &String| fs::read_link(generations.join(name)).is_ok_and(|link| link == target);
    names(&generations).into_iter().filter(of_slot).filter_map(|name| name.parse().ok()).max()
}

fn names(directory: &Path) -> Vec<String> {
    let items = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> = items.map(|i| i.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
