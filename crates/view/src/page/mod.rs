//! HTML pages. Each is one file with its style, script, data and pictures, and a policy that forbids all requests.

mod lookup;
mod plot;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::text::Lang;

/// A whole page. maud escapes `title` and `body`. `script` must be trusted.
fn shell(lang: Lang, title: &str, body: Markup, script: &str) -> String {
    let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:";
    let page = html! {
        (DOCTYPE)
        html lang=(lang.code()) {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(policy);
                meta name="generator" content=(concat!("tallow ", env!("CARGO_PKG_VERSION")));
                link rel="icon" href="data:,";
                title { (title) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            (body)
            @if !script.is_empty() { script { (PreEscaped(script)) } }
        }
    };
    page.into_string()
}
