"""Many heads at once: seeds, folds and settings on the same kept features, each with its own early stopping.

Every head ends as `train` would leave it (same order of images, same dropout masks, same Adam), but the work is laid out
for a CPU: one head, or one stack of small heads, a thread; gradients written out; Adam applied to a piece of the weights
while its gradient still lies in the cache. What only a reader of curves needs (the clean training accuracy) is left out.
"""

import math
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adam import adam
from tqdm import tqdm

from .errors import UserError
from .train import TrainResult, check_loss

# How one head is trained. view_of(e): features [N, D] of all images in epoch e; val_x: features [N, D] of all images, of
# which those of val_index count; train_index, val_index: int64; test_index: images on which every epoch is scored and by which
# nothing is decided; the rest as in `train`.
Job = namedtuple(
    "Job",
    "view_of train_index val_x val_index seed lr weight_decay label_smoothing patience test_index",
    defaults=(0, 1e-3, 0.0, 0.0, 5, None),
)
PIECE = 256  # rows of weights that are computed at once: with 2,048 features in fp32 2 MB, and as much for each moment


def head_layers(head):
    """The linear layers of a head, one or two, and its dropout probability (0 where it has one layer).

    Raises:
        UserError: it is neither a linear layer nor Linear - ReLU - Dropout - Linear.
    """
    layers = [*head] if isinstance(head, nn.Sequential) else [head]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kinds = [type(layer) for layer in layers]
    if kinds not in ([nn.Linear], [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]) or any(
        layer.bias is None for layer in linear
    ):
        raise UserError(
            f"many heads at once are Linear or Linear - ReLU - Dropout - Linear, with biases, not {head}: use train"
        )
    return linear, layers[2].p if len(layers) == 4 else 0.0


def dropout_masks(shape, probabilities, generators, like):
    """Dropout masks [H, *shape], 0 or 1 / (1 - p), as F.dropout draws them from the generator of each head."""
    masks = like.new_empty(len(generators), *shape)
    for mask, p, generator in zip(masks, probabilities, generators):
        mask.bernoulli_(1 - p, generator=generator).div_(1 - p)
    return masks


def times(x, weight):
    """x [H, b, D] times each head's own weight [H, C, D] -> [H, b, C]; x [1, b, D] is the same for all heads."""
    if len(x) == 1:
        return (x[0] @ weight.flatten(0, 1).T).unflatten(1, weight.shape[:2]).transpose(0, 1)
    return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)


def take(room, *shape):
    """The beginning of `room`, a flat tensor, in this shape. In fresh memory, which the system hands out page by page, writing
    takes several times as long."""
    return room[: math.prod(shape)].view(shape)


def gradient(delta, x, room):
    """delta [H, b, C] (loss by logits) and x as in `times` -> the loss by weight [H, C, D], written into `room`."""
    turned = delta.transpose(1, 2)
    if len(x) == 1:
        return torch.mm(
            turned.flatten(0, 1), x[0], out=take(room, turned[..., 0].numel(), x.shape[2])
        ).unflatten(0, turned.shape[:2])
    return torch.bmm(turned, x, out=take(room, *turned.shape[:2], x.shape[2]))


def stack_logits(x, weights, masks=1):
    """Logits [H, b, C] of H stacked heads on x [H, b, D] (or one for all), and what their last layer sees [H, b, ...]."""
    if len(weights) == 4:
        x = times(x, weights[0]).add_(weights[1]).relu_().mul_(masks)
    return times(x, weights[-2]).add_(weights[-1]), x


def smooth_targets(labels, smoothing, logits):
    """One-hot labels [H, b, C], each head's smoothing [H, 1, 1] spread evenly (Szegedy et al. 2016, CVPR, section 7)."""
    return (
        F.one_hot(labels, logits.shape[-1]).to(logits.dtype) * (1 - smoothing)
        + smoothing / logits.shape[-1]
    )


def adam_step(weight, moments, slope, count, lr, weight_decay):
    """Adam on weight [H, ...], its two moments and its gradient, in place; lr, weight_decay: [H, 1, 1], one for each head."""
    first, rest = float(lr[0]), float(weight_decay[0])
    alike = len(weight) == 1 or bool((lr == first).all() and (weight_decay == rest).all())
    options = {
        "amsgrad": False,
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "maximize": False,
        "fused": True,
    }
    if alike:
        adam(
            [weight],
            [slope],
            *([m] for m in moments),
            [],
            [torch.tensor(count - 1.0)],
            lr=first,
            weight_decay=rest,
            **options,
        )
        return
    change = torch.zeros_like(
        weight
    )  # Adam knows one rate: it is given 1, and each head's own is put in afterwards
    slope = slope.add_(weight * weight_decay) if weight_decay.any() else slope
    adam(
        [change],
        [slope],
        *([m] for m in moments),
        [],
        [torch.tensor(count - 1.0)],
        lr=1.0,
        weight_decay=0.0,
        **options,
    )
    weight.addcmul_(change, lr)


