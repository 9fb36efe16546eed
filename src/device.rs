//! The name of a device → the device.

use candle_core::Device;

use crate::{Error, Result};

/// Opens `auto`, `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`.
///
/// `auto` is the first of CUDA 0, Metal 0 and the CPU that opens. Where that is the CPU, `warn` is called once
/// with the reason.
///
/// # Errors
/// [`Error::Device`]: no such name, a device that this build was not made for, or one that does not open.
///
/// # Example
/// ```
/// assert!(tallow::device::open("cpu", |_| ())?.is_cpu());
/// assert!(tallow::device::open("tpu", |_| ()).unwrap_err().to_string().contains("auto, cpu, cuda, cuda:N"));
/// # Ok::<(), tallow::Error>(())
/// ```
pub fn open(name: &str, warn: impl FnOnce(&str)) -> Result<Device> {
    let fail = |reason: String| Err(Error::Device { device: name.to_string(), reason });
    let (kind, ordinal) = match name.split_once(':') {
        None => (name, Ok(0)),
        Some((kind, number)) => (kind, number.parse::<usize>()),
    };
    let Ok(ordinal) = ordinal else { return fail("the number after the colon is not a number".to_string()) };
    match kind {
        "cpu" if !name.contains(':') => Ok(Device::Cpu),
        "auto" if !name.contains(':') => Ok(open_first(warn)),
        "cuda" if !cfg!(feature = "cuda") => fail("this build has no CUDA: build with `--features cuda`".to_string()),
        "cuda" => Device::new_cuda(ordinal).or_else(|e| fail(Error::from(e).to_string())),
        "metal" if !cfg!(feature = "metal") => {
            fail("this build has no Metal: build with `--features metal`".to_string())
        }
        "metal" => Device::new_metal(ordinal).or_else(|e| fail(Error::from(e).to_string())),
        _ => fail("not a device: use auto, cpu, cuda, cuda:N, metal or metal:N".to_string()),
    }
}

fn open_first(warn: impl FnOnce(&str)) -> Device {
    let mut reasons = Vec::new();
    if cfg!(feature = "cuda") {
        match Device::new_cuda(0) {
            Ok(device) => return device,
            Err(error) => reasons.push(format!("CUDA does not open ({})", Error::from(error))),
        }
    }
    if cfg!(feature = "metal") {
        match Device::new_metal(0) {
            Ok(device) => return device,
            Err(error) => reasons.push(format!("Metal does not open ({})", Error::from(error))),
        }
    }
    if reasons.is_empty() {
        reasons.push("this build has neither the feature cuda nor metal".to_string());
    }
    warn(&format!("no GPU, using the CPU: {}", reasons.join("; ")));
    Device::Cpu
}
