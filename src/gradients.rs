//! A faster backward for large variables, weights without gradients, and the variables that got no gradient.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{VarBuilder, VarMap};

use crate::rows::RowTable;
use crate::support::variables::variables;

thread_local! {
    /// Variables and their gradients, while [`backward`] runs on this thread.
    static COLLECTED: RefCell<Collected> = const { RefCell::new(None) };
}

/// `loss.backward()`, faster for weights of a vocabulary's size.
///
/// candle allocates zeros of a variable's size for its first gradient and adds the gradient to them: two more buffers of
/// that size, on one thread. This function passes the gradient buffer of [`Head::loss`](crate::Head::loss) to the optimizer without
/// copying. The gradients are the same. [`optim::AdamW`](crate::optim::AdamW) and [`optim::Sgd`](crate::optim::Sgd) use it in
/// `backward_step`. With another optimizer write `opt.step(&tallow::backward(&loss)?)`.
///
/// # Errors
/// Those of `Tensor::backward`.
///
/// # Cost
/// As `Tensor::backward`, less four times the weight's bytes of memory traffic and twice the weight's bytes of memory.
pub fn backward(loss: &Tensor) -> candle_core::Result<GradStore> {
    // Restores the state of an outer call, also if backward panics, so that no later call loses its gradients.
    let _outer = Outer(COLLECTED.replace(Some(Vec::new())));
    let mut grads = loss.backward()?;
    for (variable, grad) in COLLECTED.take().unwrap_or_default() {
        let sum = match grads.remove(&variable) {
            Some(other) => (other + grad)?,
            None => grad,
        };
        grads.insert(&variable, sum);
    }
    Ok(grads)
}

/// The weights of `varmap` without gradients. Build the model a second time over them, to evaluate and to generate: no operation
/// stores its input, and [`Head::loss`](crate::Head::loss) computes no gradients.
///
/// The weights share the variables' memory, so they follow every step of an optimizer. A [`TokenEmbedding`](crate::TokenEmbedding)
/// and a [`head`](crate::head) over them replay the deferred updates of a row-sparse table before they read it. A layer of candle's
/// over that table does not: call [`AdamW::flush`](crate::optim::AdamW::flush) first. Getting a weight in another dtype or on another
/// device than the variable's is an error, because a converted weight would be a copy.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::{VarBuilder, VarMap};
/// use tallow::{TokenEmbedding, TokenEmbeddingConfig};
/// let (varmap, cfg) = (VarMap::new(), TokenEmbeddingConfig { vocab_size: 10, ..Default::default() });
/// let wte = TokenEmbedding::new(&cfg, VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu))?;
/// let frozen = TokenEmbedding::new(&cfg, tallow::no_grad(&varmap, DType::F32, &Device::Cpu))?;
/// let ids = Tensor::new(&[3u32], &Device::Cpu)?;
/// assert!(wte.forward(&ids)?.track_op() && !frozen.forward(&ids)?.track_op());
/// # Ok::<(), tallow::Error>(())
/// ```
pub fn no_grad(varmap: &VarMap, dtype: DType, device: &Device) -> VarBuilder<'static> {
    let detached = variables(varmap).into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
    VarBuilder::from_backend(Box::new(Shared(detached)), dtype, device.clone())
}

/// Tensors that share memory with the variables. They are never converted: a copy would not follow later steps.
struct Shared(HashMap<String, Tensor>);

impl Shared {
    fn check(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<()> {
        match self.0.get(name) {
            Some(weight) if weight.dtype() != dtype || !weight.device().same_device(device) => candle_core::bail!(
                "{name:?} is {} on {:?}, and no_grad shares its memory: give it that dtype and device, not {} on {:?}",
                weight.dtype().as_str(),
                weight.device().location(),
                dtype.as_str(),
                device.location()
            ),
            _ => Ok(()),
        }
    }
}

impl SimpleBackend for Shared {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: candle_nn::Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        self.check(name, dtype, device)?;
        SimpleBackend::get(&self.0, shape, name, init, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.check(name, dtype, device)?;
        SimpleBackend::get_unchecked(&self.0, name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// The names of the variables of `varmap` that have no gradient in `grads`, in alphabetical order.
///
/// Such variables are not trained, and no optimizer reports it. Usually an operation without a backward is between the variable and
/// the loss: candle's fused `RmsNorm::forward`, `LayerNorm::forward`, `rotary_emb::rope` and `ops::softmax_last_dim` have none,
/// and a GPT that uses them trains only its head. docs/training.md lists them with replacements. Or the variable is unused. Call this
/// once, after the first backward and before the step. A row-sparse table has a gradient if row gradients of `grads` are pending.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// let varmap = VarMap::new();
/// let vb = VarBuilder::from_varmap(&varmap, DType::F32, &Device::Cpu);
/// let norm = candle_nn::rms_norm(4, 1e-5, vb.pp("norm"))?;
/// let head = candle_nn::linear_no_bias(4, 2, vb.pp("head"))?;
/// let x = Tensor::ones((3, 4), DType::F32, &Device::Cpu)?;
/// let grads = head.forward(&norm.forward(&x)?)?.sum_all()?.backward()?;
/// assert_eq!(tallow::gradients::missing(&grads, &varmap), ["norm.weight"]);
/// let grads = head.forward(&norm.forward_diff(&x)?)?.sum_all()?.backward()?;
/// assert!(tallow::gradients::missing(&grads, &varmap).is_empty());
/// # Ok::<(), tallow::Error>(())
/// ```
pub fn missing(grads: &GradStore, varmap: &VarMap) -> Vec<String> {
    let trains = |tensor: &Tensor| {
        grads.get(tensor).is_some() || RowTable::find(tensor).is_some_and(|table| table.waits_for(grads))
    };
    let missing = variables(varmap).into_iter().filter(|(_, var)| var.dtype().is_float() && !trains(var.as_tensor()));
    missing.map(|(name, _)| name).collect()
}

type Collected = Option<Vec<(Tensor, Tensor)>>;

struct Outer(Collected);

impl Drop for Outer {
    fn drop(&mut self) {
        COLLECTED.set(self.0.take());
    }
}

/// The gradient that an operation's `bwd` returns to candle for `arg`. `None` if [`backward`] collects it instead.
pub(crate) fn hand_over(arg: &Tensor, grad: Option<Tensor>) -> Option<Tensor> {
    let grad = grad?;
    COLLECTED.with_borrow_mut(|collected| match collected {
        Some(collected) if arg.is_variable() => {
            collected.push((arg.clone(), grad));
            None
        }
        _ => Some(grad),
    })
}
