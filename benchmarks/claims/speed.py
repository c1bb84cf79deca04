"""Claims about backbones alone: how fast ResNet50 and DenseNet121 are, and how large."""

import numpy as np
import torch

from benchmarks.claims.judged import Claim, judge
from benchmarks.common import time_forwards
from transferlab.backbones import (
    count_parameters,
    create_backbone,
    fold_batchnorm,
    split_features,
)
from transferlab.datasets import FACES
from transferlab.study import Study

RIVALS = ("resnet50", "densenet121")  # the study's first two, compared in speed and size
BOTH = ", ".join(RIVALS)
QUANTILES = "rounds, 95 % quantiles"

Seconds = dict[str, dict[str, list[float]]]  # an image's by precision and model, a round each


@torch.inference_mode()
def time_backbones(study: Study, weights: str, *, rounds: int = 15) -> Seconds:
    """The frozen parts of ResNet50 and DenseNet121 in turn, in each precision the study uses, on 32
    images."""
    machine = study.machine
    block = next(study.renderer.blocks(0, study.fold.train[:32]))
    images = block.to(machine.device).contiguous(memory_format=torch.channels_last)
    lowers = {}
    for name in RIVALS:
        model, _ = create_backbone(name, weights)
        lower, _ = split_features(model.to(machine.device))
        lowers[name] = fold_batchnorm(lower)
    timed: Seconds = {}
    for precision in dict.fromkeys([torch.float32, machine.precision_of(1)]):
        seconds: dict[str, list[float]] = {name: [] for name in lowers}
        for _ in range(rounds):
            for name, lower in lowers.items():
                rate = time_forwards(lower, images, 8, precision, machine=machine, seconds=0)
                seconds[name].append(1 / rate)
        timed[str(precision)] = seconds
    return timed


def judge_speed(timed: Seconds) -> list[Claim]:
    """The claim "ResNet50 is 15 % faster", once a precision: DenseNet121's seconds over ResNet50's,
    less 1."""
    claims = []
    for precision, seconds in timed.items():
        ratio = np.array(seconds["densenet121"]) / np.array(seconds["resnet50"])
        faster = ratio - 1
        low, high = np.quantile(faster, [0.025, 0.975])
        short = precision.removeprefix("torch.")
        claim = Claim(
            claim="ResNet50 is 15 % faster than DenseNet121",
            test=f"forwards in {short}, seconds of DenseNet121 over ResNet50's, less 1",
            data=FACES.name,
            model=BOTH,
            unit="share",
            value=float(np.median(faster)),
            low=float(low),
            high=float(high),
            over=QUANTILES,
            alone=judge(low, high, 0.15),
        )
        claims.append(claim)
    return claims


def judge_size() -> Claim:
    """The claim "ResNet50 has fewer parameters": both as ImageNet classifiers."""
    resnet, densenet = (count_parameters(create_backbone(name, "none")[0]) for name in RIVALS)
    fewer = densenet - resnet
    return Claim(
        claim="ResNet50 has fewer parameters than DenseNet121",
        test=f"counted: {resnet:,} and {densenet:,}",
        data="",
        model=BOTH,
        unit="parameters",
        value=fewer,
        alone=judge(fewer, fewer),
    )
