//! The HTML page of a look-up.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use maud::{Markup, PreEscaped, html};
use resvg::tiny_skia::{ColorU8, Pixmap};
use serde::Serialize;

use super::super::figure::failed;
use super::super::scale::{Diverging, short};
use super::super::text::{Lang, hex, one_line, plural, shorten, visible};
use super::super::{Lookup, Piece, shown_columns};
use super::shell;
use crate::Result;

/// The most characters, tokens and numbers of a page. More would make it slow and larger than 5 MB.
const CHARACTERS: usize = 20_000;
const TOKENS: usize = 4000;
const VALUES: usize = 200_000;
/// The most pieces for which lines from the table to the matrix are drawn, and nothing scrolls.
const SHORT: usize = 64;

/// Data of the script. Texts are already escaped to one line.
#[derive(Serialize)]
struct Data<'a> {
    pieces: Vec<PieceData>,
    /// The columns that are shown.
    columns: &'a [usize],
    /// The values of each id's row in those columns.
    rows: BTreeMap<u32, Vec<Number>>,
    say: BTreeMap<&'static str, &'static str>,
}

#[derive(Serialize)]
struct PieceData {
    id: u32,
    label: String,
    bytes: String,
}

/// A value for JSON: the shortest decimal that parses back to the same f32. JSON has no infinities and no NaN, so these are strings.
#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Finite(f32),
    Other(String),
}

impl Lookup {
    /// One self-contained HTML page without network requests. It shows the sentence, its pieces, their ids, their rows in the table, and
    /// the matrix as a heat map. The piece under the pointer or the keyboard focus is highlighted in all parts, with its exact values.
    /// The page also works without a script, in print and with a screen reader, and follows the light or dark theme.
    ///
    /// Only the first 4000 tokens are shown. Of more than 200 000 values, only the first and the last columns are shown. The page says so.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    ///
    /// # Cost
    /// About 70 kB for a sentence of 16 tokens, 1.5 MB for 2000 tokens at d_model 64.
    pub fn page(&self, lang: Lang) -> Result<String> {
        let pieces = &self.pieces[..self.pieces.len().min(TOKENS)];
        let mut rows: BTreeMap<u32, &[f32]> = BTreeMap::new();
        for (piece, values) in pieces.iter().zip(&self.values) {
            rows.insert(piece.id, values);
        }
        let most = (VALUES / rows.len().max(1)).max(2);
        let ends = if self.d_model <= most { self.d_model } else { most / 2 };
        let columns: Vec<usize> = shown_columns(self.d_model, ends).into_iter().flatten().collect();
        let scale = Diverging::of(self.values.iter().flatten());
        let title = lang.of("Digits become a matrix", "数字变矩阵");
        let body = html! {
            body.long[pieces.len() > SHORT] style=(self.variables(&rows, &columns, scale)?) {
                main {
                    header {
                        h1 { (title) }
                        p.sentence tabindex="0" aria-label=(lang.of("The text", "文字")) { (self.sentence()) }
                        p.grey { (self.counts(pieces, &columns, lang)) }
                    }
                    (steps(self, lang))
                    section.from-2 {
                        h2 { (lang.of("The pieces (tokens) and their ids", "片段（token）和它们的编号")) }
                        (chips(pieces, lang))
                    }
                    section.from-4 {
                        h2 { (lang.of("The table, the rows that are fetched, and the matrix", "查找表、取出的行和矩阵")) }
                        (self.stage(pieces, &rows, &columns, scale, lang))
                    }
                    section.detail aria-label=(lang.of("Exact values", "精确的数值")) {
                        p #what aria-live="polite" {}
                        p.number #cell {}
                        ol.values.number #values tabindex="0" aria-label=(lang.of("The row's values", "这一行的数值")) {}
                    }
                }
                footer {
                    p { (lang.of("Made by tallow ", "由 tallow ")) (env!("CARGO_PKG_VERSION")) (lang.of("; ids of ", " 生成；编号来自 ")) (self.tokenizer) (lang.of(".", "。")) }
                }
                script #data type="application/json" { (PreEscaped(json(pieces, &rows, &columns, lang)?)) }
            }
        };
        Ok(shell(lang, title, body, include_str!("lookup.js")))
    }

