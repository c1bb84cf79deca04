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
# # 01. ResNet50으로 만화 얼굴의 표정 7가지 분류하기
#
# 만화 얼굴 455장으로 표정 일곱 가지(angry, crying, embarrassed, happy, pleased, sad, shock)를 가려내는 분류기를 만듭니다.
# 한 종류에 많아야 백 장 남짓이라, 신경망을 처음부터 가르치기에는 턱없이 적은 양입니다. 이럴 때 쓰는 방법이
# **전이 학습(transfer learning)** 입니다. 큰 데이터로 이미 학습된 신경망의 몸통(**백본**, backbone)은 그대로 얼려 두고,
# 마지막에 붙는 작은 분류기(**헤드**, head)만 새로 학습합니다.
#
# 이 노트북을 마치면 다음 세 가지를 설명할 수 있습니다.
#
# 1. 백본을 얼린다는 것이 정확히 무엇을 뜻하며, 얼었는지를 어떻게 확인하는가
# 2. 얼린 백본의 출력을 **보관해 두고** 쓰면 왜 같은 학습이 훨씬 빨라지는가
# 3. 학습 곡선에서 과적합을 어떻게 읽으며, 어떤 에포크의 정확도를 믿어야 하는가
#
# 파일 하나로 완결된 노트북입니다. Colab이나 JupyterLab에서 열어 위에서부터 차례로 실행하면 됩니다. Colab에서는
# *런타임 → 런타임 유형 변경*에서 GPU를 고르면 더 빠릅니다. 빠진 패키지가 있다고 나오면
# `%pip install timm kagglehub` 를 먼저 실행하세요.

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
# @inline transferlab.artifacts: write_table, file_name, history_table, SavedRun

# %% id="setup-artifacts-2"
# @inline transferlab.artifacts: save_run, save_figure, SavedModel, load_model, ClassProbability
# @inline transferlab.artifacts: rank_classes, check_augmentation

# %% id="setup-artifacts-3"
# @inline transferlab.artifacts: predict_image

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
# ## 3. 모델: 얼린 몸통과 새 헤드
#
# ResNet50의 마지막 층을 떼어 내고, 연구에서 쓴 헤드 `Linear(2048, 512) → ReLU → Dropout(0.5) → Linear(512, 7)`을 붙입니다.
# 그다음 모델을 두 부분으로 자릅니다.
#
# - `lower`: 이미지에서 특징(feature) 2,048개를 뽑는 얼린 부분. `requires_grad=False`이고 **항상 eval 모드**입니다.
# - `upper`: 특징을 받아 로짓(logits) 7개를 내는 헤드. 이 부분만 학습합니다.
#
# eval 모드가 중요합니다. `requires_grad=False`만으로는 BatchNorm의 이동 평균이 학습 중에 계속 바뀌므로, 얼렸다고 말할 수 없습니다.
# 여기서는 파라미터와 버퍼 전체의 해시를 학습 전후에 비교해서 한 비트도 바뀌지 않았음을 확인합니다.

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
frozen = freeze_backbone("resnet50", study, weights=weights)
print(f"weights: {frozen.info.kind}: {frozen.info.source}")
total = count_parameters(frozen.model)
trainable = count_parameters(frozen.upper)
print(f"parameters: {total:,}, of which {trainable:,} are trained")
print(frozen.upper)

# %% [markdown] id="ordinary-text"
# ## 4. 누구나 쓰는 반복문, 그리고 같은 일을 더 빨리 하는 법
#
# 먼저 흔히 쓰는 방식으로 한 에포크를 돌립니다. 배치마다 이미지를 새로 증강하고, 얼린 백본에 통과시키고, 헤드만 갱신합니다.
# 시간이 어디에서 가장 많이 들지 예상해 보세요.


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
# 거의 모든 시간이 백본의 순전파에 들어갑니다. 그런데 백본은 얼어 있으므로, **같은 이미지의 같은 뷰에 대한 출력은 언제나 같습니다.**
# 그렇다면 한 번만 계산해서 보관하면 됩니다. 흔히 "특징을 저장하면 증강을 쓸 수 없다"고 하지만, 뷰를 몇 개 정해 두고 뷰마다 특징을 보관하면 둘 다 할 수 있습니다.
#
# 같은 뷰, 같은 순서, 같은 드롭아웃으로 한 에포크를 다시 돌려서 손실이 같은지 `assert`로 확인합니다.
# 특징은 BatchNorm을 바로 앞의 합성곱에 접어 넣은(folding) 사본으로 계산합니다. 평균과 분산이 고정된 BatchNorm은 곱하고 더하는 일일 뿐이어서 합성곱의 가중치에
# 미리 곱해 둘 수 있습니다. 같은 함수인데 단계가 줄어듭니다. 그래서 fp32에서는 반올림만큼만, bf16이나 fp16으로 뷰를 계산하는 기계에서는 그 정밀도만큼 다를 수 있습니다.

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
# 이제 빠른 길로만 갑니다. 에포크 e(0부터 셉니다)는 뷰 `e % (views + 1)`의 특징으로 배웁니다. 0번 깨끗한 뷰도 차례에 들어갑니다. 뷰는 처음 필요할 때 한 번만 계산합니다.
#
# `views`가 4면 이미지마다 백본을 다섯 번만 통과하고, 그다음 에포크부터는 순식간에 끝납니다. 같은 뷰를 되풀이해서 보면 정확도를 잃지 않을까요?
# 데이터와 백본의 짝 여섯을 합쳐 교차 검증으로 재 보니, 에포크마다 새 뷰를 쓸 때(30벌)보다 +0.35%포인트 [−0.21, +0.91]로 잃은 것이 보이지 않았습니다
# (`benchmarks/enough_views.py`. 이 규칙은 그 데이터를 본 뒤에 골랐습니다). `views = 0`이면 깨끗한 뷰만 씁니다. 설정의 `cache_dir`에 폴더를 적으면 특징이 디스크에
# 남아서, 헤드나 학습률을 바꿔 다시 실행할 때는 백본을 돌리지 않습니다.
#
# 학습은 검증 손실이 5에포크 동안 가장 낮은 값을 새로 쓰지 못하면 멈추고(**조기 종료**, early stopping), 가장 낮았던 에포크의 가중치로 되돌립니다. 되돌리지 않으면
# 저장되는 것은 "가장 좋은 모델"이 아니라 "마지막 모델"입니다.

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
# 왼쪽이 손실, 오른쪽이 정확도입니다. 파란 점선은 학습하면서 잰 값(증강한 뷰, 드롭아웃 켬)이고 파란 실선은 같은 이미지의 깨끗한 뷰를 드롭아웃 없이 잰 값입니다.
#
# - 파란 **실선**과 주황 선 사이의 틈이 과적합의 크기입니다. 점선과 비교하면 틈이 작아 보이는데, 증강과 드롭아웃이 학습 점수를 일부러 깎기 때문입니다.
# - 세로 점선이 고른 에포크입니다. 검증 **손실**이 가장 낮은 곳이며, 정확도가 가장 높은 곳과는 다를 수 있습니다.

