//! Pictures of [`tallow`]'s ids, tables and shards: figures, HTML pages, and files for the embedding projector.
//!
//! Every picture is a function that returns a string or bytes. The same input gives the same bytes on every machine. Nothing here
//! depends on training.
//!
//! - The look-up of a sentence: [`Lookup`]. Only its tokens: [`pieces`].
//! - A table, before and after training: [`TablePlot`]. A folder of shards: [`DatasetPlot`]. The losses of a run: [`loss_curve`].
//! - SVG and PNG: [`Figure`]. Fonts: [`Fonts`]. Untrusted text in one line: [`visible`], [`one_line`].

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
