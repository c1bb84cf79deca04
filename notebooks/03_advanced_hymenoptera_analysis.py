# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown] id="intro"
# # 03. 개미와 벌: 백본 네 가지의 전이 학습
#
# 개미와 벌 사진 397장(학습 244장, 검증 153장)으로 둘을 가려내는 분류기를 만듭니다. PyTorch의 전이 학습 튜토리얼에 쓰여 널리 알려진 데이터입니다.
# 백본 네 가지를 똑같은 방법으로 얼리고 똑같은 헤드를 붙여서, **어떤 사전 학습이 이 작은 문제에 잘 옮겨 오는지** 봅니다.
#
# | 백본 | 특징 수 | 한 줄 소개 |
# |---|---|---|
# | EfficientNet-Lite0 | 1,280 | 휴대 기기용으로 다듬은 작은 합성곱 신경망 |
# | EfficientNet-B0 | 1,280 | 깊이, 너비, 해상도를 함께 키우는 EfficientNet의 출발점 |
# | EfficientNet-B3 | 1,536 | B0을 키운 것. 원래 288~300픽셀용이지만 연구를 따라 224픽셀로 씁니다 |
# | ViT-B/16 | 768 | 이미지를 16×16 조각으로 잘라 문장처럼 읽는 트랜스포머 |
#
# Lite0을 맨 앞에 둔 까닭이 있습니다. 이 백본의 ImageNet 가중치는 어디서나 구할 수 있어서, 적어도 한 줄은 언제나 진짜 전이를 잽니다.
# 가중치를 구하지 못한 백본은 무작위로 초기화하고 결과에 그렇게 적습니다. 그런 줄은 전이를 **재지 않습니다**.
#
# 한 가지 알고 읽어야 할 점이 있습니다. 이 사진들은 ImageNet의 일부이므로, ImageNet으로 학습한 백본은 같은 사진을 이미 보았을 수 있습니다.
# 여기서 나온 높은 정확도가 여러분의 사진에서도 나오리라는 보장은 없습니다.
#
# 파일 하나로 완결된 노트북입니다. Colab에서는 *런타임 → 런타임 유형 변경*에서 GPU를 고르면 더 빠릅니다. 빠진 패키지가 있다고 나오면 `%pip install timm` 을 먼저 실행하세요.

# %% id="imports"
import copy
import time
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn import functional as F

# %% [markdown] id="parameters-text"
# ## 설정
#
# 바꿔 볼 값은 모두 이 칸에 있습니다. 자기 이미지로 해 보려면 `data_dir` 하나만 바꾸세요. `폴더/클래스이름/*` 꼴이거나
# `폴더/train/클래스이름/*`, `폴더/val/클래스이름/*` 꼴이면 됩니다. 비워 두면 `data/` 폴더에서 찾고, 없으면 PyTorch 튜토리얼의 압축 파일(약 47 MB)을 내려받습니다.

# %% tags=["parameters"] id="parameters"
data_dir = ""  # folder of images; empty: data/, downloaded when missing
weights = "auto"  # auto (hub), none (random), a file, or a folder of .safetensors
epochs = 30  # at most; early stopping usually ends sooner
views = 4  # random views of every training image, used in turn beside the clean one; 0: none
seed = 42
out_dir = "."  # model/, result/ and img/ go here
cache_dir = ""  # folder that keeps features between runs; empty: off
mount_drive = False  # Colab only: mount Google Drive and write there

# %% [markdown] id="setup"
# ## 준비
#
# 내려받기, 이미지 해독, 가중치 읽기, 파일 쓰기, 그림 그리기처럼 배관에 해당하는 코드입니다. 처음 읽을 때는 접어 둔 채 실행만 하고 넘어가도 됩니다.

# %% id="setup-errors"
# @inline transferlab.errors: UserError

# %% id="setup-machine"
# @inline transferlab.machine: CPU_INFO, RECORDED_PACKAGES, MachineInfo, Machine, choose_device
# @inline transferlab.machine: choose_precision, choose_batch_size, processor_name
# @inline transferlab.machine: installed_versions

# %% id="setup-machine-2"
# @inline transferlab.machine: this_machine, Clock

# %% id="setup-data"
# @inline transferlab.data: SPLITS, PLACEHOLDER_SHA256, DECODED_BYTES, Rejected, ImageFile
# @inline transferlab.data: DecodedImages, ImageSet, Fold, sub_folders, holds_files, folder_layout

# %% id="setup-data-2"
# @inline transferlab.data: image_folders_by_depth, find_image_folder, ClassFolder
# @inline transferlab.data: check_class_names, class_folders, has_transparency, to_rgb

# %% id="setup-data-3"
# @inline transferlab.data: decode_image, read_image, printable_path, describe_failure, ImageLoader

