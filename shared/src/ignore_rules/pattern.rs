//! One line of a `.syncdignore`, in git's dialect (`dir.c` and `wildmatch.c` of git 2.47).
//!
//! Patterns match bytes, not characters: `?` is one byte. Patterns that git accepts but that can never match
//! (an unterminated set, an unknown class, a trailing backslash, `a//b`, `./a`, `a[/]b`) are rejected,
//! because the author meant something else.
//!
//! Matching walks the states of the pattern in parallel, so its time is at most the product of the lengths of
//! pattern and path.

use crate::limits::PATH_MAX_BYTES;

/// Reasons to reject a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// `[` without `]`.
    #[error("a set that begins with [ has no end: write \\[ for the character itself")]
    OpenSet,
    /// `[[:nonsense:]]`.
    #[error("a class [:...:] that git does not know")]
    Class,
    /// `[z-a]`.
    #[error("a range that ends before it begins matches nothing")]
    Range,
    /// `a[/]b`.
    #[error("a set with nothing but a slash matches nothing: write the slash without brackets")]
    Slash,
    /// A trailing backslash.
    #[error("a backslash at the end escapes nothing: write \\\\ for the character itself")]
    Backslash,
    /// `/`, `!`.
    #[error("it names nothing: write a name behind it, or remove the line")]
    Nothing,
    /// `a//b`, `./a`, `a/../b`.
    #[error("a component that is empty, . or .., which no path has: write the path without it")]
    Component,
    /// A NUL byte.
    #[error("a NUL byte, which no name has")]
    Nul,
    /// Longer than any path.
    #[error("it has {actual} bytes, more than any path ({PATH_MAX_BYTES})")]
    Length {
        /// Length in bytes.
        actual: usize,
    },
}

#[derive(Debug)]
pub(super) struct Pattern {
    /// Whether the pattern begins with `!`, and so includes what it matches.
    pub negated: bool,
    directories_only: bool,
    /// Whether the pattern contains a slash and is matched against the path below its file's directory,
    /// instead of the last name only.
    of_path: bool,
    /// Literal bytes before the first special character.
    prefix: Box<[u8]>,
    rest: Box<[State]>,
}

/// The input accepted at one position of a pattern.
#[derive(Debug)]
enum State {
    Byte(u8),
    /// One byte except a slash.
    Any,
    /// One byte of a set, never a slash.
    Set(Box<[bool; 256]>),
    /// Any bytes except slashes.
    Star,
    /// Any bytes.
    Everything,
    /// `**/`: also continues after the next two states (`Everything` and a slash).
    Directories,
}

impl Pattern {
    /// Parses a line without its line feed. `None` for an empty line or a comment.
    pub(super) fn parse(line: &[u8]) -> Result<Option<Self>, PatternError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.first() == Some(&b'#') {
            return Ok(None);
        }
        let line = without_trailing_spaces(line);
        if line.is_empty() {
            return Ok(None);
        }
        let (negated, line) = line.strip_prefix(b"!").map_or((false, line), |rest| (true, rest));
        let (directories_only, line) = line.strip_suffix(b"/").map_or((false, line), |rest| (true, rest));
        if line.contains(&0) {
            return Err(PatternError::Nul);
        }
        if line.len() > PATH_MAX_BYTES {
            return Err(PatternError::Length { actual: line.len() });
        }
        let of_path = line.contains(&b'/');
        let line = line.strip_prefix(b"/").unwrap_or(line);
        if line.is_empty() {
            return Err(PatternError::Nothing);
        }
        let special = line.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(line.len());
        let (prefix, rest) = line.split_at(special);
        let rest = parse_states(rest, of_path)?;
        if has_impossible_component(prefix, &rest) {
            return Err(PatternError::Component);
        }
        Ok(Some(Self { negated, directories_only, of_path, prefix: prefix.into(), rest: rest.into() }))
    }

    /// Whether the pattern matches an entry with this path below the directory of the pattern's file.
    pub(super) fn matches(&self, path: &[u8], is_directory: bool) -> bool {
        if self.directories_only && !is_directory {
            return false;
        }
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
        let text = if self.of_path { path } else { name };
        match text.strip_prefix(&*self.prefix) {
            Some(text) if self.rest.is_empty() => text.is_empty(),
            Some(text) => matches(&self.rest, text),
            None => false,
        }
    }
}

