//! The layer and its optimizers on a GPU: everything against the CPU, then timed beside stock candle. One program for a machine that may
//! have no Rust: build it where Rust is, carry it.
//!
//!     cargo test --release --features cuda --test gpu -- --json report.json        # cuda:0; or --device metal
//!     cargo test --release --features nccl --test gpu -- --json report.json        # and NCCL between up to three GPUs
//!
//! It prints what it checks and measures, writes a report, and exits with 0 when every check passed, 1 when one did not, 77 when there is no
//! such device. `--torch FILE`, the report of torch_reference.py, adds PyTorch's times to the goals. `--device cpu` compares the CPU with itself, which checks this program; `--quick` leaves out the timings and the table beyond 2³² elements.

mod checks;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(feature = "nccl")]
#[path = "../support/ranks.rs"]
#[allow(dead_code)] // what the tests of the CPU ask
mod ranks;
#[cfg(feature = "cuda")]
mod speed;

use std::process::ExitCode;

use candle_core::Device;
use serde_json::{Value, json};

/// What was found, in the order in which it was.
#[derive(Default)]
struct Report {
    checks: Vec<Value>,
    failed: usize,
}

impl Report {
    /// Runs a check; what it returns says what was seen.
    fn check(&mut self, name: &str, check: impl FnOnce() -> anyhow::Result<String>) {
        let started = std::time::Instant::now();
        let (ok, said) = match check() {
            Ok(said) => (true, said),
            Err(error) => (false, format!("{error:#}")),
        };
        self.failed += usize::from(!ok);
        println!("{} {name}: {said} ({:.1} s)", if ok { "ok    " } else { "FAILED" }, started.elapsed().as_secs_f64());
        self.checks.push(json!({ "name": name, "ok": ok, "said": said }));
    }

    /// Says that a check cannot run on this machine.
    #[cfg(feature = "nccl")]
    fn leave_out(&mut self, name: &str, why: &str) {
        println!("left out {name}: {why}");
        self.checks.push(json!({ "name": name, "ok": null, "said": why }));
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (mut name, mut file, mut torch, mut quick) = ("cuda:0".to_string(), None, None, false);
    while let Some(arg) = args.next() {
        match (arg.as_str(), &mut args) {
            ("--device", args) => name = args.next().unwrap_or_default(),
            ("--json", args) => file = args.next(),
            ("--torch", args) => torch = args.next(),
            ("--quick", _) => quick = true,
            ("--nocapture" | "--quiet" | "-q", _) => (),
            _ => {
                eprintln!("usage: gpu [--device cuda[:N]|metal[:N]|cpu] [--json FILE] [--torch FILE] [--quick]");
                return ExitCode::from(2);
            }
        }
    }
    let device = match tallow::device::open(&name, |_| ()) {
        Ok(device) => device,
        Err(error) => {
            println!("SKIPPED: {error}");
            return ExitCode::from(77);
        }
    };
    let mut report = Report::default();
    checks::all(&mut report, &device, quick);
    #[cfg(feature = "nccl")]
    if device.is_cuda() {
        nccl::all(&mut report);
    }
    let read = |file: &String| serde_json::from_str(&std::fs::read_to_string(file).unwrap_or_default());
    let torch = torch.as_ref().map_or(Ok(Value::Null), read).unwrap_or_else(|error| {
        eprintln!("warning: goals without PyTorch, its report cannot be read: {error}");
        Value::Null
    });
    let (timings, goals) = timings(&device, quick, &torch);
    let whole = json!({
        "device": device_facts(&device),
        "tallow": env!("CARGO_PKG_VERSION"),
        "checks": report.checks,
        "timings": timings,
        "goals": goals,
        "pytorch": torch,
    });
    if let Some(file) = file
        && let Err(error) = std::fs::write(&file, format!("{whole:#}\n"))
    {
        eprintln!("{file}: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(error) = whole["timings"].get("error") {
        println!("FAILED timings: {error}");
        report.failed += 1;
    }
    let left_out = report.checks.iter().filter(|check| check["ok"].is_null()).count();
    println!("{} checks, {} failed, {left_out} left out", report.checks.len() - left_out, report.failed);
    if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(feature = "cuda")]
fn timings(device: &Device, quick: bool, torch: &Value) -> (Value, Value) {
    match device {
        Device::Cuda(device) if !quick => {
            speed::all(device, torch).unwrap_or_else(|error| (json!({ "error": format!("{error:#}") }), Value::Null))
        }
        _ => (Value::Null, Value::Null),
    }
}

#[cfg(not(feature = "cuda"))]
fn timings(_: &Device, _: bool, _: &Value) -> (Value, Value) {
    (Value::Null, Value::Null)
}

fn device_facts(device: &Device) -> Value {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        let stream = device.cuda_stream();
        let context = stream.context();
        return json!({ "name": context.name().ok(), "compute_capability": context.compute_capability().ok() });
    }
    json!({ "name": format!("{:?}", device.location()) })
}