# %% id="setup-data-4"
# @inline transferlab.data: load_images, split_indices, split_images

# %% id="setup-views"
# @inline transferlab.views: BLOCK, Transform, AugmentationInfo, printed, Augmentation, view_seed
# @inline transferlab.views: Renderer

# %% id="setup-download"
# @inline transferlab.download: HYMENOPTERA_URL, HYMENOPTERA_COUNTS, COUNTED_SUFFIXES
# @inline transferlab.download: CONNECT_SECONDS, DownloadError, by_hand, fetch_url, is_safe_member
# @inline transferlab.download: unpack_zip, count_images, describe_counts, check_counts

# %% id="setup-download-2"
# @inline transferlab.download: folder_to_become, download_hymenoptera

# %% id="setup-offline"
# @inline transferlab.offline: LITE0_NAME, LITE0_PACKAGE, LITE0_SHA256, LITE0_SOURCE, LITE0_DEPTHS
# @inline transferlab.offline: LITE0_OUTER_NAMES, LITE0_FIRST_NAMES, LITE0_BLOCK_NAMES
# @inline transferlab.offline: lite0_block_place, lite0_timm_key, find_packaged_weights
# @inline transferlab.offline: read_packaged_weights

# %% id="setup-pretrained"
# @inline transferlab.pretrained: BACKBONES, WeightsInfo, FoundWeights, Download, tensor_hash
# @inline transferlab.pretrained: state_hash, download_weights, hub_repository, read_weights

# %% id="setup-pretrained-2"
# @inline transferlab.pretrained: is_finite_tensor, as_fp32, describe_lost_tensors, WeightsNote
# @inline transferlab.pretrained: short_label, read_note, find_weights_file, find_pretrained

# %% id="setup-pretrained-3"
# @inline transferlab.pretrained: random_weights, read_found_weights

# %% id="setup-backbones"
# @inline transferlab.backbones: FOLDABLE_CONVOLUTIONS, FOLDABLE_NORMS, build_model, classifier_name
# @inline transferlab.backbones: load_all, build_from_state, build_random, revive_residual_branches
# @inline transferlab.backbones: normalize, estimate_batchnorm

# %% id="setup-backbones-2"
# @inline transferlab.backbones: Normalized, copy_sharing_tensors, trace, can_fold, fold_batchnorm
# @inline transferlab.backbones: fold_pair, nodes_between, part_between

# %% id="setup-backbones-3"
# @inline transferlab.backbones: trace_whole, lies_in, split_graph, count_parameters

# %% id="setup-store"
# @inline transferlab.store: ABANDONED_SECONDS, key_text, checksum, Store, NO_STORE, read_kept
# @inline transferlab.store: open_store

# %% id="setup-store-2"
# @inline transferlab.store: sweep_leftovers

# %% id="setup-features"
# @inline transferlab.features: FEATURES_REVISION, FROM_DISK, FeatureKey, one_ahead, as_blocks

# %% id="setup-train"
# @inline transferlab.train: ViewOf, Mix, Settings, Epoch, TrainResult, Evaluation, TrainData

# %% id="setup-train-2"
# @inline transferlab.train: Recipe, set_training, copy_state, progress_bar

# %% id="setup-metrics"
# @inline transferlab.metrics: Interval, accuracy_interval

# %% id="setup-records"
# @inline transferlab.records: SCHEMA, R, DataInfo, data_info, RunRecord, HeadInfo, StudyRecord
# @inline transferlab.records: highest_epoch

# %% id="setup-records-2"
# @inline transferlab.records: hash_of_split, to_json, from_plain, convert, checked, read_plain

# %% id="setup-techniques"
# @inline transferlab.techniques: BATCHNORM, NORMALISATION, TUNING_RATE, PAIR_OF
# @inline transferlab.techniques: summarise_techniques

# %% id="setup-artifacts"
# @inline transferlab.artifacts: OUT_FOLDERS, prepare_out_dir, new_stamp, write_new, write_text
# @inline transferlab.artifacts: write_table, file_name, seconds_text, history_table, SavedRun

# %% id="setup-artifacts-2"
# @inline transferlab.artifacts: save_run, save_figure, SavedModel, load_model, ClassProbability
# @inline transferlab.artifacts: rank_classes, check_augmentation

# %% id="setup-artifacts-3"
# @inline transferlab.artifacts: predict_image

# %% id="setup-plots"
# @inline transferlab.plots: BLUE, ORANGE, GREEN, GREY, describe_data, describe_run
# @inline transferlab.plots: plot_class_counts, plot_images, plot_curves, plot_history

# %% id="setup-plots-2"
# @inline transferlab.plots: plot_timings, plot_models, interval_reach, plot_techniques
# @inline transferlab.plots: plot_against_seconds

# %% id="setup-end"
try:
    from google.colab import drive  # only there in Colab
