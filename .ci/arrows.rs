//! Compares the arrows that ARCHITECTURE.md draws with the code: `rustc -O .ci/arrows.rs -o target/arrows && target/arrows`.
//!
//! A mermaid block whose first line is `%% packages` has the arrows between packages (their Cargo.toml, without dev-dependencies). One
//! that begins with `%% modules of FOLDER` has those between the top-level modules there: `a --> b & c` says that a uses b and c. `%% ground: x y` names modules that all
//! may use; they are drawn without arrows, and use nothing but one another. `%% never: a --> b` forbids an arrow, drawn or not. No modules may use one another
//! in a circle, and every module is in the picture. Tests are not looked at. Ways of writing that would hide an arrow (`use crate::*`, `crate as x`, …) are refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

type Arrows = BTreeSet<(String, String)>;

fn main() -> ExitCode {
    let page = fs::read_to_string("ARCHITECTURE.md").expect("ARCHITECTURE.md");
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for block in page.split("```mermaid\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        let title = block.lines().next().unwrap_or_default();
        let ground: Vec<&str> = block
            .lines()
            .find_map(|line| line.trim().strip_prefix("%% ground:"))
            .unwrap_or("")
            .split_whitespace()
            .collect();
        let (name, found) = if title == "%% packages" {
            ("packages".to_string(), packages())
        } else if let Some(folder) = title.strip_prefix("%% modules of ") {
            let (names, found) = modules(Path::new(folder), &mut wrong);
            let words: BTreeSet<&str> = block.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            let absent = names.iter().filter(|name| !words.contains(name.as_str()));
            wrong.extend(absent.map(|name| format!("{folder}: the module {name} is not in the picture")));
            (folder.to_string(), found)
        } else {
            continue;
        };
        let never: String =
            block.lines().filter_map(|line| line.trim().strip_prefix("%% never:")).map(|l| format!("{l}\n")).collect();
        let never = drawn(&never);
        let drawn = drawn(
            &block.lines().filter(|line| !line.trim().starts_with("%%")).map(|l| format!("{l}\n")).collect::<String>(),
        );
        let shown: Arrows = found.iter().filter(|(_, to)| !ground.contains(&to.as_str())).cloned().collect();
        let list = |arrows: &mut dyn Iterator<Item = &(String, String)>, what: &str, wrong: &mut Vec<String>| {
            wrong.extend(arrows.map(|(from, to)| format!("{name}: {from} --> {to} {what}")));
        };
        list(&mut drawn.difference(&shown), "is drawn, and not in the code", &mut wrong);
        list(&mut shown.difference(&drawn), "is in the code, and not drawn", &mut wrong);
        let mut up =
            found.iter().filter(|(from, to)| ground.contains(&from.as_str()) && !ground.contains(&to.as_str()));
        list(&mut up, "leaves the ground", &mut wrong);
        list(&mut never.intersection(&found), "is forbidden", &mut wrong);
        wrong.extend(circle(&found).map(|circle| format!("{name}: a circle: {}", circle.join(" --> "))));
        println!("{name}: {} arrows as they are drawn, {} more to the ground", shown.len(), found.len() - shown.len());
        seen.insert(name);
    }
    for name in ["packages", "src", "crates/text/src", "crates/view/src", "crates/cli/src"] {
        if !seen.contains(name) {
            wrong.push(format!("ARCHITECTURE.md has no picture of {name}"));
        }
    }
    wrong.iter().for_each(|line| println!("{line}"));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn drawn(block: &str) -> Arrows {
    let mut arrows = Arrows::new();
    for (from, to) in block.lines().filter_map(|line| line.split_once("-->")) {
        // A name may have a label: `text["tallow-text"]`.
        let names = |side: &str| -> Vec<String> {
            side.split('&').map(|name| name.trim().split('[').next().unwrap_or_default().to_string()).collect()
        };
        for from in names(from) {
            arrows.extend(names(to).into_iter().map(|to| (from.clone(), to)));
        }
    }
    arrows
}

fn packages() -> Arrows {
    let mut arrows = Arrows::new();
    let mut folders = vec![PathBuf::from(".")];
    folders.extend(fs::read_dir("crates").expect("crates").map(|entry| entry.unwrap().path()));
    for folder in folders {
        let (mut section, mut name) = (String::new(), String::new());
        for line in fs::read_to_string(folder.join("Cargo.toml")).expect("Cargo.toml").lines() {
            if line.starts_with('[') {
                section = line.to_string();
            }
            if let (Some(value), "[package]") = (line.strip_prefix("name = "), section.as_str()) {
                name = value.trim_matches('"').to_string();
            }
            // `x = …` in a section of dependencies, `[dependencies.x]`, `y = { package = "x" }`.
            let line = line.split('#').next().unwrap_or_default();
            let counts =
                section.contains("dependencies") && !section.contains("dev-") && !section.contains("workspace");
            let words = line.split(|c: char| !(c.is_alphanumeric() || c == '-' || c == '_'));
            for dependency in words.filter(|word| counts && (*word == "tallow" || word.starts_with("tallow-"))) {
                arrows.insert((name.clone(), dependency.to_string()));
            }
        }
    }
    arrows
}

fn modules(folder: &Path, wrong: &mut Vec<String>) -> (BTreeSet<String>, Arrows) {
    let root =
        ["lib.rs", "main.rs"].iter().find_map(|name| fs::read_to_string(folder.join(name)).ok()).expect("a root");
    let root = code(&root);
    let mut items = BTreeMap::new(); // what the root re-exports → the module that has it
    let mut names = BTreeSet::new();
    for line in root.split(';').map(str::trim) {
        let line = line.rsplit(']').next().unwrap_or(line).trim(); // without attributes
        let line = line.strip_prefix("pub").map_or(line, |rest| {
            rest.strip_prefix('(').map_or(rest, |rest| rest.split_once(')').map_or("", |(_, rest)| rest))
        });
        if let Some(name) = line.trim().strip_prefix("mod ") {
            names.insert(name.to_string());
        }
    }
    for paths in root.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        for (path, name) in paths_of(paths) {
            let module = path.split("::").next().unwrap_or_default();
            if names.contains(module) {
                if name.is_empty() {
                    wrong.push(format!("{}: the root re-exports {path}*: name what it re-exports", folder.display()));
                }
                items.insert(name, module.to_string());
            }
        }
    }
    let mut arrows = Arrows::new();
    let mut files = Vec::new();
    walk(folder, &mut files);
    for file in files {
        let inner = file.strip_prefix(folder).expect("it lies there");
        let mut parts: Vec<String> =
            inner.with_extension("").components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
        if parts.last().is_some_and(|name| name == "mod") {
            parts.pop();
        }
        let from = parts[0].clone();
        if !names.contains(&from) || is_test(folder, &parts) {
            continue;
        }
        let source = fs::read_to_string(&file).expect("a source");
        let text = code(&source);
        let hides = [
            "use crate::*",
            "use crate as",
            "crate::{self as",
            "crate::r#",
            "extern crate",
            "super::{super",
            "self::super",
        ];
        wrong.extend(
            hides
                .iter()
                .filter(|form| text.contains(**form))
                .map(|form| format!("{}: `{form}` hides an arrow", file.display())),
        );
        let lines: Vec<&str> = source.lines().collect();
        let elsewhere =
            lines.windows(2).any(|pair| pair[1].trim_start().starts_with("#[path") && !pair[0].contains("test"));
        wrong.extend(elsewhere.then(|| format!("{}: `#[path]` hides a module", file.display())));
        let up = "super::".repeat(parts.len());
        for start in ["crate::", up.as_str()] {
            for (at, _) in text.match_indices(start) {
                // Not the tail of a longer path: `$crate::` is the same crate, `super::super::` is another module.
                let before = &text[..at];
                if before.ends_with("::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let rest = &text[at + start.len()..];
                for (path, _) in paths_of(rest) {
                    let first = path.split("::").next().unwrap_or_default();
                    let to = if names.contains(first) { Some(first) } else { items.get(first).map(String::as_str) };
                    if let Some(to) = to.filter(|to| *to != from) {
                        arrows.insert((from.clone(), to.to_string()));
                    }
                }
            }
        }
    }
    (names, arrows)
}

/// Whether a file is a module of tests: `#[cfg(…test…)] mod name;` stands in its parent.
fn is_test(folder: &Path, parts: &[String]) -> bool {
    (1..parts.len()).any(|depth| {
        let parent = folder.join(parts[..depth].join("/"));
        let text =
            fs::read_to_string(parent.join("mod.rs")).or_else(|_| fs::read_to_string(parent.with_extension("rs")));
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.windows(2).any(|pair| is_of_tests(pair[0]) && pair[1].ends_with(&format!("mod {};", parts[depth])))
    })
}

fn is_of_tests(line: &str) -> bool {
    line.trim_start().starts_with("#[cfg")
        && line.contains("test")
        && !["not(test)", "any("].iter().any(|other| line.contains(other))
}

/// A source without its comments, and without its modules of tests.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let opens = |next: &&str| next.contains("mod ") && next.ends_with('{');
        if is_of_tests(line) && lines.peek().is_some_and(opens) {
            let indent = line.len() - line.trim_start().len();
            let end = format!("{}}}", &line[..indent]);
            lines.by_ref().find(|line| *line == end);
            continue;
        }
        kept += without_comment(line);
        kept.push('\n');
    }
    kept
}

