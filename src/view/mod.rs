//! Ids and rows for human eyes: text cut into pieces, and aligned tables for a terminal.
//!
//! This room knows nothing about training.

mod grid;
mod pieces;

pub use grid::{Align, Cell, Column, one_line, shown_columns, visible, write_grid};
pub use pieces::{Piece, pieces};
