//! Rank and world size of a process.

/// One of `world_size` processes that share the work. `rank` counts from 0. The default is a single process.
///
/// # Example
/// ```
/// use tallow_text::Tokenizer;
/// use tallow_text::prepare::{PrepareConfig, Rank, prepare};
/// let folder = tempfile::tempdir()?;
/// let (input, out) = (folder.path().join("a.txt"), folder.path().join("tokens"));
/// std::fs::write(&input, "Hello world")?;
/// let cfg = PrepareConfig { inputs: vec![input], out, rank: Rank { rank: 1, world_size: 2 }, ..Default::default() };
/// assert!(prepare(&Tokenizer::cl100k(), &cfg, &|_| ())?.is_none()); // the only unit belongs to rank 0
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rank {
    /// Rank of this process.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
}

impl Default for Rank {
    fn default() -> Self {
        Rank { rank: 0, world_size: 1 }
    }
}

/// Environment variables of schedulers: rank, number of ranks, number of the first rank, rank on this machine, and the scheduler's
/// name. A job array may begin with any number. Kubernetes tells a pod only its index. SLURM sets
/// `SLURM_PROCID` and `SLURM_NTASKS` also in a batch script, which is one process; only `srun` sets `SLURM_STEP_NUM_TASKS`.
type Variables = [&'static str; 5];
const VARIABLES: [Variables; 6] = [
    ["RANK", "WORLD_SIZE", "", "LOCAL_RANK", "torchrun"],
    ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "", "OMPI_COMM_WORLD_LOCAL_RANK", "OpenMPI"],
    ["PMI_RANK", "PMI_SIZE", "", "MPI_LOCALRANKID", "PMI"],
    ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "", "SLURM_LOCALID", "SLURM"],
    ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "", "a SLURM job array"],
    ["JOB_COMPLETION_INDEX", "", "", "", "a Kubernetes indexed job"],
];

/// Reads the rank that a scheduler gave this process, and returns it with the scheduler's name. `variable` reads one environment
/// variable. `world_size` is the user's number of processes, for schedulers that do not set one.
///
/// Returns `None` without a scheduler, or if there is only one process.
///
/// # Errors
/// A message about variables that contradict each other or are not numbers.
///
/// # Example
/// ```
/// use tallow_text::prepare::{Rank, rank_from_env};
/// let slurm = |name: &str| match name {
///     "SLURM_PROCID" => Some("3".to_string()),
///     "SLURM_STEP_NUM_TASKS" => Some("8".to_string()),
///     _ => None,
/// };
/// assert_eq!(rank_from_env(slurm, None), Ok(Some((Rank { rank: 3, world_size: 8 }, "SLURM"))));
/// assert_eq!(rank_from_env(|_| None, None), Ok(None));
/// ```
pub fn rank_from_env(
    variable: impl Fn(&str) -> Option<String>,
    world_size: Option<usize>,
) -> Result<Option<(Rank, &'static str)>, String> {
    let advice = ": set the rank (`PrepareConfig::rank`)";
    Ok(find(&VARIABLES, &variable, world_size, advice)?.map(|(rank, [.., scheduler])| (rank, scheduler)))
}

/// Reads what a launcher gave to a process that runs together with all other ranks (torchrun, Open MPI, PMI, SLURM): its rank, and
/// its rank among the processes on this machine, which is the number of its GPU. Nothing says that the processes of a job array or of
/// an indexed job run at the same time, so they are no ranks here. `variable` reads one environment variable.
///
/// Returns `None` without a launcher, or if there is only one process.
///
/// # Errors
/// A message about variables that are missing, contradict each other or are not numbers.
///
/// # Example
/// ```
/// use tallow_text::prepare::{Rank, launched_rank_from_env};
/// let torchrun = |name: &str| match name {
///     "RANK" => Some("5".to_string()),
///     "WORLD_SIZE" => Some("8".to_string()),
///     "LOCAL_RANK" => Some("1".to_string()),
///     _ => None,
/// };
/// assert_eq!(launched_rank_from_env(torchrun), Ok(Some((Rank { rank: 5, world_size: 8 }, 1))));
/// assert_eq!(launched_rank_from_env(|_| None), Ok(None));
/// ```
pub fn launched_rank_from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Option<(Rank, usize)>, String> {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let launched = |[rank, size, _, local, _]: &Variables| !local.is_empty() && is_set(rank) && is_set(size);
    // The first launcher decides, also if it started one process: the next one is then an outer launcher, with ranks of its own.
    let Some(variables) = VARIABLES.into_iter().find(launched) else { return Ok(None) };
    let Some((rank, [.., local_name, launcher])) = find(&[variables], &variable, None, "")? else { return Ok(None) };
    match number(&variable, local_name)? {
        Some(local) => Ok(Some((rank, local))),
        None => Err(format!("{launcher} set no {local_name}, which is the rank on this machine: set it")),
    }
}

fn number(variable: &impl Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>, String> {
    match variable(name).filter(|value| !value.is_empty()) {
        None => Ok(None),
        Some(value) => value.trim().parse::<usize>().map(Some).map_err(|_| format!("{name}={value} is not a number")),
    }
}

/// The rank by the first of these schedulers that has several, and its variables.
fn find(
    schedulers: &[Variables],
    variable: &impl Fn(&str) -> Option<String>,
    world_size: Option<usize>,
    advice: &str,
) -> Result<Option<(Rank, Variables)>, String> {
    let number = |name| number(variable, name);
    for &variables in schedulers {
        let [rank_name, size_name, first_name, _, scheduler] = variables;
        let Some(rank) = number(rank_name)? else { continue };
        let size = if size_name.is_empty() { None } else { number(size_name)? };
        let first = if first_name.is_empty() { 0 } else { number(first_name)?.unwrap_or(0) };
        let world_size = match (world_size, size) {
            (Some(said), Some(size)) if said != size => continue, // the variables are of another job
            (Some(said), _) => said,
            (None, Some(size)) => size,
            (None, None) if size_name.is_empty() => {
                return Err(format!(
                    "{rank_name}={rank} is set by {scheduler}, which does not tell the number of ranks: set it (`world_size`)"
                ));
            }
            (None, None) => continue,
        };
        if world_size <= 1 {
            continue;
        }
        let rank = rank.checked_sub(first).filter(|rank| *rank < world_size).ok_or_else(|| {
            format!("{rank_name}={rank} is not one of {world_size} ranks from {first} on ({scheduler}){advice}")
        })?;
        return Ok(Some((Rank { rank, world_size }, variables)));
    }
    Ok(None)
}
