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
# # 02. DenseNet121, 그리고 ResNet50과의 비교
#
# 01번 노트북과 같은 문제(만화 얼굴 455장, 표정 7가지)를 **DenseNet121**로 풉니다. 데이터, 나눔, 증강, 헤드, 학습 규칙을 모두 같게 두고 백본만 바꿉니다.
# 그래야 결과가 달라졌을 때 그 까닭을 백본에서 찾을 수 있습니다.
#
# DenseNet은 각 층이 앞선 모든 층의 출력을 이어 받습니다. 덕분에 파라미터가 ResNet50의 3분의 1이 채 안 되지만, 이어 붙이느라 오가는 메모리가 많아서
# 계산 시간까지 3분의 1이 되지는 않습니다. 이 노트북이 답하려는 질문은 다음 네 가지입니다.
#
# 1. 어느 쪽이 더 정확한가, 그리고 그 차이는 **우연보다 큰가**
# 2. 어느 쪽이 더 빠른가
# 3. 파라미터는 얼마나 차이 나는가
# 4. 과적합(깨끗한 학습 정확도와 검증 정확도의 틈)은 어느 쪽이 심한가
#
# 01번을 실행한 결과가 같은 폴더에 있으면 그것과 비교하고, 없으면 이 노트북이 ResNet50도 직접 학습합니다. 그래서 이 파일 하나만 열어도 됩니다.
# Colab에서는 *런타임 → 런타임 유형 변경*에서 GPU를 고르면 더 빠릅니다. 빠진 패키지가 있다고 나오면 `%pip install timm kagglehub` 를 먼저 실행하세요.

# %% id="imports"
import copy
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from torch.nn import functional as F

# %% [markdown] id="parameters-text"
# ## 설정
#
# 바꿔 볼 값은 모두 이 칸에 있습니다. 자기 이미지로 해 보려면 `data_dir` 하나만 바꾸세요. `폴더/클래스이름/*` 꼴이거나
# `폴더/train/클래스이름/*`, `폴더/val/클래스이름/*` 꼴이면 됩니다. 비워 두면 `data/` 폴더에서 찾고, 없으면 Kaggle에서 내려받습니다.

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
# @inline transferlab.download: MANGA_FACE_HANDLE, MANGA_FACE_URL, MANGA_FACE_COUNTS, KAGGLE_ADDRESS
# @inline transferlab.download: COUNTED_SUFFIXES, CONNECT_SECONDS, DownloadError, by_hand
# @inline transferlab.download: count_images, describe_counts, check_counts, folder_to_become

# %% id="setup-download-2"
# @inline transferlab.download: fetch_from_kaggle, download_manga_faces

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
# @inline transferlab.backbones: normalize, estimate_batchnorm, copy_sharing_tensors

# %% id="setup-backbones-2"
# @inline transferlab.backbones: trace, can_fold, fold_batchnorm, fold_pair, count_parameters

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

# %% id="setup-artifacts"
# @inline transferlab.artifacts: OUT_FOLDERS, prepare_out_dir, new_stamp, write_new, write_text
# @inline transferlab.artifacts: write_table, file_name, seconds_text, history_table, SavedRun

# %% id="setup-artifacts-2"
# @inline transferlab.artifacts: save_run, save_figure, SavedModel, load_model, ClassProbability
# @inline transferlab.artifacts: rank_classes, check_augmentation

# %% id="setup-artifacts-3"
# @inline transferlab.artifacts: predict_image, COMPARED_FIELDS

# %% id="setup-plots"
# @inline transferlab.plots: BLUE, ORANGE, GREEN, GREY, describe_data, describe_run
# @inline transferlab.plots: plot_class_counts, plot_images, plot_curves, plot_history

# %% id="setup-plots-2"
# @inline transferlab.plots: plot_confusion, plot_timings

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
# 이미지를 한 번씩만 해독해서 메모리에 둡니다(0.5GB가 넘는 폴더라면 넘는 만큼은 필요할 때 다시 읽습니다). 열리지 않는 파일은 검은 그림으로 바꿔치지 않고, 빼놓은 다음 이유와 함께 보여 줍니다.
#
# 455장 가운데 `int(0.35 × 455) = 159`장을 검증(validation)에, 나머지 296장을 학습에 씁니다. 클래스 비율이 두 쪽에서 같도록
# **층화(stratified)** 해서 나누고, `seed`를 고정했으므로 언제 실행해도 같은 이미지가 같은 쪽에 들어갑니다. 이미
# `train`·`val`로 나뉜 폴더라면 그 나눔을 그대로 씁니다.
#
# 그림에서는 **막대의 높이가 얼마나 고르지 않은지** 보세요. 가장 많은 클래스만 찍어도 맞힐 수 있는 비율이 바로 모든 모델이 넘어야 할 바닥입니다.

