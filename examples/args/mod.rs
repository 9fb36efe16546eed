//! The flags that the examples share.

use candle_core::Device;
use tallow::device::{keep_memory, open};

/// The device that `--device NAME` names, `default` without. `--release-memory` gives memory of a GPU back whenever it is not in use.
pub fn device(default: &str) -> tallow::Result<Device> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let named = |(at, arg): (usize, &String)| match arg.strip_prefix("--device")? {
        "" => Some(args.get(at + 1).cloned().unwrap_or_default()),
        rest => rest.strip_prefix('=').map(str::to_string),
    };
    let name = args.iter().enumerate().find_map(named);
    let name = name.as_deref().unwrap_or(default);
    let device = open(name, |reason| eprintln!("warning: {reason}"))?;
    if args.iter().any(|arg| arg == "--release-memory") {
        keep_memory(&device, false)?;
    }
    Ok(device)
}
