//! The tree's own promises, read off the sources.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines above which a file must say why.
const LINES_MAX: usize = 700;

/// Longer files, and why each is not two.
const LONG: &[(&str, &str)] = &[];

/// Clock reads outside src/io/clock.rs, and why they have not moved there.
const OWN_CLOCK: &[(&str, &str)] = &[];

struct Source {
    /// From the repository's root.
    path: String,
    text: String,
}

impl Source {
    /// The lines without comments and without the tests at the end, numbered from 1.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines.map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }

    /// Every place of `words` in the code.
    fn places(&self, words: &[&str]) -> Vec<String> {
        let found = |line: &str| words.iter().any(|word| line.contains(word));
        self.code()
            .filter(|(_, line)| found(line))
            .map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim()))
            .collect()
    }

    /// The folder or file directly under src that it belongs to.
    fn folder(&self) -> Option<&str> {
        let inside = self.path.strip_prefix("src/")?;
        let folder = inside.split('/').next()?;
        Some(folder.strip_suffix(".rs").unwrap_or(folder))
    }
}

/// All Rust sources under `folders`.
fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push(Source { path, text });
        }
    }
    assert!(!found.is_empty(), "no sources under {folders:?}");
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

fn assert_none(promise: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{promise}, but:\n{}", broken.join("\n"));
}

#[test]
fn unsafe_stands_only_in_io() {
    let outside = sources(&["src"]);
    let outside = outside.iter().filter(|source| !source.path.starts_with("src/io/"));
    let words =
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "allow(unsafe_code)", "get_unchecked"];
    let places = outside.flat_map(|source| source.places(&words)).collect();
    assert_none("unsafe code stands only in src/io", places);
}

#[test]
fn clocks_are_read_only_in_io_clock() {
    let sources = sources(&["src"]);
    let others = sources.iter().filter(|source| source.path != "src/io/clock.rs");
    let words = ["clock_gettime", "Instant::now", "SystemTime::now", "gettimeofday", ".elapsed()"];
    let excused = |source: &Source| OWN_CLOCK.iter().any(|(path, _)| *path == source.path);
    let (excused, others): (Vec<_>, Vec<_>) = others.partition(|source| excused(source));
    let places = others.iter().flat_map(|source| source.places(&words));
    assert_none("src/io/clock.rs alone reads clocks", places.collect());
    let still = excused.iter().filter(|source| !source.places(&words).is_empty()).count();
    assert_eq!(still, OWN_CLOCK.len(), "a file needs no excuse any more: {OWN_CLOCK:?}");
}

/// The folders in the order of the table in src/lib.rs.
fn folder_order() -> Vec<String> {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    rows.filter_map(|row| row.split('`').next().map(str::to_owned)).collect()
}

/// What follows `crate::` in a line of code, once per name, also in `crate::{one::…, other::…}`.
fn crate_paths(line: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    line.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(group) => group.split(',').map(|item| name(item.trim())).collect(),
            None => vec![name(rest)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn the_folder_table_names_every_folder() {
    let order = folder_order();
    let mut named: Vec<_> = order.iter().map(String::as_str).collect();
    let sources = sources(&["src"]);
    let mut there: Vec<_> = sources.iter().filter_map(Source::folder).collect();
    there.retain(|folder| !["lib", "main"].contains(folder));
    there.dedup();
    named.sort_unstable();
    there.sort_unstable();
    there.dedup();
    assert_eq!(named, there);
}

#[test]
fn a_folder_uses_only_those_above_it() {
    let order = folder_order();
    let place = |folder: &str| order.iter().position(|named| named == folder);
    let mut broken = Vec::new();
    for source in sources(&["src"]) {
        let Some(own) = source.folder().and_then(place) else { continue };
        for (number, line) in source.code() {
            for used in crate_paths(line) {
                if place(&used).is_none_or(|used| used > own) {
                    broken.push(format!("{}:{number}: {}", source.path, line.trim()));
                }
            }
        }
    }
    assert_none("a folder uses only those above it in src/lib.rs", broken);
}

#[test]
fn crate_paths_are_found_in_lists_too() {
    assert_eq!(crate_paths("use crate::wire::ip::IpView;"), ["wire"]);
    assert_eq!(crate_paths("use crate::{time::Time, io::clock};"), ["time", "io"]);
    assert_eq!(crate_paths("fn work<D: crate::io::driver::Driver>() -> crate::time::Span"), ["io", "time"]);
    assert!(crate_paths("pub(crate) fn work() {}").is_empty());
}

#[test]
fn nothing_is_left_to_do() {
    let words = ["todo!", "unimplemented!", "dbg!", "FIXME", "XXX"];
    let sources = sources(&["src", "tests", "benches"]);
    let others = sources.iter().filter(|source| source.path != "tests/tidy.rs");
    assert_none("nothing is left to do", others.flat_map(|source| source.places(&words)).collect());
}

#[test]
fn every_file_opens_by_saying_where_it_stands() {
    let sources = sources(&["src", "tests", "benches"]);
    let silent = sources.iter().filter(|source| !source.text.starts_with("//! "));
    assert_none("every file opens with //!", silent.map(|source| source.path.clone()).collect());
}

#[test]
fn no_file_is_long_without_a_reason() {
    let sources = sources(&["src", "tests", "benches"]);
    let excused = |source: &Source| LONG.iter().any(|(path, _)| *path == source.path);
    let length = |source: &Source| source.text.lines().count();
    let long: Vec<_> = sources.iter().filter(|source| length(source) > LINES_MAX).collect();
    let broken = long.iter().filter(|source| !excused(source));
    assert_none(
        "files have at most 700 lines",
        broken.map(|source| format!("{}: {} lines", source.path, length(source))).collect(),
    );
    for (path, _) in LONG {
        assert!(long.iter().any(|source| source.path == *path), "{path} needs no excuse any more");
    }
}

/// rustdoc checks the links of the map in src/dataplane/mod.rs; nobody checks a README.
#[test]
fn functions_that_the_readme_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let Ok(readme) = fs::read_to_string(root.join("README.md")) else { return };
    let sources = sources(&["src"]);
    let code: String = sources.iter().map(|source| source.text.as_str()).collect();
    let mut broken = Vec::new();
    for quoted in readme.split('`').skip(1).step_by(2) {
        let exists = match quoted.rsplit_once("::") {
            _ if quoted.starts_with("src/") => root.join(quoted.split(':').next().unwrap()).exists(),
            Some((_, name)) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                ["fn ", "struct ", "enum ", "trait ", "mod "]
                    .iter()
                    .any(|kind| code.contains(&format!("{kind}{name}")))
            }
            _ => true,
        };
        if !exists {
            broken.push(quoted.to_owned());
        }
    }
    assert_none("what the README names exists", broken);
}
