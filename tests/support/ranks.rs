//! Ranks that are threads of one process: an engine whose every operation is written out, for tests without MPI.

use std::sync::{Arc, Condvar, Mutex};

use candle_core::Tensor;
use tallow::Result;
use tallow::distributed::{Collective, ReduceOp, check_counts, check_dtype, check_root};

/// What a rank gives to an operation: a tensor, and counts for `all_to_all`.
type Given = (Tensor, Vec<usize>);

struct Shared {
    barrier: Barrier,
    slots: Mutex<Vec<Option<Given>>>,
    /// Bytes that the ranks gave to operations.
    bytes: Mutex<usize>,
}

/// As the standard library's, but a rank that panicked lets no other wait for it.
struct Barrier {
    ranks: usize,
    /// How many wait, how often all have met, whether one panicked.
    state: Mutex<(usize, usize, bool)>,
    changed: Condvar,
}

impl Barrier {
    fn wait(&self) {
        let mut state = self.state.lock().unwrap();
        let meeting = state.1;
        state.0 += 1;
        if state.0 == self.ranks {
            (state.0, state.1) = (0, meeting + 1);
            self.changed.notify_all();
        }
        while state.1 == meeting && !state.2 {
            state = self.changed.wait(state).unwrap();
        }
        let panicked = state.2;
        drop(state);
        assert!(!panicked, "another rank panicked");
    }
}

struct Panics<'a>(&'a Barrier);

impl Drop for Panics<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.state.lock().unwrap().2 = true;
            self.0.changed.notify_all();
        }
    }
}

#[derive(Clone)]
pub struct Threads {
    rank: usize,
    world_size: usize,
    shared: Arc<Shared>,
}

/// Runs `body` on every rank, and gives what each returned.
pub fn run<T: Send>(world_size: usize, body: impl Fn(&Threads) -> T + Sync) -> Vec<T> {
    let slots = Mutex::new((0..world_size).map(|_| None).collect());
    let barrier = Barrier { ranks: world_size, state: Mutex::default(), changed: Condvar::new() };
    let shared = Arc::new(Shared { barrier, slots, bytes: Mutex::new(0) });
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                let (shared, body) = (shared.clone(), &body);
                scope.spawn(move || {
                    let ranks = Threads { rank, world_size, shared };
                    let _panics = Panics(&ranks.shared.barrier);
                    body(&ranks)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

impl Threads {
    pub fn bytes(&self) -> usize {
        *self.shared.bytes.lock().unwrap()
    }

    /// What every rank gave.
    fn all(&self, tensor: &Tensor, counts: &[usize]) -> Vec<Given> {
        *self.shared.bytes.lock().unwrap() += tensor.elem_count() * tensor.dtype().size_in_bytes();
        // A copy: when an operation returns, the caller may overwrite its tensor.
        self.shared.slots.lock().unwrap()[self.rank] = Some((tensor.force_contiguous().unwrap(), counts.to_vec()));
        self.shared.barrier.wait();
        let all = self.shared.slots.lock().unwrap().iter().map(|slot| slot.clone().unwrap()).collect();
        self.shared.barrier.wait();
        all
    }
}

impl Collective for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Tensor> {
        check_dtype(tensor)?;
        let all = self.all(tensor, &[]);
        let (first, rest) = all.split_first().unwrap();
        let mut result = first.0.contiguous()?;
        for (other, _) in rest {
            assert_eq!((other.dims(), other.dtype()), (tensor.dims(), tensor.dtype()), "ranks meet in one operation");
            result = match op {
                ReduceOp::Sum => (result + other)?,
                ReduceOp::Max => result.maximum(other)?,
            };
        }
        Ok(result)
    }

    fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        check_dtype(tensor)?;
        let all: Vec<Tensor> = self.all(tensor, &[]).into_iter().map(|(tensor, _)| tensor).collect();
        Ok(Tensor::cat(&all, 0)?)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Tensor> {
        check_root(root, self.world_size)?;
        Ok(self.all(tensor, &[])[root].0.clone())
    }

    fn all_to_all(&self, rows: &Tensor, counts: &[usize]) -> Result<(Tensor, Vec<usize>)> {
        check_counts(rows, counts, self.world_size)?;
        let (mut parts, mut received) = (Vec::new(), Vec::new());
        for (rows, counts) in self.all(rows, counts) {
            let before: usize = counts[..self.rank].iter().sum();
            received.push(counts[self.rank]);
            if counts[self.rank] > 0 {
                parts.push(rows.narrow(0, before, counts[self.rank])?);
            }
        }
        let empty = || rows.narrow(0, 0, 0);
        let rows = if parts.is_empty() { empty()? } else { Tensor::cat(&parts, 0)? };
        Ok((rows, received))
    }

    fn barrier(&self) -> Result<()> {
        self.shared.barrier.wait();
        Ok(())
    }
}
