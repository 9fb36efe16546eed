//! Tables with aligned columns on a terminal, for any script.

use std::io::{self, Write};

use anstyle::Style;
use unicode_width::UnicodeWidthStr;

/// The alignment of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

/// The head of a column.
#[derive(Clone, Debug)]
pub struct Column {
    /// The text above the column.
    pub title: String,
    /// The alignment of its cells.
    pub align: Align,
}

impl Column {
    /// A column with this title.
    pub fn new(title: impl Into<String>, align: Align) -> Self {
        Column { title: title.into(), align }
    }
}

/// One cell of a grid.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    /// The text of the cell.
    pub text: String,
    /// Its style on a terminal with colours.
    pub style: Style,
}

impl Cell {
    /// A cell in plain style.
    pub fn plain(text: impl Into<String>) -> Self {
        Cell { text: text.into(), style: Style::new() }
    }

    /// A cell in this style.
    pub fn styled(text: impl Into<String>, style: Style) -> Self {
        Cell { text: text.into(), style }
    }

    /// A number with four decimals; negative ones are dimmed.
    pub fn number(value: f32) -> Self {
        Cell { text: format!("{value:.4}"), style: if value < 0.0 { Style::new().dimmed() } else { Style::new() } }
    }
}

/// Writes a head line and rows, every column as wide as its widest cell. Widths are counted in columns
/// of the terminal: a Chinese character takes two.
///
/// # Errors
/// Those of `out`.
pub fn write_grid(out: &mut impl Write, columns: &[Column], rows: &[Vec<Cell>]) -> io::Result<()> {
    let width = |i: usize, title: &str| {
        let cells = rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.text.width());
        cells.max().unwrap_or(0).max(title.width())
    };
    let widths: Vec<usize> = columns.iter().enumerate().map(|(i, column)| width(i, &column.title)).collect();
    let bold = Style::new().bold();
    let head: Vec<Cell> = columns.iter().map(|column| Cell::styled(column.title.clone(), bold)).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(columns).zip(&widths) {
            let space = " ".repeat(width.saturating_sub(cell.text.width()));
            let Cell { text, style } = cell;
            line += &match column.align {
                Align::Left => format!("  {style}{text}{style:#}{space}"),
                Align::Right => format!("  {space}{style}{text}{style:#}"),
            };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chinese_columns_line_up() {
        let columns = [Column::new("a", Align::Left), Column::new("b", Align::Right)];
        let rows = vec![vec![Cell::plain("小"), Cell::plain("1")], vec![Cell::plain("abc"), Cell::plain("-10")]];
        let mut out = Vec::new();
        write_grid(&mut anstream::StripStream::new(&mut out), &columns, &rows).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "  a      b\n  小     1\n  abc  -10\n");
    }
}
