"""The linear probe: L2-regularised multinomial logistic regression on kept features, solved to a
stated gradient norm.

A fit minimises mean cross-entropy + strength / 2 * ||W||^2, biases free, on features standardised
in its own training part: scikit-learn's `LogisticRegression` with C = 1 / (strength * n). Of two
classes W is one vector, the difference of their weights, as it is there. It is the field's way to
ask what frozen features know (Kornblith et al. 2019, CVPR, section 3; Radford et al. 2021, ICML,
appendix A.3). Features are rotated into the smaller of row and feature space, where the
objective's curvature is close to diagonal (Böhning 1992, Annals of the Institute of Statistical
Mathematics 44, p. 197), which makes L-BFGS take a third of the steps.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import OptimizeResult, minimize
from scipy.special import log_softmax, softmax
from threadpoolctl import threadpool_limits

from .data import Fold
from .errors import DataError

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(4, -9, -1))  # 100 to 0.0001
CHOOSING = 1e-4  # gradient norm while a strength is chosen
EXACT = 1e-6  # gradient norm of a fit that is used, at most
AIMED = 1e-7  # where it stops, if numbers of 64 bits allow: weak strengths forgive less
NO_DEVIATION = 1e-8  # of the largest: what the mean of equal numbers may differ by from them
FP32 = torch.float32
RANK = 1e-10  # of the largest eigenvalue: directions below have no images in them
MEMORY = 10  # steps that L-BFGS remembers
RISES = 2  # strengths without a lower loss, after which a fold needs no weaker one
MOST_STEPS = 5000
STARTS = 4  # how often a line search that found nothing may begin anew

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, kw_only=True, eq=False)
class Probe:
    """A fitted probe, on features as they are."""

    weights: np.ndarray  # fp64 [D, C]
    bias: np.ndarray  # fp64 [C]; -inf for a class without a training image
    strength: float
    norm: float  # of the gradient of the mean objective, where the fit ended

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Features [M, D] -> fp64 [M, C]."""
        return features.astype(np.float64) @ self.weights + self.bias

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Features [M, D] -> fp64 [M, C]."""
        return softmax(self.logits(features), axis=1)


# ---- one fit ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Space:
    """Training images in the space that their features span, r = min(n, D) directions."""

    directions: np.ndarray  # [r, n]
    variances: np.ndarray  # [r]: mean square of each direction

    @property
    def rows(self) -> np.ndarray:
        """An image a row, [n, r]."""
        return self.directions.T


@dataclass(frozen=True, kw_only=True, eq=False)
class Rotation:
    """From features to that space: standardised, then rotated."""

    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]; infinite for a feature that is left out, which so becomes 0
    # Their product is the basis of the space, [D, r], which itself would take longer than all it is
    # multiplied with.
    factors: tuple[np.ndarray, ...]

    def turn(self, features: np.ndarray) -> np.ndarray:
        """Other features [m, D] in the same space, [m, r]."""
        turned = (features - self.mean) / self.scale
        for factor in self.factors:
            turned = turned @ factor
        return turned

    def turn_back(self, weights: np.ndarray) -> np.ndarray:
        """Weights [r, C] of that space as weights of features [D, C]."""
        for factor in reversed(self.factors):
            weights = factor @ weights
        return weights / self.scale[:, None]


def which_vary(deviation: np.ndarray, precision: torch.dtype) -> np.ndarray:
    """Which features of those deviations [D] are not constant, bool [D], as far as the precision in
    which they were computed can tell.

    One that rounding alone may stir in a training image would be blown up in another image, which
    stirs it in earnest.
    """
    varies = deviation > NO_DEVIATION * deviation.max()
    if not varies.any():
        return varies
    rounding = torch.finfo(precision).eps * np.median(deviation[varies])
    return varies & (deviation > rounding)


def rotate(features: np.ndarray, precision: torch.dtype = FP32) -> tuple[Space, Rotation]:
    """Standardises features fp64 [n, D], computed in `precision`, constant ones left out, and
    rotates them, so that no direction tells of another.

    Raises:
        DataError: a feature is not finite.
    """
    if not np.isfinite(features).all():
        raise DataError("the backbone gives features that are not finite: try --precision fp32")
    n = len(features)
    mean = features.mean(0)
    deviation = features.std(0)
    scale = np.where(which_vary(deviation, precision), deviation, np.inf)
    standard = (features - mean) / scale
    if n > standard.shape[1]:
        squares, basis = np.linalg.eigh(standard.T @ standard)
        squares = squares.clip(0)
        directions = basis.T @ standard.T
        factors: tuple[np.ndarray, ...] = (basis,)
    else:
        squares, sides = np.linalg.eigh(standard @ standard.T)
        squares = np.where(squares > RANK * squares.max(), squares, 0)
        lengths = np.sqrt(squares)
        directions = (sides * lengths).T.copy()
        inverse = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
        factors = (standard.T, sides * inverse)
    rotation = Rotation(mean=mean, scale=scale, factors=factors)
    return Space(directions=directions, variances=squares / n), rotation


@dataclass(frozen=True, kw_only=True, eq=False)
class Solution:
    """Where a minimisation ended."""

    weights: np.ndarray  # [C, r]
    bias: np.ndarray  # [C]
    norm: float  # of the objective's gradient


class Objective:
    """Mean cross-entropy + strength / 2 * ||W||^2 of n images in r directions, with labels int [n]
    of C classes, each of which has an image.

    It is asked in scaled variables, in which its curvature is about 1 where all classes are equally
    likely.
    """

    def __init__(self, space: Space, labels: np.ndarray, classes: int, strength: float) -> None:
        self.directions = space.directions
        self.rows = space.rows
        self.targets = np.eye(classes)[:, labels]
        # Two classes have one weight vector in scikit-learn: half of each column's, twice the norm.
        self.penalty = 2 * strength if classes == 2 else strength
        curvature = np.append(space.variances / classes + self.penalty, 1 / classes)
        self.scale = np.sqrt(curvature)  # [r + 1], the last for the biases
        self.norm = np.inf  # of the gradient where it was last asked, in the variables themselves

    def pack(self, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Weights [C, r] and biases [C] as scaled variables [C * (r + 1)]."""
        return (np.column_stack([weights, bias]) * self.scale).ravel()

    def unpack(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scaled variables as weights [C, r] and biases [C]."""
        both = scaled.reshape(-1, len(self.scale)) / self.scale
        return both[:, :-1], both[:, -1]

    def __call__(self, scaled: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient by the scaled variables.

        Classes come first: so a product reads the directions once, in their order.
        """
        weights, bias = self.unpack(scaled)
        n = len(self.rows)
        logits = weights @ self.directions
        logits += bias[:, None]
        logits -= logits.max(0)
        likely = np.exp(logits)
        sums = likely.sum(0)
        entropy = np.log(sums).sum() - np.vdot(self.targets, logits)
        likely /= sums
        likely -= self.targets
        likely /= n
        slope = np.empty((len(bias), len(self.scale)))
        slope[:, :-1] = likely @ self.rows
        slope[:, :-1] += self.penalty * weights
        slope[:, -1] = likely.sum(1)
        self.norm = float(np.linalg.norm(slope))
        loss = entropy / n + self.penalty / 2 * np.vdot(weights, weights)
        slope /= self.scale
        return float(loss), slope.ravel()


def solve(objective: Objective, start: Solution, *, aimed: float, tolerance: float) -> Solution:
    """Minimises from `start` until the gradient norm is at most `aimed`, or cannot be made smaller.

    Raises:
        DataError: it stays above `tolerance`.
    """
    scaled = objective.pack(start.weights, start.bias)

    def stop(intermediate_result: OptimizeResult) -> None:
        if objective.norm <= aimed:
            raise StopIteration

    options = {
        "maxcor": MEMORY,
        "ftol": 0,
        "gtol": 0,
        "maxiter": MOST_STEPS,
        "maxfun": 2 * MOST_STEPS,
    }
    for _ in range(STARTS):
        objective(scaled)
        if objective.norm <= aimed:
            break
        found = minimize(
            objective, scaled, jac=True, method="L-BFGS-B", callback=stop, options=options
        )
        scaled = found.x
    objective(scaled)
    if not objective.norm <= tolerance:
        told = f"the probe's gradient norm stays at {objective.norm:.1e}, above {tolerance:.0e}"
        raise DataError(f"{told} after {STARTS} starts: leave this model out")
    weights, bias = objective.unpack(scaled)
    return Solution(weights=weights, bias=bias, norm=objective.norm)


def zeros(directions: int, classes: int) -> Solution:
    """Where a minimisation begins."""
    return Solution(weights=np.zeros((classes, directions)), bias=np.zeros(classes), norm=np.inf)


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    strength: float,
    precision: torch.dtype = FP32,
) -> Probe:
    """Fits a probe on features [n, D], computed in `precision`, and labels int [n]. Of `classes`,
    those that have no image get no probability.

    Raises:
        DataError: as `rotate` and `solve`.
    """
    exact = features.astype(np.float64)
    present, inner = np.unique(labels, return_inverse=True)
    space, rotation = rotate(exact, precision)
    objective = Objective(space, inner, len(present), strength)
    start = zeros(space.rows.shape[1], len(present))
    found = solve(objective, start, aimed=AIMED, tolerance=EXACT)
    weights = np.zeros((exact.shape[1], classes))
    weights[:, present] = rotation.turn_back(found.weights.T)
    bias = np.full(classes, -np.inf)
    bias[present] = found.bias - rotation.mean @ weights[:, present]
    return Probe(weights=weights, bias=bias, strength=strength, norm=found.norm)


