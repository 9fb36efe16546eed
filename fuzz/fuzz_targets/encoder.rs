//! The encoder against two others, on any text.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tallow_text::Tokenizer;

static OURS: LazyLock<[Tokenizer; 3]> =
    LazyLock::new(|| [Tokenizer::cl100k(), Tokenizer::o200k(), Tokenizer::gpt2()]);

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    // Alone, and far enough from the end for the fast half of the splitter.
    for text in [text.to_string(), format!("{text}{}", " x".repeat(40))] {
        let theirs = [
            bpe_openai::cl100k_base().encode(&text),
            bpe_openai::o200k_base().encode(&text),
            tiktoken_rs::r50k_base_singleton().encode_ordinary(&text),
        ];
        for (ours, theirs) in OURS.iter().zip(theirs) {
            let ids = ours.encode(&text).unwrap();
            assert_eq!(ids, theirs);
            assert_eq!(ours.decode_bytes(&ids).unwrap(), text.as_bytes());
        }
    }
});
