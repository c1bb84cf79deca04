"""Backbones: the study's names, pretrained weights, the cut into a frozen and a trained part, device and precision."""

import copy
import hashlib
import json
import os
import re
import warnings
from collections import namedtuple
from pathlib import Path

import timm
import torch
from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from timm.models import load_state_dict
from torch import nn
from torch.optim.swa_utils import update_bn

from .errors import UserError

# The study's names -> timm's. resnet50 and densenet121 are torchvision's own weights; any other timm name is accepted too.
BACKBONES = {
    "resnet50": "resnet50.tv_in1k",
    "densenet121": "densenet121.tv_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
    "efficientnet_b0": "efficientnet_b0.ra_in1k",
    "efficientnet_b3": "efficientnet_b3.ra2_in1k",
    "vit": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
}

# What a backbone computes with: kind is "hub", "file" or "random" (which measures no transfer); sha256 is of all tensors.
WeightsInfo = namedtuple("WeightsInfo", "name timm_name kind source sha256")


def tensor_hash(tensor):
    """SHA-256 (hex) over the type, shape and bytes of a tensor."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def state_hash(module):
    """SHA-256 (hex) over the names and contents of a module's parameters and buffers."""
    listed = [
        f"{name} {tensor_hash(tensor)}" for name, tensor in sorted(module.state_dict().items())
    ]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def download_weights(repo_id, file="model.safetensors"):
    """Downloads a file of a hub repository ("OWNER/NAME", "OWNER/NAME@REVISION"), or takes it from the hub's cache:
    (path, "") or (None, why not)."""
    place = dict(zip(("repo_id", "revision"), repo_id.split("@")), filename=file)
    try:
        if not (cached := isinstance(try_to_load_from_cache(**place), str)):
            get_hf_file_metadata(
                hf_hub_url(**place), timeout=5
            )  # hf_hub_download alone repeats a failed connection for 20 s
        return hf_hub_download(**place, local_files_only=cached), ""
    except (
        Exception
    ) as error:  # its class differs between versions of huggingface_hub (requests, httpx)
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def read_weights(path):
    """Reads a weights file -> dict of tensors, floating ones as fp32. Pickles are read with `weights_only=True`.

    Raises:
        UserError: the file is missing, truncated or damaged, or holds anything but finite tensors.
    """
    try:
        state = load_state_dict(str(path), use_ema=False, weights_only=True)
    except (
        Exception
    ) as error:  # safetensors and pickles fail in many ways; all mean that the file is not usable
        reason = f"{' '.join(str(error).split())[:160]}{lost_tensors(path)}"
        raise UserError(
            f"weights file {path} is missing, damaged or no plain tensors ({reason})"
        ) from error
    wrong = [
        key
        for key, value in state.items()
        if not isinstance(value, torch.Tensor) or not value.float().isfinite().all()
    ]
    if wrong:
        raise UserError(
            f"weights file {path} holds {len(wrong)} entries that are no finite tensors: {wrong[:4]}"
        )
    return {
        key: value.float() if value.is_floating_point() else value for key, value in state.items()
    }


def lost_tensors(path):
    """Names the tensors that a truncated safetensors file has lost, as far as its JSON header is there; "" for other files."""
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    start = 8 + int.from_bytes(data[:8], "little")  # the header's length comes first
    entries = re.findall(
        rb'"([^"]+)":\s*{[^{}]*"data_offsets":\s*\[\d+,\s*(\d+)\]', data[8:start]
    )  # it may be cut off itself
    lost = [key.decode(errors="replace") for key, end in entries if start + int(end) > len(data)]
    return f"; {len(lost)} tensors are cut off: {lost[:4]}" if lost else ""


def load_backbone_weights(timm_name, path):
    """Builds timm's model for a weights file, its classifier as large as the file's, and loads all of it or nothing.

    Raises:
        UserError: keys are missing, unknown or of another shape; the message names them.
    """
    state = read_weights(path)
    model = build_model(timm_name)
    classifier = f"{classifier_name(model)}.weight"
    if classifier in state and model.num_classes != len(state[classifier]):
        model.reset_classifier(len(state[classifier]))
    load_all(model, state, path)
    return model


