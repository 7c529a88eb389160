//! Settings of the C library's allocator, applied before `main` in every program that links this crate.
//!
//! glibc gives up to eight arenas a core to threads, and keeps what is freed in each: an origin that served first syncs
//! had 132 MB of which 50 were in use. docs/decisions.md has what was measured. Elsewhere than with glibc nothing is set.
