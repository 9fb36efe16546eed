//! Ranks that are threads: what every engine must give, the bytes that are moved, and errors.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tallow::distributed::{Collective, DataParallel, Local, ReduceOp, RowExchange, VocabParallelEmbedding};
use tallow::optim::AdamW;
use tallow::{Checkpoint, Error, Gradient, LoadOptions, TokenEmbedding, TokenEmbeddingConfig, backward, load_weights};

use crate::acceptance::exchange::model;
use crate::acceptance::split::{self, one_process, split_model};
use crate::acceptance::{self, Ranks};
use crate::ranks::{Threads, run};

fn shared(ranks: &Threads) -> Ranks {
    Arc::new(ranks.clone())
}

fn differs(error: &Error) -> bool {
    matches!(error, Error::ReplicasDiffer { .. })
}

#[test]
fn one_process_and_its_own_engine() {
    acceptance::CASES.iter().for_each(|(_, case)| case(&(Arc::new(Local) as Ranks)));
}

#[test]
fn two_to_four_ranks_are_as_one_process() {
    for world in 2..=4 {
        for (_, case) in acceptance::CASES {
            run(world, |ranks| case(&shared(ranks)));
        }
    }
}

/// Of five rows some ranks have none.
#[test]
fn more_ranks_than_rows() {
    for case in [split::a_table_is_that_of_one_process, split::a_head_is_that_of_one_process] {
        run(7, |ranks| case(&shared(ranks)));
    }
}

#[test]
fn saved_by_any_number_of_ranks_and_loaded_by_any_other() {
    let folder = tempfile::tempdir().unwrap();
    for world in 1..=3 {
        let saved = folder.path().join(format!("{world}"));
        run(world, |ranks| split::save(&shared(ranks), &saved));
        for other in [1, 3, 4] {
            let again = folder.path().join(format!("{world}-{other}"));
            run(other, |ranks| split::load(&shared(ranks), &saved, &again));
            assert!(split::files(&again) == split::files(&saved), "{world} ranks, then {other}");
        }
    }
    // One process without ranks reads the weights.
    let path = folder.path().join("3/0/step-00000010/model.safetensors");
    load_weights(path, &one_process(Gradient::RowSparse, true).varmap, &LoadOptions::default()).unwrap();
}

/// What each way to exchange rows gives to the operations, and what the dense gradient would be.
#[test]
fn each_exchange_moves_what_docs_scale_says() {
    let (v, c, tokens) = (5000, 64, 100);
    for world in 2..=4 {
        for exchange in [RowExchange::Union, RowExchange::Owners, RowExchange::Ordered] {
            let sent = run(world, |ranks| {
                let varmap = VarMap::new();
                let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
                let gradient = Gradient::RowSparse;
                let cfg = TokenEmbeddingConfig { vocab_size: v, d_model: c, gradient, ..Default::default() };
                let wte = TokenEmbedding::new(&cfg, vb).unwrap();
                let opt = AdamW::from_varmap(&varmap, ParamsAdamW::default()).unwrap();
                // 100 tokens, each row twice; no row on two ranks.
                let ids: Vec<u32> = (0..tokens as u32).map(|i| i / 2 * 7 + ranks.rank() as u32).collect();
                let parallel = DataParallel::new(ranks).with_rows(exchange);
                let x = wte.forward(&Tensor::new(ids, &Device::Cpu).unwrap()).unwrap();
                let mut grads = backward(&x.sum_all().unwrap()).unwrap();
                parallel.exchange(&opt, &mut grads).unwrap();
                ranks.barrier().unwrap();
                let sent = ranks.bytes();
                ranks.barrier().unwrap();
                sent
            });
            let rows = tokens / 2; // of a rank; the union has `world` times as many
            let law = match exchange {
                // All ranks give the union and the flags.
                RowExchange::Union => world * (world * rows * c * 4 + v),
                // All rows to their owners, then all sums.
                RowExchange::Owners => 2 * world * rows * (4 * c + 4),
                RowExchange::Ordered => world * tokens * (4 * c + 4),
            };
            let (least, most) = (law as f64, law as f64 * 1.05);
            assert!(sent.iter().all(|sent| (least..=most).contains(&(*sent as f64))), "{exchange:?}: {sent:?}, {law}");
        }
    }
}

