//! Gradient accumulation: the gradients of a row-sparse table and of a dense head add up in one `GradStore`.
//!
//!     cargo run --example accumulate
//!
//! prints:
//!
//! ```text
//! 64 tokens at once: loss 5.5452 -> 4.2286
//! 4 parts of 16:     loss 5.5452 -> 4.2286, all weights within 1e-6
//! the last part alone: row gradients of 3 look-ups are pending that are not part of these gradients
//! ```

mod args;
use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Init, Optimizer, VarBuilder, VarMap};
use tallow::optim::Sgd;
use tallow::{Gradient, Head, TokenEmbedding, TokenEmbeddingConfig, Tokenizer};

/// A table and a head. Each token predicts the id of the next one modulo 256.
struct Model {
    wte: TokenEmbedding,
    out: Tensor,
    head: Head,
    opt: Sgd,
}

impl Model {
    fn new(device: &Device) -> Result<Self> {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, device);
        let cfg = TokenEmbeddingConfig { gradient: Gradient::RowSparse, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb.pp("wte"))?;
        let out = vb.get_with_hints((256, cfg.d_model), "head.weight", Init::Const(0.0))?;
        let opt = Sgd::new(varmap.all_vars(), 5.0)?; // (AdamW turns rounding errors of tiny gradients into large steps)
        Ok(Model { wte, head: Head::new(&out, None)?, out, opt })
    }

    /// Gradients and loss of `ids`, where each id predicts the next. Both are weighted by their share of a batch of 64.
    fn part(&self, ids: &[u32]) -> Result<(GradStore, f32)> {
        let x = self.wte.forward(&Tensor::new(&ids[..ids.len() - 1], &Device::Cpu)?)?;
        let targets = Tensor::new(ids[1..].iter().map(|id| id % 256).collect::<Vec<_>>(), &Device::Cpu)?;
        let mean = self.head.loss(&x, &targets, &Default::default())?;
        let loss = (mean * ((ids.len() - 1) as f64 / 64.0))?;
        Ok((tallow::backward(&loss)?, loss.to_scalar()?))
    }
}

fn main() -> Result<()> {
    let device = args::device("cpu")?;
    let ids = Tokenizer::cl100k().encode(include_str!("../LICENSE-APACHE"))?;
    let (mut whole, mut parts) = (Model::new(&device)?, Model::new(&device)?);
    let mut losses = Vec::new();
    for batch in ids.windows(65).step_by(7).take(40) {
        let (grads, loss) = whole.part(batch)?;
        whole.opt.step(&grads)?;
        let (mut total, mut sum) = parts.part(&batch[..17])?;
        for from in [16, 32, 48] {
            let (grads, loss) = parts.part(&batch[from..from + 17])?;
            total.extend(grads)?; // adds the dense gradients and the row gradients
            sum += loss;
        }
        parts.opt.step(&total)?;
        losses.push((loss, sum));
    }
    println!("64 tokens at once: loss {:.4} -> {:.4}", losses[0].0, losses[39].0);
    for (a, b) in [(&whole.out, &parts.out), (whole.wte.flushed_weight()?, parts.wte.flushed_weight()?)] {
        let far = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
        ensure!(far < 1e-6, "a weight differs by {far}");
    }
    println!("4 parts of 16:     loss {:.4} -> {:.4}, all weights within 1e-6", losses[0].1, losses[39].1);

    // A step with the last part alone is an error: it lacks the row gradients of the other three.
    let [.., last] = [0, 16, 32, 48].map(|from| parts.part(&ids[from..from + 17]));
    let refused = parts.opt.step(&last?.0).err().map_or(String::new(), |error| error.to_string());
    println!("the last part alone: {}", refused.split(':').next().unwrap_or_default());
    Ok(())
}
