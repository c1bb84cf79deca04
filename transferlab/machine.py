"""The machine a run computes on: its device, its precision, its versions, and a clock."""

import importlib.metadata
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")  # only Linux has it
# What numbers depend on.
RECORDED_PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "pillow")


@dataclass(frozen=True, kw_only=True)
class MachineInfo:
    """What a record says of the machine: plain values."""

    device: str
    precision: str  # of random views, e.g. "torch.bfloat16"
    processor: str  # as it names itself
    threads: int
    versions: dict[str, str]  # of packages and of Python


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes, decided once and passed along."""

    device: torch.device
    precision: torch.dtype  # of random views, see `precision_of`
    processor: str
    threads: int
    versions: dict[str, str]

    def precision_of(self, view: int) -> torch.dtype:
        """The type that a view is computed in: fp32 for the clean one, view 0, which models are
        evaluated on."""
        return self.precision if view else torch.float32

    def batch_size(self, pixels: int) -> int:
        """How many images of so many pixels (H * W) go through a frozen part at once."""
        return choose_batch_size(self.device, pixels)

    def autocast(self, precision: torch.dtype) -> AbstractContextManager[None]:
        """Computes in `precision` inside; does nothing for fp32."""
        lower = precision != torch.float32
        return torch.autocast(self.device.type, dtype=precision, enabled=lower)

    def info(self) -> MachineInfo:
        """The machine as a record says it."""
        return MachineInfo(
            device=self.device.type,
            precision=str(self.precision),
            processor=self.processor,
            threads=self.threads,
            versions=self.versions,
        )


def choose_device() -> torch.device:
    """CUDA where there is a GPU, else the CPU.

    On a GPU, fp32 means fp32 from then on: convolutions do not round to TF32.
    """
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(device: torch.device, cpu_info: Path = CPU_INFO) -> torch.dtype:
    """The type that random views are computed in.

    bf16 where the hardware computes in it, fp16 on older GPUs, else fp32: on a CPU without bf16
    arithmetic (its flags say so) bf16 would be several times slower than fp32.
    """
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return torch.bfloat16 if major >= 8 else torch.float16
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not cpu_info.is_file():
        return torch.float32  # the slower type is never the wrong one
    flags = set(cpu_info.read_text().split())
    has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if has_bf16 else torch.float32


def choose_batch_size(device: torch.device, pixels: int) -> int:
    """How many images of so many pixels (H * W) go through a frozen part at once.

    8 on a CPU, in whose cache small batches stay: on 2 AVX2 cores folded EfficientNet-Lite0 takes
    75 images a second in batches of 8 and 51 in batches of 32. On a GPU what half of its free
    memory holds at 1 kB a pixel, at most 64.
    """
    if device.type == "cpu":
        return 8
    free, _ = torch.cuda.mem_get_info(device)
    fitting = free // (2000 * pixels)
    return min(64, 1 + fitting)


def processor_name() -> str:
    """The GPU's name, else the CPU's with the instructions that PyTorch uses on it."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    text = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    named = re.search(r"model name\s*: (.*)", text)
    name = named[1] if named else sys.platform
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages that numbers depend on."""
    versions = {name: importlib.metadata.version(name) for name in RECORDED_PACKAGES}
    versions["python"] = sys.version.split()[0]
    return versions


def this_machine() -> Machine:
    """The machine that this process runs on."""
    device = choose_device()
    return Machine(
        device=device,
        precision=choose_precision(device),
        processor=processor_name(),
        threads=torch.get_num_threads(),
        versions=installed_versions(),
    )


class Clock:
    """Seconds by phase. A phase inside another one pauses it, so that no second counts twice."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self._now = now
        self._running: list[str] = []
        self._since = now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the seconds that its block takes to `seconds[name]`."""
        self._settle()
        self._running.append(name)
        try:
            yield
        finally:
            self._settle()
            self._running.pop()

    def _settle(self) -> None:
        """Adds what has passed since the last change to the phase that is running."""
        moment = self._now()
        passed = moment - self._since
        self._since = moment
        if self._running:
            phase = self._running[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + passed
