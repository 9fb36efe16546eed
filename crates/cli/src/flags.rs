//! The library speaks of its items; here are the flags that stand for them.

/// What a message of the library names, and what the command line calls it.
const FLAGS: [(&str, &str); 21] = [
    ("Specials::Text", "--specials text"),
    ("Specials::Allow", "--specials allow"),
    ("OnError::Skip", "--on-error skip"),
    ("OnError::Replace", "--on-error replace"),
    ("PrepareConfig::field", "--field"),
    ("PrepareConfig::format", "--format"),
    ("PrepareConfig::rank", "--rank"),
    ("(world_size)", "(--world-size)"),
    ("SeparatorChoice::Token", "--separator"),
    ("SeparatorChoice::None", "--separator none"),
    ("ForeignFile::dtype", "--dtype"),
    ("ForeignFile::table_rows", "--rows"),
    ("take another split, or another folder", "give another --split or folder"),
    ("(TokenEmbeddingConfig::vocab_size; Tokenizer::table_rows says how many its ids need)", "(--rows)"),
    ("choose one of", "choose one (--tensor NAME) of"),
    ("there is no such branch, tag or commit", "there is no such branch, tag or commit (--revision)"),
    ("shard::verify says", "`tallow verify` says"),
    ("take the table's own tokenizer", "give its own tokenizer (--tokenizer)"),
    ("the feature `hub`", "a build with `--features hub`"),
    ("the feature `parquet`", "a build with `--features parquet`"),
    ("(lossy)", "(--lossy)"),
];

/// A message of the library in the words of the command line.
pub fn in_flags(message: &str) -> String {
    FLAGS.iter().fold(message.to_string(), |message, (item, flag)| message.replace(item, flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_names_becomes_a_flag() {
        let errors: [(tallow::Error, &[&str]); 4] = [
            (
                tallow::TextError::SpecialForbidden { token: "<x>".to_string(), byte: 3 }.into(),
                &["--specials text", "--specials allow"],
            ),
            (
                tallow::TextError::Document { place: "a".to_string(), reason: "invalid UTF-8".to_string() }.into(),
                &["--on-error skip", "--on-error replace"],
            ),
            (tallow::TextError::InvalidUtf8 { byte: 0 }.into(), &["--lossy"]),
            (
                tallow::Error::IdOutOfRange { id: 9, position: vec![0], rows: 4, token: None },
                &["at least 10 rows (--rows)"],
            ),
        ];
        for (error, flags) in errors {
            let message = in_flags(&error.to_string());
            assert!(flags.iter().all(|flag| message.contains(flag)) && !message.contains("::"), "{message}");
        }
    }
}
