"""Kept features train the same head as the ordinary loop, to the bit; stopping, restoring,
failing."""

import copy
from dataclasses import asdict, fields, replace

import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn
from torch.nn import functional as F

from transferlab.backbones import create_backbone, make_head, set_head, split_at
from transferlab.errors import UserError
from transferlab.features import extract
from transferlab.pretrained import state_hash
from transferlab.train import (
    Epoch,
    Loop,
    Recipe,
    Settings,
    TrainData,
    evaluate,
    score,
    train,
    train_epoch,
)
from transferlab.views import render_view

COMPUTED = {"device": "cpu", "precision": torch.float32, "size": 8}  # how features are


def toy(seed=0, n=40, d=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    y = torch.randint(0, classes, (n,), generator=generator)
    return x, y, make_head(d, classes, hidden=16, seed=seed)


def data_of(x, y, val_x, val_y, *, clean_x=None, view_of=None):
    """The same features x in every epoch, if `view_of` does not say otherwise."""
    return TrainData(
        view_of=view_of or (lambda epoch: x),
        labels=y,
        clean_x=x if clean_x is None else clean_x,
        val_x=val_x,
        val_y=val_y,
    )


def run(head, x, y, val_x, val_y, *, seed=0, **settings):
    return train(head, data_of(x, y, val_x, val_y), Settings(**settings), seed=seed)


@pytest.mark.parametrize("epochs", [1, 3])
def test_kept_features_end_with_the_ordinary_loops_weights(study, epochs):
    """K = epochs, fp32, same order, same forward batches: equal to the last bit.

    The forward batches are made the same by asking both ways for the images in the order of the
    epoch's batches.
    """
    model, _ = create_backbone("test_resnet.r160_in1k", "none")
    set_head(model, make_head(model.head_hidden_size, 2, hidden=8))
    lower, head = split_at(model, "features")
    ordinary = copy.deepcopy(head)
    before, index = state_hash(lower), study.fold.train
    labels = study.image_set.labels[index]
    shuffle = torch.Generator().manual_seed(0)
    orders = [torch.randperm(len(index), generator=shuffle) for _ in range(epochs)]
    augmentation = study.renderer.augmentation

    def fresh_view(epoch, chosen):
        return render_view(
            study.image_set, augmentation.train, view=1 + epoch, seed=1, indices=index[chosen]
        )

    torch.manual_seed(0)
    # The same kernel, so the same rounding.
    optimizer = torch.optim.Adam(ordinary.parameters(), lr=1e-2, fused=True)
    for epoch, order in enumerate(orders):
        for batch in order.split(4):
            with torch.no_grad():
                features = lower(
                    fresh_view(epoch, batch).contiguous(memory_format=torch.channels_last)
                )
            ordinary.train()
            loss = F.cross_entropy(ordinary(features), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def kept(epoch):
        blocks = (fresh_view(epoch, batch) for batch in orders[epoch].split(4))
        features = extract(lower, blocks, **COMPUTED)
        return features[orders[epoch].argsort()]

    pictures = render_view(study.image_set, augmentation.clean, view=0, seed=1, indices=index)
    clean = extract(lower, [pictures], **COMPUTED)
    # The best epoch's weights are restored, so the last is made the best: validation on what is
    # being learnt, no patience.
    data = data_of(clean, labels, clean, labels, view_of=kept)
    result = train(head, data, Settings(epochs=epochs, patience=0, batch_size=4, lr=1e-2), seed=0)
    if result.best_epoch == epochs:
        assert all(
            torch.equal(a, b)
            for a, b in zip(ordinary.state_dict().values(), head.state_dict().values())
        )
    else:
        pytest.fail("the last epoch must be the best for this comparison: choose another seed")
    assert state_hash(lower) == before


def test_evaluate_is_scikit_learns():
    x, y, head = toy()
    scores = evaluate(head, x, y, batch_size=7)
    probabilities = scores.logits.softmax(1)
    assert scores.accuracy == accuracy_score(y, scores.predictions)
    assert scores.loss == pytest.approx(log_loss(y, probabilities, labels=[0, 1, 2]), rel=1e-5)
    assert not head.training


# ---- what a notebook trains with, pinned to the library's ---------------------------------------


@pytest.mark.parametrize("batch_size", [7, 32, 99])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_notebooks_epochs_are_the_librarys_bit_for_bit(batch_size, dropout):
    """The same weights, losses and accuracies, epoch by epoch, and the same draws of dropout."""
    x, y, _ = toy()
    heads = [make_head(6, 3, hidden=16, dropout=dropout, seed=1) for _ in range(2)]
    settings = Settings(lr=1e-2, batch_size=batch_size)
    optimizer = torch.optim.Adam(heads[0].parameters(), lr=settings.lr, fused=True)
    loop = Loop(heads[1], settings, Recipe())
    seen = []
    for head in heads:
        torch.manual_seed(5)  # dropout
        shuffle = torch.Generator().manual_seed(5)
        seen.append([])
        for _ in range(4):
            order = torch.randperm(len(y), generator=shuffle)
            head.eval()  # as scoring leaves it
            if head is heads[0]:
                row = train_epoch(head, optimizer, x, y, order.split(batch_size))
            else:
                row = loop.epoch(x, y, order)
            assert head.training
            seen[-1].append((*row, state_hash(head)))
    assert seen[0] == seen[1]
    assert len({hashed for *_, hashed in seen[0]}) == 4  # it learns


@pytest.mark.parametrize("n", [1, 40, 512])
def test_a_notebooks_scores_are_the_librarys_bit_for_bit(n):
    x, y, head = toy(n=n)
    expected = evaluate(head.train(), x, y)
    loss, accuracy, logits = score(head.train(), x, y)
    assert (loss, accuracy) == (expected.loss, expected.accuracy)
    assert torch.equal(logits, expected.logits) and not head.training
    assert torch.equal(logits.argmax(dim=1), expected.predictions)


def test_an_evaluation_in_batches_is_one_of_all():
    """Of more than 512 images, too: up to the rounding that another batch brings."""
    x, y, head = toy(n=1030)
    whole = score(head, x, y)
    parts = evaluate(head, x, y)
    assert torch.allclose(parts.logits, whole[2], atol=1e-6)
    assert (parts.loss, parts.accuracy) == (pytest.approx(whole[0], rel=1e-6), whole[1])


class Scripted(nn.Module):
    """One weight that Adam moves; its validation loss follows a script, so the stopping rule can
    be seen."""

    def __init__(self, losses):
        super().__init__()
        self.weight, self.losses, self.seen = nn.Parameter(torch.zeros(1)), losses, 0

    def forward(self, x):
        if not self.training and x.shape[0] == 1:  # validation: one image, whose loss is asked for
            target = torch.tensor(self.losses[self.seen])
            self.seen += 1
            p = torch.exp(-target)
            return torch.stack([p.log(), (1 - p).log()])[None]
        return torch.cat([x * self.weight, -x * self.weight], dim=1)


@pytest.mark.parametrize(
    ("losses", "patience", "best", "epochs"),
    [
        ([0.9, 0.8, 0.7, 0.71, 0.72, 0.73], 3, 3, 6),
        ([0.9, 0.5, 0.5, 0.5, 0.5, 0.4], 3, 2, 5),
        ([0.5, 0.6, 0.4, 0.6, 0.6, 0.6], 2, 3, 5),
        ([0.9, 0.8, 0.7], 5, 3, 3),
        ([0.1, 0.2, 0.3, 0.4], 0, 1, 4),
        ([0.5, 0.5, 0.4, 0.3], 1, 1, 2),
    ],
)
def test_the_best_is_the_lowest_loss_the_earliest_on_ties(losses, patience, best, epochs):
    model = Scripted(losses)
    x, y = torch.ones(6, 1), torch.tensor([0, 0, 0, 1, 0, 0])
    weights = []

    def view_of(epoch):
        weights.append(model.weight.item())  # before each epoch
        return x

    data = data_of(x, y, x[:1], y[:1], view_of=view_of)
    result = train(model, data, Settings(epochs=len(losses), patience=patience, batch_size=2))
    assert (result.best_epoch, len(result.history)) == (best, epochs)
    if best < epochs:
        # As it stood after the best epoch, before the next.
        assert model.weight.item() == weights[best]
    assert result.best is result.history[best - 1]
    assert result.best.val_loss == pytest.approx(min(losses[:epochs]), rel=1e-5)
    assert [row.epoch for row in result.history] == list(range(1, epochs + 1))
    unknown = {"test_loss", "test_acc"}
    for row in result.history:
        assert {name for name, value in asdict(row).items() if value is None} == unknown


def test_same_seed_same_numbers_and_clean_accuracy_is_without_dropout():
    x, y, head = toy()
    heads = [copy.deepcopy(head) for _ in range(3)]
    results = [
        run(h, x, y, x[:9], y[:9], epochs=3, seed=s, batch_size=7) for h, s in zip(heads, (5, 5, 6))
    ]
    rows = [[replace(row, seconds=None) for row in r.history] for r in results]
    assert rows[0] == rows[1] != rows[2]
    assert state_hash(heads[0]) == state_hash(heads[1]) != state_hash(heads[2])
    one = copy.deepcopy(head)
    row = run(one, x, y, x[:9], y[:9], epochs=1, seed=5, batch_size=7).history[0]
    with torch.inference_mode():
        assert row.train_acc_clean == pytest.approx(
            (one.eval()(x).argmax(1) == y).double().mean().item()
        )


def test_the_mean_loss_counts_images_not_batches():
    x, y, head = toy(n=10)
    head[2].p = 0.0
    expected = F.cross_entropy(head(x), y).item()
    loop = Loop(head, Settings(lr=0.0, batch_size=4), Recipe())
    loss, accuracy = loop.epoch(x, y, torch.arange(10))
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == (head(x).argmax(1) == y).double().mean().item()


def test_what_is_frozen_above_stays():
    x, y, head = toy()
    head[0].requires_grad_(False)
    before = head[0].weight.clone()
    run(head, x, y, x, y, epochs=2)
    assert torch.equal(head[0].weight, before)


def test_a_loss_that_is_no_number_names_epoch_and_cause():
    x, y, head = toy()
    with pytest.raises(UserError, match="epoch 1: .*features hold NaN or infinity"):
        run(head, torch.full_like(x, float("nan")), y, x, y)
    with pytest.raises(
        UserError, match="epoch [0-9]+: .*learning rate 1e\\+30 is probably too high"
    ):
        run(toy()[2], x, y, x, y, lr=1e30)
    with pytest.raises(UserError, match="^epochs is 0: give 1 or more"):
        run(toy()[2], x, y, x, y, epochs=0)


@pytest.mark.parametrize("where", ["val_x", "clean_x"])
def test_features_that_are_no_numbers_are_found_wherever_they_are(where):
    x, y, head = toy()
    damaged = torch.where(torch.arange(len(x))[:, None] == 3, torch.inf, x)
    data = replace(data_of(x, y, x, y), **{where: damaged})
    with pytest.raises(UserError, match="epoch 1: .*features hold NaN or infinity"):
        train(head, data, Settings(epochs=2))


def test_the_epoch_that_failed_is_named():
    x, y, head = toy()
    data = data_of(x, y, x, y, view_of=lambda epoch: x if epoch < 2 else x * float("nan"))
    with pytest.raises(UserError, match="^epoch 3: the loss is nan; the features"):
        train(head, data, Settings(epochs=5))


def test_the_scores_of_an_epoch_by_hand():
    x, y, head = toy(n=23)
    data = data_of(x, y, x[:7], y[:7], view_of=lambda epoch: x + 1)
    result = train(head, data, Settings(epochs=1, batch_size=5, lr=1e-2))
    row, (first, second) = result.history[0], (head[0], head[3])

    def by_hand(features):  # no dropout
        return (features @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias

    with torch.no_grad():
        for part, features, labels in (("train_{}_clean", x, y), ("val_{}", x[:7], y[:7])):
            logits = by_hand(features)
            assert getattr(row, part.format("acc")) == pytest.approx(
                accuracy_score(labels, logits.argmax(1))
            )
            expected = log_loss(labels, logits.double().softmax(1), labels=[0, 1, 2])
            assert getattr(row, part.format("loss")) == pytest.approx(expected, rel=1e-5)


def test_an_epochs_columns_keep_their_names():
    """They head the tables of published runs."""
    assert [one.name for one in fields(Epoch)] == [
        "epoch",
        "train_loss",
        "train_acc",
        "train_loss_clean",
        "train_acc_clean",
        "val_loss",
        "val_acc",
        "test_loss",
        "test_acc",
        "seconds",
    ]


# ---- which view an epoch trains on --------------------------------------------------------------


def views_of(epochs=12, **settings):
    asked = Settings(**settings)
    return [asked.view_of(epoch) for epoch in range(epochs)]


def test_the_clean_view_and_random_ones_in_turn():
    rule = {"rule": "clean+cycle"}
    assert views_of(views=4, **rule) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert views_of(views=1, **rule) == [0, 1] * 6
    assert views_of(views=0, **rule) == [0] * 12
    assert views_of(views=30, **rule) == list(range(12))


def test_the_random_views_alone_in_turn():
    for k in (1, 4, 30):
        assert views_of(views=k, rule="cycle") == [1 + e % k for e in range(12)]


def test_settings_that_name_no_view_are_refused():
    for settings in ({"views": -1, "rule": "clean+cycle"}, {"views": 0, "rule": "cycle"}):
        fewest = int(settings["rule"] == "cycle")
        message = f"^views is {settings['views']}: give {fewest} or more"
        with pytest.raises(UserError, match=message):
            Settings(**settings).check()
    with pytest.raises(UserError, match="rule of views is 'shuffle': give one of .*'cycle'"):
        Settings(rule="shuffle").check()
    for rule, views in (("clean+cycle", 0), ("cycle", 1)):
        Settings(views=views, rule=rule).check()
