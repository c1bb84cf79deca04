"""Scores against numbers worked out by hand; the closed form of Wilson's interval is in test_artifacts.py."""

from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transferlab.metrics import accuracy_interval, mcnemar_p


def exact_p(b, c):
    """Two-sided exact p of b against c discordant pairs: a fair coin, twice the smaller tail."""
    tail = sum(comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)


@given(both=st.integers(0, 9), b=st.integers(0, 30), c=st.integers(0, 30), neither=st.integers(0, 9))
def test_mcnemar_counts_only_the_images_that_one_alone_gets_right(both, b, c, neither):
    first = torch.tensor([True] * both + [True] * b + [False] * c + [False] * neither, dtype=torch.bool)
    second = torch.tensor([True] * both + [False] * b + [True] * c + [False] * neither, dtype=torch.bool)
    assert mcnemar_p(first, second) == pytest.approx(exact_p(b, c), abs=1e-12)
    assert mcnemar_p(first, second) == mcnemar_p(second, first)


def test_mcnemar_by_hand():
    five, one = torch.tensor([True] * 5 + [False]), torch.tensor([False] * 5 + [True])
    assert mcnemar_p(five, one) == pytest.approx(2 * (1 + 6) / 64)


@pytest.mark.parametrize(("correct", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634)])
def test_wilson_from_the_tables(correct, n, low, high):
    assert accuracy_interval(correct, n) == pytest.approx((low, high), abs=5e-5)
    assert all(type(end) is float for end in accuracy_interval(correct, n))