def load_all(model, state, path):
    """Loads `state`, read from `path`, into the model: all of it, or an error that names the keys.

    Raises:
        UserError: keys are missing, unknown or of another shape.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"weights file {path} does not fit: {' '.join(str(error).split())[:600]}"
        ) from error


def build_model(model_name, **kwargs):
    """Builds a timm model, randomly initialised.

    Raises:
        UserError: timm knows no such model, or its description cannot be fetched from the hub.
    """
    try:
        if model_name.startswith("hf-hub:") and (
            reason := download_weights(model_name[7:], "config.json")[1]
        ):  # asked first
            raise RuntimeError(reason)
        return timm.create_model(model_name, pretrained=False, **kwargs)
    except (
        Exception
    ) as error:  # timm raises RuntimeError for unknown names, the hub's own errors for hf-hub: ones
        raise UserError(
            f"cannot build {model_name} ({' '.join(str(error).split())[:160]}): see timm.list_models()"
        ) from error


def classifier_name(model):
    """The name of a timm model's last layer, e.g. "fc".

    Raises:
        UserError: the model has several (a distilled ViT has two).
    """
    if not isinstance(name := model.pretrained_cfg["classifier"], str):
        raise UserError(
            f"this model has several classifiers {name}: take one with a single classifier"
        )
    return name


def find_weights(name, place):
    """The weights file of a backbone in `place`: the file itself, or NAME.safetensors in the folder, under the study's
    name, then timm's, with and without its tag; None where the folder lacks it.

    Raises:
        UserError: `place` does not exist.
    """
    place, timm_name = Path(place).expanduser(), BACKBONES.get(name, name)
    if not place.exists():
        raise UserError(f"weights {place} do not exist: give auto, none, a file or a folder")
    names = [f"{stem}.safetensors" for stem in (name, timm_name, timm_name.split(".")[0])]
    return next(
        (
            path
            for path in ([place / name for name in names] if place.is_dir() else [place])
            if path.is_file()
        ),
        None,
    )


def describe_weights(path):
    """What a weights file says of itself in the .json beside it ("source", "input_size"); its name where there is none.

    Raises:
        UserError: that .json is damaged.
    """
    note = path.with_suffix(".json")
    try:
        described = {"source": f"file {path.name}"} | (
            json.loads(note.read_bytes()) if note.is_file() else {}
        )
        return described["source"] + (
            f", at {described['input_size']} px" if "input_size" in described else ""
        )
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{note}, which describes the weights beside it, is damaged ({error}): mend or remove it"
        ) from error


def find_pretrained(name, weights):
    """Where a backbone's weights come from, as `create_backbone` documents: (path or None, kind, source)."""
    if weights == "none":
        return None, "random", "random initialisation (asked for)"
    for place in (weights, os.environ.get("WEIGHTS_DIR")):
        path = find_weights(name, place) if place and place != "auto" else None
        if path:
            return path, "file", describe_weights(path)
    repo_id = hub_repository(BACKBONES.get(name, name))
    path, reason = (
        download_weights(repo_id) if repo_id else (None, "timm lists no pretrained weights")
    )
    return (
        (path, "hub", f"hub: {repo_id}")
        if path
        else (None, "random", f"random initialisation ({reason})")
    )


def hub_repository(timm_name):
    """The hub repository of a timm model's weights; None where it has none."""
    config = timm.get_pretrained_cfg(timm_name) if timm.is_model_pretrained(timm_name) else None
    return (
        config.hf_hub_id
        if config
        else timm_name.removeprefix("hf-hub:")
        if ":" in timm_name
        else None
    )


def create_backbone(name, weights="auto"):
    """Creates a backbone of the registry, or any timm model (`hf-hub:` names too) -> (model, WeightsInfo).

    `weights`: "none"; a file; a folder, searched for NAME.safetensors; "auto": the folder in WEIGHTS_DIR where set, then
    the hub, then random initialisation with a warning. A backbone that a named folder lacks is looked for as under "auto".

    Raises:
        UserError: an unknown model; a named file or folder is missing; a file that does not fit.
    """
    timm_name = BACKBONES.get(name, name)
    path, kind, source = find_pretrained(name, weights)
    if path:
        model = load_backbone_weights(timm_name, path)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = build_model(timm_name)
        revive_residual_branches(model)
        if weights != "none":
            warnings.warn(f"{name}: {source}; this run measures no transfer", stacklevel=2)
    return model, WeightsInfo(name, timm_name, kind, source, state_hash(model))


def revive_residual_branches(model):
    """Sets all-zero BatchNorm scales to one (as timm's `zero_init_last=False`): at zero, random residual branches are dead."""
    for norm in [
        module
        for module in model.modules()
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any()
    ]:
        nn.init.ones_(norm.weight)


