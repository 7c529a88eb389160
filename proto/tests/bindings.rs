//! The committed bindings are what the `.proto` files say.

use std::fs;
use std::path::Path;

fn generate(out: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let protos = ["syncd/v1/replication.proto", "syncd/v1/enrolment.proto", "syncd/v1/collected.proto"];
    let descriptors = protox::compile(protos.map(|p| root.join(p)), [root]).expect("the proto files compile");
    tonic_prost_build::configure()
        .bytes(".")
        .out_dir(out)
        .compile_fds(descriptors)
        .expect("the bindings are generated");
}

#[test]
fn committed_bindings_match_the_proto_files() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    if std::env::var_os("SYNCD_REGENERATE").is_some() {
        generate(&committed);
    }
    let fresh = tempfile::tempdir().expect("a temporary directory");
    generate(fresh.path());
    let name = "syncd.v1.rs";
    let expected = fs::read_to_string(fresh.path().join(name)).expect("generated");
    let actual = fs::read_to_string(committed.join(name)).unwrap_or_default();
    assert!(expected == actual, "src/gen/{name} is stale: run SYNCD_REGENERATE=1 cargo test -p syncd-proto");
}
