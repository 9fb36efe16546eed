//! The name of a device → the device.

use candle_core::Device;

use crate::{Error, Result};

/// Opens `auto`, `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`.
///
/// `auto` is the first of CUDA 0, Metal 0 and the CPU that opens. Where that is the CPU, `warn` is called once
/// with the reason. Memory of a CUDA device that tensors free is kept for later ones: see [`keep_memory`].
///
/// Open a device once and clone it: tensors of two openings of one device do not meet.
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
        Some((kind, number)) => (kind, number.parse::<u16>()),
    };
    let Ok(ordinal) = ordinal.map(usize::from) else {
        return fail("what follows the colon is not the number of a device".to_string());
    };
    match kind {
        "cpu" if !name.contains(':') => Ok(Device::Cpu),
        "auto" if !name.contains(':') => Ok(open_first(warn)),
        "cuda" if !cfg!(feature = "cuda") => fail("this build has no CUDA: it needs the feature `cuda`".to_string()),
        "cuda" => open_cuda(ordinal).or_else(|e| fail(Error::from(e).to_string())),
        "metal" if !cfg!(feature = "metal") => {
            fail("this build has no Metal: it needs the feature `metal`".to_string())
        }
        "metal" => open_metal(ordinal).or_else(|e| fail(Error::from(e).to_string())),
        _ => fail("not a device: use auto, cpu, cuda, cuda:N, metal or metal:N".to_string()),
    }
}

fn open_cuda(ordinal: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda(ordinal)?;
    // A device that does not take the kernels is of no use.
    crate::cuda::check(device.as_cuda_device()?)?;
    // One without memory pools has nothing to keep.
    _ = keep_memory(&device, true);
    Ok(device)
}

fn open_metal(ordinal: usize) -> candle_core::Result<Device> {
    // candle takes the device out of a list, and panics where it is not in it.
    std::panic::catch_unwind(|| Device::new_metal(ordinal))
        .unwrap_or_else(|_| Err(candle_core::Error::Msg(format!("there is no Metal device {ordinal}"))))
}

/// Whether memory that tensors of a CUDA device free stays with the process, for the next tensors, or goes back to the system
/// whenever the device is waited for.
///
/// CUDA gives it back by default, and the next step maps it again, which can take longer than the step's work; [`open`] therefore
/// keeps it. Call this with `false` where other processes need what this one does not use at the moment. It is a property of the device in this process. Nothing happens on other devices.
///
/// Source: `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD` of the device's default pool, CUDA driver API.
///
/// # Errors
/// Those of the driver.
pub fn keep_memory(device: &Device, keep: bool) -> Result<()> {
    match device {
        Device::Cuda(device) => Ok(crate::cuda::keep_memory(device, keep)?),
        _ => Ok(()),
    }
}

fn open_first(warn: impl FnOnce(&str)) -> Device {
    let mut reasons = Vec::new();
    if cfg!(feature = "cuda") {
        match open_cuda(0) {
            Ok(device) => return device,
            Err(error) => reasons.push(format!("CUDA does not open ({})", Error::from(error))),
        }
    }
    if cfg!(feature = "metal") {
        match open_metal(0) {
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