# %% id="data"
image_folder = Path(data_dir) if data_dir else download_manga_faces(Path("data"))
image_set = load_images(image_folder, prefer="manga_facial_expressions")
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
# 클래스마다 두 장씩 봅니다. 사람이 보아도 헷갈리는 짝이 있는지(이를테면 pleased와 happy), 그림체와 잘린 범위가 얼마나 제각각인지 살펴보세요.
# 저장소에 올라온 노트북에는 저작권이 있는 만화 대신 직접 그린 그림(synthetic)이 들어 있습니다. 직접 실행하면 여러분의 이미지가 나옵니다.

# %% tags=["shows-images"] id="samples"
chosen = []
for label in range(len(image_set.classes)):
    chosen += torch.where(image_set.labels == label)[0][:2].tolist()
names = [image_set.classes[image_set.labels[i]] for i in chosen]
drawn = " (synthetic: drawn pictures)" if image_set.synthetic else ""
heading = f"{image_set.name}{drawn}"
plot_images([image_set.images[i] for i in chosen], names, columns=7, heading=heading)
plt.show()

# %% [markdown] id="views-text"
# ## 2. 뷰: 한 장을 여러 장처럼 쓰기
#
# **증강(augmentation)** 은 학습 이미지를 조금씩 뒤집고, 돌리고, 밝기를 바꿔서 모델이 같은 사진만 외우지 못하게 하는 방법입니다.
# 이렇게 무작위로 변형한 한 벌을 이 노트북에서는 **뷰(view)** 라고 부릅니다. 변형하지 않은 깨끗한 뷰가 0번입니다.
#
# 뷰 하나하나는 (seed, 뷰 번호, 파일 이름)에서 계산한 난수로 그리므로, 이미지의 순서나 개수가 달라져도 같은 이미지의 같은 뷰는 항상 같습니다.
# 평균과 표준편차로 나누는 정규화는 백본마다 다르므로 뷰에 넣지 않고 모델 쪽에서 합니다.

# %% id="views"
# @inline transferlab.views: faces_augmentation, render_view

# %% [markdown] id="views-figure-text"
# 아래는 한 장에서 나온 깨끗한 뷰와 증강한 뷰 여섯 장입니다. **변형한 뒤에도 사람이 같은 표정으로 읽을 수 있는지** 확인하세요.
# 표정이 달라 보일 만큼 변형이 세면 증강은 도움이 아니라 잡음이 됩니다.

# %% tags=["shows-images"] id="views-figure"
augmentation = faces_augmentation()
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
# ## 3. 모델: 얼린 DenseNet121과 새 헤드
#
# DenseNet121이 내는 특징은 1,024개로 ResNet50의 절반입니다. 여기에 연구와 같은 헤드 `Linear(1024, 512) → ReLU → Dropout(0.5) → Linear(512, 7)`을 붙이고,
# 모델을 얼린 부분(`lower`)과 학습할 부분(`upper`)으로 자릅니다.
#
# DenseNet121에는 BatchNorm이 121개나 있습니다. 학습 모드로 두면 `requires_grad=False`여도 이동 평균이 배치마다 바뀌므로, 얼린 부분은 **항상 eval 모드**로 둡니다.
# 정말 얼었는지는 파라미터와 버퍼 전체의 해시를 학습 전후에 비교해서 확인합니다.

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
# 실제로 만들어 봅니다. 어떤 가중치를 읽었는지 꼭 확인하세요. `random`이라고 나오면 전이 학습을 재는 것이 아닙니다.

# %% id="freeze"
settings = Settings(epochs=epochs, patience=5, batch_size=32, lr=1e-3, views=views)
study = Study(
    renderer=Renderer(image_set, augmentation, seed=seed),
    fold=fold,
    settings=settings,
    machine=machine,
    seed=seed,
    store=store,
)
frozen = freeze_backbone("densenet121", study, weights=weights)
print(f"weights: {frozen.info.kind}: {frozen.info.source}")
total = count_parameters(frozen.model)
trainable = count_parameters(frozen.upper)
print(f"parameters: {total:,}, of which {trainable:,} are trained")
print(frozen.upper)

