//! The look-up of a sentence: pieces → ids → rows of the table → a matrix. This file has its data and its figure; its page is in `page`.

use candle_core::{DType, Device, Tensor};
use plotters::prelude::{Color, PathElement, Rectangle};
use tallow::{TokenEmbedding, Tokenizer};

use super::figure::{Align, Area, BLUE, Drawn, Figure, GREY, INK, LINE, PALE, fill, write};
use super::scale::{Diverging, short};
use super::text::{Lang, one_line, plural, shorten};
use super::{Piece, pieces};
use crate::Result;

/// Rows at the top and at the bottom of a figure's matrix, and columns at the left and at the right. Those between are left out.
const ROWS: usize = 32;
const COLUMNS: usize = 64;
/// Height of a row, width of the figure, and positions of its parts, in pixels.
const ROW: i32 = 24;
const WIDTH: u32 = 1280;
const TOP: i32 = 112;
const PIECES: i32 = 160;
const IDS: i32 = 244;
const TABLE: [i32; 2] = [340, 440];
const MATRIX: [i32; 2] = [550, 1174];
const SCALE: [i32; 2] = [1192, 1208];

/// The rows that a sentence looks up in a table.
///
/// # Example
/// ```
/// use candle_core::{DType, Device};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow_view::{Fonts, Lang, Lookup};
/// use tallow::{TokenEmbedding, TokenEmbeddingConfig, Tokenizer};
///
/// let tokenizer = Tokenizer::cl100k();
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let cfg = TokenEmbeddingConfig { vocab_size: 100256, d_model: 64, ..Default::default() };
/// let lookup = Lookup::new(&tokenizer, &TokenEmbedding::new(&cfg, vb.pp("wte"))?, "小沈阳江西演唱会邀请了,")?;
/// assert_eq!((lookup.pieces.len(), lookup.values[15].len()), (16, 64));
/// let page = lookup.page(Lang::Zh)?; // HTML
/// assert!(page.contains("数字变矩阵") && page.len() < 300_000);
/// let slide = lookup.figure(Lang::Zh)?.svg(&Fonts::bundled())?;
/// assert!(slide.starts_with("<svg"));
/// # Ok::<(), tallow_view::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The sentence.
    pub text: String,
    /// Its tokens.
    pub pieces: Vec<Piece>,
    /// The matrix (T, C): the row of each token, as f32.
    pub values: Vec<Vec<f32>>,
    /// Rows of the table, V.
    pub rows: usize,
    /// Columns of the table, C.
    pub d_model: usize,
    /// Name of the tokenizer.
    pub tokenizer: String,
}

impl Lookup {
    /// Encodes `text` and looks up its rows.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`] and [`TokenEmbedding::lookup`].
    pub fn new(tokenizer: &Tokenizer, table: &TokenEmbedding, text: &str) -> Result<Self> {
        let pieces = pieces(tokenizer, text)?;
        let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
        let rows = table.lookup(&Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?)?.squeeze(0)?;
        Ok(Lookup {
            text: text.to_string(),
            pieces,
            values: rows.to_dtype(DType::F32)?.to_vec2()?,
            rows: table.vocab_size(),
            d_model: table.d_model(),
            tokenizer: tokenizer.name().to_string(),
        })
    }

    /// A figure for slides: pieces, ids, the table with the fetched rows, and the matrix as a heat map with its scale. Of more than 65
    /// tokens or 129 columns, only the first and the last 32 tokens or 64 columns are drawn.
    ///
    /// # Errors
    /// [`Error::Picture`](crate::Error::Picture).
    pub fn figure(&self, lang: Lang) -> Result<Figure> {
        let (tokens, columns) = (self.pieces.len(), self.d_model);
        let title = lang.of(
            format!("{} → {}: a {tokens} x {columns} matrix", plural(tokens, "token"), plural(tokens, "row")),
            format!("{tokens} 个 token 取出 {tokens} 行：{tokens} × {columns} 的矩阵"),
        );
        let rows = shown_columns(tokens, ROWS);
        let height = TOP + rows.len().max(8) as i32 * ROW + 56;
        Figure::draw(&title, (WIDTH, height as u32), |area| self.paint(area, &title, &rows, lang))
    }

