//! Rank files and tokenizer.json from strangers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallow_text::Tokenizer;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if let Ok(tokenizer) = Tokenizer::from_file(file.path()) {
        if let Ok(ids) = tokenizer.encode("数字 becomes a matrix <|x|>") {
            _ = tokenizer.decode_bytes(&ids);
        }
    }
});
