//! Examples in docs/formats, for the tests that check them against the code.
//!
//! An example is a block that begins with "```text NAME". Its lines are hexadecimal bytes, then ` | ` and a
//! remark.

use std::fmt::Write as _;

use data_encoding::HEXLOWER;

/// Bytes of a line.
const LINE: usize = 24;

/// Bytes of the example `name` in the text of a page. `None` if the page has none, or one of another form.
pub fn example(page: &str, name: &str) -> Option<Vec<u8>> {
    let (_, block) = page.split_once(&format!("\n```text {name}\n"))?;
    let (block, _) = block.split_once("\n```")?;
    let mut bytes = Vec::new();
    for line in block.lines() {
        let (digits, _) = line.split_once('|').unwrap_or((line, ""));
        let digits: String = digits.split_whitespace().collect();
        bytes.extend(HEXLOWER.decode(digits.as_bytes()).ok()?);
    }
    Some(bytes)
}

/// Asserts that an example is `bytes`. `fields` are the lengths and names of its fields, in order; the panic
/// shows how the page should have it. With `SYNCD_FORMATS=print`, prints that and asserts nothing.
#[track_caller]
pub fn check(page: &str, name: &str, bytes: &[u8], fields: &[(usize, &str)]) {
    let mut expected = format!("```text {name}\n");
    let mut rest = bytes;
    for (length, field) in fields {
        let (value, after) = rest.split_at_checked(*length).expect("the fields are those of the bytes");
        for (line, part) in value.chunks(LINE).enumerate() {
            let remark = if line == 0 { format!(" | {field}") } else { String::new() };
            let digits = HEXLOWER.encode(part);
            writeln!(expected, "{digits}{remark}").expect("a string takes it");
        }
        rest = after;
    }
    assert!(rest.is_empty(), "{} bytes of {name} are in no field", rest.len());
    // For a change of many pages: a failed test shows its first difference only.
    if std::env::var_os("SYNCD_FORMATS").is_some_and(|wanted| wanted == "print") {
        println!("{expected}```");
        return;
    }
    assert!(example(page, name).as_deref() == Some(bytes), "the page should have\n{expected}```");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collected::CollectedName;
    use crate::directory::{Builder, Built, Page, Timestamp};
    use crate::ed25519::SigningKey;
    use crate::head::{HEAD_BYTES, Head};
    use crate::identity::{Authority, JoinToken, RootFingerprint, RootKey, SignedTrust, TrustDocument};
    use crate::update_file::{read_whole, write_whole};
    use crate::{
        Component, ContentHash, Directory, Entry, Generation, GenerationNumber, Kind, Metadata, RootEntry,
        SignedGeneration, Totals, TreeId,
    };

    const TREE: TreeId = TreeId::from_bytes([7; 16]);

    macro_rules! page {
        ($name:literal) => {
            include_str!(concat!("../../docs/formats/", $name))
        };
    }

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[3; 32])
    }

    fn root_key() -> RootKey {
        RootKey { tree_id: TREE, key: SigningKey::from_bytes(&[4; 32]) }
    }

    fn metadata(mode: u16) -> Metadata {
        let mtime = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
        Metadata { mode, uid: 1000, gid: 33, mtime }
    }

    fn entry(name: &str, mode: u16, kind: Kind) -> Entry {
        Entry { name: Component::new(name.as_bytes()).unwrap(), metadata: metadata(mode), kind }
    }

    fn generation() -> SignedGeneration {
        let totals = Totals { entries: 4, files: 1, bytes: 5 };
        let root = RootEntry { object: directory().hash(), metadata: metadata(0o755), totals };
        Generation {
            tree_id: TREE,
            epoch: 1,
            number: GenerationNumber::new(3).unwrap(),
            trust: 1,
            root,
            parent: GenerationNumber::new(2),
            created_ms: 1_700_000_000_000,
            label: "deploy 3".into(),
        }
        .sign(&key())
    }

    fn directory() -> Directory {
        let empty = Directory::default().hash();
        Directory::new(vec![
            entry("a", 0o755, Kind::Directory { object: empty, totals: Totals::default() }),
            entry("b.txt", 0o644, Kind::File { content: ContentHash::of(b"hello"), size: 5 }),
            entry("c", 0o777, Kind::Symlink { target: b"b.txt"[..].into() }),
            entry("d", 0o755, Kind::Collected { name: CollectedName::new(b"up").unwrap() }),
        ])
        .unwrap()
    }

    #[test]
    fn generation_record() {
        let signed = generation();
        let fields = [
            (1, "version"),
            (16, "tree_id"),
            (4, "epoch 1"),
            (8, "number 3"),
            (4, "trust document 1"),
            (1, "root entry: version"),
            (32, "object hash of the root directory"),
            (22, "mode, uid, gid, mtime"),
            (24, "entries, files, bytes"),
            (8, "parent 2"),
            (8, "created"),
            (2, "length of the label"),
            (8, "label"),
        ];
        let page = page!("generation-record.md");
        check(page, "record", signed.record(), &fields);
        check(page, "signature", signed.signature(), &[(64, "signature, by the key with 32 bytes of 3")]);
        check(page, "root-hash", signed.root_hash().as_bytes(), &[(32, "root hash")]);
        let (record, signature) = (example(page, "record").unwrap(), example(page, "signature").unwrap());
        let read = SignedGeneration::verify(&record, &signature, TREE, &key().verifying_key());
        assert_eq!(read.as_ref(), Ok(&signed));
    }

    /// The certificate has random parts, so the page is the source.
    #[test]
    fn trust_document() {
        let page = page!("trust-document.md");
        let pinned = example(page, "document").unwrap_or_default();
        let root = root_key();
        let signed = SignedTrust::verify(&pinned, TREE, root.fingerprint()).unwrap_or_else(|_| {
            let authority = Authority::create(TREE, time::OffsetDateTime::UNIX_EPOCH).unwrap();
            let (issued, warns) = (1_700_000_000_000, 1_763_072_000_000);
            let certificate = authority.certificate();
            TrustDocument::first(&root, key().verifying_key(), certificate, issued, warns)
        });
        let document = signed.document().clone();
        assert_eq!((document.number, document.signing_key), (1, key().verifying_key()));
        assert_eq!((document.epochs.first, document.epochs.last), (1, 16));
        assert_eq!((document.issued_ms, document.warn_ms), (1_700_000_000_000, 1_763_072_000_000));
        let fields = [
            (1, "version"),
            (16, "tree_id"),
            (32, "root key"),
            (4, "number 1"),
            (32, "signing key"),
            (8, "epochs 1 to 16"),
            (16, "generation numbers 1 to 1000000000"),
            (8, "issued"),
            (8, "warns from"),
            (2, "length of the certificate"),
            (document.authority.len(), "certificate of the authority, DER"),
            (64, "signature, by the root key with 32 bytes of 4"),
        ];
        check(page, "document", signed.bytes(), &fields);
        check(page, "fingerprint", root.fingerprint().as_bytes(), &[(32, "fingerprint of the root key")]);
        assert_eq!(document.sign(&root.key).unwrap().bytes(), signed.bytes());
    }

    fn built(entries: &[Entry]) -> Built {
        let mut builder = Builder::default();
        entries.iter().for_each(|entry| builder.push(entry));
        builder.finish()
    }

    #[test]
    fn directory_pages() {
        let page = page!("directory-pages.md");
        let small = built(directory().entries());
        let bytes = &small.pages.last().unwrap().1;
        let fields = [
            (1, "format: entries"),
            (2, "name a"),
            (1, "kind: directory"),
            (22, "mode 0755, uid 1000, gid 33, mtime"),
            (32, "object hash"),
            (24, "entries, files, bytes"),
            (6, "name b.txt"),
            (1, "kind: file"),
            (22, "mode 0644, uid, gid, mtime"),
            (32, "content hash"),
            (8, "size"),
            (2, "name c"),
            (1, "kind: symlink"),
            (22, "mode 0777, uid, gid, mtime"),
            (7, "length, target b.txt"),
            (2, "name d"),
            (1, "kind: collected directory"),
            (22, "mode 0755, uid, gid, mtime"),
            (3, "length, name up"),
        ];
        check(page, "entries", bytes, &fields);
        check(page, "object-hash", small.root.as_bytes(), &[(32, "object hash")]);
        assert_eq!((small.root, small.totals.files), (directory().hash(), 1));
        assert_eq!(Page::decode(bytes).unwrap().entries(), directory().entries());

        let file = |number: u8| {
            let content = ContentHash::of(&[number]);
            entry(&format!("{number:03}"), 0o644, Kind::File { content, size: 1 })
        };
        let large = built(&(0..170).map(file).collect::<Vec<_>>());
        let (_, index) = large.pages.last().unwrap();
        let read = Page::decode(index).unwrap();
        assert!((2..=6).contains(&read.pages().len()), "{}", read.pages().len());
        let mut fields = vec![(1, "format: pages of entries")];
        for _ in read.pages() {
            fields.extend([(4, "last name"), (32, "object hash"), (16, "names, bytes of entries")]);
            fields.push((24, "entries, files, bytes"));
        }
        check(page, "pages", index, &fields);
        check(page, "pages-object-hash", large.root.as_bytes(), &[(32, "object hash")]);
    }

    #[test]
    fn update_file() {
        let (from, to) = (RootEntry::empty().hash(), generation().root_hash());
        let frames = [&b"first"[..], b"second"].map(bytes::Bytes::from_static);
        let file = write_whole(&from, &to, &frames).unwrap();
        let fields = [
            (8, "magic"),
            (32, "from root"),
            (32, "to root"),
            (5, "frame 0"),
            (6, "frame 1"),
            (4, "length of frame 0"),
            (32, "BLAKE3 of frame 0"),
            (4, "length of frame 1"),
            (32, "BLAKE3 of frame 1"),
            (4, "number of frames"),
            (32, "BLAKE3 of header and table"),
            (8, "magic"),
        ];
        let page = page!("update-file.md");
        check(page, "file", &file, &fields);
        let (index, read) = read_whole(&example(page, "file").unwrap().into()).unwrap();
        assert_eq!((index.from(), index.to(), read), (from, to, frames.to_vec()));
    }

    #[test]
    fn token() {
        let page = page!("join-token.md");
        let root = RootFingerprint::from_bytes([5; 32]);
        let token = JoinToken { tree_id: TREE, root, trust: 2, secret: [6; 16] };
        let text = token.to_string();
        let bytes = data_encoding::BASE64URL_NOPAD.decode(&text.as_bytes()["syncd1-".len()..]).unwrap();
        let fields = [
            (16, "tree_id"),
            (32, "fingerprint of the root key"),
            (4, "trust document 2"),
            (16, "secret"),
            (4, "checksum"),
        ];
        check(page, "token", &bytes, &fields);
        check(
            page,
            "secret-hash",
            &token.secret_hash(),
            &[(32, "hash of the secret, as the origin keeps it")],
        );
        assert!(page.contains(&format!("\n{text}\n")), "the page should have\n{text}");
        assert_eq!(text.parse(), Ok(token));
    }

    #[test]
    fn head() {
        let page = page!("head.md");
        let head = Head::of(&generation(), 1_700_000_001_000);
        let bytes = head.sign(&key());
        let fields = [
            (1, "version"),
            (16, "tree_id"),
            (4, "epoch 1"),
            (8, "number 3"),
            (4, "trust document 1"),
            (32, "root hash"),
            (8, "released"),
            (64, "signature, by the key with 32 bytes of 3"),
        ];
        assert_eq!(bytes.len(), HEAD_BYTES);
        check(page, "head", &bytes, &fields);
        let trust = example(page!("trust-document.md"), "document").unwrap();
        let trust = SignedTrust::verify(&trust, TREE, root_key().fingerprint()).unwrap();
        assert_eq!(Head::verify(&example(page, "head").unwrap(), trust.document()), Ok(head));
    }

    #[test]
    fn a_page_without_the_example_or_with_another_form_has_none() {
        let page = "text\n```text one\n0102 | a\n03\n```\n```text two\nno\n```\n";
        assert_eq!(example(page, "one"), Some(vec![1, 2, 3]));
        assert_eq!((example(page, "two"), example(page, "three")), (None, None));
    }
}
