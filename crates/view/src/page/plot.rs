//! The HTML pages of plots: charts, and below them text and lists of rows.

use maud::{Markup, PreEscaped, html};

use super::super::scale::short;
use super::super::table_plot::Panel;
use super::super::text::Lang;
use super::super::{DatasetPlot, Figure, TablePlot};
use super::shell;
use crate::Result;

impl TablePlot {
    /// One self-contained HTML page with the charts and lists of the rows that moved. `name` is its title, such as a file name.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    pub fn page(&self, name: &str, lang: Lang) -> Result<String> {
        let (rows, columns) = self.shape;
        let below = html! {
            @if let Some([moved, shrunk, equal]) = self.counts() {
                h2 { (lang.of("What training touched", "训练碰到了哪些行")) }
                table {
                    (count(lang.of("trained", "训练过"), moved, rows))
                    (count(lang.of("only shrank by weight decay, never trained", "只被权重衰减缩短，从未训练"), shrunk, rows))
                    (count(lang.of("equal to the bit", "完全没变"), equal, rows))
                }
                h2 { (lang.of("Moved farthest", "移动最远的行")) }
                div.scroll { table {
                    tr { th { "token" } th.number { "id" } th.number { (lang.of("distance", "距离")) } }
                    @for (id, token, distance) in &self.farthest {
                        tr { td.token { (token) } td.number { (id) } td.number { (short(f64::from(*distance))) } }
                    }
                } }
                @if !self.untouched.is_empty() {
                    h2 { (lang.of("Never trained", "从未训练的行")) }
                    p { (lang.of("The first of them: ", "前面的一些：")) @for (i, (id, token)) in self.untouched.iter().enumerate() {
                        @if i > 0 { ", " } span.number { (id) } " " (token)
                    } @if shrunk + equal > self.untouched.len() { ", …" } }
                }
            }
        };
        let about = lang.of(format!("{rows} rows × {columns} columns."), format!("{rows} 行 × {columns} 列。"));
        page(name, &about, &self.panels(lang)?, below, lang)
    }
}

impl DatasetPlot {
    /// One self-contained HTML page with the charts. `name` is its title, such as a folder name.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    pub fn page(&self, name: &str, lang: Lang) -> Result<String> {
        let (tokens, touched) = (self.frequencies.iter().sum::<u64>(), self.frequencies.len());
        let documents: u64 = self.lengths.iter().sum();
        let about = lang.of(
            format!("{tokens} tokens in {documents} documents; {touched} of {} table rows occur.", self.table_rows),
            format!("{documents} 个文档，{tokens} 个 token；查找表的 {} 行中出现了 {touched} 行。", self.table_rows),
        );
        page(name, &about, &self.panels(lang), html! {}, lang)
    }
}

fn count(what: &str, rows: usize, of: usize) -> Markup {
    html! { tr { td { (what) } td.number { (rows) } td.number { (format!("{:.2} %", 100.0 * rows as f64 / of.max(1) as f64)) } } }
}

fn page(name: &str, about: &str, panels: &[Panel], below: Markup, lang: Lang) -> Result<String> {
    let figures = panels.iter().map(Figure::panel).collect::<Result<Vec<_>>>()?;
    let body = html! {
        body {
            main {
                header { h1 { (name) } p.grey { (about) } }
                div.figures {
                    @for figure in &figures {
                        figure.figure role="img" aria-label=(figure.title()) tabindex="0" { (PreEscaped(figure.markup())) }
                    }
                }
                (below)
            }
            footer { p { (lang.of("Made by tallow ", "由 tallow ")) (env!("CARGO_PKG_VERSION")) (lang.of(".", " 生成。")) } }
        }
    };
    Ok(shell(lang, name, body, ""))
}
