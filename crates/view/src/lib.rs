//! Ids and rows for human eyes: figures, pages, and files for the embedding projector, of what [`tallow`] holds.
//!
//! Every picture is a function that returns a string or bytes; the same input gives the same bytes everywhere. Nothing here knows of training.
//!
//! - A sentence's look-up: [`Lookup`]. Its tokens alone: [`pieces`].
//! - A table, before and after training: [`TablePlot`]. A folder of shards: [`DatasetPlot`]. A run's losses: [`loss_curve`].
//! - SVG and PNG: [`Figure`]; the font: [`Fonts`]. A stranger's text made fit for one line: [`visible`], [`one_line`].

#![warn(missing_docs)]

mod charts;
mod dataset_plot;
mod error;
mod figure;
mod lookup;
mod loss_curve;
mod page;
mod pca;
mod pieces;
mod projector;
mod scale;
mod table_plot;
mod text;

pub use dataset_plot::DatasetPlot;
pub use error::{Error, Result};
pub use figure::{Figure, Fonts};
pub use lookup::{Lookup, shown_columns};
pub use loss_curve::loss_curve;
pub use pieces::{Piece, pieces};
pub use projector::Projector;
pub use table_plot::{TablePlot, Token};
pub use text::{Lang, hex, one_line, token_text, visible};

/// The README's program is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