# %% [markdown] id="ordinary-text"
# ## 4. 흔한 반복문과 특징 보관
#
# 배치마다 이미지를 새로 증강해서 얼린 백본에 통과시키고 헤드만 갱신하는, 누구나 쓰는 반복문으로 한 에포크를 돌립니다. 걸린 시간을 기억해 두세요.


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
# 얼린 백본의 출력은 이미지와 뷰가 정해지면 상수입니다. 그러니 뷰마다 한 번만 계산해서 보관합니다. 뷰를 여러 벌 두면 증강도 그대로 쓸 수 있습니다.
#
# 같은 뷰, 같은 순서, 같은 드롭아웃으로 한 에포크를 다시 돌려 손실이 같은지 `assert`로 확인합니다. fp32에서는 반올림만큼, bf16·fp16으로
# 뷰를 계산하는 기계에서는 그 정밀도만큼 다를 수 있습니다.

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
# ## 5. 학습
#
# 규칙은 01번과 같습니다. Adam(학습률 0.001), 배치 32, 최대 30에포크, 검증 손실이 5에포크 동안 새로 낮아지지 않으면 멈추고 가장 낮았던 에포크로 되돌립니다.
# 에포크 e(0부터 셉니다)는 뷰 `e % (views + 1)`의 특징으로 배웁니다. 0번 깨끗한 뷰와 무작위 뷰 네 벌을 차례로 쓰므로, 백본은 이미지마다 다섯 번만 통과합니다.

# %% id="train"
# @inline transferlab.train: train

# %% id="train-study"
# @inline transferlab.study: announce_time, train_study, describe_study

# %% id="train-run"
result, record = train_study(frozen, study)
before, after = record.frozen_hash_before, record.frozen_hash_after
assert before == after, "the frozen backbone has changed"
print(f"frozen part unchanged: {after[:16]}...")
epoch = f"best epoch {result.best_epoch} of {len(result.history)}"
print(f"{epoch}: validation accuracy {record.best.val_acc:.1%}")

# %% [markdown] id="curves-text"
# ## 6. 학습 곡선
#
# 주황색이 검증, 파란 점선이 학습(증강한 뷰, 드롭아웃 켬), 파란 실선이 학습(깨끗한 뷰, 드롭아웃 끔)입니다. **파란 실선과 주황 선의 틈**이 과적합이고,
# 세로 점선이 검증 손실로 고른 에포크입니다. 01번을 해 봤다면 곡선이 내려가는 속도와 틈이 벌어지는 시점을 견주어 보세요.

# %% id="curves"
stamp = new_stamp(out_dir)
for kind in ("loss", "accuracy", "combined"):
    figure = plot_history(result, record, kind)
    save_figure(figure, out_dir, f"densenet121_{kind}", stamp=stamp)
    if kind != "combined":
        plt.close(figure)
plt.show()

# %% [markdown] id="confusion-text"
# ## 7. 무엇을 무엇으로 착각하는가
#
# 가로줄이 실제 클래스, 세로줄이 모델의 답입니다. 대각선 밖의 짙은 칸을 찾아, 두 표정이 사람에게도 비슷한지 생각해 보세요.
# 오른쪽의 클래스별 F1을 고르게 평균한 값이 macro-F1입니다.

# %% id="confusion"
predictions = torch.tensor(record.val_predictions)
figure = plot_confusion(val_labels, predictions, record)
save_figure(figure, out_dir, "densenet121_confusion", stamp=stamp)
plt.show()

# %% [markdown] id="overfitting-text"
# ## 8. 어느 숫자를 믿을 것인가
#
# 같은 학습에서 "정확도"라고 부를 만한 값이 여럿 나옵니다. 가장 높은 값을 골라 적고 싶어지지만, 그 값은 검증 이미지를 여러 번 들여다보고 고른 것이라 낙관적입니다.
# 이 연구에서 보고하는 값은 **검증 손실이 가장 낮은 에포크의 정확도**입니다. 이 값 역시 같은 검증 이미지로 에포크를 골랐으니 조금은 낙관적입니다.
#
# 표의 세 줄은 각각 검증 손실이 가장 낮은 에포크(best), 마지막 에포크(last), 검증 정확도가 가장 높은 에포크(highest)입니다. 두 가지를 보세요. 깨끗한 학습 정확도와 검증 정확도의 차이(과적합), 그리고 95% 신뢰구간의 폭(검증 이미지의 수가 정하는, 우연만으로 흔들릴 수 있는 범위)입니다.

