//! Compares the arrows that ARCHITECTURE.md draws with the code: `rustc -O .ci/arrows.rs -o target/arrows && target/arrows`.
//!
//! A mermaid block whose first line is `%% packages` has the arrows between packages (their Cargo.toml, without dev-dependencies). One
//! that begins with `%% modules of FOLDER` has those between the top-level modules there: `a --> b & c` says that a uses b and c. `%% ground: x y` names modules that all
//! may use; they are drawn without arrows, and use nothing but one another. No modules may use one another in a circle. Tests are not looked at.

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
        let ground: Vec<&str> =
            block.lines().find_map(|line| line.trim().strip_prefix("%% ground:")).unwrap_or("").split_whitespace().collect();
        let (name, found) = if title == "%% packages" {
            ("packages".to_string(), packages())
        } else if let Some(folder) = title.strip_prefix("%% modules of ") {
            (folder.to_string(), modules(Path::new(folder)))
        } else {
            continue;
        };
        let drawn = drawn(block);
        let shown: Arrows = found.iter().filter(|(_, to)| !ground.contains(&to.as_str())).cloned().collect();
        let list = |arrows: &mut dyn Iterator<Item = &(String, String)>, what: &str, wrong: &mut Vec<String>| {
            wrong.extend(arrows.map(|(from, to)| format!("{name}: {from} --> {to} {what}")));
        };
        list(&mut drawn.difference(&shown), "is drawn, and not in the code", &mut wrong);
        list(&mut shown.difference(&drawn), "is in the code, and not drawn", &mut wrong);
        let mut up = found.iter().filter(|(from, to)| ground.contains(&from.as_str()) && !ground.contains(&to.as_str()));
        list(&mut up, "leaves the ground", &mut wrong);
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
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            let counts = section.ends_with("dependencies]") && !section.contains("dev-") && !section.contains("workspace");
            if counts && (dependency == "tallow" || dependency.starts_with("tallow-")) {
                arrows.insert((name.clone(), dependency.to_string()));
            }
        }
    }
    arrows
}

fn modules(folder: &Path) -> Arrows {
    let root = ["lib.rs", "main.rs"].iter().find_map(|name| fs::read_to_string(folder.join(name)).ok()).expect("a root");
    let root = code(&root);
    let mut items = BTreeMap::new(); // what the root hands on → the module that has it
    let mut names = BTreeSet::new();
    for line in root.split(';').map(str::trim) {
        let line = line.rsplit(']').next().unwrap_or(line).trim(); // without attributes
        if let Some(name) = line.strip_prefix("mod ").or(line.strip_prefix("pub mod ")).or(line.strip_prefix("pub(crate) mod ")) {
            names.insert(name.to_string());
        }
    }
    for paths in root.split("pub use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        for path in paths_of(paths) {
            let parts: Vec<&str> = path.split("::").collect();
            if names.contains(parts[0]) {
                items.insert(parts[parts.len() - 1].to_string(), parts[0].to_string());
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
        let text = code(&fs::read_to_string(&file).expect("a source"));
        let up = "super::".repeat(parts.len());
        for start in ["crate::", up.as_str()] {
            for (at, _) in text.match_indices(start) {
                // Not the tail of a longer path: `$crate::` is the same crate, `super::super::` is another module.
                let before = &text[..at];
                if before.ends_with("::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                    continue;
                }
                let rest = &text[at + start.len()..];
                for path in paths_of(rest) {
                    let first = path.split("::").next().unwrap_or_default();
                    let to = if names.contains(first) { Some(first) } else { items.get(first).map(String::as_str) };
                    if let Some(to) = to.filter(|to| *to != from) {
                        arrows.insert((from.clone(), to.to_string()));
                    }
                }
            }
        }
    }
    arrows
}

/// Whether a file is a module of tests: `#[cfg(…test…)] mod name;` stands in its parent.
fn is_test(folder: &Path, parts: &[String]) -> bool {
    (1..parts.len()).any(|depth| {
        let parent = folder.join(parts[..depth].join("/"));
        let text = fs::read_to_string(parent.join("mod.rs")).or_else(|_| fs::read_to_string(parent.with_extension("rs")));
        let text = text.unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.windows(2).any(|pair| {
            pair[0].starts_with("#[cfg") && pair[0].contains("test") && pair[1].ends_with(&format!("mod {};", parts[depth]))
        })
    })
}

/// A source without its comments, and without the module of tests at its foot.
fn code(text: &str) -> String {
    let mut kept = String::new();
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let next = lines.get(number + 1).copied().unwrap_or_default();
        if line.starts_with("#[cfg") && line.contains("test") && next.contains("mod ") && next.ends_with('{') {
            break;
        }
        kept += line.split("//").next().unwrap_or_default();
        kept.push('\n');
    }
    kept
}

/// `a::{b, c::d} as e` → `a::b`, `a::c::d`: the paths at the beginning of a text.
fn paths_of(text: &str) -> Vec<String> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(text.len());
    let head = &text[..end];
    let Some(inner) = text[end..].strip_prefix('{').filter(|_| head.is_empty() || head.ends_with("::")) else {
        return vec![head.to_string()];
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
                found.extend(paths_of(part).into_iter().map(|path| format!("{head}{path}")));
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
