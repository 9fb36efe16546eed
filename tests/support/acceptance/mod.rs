//! What several ranks must give, whatever the engine: run on threads by tests/it, and on MPI's processes by crates/mpi.
//!
//! Each case is called on every rank, and compares with what one process computes.

pub mod exchange;
pub mod split;

use std::sync::Arc;

use tallow::distributed::Collective;

pub type Ranks = Arc<dyn Collective>;

pub type Case = (&'static str, fn(&Ranks));

pub const CASES: [Case; 10] = [
    ("rows are summed over all ranks", exchange::rows_are_summed_over_all_ranks),
    ("gradients are those of the joined batch", exchange::gradients_are_those_of_the_joined_batch),
    ("every exchange trains as one process does", exchange::every_exchange_trains_as_one_process_does),
    ("in order the table has the bits of one process", exchange::in_order_the_table_has_the_bits_of_one_process),
    ("parts of a batch, frozen rows and bf16", exchange::parts_frozen_rows_and_bf16),
    ("a run resumes from its checkpoint", exchange::a_run_resumes),
    ("a split table is that of one process", split::a_table_is_that_of_one_process),
    ("padding of a split table is no token", split::padding_is_no_token_and_starts_as_zeros),
    ("a split head is that of one process", split::a_head_is_that_of_one_process),
    ("a split model trains as one process does", split::a_model_trains_as_one_process_does),
];

pub struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}
