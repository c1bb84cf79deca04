"""Many heads at once: seeds, folds and settings on the same kept features, each stopped early.

Every head ends as `train` would leave it (same order of images, same dropout masks, same Adam), but
the work is laid out for a CPU: one head, or one stack of small heads, a thread; gradients written
out; Adam applied to a piece of the weights while its gradient still lies in the cache. What only a
reader of curves needs (the clean training accuracy) is left out.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.adam import adam
from tqdm import tqdm

from .errors import UserError
from .train import Epoch, TrainResult, check_loss

# Rows of weights that are computed at once: with 2,048 features in fp32 2 MB, and as much for each
# moment.
PIECE = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """How one head is trained; what is not explained here is as in `train`."""

    view_of: Callable[[int], torch.Tensor]  # features [N, D] of all images in epoch 0, 1, ...
    train_index: torch.Tensor  # int64
    val_x: torch.Tensor  # features [N, D] of all images, of which those of val_index count
    val_index: torch.Tensor  # int64
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    patience: int = 5
    test_index: torch.Tensor | None = (
        None  # scored in every epoch; nothing is decided by these images
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadScore:
    """How one head does on some images."""

    loss: float
    accuracy: float


def head_scores(losses: torch.Tensor, accuracies: torch.Tensor) -> list[HeadScore]:
    """One score for each head, from losses [H] and accuracies [H]."""
    scores = []
    for loss, accuracy in zip(losses.tolist(), accuracies.tolist()):
        scores.append(HeadScore(loss=loss, accuracy=accuracy))
    return scores


def head_layers(head: nn.Module) -> tuple[list[nn.Linear], float]:
    """The linear layers of a head, one or two, and its dropout probability (0 with one layer).

    Raises:
        UserError: it is neither a linear layer nor Linear - ReLU - Dropout - Linear.
    """
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    kinds = [type(layer) for layer in layers]
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    dropout = [layer.p for layer in layers if isinstance(layer, nn.Dropout)]
    known = kinds in ([nn.Linear], [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear])
    if not known or any(layer.bias is None for layer in linear):
        raise UserError(
            "many heads at once are Linear or Linear - ReLU - Dropout - Linear, with biases, "
            f"not {head}: use train"
        )
    return linear, dropout[0] if dropout else 0.0


class HeadInTraining:
    """One head on its way: its two random generators, its curve and its best epoch, whose weights
    the head itself holds."""

    def __init__(self, head: nn.Module, job: Job) -> None:
        self.head = head
        self.job = job
        self.linear, self.dropout = head_layers(head)
        self.order_generator = torch.Generator().manual_seed(job.seed)
        self.mask_generator = torch.Generator().manual_seed(job.seed)
        self.history: list[Epoch] = []
        self.best_epoch = 0  # from 1, once there is one
        self.lowest_val_loss = math.inf

    @property
    def shape(self) -> tuple[int | None, ...]:
        """What heads of one stack have in common: widths and numbers of images."""
        widths = [layer.out_features for layer in self.linear]
        tested = None if self.job.test_index is None else len(self.job.test_index)
        images = [len(self.job.train_index), len(self.job.val_index), tested]
        return (self.linear[0].in_features, *widths, *images)

    def draw_order(self) -> torch.Tensor:
        """The training images in an epoch's order, int64 [n]."""
        index = self.job.train_index
        return index[torch.randperm(len(index), generator=self.order_generator)]

    def draw_mask(self, mask: torch.Tensor) -> None:
        """Fills a dropout mask [b, ...] with 0 or 1 / (1 - p), as F.dropout draws it."""
        kept = 1 - self.dropout
        mask.bernoulli_(kept, generator=self.mask_generator).div_(kept)

    def record(self, epoch: Epoch, view: torch.Tensor) -> None:
        """Adds an epoch, trained on features `view`, to the curve.

        Raises:
            UserError: a loss is no longer finite.
        """
        check_loss(epoch.train_loss, view, epoch.epoch, self.job.lr)
        check_loss(epoch.val_loss, self.job.val_x, epoch.epoch, self.job.lr)
        self.history.append(epoch)
        if epoch.val_loss < self.lowest_val_loss:
            self.best_epoch = epoch.epoch
            self.lowest_val_loss = epoch.val_loss

    @property
    def stopped(self) -> bool:
        """Whether the last epochs brought no new best."""
        without_best = len(self.history) - self.best_epoch
        return 0 < self.job.patience <= without_best

    def result(self) -> TrainResult:
        """The curve and the head's own tensors: of 1,000 heads a copy takes 4.2 GB."""
        return TrainResult(
            history=tuple(self.history),
            best_epoch=self.best_epoch,
            state=dict(self.head.state_dict()),
        )