    /// The text, cut to the most characters of a page.
    fn sentence(&self) -> String {
        let mut start: String = self.text.chars().take(CHARACTERS).collect();
        if start.len() < self.text.len() {
            start.push('…');
        }
        one_line(&start)
    }

    fn counts(&self, pieces: &[Piece], columns: &[usize], lang: Lang) -> String {
        let (characters, tokens, width) = (self.text.chars().count(), self.pieces.len(), self.d_model);
        let mut line = lang.of(
            format!(
                "{} → {} → {} of {}: a {tokens} × {width} matrix.",
                plural(characters, "character"),
                plural(tokens, "token"),
                plural(tokens, "row"),
                plural(width, "number")
            ),
            format!(
                "{characters} 个字符 → {tokens} 个 token → {tokens} 行，每行 {width} 个数：{tokens} × {width} 的矩阵。"
            ),
        );
        if pieces.len() < tokens {
            let shown = pieces.len();
            line += &lang.of(format!(" The first {shown} tokens are shown."), format!("只画出前 {shown} 个 token。"));
        }
        if columns.len() < width {
            let half = columns.len() / 2;
            line += &lang.of(
                format!(" The first and the last {half} columns are shown."),
                format!("只画出最前和最后的各 {half} 列。"),
            );
        }
        line
    }

    /// CSS variables: sizes, the heat map as an image with one pixel per value, and the colours of the scale.
    fn variables(&self, rows: &BTreeMap<u32, &[f32]>, columns: &[usize], scale: Diverging) -> Result<String> {
        let mut sprite = Pixmap::new(columns.len().max(1) as u32, rows.len().max(1) as u32)
            .ok_or_else(|| failed(format!("{} x {} values", rows.len(), columns.len())))?;
        let values = rows.values().flat_map(|row| columns.iter().map(|column| row[*column]));
        for (pixel, value) in sprite.pixels_mut().iter_mut().zip(values) {
            let colour = scale.colour(value);
            *pixel = ColorU8::from_rgba(colour.0, colour.1, colour.2, 255).premultiply();
        }
        let image = BASE64.encode(sprite.encode_png().map_err(failed)?);
        let colours: Vec<String> = (-8..=8)
            .map(|i| scale.colour(scale.limit * i as f32 / 8.0))
            .map(|c| format!("rgb({} {} {})", c.0, c.1, c.2))
            .collect();
        let places = self.pieces.len().clamp(10, TOKENS);
        Ok(format!(
            "--height:calc({places} * var(--row));--tall:calc({} * var(--row));--part:calc(-1 * var(--row));\
             --colours:linear-gradient(90deg,{});--sprite:url(data:image/png;base64,{image})",
            rows.len(),
            colours.join(",")
        ))
    }

