//! Patterns of names → paths. The crate `glob` parses the patterns. The walk is our own, because that of `glob` 0.3 panics on
//! names that are not UTF-8.

use std::path::{Component, Path, PathBuf};

use glob::{MatchOptions, Pattern, PatternError};

use crate::{Error, Result};

/// Calls `each` with every path that matches `pattern`, sorted by name, each folder before its contents. A name that is not UTF-8
/// is matched with U+FFFD in place of the invalid bytes.
pub(super) fn matches(pattern: &str, each: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let bad = |e: PatternError| Error::Config(format!("{pattern} is not a pattern: {e}"));
    Pattern::new(pattern).map_err(bad)?;
    let beginning = |part: &Component| matches!(part, Component::Prefix(_) | Component::RootDir);
    let root: PathBuf = Path::new(pattern).components().take_while(beginning).collect();
    let rest = pattern.get(root.as_os_str().len()..).unwrap_or_default();
    let names = rest.split_terminator(std::path::is_separator).map(Pattern::new);
    let names = names.collect::<std::result::Result<Vec<_>, _>>().map_err(bad)?;
    let folders_only = pattern.ends_with(std::path::is_separator);
    let mut each = |path: &Path| if folders_only && !path.is_dir() { Ok(()) } else { each(path) };
    below(&root, &names, &mut each)
}

type Each<'e> = dyn FnMut(&Path) -> Result<()> + 'e;

/// Matches the paths in `folder` against `names`, one pattern per path component.
fn below(folder: &Path, names: &[Pattern], each: &mut Each) -> Result<()> {
    let Some((name, rest)) = names.split_first() else { return each(folder) };
    if name.as_str().contains(['*', '?', '[']) {
        return entries(folder)?.iter().try_for_each(|path| entry(path, names, each));
    }
    let path = if folder == "." { PathBuf::from(name.as_str()) } else { folder.join(name.as_str()) };
    match std::fs::symlink_metadata(&path) {
        Ok(_) => below(&path, rest, each),
        Err(_) => Ok(()),
    }
}

/// Matches `path` and the paths below it. `names` begins with the pattern for the name of `path`.
fn entry(path: &Path, names: &[Pattern], each: &mut Each) -> Result<()> {
    let after = names.iter().position(|name| name.as_str() != "**").unwrap_or(names.len());
    if after == 0 {
        return named(path, names, each);
    }
    // `**` matches any number of folders that are not hidden.
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let folder = path.is_dir() && !hidden;
    match after == names.len() {
        true if folder => each(path)?,
        true => (),
        false => named(path, &names[after..], each)?,
    }
    let inside = if folder { entries(path)? } else { Vec::new() };
    inside.iter().try_for_each(|path| entry(path, &names[after - 1..], each))
}

/// If the first of `names` matches the name of `path`, matches the rest of them below it.
fn named(path: &Path, names: &[Pattern], each: &mut Each) -> Result<()> {
    let options = MatchOptions { require_literal_leading_dot: true, ..Default::default() };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match names.split_first() {
        Some((first, rest)) if first.matches_with(&name, options) => below(path, rest, each),
        _ => Ok(()),
    }
}

/// The paths in a folder, sorted by name. Empty if it is not a folder.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !read.is_dir() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(read).map_err(|e| Error::io(read, e))? {
        names.push(entry.map_err(|e| Error::io(read, e))?.file_name());
    }
    names.sort();
    Ok(names.iter().map(|name| if folder == "." { PathBuf::from(name) } else { folder.join(name) }).collect())
}