class Room:
    """Memory that is written again and again. In fresh memory, which the system hands out page by
    page, writing takes several times as long."""

    def __init__(self, like: torch.Tensor, size: int) -> None:
        self.memory = like.new_empty(size)

    def take(self, *shape: int) -> torch.Tensor:
        """Its beginning, in this shape."""
        return self.memory[: math.prod(shape)].view(shape)


def times(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [H, b, D] times each head's own weight [H, C, D] -> [H, b, C]; x [1, b, D] is the same for
    all heads."""
    if len(x) > 1:
        return torch.bmm(weight, x.transpose(1, 2)).transpose(1, 2)
    all_heads = x[0] @ weight.flatten(0, 1).T
    return all_heads.unflatten(1, weight.shape[:2]).transpose(0, 1)


def gradient(delta: torch.Tensor, x: torch.Tensor, room: Room) -> torch.Tensor:
    """delta [H, b, C] (loss by logits) and x as in `times` -> the loss by weight [H, C, D], written
    into `room`."""
    turned = delta.transpose(1, 2)
    heads, rows, _ = turned.shape
    if len(x) > 1:
        return torch.bmm(turned, x, out=room.take(heads, rows, x.shape[2]))
    all_heads = room.take(heads * rows, x.shape[2])
    torch.mm(turned.flatten(0, 1), x[0], out=all_heads)
    return all_heads.unflatten(0, (heads, rows))


def smooth_targets(
    labels: torch.Tensor, smoothing: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """One-hot labels [H, b, C], each head's smoothing [H, 1, 1] spread evenly (Szegedy et al. 2016,
    CVPR, section 7)."""
    classes = logits.shape[-1]
    certain = F.one_hot(labels, classes).to(logits.dtype)
    return certain * (1 - smoothing) + smoothing / classes


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedWeights:
    """Weights [H, C, D] or biases [H, 1, C] of H heads, and Adam's moments of each."""

    value: torch.Tensor
    mean: torch.Tensor
    square: torch.Tensor

    def rows(self, part: slice) -> "StackedWeights":
        """These rows of every head, in the same memory."""
        return StackedWeights(
            value=self.value[:, part], mean=self.mean[:, part], square=self.square[:, part]
        )

    def keep(self, places: list[int]) -> "StackedWeights":
        """Those of the heads at these places."""
        return StackedWeights(
            value=self.value[places], mean=self.mean[places], square=self.square[places]
        )


def stack_weights(tensors: Sequence[torch.Tensor]) -> StackedWeights:
    """Copies one tensor of each head into a stack, where training begins."""
    value = torch.stack([tensor.detach() for tensor in tensors])
    return StackedWeights(value=value, mean=torch.zeros_like(value), square=torch.zeros_like(value))


def job_column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One number of each head, [H, 1, 1]."""
    return like.new_tensor(values)[:, None, None]


class StackedAdam:
    """Adam on H stacked heads, each with its own learning rate and weight decay."""

    def __init__(self, jobs: Sequence[Job], like: torch.Tensor, room: Room) -> None:
        self.room = room  # for gradients
        self.steps = 0
        self.take_rates(jobs, like)

    def take_rates(self, jobs: Sequence[Job], like: torch.Tensor) -> None:
        """The rates of the heads that are trained on, [H, 1, 1] each, in the type of `like`."""
        self.lr = job_column([job.lr for job in jobs], like)
        self.weight_decay = job_column([job.weight_decay for job in jobs], like)
        self.decays = bool(self.weight_decay.any())
        rates = torch.stack([self.lr, self.weight_decay])
        self.alike = bool((rates == rates[:, :1]).all())

    def change(self, weights: StackedWeights, slope: torch.Tensor) -> None:
        """One step, in place; `slope` is the gradient, and may be overwritten."""
        if self.alike:
            self.apply(weights, slope, lr=float(self.lr[0]), decay=float(self.weight_decay[0]))
            return
        if self.decays:
            slope.add_(weights.value * self.weight_decay)
        # Adam knows one rate: it is given 1, and each head's own is put in afterwards.
        change = torch.zeros_like(weights.value)
        moved = StackedWeights(value=change, mean=weights.mean, square=weights.square)
        self.apply(moved, slope, lr=1.0, decay=0.0)
        weights.value.addcmul_(change, self.lr)

    def apply(
        self, weights: StackedWeights, slope: torch.Tensor, *, lr: float, decay: float
    ) -> None:
        """PyTorch's own step, with one rate for all heads."""
        adam(
            params=[weights.value],
            grads=[slope],
            exp_avgs=[weights.mean],
            exp_avg_sqs=[weights.square],
            max_exp_avg_sqs=[],
            state_steps=[torch.tensor(self.steps - 1.0)],  # Adam counts this step itself
            lr=lr,
            weight_decay=decay,
            beta1=0.9,
            beta2=0.999,
            eps=1e-8,
            amsgrad=False,
            maximize=False,
            fused=True,
        )