except ImportError:
    drive = None
if drive and mount_drive:
    drive.mount("/content/drive")
    out_dir = "/content/drive/MyDrive/transferlab"
out_dir = prepare_out_dir(out_dir)
# Without the kernel's temporary file names.
warnings.showwarning = lambda message, *where: print(f"warning: {message}")
machine = this_machine()
device = machine.device
store = open_store(cache_dir)
print(f"device: {device.type}, precision of random views: {machine.precision}")

# %% [markdown] id="data-text"
# ## 1. 데이터
#
# 이 데이터는 학습용과 검증용으로 이미 나뉘어 있으므로 그 나눔을 그대로 씁니다. 나뉘지 않은 폴더를 주면 35%를 층화해서 검증에 떼어 둡니다.
#
# 학습용 개미 폴더에는 "이미지를 찾을 수 없음"이라는 안내 그림(`imageNotFound.gif`)이 한 장 섞여 있습니다. 개미 사진이 아니므로 빼고, 뺐다는 사실을 출력에 남깁니다.
# 이런 파일을 그냥 두고 학습하는 예제가 많습니다.

# %% id="data"
image_folder = Path(data_dir) if data_dir else download_hymenoptera(Path("data"))
image_set = load_images(image_folder, prefer="hymenoptera_data")
fold = split_images(image_set, val_size=0.35, seed=seed)
for left_out in image_set.rejected:
    print(f"left out: {left_out.path} ({left_out.reason})")
val_labels = image_set.labels[fold.val]
majority = torch.bincount(val_labels).max().item() / len(val_labels)
n_train, n_val = len(fold.train), len(fold.val)
print(f"{image_set.name}: {n_train} images for training, {n_val} for validation")
print(f"always guessing the most frequent class: {majority:.1%}")
plot_class_counts(image_set, fold)
plt.show()

# %% [markdown] id="samples-text"
# 클래스마다 일곱 장씩 봅니다. 곤충이 화면의 얼마를 차지하는지, 배경(꽃, 흙, 손가락)만 보고도 맞힐 수 있을 것 같은지 살펴보세요.
# 저장소에 올라온 노트북에는 남의 사진 대신 직접 그린 그림(synthetic)이 들어 있습니다. 직접 실행하면 여러분의 이미지가 나옵니다.

# %% tags=["shows-images"] id="samples"
chosen = []
for label in range(len(image_set.classes)):
    chosen += torch.where(image_set.labels == label)[0][:7].tolist()
names = [image_set.classes[image_set.labels[i]] for i in chosen]
drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
heading = f"{image_set.name}{drawn}"
plot_images([image_set.images[i] for i in chosen], names, columns=7, heading=heading)
plt.show()

# %% [markdown] id="views-text"
# ## 2. 뷰: 한 장을 여러 장처럼 쓰기
#
# **증강(augmentation)** 은 학습 이미지를 무작위로 자르고, 뒤집고, 돌리고, 밝기를 바꾸는 일입니다. 이렇게 변형한 한 벌을 **뷰(view)** 라고 부르며,
# 변형하지 않은 깨끗한 뷰가 0번입니다. 얼굴과 달리 여기서는 `RandomResizedCrop`이 사진의 8%만 남기기도 합니다. 곤충이 잘려 나갈 수도 있다는 뜻입니다.
#
# 뷰는 (seed, 뷰 번호, 파일 이름)에서 계산한 난수로 그립니다. 그래서 **네 백본이 완전히 똑같은 그림을 보고** 배웁니다. 정규화는 백본마다 다르므로 모델 쪽에서 합니다.

# %% id="views"
# @inline transferlab.views: photos_augmentation, render_view

# %% [markdown] id="views-figure-text"
# 한 장에서 나온 깨끗한 뷰와 증강한 뷰 여섯 장입니다. **변형한 뒤에도 무슨 곤충인지 알아볼 수 있는 뷰가 몇 장인지** 세어 보세요.

# %% tags=["shows-images"] id="views-figure"
augmentation = photos_augmentation()
example = fold.train[:1]
pictures = [render_view(image_set, augmentation.clean, view=0, seed=seed, indices=example)[0]]
for view in range(1, 7):
    drawn = render_view(image_set, augmentation.train, view=view, seed=seed, indices=example)
    pictures.append(drawn[0])
label = image_set.classes[image_set.labels[example]]
titles = ["clean"] + [f"view {view}" for view in range(1, 7)]
note = " (synthetic)" if image_set.synthetic else ""
plot_images(pictures, titles, columns=7, heading=f"{label}: one image, six views{note}")
plt.show()

