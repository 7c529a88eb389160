//! docs/guide/wordpress.md, followed word by word on four Debian hosts: real Apache, PHP-FPM, MariaDB,
//! HAProxy and WordPress in two versions.

#[path = "wordpress/cluster.rs"]
mod cluster;
#[path = "wordpress/visitors.rs"]
mod visitors;

use std::thread;
use std::time::{Duration, Instant};

use syncd_tests::trouble::in_own_machine_within;
use syncd_tests::{Scene, corpora, host, require_program, require_root, wait};

use crate::cluster::Cluster;
use crate::visitors::{Visitors, get};

/// Deadline of the test on a busy machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Reports how long a step took.
fn step(name: &str, since: &mut Instant) {
    println!("{name}: {:.1} s", since.elapsed().as_secs_f64());
    *since = Instant::now();
}

#[test]
fn wordpress_is_installed_once_and_runs_on_all_nodes() {
    require_root("it makes four hosts in namespaces");
    require_program("mariadbd", "mariadb-server");
    require_program("haproxy", "haproxy");
    require_program("openssl", "openssl");
    require_program("socat", "socat");
    let versions = corpora::wordpress();
    if !in_own_machine_within("wordpress_is_installed_once_and_runs_on_all_nodes", LIMIT) {
        return;
    }
    let mut since = Instant::now();
    let scene = Scene::new("wordpress");
    host::network();
    let mut cluster = Cluster::start(&scene, &versions);
    step("two nodes serve it", &mut since);

    the_plugin_tells_nodes_apart(&cluster);
    media_travel(&cluster);
    step("media", &mut since);
    media_are_edited(&cluster);
    step("edited media", &mut since);
    visitors_write_without_a_login(&cluster);
    step("a comment", &mut since);
    cluster.main.site("plugin", &[]);
    cluster.wait_everywhere("/", "<!-- marked -->");
    step("a plugin", &mut since);
    an_upgrade_under_load(&cluster, &versions);
    step("an upgrade", &mut since);
    without_the_main_host(&cluster);
    step("without the main host", &mut since);
    a_node_is_built_anew(&scene, &mut cluster);
    step("a node built anew", &mut since);
    cluster.add_third(&scene);
    step("a third node", &mut since);
    cluster.assert_no_php_errors();
    drop(cluster);
    step("hosts end", &mut since);
}

fn the_plugin_tells_nodes_apart(cluster: &Cluster) {
    for node in &cluster.nodes {
        let answer = node.site("node", &[]);
        assert_eq!(answer["name"], format!("image--{}.jpg", node.host.name), "{answer}");
        assert_eq!(answer["may_update"], false, "a replica is not updated");
    }
    let answer = cluster.main.site("node", &[]);
    assert_eq!((&answer["name"], &answer["may_update"]), (&"image--main.jpg".into(), &true.into()));
}

/// Files uploaded by REST are on both nodes, under names of their own, until they are deleted.
fn media_travel(cluster: &Cluster) {
    let first = cluster.upload("first");
    let second = cluster.upload("second");
    assert!(first.path.ends_with("/picture--main.png"), "{first:?}");
    assert!(second.path.ends_with("/picture-2--main.png"), "{second:?}");
    for (media, content) in [(&first, "first"), (&second, "second")] {
        cluster.wait_everywhere(&media.path, content);
    }
    cluster.writer().delete(&first);
    cluster.wait_gone(&[first.path]);
    cluster.wait_everywhere(&second.path, "second");
    cluster.assert_no_upload_runs();
}

/// A picture that was uploaded on the first node is edited on the second one. Each host then has both, with
/// their thumbnails, until they are deleted on the main host.
fn media_are_edited(cluster: &Cluster) {
    let [first, second] = &cluster.nodes[..] else { panic!("two nodes") };
    let drawing = cluster.writer().on(first).upload_drawing();
    assert!(drawing.path.ends_with("/drawing--web1.png"), "{drawing:?}");
    cluster.wait_same(&drawing.sizes);

    let fields = ["rotation=90", "x=0", "y=0", "width=100", "height=90"];
    let edited = cluster.writer().on(second).edit(&drawing, &fields);
    assert!(edited.path.ends_with("/drawing-web1-edited--web2.png"), "{edited:?}");
    assert_eq!((&drawing.extent, &edited.extent), (&[400.into(), 300.into()], &[300.into(), 360.into()]));
    cluster.wait_same(&edited.sizes);
    for media in [&drawing, &edited] {
        let mut sizes = media.sizes.clone();
        sizes.sort();
        sizes.dedup();
        assert!(sizes.len() == 3 && sizes.contains(&media.path), "two thumbnails: {media:?}");
        cluster.writer().delete(media);
    }
    cluster.wait_gone(&drawing.sizes);
    cluster.wait_gone(&edited.sizes);
}

/// A comment that a visitor wrote on one node is read on all, once it is approved.
fn visitors_write_without_a_login(cluster: &Cluster) {
    let text = "Nobody has logged in for this.";
    cluster.nodes[1].comment(1, text);
    let held = cluster.writer().rest("GET", "/wp-json/wp/v2/comments?status=hold", &[]);
    let [comment] = &held.as_array().expect("a list")[..] else { panic!("one comment: {held}") };
    let approve = format!("/wp-json/wp/v2/comments/{}?status=approved", comment["id"]);
    cluster.writer().rest("POST", &approve, &[]);
    cluster.wait_everywhere("/hello-world/", text);
}

/// WordPress' own code replaces its files, while visitors come.
fn an_upgrade_under_load(cluster: &Cluster, versions: &corpora::Corpus) {
    let visitors = Visitors::start();
    visitors.wait_round();
    let old = cluster.version();
    cluster.upgrade(&versions.b());
    let new = cluster.version();
    assert_ne!(new, old);
    cluster.wait_everywhere("/", &format!("content=\"WordPress {new}\""));
    visitors.wait_round();
    visitors.finish();
    let body = cluster.browse("GET", "/wp-admin/upgrade.php?step=1", &[]);
    assert!(body.contains("Update Complete") || body.contains("No Update Required"), "{body}");
}

/// The main host has the database, so only its origin and its web server end here. People work on a node
/// meanwhile, and their uploads reach the others afterwards.
fn without_the_main_host(cluster: &Cluster) {
    cluster.main.host.follow("systemctl kill syncd-origin; systemctl stop apache2");
    cluster.wait_for_work();
    let visitors = Visitors::start();
    let media = cluster.upload("meanwhile on a node");
    assert!(
        ["web1", "web2"].iter().any(|name| media.path.ends_with(&format!("/picture--{name}.png"))),
        "{media:?}"
    );
    visitors.wait_round();
    visitors.finish();
    cluster.main.host.follow("systemctl start apache2; systemctl start syncd-origin");
    cluster.wait_everywhere(&media.path, "meanwhile on a node");
    wait::until("the upload on the main host", || cluster.main.has(&media.path).then_some(()));
}

fn a_node_is_built_anew(scene: &Scene, cluster: &mut Cluster) {
    let media: Vec<_> = thread::scope(|scope| {
        let writer = cluster.writer();
        let writing = scope.spawn(move || (0..6).map(|n| writer.upload(&format!("meanwhile {n}"))).collect());
        cluster.rebuild(scene, "web2");
        writing.join().expect("uploads go on")
    });
    for (n, media) in media.iter().enumerate() {
        cluster.wait_everywhere(&media.path, &format!("meanwhile {n}"));
    }
    assert_eq!(get("/").status, 200);
}