class StackedLinear:
    """The same linear layer of H heads."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        self.weight = stack_weights([layer.weight for layer in layers])
        self.bias = stack_weights([layer.bias[None] for layer in layers])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [H, b, D], or [1, b, D] for all heads -> [H, b, C]."""
        return times(x, self.weight.value).add_(self.bias.value)

    def step(self, delta: torch.Tensor, x: torch.Tensor, optimizer: StackedAdam) -> None:
        """One step, given x and the loss by what the layer made of it, delta [H, b, C]."""
        rows = delta.shape[2]
        width = rows if len(delta) > 1 else PIECE
        for start in range(0, rows, width):
            # The gradient of a piece is used while it lies in the cache.
            part = slice(start, start + width)
            slope = gradient(delta[:, :, part], x, optimizer.room)
            optimizer.change(self.weight.rows(part), slope)
        optimizer.change(self.bias, delta.sum(1, keepdim=True))

    def keep(self, places: list[int]) -> None:
        """Leaves only the heads at these places."""
        self.weight = self.weight.keep(places)
        self.bias = self.bias.keep(places)

    def copy_to(self, layer: nn.Linear, place: int) -> None:
        """Writes the weights of one head into its layer."""
        layer.weight.copy_(self.weight.value[place])
        layer.bias.copy_(self.bias.value[place, 0])


def all_see_the_same(views: Sequence[torch.Tensor], rows: torch.Tensor) -> bool:
    """Whether the views are one piece of memory, and its rows [H, b] come in one order."""
    memory = {view.data_ptr() for view in views}
    return len(memory) == 1 and bool((rows == rows[0]).all())


def gather(views: Sequence[torch.Tensor], rows: torch.Tensor, room: Room) -> torch.Tensor:
    """The rows [H, b] of each head's view [N, D] -> [H, b, D], written into `room`; [1, b, D] where
    all heads see the same."""
    if all_see_the_same(views, rows):
        return views[0].index_select(0, rows[0])[None]
    x = room.take(*rows.shape, views[0].shape[1])
    for view, chosen, place in zip(views, rows, x):
        torch.index_select(view, 0, chosen, out=place)
    return x


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldOut:
    """Images on which H heads are scored."""

    x: torch.Tensor  # features [H, M, D], or [1, M, D] where all heads see the same
    y: torch.Tensor  # labels int64 [H, M]

    def keep(self, places: list[int]) -> "HeldOut":
        """Those of the heads at these places."""
        x = self.x if len(self.x) == 1 else self.x[places]
        return HeldOut(x=x, y=self.y[places])


def held_out(jobs: Sequence[Job], indices: Sequence[torch.Tensor], labels: torch.Tensor) -> HeldOut:
    """The images of each head's index, int64 [M], in its clean view."""
    clean = [job.val_x for job in jobs]
    rows = torch.stack(indices)
    room = Room(clean[0], rows.numel() * clean[0].shape[1])
    return HeldOut(x=gather(clean, rows, room), y=labels[rows])


