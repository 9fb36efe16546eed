//! Ids and rows for human eyes: tables for a terminal, figures, pages, and files for the embedding projector.
//!
//! This room knows nothing about training. Every picture is a function that returns a string or bytes.

mod charts;
mod dataset_plot;
mod figure;
mod grid;
mod look_up;
mod loss_curve;
mod page;
mod pca;
mod pieces;
mod projector;
mod scale;
mod table_plot;
mod text;

pub use dataset_plot::DatasetPlot;
pub use figure::{Figure, Fonts};
pub use grid::{Align, Cell, Column, shown_columns, write_grid};
pub use look_up::LookUp;
pub use loss_curve::loss_curve;
pub use pieces::{Piece, pieces};
pub use projector::Projector;
pub use table_plot::{TablePlot, Token};
pub use text::{Lang, hex, one_line, token_text, visible};