# %% [markdown] id="model-text"
# ## 3. 모델: 얼린 몸통과 새 헤드
#
# 백본의 마지막 층을 떼고 연구의 헤드 `Linear(D, 512) → ReLU → Dropout(0.5) → Linear(512, 2)`를 붙입니다. D는 백본이 내는 특징의 수입니다.
# 모델을 얼린 부분(`lower`, 항상 eval 모드)과 학습할 부분(`upper`)으로 자르고, 얼린 부분이 한 비트도 바뀌지 않았음을 해시로 확인합니다.
#
# 백본마다 입력을 정규화하는 평균과 표준편차가 다릅니다(Lite0과 ViT는 0.5, 나머지는 ImageNet의 값). 자기 것으로 먹이지 않으면 가중치가 좋아도 결과가 나빠집니다.

# %% id="model"
# @inline transferlab.backbones: create_backbone

# %% id="model-head"
# @inline transferlab.backbones: make_head, set_head, FrozenFeatures, split_features

# %% id="features"
# @inline transferlab.features: extract

# %% id="features-kept"
# @inline transferlab.features: Features, FoldFeatures, features_of

# %% id="study"
# @inline transferlab.study: Study, Frozen

# %% id="study-freeze"
# @inline transferlab.study: seeded_head, settle_batchnorm, freeze_backbone

# %% [markdown] id="freeze-text"
# 먼저 Lite0을 만듭니다. 어떤 가중치를 읽었는지 꼭 확인하세요. `random`이라고 나오면 전이 학습을 재는 것이 아닙니다.

# %% id="freeze"
settings = Settings(epochs=epochs, patience=5, batch_size=32, lr=1e-3, views=views)
study = Study(
    renderer=Renderer(
        image_set, augmentation, seed=seed, keep=200
    ),  # rendered once for all four backbones
    fold=fold,
    settings=settings,
    machine=machine,
    seed=seed,
    store=store,
)
frozen = freeze_backbone("efficientnet_lite0", study, weights=weights)
print(f"weights: {frozen.info.kind}: {frozen.info.source}")
total = count_parameters(frozen.model)
trainable = count_parameters(frozen.upper)
print(f"parameters: {total:,}, of which {trainable:,} are trained")
print(frozen.upper)

# %% [markdown] id="ordinary-text"
# ## 4. 누구나 쓰는 반복문, 그리고 같은 일을 더 빨리 하는 법
#
# 흔히 쓰는 방식으로 한 에포크를 돌립니다. 배치마다 이미지를 새로 증강하고, 얼린 백본에 통과시키고, 헤드만 갱신합니다.