def normalize(model, images):
    """Turns uint8 images [N, 3, H, W] into the float input that a timm model was trained on (its own mean and std)."""
    mean, std = (
        torch.tensor(model.pretrained_cfg[key], device=images.device).view(1, 3, 1, 1)
        for key in ("mean", "std")
    )
    return (images.float() / 255 - mean) / std


def estimate_batchnorm(model, batches, *, device):
    """Estimates a randomly initialised model's BatchNorm statistics on clean images, batches of uint8 [n, 3, H, W] that come one
    at a time and count the same each; no label is seen."""
    update_bn((normalize(model, batch.to(device)) for batch in batches), model.to(device))


def make_head(in_features, num_classes, *, hidden=512, dropout=0.5, seed=0):
    """The study's head: Linear(D, 512) - ReLU - Dropout(0.5) - Linear(512, C), initialised under `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(in_features, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, num_classes),
        )


def set_head(model, head):
    """Puts `head` (its last layer gives C logits) in place of a timm model's classifier; returns the model.

    Raises:
        UserError: the model's classifier is no linear layer on pooled features, or it has several.
    """
    model.reset_classifier(head[-1].out_features)
    if not isinstance(model.get_submodule(classifier_name(model)), nn.Linear):
        raise UserError(
            f"this model ends in {type(model.get_classifier()).__name__}, not in a linear layer: no head fits it"
        )
    model.set_submodule(classifier_name(model), head)
    return model


class FrozenFeatures(nn.Module):
    """Everything of a timm model up to its pooled features: uint8 [N, 3, H, W] -> [N, D]; normalisation included."""

    def __init__(self, model):
        super().__init__()
        shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, memo=shared)  # modules of its own, the model's tensors
        self.model.set_submodule(classifier_name(model), nn.Identity())

    def forward(self, images):
        return self.model.forward_head(
            self.model.forward_features(normalize(self.model, images)), pre_logits=True
        )


class Normalized(nn.Module):
    """`body`, a part of a timm model or all of it, for uint8 images [N, 3, H, W]: normalises them first."""

    def __init__(self, model, body):
        super().__init__()
        self.pretrained_cfg, self.body = model.pretrained_cfg, body

    def forward(self, images):
        return self.body(normalize(self, images))


def trace(module):
    """Records what a module computes, layer by layer -> `torch.fx.GraphModule` on the same layers. Put it into eval mode first.

    What timm marks as untraceable stays one step.
    """
    tracer = torch.fx.Tracer(autowrap_functions=(*timm.layers.get_notrace_functions(),))
    opaque, is_leaf = (*timm.layers.get_notrace_modules(),), tracer.is_leaf_module
    tracer.is_leaf_module = lambda layer, name: isinstance(layer, opaque) or is_leaf(layer, name)
    return torch.fx.GraphModule(module, tracer.trace(module))


def fold_batchnorm(lower):
    """A frozen part with every BatchNorm that follows a convolution folded into it: the same function up to rounding, in
    fewer steps (Jacob et al. 2018, CVPR, section 3.2). `lower` stays as it is, and is returned where it cannot be traced.

    In fp32 on 2 AVX2 cores, batches of 8 images at 224 px, it takes EfficientNet-Lite0 from 42 to 75 images a second;
    ResNet50 and DenseNet121 gain nothing there (17 and 21).
    """
    try:
        folded = trace(lower)
    except Exception:  # what a model's Python code does with a traced value can fail in any way; then nothing is folded
        return lower
    steps = [node for node in folded.graph.nodes if node.op == "call_module"]
    for before, step in zip(steps, steps[1:]):
        conv, norm = (folded.get_submodule(node.target) for node in (before, step))
        once = (
            len(before.users)
            == sum(node.target in (before.target, step.target) for node in steps) - 1
            == 1
        )  # no one else's
        kinds = type(conv) in (nn.Conv2d, timm.layers.Conv2dSame) and type(norm) in (
            nn.BatchNorm2d,
            timm.layers.BatchNormAct2d,
        )
        if step.args[0] is before and once and kinds:
            folded.set_submodule(before.target, nn.utils.fuse_conv_bn_eval(conv, norm))
            folded.set_submodule(
                step.target,
                nn.Sequential(norm.drop, norm.act) if hasattr(norm, "act") else nn.Identity(),
            )
    return folded


def part_between(model, start, end):
    """The part of a traced model that computes node `end` from node `start`, on the model's own layers."""
    needed, todo = set(), [end]
    while todo:
        node = todo.pop()
        if node not in needed and node is not start:
            needed.add(node)
            todo += node.all_input_nodes
    graph = torch.fx.Graph()
    copied = {start: graph.placeholder("x")}
    for node in end.graph.nodes:
        if node in needed:
            copied[node] = graph.node_copy(node, copied.__getitem__)
    graph.output(copied[end])
    return torch.fx.GraphModule(model, graph)


