//! A data engineer's program: the ids of a file, with tallow-text alone.

use std::fs::File;

use tallow_text::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("ids FILE")?;
    let tokenizer = Tokenizer::cl100k();
    let mut ids = Vec::new();
    for part in tokenizer.encode_reader(File::open(&path)?, false) {
        ids.extend(part?);
    }
    assert_eq!(tokenizer.decode_bytes(&ids)?, std::fs::read(&path)?);
    println!("{}: {} ids of {}, and back byte for byte", path, ids.len(), tokenizer.name());
    Ok(())
}
