//! Replaces the names of library items in messages by the flags of the command line.

/// Pairs: a phrase of the library's messages, and the phrase of the command line that replaces it. The phrases name items in
/// backticks, so that a user's own text is not changed.
const FLAGS: [(&str, &str); 25] = [
    ("`Specials::Text`", "--specials text"),
    ("`Specials::Allow`", "--specials allow"),
    ("accept replacement characters (lossy)", "read bad bytes as U+FFFD (--lossy)"),
    ("`OnError::Skip`", "--on-error skip"),
    ("`OnError::Replace`", "--on-error replace"),
    ("`PrepareConfig::field`", "--field"),
    ("`PrepareConfig::format`", "--format"),
    ("`PrepareConfig::rank`", "--rank"),
    ("(`world_size`)", "(--world-size)"),
    ("(`SeparatorChoice::Token`)", "(--separator)"),
    ("`SeparatorChoice::None`", "--separator none"),
    ("`ForeignFile::id_type`", "--dtype"),
    ("`ForeignFile::table_rows`", "--vocab-size (or --tokenizer)"),
    ("take another name for it, or another folder", "give another --split or folder"),
    ("(`TokenEmbeddingConfig::vocab_size`; `Tokenizer::vocab_size` says how many its ids need)", "(--vocab-size)"),
    ("choose one (`tensor`) of", "choose one (--tensor NAME) of"),
    ("there is no such branch, tag or commit", "there is no such branch, tag or commit (--revision)"),
    ("take the table's own tokenizer", "give its own tokenizer (--tokenizer)"),
    ("`shard::verify` says", "`tallow verify` says"),
    ("fetch one (`Hub::fetch`) and open it", "download one, and give its path"),
    ("the Hugging Face Hub needs the feature `hub`", "the Hugging Face Hub needs a build with `--features hub`"),
    ("Parquet needs the feature `parquet`", "Parquet needs a build with `--features parquet`"),
    ("it needs the feature `cuda`", "build with `--features cuda`"),
    ("it needs the feature `metal`", "build with `--features metal`"),
    ("`prepare`", "`tallow prepare`"),
];

/// The message, with flags in place of library items.
pub fn in_flags(message: &str) -> String {
    FLAGS.iter().fold(message.to_string(), |message, (item, flag)| message.replace(item, flag))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tallow::prepare::{PrepareConfig, prepare};

    use super::*;

    /// The error of `prepare` for a file with this content.
    fn refused(content: &[u8]) -> tallow::Error {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("a.jsonl");
        std::fs::write(&input, content).unwrap();
        let cfg = PrepareConfig { inputs: vec![input], out: folder.path().join("tokens"), ..Default::default() };
        prepare(&tallow::Tokenizer::cl100k(), &cfg, &|_| ()).unwrap_err().into()
    }

    #[test]
    fn what_the_library_names_becomes_a_flag() {
        let errors: [(tallow::Error, &[&str]); 4] = [
            (
                tallow::TextError::SpecialForbidden { token: "<x>".to_string(), byte: 3 }.into(),
                &["--specials text", "--specials allow"],
            ),
            (refused(b"{\"text\": \"\xFF\"}"), &["--on-error skip", "--on-error replace"]),
            (refused(b"{}"), &["--field names", "--on-error skip"]),
            (
                tallow::Error::IdOutOfRange { id: 9, position: vec![0], rows: 4, token: None },
                &["at least 10 rows (--vocab-size)"],
            ),
        ];
        for (error, flags) in errors {
            let message = in_flags(&error.to_string());
            assert!(flags.iter().all(|flag| message.contains(flag)) && !message.contains("::"), "{message}");
        }
    }

    fn read(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => read(&path, text),
                false if path.extension().is_some_and(|end| end == "rs") => {
                    let source = std::fs::read_to_string(path).unwrap();
                    let code = source.lines().filter(|line| !line.trim_start().starts_with("//"));
                    // Joins string literals that continue on the next line.
                    *text += &code.map(|line| line.trim().trim_end_matches('\\')).collect::<String>();
                }
                false => (),
            }
        }
    }

    /// Every entry occurs in the source of a library, and every item that a message of tallow-text names has an entry.
    #[test]
    fn every_entry_is_said_and_every_item_is_here() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let (mut all, mut text) = (String::new(), String::new());
        read(&root.join("src"), &mut all);
        read(&root.join("crates/text/src"), &mut text);
        all += &text;
        all += &tallow_text::Error::not_here("").to_string(); // this message is composed at run time
        let without: Vec<&str> = FLAGS.iter().map(|(item, _)| *item).filter(|item| !all.contains(item)).collect();
        assert!(without.is_empty(), "{without:?}");
        for name in text.split('`').skip(1).step_by(2) {
            let item = name.contains("::") && name.chars().all(|c| c.is_alphanumeric() || c == ':' || c == '_');
            let known = FLAGS.iter().any(|(known, _)| known.contains(&format!("`{name}`")));
            assert!(!item || known, "{name} of a message has no flag");
        }
    }
}