# %% id="overfitting"
rows = {"best": record.best, "last": record.last, "highest": record.highest}
columns = ["epoch", "train_acc", "train_acc_clean", "val_acc", "val_loss"]
table = pd.DataFrame(
    {name: [getattr(row, column) for column in columns] for name, row in rows.items()}, columns
).T
table["gap (clean train - val)"] = table["train_acc_clean"] - table["val_acc"]
low, high = record.accuracy_interval.low, record.accuracy_interval.high
interval = f"95 % interval {low:.1%} to {high:.1%} ({len(val_labels)} images)"
print(f"best epoch: {record.best.val_acc:.1%}, {interval}")
print(table.round(3).to_string())

# %% [markdown] id="time-text"
# ## 9. 시간은 어디에 쓰였나
#
# training views와 clean view가 백본을 통과하는 시간, head가 헤드를 학습하는 시간입니다.

# %% id="time"
plot_timings([record])
plt.show()
epochs_run = len(result.history)
without = ordinary_seconds * epochs_run
print(f"this run: {record.seconds:.0f} s; the ordinary loop would take about {without:.0f} s")
print(f"for the training images of {epochs_run} epochs")

# %% [markdown] id="compare-text"
# ## 10. ResNet50과 비교
#
# 같은 폴더에서 ResNet50의 결과를 찾습니다. **데이터, 나눔, 설정, 가중치의 종류, 정밀도가 모두 같은 것만** 비교합니다. 하나라도 다르면 무엇 때문에 달라졌는지
# 알 수 없기 때문입니다. 맞는 것이 없으면 여기서 ResNet50을 학습합니다.

# %% id="compare-tools"
# @inline transferlab.artifacts: same_conditions, find_matching_run
# @inline transferlab.metrics: mcnemar_p

# %% id="compare-find"
densenet = record
resnet = find_matching_run(out_dir, "resnet50", record)
if resnet is None:
    print("no matching run of resnet50: training it now")
    other = freeze_backbone("resnet50", study, weights=weights)
    other_result, resnet = train_study(other, study)
    save_run(out_dir, other.model, other_result, resnet, stamp=stamp)
else:
    print(f"compared with the run of {resnet.stamp}")
runs = (resnet, densenet)

# %% [markdown] id="compare-table-text"
# 정확도 옆의 구간은 95% 신뢰구간입니다. 두 구간이 넓게 겹치면 조심해야 합니다. 더 나은 방법은 **같은 이미지**에서 둘의 답을 짝지어 보는 것입니다.
# McNemar 검정은 한쪽만 맞힌 이미지들이 어느 한쪽으로 우연 이상으로 쏠렸는지를 봅니다. p가 0.05보다 크면 "이 검증 이미지로는 구별할 수 없다"가 정직한 결론입니다.


# %% id="compare-table"
def summarise(run: StudyRecord) -> dict[str, str]:
    """A run as a column of the table."""
    low, high = run.accuracy_interval.low, run.accuracy_interval.high
    return {
        "accuracy (best epoch)": f"{run.best.val_acc:.1%}",
        "95 % interval": f"{low:.1%} to {high:.1%}",
        "macro-F1": f"{run.macro_f1:.3f}",
        "gap (clean train - val)": f"{run.best.train_acc_clean - run.best.val_acc:+.1%}",
        "best epoch / epochs": f"{run.best.epoch} / {run.epochs_run}",
        "seconds": seconds_text(run),
        "parameters": f"{run.parameters:,}",
        "trained parameters": f"{run.trainable_parameters:,}",
        "weights": run.backbone.label,
    }


print(pd.DataFrame({run.model: summarise(run) for run in runs}).to_string())
for run in runs:
    print(f"{run.backbone.label}: {run.backbone.source}")
right = [torch.tensor(run.val_predictions) == val_labels for run in runs]
only_resnet = int((right[0] & ~right[1]).sum())
only_densenet = int((right[1] & ~right[0]).sum())
p = mcnemar_p(right[0], right[1])
chance = "indistinguishable on these images"
verdict = chance if p >= 0.05 else "the difference is larger than chance"
print(f"only resnet50 right: {only_resnet}, only densenet121 right: {only_densenet}")
print(f"exact McNemar p = {p:.3f}: {verdict}")

