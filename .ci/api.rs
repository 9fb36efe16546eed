//! Lists the public interface of a crate, one line an item, out of the pages that rustdoc wrote: `target/api target/doc tallow`.
//!
//! `all.html` names the items; pages of items that are gone may still lie there, and are not read. Items hidden in the
//! documentation are not part of the interface. Types stand as rustdoc writes them, without their paths, but for
//! the `Error`s of the standard library. Of the automatic traits only `!Send` and `!Sync` are listed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::exit;

fn main() {
    let [_, doc, name] = std::env::args().collect::<Vec<_>>().try_into().expect("api FOLDER CRATE");
    let folder = Path::new(&doc).join(&name);
    let read = |page: &str| {
        fs::read_to_string(folder.join(page)).unwrap_or_else(|e| {
            eprintln!("{}: {e}", folder.join(page).display());
            exit(1)
        })
    };
    let (mut lines, mut modules) = (Vec::new(), BTreeSet::from([String::new()]));
    let all = read("all.html");
    let main = all.split("id=\"main-content\"").nth(1).unwrap_or_default();
    for page in main.split("<li><a href=\"").skip(1).filter_map(|rest| rest.split('"').next()) {
        let (module, file) = page.rsplit_once('/').unwrap_or(("", page));
        let item = file.split('.').nth(1).unwrap_or_default();
        // A module of items is public, and so are the modules around it.
        modules.extend(module.match_indices('/').map(|(at, _)| module[..at].to_string()).chain([module.to_string()]));
        let path = format!("{name}/{module}/{item}").replace("//", "/").replace('/', "::");
        item_lines(&path, &read(page), &mut lines);
    }
    if lines.is_empty() {
        eprintln!("{}: all.html names no item; has rustdoc changed its pages?", folder.display());
        exit(1);
    }
    for module in &modules {
        let path = format!("{name}::{}", module.replace('/', "::"));
        let path = path.trim_end_matches("::");
        lines.push(format!("{path}: pub mod"));
        let index = read(&format!("{module}/index.html").trim_start_matches('/').to_string());
        for reexport in index.split("id=\"reexport.").skip(1) {
            lines.push(format!("{path}: {}", text(between(reexport, "<code>", "</code>"))));
        }
    }
    lines.sort();
    lines.iter().for_each(|line| println!("{line}"));
}

fn item_lines(path: &str, page: &str, lines: &mut Vec<String>) {
    let page = page.split("id=\"main-content\"").nth(1).unwrap_or_default();
    let declared = text(between(page, "<pre class=\"rust item-decl\"><code>", "</code></pre>"));
    // Fields, variants and methods have lines of their own.
    let own_lines = ["struct ", "enum ", "union ", "trait "].iter().any(|kind| {
        let before = declared.split('{').next().unwrap_or_default();
        before.contains(&format!("pub {kind}")) || before.contains(&format!("pub unsafe {kind}"))
    });
    let private = declared.contains("/* private fields */") && declared.contains('{');
    let head = if own_lines { declared.split('{').next().unwrap_or_default().trim() } else { declared.as_str() };
    lines.push(format!("{path}: {head}{}", if private { " { /* private fields */ }" } else { "" }));

    if head.starts_with("pub type ") {
        return; // its page repeats the page of the type it names
    }

    // What a page says, in its order: its own; its traits; automatic traits; what everything has.
    let parts = ["id=\"deref-methods", "id=\"foreign-impls\"", "id=\"implementors\"", "id=\"trait-implementations\""];
    let parts = parts.iter().chain(&["id=\"synthetic-implementations\"", "id=\"blanket-implementations\""]);
    let mut cuts: Vec<(usize, &str)> = parts.filter_map(|part| page.find(part).map(|at| (at, *part))).collect();
    cuts.sort();
    let ends = cuts.iter().map(|cut| cut.0).chain([page.len()]).collect::<Vec<_>>();
    let own = &page[..ends[0]];
    let mut block = String::new(); // the `impl` that methods stand in, where it has parameters
    for section in own.split('<').filter_map(|tag| {
        let id = tag.strip_prefix("section id=\"").or_else(|| tag.strip_prefix("span id=\""))?;
        Some((id.split('"').next()?, &own[tag.as_ptr() as usize - own.as_ptr() as usize..]))
    }) {
        let (id, rest) = section;
        if id.starts_with("impl-") {
            block = header(rest);
            block = if block.contains('<') { format!(" [{block}]") } else { String::new() };
        } else if id.starts_with("structfield.") || (id.starts_with("variant.") && id.contains(".field.")) {
            let of = id.strip_prefix("variant.").and_then(|id| id.split('.').next());
            let of = of.map(|variant| format!("{variant}.")).unwrap_or_default();
            lines.push(format!("{path}: field {of}{}", text(between(rest, "<code>", "</code>"))));
        } else if id.starts_with("variant.") {
            lines.push(format!("{path}: variant {}", header(rest)));
        } else if ["method.", "tymethod.", "associatedtype.", "associatedconstant."].iter().any(|k| id.starts_with(k)) {
            let what = if id.starts_with("tymethod.") { "required " } else { "" };
            lines.push(format!("{path}{block}: {what}{}", header(rest)));
        }
    }
    for ((from, part), end) in cuts.iter().zip(&ends[1..]) {
        let part = part.trim_start_matches("id=\"").trim_end_matches('"');
        let mut block = String::new();
        for rest in page[*from..*end].split("<section id=\"").skip(1) {
            let shown = header(rest);
            let (of_traits, automatic) =
                (["trait-implementations", "foreign-impls"].contains(&part), part == "synthetic-implementations");
            if rest.starts_with("impl-") && (of_traits && !is_internal(&shown) || automatic && is_lost(&shown)) {
                lines.push(format!("{path}: {shown}"));
                block = shown;
            } else if rest.starts_with("associatedtype.") && part == "trait-implementations" {
                lines.push(format!("{path} [{block}]: {shown}"));
            }
        }
    }
}

fn is_internal(header: &str) -> bool {
    header.contains("StructuralPartialEq ")
}

fn is_lost(header: &str) -> bool {
    header.contains("!Send ") || header.contains("!Sync ")
}

fn header(rest: &str) -> String {
    let rest = between(rest, "class=\"code-header\">", "</section>");
    text(rest.split("</h3>").next().and_then(|rest| rest.split("</h4>").next()).unwrap_or_default())
}

fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    page.split_once(from).map_or("", |(_, rest)| rest.split(to).next().unwrap_or_default())
}

/// HTML without its tags, on one line.
fn text(html: &str) -> String {
    let mut plain = String::new();
    for (n, part) in
        html.replace("<div", " <div").replace("</div>", "</div> ").replace("<br>", " ").split('<').enumerate()
    {
        let (tag, rest) = if n == 0 { ("", part) } else { part.split_once('>').unwrap_or_default() };
        let path = between(tag, "title=\"", "\"").split(' ').next_back().unwrap_or_default();
        plain += if rest == "Error" && path.starts_with("std::") { path } else { rest };
    }
    let plain = plain.replace("&lt;", "<").replace("&gt;", ">").replace("&#60;", "<").replace("&#62;", ">");
    let plain = plain.replace("&quot;", "\"").replace("&#39;", "'").replace("&nbsp;", " ").replace("&amp;", "&");
    let plain = plain.replace('ⓘ', "").split_whitespace().collect::<Vec<_>>().join(" ");
    plain.replace("( ", "(").replace(", )", ")").replace(" )", ")").trim_end_matches(',').to_string()
}
