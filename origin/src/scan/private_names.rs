//! Names that are seldom meant for visitors: secrets, data of other tools, leftovers of editors.
//!
//! They are published like any other name, because a site may need them. The operator is warned when that
//! first happens.

/// Complete names of files and directories.
const NAMES: &[&[u8]] = &[
    b".bash_history",
    b".bzr",
    b".env",
    b".git-credentials",
    b".hg",
    b".htpasswd",
    b".my.cnf",
    b".netrc",
    b".pgpass",
    b".ssh",
    b".svn",
    b"id_dsa",
    b"id_ecdsa",
    b"id_ed25519",
    b"id_rsa",
];
/// Suffixes of databases, dumps, keys, swap and backup files. A database that is being written cannot be
/// copied file by file.
const ENDS: &[&[u8]] = &[
    b"~",
    b".bak",
    b".db",
    b".db-journal",
    b".db-wal",
    b".dump",
    b".ibd",
    b".key",
    b".kdbx",
    b".orig",
    b".p12",
    b".pfx",
    b".rej",
    b".sql",
    b".sql.bz2",
    b".sql.gz",
    b".sql.xz",
    b".sql.zst",
    b".sqlite",
    b".sqlite-journal",
    b".sqlite-wal",
    b".sqlite3",
    b".swo",
    b".swp",
];
/// Suffixes of `.env.` that mark a file without secrets, unlike `.env.production`.
const HARMLESS_ENVIRONMENTS: &[&[u8]] = &[b"dist", b"example", b"sample", b"template"];

/// Whether the name matches one of these patterns.
pub(super) fn looks_private(name: &[u8]) -> bool {
    let is_environment =
        name.strip_prefix(b".env.").is_some_and(|kind| !HARMLESS_ENVIRONMENTS.contains(&kind));
    let is_lock_of_editor =
        name.starts_with(b".#") || (name.len() > 2 && name.starts_with(b"#") && name.ends_with(b"#"));
    NAMES.contains(&name)
        || is_environment
        || is_lock_of_editor
        || ENDS.iter().any(|end| name.len() > end.len() && name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_leftovers_are_told_from_content() {
        for private in [
            ".env",
            ".env.local",
            ".htpasswd",
            ".svn",
            ".hg",
            ".index.php.swp",
            "index.php~",
            ".#index.php",
            "#a#",
            "dump.sql",
            "dump.sql.gz",
            "site.sqlite",
            ".ht.sqlite-wal",
            "wp_posts.ibd",
            "id_rsa",
            "tls.key",
            "wp-config.php.bak",
        ] {
            assert!(looks_private(private.as_bytes()), "{private}");
        }
        for content in [
            ".htaccess",
            ".env.example",
            ".well-known",
            "index.html",
            "id_rsa.pub",
            "sql",
            ".sql",
            "sqlite.html",
            "#",
            "##",
            "~",
            "key.html",
            "environment",
        ] {
            assert!(!looks_private(content.as_bytes()), "{content}");
        }
    }
}