class HeadStack:
    """Heads of one shape, trained together; a head that stops leaves the stack.

    Their jobs have as many images each. H is the number of heads that are still in it.
    """

    def __init__(
        self, members: Sequence[HeadInTraining], labels: torch.Tensor, *, batch_size: int
    ) -> None:
        self.members = list(members)
        self.labels = labels
        self.batch_size = batch_size

        layers_of_heads = [member.linear for member in members]
        alike = zip(*layers_of_heads)
        self.layers = [StackedLinear(layers) for layers in alike]
        self.hidden = self.layers[0] if len(self.layers) == 2 else None
        self.output = self.layers[-1]

        jobs = [member.job for member in members]
        like = self.layers[0].weight.value
        largest = max(layer.weight.value.numel() for layer in self.layers)
        self.optimizer = StackedAdam(jobs, like, Room(like, largest))
        self.smoothing = job_column([job.label_smoothing for job in jobs], like)

        batch = min(batch_size, len(jobs[0].train_index))
        self.room = Room(like, len(jobs) * batch * like.shape[2])  # for the features of a batch
        self.val = held_out(jobs, [job.val_index for job in jobs], labels)
        self.test: HeldOut | None = None
        if jobs[0].test_index is not None:
            self.test = held_out(jobs, [job.test_index for job in jobs], labels)

    def batches(self, views: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One pass over each head's training images in its view [N, D], in its order -> features
        [H, b, D] (or one for all), which the next batch overwrites, and labels int64 [H, b]."""
        orders = torch.stack([member.draw_order() for member in self.members])
        for rows in orders.split(self.batch_size, dim=1):
            yield gather(views, rows, self.room), self.labels[rows]

    def draw_masks(self, batch: int) -> torch.Tensor | None:
        """Dropout masks [H, b, hidden], each head's from its own generator; None with one layer."""
        if self.hidden is None:
            return None
        bias = self.hidden.bias.value
        masks = bias.new_empty(len(bias), batch, bias.shape[2])
        for member, mask in zip(self.members, masks):
            member.draw_mask(mask)
        return masks

    def train_epoch(self, views: Sequence[torch.Tensor]) -> list[HeadScore]:
        """One pass over each head's training images in its view [N, D] -> its loss and accuracy,
        both as seen during training."""
        heads = len(self.members)
        images = len(self.members[0].job.train_index)
        losses = torch.zeros(heads, dtype=torch.float64)
        corrects = torch.zeros(heads, dtype=torch.int64)
        for x, y in self.batches(views):
            loss, correct = self.step(x, y)
            losses += loss * y.shape[1]
            corrects += correct
        return head_scores(losses / images, corrects / images)

    def step(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One step on x [H, b, D] (or one for all), y [H, b] -> the heads' loss [H] and number of
        correct images [H]."""
        masks = self.draw_masks(y.shape[1])
        inner = self.output_sees(x, masks)
        logits = self.output(inner)
        correct = (logits.argmax(2) == y).sum(1)
        targets = smooth_targets(y, self.smoothing, logits)
        log_probabilities = logits.log_softmax(2)
        loss = -(targets * log_probabilities).sum(2).mean(1)
        delta = (log_probabilities.exp_() - targets).div_(y.shape[1])
        self.go_back(delta, x, inner, masks)
        return loss, correct

    def output_sees(self, x: torch.Tensor, masks: torch.Tensor | None = None) -> torch.Tensor:
        """What reaches the output layer: x itself, or what the hidden layer makes of it."""
        if self.hidden is None:
            return x
        inner = self.hidden(x).relu_()
        return inner if masks is None else inner.mul_(masks)

    def go_back(
        self, delta: torch.Tensor, x: torch.Tensor, inner: torch.Tensor, masks: torch.Tensor | None
    ) -> None:
        """Changes the weights, given the loss by logits, delta [H, b, C], and what led there."""
        self.optimizer.steps += 1
        if self.hidden is None:
            self.output.step(delta, x, self.optimizer)
            return
        back = torch.bmm(delta, self.output.weight.value)  # through the layer before it changes
        back.mul_(masks).mul_(inner > 0)
        self.output.step(delta, inner, self.optimizer)
        self.hidden.step(back, x, self.optimizer)

    def score(self, held: HeldOut) -> list[HeadScore]:
        """Mean cross-entropy and accuracy of each head, without dropout."""
        logits = self.output(self.output_sees(held.x))
        losses = F.cross_entropy(logits.transpose(1, 2), held.y, reduction="none").mean(1)
        accuracies = (logits.argmax(2) == held.y).double().mean(1)
        return head_scores(losses, accuracies)

    def record(
        self, number: int, views: Sequence[torch.Tensor], train: Sequence[HeadScore]
    ) -> None:
        """Adds epoch `number`, from 1, to each head's curve, and keeps the weights that are best.

        Raises:
            UserError: a loss is no longer finite.
        """
        val = self.score(self.val)
        test = self.score(self.test) if self.test else [None] * len(self.members)
        scored = zip(self.members, views, train, val, test)
        for place, (member, view, in_train, in_val, in_test) in enumerate(scored):
            epoch = Epoch(
                epoch=number,
                train_loss=in_train.loss,
                train_acc=in_train.accuracy,
                val_loss=in_val.loss,
                val_acc=in_val.accuracy,
                test_loss=in_test.loss if in_test else None,
                test_acc=in_test.accuracy if in_test else None,
            )
            member.record(epoch, view)
            if member.best_epoch == number:
                self.copy_to(member, place)

    def copy_to(self, member: HeadInTraining, place: int) -> None:
        """Writes the weights at this place into the head."""
        for stacked, layer in zip(self.layers, member.linear):
            stacked.copy_to(layer, place)

    def drop_stopped(self) -> None:
        """Lets the heads go whose training has stopped."""
        places = [place for place, member in enumerate(self.members) if not member.stopped]
        if len(places) < len(self.members):
            self.keep(places)

    def keep(self, places: list[int]) -> None:
        """Leaves only the heads at these places."""
        self.members = [self.members[place] for place in places]
        self.smoothing = self.smoothing[places]
        for layer in self.layers:
            layer.keep(places)
        self.val = self.val.keep(places)
        if self.test:
            self.test = self.test.keep(places)
        jobs = [member.job for member in self.members]
        self.optimizer.take_rates(jobs, self.smoothing)


@torch.inference_mode()
def train_stack(
    members: Sequence[HeadInTraining],
    labels: torch.Tensor,
    *,
    epochs: int,
    batch_size: int,
    lock: Lock,
) -> None:
    """Trains heads of one shape together, in one thread. Views are asked for under `lock`, since
    drawing one uses the global random state."""
    torch.set_num_threads(1)  # of this thread: stacks run side by side instead
    stack = HeadStack(members, labels, batch_size=batch_size)
    for epoch in range(epochs):
        with lock:
            views = [member.job.view_of(epoch) for member in stack.members]
        train = stack.train_epoch(views)
        stack.record(epoch + 1, views, train)
        stack.drop_stopped()
        if not stack.members:
            break


def group_heads(members: Sequence[HeadInTraining]) -> list[list[HeadInTraining]]:
    """Heads that can be stacked, neighbours first; a stack's first layer has PIECE rows at most."""
    groups = defaultdict(list)
    for member in members:
        groups[member.shape].append(member)
    stacks = []
    for alike in groups.values():
        rows = alike[0].linear[0].out_features
        size = max(1, PIECE // rows)
        for start in range(0, len(alike), size):
            stack = alike[start : start + size]
            stacks.append(stack)
    return stacks


def train_many(
    heads: Sequence[nn.Module],
    jobs: Sequence[Job],
    labels: torch.Tensor,
    *,
    epochs: int = 30,
    batch_size: int = 32,
    progress: bool = False,
) -> list[TrainResult]:
    """Trains many heads, each by its `Job`, as `train` would train it alone -> their results, in
    their order.

    `heads`: linear, or Linear - ReLU - Dropout - Linear; each ends with its best epoch's weights,
    which are its result's `state` too (the same tensors: clone them before training it on).
    `labels` int64 [N] of all images. Features, labels and heads lie on the CPU, in one type.
    Histories lack the columns of the clean view. Small heads with equal widths and numbers of
    images are stacked, neighbours first; heads of a stack that see the same images in the same
    order (equal seed, settings differ) cost less. Stacks run in as many threads as PyTorch would
    use inside one operation.

    Raises:
        UserError: a head of another kind; fewer than one epoch; a loss that is no longer finite.
    """
    if epochs < 1:
        raise UserError(f"epochs is {epochs}: train for 1 or more")
    members = [HeadInTraining(head, job) for head, job in zip(heads, jobs, strict=True)]
    stacks = group_heads(members)
    work = partial(train_stack, labels=labels, epochs=epochs, batch_size=batch_size, lock=Lock())
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(max_workers=threads) as pool:
            done = pool.map(work, stacks)
            bar = tqdm(done, total=len(stacks), disable=not progress, ascii=True, desc="heads")
            for _ in bar:
                pass
    finally:
        torch.set_num_threads(threads)
    return [member.result() for member in members]