def step(weights, moments, count, x, y, masks, smoothing, rates, room):
    """One Adam step of H stacked heads on x [H, b, D] (or one for all), y [H, b]; changes `weights` and `moments`.

    `rates`: lr and weight decay, [H, 1, 1] each; `room`: for gradients. Returns the heads' loss [H] and number of correct images [H].
    """
    logits, inner = stack_logits(x, weights, masks)
    targets, log_probabilities = smooth_targets(y, smoothing, logits), logits.log_softmax(2)
    loss = -(targets * log_probabilities).sum(2).mean(1)
    correct = (logits.argmax(2) == y).sum(1)
    delta = (log_probabilities.exp_() - targets).div_(y.shape[1])
    if len(weights) == 4:  # back through the last layer, before it changes
        back = torch.bmm(delta, weights[2]).mul_(masks).mul_(inner > 0)
        adam_step(weights[2], moments[2], gradient(delta, inner, room), count, *rates)
        adam_step(weights[3], moments[3], delta.sum(1, keepdim=True), count, *rates)
        delta = back
    width = delta.shape[2] if len(weights[0]) > 1 else PIECE
    for start in range(
        0, delta.shape[2], width
    ):  # the gradient of a piece is used while it lies in the cache
        part = slice(start, start + width)
        slope = gradient(delta[:, :, part], x, room)
        adam_step(
            weights[0][:, part], [moment[:, part] for moment in moments[0]], slope, count, *rates
        )
    adam_step(weights[1], moments[1], delta.sum(1, keepdim=True), count, *rates)
    return loss, correct


def gather(views, rows, room):
    """The rows [H, b] of each head's view [N, D] -> [H, b, D], written into `room`; [1, b, D] where all heads see the same."""
    if len({view.data_ptr() for view in views}) == 1 and bool(
        (rows == rows[0]).all()
    ):  # one piece of memory, one order
        return views[0].index_select(0, rows[0])[None]
    x = take(room, *rows.shape, views[0].shape[1])
    for view, chosen, place in zip(views, rows, x):
        torch.index_select(view, 0, chosen, out=place)
    return x


def held_out(jobs, labels):
    """What each epoch is scored on: {"val": (features [H, M, D] or one for all, labels [H, M])}, and "test" where jobs have it."""
    indices = {
        "val": [job.val_index for job in jobs],
        "test": [job.test_index for job in jobs if job.test_index is not None],
    }
    stacked = {part: torch.stack(chosen) for part, chosen in indices.items() if chosen}
    clean, width = [job.val_x for job in jobs], jobs[0].val_x.shape[1]
    return {
        part: (gather(clean, rows, clean[0].new_empty(rows.numel() * width)), labels[rows])
        for part, rows in stacked.items()
    }


def score(weights, x, y):
    """Mean cross-entropy and accuracy of each of H stacked heads on x [H, M, D] (or one for all), y [H, M] -> two lists [H]."""
    logits = stack_logits(x, weights)[0]
    loss = F.cross_entropy(logits.transpose(1, 2), y, reduction="none").mean(1)
    return loss.tolist(), (logits.argmax(2) == y).double().mean(1).tolist()


