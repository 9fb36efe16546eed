//! Resumes a killed training run at the exact batch, also with another number of ranks.
//!
//!     cargo run --example resume
//!
//! prints:
//!
//! ```text
//! {"version":1,"dataset":"3fbe196549e357e7","order":"permuted","context_length":32,"seed":1337,"epoch":2,"samples":480}
//! 40 batches after the resume, on two ranks: the same ids as without a stop
//! this loader state does not fit: the dataset is 3fbe196549e357e7 in the state and 5a302700257f2c11 here
//! ```

use anyhow::{Context, Result};
use tallow::loader::LoaderState;
use tallow::{DataLoader, DataLoaderConfig, Dataset, Tokenizer};

fn main() -> Result<()> {
    tallow::keep_pages();
    let text = "数字变矩阵。 Every id fetches its row from one big table. ".repeat(400);
    let split = Dataset::from_text(&Tokenizer::cl100k(), &text, 0.1)?.split("train")?;
    let cfg = DataLoaderConfig { batch_size: 8, context_length: 32, epochs: None, ..Default::default() };

    // A run of 100 steps; after step 60 it saves where it is, and is killed.
    let mut run = DataLoader::new(&split, cfg.clone())?;
    for _ in 0..60 {
        run.next().context("it never ends")??;
    }
    let saved = serde_json::to_string(&run.state())?;
    println!("{saved}");
    let mut rest = Vec::new();
    for _ in 60..100 {
        rest.push(run.next().context("it never ends")??.inputs.to_vec2::<u32>()?);
    }

    // Another process, two ranks of 4 rows instead of one of 8.
    let state: LoaderState = serde_json::from_str(&saved)?;
    let mut ranks = Vec::new();
    for rank in 0..2 {
        let mut loader =
            DataLoader::new(&split, DataLoaderConfig { batch_size: 4, rank, world_size: 2, ..cfg.clone() })?;
        loader.load_state(&state)?;
        ranks.push(loader);
    }
    for expected in &rest {
        let mut rows = Vec::new();
        for rank in &mut ranks {
            rows.extend(rank.next().context("it never ends")??.inputs.to_vec2::<u32>()?);
        }
        assert!(rows == *expected);
    }
    println!("40 batches after the resume, on two ranks: the same ids as without a stop");

    // A state of other data is an error.
    let other = Dataset::from_ids(&[1; 9999], 0.0)?.split("train")?;
    let refused = DataLoader::new(&other, cfg)?.load_state(&state).map_err(|error| error.to_string());
    println!("{}", refused.err().unwrap_or_default());
    Ok(())
}
