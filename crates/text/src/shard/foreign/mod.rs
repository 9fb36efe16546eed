//! Token files of other trainers ⇄ folders of shards.
//!
//! Sources: nanoGPT `data/*/prepare.py`, llama2.c `tinystories.py`, llm.c `dev/data/data_common.py`, OLMo-core
//! `data/numpy_dataset.py`, datatrove `pipeline/tokens/tokenizer.py`.

mod ends;
mod export;
mod header;
mod import;

use super::{IdType, TokenizerInfo};
use crate::{Error, Result};

pub use export::export;
pub use import::import;

/// File format of another trainer.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, prepare};
/// use tallow_text::shard::{Foreign, IdType, export};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, ..Default::default() };
/// prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?;
/// let file = folder.path().join("train.bin");
/// export(&cfg.out, "train", Foreign::NanoGpt, IdType::U32, &file)?;
/// assert_eq!(std::fs::metadata(&file)?.len(), 3 * 4); // three ids of four bytes
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// nanoGPT's `train.bin`: raw u16 (GPT-2) or u32 ids. The separator is after each document.
    NanoGpt,
    /// llama2.c's `.bin`: raw u16 ids. BOS (id 1) is before each document.
    Llama2C,
    /// llm.c's `.bin`: a header of 256 int32, then u16 ids (magic 20240520) or u32 ids (20240801). The separator is before each
    /// document.
    LlmC,
    /// OLMo-core's `.npy`: raw u16 or u32 ids without a NumPy header. The separator is after each document.
    Olmo,
    /// datatrove's `.ds`: raw ids, with the ends of documents in `.ds.index`.
    Datatrove,
}

/// Description of the files to [`import()`].
///
/// # Example
/// ```
/// use tallow_text::shard::{Foreign, ForeignFile, IdType, import};
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("train.bin");
/// std::fs::write(&file, [5u16, 6, 0, 7, 0].map(u16::to_le_bytes).concat())?; // two documents, each ends with 0
/// let (format, id_type) = (Foreign::NanoGpt, IdType::U16);
/// let about = ForeignFile { format, id_type, separator: Some(0), table_rows: 100, tokenizer: None };
/// let manifest = import(&[file], &about, "train", &folder.path().join("tokens"))?;
/// assert_eq!((manifest.splits["train"].documents, manifest.largest_id), (2, Some(7)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ForeignFile {
    /// Format of the files.
    pub format: Foreign,
    /// Type of the ids. Ignored for llm.c, whose header tells it.
    pub id_type: IdType,
    /// The id that separates documents. `None`: each file is one document. Ignored for datatrove's bounds of documents.
    pub separator: Option<u32>,
    /// Number of table rows. Ids from this number on are an error.
    pub table_rows: usize,
    /// The tokenizer that made the ids, if known.
    pub tokenizer: Option<TokenizerInfo>,
}

/// Properties of a format. Reading and writing depend only on them, so a new format needs only a new value.
struct Layout {
    /// Name of the trainer, for messages.
    trainer: &'static str,
    /// Whether the separator is before each document instead of after it.
    separator_before: bool,
    id_types: &'static [IdType],
    /// Whether the file begins with llm.c's header.
    header: bool,
    /// The most ids per file.
    most_ids: u64,
    /// Whether datatrove's index has the ends of documents.
    index: bool,
    /// Bytes that a file must not begin with, and the message if it does.
    refused: Option<(&'static [u8], &'static str)>,
}

/// Raw ids, as in nanoGPT's files.
const RAW: Layout = Layout {
    trainer: "nanoGPT",
    separator_before: false,
    id_types: &[IdType::U16, IdType::U32],
    header: false,
    most_ids: u64::MAX,
    index: false,
    refused: None,
};

const LLAMA2C: Layout = Layout { trainer: "llama2.c", separator_before: true, id_types: &[IdType::U16], ..RAW };

const LLMC: Layout = Layout {
    trainer: "llm.c",
    separator_before: true,
    header: true,
    most_ids: i32::MAX as u64, // its header counts with 31 bits
    ..RAW
};

const OLMO: Layout = Layout {
    trainer: "OLMo-core",
    refused: Some((b"\x93NUMPY", "a real .npy with a header; OLMo-core's files have none")),
    ..RAW
};

const DATATROVE: Layout = Layout { trainer: "datatrove", index: true, ..RAW };

/// Names on the command line.
const NAMES: [(&str, Foreign); 5] = [
    ("nanogpt", Foreign::NanoGpt),
    ("llama2c", Foreign::Llama2C),
    ("llmc", Foreign::LlmC),
    ("olmo", Foreign::Olmo),
    ("datatrove", Foreign::Datatrove),
];

impl std::str::FromStr for Foreign {
    type Err = Error;

    /// `nanogpt`, `llama2c`, `llmc`, `olmo` or `datatrove`.
    fn from_str(name: &str) -> Result<Self> {
        Error::named("format", name, &NAMES)
    }
}

impl Foreign {
    fn layout(self) -> &'static Layout {
        match self {
            Foreign::NanoGpt => &RAW,
            Foreign::Llama2C => &LLAMA2C,
            Foreign::LlmC => &LLMC,
            Foreign::Olmo => &OLMO,
            Foreign::Datatrove => &DATATROVE,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::shard::verify;

    /// llm.c's counts have 31 bits. This test uses smaller limits, to get several files.
    #[test]
    fn parts_hold_what_the_whole_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let about = ForeignFile {
            format: Foreign::LlmC,
            id_type: IdType::U16,
            separator: Some(0),
            table_rows: 100,
            tokenizer: None,
        };
        // nanoGPT's separator is after each document, llm.c's before it.
        let raw: Vec<u8> = [5u16, 6, 7, 8, 0, 0, 9, 0, 1, 2, 0].iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(path("nanogpt.bin"), &raw).unwrap();
        let nanogpt = ForeignFile { format: Foreign::NanoGpt, ..about.clone() };
        import(&[path("nanogpt.bin")], &nanogpt, "train", &path("tokens")).unwrap();
        for most_ids in [1, 2, 3, 4, 11, 12] {
            let layout = Layout { most_ids, ..LLMC };
            let write = |out: &Path| export::with_layout(&path("tokens"), "train", &layout, IdType::U16, out);
            let files = write(&path(&format!("{most_ids}.bin"))).unwrap();
            assert_eq!(files.len() as u64, 11u64.div_ceil(most_ids));
            let ids: Vec<u16> = files
                .iter()
                .flat_map(|file| {
                    let bytes = std::fs::read(file).unwrap();
                    let ids: Vec<u16> = bytes[1024..].as_chunks().0.iter().map(|id| u16::from_le_bytes(*id)).collect();
                    assert_eq!(bytes[8..12], (ids.len() as i32).to_le_bytes(), "the header's count");
                    ids
                })
                .collect();
            assert_eq!(ids, [0, 5, 6, 7, 8, 0, 0, 9, 0, 1, 2]);
            let back = path(&format!("back-{most_ids}"));
            let manifest = import(&files, &about, "train", &back).unwrap();
            assert_eq!(manifest.splits["train"].documents, 4, "{most_ids}");
            assert_eq!(verify(&back, &|_, _| ()).unwrap(), [""; 0]);
            export(&back, "train", Foreign::NanoGpt, IdType::U16, &path("back.bin")).unwrap();
            assert!(std::fs::read(path("back.bin")).unwrap() == raw, "{most_ids}");
        }
    }
}