    fn paint(&self, area: &Area, title: &str, rows: &[Option<usize>], lang: Lang) -> Drawn {
        let bottom = TOP + rows.len().max(8) as i32 * ROW;
        write(area, &shorten(&one_line(&self.text), 90), (24, 32), 24, Align::Left, INK)?;
        write(area, title, (24, 62), 17, Align::Left, GREY)?;
        let head = |text: &str, x, align| write(area, text, (x, TOP - 16), 15, align, GREY);
        head(lang.of("piece", "片段"), PIECES, Align::Right)?;
        head(lang.of("id", "编号"), IDS, Align::Right)?;
        head(&format!("{} x {}", self.rows, self.d_model), (TABLE[0] + TABLE[1]) / 2, Align::Middle)?;
        let matrix = format!("context {} x d_model {}", self.pieces.len(), self.d_model);
        head(&matrix, (MATRIX[0] + MATRIX[1]) / 2, Align::Middle)?;

        // The table with its grid, and the numbers of its first and last row.
        fill(area, [(TABLE[0], TOP), (TABLE[1], bottom)], PALE)?;
        for i in 1..10 {
            let x = TABLE[0] + (TABLE[1] - TABLE[0]) * i / 10;
            area.draw(&PathElement::new([(x, TOP), (x, bottom)], LINE))?;
        }
        write(area, "0", (TABLE[0] - 6, TOP - 8), 13, Align::Right, GREY)?;
        let last = self.rows.saturating_sub(1).to_string();
        write(area, &last, (TABLE[0] - 6, bottom + 10), 13, Align::Right, GREY)?;

        let scale = Diverging::of(self.values.iter().flatten());
        for (line, index) in rows.iter().enumerate() {
            let y = TOP + line as i32 * ROW + ROW / 2;
            let Some(piece) = index.and_then(|i| self.pieces.get(i)) else {
                write(area, "…", (PIECES, y), 18, Align::Right, GREY)?;
                write(area, "…", ((MATRIX[0] + MATRIX[1]) / 2, y), 18, Align::Middle, GREY)?;
                continue;
            };
            self.paint_row(area, piece, y, bottom)?;
            self.paint_values(area, &self.values[index.unwrap_or_default()], y, scale)?;
        }
        area.draw(&Rectangle::new([(TABLE[0], TOP), (TABLE[1], bottom)], GREY))?;
        self.paint_axes(area, TOP + rows.len() as i32 * ROW, scale)
    }

    /// Draws a piece, its id, and the lines from the id over the table to the row of the matrix.
    fn paint_row(&self, area: &Area, piece: &Piece, y: i32, bottom: i32) -> Drawn {
        write(area, &shorten(&piece.label(), 16), (PIECES, y), 17, Align::Right, INK)?;
        write(area, &piece.id.to_string(), (IDS, y), 17, Align::Right, BLUE)?;
        let part = f64::from(piece.id) / self.rows.max(1) as f64;
        let row = TOP + ((f64::from(bottom - TOP - 2)) * part) as i32;
        let thin = BLUE.mix(0.55);
        area.draw(&PathElement::new([(IDS + 8, y), (TABLE[0], row)], thin))?;
        area.draw(&PathElement::new([(TABLE[1] + 12, row), (MATRIX[0] - 6, y)], thin))?;
        // The row in the table.
        fill(area, [(TABLE[0], row - 1), (TABLE[1] + 12, row + 1)], BLUE)
    }

    fn paint_values(&self, area: &Area, values: &[f32], y: i32, scale: Diverging) -> Drawn {
        let shown = shown_columns(values.len(), COLUMNS);
        for (place, value) in shown.iter().enumerate() {
            let Some(value) = value.map(|column| values[column]) else { continue };
            let colour = scale.colour(value);
            let corners =
                [(column_at(place, shown.len()), y - ROW / 2), (column_at(place + 1, shown.len()), y + ROW / 2 - 1)];
            fill(area, corners, colour)?;
        }
        Ok(())
    }

    /// Draws the numbers of columns and the colour scale.
    fn paint_axes(&self, area: &Area, bottom: i32, scale: Diverging) -> Drawn {
        let shown = shown_columns(self.d_model, COLUMNS);
        let step = (shown.len() / 8).max(1);
        for (place, column) in shown.iter().enumerate() {
            let last = place + 1 == shown.len();
            if let Some(column) = column.filter(|_| last || (place % step == 0 && place + step / 2 < shown.len())) {
                let x = (column_at(place, shown.len()) + column_at(place + 1, shown.len())) / 2;
                write(area, &column.to_string(), (x, bottom + 12), 13, Align::Middle, GREY)?;
            }
        }
        let (top, steps) = (TOP, 48);
        let height = bottom.max(TOP + 6 * ROW) - top;
        for i in 0..steps {
            let colour = scale.colour(scale.limit * (1.0 - 2.0 * (i as f32 + 0.5) / steps as f32));
            let corners = [(SCALE[0], top + height * i / steps), (SCALE[1], top + height * (i + 1) / steps)];
            fill(area, corners, colour)?;
        }
        for (i, mark) in scale.marks().into_iter().enumerate() {
            let y = top + height * i as i32 / 4;
            write(area, &short(mark.into()), (SCALE[1] + 6, y), 13, Align::Left, GREY)?;
        }
        Ok(())
    }
}

/// Left edge of column `place` of `of` columns, in pixels.
fn column_at(place: usize, of: usize) -> i32 {
    MATRIX[0] + ((MATRIX[1] - MATRIX[0]) as usize * place / of.max(1)) as i32
}

/// Selects the columns to show: all of `count` if they are at most `2 * ends + 1`, else the first and the last `ends` with a gap (`None`)
/// between them.
pub fn shown_columns(count: usize, ends: usize) -> Vec<Option<usize>> {
    if count <= 2 * ends + 1 {
        return (0..count).map(Some).collect();
    }
    let first = (0..ends).map(Some);
    first.chain([None]).chain((count - ends..count).map(Some)).collect()
}
