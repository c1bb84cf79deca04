"""Curves of trainings that never stopped, and where rules would have ended them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from transferlab.train import Settings

PATIENCE = Settings().patience
# A training has come to its end where at least SURE of its folds have their lowest validation loss
# before SURE of its epochs.
SURE = 0.9


# ---- stopping rules --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Stop:
    """Where a rule ends a training."""

    chosen: int  # the epoch of the lowest validation loss so far, from 0
    trained: int  # epochs


Rule = Callable[[Sequence[float]], Stop]  # validation losses [E] -> where it stops


def stop_at(val_loss: Sequence[float], trained: int) -> Stop:
    """What is chosen after so many epochs: the lowest validation loss, the earliest on ties."""
    chosen = np.argmin(val_loss[:trained])
    return Stop(chosen=int(chosen), trained=trained)


def stop_without_gain(val_loss: Sequence[float], patience: int = PATIENCE) -> Stop:
    """Our rule: stops when `patience` epochs in a row bring no new best."""
    for epoch in range(len(val_loss)):
        stop = stop_at(val_loss, epoch + 1)
        if epoch - stop.chosen >= patience:
            return stop
    return stop_at(val_loss, len(val_loss))


def stop_after_rises(val_loss: Sequence[float], rises: int = PATIENCE) -> Stop:
    """The study's rule: stops when the loss has risen `rises` times in a row."""
    in_a_row = 0
    for epoch in range(1, len(val_loss)):
        rose = val_loss[epoch] > val_loss[epoch - 1]
        in_a_row = in_a_row + 1 if rose else 0
        if in_a_row >= rises:
            return stop_at(val_loss, epoch + 1)
    return stop_at(val_loss, len(val_loss))


def stop_never(val_loss: Sequence[float]) -> Stop:
    """Trains to the end."""
    return stop_at(val_loss, len(val_loss))


# ---- curves ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Curves:
    """A training on F folds for E epochs, none left out: fp32 [F, E] each."""

    val_loss: np.ndarray
    val_acc: np.ndarray
    test_loss: np.ndarray
    test_acc: np.ndarray

    @property
    def epochs(self) -> int:
        """How many there are."""
        return self.val_loss.shape[1]

    def first(self, epochs: int) -> "Curves":
        """The same, ended after so many epochs."""
        return Curves(**{name: values[:, :epochs] for name, values in vars(self).items()})

    def stops(self, rule: Rule) -> list[Stop]:
        """Where a rule stops on every fold."""
        return [rule(losses) for losses in self.val_loss]

    def chosen(self, rule: Rule) -> np.ndarray:
        """The epoch, from 0, that a rule chooses on every fold, int [F]."""
        return np.array([stop.chosen for stop in self.stops(rule)])

    def trained(self, rule: Rule) -> np.ndarray:
        """How many epochs a rule trains for on every fold, int [F]."""
        return np.array([stop.trained for stop in self.stops(rule)])


def at_epoch(values: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """The value [F] of every fold's curve, of `values` [F, E], at its epoch from 0, int [F]."""
    picked = np.take_along_axis(values, epochs[:, None], axis=1)
    return picked[:, 0].astype(float)


def at_end(values: np.ndarray) -> np.ndarray:
    """The value [F] of every fold's curve, of `values` [F, E], in the last epoch."""
    return values[:, -1].astype(float)


def early_share(curves: Curves) -> float:
    """The share of folds whose lowest validation loss comes before SURE of all epochs."""
    lowest = curves.chosen(stop_never) + 1
    early = lowest < SURE * curves.epochs
    return float(early.mean())


def why_unfinished(curves: Curves) -> str | None:
    """Why a training has not come to its end; None where it has."""
    early = early_share(curves)
    if early >= SURE:
        return None
    beyond = f"epoch {SURE * curves.epochs:g} of {curves.epochs}"
    return f"{1 - early:.0%} of the folds have their lowest validation loss at {beyond} or later"


def epochs_to_reach(val_loss: np.ndarray, level: np.ndarray) -> np.ndarray:
    """The first epoch, from 1, whose loss is at or below its fold's `level` [F], int [F], given
    losses [F, E].

    A fold that never is there counts as all E epochs: it took longer than that, nobody knows how
    much.
    """
    reached = val_loss <= level[:, None]
    first = reached.argmax(axis=1) + 1
    return np.where(reached.any(axis=1), first, val_loss.shape[1])