# %% id="compare-figure"
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6))
names = [run.model for run in runs]
accuracies = [run.best.val_acc for run in runs]
# Seconds of a run whose features came from disk compare with no other's.
disk = any("features from disk" in run.timings for run in runs)
values = {
    "accuracy (best epoch)": accuracies,
    "seconds (features from disk)" if disk else "seconds": [run.seconds for run in runs],
    "parameters (million)": [run.parameters / 1e6 for run in runs],
}
for axis, (title, heights) in zip(axes, values.items()):
    bars = axis.bar(names, heights, color=[BLUE, ORANGE], width=0.6)
    axis.bar_label(bars, fmt="%.3g", label_type="center", color="white")
    axis.set(title=title, ylim=(0, 1.4 * max(heights)))
below = [run.best.val_acc - run.accuracy_interval.low for run in runs]
above = [run.accuracy_interval.high - run.best.val_acc for run in runs]
axes[0].errorbar(names, accuracies, yerr=[below, above], fmt="none", color="black", capsize=4)
figure.suptitle(f"{describe_run(record)}, {len(val_labels)} validation images", fontsize=8)
figure.tight_layout()
save_figure(figure, out_dir, "training_results", stamp=stamp)
plt.show()

# %% [markdown] id="compare-command-text"
# 한 번 나눈 159장으로는 웬만한 차이가 우연과 구별되지 않습니다. 저장소를 받아 둔 컴퓨터라면 아래 명령으로 더 믿을 만한 답을 얻을 수 있습니다. 455장을 다섯 겹으로 나누는 일을
# 다섯 번 되풀이하고, 에포크는 학습 부분 안에서만 고르며, 한 번도 고르는 데 쓰지 않은 겹에서 두 백본을 짝지어 검정합니다.
#
# ```bash
# python -m transferlab compare --models resnet50 densenet121 --data data/manga_facial_expressions --folds 5 --repeats 5
# ```

# %% [markdown] id="save-text"
# ## 11. 저장하고, 다시 읽고, 내 이미지로 예측하기
#
# 가장 좋은 에포크의 모델 전체를 `model/`에, 에포크별 기록과 요약을 `result/`에 저장합니다. 다시 읽은 모델이 검증 이미지마다 같은 답을 내는지 확인합니다.

# %% id="save"
files = save_run(out_dir, frozen.model, result, record, stamp=stamp)
saved = load_model(files.model)
lower, upper = split_features(saved.model.to(device))
blocks = study.renderer.blocks(0, fold.val)
val_x = extract(fold_batchnorm(lower), blocks, machine=machine, precision=torch.float32)
check = evaluate(upper, val_x, val_labels)
same = tuple(check.predictions.tolist()) == record.val_predictions
assert same, "the saved model predicts something else"
print(f"reloaded: accuracy {check.accuracy:.4f}, written {record.best.val_acc:.4f}")
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
# 예상 범위는 만화 얼굴 455장, 64픽셀 Tiny ImageNet으로 학습한 대체 가중치, 시드 42에서 DenseNet121로 잰 값입니다. 위에 찍힌 가중치가 이와 다르면 맞지 않습니다.
# ImageNet 가중치를 쓰면 다른 값이 나옵니다.
#
# 1. **드롭아웃을 끄면?** `settings`에 `dropout=0.0`을 더해 보세요. 고른 에포크는 6에서 20으로 늦어지고 검증 정확도는 28% 안팎입니다.
#    마지막 에포크의 틈은 어느 쪽이 더 큰지 표의 gap으로 확인하세요.
# 2. **헤드의 크기는?** `hidden`을 64와 2048로 바꿔 보세요. 검증 정확도는 둘 다 31% 안팎입니다. 파라미터가 서른 배 넘게 늘어도 나아지지 않는
#    까닭을 생각해 보세요. 그리고 이 차이가 159장에서 몇 장인지도 세어 보세요.
# 3. **오래 학습하면?** `patience`를 0, `epochs`를 100으로 바꿔 보세요. 뷰를 모두 계산한 뒤의 에포크는 몇 초면 끝납니다. 고른 에포크의 검증 정확도는 30% 안팎이고,
#    마지막 에포크의 깨끗한 학습 정확도는 59% 안팎까지 오릅니다. 검증 정확도가 가장 높았던 에포크를 골라 적으면 얼마나 더 좋아 보이나요?
