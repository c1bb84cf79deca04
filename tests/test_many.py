"""Many heads at once, pinned to `train`: the same weights, epochs and curves, head by head."""

import copy
import time
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from transferlab import many
from transferlab.backbones import make_head
from transferlab.errors import UserError
from transferlab.many import HeadInTraining, HeadStack, Job, smooth_targets, train_many
from transferlab.train import Recipe, Settings, TrainData, train

N, D, C, VIEWS = 61, 12, 3, 4


def toy(seed=0):
    """Features in float64 that can be learnt a little: clean [N, D], views [VIEWS, N, D],
    labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, C, (N,), generator=generator)
    means = torch.randn(C, D, generator=generator, dtype=torch.float64)
    views = means[labels] * 0.6 + torch.randn(
        1 + VIEWS, N, D, generator=generator, dtype=torch.float64
    )
    return views[0], views[1:], labels


def new_head(hidden, dropout, seed):
    if hidden:
        return make_head(D, C, hidden=hidden, dropout=dropout, seed=seed).double()
    return nn.Linear(D, C).double()


def given_columns(epoch):
    """The columns of an epoch that hold a value."""
    return {name: value for name, value in asdict(epoch).items() if value is not None}


def check_against_train(heads, jobs, labels, *, epochs, batch_size):
    alone = copy.deepcopy(heads)
    results = train_many(heads, jobs, labels, epochs=epochs, batch_size=batch_size)
    for head, reference, job, result in zip(heads, alone, jobs, results, strict=True):
        index, val = job.train_index, job.val_index
        data = TrainData(
            view_of=lambda e, job=job, index=index: job.view_of(e)[index],
            labels=labels[index],
            clean_x=job.val_x[index],
            val_x=job.val_x[val],
            val_y=labels[val],
        )
        options = Settings(epochs=epochs, patience=job.patience, batch_size=batch_size, lr=job.lr)
        recipe = Recipe(weight_decay=job.weight_decay, label_smoothing=job.label_smoothing)
        expected = train(reference, data, options, seed=job.seed, recipe=recipe)
        assert (result.best_epoch, len(result.history)) == (
            expected.best_epoch,
            len(expected.history),
        )
        for name, tensor in expected.state.items():
            assert torch.allclose(result.state[name], tensor, rtol=0, atol=1e-9)
            assert (
                head.state_dict()[name].data_ptr() == result.state[name].data_ptr()
            )  # no copy: many heads take their memory once
        for row, wanted in zip(result.history, expected.history, strict=True):
            row, wanted = given_columns(row), given_columns(wanted)
            assert all(
                row[name] == pytest.approx(wanted[name], abs=1e-6) for name in row
            )  # `evaluate` reports in fp32
            assert set(wanted) - set(row) == {"train_loss_clean", "train_acc_clean", "seconds"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 5, 8]),
            st.sampled_from([0.0, 0.3, 0.5]),
            st.integers(0, 3),
            st.sampled_from([1e-3, 1e-2]),
            st.sampled_from([0.0, 0.1]),
            st.sampled_from([0.0, 0.2]),
            st.integers(0, 3),
            st.sampled_from([33, 40]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 6),
    st.sampled_from([7, 16, 64]),
    st.sampled_from([4, 256]),
)
@settings(max_examples=25, deadline=None)
def test_every_head_ends_as_train_leaves_it(heads_of, epochs, batch_size, piece):
    """Widths, dropout, rates, decay, smoothing, patience, folds and seeds mixed; dropout masks are
    those that torch draws."""
    clean, views, labels = toy()
    heads, jobs = [], []
    for number, (hidden, dropout, seed, lr, decay, smoothing, patience, n_train) in enumerate(
        heads_of
    ):
        index = torch.randperm(N, generator=torch.Generator().manual_seed(number % 2))
        heads.append(new_head(hidden, dropout, seed))
        jobs.append(
            Job(
                view_of=lambda e, seed=seed: views[(seed + e) % VIEWS],
                train_index=index[:n_train],
                val_x=clean,
                val_index=index[45:],
                seed=seed,
                lr=lr,
                weight_decay=decay,
                label_smoothing=smoothing,
                patience=patience,
            )
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(many, "PIECE", piece)
        check_against_train(heads, jobs, labels, epochs=epochs, batch_size=batch_size)


def test_heads_that_see_the_same_batches_share_them():
    """Settings under one seed: the images are gathered once for all heads of a stack, and the
    result stays the same."""
    clean, views, labels = toy()
    index, seen = torch.arange(40), []
    heads = [nn.Linear(D, C).double() for _ in range(6)]
    jobs = [
        Job(
            view_of=lambda e: views[0],
            train_index=index,
            val_x=clean,
            val_index=torch.arange(40, N),
            lr=1e-3 * (1 + i),
            patience=i,
        )
        for i in range(6)
    ]
    members = [HeadInTraining(head, job) for head, job in zip(heads, jobs)]
    stack = HeadStack(members, labels, batch_size=16)
    for places in ([0, 1, 2, 3, 4, 5], [1, 2, 5], [0, 2]):  # heads leave the stack
        stack.keep(places)
        seen.append(len(stack.val.x))
        seen += [len(x) for x, _ in stack.batches([views[0]] * len(places))]
    check_against_train(heads, jobs, labels, epochs=7, batch_size=16)
    assert set(seen) == {1}


def test_threads_are_as_they_were_and_do_not_matter():
    clean, views, labels = toy()
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        jobs = [
            Job(
                view_of=lambda e: views[e % VIEWS],
                train_index=torch.arange(40),
                val_x=clean,
                val_index=torch.arange(40, N),
                seed=i,
            )
            for i in range(3)
        ]
        results.append(train_many([new_head(8, 0.5, i) for i in range(3)], jobs, labels, epochs=3))
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert [r.history for r in results[0]] == [r.history for r in results[1]]


def test_smoothing_is_pytorchs():
    logits, labels = torch.randn(2, 5, C, dtype=torch.float64), torch.randint(0, C, (2, 5))
    smoothing = torch.tensor([0.0, 0.3], dtype=torch.float64)[:, None, None]
    loss = -(smooth_targets(labels, smoothing, logits) * logits.log_softmax(2)).sum(2).mean(1)
    for i, value in enumerate((0.0, 0.3)):
        assert loss[i].item() == pytest.approx(
            F.cross_entropy(logits[i], labels[i], label_smoothing=value).item(), abs=1e-12
        )


def test_a_loss_that_is_no_number_names_the_epoch_and_other_heads_are_refused():
    clean, views, labels = toy()
    job = Job(
        view_of=lambda e: views[0],
        train_index=torch.arange(40),
        val_x=clean,
        val_index=torch.arange(40, N),
    )
    with pytest.raises(UserError, match="epoch 1.*features hold NaN"):
        train_many(
            [nn.Linear(D, C).double()],
            [replace(job, view_of=lambda e: views[0] * torch.nan)],
            labels,
        )
    with pytest.raises(UserError, match="use train"):
        train_many([nn.Sequential(nn.Linear(D, C), nn.ReLU())], [job], labels)
    with pytest.raises(UserError, match="with biases"):
        train_many([nn.Linear(D, C, bias=False)], [job], labels)
    with pytest.raises(UserError, match="train for 1 or more"):
        train_many([nn.Linear(D, C)], [job], labels, epochs=0)


def test_many_small_heads_cost_less_than_one_after_another():
    """A coarse guard (half); the measured ratios are far lower: see benchmarks."""
    clean, views, labels = (t.float() if t.is_floating_point() else t for t in toy())
    index, val = torch.arange(40), torch.arange(40, N)
    heads = [nn.Linear(D, C) for _ in range(30)]
    data = TrainData(
        view_of=lambda e: views[0][index],
        labels=labels[index],
        clean_x=clean[index],
        val_x=clean[val],
        val_y=labels[val],
    )
    started = time.perf_counter()
    for head in copy.deepcopy(heads):
        train(head, data, Settings(epochs=5, patience=0))
    alone = time.perf_counter() - started
    job = Job(view_of=lambda e: views[0], train_index=index, val_x=clean, val_index=val, patience=0)
    started = time.perf_counter()
    train_many(heads, [replace(job, seed=i) for i in range(30)], labels, epochs=5)
    assert time.perf_counter() - started < alone / 2


def test_every_epoch_is_scored_on_test_images_that_decide_nothing():
    clean, views, labels = toy()
    index = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    train_index, val, test = index[:36], index[36:48], index[48:]

    def run(test_index, patience):
        heads = [new_head(5, 0.3, seed) for seed in (0, 1)]
        jobs = [
            Job(
                view_of=lambda e: views[e % VIEWS],
                train_index=train_index,
                val_x=clean,
                val_index=val,
                seed=seed,
                lr=1e-2,
                patience=patience,
                test_index=test_index,
            )
            for seed in (0, 1)
        ]
        return heads, train_many(heads, jobs, labels, epochs=12)

    (_, plain), (heads, tested), (_, same) = run(None, 2), run(test, 2), run(val, 0)
    for one, other in zip(plain, tested):
        assert one.best_epoch == other.best_epoch
        assert [row.val_loss for row in one.history] == [row.val_loss for row in other.history]
    for head, result in zip(heads, tested):
        with torch.inference_mode():
            accuracy = (head.eval()(clean[test]).argmax(1) == labels[test]).double().mean().item()
        assert result.best.test_acc == pytest.approx(accuracy)
    assert all(
        row.test_loss == row.val_loss and row.test_acc == row.val_acc
        for result in same
        for row in result.history
    )