/// Keeps a space that is escaped with a backslash.
fn without_trailing_spaces(line: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        let width = if byte == b'\\' { 2 } else { 1 };
        at += width;
        if byte != b' ' {
            end = at.min(line.len());
        }
    }
    &line[..end]
}

fn parse_states(pattern: &[u8], of_path: bool) -> Result<Vec<State>, PatternError> {
    let mut states = Vec::new();
    let mut at = 0;
    while let Some(&byte) = pattern.get(at) {
        match byte {
            b'*' => {
                let begin = at;
                while pattern.get(at) == Some(&b'*') {
                    at += 1;
                }
                // As in git, a literal prefix before the first special character is ignored here: `a**/b`
                // matches `ab`.
                let after_slash = begin == 0 || pattern[begin - 1] == b'/';
                let rest = &pattern[at..];
                if of_path && at - begin > 1 && after_slash {
                    if rest.first() == Some(&b'/') {
                        states.extend([State::Directories, State::Everything]);
                        continue;
                    }
                    if rest.is_empty() || rest.starts_with(b"\\/") {
                        states.push(State::Everything);
                        continue;
                    }
                }
                states.push(State::Star);
            }
            b'?' => {
                states.push(State::Any);
                at += 1;
            }
            b'[' => {
                let (set, end) = parse_set(pattern, at + 1)?;
                states.push(State::Set(set));
                at = end;
            }
            b'\\' => {
                states.push(State::Byte(*pattern.get(at + 1).ok_or(PatternError::Backslash)?));
                at += 2;
            }
            byte => {
                states.push(State::Byte(byte));
                at += 1;
            }
        }
    }
    Ok(states)
}

/// Whether a pattern requires a component that no path has: empty, `.` or `..`.
fn has_impossible_component(prefix: &[u8], rest: &[State]) -> bool {
    let is_impossible = |literal: &Option<Vec<u8>>| {
        literal.as_ref().is_some_and(|bytes| matches!(&**bytes, b"" | b"." | b".."))
    };
    // Bytes of the component so far; `None` once it may match other bytes as well.
    let mut literal = Some(Vec::new());
    // In `a**/.`, which matches `a.`, the last component does not stand alone.
    let mut joins_next = false;
    let prefix: Vec<State> = prefix.iter().map(|byte| State::Byte(*byte)).collect();
    for state in prefix.iter().chain(rest) {
        match state {
            State::Byte(b'/') => {
                if is_impossible(&literal) {
                    return true;
                }
                literal = (!joins_next).then(Vec::new);
                joins_next = false;
            }
            State::Byte(byte) => literal.iter_mut().for_each(|bytes| bytes.push(*byte)),
            State::Directories => {
                joins_next = literal.as_ref().is_none_or(|bytes| !bytes.is_empty());
                literal = None;
            }
            State::Any | State::Set(_) | State::Star | State::Everything => literal = None,
        }
    }
    is_impossible(&literal)
}