# %% id="ordinary"
def ordinary_epoch(lower, head, order):
    """The loop that everybody writes: fresh views through the frozen backbone, batch by batch -> mean loss."""
    for parameter in lower.parameters():
        parameter.requires_grad = False
    lower.eval()
    head.train()
    optimizer = torch.optim.Adam(head.parameters(), lr=settings.lr)
    total_loss = 0.0
    for batch in order.split(settings.batch_size):
        chosen = fold.train[batch]
        images = render_view(image_set, augmentation.train, view=1, seed=seed, indices=chosen)
        labels = image_set.labels[chosen].to(device)
        with torch.no_grad():
            features = lower(images.to(device).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(head(features), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total_loss += loss.item() * len(batch)
    return total_loss / len(order)


order = torch.randperm(len(fold.train), generator=torch.Generator().manual_seed(seed))
ordinary_head = copy.deepcopy(frozen.upper)
torch.manual_seed(seed)
started = time.perf_counter()
ordinary_loss = ordinary_epoch(frozen.lower, ordinary_head, order)
ordinary_seconds = time.perf_counter() - started
print(f"ordinary epoch: {ordinary_seconds:.1f} s, mean training loss {ordinary_loss:.4f}")

# %% [markdown] id="kept-text"
# 거의 모든 시간이 백본의 순전파에 들어갑니다. 그런데 얼린 백본은 같은 뷰에 언제나 같은 특징을 내므로, **한 번만 계산해서 보관**하면 됩니다.
# 같은 뷰, 같은 순서, 같은 드롭아웃으로 한 에포크를 다시 돌려 손실이 같은지 확인합니다. 뷰를 몇 벌 보관하면 증강도 그대로 쓸 수 있습니다.

# %% id="train-epoch"
# @inline transferlab.train: Loop, evaluate, check_loss

# %% id="kept"
kept_x = frozen.features.train(1).to(device)  # the frozen part runs here, once
labels = image_set.labels[fold.train].to(device)
kept_head = copy.deepcopy(frozen.upper)
loop = Loop(kept_head, settings, Recipe())
torch.manual_seed(seed)
started = time.perf_counter()
kept_loss, _ = loop.epoch(kept_x, labels, order.to(device))
kept_seconds = time.perf_counter() - started
print(f"epoch on kept features: {kept_seconds:.2f} s, mean training loss {kept_loss:.4f}")
tolerance = 1e-3 if machine.precision == torch.float32 else 5e-2
apart = abs(kept_loss - ordinary_loss)
assert apart < tolerance * max(1, ordinary_loss), "kept features and the ordinary loop disagree"
times = ordinary_seconds / kept_seconds
print(
    f"the same loss within {tolerance:g}; a further epoch on this view is {times:.0f} times faster"
)

# %% [markdown] id="train-text"
# ## 5. 네 백본을 차례로 학습
#
# 에포크 e(0부터 셉니다)는 뷰 `e % (views + 1)`의 특징으로 배우고(0번 깨끗한 뷰와 무작위 뷰 네 벌을 차례로 씁니다), 검증 손실이 5에포크 동안 새로 낮아지지 않으면 멈춰 가장 낮았던 에포크로 되돌립니다. 네 백본이 데이터, 뷰, 헤드의
# 초깃값을 정하는 시드, 학습 규칙을 모두 함께 쓰므로 달라지는 것은 **체크포인트(구조와 가중치)** 뿐입니다.
#
# 그래서 여기서 내릴 수 있는 결론도 체크포인트에 대한 것입니다. 같은 구조라도 가중치가 다르면 순위가 뒤집힐 수 있습니다.

# %% id="train"
# @inline transferlab.train: train

# %% id="train-study"
# @inline transferlab.study: announce_time, train_study, describe_study

# %% id="train-run"
stamp = new_stamp(out_dir)
lite0 = frozen
models = ["efficientnet_lite0", "efficientnet_b0", "efficientnet_b3", "vit"]  # any timm name too
runs = []
checkpoints = {}
for name in models:
    backbone = (
        lite0 if name == "efficientnet_lite0" else freeze_backbone(name, study, weights=weights)
    )
    result, record = train_study(backbone, study)
    before, after = record.frozen_hash_before, record.frozen_hash_after
    assert before == after, "the frozen backbone has changed"
    for kind in ("loss", "accuracy", "combined"):
        figure = plot_history(result, record, kind)
        save_figure(figure, out_dir, f"{name}_{kind}", stamp=stamp)
        plt.close(figure)
    checkpoints[name] = save_run(out_dir, backbone.model, result, record, stamp=stamp)
    runs.append(record)
    transfer = record.backbone.measures_transfer
    note = record.backbone.label if transfer else "random initialisation: measures no transfer"
    accuracy = f"validation accuracy {record.best.val_acc:.1%}"
    print(f"{name}: best epoch {result.best_epoch}, {accuracy} ({note})")

# %% [markdown] id="table-text"
# ## 6. 한눈에 비교
#
# 정확도는 검증 손실이 가장 낮은 에포크의 값이고, 구간은 95% 신뢰구간입니다. 검증 사진이 153장뿐이라 한 장이 0.65%포인트입니다. **몇 장 차이인지로 바꿔 읽어 보세요.**
# 빗금 친 막대는 무작위로 초기화한 백본이며 전이를 재지 않습니다. 학습된 가중치라도 출처가 서로 다르니 막대 안의 글을 함께 읽어야 합니다.


# %% id="table"
def summarise(run: StudyRecord) -> dict[str, str]:
    """A run as a row of the table."""
    low, high = run.accuracy_interval.low, run.accuracy_interval.high
    return {
        "model": run.model,
        "accuracy": f"{run.best.val_acc:.1%}",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "macro-F1": f"{run.macro_f1:.3f}",
        "gap": f"{run.best.train_acc_clean - run.best.val_acc:+.1%}",
        "best epoch / epochs": f"{run.best.epoch} / {run.epochs_run}",
        "seconds": seconds_text(run),
        "parameters": f"{run.parameters:,}",
        "weights": run.backbone.label,
    }


print(pd.DataFrame([summarise(run) for run in runs]).to_string(index=False))
for run in runs:
    note = "" if run.backbone.measures_transfer else ": measures no transfer"
    print(f"{run.model}: {run.backbone.source}{note}")

# %% id="figure"
save_figure(plot_models(runs), out_dir, "training_results", stamp=stamp)
plt.show()

# %% [markdown] id="overfitting-text"
# ## 7. 과적합과 시간
#
# 왼쪽부터 백본별 검증 손실과 검증 정확도입니다. 손실이 바닥을 치고 다시 오르는 지점이 보이나요? 그 뒤의 에포크는 학습 사진을 외우는 데 쓰인 것입니다.
# 표의 `gap`(깨끗한 학습 정확도에서 검증 정확도를 뺀 값)도 함께 보세요.

# %% id="curves"
figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.6))
columns = {"val_loss": "validation loss (nats)", "val_acc": "validation accuracy"}
for axis, (column, label) in zip(axes, columns.items()):
    lines = {}
    for name, files in checkpoints.items():
        lines[name] = pd.read_csv(files.results, index_col="epoch")[column]
    colors = [BLUE, ORANGE, GREEN, "black"]
    pd.DataFrame(lines).plot(ax=axis, style=[".-", ".--", ".-.", ".:"], color=colors, ylabel=label)
    axis.legend(frameon=False, fontsize=8)
drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
figure.suptitle(f"{image_set.name}{drawn}, frozen backbone", fontsize=9)
figure.tight_layout()
plt.show()

# %% id="time"
plot_timings(runs)
plt.show()

# %% [markdown] id="techniques"
# ## 8. 다른 전이 기법은?
#
# 지금까지는 백본을 모두 얼리고 연구의 헤드만 학습했습니다. 전이 학습의 여러 기법은 네 가지 물음에 서로 다르게 답한 것입니다.
# **무엇을 학습할까**(헤드만, 마지막 단계까지, 정규화 층만, 편향만, 전부), **얼마나 빠르게**(층마다 다른 학습률, 예열과 감쇠), **어떤 순서로**(헤드 먼저, 위에서부터 차례로),
# **어떤 이미지와 정답으로**(레이블 스무딩, 클래스 가중치, MixUp, CutMix).
#
# 그래서 모든 기법을 함수 하나로 쓸 수 있습니다. `fit`은 모델을 `cut`에서 둘로 자르고, 아래는 얼린 채 그 출력을 계산해 두고, 위만 `train`으로 학습합니다.
# `"features"`에서 자르면 헤드만, 마지막 단계의 이름에서 자르면 그 단계부터, `"input"`에서 자르면 전부 학습합니다. `trains`를 주면 그 가운데 일부만 학습합니다.

# %% id="technique-cut"
# @inline transferlab.backbones: split_at
# @inline transferlab.techniques: Activations, activations_at, fit

# %% id="technique-heads"
# @inline transferlab.techniques: Technique, stages, linear_head, study_head, changed

# %% [markdown] id="technique-frozen-text"
# ### 백본을 얼린 채로
#
# 특징을 이미 계산해 두었으므로 금방 끝납니다. 선형 프로브는 헤드를 한 층으로 줄입니다. 나머지는 연구의 헤드를 그대로 두고 **손실이나 학습률만** 바꿉니다
# (코사인은 조기 종료 없이 끝까지 학습합니다).

# %% id="technique-frozen"
# @inline transferlab.techniques: linear_probe, head_on_frozen, smoothed_labels, weighted_classes

# %% id="technique-schedule"
# @inline transferlab.techniques: warmup_cosine, steps_of, cosine_schedule, FROZEN

# %% [markdown] id="technique-tuned-text"
# ### 백본까지 학습하는 기법
#
# 학습할 파라미터가 많게는 수백만 개로 늘어납니다. 사진은 수백 장뿐이니, 여기 나오는 기법은 대부분 **사전 학습에서 얻은 것을 망가뜨리지 않으려는 장치**를 둡니다.
# 헤드는 무작위에서 출발하므로 빠르게, 백본은 그 10분의 1의 학습률로 고칩니다. LP-FT는 헤드를 먼저 학습한 다음 백본까지 풀어 낮은 학습률로 이어 갑니다.
# 이때 BatchNorm의 통계를 고정하지 않으면 첫 배치부터 특징이 달라져, 맞춰 둔 헤드가 소용없어집니다. 점진적 해제는 맨 위부터 한 단계씩, 여기서는 세 단계까지 풉니다.

# %% id="technique-phases"
# @inline transferlab.techniques: two_rates, last_stage, probe_then_tune, gradual_unfreezing

# %% [markdown] id="technique-rates-text"
# 전체를 학습하되 아래층으로 갈수록 학습률을 낮출 수도 있습니다. 아래층은 모서리나 질감처럼 어느 사진에나 쓰이는 것을 보므로 덜 바뀌어야 한다는 생각입니다.

# %% id="technique-rates"
# @inline transferlab.techniques: full_tuning, layer_rates, full_with_layer_rates

# %% [markdown] id="technique-few-text"
# 거꾸로 전체에 걸쳐 **아주 적은 파라미터만** 학습할 수도 있습니다. 정규화 층의 배율과 이동만, 또는 편향만 헤드와 함께 학습합니다.
# Lite0의 합성곱에는 편향이 없어서, "편향만"은 정규화 층의 이동만 뜻합니다.

# %% id="technique-few"
# @inline transferlab.techniques: head_or, normalisation_only, biases_only

# %% [markdown] id="technique-mix-text"
# MixUp과 CutMix는 이미지와 정답을 함께 섞습니다. 섞은 이미지에서 잰 학습 정확도는 의미가 없으므로, 어느 기법이든 `gap`은 섞지 않은 깨끗한 뷰의 학습 정확도로 계산합니다.

