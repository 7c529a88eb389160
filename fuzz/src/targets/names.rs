//! Tokens, names and paths.

use arbitrary::{Result, Unstructured};
use syncd_runtime::rate::Rate;
use syncd_shared::identity::{AgentName, JoinToken, RootFingerprint};
use syncd_shared::{Component, ContentHash, TreeId, TreePath};

use crate::mutation::mutate;
use crate::values;

/// A join token, and other values given as one word of text.
pub(super) fn token(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string(), text.trim(), "one text for a token");
    }
    if let Ok(id) = text.parse::<TreeId>() {
        assert_eq!(id.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(hash) = text.parse::<ContentHash>() {
        assert_eq!(hash.to_string(), text.to_ascii_lowercase());
    }
    if let Ok(name) = text.parse::<AgentName>() {
        assert_eq!(name.as_str(), text);
    }
    let _ = text.parse::<Rate>();
}

pub(super) fn any_token(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let text = match u.int_in_range(0..=3u8)? {
        0 => format!("{}{}", u.arbitrary::<u32>()?, u.choose(&["", "K", "M", "G", "MiB", "kbit", "T", "E"])?),
        1 => ContentHash::from_bytes(u.arbitrary()?).to_string(),
        _ => JoinToken {
            tree_id: TreeId::from_bytes(u.arbitrary()?),
            root: RootFingerprint::from_bytes(u.arbitrary()?),
            trust: u.arbitrary()?,
            secret: u.arbitrary()?,
        }
        .to_string(),
    };
    mutate(u, text.into_bytes())
}

/// Two paths separated by 0xfe.
pub(super) fn path(input: &[u8]) {
    let mut halves = input.splitn(2, |byte| *byte == 0xfe);
    let (first, second) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
    if let Ok(component) = Component::new(first) {
        assert!(!first.is_empty() && !first.contains(&b'/') && !first.contains(&0) && first.len() <= 255);
        assert!(first != b"." && first != b"..");
        assert!(!component.to_string().chars().any(char::is_control), "escaped for people");
    }
    let (Ok(a), Ok(b)) = (TreePath::from_bytes(first), TreePath::from_bytes(second)) else { return };
    assert_eq!(a.as_bytes(), first);
    assert!(!a.to_string().chars().any(char::is_control), "escaped for people");
    let mut again = TreePath::root();
    for component in a.components() {
        again = again.join(&component).expect("a path's own components");
    }
    assert_eq!(again, a);
    assert_eq!(a.depth(), a.components().count());
    assert_eq!(a.cmp(&b), a.components().cmp(b.components()), "sorted as their components");
    if let Some((parent, name)) = a.split_last() {
        assert!(a.starts_with(&parent) && !parent.starts_with(&a));
        assert_eq!(parent.join(&name).expect("it was one"), a);
        assert_eq!(a.rebase(&parent, &b).map(|moved| moved.as_bytes().len()), Some(joined(&b, &name)));
    }
    assert_eq!(a.rebase(&b, &b), a.starts_with(&b).then(|| a.clone()));
}

fn joined(parent: &TreePath, name: &Component) -> usize {
    parent.as_bytes().len() + usize::from(!parent.is_root()) + name.as_bytes().len()
}

pub(super) fn any_path(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    for half in 0..2 {
        if half == 1 {
            out.push(0xfe);
        }
        let depth = if u.ratio(1, 10)? { u.int_in_range(60..=70)? } else { u.int_in_range(0..=5)? };
        let names = (0..depth).map(|_| values::name(u)).collect::<Result<Vec<_>>>()?;
        out.extend(names.join(&b'/'));
    }
    mutate(u, out)
}