#[test]
fn what_does_not_fit_is_named_on_every_rank() {
    run(2, |ranks| {
        let parallel = DataParallel::new(ranks);
        // Another shape on each rank.
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
        vb.get_with_hints(3 + ranks.rank(), "w", candle_nn::Init::Const(1.0)).unwrap();
        assert!(differs(&parallel.broadcast(&varmap).unwrap_err()));
        let opt = AdamW::from_varmap(&varmap, ParamsAdamW::default()).unwrap();
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        assert!(differs(&parallel.exchange(&opt, &mut grads).unwrap_err()));
        // Another way to exchange rows, and variables without names.
        let model = model(Gradient::RowSparse, 5);
        let opt = AdamW::from_varmap(&model.varmap, ParamsAdamW::default()).unwrap();
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        let rows = if ranks.rank() == 0 { RowExchange::Union } else { RowExchange::Owners };
        let error = DataParallel::new(ranks).with_rows(rows).exchange(&opt, &mut grads).unwrap_err();
        assert!(differs(&error) && error.to_string().contains("ways to exchange rows"), "{error}");
        drop(opt);
        let opt = AdamW::new(model.varmap.all_vars(), ParamsAdamW::default()).unwrap();
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        let error = parallel.exchange(&opt, &mut grads).unwrap_err();
        assert!(error.to_string().contains("without names"), "{error}");
        drop(opt);
        // Another value in one row on one rank.
        let model = crate::acceptance::exchange::model(Gradient::RowSparse, 5 + ranks.rank() as u64);
        let error = parallel.check_replicas(&model.varmap).unwrap_err();
        assert!(differs(&error) && error.to_string().contains("wte.weight"), "{error}");
        parallel.broadcast(&model.varmap).unwrap();
        parallel.check_replicas(&model.varmap).unwrap();
        // What no engine has.
        let bad = Tensor::zeros(2, DType::F8E4M3, &Device::Cpu).unwrap();
        assert!(Local.all_reduce(&bad, ReduceOp::Sum).is_err() && Local.broadcast(&bad, 1).is_err());
        let rows = Tensor::zeros((3, 2), DType::F32, &Device::Cpu).unwrap();
        assert!(ranks.all_to_all(&rows, &[1, 1]).is_err() && Local.all_to_all(&rows, &[2]).is_err());
    });
}

#[test]
fn rows_go_to_their_ranks() {
    let got = run(3, |ranks| {
        // Rank r sends r + 1 rows to rank 0, none to rank 1, and one to rank 2.
        let own = ranks.rank();
        let rows: Vec<u32> = (0..own as u32 + 2).map(|row| 10 * own as u32 + row).collect();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap().reshape(((), 1)).unwrap();
        let (rows, counts) = ranks.all_to_all(&rows, &[own + 1, 0, 1]).unwrap();
        (rows.flatten_all().unwrap().to_vec1::<u32>().unwrap(), counts)
    });
    assert_eq!(got[0], (vec![0, 10, 11, 20, 21, 22], vec![1, 2, 3]));
    assert_eq!(got[1], (vec![], vec![0, 0, 0]));
    assert_eq!(got[2], (vec![1, 12, 23], vec![1, 1, 1]));
}

