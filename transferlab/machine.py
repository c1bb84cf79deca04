"""The machine a run computes on: its device, its precision, its versions, and a clock."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

CPU_INFO = Path("/proc/cpuinfo")  # only Linux has it
PACKAGES = ("torch", "torchvision", "timm", "scikit-learn", "pillow")  # what numbers depend on


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What computes: decided once, and told in every record."""

    device: str  # "cuda" or "cpu"
    precision: str  # what it computes fastest in, that of random views, e.g. "torch.bfloat16"
    processor: str  # as it names itself
    threads: int
    versions: dict[str, str]  # of Python and of the packages that numbers depend on
    clean_precision: str = "torch.float32"  # of the clean view, view 0

    def precision_of(self, view: int) -> torch.dtype:
        """The type that a view is computed in."""
        name = self.precision if view else self.clean_precision
        return getattr(torch, name.removeprefix("torch."))


def choose_batch_size(device: str, pixels: int) -> int:
    """How many images of so many pixels (H * W) go through a frozen part at once.

    8 on a CPU, in whose cache small batches stay: on 2 AVX2 cores folded EfficientNet-Lite0 takes
    75 images a second in batches of 8 and 51 in batches of 32. On a GPU what half of its free
    memory holds at 1 kB a pixel, at most 64.
    """
    on_gpu = device == "cuda"
    return min(64, 1 + torch.cuda.mem_get_info()[0] // (2000 * pixels)) if on_gpu else 8


def choose_precision(device: str, cpu_info: Path = Path("/proc/cpuinfo")) -> torch.dtype:
    """The type of random views: bf16 where the hardware has it, fp16 on older GPUs, else fp32.

    On a CPU without bf16 arithmetic, as /proc/cpuinfo says, bf16 is several times slower than fp32.
    """
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    has_avx512 = "AVX512" in torch.backends.cpu.get_cpu_capability() and cpu_info.is_file()
    flags = cpu_info.read_text() if has_avx512 else ""
    return torch.bfloat16 if re.search("avx512_bf16|amx_bf16", flags) else torch.float32


def this_machine() -> Machine:
    """The machine that this process runs on; on a GPU, fp32 is fp32 from then on, never TF32."""
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cpu = CPU_INFO.read_text() if CPU_INFO.is_file() else ""
    named = re.search("model name\\s*: (.*)", cpu)
    processor = f"{named[1] if named else sys.platform} ({torch.backends.cpu.get_cpu_capability()})"
    return Machine(
        device=device,
        precision=str(choose_precision(device)),
        processor=torch.cuda.get_device_name() if device == "cuda" else processor,
        threads=torch.get_num_threads(),
        versions={name: version(name) for name in PACKAGES} | {"python": sys.version.split()[0]},
    )


def use_one_core() -> None:
    """Lets PyTorch compute on one core in this thread, whatever is set in others."""
    torch.get_num_threads()  # a thread takes over what was set last when it is first asked
    torch.set_num_threads(1)


def for_probes(machine: Machine) -> Machine:
    """The machine with the clean view too in its fast precision, where that is bf16: no verdict
    hangs on it (benchmarks/precision.py). What fp16 does to verdicts nobody has measured."""
    if machine.precision != "torch.bfloat16":
        return machine
    return replace(machine, clean_precision=machine.precision)


@contextmanager
def one_core_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """So many threads, in each of which PyTorch computes on one core.

    By default each would get a team of OpenMP threads of its own. With more of these than cores the
    model's own team goes to sleep at the end of every operation instead of waiting for the next:
    on 2 cores that takes 45 % longer for EfficientNet-B0 while images are drawn ahead.
    """
    usual = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=use_one_core) as pool:
            yield pool
    finally:
        torch.set_num_threads(usual)  # of threads that begin later, which take over what is set


def autocast(machine: Machine, precision: torch.dtype) -> torch.autocast:
    """Computes in `precision` inside; does nothing for fp32."""
    return torch.autocast(machine.device, dtype=precision, enabled=precision != torch.float32)


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