def train_stack(heads, jobs, labels, *, epochs, batch_size, lock):
    """Trains heads of one shape together; jobs have as many images each -> list of TrainResult. Views are asked for under `lock`,
    since drawing one uses the global random state."""
    layers, dropout = zip(*map(head_layers, heads))
    tensors = [[t for layer in one for t in (layer.weight, layer.bias[None])] for one in layers]
    weights = [torch.stack([t.detach() for t in group]) for group in zip(*tensors)]
    moments = [[torch.zeros_like(weight), torch.zeros_like(weight)] for weight in weights]
    rates = [
        [job.lr for job in jobs],
        [job.weight_decay for job in jobs],
        [job.label_smoothing for job in jobs],
    ]
    rates = [weights[0].new_tensor(rate)[:, None, None] for rate in rates]
    shuffles, masks_from = (
        [torch.Generator().manual_seed(job.seed) for job in jobs] for _ in range(2)
    )
    held = held_out(jobs, labels)
    histories, best, states = (
        [[] for _ in jobs],
        [None] * len(jobs),
        [[weight[0].clone() for weight in weights] for _ in jobs],
    )
    active, count, n = list(range(len(jobs))), 0, len(jobs[0].train_index)
    room = weights[0].new_empty(len(jobs) * min(batch_size, n) * weights[0].shape[2])
    slopes = weights[0].new_empty(max(tensor.numel() for tensor in weights))
    for epoch in range(epochs):
        with lock:
            views = [jobs[i].view_of(epoch) for i in active]
        rows = torch.stack(
            [jobs[i].train_index[torch.randperm(n, generator=shuffles[i])] for i in active]
        )
        losses, corrects = (
            torch.zeros(len(active), dtype=torch.float64),
            torch.zeros(len(active), dtype=torch.int64),
        )
        for batch in rows.split(batch_size, dim=1):
            count += 1
            x, shape = gather(views, batch, room), (batch.shape[1], weights[0].shape[1])
            masks = (
                dropout_masks(
                    shape, [dropout[i] for i in active], [masks_from[i] for i in active], x
                )
                if len(weights) == 4
                else 1
            )
            loss, correct = step(
                weights, moments, count, x, labels[batch], masks, rates[2], rates[:2], slopes
            )
            losses, corrects = losses + loss * batch.shape[1], corrects + correct
        scores = {"train": ((losses / n).tolist(), (corrects / n).tolist())}
        scores |= {part: score(weights, *features) for part, features in held.items()}
        for place, i in enumerate(active):
            row = {
                f"{part}_{kind}": values[place]
                for part, pair in scores.items()
                for kind, values in zip(("loss", "acc"), pair)
            }
            for value, features in (
                (row["train_loss"], views[place]),
                (row["val_loss"], jobs[i].val_x),
            ):
                check_loss(value, features, epoch + 1, jobs[i].lr)
            histories[i].append({"epoch": epoch + 1} | row)
            if best[i] is None or row["val_loss"] < histories[i][best[i]]["val_loss"]:
                best[i] = epoch
                for kept, weight in zip(states[i], weights):
                    kept.copy_(weight[place])
        going = [
            place
            for place, i in enumerate(active)
            if not jobs[i].patience or epoch - best[i] < jobs[i].patience
        ]
        if not going:
            break
        if len(going) < len(active):
            active = [active[place] for place in going]
            held = {
                part: (x if len(x) == 1 else x[going], y[going]) for part, (x, y) in held.items()
            }
            weights, rates = ([tensor[going] for tensor in tensors] for tensors in (weights, rates))
            moments = [[moment[going] for moment in pair] for pair in moments]
    for one, state in zip(layers, states):
        for layer, weight, bias in zip(one, state[::2], state[1::2]):
            layer.load_state_dict({"weight": weight, "bias": bias[0]})
    return [
        TrainResult(
            history, epoch + 1, dict(head.state_dict())
        )  # the head's own tensors: of 1,000 heads a copy takes 4.2 GB
        for head, history, epoch in zip(heads, histories, best)
    ]


def train_many(heads, jobs, labels, *, epochs=30, batch_size=32, progress=False):
    """Trains many heads, each by its `Job`, as `train` would train it alone -> list of TrainResult, in their order.

    `heads`: linear, or Linear - ReLU - Dropout - Linear; each ends with its best epoch's weights, which are its result's `state`
    too (the same tensors: clone them before training it on). `labels` int64 [N] of all images. Features, labels and heads lie on
    the CPU, in one type. Histories lack the columns of the clean view. Small heads with equal widths and numbers of images are
    stacked, neighbours first; heads of a stack that see the same images in the same order (equal seed, settings differ) cost
    less. Stacks run in as many threads as PyTorch would use inside one operation.

    Raises:
        UserError: a head of another kind; fewer than one epoch; a loss that is no longer finite.
    """
    if epochs < 1:
        raise UserError(f"epochs is {epochs}: train for 1 or more")
    groups = {}
    for number, (head, job) in enumerate(zip(heads, jobs, strict=True)):
        shapes = tuple(tuple(layer.weight.shape) for layer in head_layers(head)[0])
        tested = None if job.test_index is None else len(job.test_index)
        groups.setdefault((shapes, len(job.train_index), len(job.val_index), tested), []).append(
            number
        )
    stacks = []
    for (shapes, *_), numbers in groups.items():
        size = max(1, PIECE // shapes[0][0])
        stacks += [numbers[start : start + size] for start in range(0, len(numbers), size)]
    threads, one_view_at_a_time = torch.get_num_threads(), Lock()

    @torch.inference_mode()
    def work(stack):
        torch.set_num_threads(1)  # of this thread: stacks run side by side instead
        chosen = [heads[number] for number in stack], [jobs[number] for number in stack]
        return train_stack(
            *chosen, labels, epochs=epochs, batch_size=batch_size, lock=one_view_at_a_time
        )

    results = {}
    try:
        with ThreadPoolExecutor(max_workers=threads) as pool:
            done = pool.map(work, stacks)
            for stack, trained in zip(
                stacks,
                tqdm(done, total=len(stacks), disable=not progress, ascii=True, desc="heads"),
            ):
                results |= dict(zip(stack, trained))
    finally:
        torch.set_num_threads(threads)
    return [results[number] for number in range(len(heads))]
