#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, a driver and PyTorch's CUDA 13 libraries, but without Rust:
#     tests/gpu/run.sh BINARY FOLDER
# times PyTorch, checks and times everything beside it, and leaves one report, tallow.json, in FOLDER (PyTorch's own is in torch.json, too). Exits with 77 where there is no device.
set -uo pipefail
binary=$1 out=$2 here=$(dirname "$0")
libraries=$(python3 -c 'import nvidia, os; print(":".join(os.path.join(list(nvidia.__path__)[0], name, "lib") for name in ("cu13", "nccl")))' 2>/dev/null)
export LD_LIBRARY_PATH=${libraries:-}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}:/usr/local/nvidia/lib64
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv 2>/dev/null
if ldd "$binary" | grep 'not found'; then
  echo "SKIPPED: libraries of CUDA are missing"
  exit 77
fi
python3 "$here/torch_reference.py" >"$out/torch.json" || echo "no PyTorch reference"
"$binary" --json "$out/tallow.json" --torch "$out/torch.json"
status=$?
if [ $status = 0 ] && command -v compute-sanitizer >/dev/null; then
  compute-sanitizer --tool memcheck --error-exitcode 1 "$binary" --quick | tail -3 || status=1
fi
exit $status
