//! The index of a sharded model: no name in it may lead out of the folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tallow::PretrainedTable;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    std::fs::write(folder.path().join("model.safetensors.index.json"), bytes).unwrap();
    assert!(PretrainedTable::open(folder.path(), None).is_err(), "there is no shard");
});
