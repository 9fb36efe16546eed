//! The lesson with the library alone: a sentence becomes 16 ids, 16 ids become a 16 x 64 matrix.
//!
//!     cargo run --example text_to_matrix
//!
//! prints:
//!
//! ```text
//! text   小沈阳江西演唱会邀请了,
//! ids    [31809, 31106, 230, 83175, 70277, 61786, 78256, 242, 84150, 109, 38093, 45932, 222, 15225, 35287, 11]
//! table  [100256, 64]
//! matrix [1, 16, 64]
//! row 0 of the matrix is row 31809 of the table: [-0.0049, 0.0124, 0.0246, …]
//! row 15 of the matrix is row 11 of the table: [-0.0123, 0.0097, -0.0188, …]
//! ```

mod args;
use anyhow::Result;
use candle_core::{DType, Device, IndexOp, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tallow::{TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

fn main() -> Result<()> {
    tallow::keep_pages();
    let text = "小沈阳江西演唱会邀请了,";
    let tokenizer = Tokenizer::cl100k();
    let ids = tokenizer.encode(text)?;

    // The look-up table: 100256 rows of 64 small random numbers, made once, trained later.
    let varmap = VarMap::new();
    let device = args::device("cpu")?;
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &device);
    let wte = TokenEmbedding::new(&TokenEmbeddingConfig { vocab_size: 100_256, ..Default::default() }, vb.pp("wte"))?;

    // Every id fetches its row.
    let batch = Tensor::from_slice(&ids, (1, ids.len()), &Device::Cpu)?;
    let matrix = wte.forward(&batch)?;

    println!("text   {text}");
    println!("ids    {ids:?}");
    println!("table  {:?}", wte.flushed_weight()?.dims());
    println!("matrix {:?}", matrix.dims());
    for position in [0, ids.len() - 1] {
        let row = matrix.i((0, position))?.to_vec1::<f32>()?;
        let id = ids[position];
        assert_eq!(row, wte.flushed_weight()?.i(id as usize)?.to_vec1::<f32>()?);
        println!(
            "row {position} of the matrix is row {id} of the table: [{:.4}, {:.4}, {:.4}, …]",
            row[0], row[1], row[2]
        );
    }
    Ok(())
}
