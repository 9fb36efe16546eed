//! From text files to batches: shards on disk, then (B, T) inputs and targets, then rows of the table.
//!
//!     cargo run --example prepare_and_load
//!
//! prints:
//!
//! ```text
//! 40 documents, 1020 tokens; a table for them has 100277 rows
//! inputs [4, 16], targets [4, 16]; the third row:
//! x [94, 9174, 100257, 32974, 1414, 14221, 1414, 11, 20252, 10107, 345, 644, 279, 36658, 315, 279]
//! y [9174, 100257, 32974, 1414, 14221, 1414, 11, 20252, 10107, 345, 644, 279, 36658, 315, 279, 3814]
//! positions that restart with each document [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
//! matrix [4, 16, 64]
//! packed: 20 rows of 64 hold all of them
//! ```

mod args;
use anyhow::{Context, Result};
use candle_core::DType;
use candle_nn::{VarBuilder, VarMap};
use tallow::prepare::{PrepareConfig, prepare};
use tallow::{DataLoader, DataLoaderConfig, Dataset, Order, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<()> {
    tallow::keep_pages();
    let folder = tempfile::tempdir()?;
    let poems = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。\n---\nTyger Tyger, burning bright,\nIn the forests of the night;\n";
    std::fs::write(folder.path().join("poems.txt"), poems.repeat(20).replace("night;\n床", "night;\n---\n床"))?;

    // Before training, once: `tallow prepare poems.txt --out tokens --split-at ---` does the same.
    let tokenizer = Tokenizer::cl100k();
    let cfg = PrepareConfig {
        inputs: vec![folder.path().join("poems.txt")],
        out: folder.path().join("tokens"),
        split_at: Some("---".to_string()),
        ..Default::default()
    };
    let manifest = prepare(&tokenizer, &cfg, &|_| ())?.context("no other rank has work")?;
    let train = &manifest.splits["train"];
    println!(
        "{} documents, {} tokens; a table for them has {} rows",
        train.documents, train.tokens, manifest.table_rows
    );

    // In the training program: three lines.
    let split = Dataset::open(folder.path().join("tokens"))?.split("train")?;
    let cfg = DataLoaderConfig { batch_size: 4, order: Order::Sequential, documents: true, ..Default::default() };
    let mut loader = DataLoader::new(&split, cfg.clone())?;

    let batch = loader.next().context("there are batches")??;
    println!("inputs {:?}, targets {:?}; the third row:", batch.inputs.dims(), batch.targets.dims());
    println!("x {:?}", batch.inputs.get(2)?.to_vec1::<u32>()?);
    println!("y {:?}", batch.targets.get(2)?.to_vec1::<u32>()?);
    let documents = batch.documents.context("they were asked for")?;
    println!("positions that restart with each document {:?}", documents.positions.get(2)?.to_vec1::<u32>()?);

    // The table has a row for every id of the shards, so the look-up needs no check.
    let varmap = VarMap::new();
    let device = args::device("cpu")?;
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let cfg_table = TokenEmbeddingConfig { vocab_size: manifest.table_rows, d_model: 64, ..Default::default() };
    let wte = TokenEmbedding::new(&cfg_table, vb.pp("wte"))?;
    println!("matrix {:?}", wte.lookup_below(&batch.inputs, batch.id_bound)?.dims());

    // Rows of whole documents, padded at the end.
    let packed = DataLoaderConfig { order: Order::Packed, context_length: 64, ..cfg };
    println!("packed: {} rows of 64 hold all of them", DataLoader::new(&split, packed)?.samples_per_epoch());
    Ok(())
}