# %% id="technique-mix"
# @inline transferlab.techniques: mixed_up, cut_and_mixed, TUNED

# %% [markdown] id="technique-live-text"
# ### 지금 돌려 볼 수 있는 것
#
# Lite0의 특징은 대부분 계산해 두었으니, 백본을 얼린 기법 다섯 가지는 빨리 끝납니다(조기 종료로 아직 그리지 않은 뷰의 특징은 그때 계산하며, 표의 시간에는 넣지 않습니다).
# 여기에 마지막 단계까지 학습하는 기법을 다섯 에포크만 더합니다.
# 다른 기법도 `live`에 이름을 더하면 돌아갑니다. CPU라면 몇 분씩 걸립니다.
#
# **표에서 고른 1등을 믿지 마세요.** 검증 사진으로 에포크를 고르고 같은 사진으로 점수를 매겼으며, 한 장이 0.65%포인트입니다. 교차 검증으로 견준 결과는, 파일이 있으면 그다음 칸에 나옵니다.

# %% id="technique-live"
task = replace(study, features=lite0.features)
live = [*FROZEN, "last stage"]
rows = []
for name in live:
    model = copy.deepcopy(lite0.model)
    before = sum(lite0.clock.seconds.values())
    started = time.perf_counter()
    if name in FROZEN:
        phases = FROZEN[name](model, task)
    else:
        phases = TUNED[name](model, changed(task, epochs=min(epochs, 5)))
    drawing = sum(lite0.clock.seconds.values()) - before  # features that had not been kept yet
    seconds = time.perf_counter() - started - drawing
    best = phases[-1].best
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    row = {
        "technique": name,
        "validation accuracy": f"{best.val_acc:.1%}",
        "validation loss": f"{best.val_loss:.3f}",
        "gap": f"{best.train_acc_clean - best.val_acc:+.1%}",
        "epochs": sum(len(phase.history) for phase in phases),
        "trained parameters": f"{trained:,}",
        "seconds": f"{seconds:.1f}",
    }
    rows.append(row)
print(f"{lite0.info.name} on {image_set.name}, weights: {lite0.info.kind}: {lite0.info.source}")
print(pd.DataFrame(rows).to_string(index=False))

# %% [markdown] id="technique-results-text"
# ### 교차 검증으로 견주면
#
# 모든 기법을 같은 겹에서 잰 결과입니다(겹의 수, 이미지 크기, 에포크는 출력에 적혀 있습니다). 겹마다 학습 몫의 20%로 에포크를 고르고, 시험 몫은 한 번만 예측합니다.
# 백본까지 학습하는 기법은 오래 걸려서 더 작은 이미지로 더 짧게 학습했으므로, 위 표와 숫자를 바로 견줄 수는 없습니다. 짝지은 검정은 보고서에 있습니다.
#
# `out_dir` 아래 `result/benchmarks`에 같은 이미지와 가중치로 잰 결과가 없으면 이 칸은 건너뜁니다. 여러 기계에서 잰 결과가 있으면 기계마다 따로 보여 줍니다. 여러 프로세스가 한꺼번에 잰 결과에는 시간과 그림을 넣지 않습니다. 저장소를 내려받아 `python -m benchmarks.techniques --data 폴더 --weights 폴더`로 만들 수 있습니다.


# %% id="technique-results"
def describe_techniques(path: Path) -> dict:
    """What a result says of itself, in the shape that was published first or in today's."""
    told = read_plain(path)
    if "schema" not in told:
        return told
    weights = {one["name"]: one for one in told["weights"]}
    data = {one["name"]: one["digest"] for one in told["data"]}
    machine = {"processor": told["machine"]["processor"]}
    settings = {"settings": told["settings"]}
    return told["facts"] | machine | settings | {"weights": weights, "data": data}


here = {run.model: run.backbone.sha256 for run in runs}
measured = {}  # the latest of each machine, on these images and with these weights
for path in sorted((out_dir / "result/benchmarks").glob("techniques_*.json")):
    told = describe_techniques(path)
    same = all(
        here.get(name, one["sha256"]) == one["sha256"] for name, one in told["weights"].items()
    )
    if same and image_set.digest in told["data"].values():
        measured[told["processor"]] = (path.with_suffix(".csv"), told)