#[test]
fn what_a_split_table_does_not_do_is_an_error_on_every_rank() {
    run(2, |ranks| {
        let model = split_model(Gradient::RowSparse, true, &shared(ranks));
        let own = Tensor::new(&[3u32, 5 + ranks.rank() as u32], &Device::Cpu).unwrap();
        let error = model.wte.lookup(&own).unwrap_err();
        assert!(matches!(error, Error::RanksDiffer { what: "the ids" }), "{error}");
        let far = Tensor::new(&[3u32, split::V as u32], &Device::Cpu).unwrap();
        let error = model.wte.lookup(&far).unwrap_err();
        assert!(matches!(&error, Error::IdOutOfRange { id: 29, rows: split::V, .. }), "{error}");
        let named = model.wte.clone().with_token_names(|id| Some(format!("token {id}")));
        let error = named.lookup(&far).unwrap_err();
        assert!(matches!(&error, Error::IdOutOfRange { token: Some(token), .. } if token == "token 29"), "{error}");
        let hidden = Tensor::zeros((2, split::C), DType::F32, &Device::Cpu).unwrap();
        let error = model.head.loss(&hidden, &own, &Default::default()).unwrap_err();
        assert!(matches!(error, Error::RanksDiffer { what: "the targets" }), "{error}");
        let vb = VarBuilder::from_varmap(&VarMap::new(), DType::F32, &Device::Cpu);
        let other = split::config(5 + ranks.rank(), Gradient::Dense);
        let error = VocabParallelEmbedding::new(&other, shared(ranks), vb).unwrap_err();
        assert!(matches!(error, Error::RanksDiffer { what: "the settings" }), "{error}");
        assert!(model.head.loss(&hidden, &far, &Default::default()).is_err());
        assert!(model.head.logits(&hidden).unwrap_err().to_string().contains("split between ranks"));
        let bias = Tensor::zeros(split::V.div_ceil(2), DType::F32, &Device::Cpu).unwrap();
        assert!(
            model.head.clone().with_bias(&bias.narrow(0, 0, split::V.div_ceil(2) - ranks.rank()).unwrap()).is_err()
        );
        // Hidden states of another model.
        let targets = Tensor::new(&[3u32, 5], &Device::Cpu).unwrap();
        let other = (&hidden + ranks.rank() as f64).unwrap();
        let error = model.head.loss(&other, &targets, &Default::default()).unwrap_err();
        assert!(matches!(error, Error::RanksDiffer { what: "the hidden states" }), "{error}");
        let nan = (&hidden * f64::NAN).unwrap();
        assert!(model.head.top_k(&nan, 2).is_err());
        let opt = AdamW::from_varmap(&model.varmap, ParamsAdamW::default()).unwrap();
        let mut grads = Tensor::zeros((), DType::F32, &Device::Cpu).unwrap().backward().unwrap();
        let error = DataParallel::new(ranks).exchange(&opt, &mut grads).unwrap_err();
        assert!(error.to_string().contains("\"wte.weight\" is split between the ranks"), "{error}");
        // The rest of the model can be given to all ranks.
        DataParallel::new(ranks).broadcast(&model.varmap).unwrap();
        // A file of another size.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.safetensors");
        let own_rows = model.wte.flushed_weight().unwrap();
        own_rows.save_safetensors("wte.weight", &path).unwrap();
        let options = LoadOptions { partial: true, ..Default::default() };
        let error = load_weights(&path, &model.varmap, &options).unwrap_err();
        assert!(error.to_string().contains("29 rows on all ranks"), "{error}");
        // Rank 0 cannot write: both say so, neither waits.
        let taken = folder.path().join("taken");
        std::fs::write(&taken, "a file, no folder").unwrap();
        let saved = Checkpoint::default().save(&taken, &model.varmap, Some(&opt), 0);
        assert!(saved.is_err(), "rank {}", ranks.rank());
    });
    run(3, |ranks| {
        let varmap = VarMap::new();
        let vb = VarBuilder::from_varmap(&varmap, DType::F64, &Device::Cpu);
        let error = VocabParallelEmbedding::new(&split::config(2, Gradient::Dense), shared(ranks), vb).unwrap_err();
        assert!(error.to_string().contains("each rank needs a row"), "{error}");
    });
}
