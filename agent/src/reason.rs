//! What a person reads of an error.

use std::error::Error;

use syncd_shared::limits::REASON_MAX_BYTES;

/// The whole chain of causes on one line, outermost first, joined by ": ". At most [`REASON_MAX_BYTES`]; control
/// characters are escaped, since names from the tree may be in it.
pub fn of(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = match error.downcast_ref::<tonic::Status>() {
            Some(status) => status_text(status),
            None => error.to_string(),
        };
        // Some libraries repeat their cause in their own text.
        if !part.is_empty() && !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    bounded(&text)
}

/// What the origin, or the transport, says; the code where it says nothing.
fn status_text(status: &tonic::Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => message.to_owned(),
    }
}

/// One line of at most [`REASON_MAX_BYTES`].
pub fn bounded(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        let escaped: String = if c.is_control() { c.escape_default().collect() } else { c.into() };
        if line.len() + escaped.len() > REASON_MAX_BYTES {
            break;
        }
        line.push_str(&escaped);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("reading\nthe record")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_follow_on_one_line() {
        let error = Outer(std::io::Error::other("disk is gone"));
        assert_eq!(of(&error), "reading\\nthe record: disk is gone");
        assert_eq!(bounded(&"x".repeat(2 * REASON_MAX_BYTES)).len(), REASON_MAX_BYTES);
    }
}
