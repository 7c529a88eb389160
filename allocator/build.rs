//! Compiles the settings and forces linking them, although no code refers to them.

fn main() {
    println!("cargo:rerun-if-changed=src/settings.c");
    cc::Build::new().file("src/settings.c").link_lib_modifier("+whole-archive").compile("syncd_allocator");
}
