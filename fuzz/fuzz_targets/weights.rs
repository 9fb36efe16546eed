//! Files of weights from strangers: safetensors, GGUF, and PyTorch's, both with and without a zip file around them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallow::PretrainedTable;

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if let Ok(table) = PretrainedTable::open(file.path(), None) {
        let read: usize = table.blocks().map(|block| block.map_or(0, |(_, rows)| rows.elem_count())).sum();
        // Four bits are the least that an element takes; f32 is what they become.
        assert!(read <= bytes.len() * 2);
        _ = table.statistics();
        _ = tallow::neighbors(&table, &[[0]], 3);
    }
    _ = tallow::list_tensors(file.path());
});