    fn stage(
        &self,
        pieces: &[Piece],
        rows: &BTreeMap<u32, &[f32]>,
        columns: &[usize],
        scale: Diverging,
        lang: Lang,
    ) -> Markup {
        let height = pieces.len().max(10);
        let share = |id: u32| (f64::from(id) + 0.5) / self.rows.max(1) as f64;
        let place: BTreeMap<u32, usize> = rows.keys().enumerate().map(|(place, id)| (*id, place)).collect();
        let heat_map = lang.of(
            format!(
                "Heat map of {} rows and {} columns; choose a piece for its exact values",
                pieces.len(),
                self.d_model
            ),
            format!("{} 行 {} 列的热图；选择一个片段可看精确数值", pieces.len(), self.d_model),
        );
        html! {
            div.stage {
                div.heads {
                    span.table-head { (lang.of("look-up table", "查找表")) br; (self.rows) " × " (self.d_model) }
                    span.matrix-head.from-5 { (lang.of("matrix", "矩阵")) " context_length " (self.pieces.len()) " × d_model " (self.d_model) }
                }
                div.ends.number { span { "0" } span { (self.rows.saturating_sub(1)) } }
                div.table role="img" aria-label=(lang.of(
                    format!("The table of {} rows; {} of them are fetched", self.rows, rows.len()),
                    format!("{} 行的查找表，取出其中 {} 行", self.rows, rows.len()),
                )) {
                    @for id in rows.keys() { i.tick data-id=(id) style=(format!("top:{:.3}%", 100.0 * share(*id))) {} }
                }
                svg.lines viewBox=(format!("0 0 100 {height}")) preserveAspectRatio="none" aria-hidden="true" {
                    @if pieces.len() <= SHORT {
                        @for (i, piece) in pieces.iter().enumerate() {
                            path.from-5 data-id=(piece.id) data-i=(i)
                                d=(format!("M0 {:.3} L100 {}.5", share(piece.id) * height as f64, i)) {}
                        }
                    }
                }
                div.matrix.from-5 tabindex=[(pieces.len() > SHORT).then_some("0")] role="img" aria-label=(heat_map) {
                    div.rows {
                        @for (i, piece) in pieces.iter().enumerate() {
                            div.row data-id=(piece.id) data-i=(i) {
                                span.text { (shorten(&piece.label(), 10)) }
                                span.number { (piece.id) }
                                div.strip style=(format!("--i:{}", place.get(&piece.id).unwrap_or(&0))) {}
                            }
                        }
                        @if let (Some(first), Some(last)) = (columns.first(), columns.last()) {
                            div.axis.number { span { (first) } span { (last) } }
                        }
                    }
                }
            }
            div.scale.from-5 {
                span { (lang.of("value", "数值")) }
                div.bar {
                    div.colours {}
                    div.marks.number { @for mark in scale.marks().into_iter().rev() { span { (short(mark.into())) } } }
                }
            }
        }
    }
}

/// The steps of the lesson.
fn steps(lookup: &Lookup, lang: Lang) -> Markup {
    let Lookup { rows, d_model, pieces, .. } = lookup;
    let tokens = pieces.len();
    let split = pieces.iter().any(|piece| piece.of > 1);
    let told: [(&str, String); 6] = match lang {
        Lang::En => [
            ("The text.", "A model computes with numbers, so the text must become numbers first.".to_string()),
            (
                "Pieces.",
                format!(
                    "The tokenizer cuts the text into {}, its tokens.{}",
                    plural(tokens, "piece"),
                    if split { " A character that is no token of its own is cut into bytes; its parts are joined here." } else { "" }
                ),
            ),
            ("Ids.", "Every piece has a number in the vocabulary: its id. The number says which token it is, and nothing about its meaning.".to_string()),
            (
                "The look-up.",
                format!("The id is the number of a row. The table has {rows} rows, one for each token, of {d_model} small numbers, random before training. Each piece's row is pulled out; the same piece always fetches the same row."),
            ),
            (
                "The matrix.",
                format!("The rows, one below the other in the order of the text, are a matrix of context_length {tokens} by d_model {d_model}. Training will change its rows in the table."),
            ),
            ("Next: position.", "A row does not know where in the text it stands. The next stage adds that: positional encoding.".to_string()),
        ],
        Lang::Zh => [
            ("文字。", "模型只会计算数字，所以文字要先变成数字。".to_string()),
            (
                "片段。",
                format!(
                    "分词器把文字切成 {tokens} 个片段，也就是 token。{}",
                    if split { "词汇表里没有的字会按字节切开，它的几部分在这里连在一起。" } else { "" }
                ),
            ),
            ("编号。", "每个片段在词汇表里有一个编号（id）。编号只说明它是哪一个 token，不表示它的意思。".to_string()),
            (
                "查表。",
                format!("编号就是行号。查找表有 {rows} 行，每个 token 一行，每行 {d_model} 个很小的数，训练之前是随机的。把每个片段的那一行抽出来；相同的片段抽出的是同一行。"),
            ),
            (
                "矩阵。",
                format!("把抽出的行按文字的顺序排好，就是 context_length {tokens} × d_model {d_model} 的矩阵。训练会改变表里的这些行。"),
            ),
            ("下一步：位置。", "一行数字并不知道自己在文字的什么位置。下一步要加上位置信息：位置编码。".to_string()),
        ],
    };
    html! {
        div.steps role="group" aria-label=(lang.of("Steps of the lesson", "课程的步骤")) {
            button #back type="button" aria-label=(lang.of("Step back", "上一步")) { "◀" }
            input #step type="range" min="1" max="6" value="6" aria-label=(lang.of("Step", "步骤"));
            button #forth type="button" aria-label=(lang.of("Step forward", "下一步")) { "▶" }
            span.grey #count {}
        }
        ol.told aria-live="polite" {
            @for (name, text) in &told { li { b { (name) } " " (text) } }
        }
    }
}