# ---- the strength, chosen inside -------------------------------------------------------------


class Descent:
    """One fold's probes from the strongest to weaker ones, each begun where the last one ended."""

    def __init__(
        self, features: np.ndarray, labels: np.ndarray, precision: torch.dtype, fold: Fold
    ) -> None:
        """Features [N, D], computed in `precision`, labels int [N]; images of classes that the fold
        does not train on decide nothing.

        Raises:
            DataError: none is left to choose a strength by; as `rotate`.
        """
        train = labels[fold.train.numpy()]
        self.present, self.labels = np.unique(train, return_inverse=True)
        val = fold.val.numpy()
        val = val[np.isin(labels[val], self.present)]
        if not len(val):
            raise DataError("a training fold leaves no image to choose the probe's strength by")
        self.space, rotation = rotate(features[fold.train.numpy()].astype(np.float64), precision)
        self.val_rows = rotation.turn(features[val].astype(np.float64))
        self.val_labels = np.searchsorted(self.present, labels[val])
        self.last = zeros(self.space.rows.shape[1], len(self.present))

    def loss_at(self, strength: float, tolerance: float) -> float:
        """The mean log-loss, on the images that decide, of a probe of that strength.

        Raises:
            DataError: as `solve`.
        """
        objective = Objective(self.space, self.labels, len(self.present), strength)
        self.last = solve(objective, self.last, aimed=tolerance, tolerance=tolerance)
        logs = log_softmax(self.val_rows @ self.last.weights.T + self.last.bias, axis=1)
        return float(-logs[np.arange(len(logs)), self.val_labels].mean())


