//! Changed paths as lines: written, read again, and merged with those of earlier activations.

use std::io::{self, BufRead, Write};

use syncd_shared::TreePath;

use super::Paths;

/// Encodes a path as a line: newline and backslash are escaped, other bytes are unchanged.
fn line(path: &TreePath) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.as_bytes().len() + 1);
    for byte in path.as_bytes() {
        match byte {
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\\' => out.extend_from_slice(b"\\\\"),
            other => out.push(*other),
        }
    }
    out.push(b'\n');
    out
}

/// Decodes a line to its path.
fn path_of(line: &[u8]) -> Option<TreePath> {
    let mut bytes = line.strip_suffix(b"\n").unwrap_or(line).iter();
    let mut path = Vec::with_capacity(line.len());
    while let Some(byte) = bytes.next() {
        path.push(match byte {
            b'\\' if bytes.next()? == &b'n' => b'\n',
            other => *other,
        });
    }
    TreePath::from_bytes(&path).ok()
}

/// Writes the paths as lines and merges in the lines of `earlier`, which are also in path order.
pub(crate) fn write_lines(
    out: &mut dyn Write,
    paths: &Paths<'_>,
    earlier: Option<&mut dyn BufRead>,
) -> io::Result<()> {
    let mut earlier = Lines { from: earlier, next: None };
    let mut written = earlier.advance();
    paths(&mut |path| {
        if written.is_ok() {
            written = earlier.write_up_to(path, out).and_then(|()| out.write_all(&line(path)));
        }
    })?;
    written?;
    while let Some((line, _)) = earlier.next.take() {
        out.write_all(&line)?;
        earlier.advance()?;
    }
    Ok(())
}

/// Lines of an earlier record.
struct Lines<'a> {
    from: Option<&'a mut dyn BufRead>,
    next: Option<(Vec<u8>, Option<TreePath>)>,
}

impl Lines<'_> {
    fn advance(&mut self) -> io::Result<()> {
        let mut line = Vec::new();
        if let Some(from) = &mut self.from {
            from.read_until(b'\n', &mut line)?;
        }
        self.next = (!line.is_empty()).then(|| {
            let path = path_of(&line);
            (line, path)
        });
        Ok(())
    }

    /// Writes the lines that come before `path`, and drops the line of `path` itself.
    fn write_up_to(&mut self, path: &TreePath, out: &mut dyn Write) -> io::Result<()> {
        while let Some((line, there)) =
            self.next.take_if(|(_, there)| there.as_ref().is_none_or(|t| t <= path))
        {
            if there.as_ref() != Some(path) {
                out.write_all(&line)?;
            }
            self.advance()?;
        }
        Ok(())
    }
}