fn without_comment(line: &str) -> &str {
    let (mut in_text, mut before) = (false, ' ');
    for (at, c) in line.char_indices() {
        match c {
            '"' if before != '\\' && before != '\'' => in_text = !in_text,
            '/' if !in_text && line[at..].starts_with("//") => return &line[..at],
            _ => (),
        }
        before = c;
    }
    line
}

/// `a::{b, c::d as e}` → (`a::b`, `b`), (`a::c::d`, `e`): the paths at the beginning of a text, and what they are called here. A
/// name is empty where everything is meant (`a::*`).
fn paths_of(text: &str) -> Vec<(String, String)> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let head = &text[..end];
    let Some(inner) = text[end..].strip_prefix('{').filter(|_| head.is_empty() || head.ends_with("::")) else {
        let own = head.rsplit("::").next().unwrap_or_default();
        let name = text[end..]
            .strip_prefix(" as ")
            .map_or(own, |rest| rest.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or(own));
        return vec![(head.to_string(), name.to_string())];
    };
    let (mut depth, mut start, mut found) = (1, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => (),
        }
        if (c == ',' && depth == 1) || depth == 0 {
            let part = inner[start..at].trim();
            if !part.is_empty() {
                found.extend(paths_of(part).into_iter().map(|(path, name)| (format!("{head}{path}"), name)));
            }
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// A circle, if there is one.
fn circle(arrows: &Arrows) -> Option<Vec<String>> {
    fn visit(at: &str, arrows: &Arrows, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        if let Some(first) = way.iter().position(|name| name == at) {
            return Some(way[first..].iter().cloned().chain([at.to_string()]).collect());
        }
        if !done.insert(at.to_string()) {
            return None;
        }
        way.push(at.to_string());
        let found = arrows.iter().filter(|(from, _)| from == at).find_map(|(_, to)| visit(to, arrows, way, done));
        way.pop();
        found
    }
    let mut done = BTreeSet::new();
    arrows.iter().find_map(|(from, _)| visit(from, arrows, &mut Vec::new(), &mut done))
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
}
