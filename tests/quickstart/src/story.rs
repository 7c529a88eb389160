//! Events of the quickstart: caused by a person, or by the story.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::world::{Node, World, get};

/// Prints a line of the story. Errors are ignored, because the reader may go away.
macro_rules! say {
    ($($text:tt)*) => {
        syncd_runtime::output::line(format_args!($($text)*))?
    };
}

/// Shows what happens while a person edits, until Ctrl-C.
pub async fn watch(world: World) -> anyhow::Result<()> {
    say!("content tree   {}", world.tree.display());
    let mut current = world.sealed_after(0).await?;
    for node in &world.nodes {
        node.wait_for(current).await?;
        say!("{}           http://{}/   ({})", node.name, node.web, node.live().display());
    }
    say!(
        "generation {current} is live on both. Edit, add, rename or delete in the content tree; Ctrl-C ends."
    );
    let story = async {
        loop {
            let next = world.sealed_after(current).await;
            // Nobody edits: keep waiting.
            let Ok(next) = next else { continue };
            let sealed = Instant::now();
            for node in &world.nodes {
                node.wait_for(next).await?;
                say!(
                    "generation {next} live on {} {:.1} ms after it was sealed",
                    node.name,
                    sealed.elapsed().as_secs_f64() * 1e3
                );
            }
            current = next;
        }
    };
    let result: anyhow::Result<()> = tokio::select! {
        result = story => result,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into),
    };
    world.stop().await;
    result
}

/// Runs the story. Fails if any check fails.
pub async fn tell(mut world: World) -> anyhow::Result<()> {
    let first = world.sealed_after(0).await?;
    everywhere(&world, first).await?;
    say!("1. generation {first} is live on web1 and web2, byte for byte");

    let marker = "Edited while both replicas serve.";
    let page = world.tree.join("index.html");
    let before = fs::read_to_string(&page)?;
    let started = Instant::now();
    fs::write(&page, before.replace("Edit this file and reload both replicas.", marker))?;
    let second = world.sealed_after(first).await?;
    let sealed = started.elapsed();
    everywhere(&world, second).await?;
    let live = started.elapsed();
    for node in &world.nodes {
        ensure!(get(node.web, "/index.html").await?.contains(marker), "{} serves the old page", node.name);
    }
    say!(
        "2. an edit was sealed after {:.0} ms (100 of them waiting for quiet) and live on both {:.0} ms later",
        sealed.as_secs_f64() * 1e3,
        (live - sealed).as_secs_f64() * 1e3
    );

    let expected = listing(&world.tree)?;
    world.stop_origin().await?;
    let gone = world.tree.with_extension("gone");
    fs::rename(&world.tree, &gone)?;
    for node in &world.nodes {
        ensure!(listing(&node.live())? == expected, "{} is not complete without the origin", node.name);
        ensure!(get(node.web, "/index.html").await?.contains(marker), "{} does not serve", node.name);
    }
    say!("3. origin stopped, its tree gone: both replicas are complete and served");

    fs::rename(&gone, &world.tree)?;
    world.start_origin().await?;
    fs::write(world.tree.join("articles/new.html"), "<h1>Back again</h1>\n")?;
    let third = world.sealed_after(second).await?;
    everywhere(&world, third).await?;
    say!("4. the origin is back: generation {third} is live on both");

    let started = Instant::now();
    let name = world.add_node().await?.name.clone();
    everywhere(&world, third).await?;
    say!(
        "5. {name} joined with a token and serves generation {third} after {:.0} ms",
        started.elapsed().as_secs_f64() * 1e3
    );
    world.stop().await;
    say!("all of it held");
    Ok(())
}

/// Waits until `generation` is live everywhere, and compares every replica with the tree.
async fn everywhere(world: &World, generation: u64) -> anyhow::Result<()> {
    let expected = listing(&world.tree)?;
    for node in &world.nodes {
        node.wait_for(generation).await?;
        compare(node, &expected)?;
        get(node.web, "/index.html").await.with_context(|| format!("ask {}", node.name))?;
    }
    Ok(())
}

fn compare(node: &Node, expected: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let actual = listing(&node.live())?;
    for (path, description) in expected {
        ensure!(
            actual.get(path) == Some(description),
            "{}: {path} differs: {:?}, expected {description}",
            node.name,
            actual.get(path)
        );
    }
    ensure!(
        actual.len() == expected.len(),
        "{} has {} names, expected {}",
        node.name,
        actual.len(),
        expected.len()
    );
    ensure!(node.generation() > 0, "{} reports no generation", node.name);
    Ok(())
}

/// Every name below a directory, with its mode, time to the nanosecond, and content.
fn listing(root: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut names = BTreeMap::new();
    let mut directories = vec![root.canonicalize()?];
    let base = directories[0].clone();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let content = if metadata.is_dir() {
                directories.push(path.clone());
                "directory".to_owned()
            } else {
                blake3::hash(&fs::read(&path)?).to_string()
            };
            let name = path.strip_prefix(&base)?.display().to_string();
            let description =
                format!("{:o} {}.{:09} {content}", metadata.mode(), metadata.mtime(), metadata.mtime_nsec());
            names.insert(name, description);
        }
    }
    Ok(names)
}