def split_graph(model, cut):
    """Cuts a model before its module `cut` (its full name, or the end of it) -> (lower, upper) on the model's own layers.

    Raises:
        UserError: it cannot be traced, has no such module, or data flows past that module.
    """
    choices = f'cut at "features", "input" or before a stage: {[name for name, _ in model.named_children()]}'
    training = model.training
    try:
        whole = Normalized(model, model.eval())
        nodes = list(trace(whole).graph.nodes)
    except (
        Exception
    ) as error:  # what a model's Python code does with a traced value can fail in any way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f'this model cannot be cut inside ({reason}): cut at "features" or "input"'
        ) from error
    finally:
        model.train(training)
    names = [
        [*node.meta.get("nn_module_stack", {}), str(node.target) * (node.op == "call_module")]
        for node in nodes
    ]
    inside = [
        i for i, stack in enumerate(names) if any(f".{name}".endswith(f".{cut}") for name in stack)
    ]
    if not inside:
        raise UserError(f'the model has no module "{cut}": {choices}')
    later = nodes[inside[0] :]
    entries = {node for after in later for node in after.all_input_nodes} - set(later)
    entries = [node for node in entries if node.op != "get_attr"]  # parameters are no data
    if len(entries) != 1:
        raise UserError(
            f'the model cannot be cut before "{cut}", where {len(entries)} tensors flow: {choices}'
        )
    return part_between(whole, nodes[0], entries[0]), part_between(
        whole, entries[0], nodes[-1].args[0]
    )


def split_features(model):
    """Cuts a model behind its pooled features -> (lower, upper), as `split_at` does at the cut "features"."""
    model.to(memory_format=torch.channels_last)
    lower, upper = FrozenFeatures(model), model.get_submodule(classifier_name(model))
    return lower.eval().requires_grad_(False), upper.requires_grad_(True)


def split_at(model, cut):
    """Cuts a model into (lower, upper): `lower` is frozen and in eval mode, `upper` trains. Both share the model's tensors,
    so training `upper` trains `model`. Put the model on its device first.

    `lower` takes uint8 images [N, 3, H, W]. At the cut "features" it gives [N, D] and `upper` is the classifier; at the
    name of a module, such as "layer4" or "blocks.6", that module and all behind it train, the input of it is kept; at
    "input" `lower` does nothing and `upper` is the whole model, normalisation included.

    Raises:
        UserError: a cut that the model does not have.
    """
    if cut == "features":
        return split_features(model)
    model.to(memory_format=torch.channels_last)
    lower, upper = (
        (nn.Identity(), Normalized(model, model)) if cut == "input" else split_graph(model, cut)
    )
    lower = copy.deepcopy(
        lower, memo={id(tensor): tensor for tensor in lower.state_dict(keep_vars=True).values()}
    )
    return lower.eval().requires_grad_(False), upper.requires_grad_(
        True
    )  # also what an earlier cut has frozen


def choose_device():
    """CUDA where there is a GPU, else the CPU. On a GPU, fp32 means fp32 from then on: convolutions do not round to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def choose_precision(device):
    """The type that frozen views are computed in: bf16 where the hardware computes in it, fp16 on older GPUs, else fp32.

    On a CPU without bf16 arithmetic (its flags say so) bf16 would be several times slower than fp32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    info = Path(
        "/proc/cpuinfo"
    )  # only Linux has it; elsewhere the slower type is never the wrong one
    flags = (
        info.read_text().split()
        if info.is_file() and "AVX512" in torch.backends.cpu.get_cpu_capability()
        else []
    )
    return torch.bfloat16 if {"avx512_bf16", "amx_bf16"} & set(flags) else torch.float32


def choose_batch_size(device, pixels):
    """How many images of so many pixels (H * W) go through a frozen part at once.

    8 on a CPU, in whose cache small batches stay: on 2 AVX2 cores folded EfficientNet-Lite0 takes 75 images a second in
    batches of 8 and 51 in batches of 32. On a GPU what half of its free memory holds at 1 kB a pixel, at most 64.
    """
    return (
        8
        if device.type == "cpu"
        else min(64, 1 + torch.cuda.mem_get_info(device)[0] // (2000 * pixels))
    )