/// The pieces as buttons; the parts of a split character stand together below it.
fn chips(pieces: &[Piece], lang: Lang) -> Markup {
    let chip = |i: usize, piece: &Piece| {
        let of = if piece.of > 1 { hex(&piece.bytes) } else { piece.label() };
        let label = lang.of(
            format!("piece {i}: {}, bytes {}, id {}", piece.label(), hex(&piece.bytes), piece.id),
            format!("片段 {i}：{}，字节 {}，编号 {}", piece.label(), hex(&piece.bytes), piece.id),
        );
        html! {
            button.chip type="button" data-i=(i) data-id=(piece.id) aria-label=(label) {
                span.text { (shorten(&of, 24)) }
                span.number.from-3 { (piece.id) }
            }
        }
    };
    html! {
        ol.chips aria-label=(lang.of("Pieces; arrow keys walk", "片段，可用方向键移动")) {
            @for (i, piece) in pieces.iter().enumerate().filter(|(_, piece)| piece.part == 1) {
                @if piece.of > 1 {
                    li.split {
                        span.whole { (shorten(&visible(&piece.characters), 24)) }
                        span.parts { @for (j, part) in pieces.iter().enumerate().skip(i).take(piece.of) { (chip(j, part)) } }
                    }
                } @else {
                    li { (chip(i, piece)) }
                }
            }
        }
    }
}

fn json(pieces: &[Piece], rows: &BTreeMap<u32, &[f32]>, columns: &[usize], lang: Lang) -> Result<String> {
    let number = |value: f32| if value.is_finite() { Number::Finite(value) } else { Number::Other(value.to_string()) };
    let data = Data {
        pieces: pieces
            .iter()
            .map(|piece| PieceData { id: piece.id, label: piece.label(), bytes: hex(&piece.bytes) })
            .collect(),
        columns,
        rows: rows.iter().map(|(id, row)| (*id, columns.iter().map(|column| number(row[*column])).collect())).collect(),
        say: BTreeMap::from([
            (
                "hint",
                lang.of(
                    "Point at a piece or a row, or walk with Tab and the arrow keys: its exact values stand here.",
                    "把指针移到片段或某一行上，或用 Tab 键和方向键移动：这里显示精确的数值。",
                ),
            ),
            (
                "piece",
                lang.of(
                    "Piece {i}: {text} · bytes {bytes} · id {id} = row {id} of the table.",
                    "片段 {i}：{text} · 字节 {bytes} · 编号 {id} = 查找表的第 {id} 行。",
                ),
            ),
            (
                "same",
                lang.of("{count} pieces fetch this same row: {places}.", "有 {count} 个片段取出同一行：{places}。"),
            ),
            ("cell", lang.of("row {row}, column {column}: {value}", "第 {row} 行，第 {column} 列：{value}")),
        ]),
    };
    // The JSON must not contain the end tag of its script element.
    Ok(serde_json::to_string(&data).map_err(failed)?.replace('<', "\\u003c"))
}