/// Parses a set after its `[`. Also returns the position after its `]`.
fn parse_set(pattern: &[u8], begin: usize) -> Result<(Box<[bool; 256]>, usize), PatternError> {
    let byte = |at: usize| pattern.get(at).copied().ok_or(PatternError::OpenSet);
    let mut set = Box::new([false; 256]);
    let negated = matches!(byte(begin)?, b'!' | b'^');
    let mut at = begin + usize::from(negated);
    // Start of a possible range: the preceding byte, unless that ended a range or a class.
    let mut before: Option<u8> = None;
    let mut first = true;
    while first || byte(at)? != b']' {
        first = false;
        match byte(at)? {
            b'\\' => {
                at += 1;
                set[usize::from(byte(at)?)] = true;
                before = Some(byte(at)?);
            }
            b'-' if before.is_some() && byte(at + 1)? != b']' => {
                at += 1;
                if byte(at)? == b'\\' {
                    at += 1;
                }
                let (from, to) = (before.take().unwrap_or(0), byte(at)?);
                if from > to {
                    return Err(PatternError::Range);
                }
                set[usize::from(from)..=usize::from(to)].fill(true);
            }
            b'[' if byte(at + 1)? == b':' => {
                let name_at = at + 2;
                let rest = pattern.get(name_at..).unwrap_or_default();
                let length = rest.iter().position(|byte| *byte == b']').ok_or(PatternError::OpenSet)?;
                match rest[..length].strip_suffix(b":") {
                    Some(name) => {
                        add_class(&mut set, name)?;
                        before = None;
                        at = name_at + length;
                    }
                    // Not a class but an ordinary member.
                    None => {
                        set[usize::from(b'[')] = true;
                        before = Some(b'[');
                    }
                }
            }
            member => {
                set[usize::from(member)] = true;
                before = Some(member);
            }
        }
        at += 1;
    }
    if negated {
        set.iter_mut().for_each(|member| *member = !*member);
    }
    set[usize::from(b'/')] = false;
    if !set.contains(&true) {
        return Err(PatternError::Slash);
    }
    Ok((set, at + 1))
}

fn add_class(set: &mut [bool; 256], name: &[u8]) -> Result<(), PatternError> {
    let is_in = class(name).ok_or(PatternError::Class)?;
    (0..=u8::MAX).filter(|byte| is_in(*byte)).for_each(|byte| set[usize::from(byte)] = true);
    Ok(())
}

/// The classes that git knows. ASCII only.
fn class(name: &[u8]) -> Option<fn(u8) -> bool> {
    Some(match name {
        b"alnum" => |byte| byte.is_ascii_alphanumeric(),
        b"alpha" => |byte| byte.is_ascii_alphabetic(),
        b"blank" => |byte| matches!(byte, b' ' | b'\t'),
        b"cntrl" => |byte| byte.is_ascii_control(),
        b"digit" => |byte| byte.is_ascii_digit(),
        b"graph" => |byte| byte.is_ascii_graphic(),
        b"lower" => |byte| byte.is_ascii_lowercase(),
        b"print" => |byte| byte.is_ascii_graphic() || byte == b' ',
        b"punct" => |byte| byte.is_ascii_punctuation(),
        b"space" => |byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'),
        b"upper" => |byte| byte.is_ascii_uppercase(),
        b"xdigit" => |byte| byte.is_ascii_hexdigit(),
        _ => return None,
    })
}

/// Whether the states match all of `text`.
fn matches(states: &[State], text: &[u8]) -> bool {
    // A mark for each state that may consume the next byte, and one for the end.
    let mut here = vec![false; states.len() + 1];
    let mut next = here.clone();
    here[0] = true;
    pass_on(states, &mut here);
    for &byte in text {
        next.fill(false);
        for (at, state) in states.iter().enumerate().filter(|(at, _)| here[*at]) {
            match state {
                State::Byte(wanted) => next[at + 1] |= *wanted == byte,
                State::Any => next[at + 1] |= byte != b'/',
                State::Set(set) => next[at + 1] |= set[usize::from(byte)],
                State::Star => next[at] |= byte != b'/',
                State::Everything => next[at] = true,
                State::Directories => {}
            }
        }
        pass_on(states, &mut next);
        std::mem::swap(&mut here, &mut next);
    }
    here[states.len()]
}

/// Marks the states reachable without a byte. Transitions only lead forward, so one pass suffices.
fn pass_on(states: &[State], marks: &mut [bool]) {
    for (at, state) in states.iter().enumerate() {
        if !marks[at] {
            continue;
        }
        match state {
            State::Star | State::Everything => marks[at + 1] = true,
            State::Directories => {
                marks[at + 1] = true;
                // After `Everything` and the slash, which the parser added.
                marks[at + 3] = true;
            }
            State::Byte(_) | State::Any | State::Set(_) => {}
        }
    }
}
