//! The name of a device → the device.

use candle_core::Device;

use crate::{Error, Result};

/// Opens `auto`, `cpu`, `cuda`, `cuda:N`, `metal` or `metal:N`.
///
/// `auto` tries CUDA 0, then Metal 0, then the CPU. If it falls back to the CPU, `warn` is called once with the reason. A CUDA
/// device keeps freed memory for later tensors: see [`keep_memory`].
///
/// Open a device once and clone it: candle does not combine tensors of two openings of the same device.
///
/// # Errors
/// [`Error::Device`]: an unknown name, a device without support in this build, or one that cannot be opened.
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
        return fail("the text after the colon is not a device number".to_string());
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
    // Fail now if the driver does not load the kernels.
    crate::cuda::check(device.as_cuda_device()?)?;
    // A device without memory pools returns an error, which does not matter.
    _ = keep_memory(&device, true);
    Ok(device)
}

fn open_metal(ordinal: usize) -> candle_core::Result<Device> {
    // candle indexes a list of devices, and panics if the ordinal is out of range.
    std::panic::catch_unwind(|| Device::new_metal(ordinal))
        .unwrap_or_else(|_| Err(candle_core::Error::Msg(format!("there is no Metal device {ordinal}"))))
}

/// Whether the process keeps the freed memory of a CUDA device for later tensors, or returns it to the driver at every
/// synchronization.
///
/// CUDA's default is to return it. The next step then maps it again, which can take longer than the step's work. So [`open`]
/// keeps it. Pass `false` if other processes need the memory. The setting applies to the device in this process. Other kinds of
/// devices ignore it.
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
            Err(error) => reasons.push(format!("CUDA cannot be opened ({})", Error::from(error))),
        }
    }
    if cfg!(feature = "metal") {
        match open_metal(0) {
            Ok(device) => return device,
            Err(error) => reasons.push(format!("Metal cannot be opened ({})", Error::from(error))),
        }
    }
    if reasons.is_empty() {
        reasons.push("this build has neither the feature cuda nor metal".to_string());
    }
    warn(&format!("no GPU, using the CPU: {}", reasons.join("; ")));
    Device::Cpu
}
