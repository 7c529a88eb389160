//! Compiles the settings, and has them linked wherever the crate is, although nothing refers to them.

fn main() {
    println!("cargo:rerun-if-changed=src/settings.c");
    cc::Build::new().file("src/settings.c").link_lib_modifier("+whole-archive").compile("syncd_allocator");
}
