//! The error type of the package.

use std::io;
use std::path::PathBuf;

/// `Result` with this package's [`enum@Error`].
///
/// # Example
/// ```
/// use tallow_view::{Fonts, Lang, loss_curve};
/// fn svg(losses: &[(u64, f32, f32)]) -> tallow_view::Result<String> {
///     loss_curve(losses, Lang::En)?.svg(&Fonts::bundled())
/// }
/// assert!(svg(&[(1, 8.0, 8.1), (250, 4.2, 4.6)])?.starts_with("<svg"));
/// # Ok::<(), tallow_view::Error>(())
/// ```
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong with a picture.
///
/// # Example
/// ```
/// use tallow_view::{Error, Lang};
/// assert!(matches!("fr".parse::<Lang>(), Err(Error::Language { .. })));
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A figure could not be drawn, or a font could not be read.
    #[error("no picture: {reason}")]
    Picture {
        /// The reason.
        reason: String,
    },

    /// A file could not be read.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        cause: io::Error,
    },

    /// An unknown language.
    #[error("language {name:?} is none of en, zh")]
    Language {
        /// The requested name.
        name: String,
    },

    /// An error of [`tallow`] while reading the data to draw.
    #[error("{0}")]
    Tallow(tallow::Error),
}

// Messages include the cause, so no variant has a `source()`.
impl<E: Into<tallow::Error>> From<E> for Error {
    fn from(error: E) -> Self {
        Error::Tallow(error.into())
    }
}
