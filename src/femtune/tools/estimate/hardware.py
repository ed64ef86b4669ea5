"""Devices of the cost model: peak, bandwidth, memory, and achieved efficiency.

Peaks are dense; vendors state twice that "with sparsity". Sources, all NVIDIA's data sheets:

    h100, h200   H100 SXM, H200 SXM: 1,979 TFLOPS bfloat16 with sparsity; 3.35 and 4.8 TB/s; 80, 141 GB
    a100         A100 80GB SXM: 312 TFLOPS bfloat16, dense; 2,039 GB/s
    l40s, l4     733 and 242 TFLOPS with sparsity; 864 and 300 GB/s; 48, 24 GB
    rtx4090      Ada GPU architecture, appendix A: 165.2 TFLOPS with float32 accumulation; 1,008 GB/s
    b200         HGX B200, DGX B200: 4.5 PFLOPS with sparsity, 8 TB/s, 180 GB a GPU

float32 rates are those of the CUDA cores: torch's default does not use TF32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from femtune._util.device_memory import machine_memory
from femtune._util.text import near
from femtune.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Achieved shares of a device's peak rates, and fixed overheads in seconds."""

    matrix: float  # of the peak, in passes over prompts and large batches
    bandwidth: float  # of the bandwidth, in decoding
    training: float  # of the peak, forward and backward: "model FLOPs utilisation"
    step_layer_s: float  # a decoding step takes at least this for each layer
    batch_layer_s: float  # the same of a micro-batch of the M-step
    load_s: float  # for each model loaded or stored, apart from its bytes
    source: str


# Fitted to models of 1M and 14M parameters, one core, float32, transformers: see bench/plan.py.
CPU = Efficiency(
    matrix=0.75,
    bandwidth=0.35,
    training=0.65,
    step_layer_s=2.5e-4,
    batch_layer_s=1.5e-3,
    load_s=0.15,
    source="fitted by us, to small models on a CPU",
)
# Seconds fitted to models of 1M and 0.7B parameters on an H200, where Python is the bottleneck, as it
# launches kernels one by one. Shares are assumed: PaLM (arXiv 2204.02311, table 3) reports 0.46 of the
# peak in training, and this sampler is simpler.
GPU_EAGER = Efficiency(
    matrix=0.5,
    bandwidth=0.6,
    training=0.35,
    step_layer_s=5e-4,
    batch_layer_s=5e-3,
    load_s=0.4,
    source="seconds fitted by us on an H200, shares assumed",
)
# vLLM captures a step as one CUDA graph: a launch for all layers.
GPU_GRAPHS = Efficiency(
    matrix=0.5,
    bandwidth=0.75,
    training=0.35,
    step_layer_s=2e-5,
    batch_layer_s=5e-3,
    load_s=10.0,
    source="vLLM not measured by us on a GPU",
)

DISK = 1e9  # bytes/s, assumed: half of a cheap NVMe disk, about a good network disk


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device, in FLOP/s, bytes/s and bytes."""

    name: str
    peaks: Mapping[str, float]  # by dtype: bfloat16, float32
    bandwidth: float
    memory: float
    is_gpu: bool = True
    is_measured: bool = False

    def peak(self, dtype: str) -> float:
        """Return the peak FLOP/s of a dtype."""
        return self.peaks.get(dtype) or max(self.peaks.values())  # float16 is as fast as bfloat16

    def efficiency(self, engine: str) -> Efficiency:
        if not self.is_gpu:
            return CPU
        return GPU_EAGER if engine == "transformers" else GPU_GRAPHS


def _sheet(name: str, bfloat16: float, float32: float, bandwidth: float, memory: float) -> Hardware:
    """Build a device from a data sheet's TFLOPS, TFLOPS, GB/s and GB."""
    peaks = {"bfloat16": bfloat16 * 1e12, "float32": float32 * 1e12}
    return Hardware(name=name, peaks=peaks, bandwidth=bandwidth * 1e9, memory=memory * 1e9)


TABLE = {
    device.name: device
    for device in (
        _sheet("b200", 2250, 75, 8000, 180),
        _sheet("h200", 989.5, 67, 4800, 141),
        _sheet("h100", 989.5, 67, 3350, 80),
        _sheet("a100", 312, 19.5, 2039, 80),
        _sheet("l40s", 366.5, 91.6, 864, 48),
        _sheet("rtx4090", 165.2, 82.6, 1008, 24),
        _sheet("l4", 121, 30.3, 300, 24),
    )
}


def check_hardware(name: str) -> None:
    """Raise ConfigError for an unknown name."""
    if name not in ("here", *TABLE):
        guess = near(name, TABLE)
        known = ", ".join(TABLE)
        raise ConfigError(f"hardware {name!r} is not known.{guess} Choose one of {known}, or here.")


_LARGEST = 4096  # maximum rows and columns of a benchmarked matrix, to take about a second
_ROWS = 256  # tokens that it is multiplied with
_SPAN_S = 0.3  # of each measurement


def this_machine(
    matrices: Iterable[tuple[int, int]], dtypes: Iterable[str], device: str | None
) -> Hardware:
    """Measure this machine's CPU or GPU by products with matrices of these shapes, and a memory copy.

    Takes about a second. It uses the best of several runs, so that other processes matter little.
    """
    import torch  # slow import; only needed to measure this machine

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wait: Callable[[], object] = torch.cuda.synchronize if place.type == "cuda" else lambda: None
    shapes = [(min(a, _LARGEST), min(b, _LARGEST)) for a, b in sorted(set(matrices))[:8]]
    peaks = {}
    wanted = {*dtypes, "bfloat16"} if place.type == "cuda" else {*dtypes}  # M-steps on a GPU use it
    for name in wanted:
        made: list[tuple[Any, Any]] = []
        for out, into in shapes:
            options: dict[str, Any] = {"device": place, "dtype": getattr(torch, name)}
            made.append((torch.randn(_ROWS, into, **options), torch.randn(out, into, **options)))

        def multiply(made: list[tuple[Any, Any]] = made) -> None:
            for left, right in made:
                torch.nn.functional.linear(left, right)

        flops = sum(2 * _ROWS * out * into for out, into in shapes)
        peaks[name] = flops / _quickest(multiply, wait)
    source = torch.zeros(1 << 25, device=place)  # 128 MiB: larger than the caches
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / _quickest(lambda: target.copy_(source), wait)
    if place.type == "cuda":
        memory = float(torch.cuda.get_device_properties(place).total_memory)
        return Hardware(
            name=f"here ({torch.cuda.get_device_name(place)})",
            peaks=peaks,
            bandwidth=copied,
            memory=memory,
            is_gpu=True,
            is_measured=True,
        )
    threads = torch.get_num_threads()
    name = f"here (CPU, {threads} thread{'s' * (threads > 1)})"
    return Hardware(
        name=name,
        peaks=peaks,
        bandwidth=copied,
        memory=machine_memory(),
        is_gpu=False,
        is_measured=True,
    )


def _quickest(work: Callable[[], object], wait: Callable[[], object]) -> float:
    """Return the seconds of the fastest of several runs."""
    work()
    wait()
    best, end = float("inf"), time.perf_counter() + _SPAN_S
    while True:
        begun = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - begun)
        if time.perf_counter() > end:
            return best
