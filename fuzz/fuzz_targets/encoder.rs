//! The encoder against GitHub's, on any text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tallow_text::Tokenizer;

static OURS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| [Tokenizer::cl100k(), Tokenizer::o200k()]);

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let theirs = [bpe_openai::cl100k_base(), bpe_openai::o200k_base()];
    for (ours, theirs) in OURS.iter().zip(theirs) {
        // Alone, and far enough from the end for the fast half of the splitter.
        for text in [text.to_string(), format!("{text}{}", " x".repeat(40))] {
            let ids = ours.encode(&text).unwrap();
            assert_eq!(ids, theirs.encode(&text));
            assert_eq!(ours.decode_bytes(&ids).unwrap(), text.as_bytes());
        }
    }
});
