//! candle's operations against the fused arithmetic of the host: the same bits.

use super::*;
use crate::optim::place::{self, Operations};
use crate::optim::rule::Numbers;
use crate::rows::RowGradients;
use candle_core::{DType, Device, Var};
use candle_nn::ParamsAdamW;

/// The path for devices, run on the CPU, against the fused one.
#[test]
fn candles_operations_give_the_fused_bits() {
    for (dtype, replay) in [
        (DType::F32, Replay::Exact),
        (DType::BF16, Replay::Exact),
        (DType::F32, Replay::Truncated { steps: 5 }),
        (DType::F32, Replay::Lazy),
    ] {
        let start = Tensor::randn(0f32, 0.1, (9, 5), &Device::Cpu).and_then(|t| t.to_dtype(dtype)).unwrap();
        let vars = [0, 1].map(|_| Var::from_tensor(&start.copy().unwrap()).unwrap());
        let places: [Box<dyn Place>; 2] =
            [place::of(&vars[0], true).unwrap(), Box::new(Operations::new(&vars[1], true).unwrap())];
        let mut tables = Vec::new();
        for (var, place) in vars.into_iter().zip(places) {
            let one = Variable::in_place("wte".to_string(), var, place).unwrap();
            one.table.make_row_sparse(&one.var).unwrap();
            one.set_replay(replay).unwrap();
            tables.push(one);
        }
        table_steps(&tables);
        let bits = |one: &Variable| {
            one.table.replay(Rows::All).unwrap();
            let weight = one.var.to_dtype(DType::F32).unwrap();
            let values = weight.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
        };
        let (host, device) = (bits(&tables[0]), bits(&tables[1]));
        assert_eq!(host, device, "{dtype:?} {replay:?}");
        let first = start.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        assert_ne!(host[0], first.to_bits());
    }
}

fn table_steps(tables: &[Variable]) {
    let params = ParamsAdamW { lr: 1e-2, weight_decay: 0.1, ..Default::default() };
    for t in 1..=40usize {
        let rows: Vec<u32> = (0..9).filter(|row| t % (*row as usize + 1) == 0).collect();
        let values = Tensor::randn(0f32, 1.0, (rows.len(), 5), &Device::Cpu).unwrap();
        for one in tables {
            let mut grads = Var::zeros(1, DType::F32, &Device::Cpu).unwrap().backward().unwrap(); // of nothing else
            if t == 20 {
                grads.insert(&one.var, Tensor::ones((9, 5), one.var.dtype(), &Device::Cpu).unwrap());
            } else {
                one.table.push_rows(RowGradients { rows: rows.clone(), values: values.clone() }).unwrap();
            }
            one.step(&grads, &params.update(t)).unwrap();
        }
    }
}
