//! Resolves users and groups of this machine, given by name or number.

/// Longest part of a name that an error repeats.
const SHOWN_MAX_CHARS: usize = 100;

/// The file has no such user or group. Accounts from other sources (LDAP, for example) must be given by
/// number.
#[derive(Debug, thiserror::Error)]
#[error("there is no {name:?} in {file}: give a number")]
pub struct UnknownAccountError {
    name: String,
    file: &'static str,
}

/// Numeric ID of the user `name`; digits are taken as the ID itself. Blocks.
pub fn user_id(name: &str) -> Result<u32, UnknownAccountError> {
    id(name, "/etc/passwd")
}

/// Numeric ID of the group `name`; digits are taken as the ID itself. Blocks.
pub fn group_id(name: &str) -> Result<u32, UnknownAccountError> {
    id(name, "/etc/group")
}

/// Returns the third field of the line that starts with `name`, as in passwd(5) and group(5). Blocks.
fn id(name: &str, file: &'static str) -> Result<u32, UnknownAccountError> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let lines = std::fs::read_to_string(file).unwrap_or_default();
    lines
        .lines()
        .map(|line| line.split(':'))
        .find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?)
        .ok_or_else(|| UnknownAccountError { name: name.chars().take(SHOWN_MAX_CHARS).collect(), file })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_names_or_numbers() {
        assert_eq!((user_id("root").unwrap(), group_id("root").unwrap(), user_id("33").unwrap()), (0, 0, 33));
        for bad in ["", "no-such-name-here", "-1", "4294967296"] {
            assert!(group_id(bad).unwrap_err().to_string().contains("/etc/group"), "{bad}");
        }
    }
}
