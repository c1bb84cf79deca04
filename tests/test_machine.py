"""The machine that a run computes on, and the clock of its phases."""

import json
from dataclasses import asdict, replace

import pytest
import torch

from transferlab.machine import (
    Clock,
    autocast,
    choose_batch_size,
    choose_precision,
    for_probes,
    this_machine,
)

CPU = replace(this_machine(), device="cpu", precision="torch.float32")


def test_precision_is_a_fact_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for flags, expected in (
        ("fma avx2 avx512f", torch.float32),
        ("avx512f avx512_bf16", torch.bfloat16),
    ):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert choose_precision("cpu", tmp_path / "cpuinfo") == expected
    assert choose_precision("cpu", tmp_path / "no such file") == torch.float32
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert choose_precision("cpu", tmp_path / "cpuinfo") == torch.float32
    for capability, expected in (((7, 5), torch.float16), ((8, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        assert choose_precision("cuda") == expected


def test_the_batch_size_follows_the_memory_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (14 * 10**9, 16 * 10**9))
    sizes = [
        choose_batch_size(kind, side**2)
        for kind, side in (("cpu", 224), ("cuda", 224), ("cuda", 1024))
    ]
    assert sizes == [8, 64, 7]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (0, 16 * 10**9))
    assert choose_batch_size("cuda", 224**2) == 1


def test_a_machine_says_what_it_is_in_plain_values():
    machine = this_machine()
    assert json.loads(json.dumps(asdict(machine))) == asdict(machine)
    assert machine.device == ("cuda" if torch.cuda.is_available() else "cpu")
    assert machine.precision == str(choose_precision(machine.device))
    assert machine.processor and machine.threads == torch.get_num_threads()
    assert torch.__version__.startswith(machine.versions["torch"])
    assert "python" in machine.versions


def test_fp32_on_a_gpu_is_never_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    this_machine()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_the_clean_view_is_fp32_on_any_machine_and_random_ones_are_in_its_precision(precision):
    machine = replace(CPU, precision=str(precision))
    assert machine.precision_of(0) == torch.float32
    assert machine.precision_of(1) == machine.precision_of(30) == precision


def test_a_precision_holds_inside_its_block_alone():
    x = torch.ones(2, 2)
    for precision in (torch.float32, torch.bfloat16):
        with autocast(CPU, precision):
            assert (x @ x).dtype == precision
    assert (x @ x).dtype == torch.float32


# ---- the clock ----------------------------------------------------------------------------------


class Hand:
    """A clock's hand that the test moves."""

    def __init__(self):
        self.time = 100.0

    def __call__(self):
        return self.time


@pytest.fixture
def hand():
    return Hand()


def test_seconds_add_up_by_phase(hand):
    clock = Clock(now=hand)
    hand.time += 1  # nothing runs
    for seconds in (2, 3):
        with clock.phase("head"):
            hand.time += seconds
        hand.time += 10
    with clock.phase("weights"):
        hand.time += 7
    assert clock.seconds == {"head": 5, "weights": 7}


def test_a_phase_inside_another_one_pauses_it(hand):
    clock = Clock(now=hand)
    with clock.phase("head"):
        hand.time += 1
        with clock.phase("training views"):
            hand.time += 20
            with clock.phase("features from disk"):
                hand.time += 300
            hand.time += 4
        hand.time += 5
        with clock.phase("training views"):
            hand.time += 6
    assert clock.seconds == {"head": 6, "training views": 30, "features from disk": 300}
    assert sum(clock.seconds.values()) == hand.time - 100


def test_a_phase_inside_itself_counts_once(hand):
    clock = Clock(now=hand)
    with clock.phase("head"):
        hand.time += 1
        with clock.phase("head"):
            hand.time += 2
        hand.time += 3
    assert clock.seconds == {"head": 6}


def test_a_phase_that_fails_has_taken_its_time(hand):
    clock = Clock(now=hand)
    with clock.phase("outer"), pytest.raises(ZeroDivisionError):
        hand.time += 1
        with clock.phase("inner"):
            hand.time += 2
            raise ZeroDivisionError
    hand.time += 50
    with clock.phase("outer"):
        hand.time += 3
    assert clock.seconds == {"outer": 4, "inner": 2}


@pytest.mark.parametrize(
    ("fast", "clean"),
    [("bfloat16", "bfloat16"), ("float16", "float32"), ("float32", "float32")],
)
def test_probes_see_the_clean_view_in_bf16_alone(fast, clean):
    machine = for_probes(replace(this_machine(), precision=f"torch.{fast}"))
    assert machine.clean_precision == f"torch.{clean}"