for path, told in measured.values():
    summary = summarise_techniques(pd.read_csv(path))
    summary = summary[[told["data"][name] == image_set.digest for name in summary["dataset"]]]
    summary["accuracy (%)"] = [
        f"{100 * row.accuracy:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        for row in summary.itertuples()
    ]
    print(f"{path.name}: {image_set.name}, {told['folds']} folds, {told['processor']}")
    for name in summary["model"].unique():
        print(f"{name}: {told['weights'][name]['source']}")
    frozen_ones = summary[summary["kind"] == "frozen"]
    tuned = summary[summary["kind"] == "tuned"]
    if len(frozen_ones):
        epochs_told = told["settings"]["epochs"]
        print(f"\nfrozen backbone, {epochs_told} epochs at the study's size: accuracy (%) [95 %]")
        table = frozen_ones.pivot(index="model", columns="technique", values="accuracy (%)")
        print(table.reindex(index=frozen_ones["model"].unique(), columns=[*FROZEN]).to_string())
    if not len(tuned):
        continue
    size = f"{told['epochs']} epochs at {told['size']} px, {told['folds']} folds"
    heading = f"more than the head trained, {size}"
    if told.get("processes", 1) == 1:
        print(f"\n{heading}; seconds: median of a fold")
        columns = ["model", "technique", "accuracy (%)", "n", "trained parameters", "seconds"]
        table = tuned.rename(columns={"trainable": "trained parameters"})[columns]
        print(table.to_string(index=False, float_format="%.1f"))
        plot_techniques(tuned, heading)
        plt.show()
    else:  # their seconds hold the waiting for each other
        print(f"\n{heading}: accuracy (%) [95 % interval]")
        table = tuned.pivot(index="technique", columns="model", values="accuracy (%)")
        order = {"index": tuned["technique"].unique(), "columns": tuned["model"].unique()}
        print(table.reindex(**order).fillna("").to_string())
    print()
if not measured:
    print("no results of benchmarks.techniques for these images and weights here: skipped")

# %% [markdown] id="save-text"
# ## 9. 저장한 모델로 예측하기
#
# 네 모델은 이미 `model/`에 저장했습니다. 사전 학습된 가중치를 쓴 것 가운데 검증 손실이 가장 낮은 모델을 다시 읽어서, 검증 이미지마다 저장할 때와 같은 답을 내는지 확인합니다.

# %% id="save"
trained = [run for run in runs if run.backbone.measures_transfer] or runs
best_run = min(trained, key=lambda run: run.best.val_loss)
saved = load_model(checkpoints[best_run.model].model)
lower, upper = split_features(saved.model.to(device))
blocks = study.renderer.blocks(0, fold.val)
val_x = extract(fold_batchnorm(lower), blocks, machine=machine, precision=torch.float32)
check = evaluate(upper, val_x, val_labels)
same = tuple(check.predictions.tolist()) == best_run.val_predictions
assert same, "the saved model predicts something else"
written = best_run.best.val_acc
print(f"{best_run.model} reloaded: accuracy {check.accuracy:.4f}, written {written:.4f}")
for files in checkpoints.values():
    for path in files.all():
        print(f"{path.parent.name}/{path.name}")

# %% [markdown] id="predict-text"
# `my_image`에 여러분의 이미지 경로를 넣으면 저장한 모델이 답합니다. 비워 두면 검증 이미지 한 장을 씁니다.

# %% id="predict"
my_image = ""  # for example "my_image.png"
saved.model.cpu()
if my_image:
    answer = predict_image(saved, augmentation, my_image)
else:
    answer = rank_classes(saved.record.dataset.classes, check.logits[0])
    print(f"true class: {image_set.classes[val_labels[0]]}")
for guess in answer:
    print(f"{guess.name:12s} {guess.probability:6.1%}")

# %% [markdown] id="exercises"
# ## 연습 문제
#
# 예상 범위는 Google의 ImageNet 가중치를 쓴 EfficientNet-Lite0으로, 배포된 나눔의 검증 153장에서 잰 값입니다. 한 장은 0.65%포인트입니다.
#
# 1. **시드를 바꾸면?** 설정 칸의 `seed`를 1, 2, 3으로 바꿔 보세요. 나눔은 그대로이고 뷰와 헤드의 초깃값만 달라집니다. Lite0의 정확도는 95~96%로, 한두 장만 움직입니다.
#    그렇다면 위 표에서 백본끼리의 차이 가운데 어떤 것이 시드만으로 설명되지 않을까요?
# 2. **사전 학습이 없다면?** `weights = "none"`으로 바꾸면 모든 백본이 무작위로 초기화됩니다. Lite0은 59% 안팎으로 떨어집니다. 가장 많은 클래스만 찍었을 때의 정확도와 비교해 보세요.
#    두 값의 차이가 이 데이터에서 전이 학습이 가져다준 몫입니다.
# 3. **멈추지 않으면?** `settings`의 `patience`를 0으로 바꿔 보세요. Lite0의 깨끗한 학습 정확도는 100% 가까이 되지만, 검증 손실은 가장 낮을 때의 0.12에서 0.19 안팎으로 오르고
#    마지막 에포크의 정확도는 94% 안팎입니다. 저장된 모델이 마지막 에포크의 것이었다면 어땠을까요?
