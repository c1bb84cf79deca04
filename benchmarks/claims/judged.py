"""Claims with a value, a test and a verdict, judged one by one and then all at once.

A claim's own test says "holds" where the whole 95 % interval lies on its side and "fails" where it
lies on the other. Among many tests some do so by chance, so p is adjusted for all of them (Holm):
where it is then 0.05 or more, the claim is undecided. A claim about a training that was not trained
to its end is dropped before, whatever its test says.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from transferlab.metrics import PairedTest, holm

LEVEL = 0.05  # of all tests together
UNDECIDED = "undecided"
OVER_IMAGES = "images and repeats"
OVER_FOLDS = "folds, corrected t"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something the study says, and what is left of it."""

    claim: str
    test: str
    data: str  # the dataset's name
    model: str  # one backbone, or two with a comma
    unit: str = "accuracy"
    value: float | None = None  # above zero where the claim is right
    low: float | None = None  # of its 95 % interval
    high: float | None = None
    over: str | None = None  # what the test goes over, as OVER_IMAGES
    p: float | None = None  # of a paired test of this claim alone
    p_holm: float | None = None  # adjusted for all claims that have a p
    alone: str = UNDECIDED  # what this claim's own test says
    verdict: str = UNDECIDED  # the same, where it stands among all: "holds", "fails", "undecided"
    # Names of trainings: unless all of them came to their end, it is dropped.
    needs: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """The claim as a row of a table, without what it has not."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        del values["needs"]
        return values

    def __str__(self) -> str:
        told = self.test
        if self.value is not None:
            interval = "" if self.low is None else f" [{self.low:+.3f}, {self.high:+.3f}]"
            adjusted = "" if self.p_holm is None else f", p {self.p:.3g}, of all {self.p_holm:.3g}"
            told = f"{self.value:+.3f}{interval} {self.unit}{adjusted}"
        return f"{self.verdict:9s} {self.claim} ({self.model}): {told}"


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A claim that cannot be judged."""

    claim: str
    test: str
    data: str
    model: str
    reason: str

    def __str__(self) -> str:
        return f"dropped   {self.claim} ({self.model}): {self.reason}"


def judge(low: float, high: float, threshold: float = 0.0) -> str:
    """What a 95 % interval says of the claim that a value exceeds `threshold`."""
    if low > threshold:
        return "holds"
    return "fails" if high < threshold else UNDECIDED


def as_tested(claim: Claim, found: PairedTest, over: str) -> Claim:
    """The claim with what a paired test found: that its difference is above zero."""
    return replace(
        claim,
        value=found.difference,
        low=found.low,
        high=found.high,
        over=over,
        p=found.p,
        alone=judge(found.low, found.high) if found.p < LEVEL else UNDECIDED,
    )


def drop_unfinished(
    claims: Sequence[Claim], unfinished: Mapping[str, str]
) -> tuple[list[Claim], list[Dropped]]:
    """Parts claims into those that can be judged and those that need a training of `unfinished`,
    {its name: why it is}."""
    kept = []
    dropped = []
    for one in claims:
        reasons = [f"{name}: {unfinished[name]}" for name in one.needs if name in unfinished]
        if not reasons:
            kept.append(one)
            continue
        without = Dropped(
            claim=one.claim,
            test=one.test,
            data=one.data,
            model=one.model,
            reason="; ".join(reasons),
        )
        dropped.append(without)
    return kept, dropped


def judge_together(claims: Sequence[Claim]) -> list[Claim]:
    """All claims with their verdicts. What has no p, as a count, is judged alone."""
    adjusted = iter(holm([one.p for one in claims if one.p is not None]))
    judged = []
    for one in claims:
        p_holm = None if one.p is None else next(adjusted)
        stands = p_holm is None or p_holm < LEVEL
        verdict = one.alone if stands else UNDECIDED
        judged.append(replace(one, p_holm=p_holm, verdict=verdict))
    return judged


def taken_away(claims: Collection[Claim]) -> list[Claim]:
    """The claims that their own test decides, and that test among all does not."""
    return [one for one in claims if one.verdict != one.alone]