@dataclass(frozen=True, kw_only=True, eq=False)
class StrengthChoice:
    """What folds chose."""

    losses: np.ndarray  # fp64 [L, F]: inner log-loss of each fold by the first L of STRENGTHS

    @property
    def chosen(self) -> np.ndarray:
        """The strength of the lowest loss in each fold, fp64 [F]."""
        return np.array(STRENGTHS)[self.losses.argmin(0)]

    @property
    def final(self) -> float:
        """For a model of all images: the strength of the lowest mean loss over folds."""
        return STRENGTHS[int(self.losses.mean(1).argmin())]


def nothing() -> None:
    """What is told of each fold by default."""


def side_by_side(
    work: Callable[[T], U], items: Iterable[T], tell: Callable[[], object] = nothing
) -> list[U]:
    """Works on items in as many threads as PyTorch would use inside one operation, and calls `tell`
    after each; matrices this small lose by threads of their own."""
    threads = torch.get_num_threads()  # asked before the limit, which is PyTorch's too
    done = []
    with threadpool_limits(1), ThreadPoolExecutor(threads) as pool:
        for result in pool.map(work, items):
            done.append(result)
            tell()
    return done


def choose_strengths(
    features: np.ndarray,
    labels: np.ndarray,
    folds: Iterable[Fold],
    *,
    precision: torch.dtype = FP32,
    tolerance: float = CHOOSING,
    tell: Callable[[], object] = nothing,
) -> StrengthChoice:
    """Each fold's strength, chosen on its `val` images: from the strongest down, until the loss has
    risen twice in every fold.

    Features [N, D], computed in `precision`, labels int [N]. All folds' rows are held at once, fp64
    [n, min(n, D)] each. `tell` is called after each step of each fold.

    Raises:
        DataError: as `Descent` and `solve`.
    """
    begin = partial(Descent, features, labels, precision)
    descents = side_by_side(begin, folds, tell)
    losses: list[list[float]] = []
    for strength in STRENGTHS:
        descend = methodcaller("loss_at", strength, tolerance)
        losses.append(side_by_side(descend, descents, tell))
        rises = len(losses) - 1 - np.argmin(losses, axis=0)
        if (rises >= RISES).all():
            break
    return StrengthChoice(losses=np.array(losses))


def fit_probes(
    features: np.ndarray,
    labels: np.ndarray,
    parts: Sequence[torch.Tensor],
    strengths: Iterable[float],
    *,
    classes: int,
    precision: torch.dtype = FP32,
    tell: Callable[[], object] = nothing,
) -> list[Probe]:
    """A probe of its own strength for each part, int64 indices into features [N, D], computed in
    `precision`, and labels [N]. `tell` is called after each.

    Raises:
        DataError: as `fit_probe`.
    """

    def fit(job: tuple[torch.Tensor, float]) -> Probe:
        part, strength = job
        index = part.numpy()
        return fit_probe(
            features[index],
            labels[index],
            classes=classes,
            strength=strength,
            precision=precision,
        )

    return side_by_side(fit, zip(parts, strengths, strict=True), tell)
