"""The one training loop: a head (or more of a model) on features that are kept, with early stopping."""

import math
import sys
import time
from collections import namedtuple

import torch
from torch.nn import functional as F
from tqdm import tqdm

from .errors import UserError

HISTORY_COLUMNS = (
    "epoch train_loss train_acc train_loss_clean train_acc_clean val_loss val_acc seconds".split()
)


# A dict for each epoch; the best epoch, counted from 1; the trained part's state dict there.
TrainResult = namedtuple("TrainResult", "history best_epoch state")


@torch.inference_mode()
def evaluate(upper, x, y, *, batch_size=None):
    """Loss and accuracy of `upper` on kept features x [N, ...], labels y int64 [N]; leaves it in eval mode. Batches are of 512, or
    of 32 where x are no features [N, D] but activations or images.

    -> {"loss": mean cross-entropy in nats, "accuracy": 0 to 1, "logits": [N, C], "predictions": [N]}, tensors on the CPU.
    """
    upper.eval()
    device = next(upper.parameters()).device
    batches = x.split(batch_size or (512 if x.dim() == 2 else 32))
    logits = torch.cat([upper(part.to(device)) for part in batches]).float().cpu()
    predictions, loss = logits.argmax(dim=1), F.cross_entropy(logits, y.cpu()).item()
    accuracy = (predictions == y.cpu()).double().mean().item()
    return {"loss": loss, "accuracy": accuracy, "logits": logits, "predictions": predictions}


def train_one_epoch(
    upper, optimizer, x, y, order, batch_size, mix=None, schedule=None, stay_eval=(), **loss_options
):
    """One pass over x [N, ...] in the given order -> (mean loss, accuracy), both as seen during training.

    `mix(x, y)` makes other inputs and targets of a batch, as MixUp and CutMix do; accuracy is then against the labels that were
    mixed in first. `schedule`: a learning-rate scheduler of PyTorch, stepped with every batch. `stay_eval`: kinds of modules that
    stay in eval mode. `loss_options`: cross_entropy's.
    """
    for module in upper.modules():
        module.train(not isinstance(module, stay_eval))
    total_loss = total_correct = 0.0
    for batch in order.split(batch_size):
        inputs, targets = mix(x[batch].float(), y[batch]) if mix else (x[batch], y[batch])
        logits = upper(inputs)
        loss = F.cross_entropy(logits, targets, **loss_options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule:
            schedule.step()
        total_loss += loss.item() * len(batch)
        total_correct += (logits.argmax(dim=1) == y[batch]).sum().item()
    return total_loss / len(y), total_correct / len(y)


def check_loss(loss, x, epoch, lr):
    """Stops a run whose loss is no longer a number.

    Raises:
        UserError: names the epoch and the likely cause.
    """
    if not math.isfinite(loss):
        high = f"the learning rate {lr} is probably too high: try {lr / 10:g}"
        bad = "the features hold NaN or infinity: the weights are damaged, or the precision overflows (use fp32)"
        raise UserError(f"epoch {epoch}: the loss is {loss}; {high if x.isfinite().all() else bad}")


def train(
    upper,
    view_of,
    labels,
    val_x,
    val_y,
    *,
    clean_x,
    epochs=30,
    patience=5,
    batch_size=32,
    lr=1e-3,
    weight_decay=0.0,
    label_smoothing=0.0,
    class_weights=None,
    parameters=None,
    schedule=None,
    mix=None,
    stay_eval=(),
    seed=0,
    progress=False,
):
    """Trains `upper` with Adam and cross-entropy on kept features; restores the best epoch's weights -> TrainResult.

    `view_of(e)` gives the features [N, ...] of epoch e = 0, 1, ...; `labels` int64 [N]; `val_x` [M, ...], `val_y` int64 [M];
    `clean_x` [N, ...] is the training images' clean view, evaluated without dropout after each epoch. Best is the lowest
    validation loss, the earliest on ties. Training stops when `patience` epochs in a row bring no new best (0: never).
    `weight_decay` is Adam's L2 term; `label_smoothing` and `class_weights` [C] act on the training loss only. `parameters`:
    groups of parameters with rates of their own, as PyTorch's optimizers take them (default: all that train, at `lr`);
    `schedule(step)` gives the factor of every rate at step 0, 1, ... of the run; `mix`, `stay_eval`: as in `train_one_epoch`.

    Raises:
        UserError: the loss is no longer finite.
    """
    if epochs < 1:
        raise UserError(f"epochs is {epochs}: train for 1 or more")
    torch.manual_seed(seed)  # dropout
    shuffle = torch.Generator().manual_seed(seed)
    device = next(upper.parameters()).device
    labels, val_y = labels.to(device), val_y.to(device)
    parameters = parameters or [p for p in upper.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)
    options = {
        "mix": mix,
        "stay_eval": stay_eval,
        "schedule": schedule and torch.optim.lr_scheduler.LambdaLR(optimizer, schedule),
    }
    options |= {"label_smoothing": label_smoothing, "weight": class_weights}
    history, best = [], None
    bar = tqdm(
        range(epochs), disable=not progress, ascii=True, ncols=100, desc="epochs", file=sys.stdout
    )
    for epoch in bar:
        started = time.perf_counter()
        x = view_of(epoch).to(device)
        order = torch.randperm(len(labels), generator=shuffle).to(device)
        train_loss, train_acc = train_one_epoch(
            upper, optimizer, x, labels, order, batch_size, **options
        )
        clean, val = evaluate(upper, clean_x, labels), evaluate(upper, val_x, val_y)
        for loss, features in ((train_loss, x), (clean["loss"], clean_x), (val["loss"], val_x)):
            check_loss(loss, features, epoch + 1, lr)
        row = [
            epoch + 1,
            train_loss,
            train_acc,
            clean["loss"],
            clean["accuracy"],
            val["loss"],
            val["accuracy"],
        ]
        history.append(dict(zip(HISTORY_COLUMNS, [*row, time.perf_counter() - started])))
        bar.set_postfix_str(f"val_loss {val['loss']:.3f} val_acc {val['accuracy']:.3f}")
        if best is None or val["loss"] < history[best]["val_loss"]:
            best = epoch
            state = {name: tensor.detach().clone() for name, tensor in upper.state_dict().items()}
        elif patience and epoch - best >= patience:
            break
    bar.close()
    upper.load_state_dict(state)
    return TrainResult(history, best + 1, state)
