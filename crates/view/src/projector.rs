//! Files for TensorBoard's embedding projector.

use std::fmt::Write;

use super::Lookup;

/// `tensors.tsv` and `metadata.tsv` for <https://projector.tensorflow.org>: one line per row, and a header line in the metadata.
///
/// # Example
/// ```
/// use tallow_view::Projector;
/// let projector = Projector::new([("a".to_string(), 64, &[0.5f32, -1.0][..])]);
/// assert_eq!(projector.metadata, "token\tid\na\t64\n");
/// assert_eq!(projector.tensors.split('\t').count(), 2);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Projector {
    /// Values separated by tabs. Each parses back to the same f32.
    pub tensors: String,
    /// Token and id, separated by a tab.
    pub metadata: String,
}

impl Projector {
    /// Makes the files from rows of (token's text, id, values). Texts must not have tabs or line ends;
    /// [`one_line`](crate::one_line) escapes them.
    pub fn new<'a>(rows: impl IntoIterator<Item = (String, u32, &'a [f32])>) -> Self {
        let (mut tensors, mut metadata) = (String::new(), "token\tid\n".to_string());
        for (token, id, values) in rows {
            let values: Vec<String> = values.iter().map(f32::to_string).collect();
            let _ = writeln!(tensors, "{}", values.join("\t"));
            let _ = writeln!(metadata, "{token}\t{id}");
        }
        Projector { tensors, metadata }
    }
}

impl Lookup {
    /// The rows of the matrix for the projector, one for each different token.
    pub fn projector(&self) -> Projector {
        let mut seen = std::collections::HashSet::new();
        let rows = self.pieces.iter().zip(&self.values).filter(|(piece, _)| seen.insert(piece.id));
        Projector::new(rows.map(|(piece, values)| (piece.label(), piece.id, values.as_slice())))
    }
}