# %% id="curves"
stamp = new_stamp(out_dir)
for kind in ("loss", "accuracy", "combined"):
    figure = plot_history(result, record, kind)
    save_figure(figure, out_dir, f"resnet50_{kind}", stamp=stamp)
    if kind != "combined":
        plt.close(figure)
plt.show()

# %% [markdown] id="confusion-text"
# ## 7. 무엇을 무엇으로 착각하는가
#
# 혼동 행렬의 가로줄은 실제 클래스, 세로줄은 모델의 답입니다. 대각선 밖에서 짙은 칸이 모델이 자주 틀리는 짝입니다.
# 클래스마다 이미지 수가 다르므로 정확도 하나만 보지 말고 클래스별 F1을 고르게 평균한 **macro-F1**도 함께 보세요.

# %% id="confusion"
predictions = torch.tensor(record.val_predictions)
figure = plot_confusion(val_labels, predictions, record)
save_figure(figure, out_dir, "resnet50_confusion", stamp=stamp)
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
# 막대의 대부분이 백본을 통과하는 시간(training views, clean view)이고, 헤드 학습은 자투리입니다. 에포크를 두 배로 늘려도 늘어나는 것은 그 자투리뿐입니다.

# %% id="time"
plot_timings([record])
plt.show()
epochs_run = len(result.history)
without = ordinary_seconds * epochs_run
print(f"this run: {record.seconds:.0f} s; the ordinary loop would take about {without:.0f} s")
print(f"for the training images of {epochs_run} epochs")

# %% [markdown] id="save-text"
# ## 10. 저장하고, 다시 읽고, 내 이미지로 예측하기
#
# 가장 좋은 에포크의 모델 전체를 `model/`에, 에포크별 기록과 요약을 `result/`에 저장합니다. 이미 있는 파일은 덮어쓰지 않습니다.
# 저장한 파일을 다시 읽어서, 검증 이미지에 대한 예측이 하나도 달라지지 않는지 확인합니다.

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
# 예상 범위는 만화 얼굴 455장, 64픽셀 Tiny ImageNet으로 학습한 대체 가중치, 시드 42에서 잰 값입니다. 위에 찍힌 가중치가 이와 다르면 맞지 않습니다.
# ImageNet 가중치를 쓰면 다른 값이 나옵니다. 검증 이미지 159장에서 한 장은 0.6%포인트라는 점을 잊지 마세요.
#
# 1. **조기 종료를 끄면?** `settings`의 `patience`를 0으로 바꿔 보세요. 30에포크를 모두 돌아도 고른 에포크는 그대로이고, 깨끗한 학습 정확도만 51%에서 57% 안팎으로 오릅니다.
#    `epochs`까지 100으로 늘리면 학습 정확도는 76% 안팎까지 오르고, 검증 손실은 가장 낮을 때의 1.80에서 마지막의 2.05 안팎으로 나빠집니다. 이것이 과적합입니다.
# 2. **증강이 없다면?** 설정 칸에서 `views = 0`(깨끗한 뷰만)과 `views = 1`로 바꿔 보세요. 검증 정확도는 35%와 31% 안팎입니다. 기본값과 몇 장 차이인지 세어 보고, 그 차이를
#    신뢰구간의 폭과 견주어 "증강이 도움이 되었다" 또는 "해가 되었다"라고 말할 수 있는지 판단해 보세요.
# 3. **학습률을 바꾸면?** `lr`를 0.01과 0.0001로 바꿔 보세요. 검증 정확도는 둘 다 25% 안팎입니다. 손실 곡선의 모양이 각각 어떻게 다른지, 0.0001은 왜 학습 정확도까지
#    29% 안팎에 그치는지 설명해 보세요.
