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
# # 03. 개미와 벌: 어떤 백본이 잘 옮겨 오는가
#
# {{ colab_badge }}
#
# PyTorch의 전이 학습 튜토리얼로 널리 알려진 개미와 벌 사진을 가려냅니다. 백본 여러 가지를 똑같은 방법으로 얼리고 똑같은 헤드를 붙여서,
# **어떤 사전 학습이 이 작은 문제에 잘 옮겨 오는지** 봅니다.
#
# | 백본 | 특징 수 | 한 줄 소개 |
# |---|---|---|
# | EfficientNet-Lite0 | 1,280 | 휴대 기기용으로 다듬은 작은 합성곱 신경망 |
# | EfficientNet-B0 | 1,280 | 깊이, 너비, 해상도를 함께 키우는 EfficientNet의 출발점 |
# | EfficientNet-B3 | 1,536 | B0을 키운 것. 원래 300픽셀 안팎에서 쓰지만 연구를 따라 224픽셀로 씁니다 |
# | ViT-B/16 | 768 | 그림을 16×16 조각으로 잘라 문장처럼 읽는 트랜스포머 |
#
# **배우는 것** ① 여러 백본을 한 줄에 세우는 법과 그 순위를 믿어도 되는 만큼 ② 사전 학습이 가져다준 몫을 재는 법 ③ 백본까지 학습하는 기법이 언제 값을 하는가
#
# **설정** `data_dir`은 그림 폴더(비우면 찾거나 내려받습니다), `weights`는 `auto`(허브), `none`(무작위 초기화), 파일이나 폴더의 경로, `views`는 증강한 뷰의 수입니다. `random_backbones`는 가중치를 못 구한 백본을
# 무작위 초기화로 대신합니다.
#
# 이 사진들은 ImageNet의 일부이므로, ImageNet으로 학습한 백본은 **같은 사진을 이미 보았을 수 있습니다.** 여기서 나온 높은 정확도가 여러분의 사진에서도 나오리라는 보장은 없습니다.

# %% tags=["parameters"] id="parameters"
# @title 설정 { run: "auto" }
data_dir = ""  # @param {type:"string"}
weights = "auto"  # @param {type:"string"}
random_backbones = False  # @param {type:"boolean"}
epochs = 30  # @param {type:"integer"}
views = 4  # @param {type:"integer"}
seed = 42  # @param {type:"integer"}
out_dir = "."  # @param {type:"string"}
mount_drive = False  # @param {type:"boolean"}

# %% id="setup"
# @title 준비 코드 (열어 보지 않아도 됩니다)
import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

# @inline transferlab.errors: printable, some, UserError, DataError, WeightsError
# @inline transferlab.machine: choose_precision
# @inline transferlab.metrics: Interval
# @inline transferlab.data: SPLITS, PART, IGNORED, PICTURE, MASKS, PLACEHOLDER, MAX_SIDE
# @inline transferlab.data: MAX_RATIO, MAX_PIXELS, HEIF, REMEDIES, Rejected, Tree, Layout
# @inline transferlab.data: ImageSet, Fold
# @inline transferlab.data: CHUNK, IMAGE_NAMES, MASK_NAMES, MASK_OF, MAGIC, clean_name, is_picture
# @inline transferlab.data: read_tree, split_parts, holds_pictures, read_below, innermost
# @inline transferlab.data: has_classes, all_read, check_classes, find_classes, find_parts, find_layout, white_of
# @inline transferlab.data: has_band, find_white, to_rgb, read_image, load_images
# @inline transferlab.data: split_indices, split_images
# @inline transferlab.download: HYMENOPTERA_URL, fetch_zip
# @inline transferlab.views: Augmentation, printed
# @inline transferlab.pretrained: tensor_hash, fetch_from_hub
# @inline transferlab.features: extract
# @inline transferlab.files: PID_NAMESPACE, host_mark, process_mark
# @inline transferlab.notebook: NotYet, PRINTS_ALL, load_body, FrozenBackbone, Run
# @inline transferlab.notebook: describe_run, save_run, from_colab, copy_to_drive
# @inline transferlab.plots: GREY, COLORS, use_fonts, plot_class_counts, plot_images, plot_runs
# @inline transferlab.plots: plot_answer


def find_insects():
    local = Path("data/hymenoptera_data")
    return local if local.is_dir() else fetch_zip(HYMENOPTERA_URL, local)


COLORS |= {"efficientnet_b0": "#CC79A7", "efficientnet_b3": "#56B4E9"}
UserError.remedy = "아래에 적힌 까닭을 보고 고친 다음 이 칸을 다시 실행하세요."
DataError.remedy = "그림 폴더를 쓸 수 없습니다. 아래 까닭을 보고 ‘설정’의 data_dir(폴더/클래스/그림)을 고친 다음 거기서부터 다시 실행하세요."
WeightsError.remedy = "가중치를 읽지 못했습니다. 인터넷을 확인하거나 ‘설정’의 weights에 폴더를 적고 거기서부터 다시 실행하세요."
image_set = fold = loaded = NotYet("먼저 ‘1. 데이터’를 실행하세요.")
STALE = NotYet("그림 폴더가 바뀌었습니다. ‘1. 데이터’부터 다시 실행하세요.")
augmentation = NotYet("먼저 ‘2. 뷰’를 실행하세요.")
runs = NotYet("먼저 ‘4. 차례로 학습’을 실행하세요.")

# %% [markdown] id="data-text"
# ## 1. 데이터
#
# 개미와 벌 데이터는 학습용과 검증용으로 이미 나뉘어 있으므로 그 나눔을 그대로 씁니다(나뉘지 않은 폴더라면 35%를 층화해서 떼어 둡니다). 학습용 개미 폴더에는 “이미지를 찾을 수 없음”이라는
# 안내 그림이 한 장 섞여 있습니다. 개미가 아니므로 빼고, 뺐다고 적습니다. 이런 파일을 그냥 두고 학습하는 예제가 많습니다.

# %% id="data"
image_set, loaded = load_images(data_dir or find_insects()), data_dir
fold = split_images(image_set, seed=seed)
if not use_fonts() and not "".join(image_set.classes).isascii():
    print("한글 글꼴이 없습니다: apt install fonts-nanum 뒤에 커널을 다시 시작하세요.")
plot_class_counts(image_set, fold)
plt.show()
print(f"{image_set.name}: 학습 {len(fold.train)}장, 검증 {len(fold.val)}장")
if not data_dir and len(image_set.labels) != 397:
    print("주의: 연구의 397장과 그림 수가 다릅니다. 받은 폴더를 확인하세요.")
for left_out in [*image_set.notes, *image_set.rejected[:10]]:
    print(f"알림: {left_out}")

# %% [markdown] id="samples-text"
# ## 2. 뷰
#
# 얼굴과 달리 여기서는 **무작위로 잘라 낸** 조각을 씁니다. `RandomResizedCrop`은 사진의 8%만 남기기도 합니다. 윗줄은 사진 일곱 장이고, 아랫줄은 그 가운데 첫 장에서 나온
# 깨끗한 뷰와 무작위 뷰 여섯 벌입니다(저장소에 올라온 노트북에서는 코드로 그린 그림으로 따로 실행한 결과입니다). 곤충이 잘려 나가 **배경만 남은 뷰가 몇 벌인지** 세어 보세요.

# %% tags=["shows-images"] id="views"
# @inline transferlab.views: photos_augmentation, render_view
augmentation = photos_augmentation()
seven = fold.train[:: len(fold.train) // 7 or 1][:7]
pictures = [image_set.images[i] for i in seven]
names = [image_set.classes[label] for label in image_set.labels[seven]]
transforms = [augmentation.clean, *6 * [augmentation.train]]
how = {"seed": seed, "indices": seven[:1]}
pictures += [render_view(image_set, t, view=v, **how)[0] for v, t in enumerate(transforms)]
names += ["clean view", *(f"view {view}" for view in range(1, 7))]
plot_images(pictures, names, "Seven images, and seven views of the first")
plt.show()

# %% [markdown] id="parts-text"
# ## 3. 부품
#
# 01번에서 하나씩 만들어 본 것들입니다. 백본마다 입력을 정규화하는 평균과 표준편차가 다릅니다. `normalize`가 모델에 적힌 값을 씁니다. 배울 때 쓴 값으로 맞추지 않으면 가중치가 좋아도
# 결과가 나빠집니다. 나머지(헤드, 뷰, 학습 규칙)는 모든 백본이 함께 씁니다.

# %% id="model-parts"
# @inline transferlab.backbones: normalize, FrozenFeatures, make_head
# @inline transferlab.pretrained: state_hash

# %% id="kept"
# @inline transferlab.train: train_epoch, score
# @inline transferlab.notebook: right_images

# %% id="train"
# @inline transferlab.notebook: train_head

# %% [markdown] id="runs-text"
# ## 4. 차례로 학습
#
# 가중치를 구하지 못한 백본은 **건너뛰고 그렇다고 적습니다.** 설정의 `random_backbones`를 켜면 무작위 초기화로 대신합니다. 그런 줄은 전이 학습이 아니며, 사전 학습이 가져다준 몫을
# 재는 바닥선으로만 씁니다. 이 칸을 다시 실행해도 보관한 특징은 그대로 쓰고, 설정을 바꾸었다면 바뀐 설정으로 학습합니다.


# %% id="runs"
def freeze(name, timm_name):
    images = image_set if loaded == data_dir else STALE
    data = {"image_set": images, "augmentation": augmentation, "seed": seed}
    try:
        return FrozenBackbone(name, timm_name, weights, **data)
    except WeightsError as error:
        print("무작위 초기화(전이 학습 아님):" if random_backbones else "건너뜀:", error)
    return FrozenBackbone(name, timm_name, "none", **data) if random_backbones else None


models = {"efficientnet_lite0": "tf_efficientnet_lite0.in1k"}
models["efficientnet_b0"] = "efficientnet_b0.ra_in1k"
models["efficientnet_b3"] = "efficientnet_b3.ra2_in1k"
models["vit"] = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
trained = {}
for name, timm_name in models.items():
    backbone = freeze(name, timm_name)
    if backbone:
        run = train_head(backbone, epochs=epochs, views=views, report=lambda row: None)
        print(f"{name}: 검증 손실 {run.history.val_loss[run.best]:.3f}, 에포크 {run.best}")
        trained[name] = run
runs = trained or NotYet("가중치가 있는 백본이 없습니다. ‘설정’의 weights를 고치세요.")

# %% [markdown] id="table-text"
# ## 5. 한눈에 비교
#
# 정확도는 검증 손실이 가장 낮은 에포크의 값이고, 선은 95% 구간입니다. 구간은 정확도 하나하나가 얼마나 흔들리는지를 보여 줄 뿐입니다. 모두 같은 사진을 보았으므로, 구간이 겹쳐도
# **짝지어 보면** 차이가 있을 수 있습니다(02번의 5, 아래 연습 3). `weights`에 적힌 출처도 함께 읽으세요. 저장소에 올라온 결과에는 허브의 가중치가 아닌 대체 가중치도 섞여 있습니다.
# 같은 구조라도 무엇으로 배웠는지에 따라 순위가 달라지므로, 이 표는 구조가 아니라 **체크포인트**의 순위입니다.

# %% id="table"
# @inline transferlab.metrics: accuracy_interval
# @inline transferlab.notebook: summarise_run
display(pd.DataFrame([summarise_run(run) for run in runs.values()]).set_index("model"))
plot_runs([*runs.values()])
plt.show()

# %% [markdown] id="probe-text"
# ## 6. 특징이 아는 것
#
# 같은 깨끗한 특징에 **규제를 건 로지스틱 회귀**를 맞춥니다. 세기 C는 학습 사진 안에서만 고르고, 검증 사진은 한 번만 봅니다. 헤드보다 눈에 띄게 높은 줄이 있다면
# 헤드가 특징을 다 꺼내 쓰지 못했을 수 있습니다(구간의 폭과 견주어 보세요). 순서가 위의 표와 같은지도 보세요.


# %% id="probe"
def probe(run):
    x, val_x = (run.frozen.features(part).cpu() for part in ("train", "val"))
    y, scale = run.frozen.labels("train").cpu(), x.std(dim=0).clamp(min=1e-6)
    x, val_x = ((some - x.mean(dim=0)) / scale for some in (x, val_x))
    turn = torch.linalg.svd(x, full_matrices=False).Vh.T  # to as many columns as images
    twice = y.bincount()[y] > 1  # 한 장뿐인 클래스는 세기를 고르는 데 빠집니다
    grid = {"C": np.logspace(-4, 0, 5)}
    search = GridSearchCV(LogisticRegression(max_iter=1000), grid, scoring="neg_log_loss")
    search.set_params(cv=max(2, min(5, y[twice].unique(return_counts=True)[1].min().item())))
    search.fit((x @ turn)[twice], y[twice]).best_estimator_.fit(x @ turn, y)
    return int((search.predict(val_x @ turn) == run.frozen.labels("val").cpu().numpy()).sum())


for run in runs.values():
    correct, n = probe(run), len(run.logits)
    low, high = vars(accuracy_interval(correct, n)).values()
    print(f"{run.frozen.name}: {correct}/{n} = {correct / n:.1%}, 95% 구간 {low:.1%}~{high:.1%}")

# %% [markdown] id="techniques"
# ## 7. 백본까지 학습하면 나아질까?
#
# 지금까지는 백본을 얼렸습니다. 마지막 단계만, 정규화 층만, 또는 전부를 함께 학습할 수도 있습니다. CPU로는 기법 하나에 몇 분씩 걸리므로 저장소의 벤치마크로 재어 둔 값을 옮깁니다.
# 개미와 벌 397장, Lite0(ImageNet), 112픽셀, 10에포크, 다섯 겹 교차 검증입니다. 위의 표와는 크기도 나눔도 다르므로 이 표 안에서만 견주세요.
#
# | 기법 | 학습하는 것 | 정확도(%) | 95% 구간 |
# |---|---|---|---|
# | linear probe | 마지막 선형층 | 90.9 | 87.7–93.4 |
# | last stage | 마지막 단계와 헤드 | 91.4 | 88.3–93.8 |
# | LP-FT | 헤드를 먼저, 그다음 전부 | 91.4 | 88.3–93.8 |
# | full fine-tuning | 전부 | 90.2 | 86.9–92.7 |
# | normalisation only | 정규화 층과 헤드 | 86.9 | 83.2–89.9 |
#
# **여기서는 얻는 것이 보이지 않습니다.** 사전 학습이 이미 개미와 벌을 알기 때문일 수 있습니다. 만화 얼굴처럼 사전 학습에서 먼 그림에서는 백본에 따라 전부 학습한 쪽이 10%포인트 넘게 높았지만,
# 구별되지 않은 백본도 있습니다(보고서에 있습니다).
# 그러니 먼저 얼린 백본으로 재고, 사전 학습에서 먼 그림일 때 더 학습해 보는 것이 순서입니다.

# %% [markdown] id="save-text"
# ## 8. 저장
#
# 모든 모델을 새 시각이 붙은 이름으로 `model/`, `result/`, `img/`에 씁니다. 있던 파일은 그대로 남습니다.

# %% id="save"
for place, run in enumerate(runs.values()):
    files = save_run(run, out_dir, {} if place else {"compared": plot_runs([*runs.values()])})
    print(*(f"{path.parent.name}/{path.name}" for path in files.values()), sep="\n")
    if mount_drive:
        print("Google Drive:", copy_to_drive(files))

# %% [markdown] id="picture-text"
# ## 9. 내 사진
#
# `my_image`에 사진 경로를 적고 아래 칸만 다시 실행하세요(Colab이라면 `upload`를 켜세요). 검증 손실이 가장 낮은 모델이 답합니다. 아랫줄은 백본의 특징이 **가장 비슷한 학습 사진 다섯 장**입니다.
# 답이 틀렸다면 곤충이 닮았는지, 꽃이나 흙 같은 **배경이 닮았는지** 보세요. 개미도 벌도 아닌 사진에도 확률의 합은 늘 100%입니다.

# %% tags=["shows-images"] id="picture"
my_image = ""  # @param {type:"string"}
upload = False  # @param {type:"boolean"}
if upload:
    my_image = next(iter(from_colab("files").upload()), "")
best = min(runs.values(), key=lambda run: run.history["val_loss"].min())
images, val = best.frozen.image_set, best.frozen.fold.val[0]
image = read_image(Path(my_image), images.white)[0] if my_image else images.images[val]
title = my_image or f"validation image, true class {images.classes[images.labels[val]]}"
plot_answer(best, image, f"{best.frozen.name}: {title}")

# %% [markdown] id="summary"
# ## 정리
#
# - 순위는 **체크포인트**의 것이고, 순서를 말하려면 같은 사진에서 짝지어 보아야 합니다(5, 연습 3).
# - 사전 학습의 몫은 같은 구조를 무작위로 초기화한 것과 견주어 잽니다(4, 연습 2).
# - 사전 학습이 이미 아는 문제에서는 **얼린 백본과 선형 분류기로도 충분할 때가 많습니다.** 먼저 그것으로 재어 보고, 백본까지 학습하는 것은 그다음입니다(6, 7).
#
# ## 연습 문제
#
# **1. 시드를 바꾸면?** 설정의 `seed`를 1, 2, 3으로 바꾸고 설정, 1, 2, 4, 5를 다시 실행하세요(백본이 다시 돌아 시간이 걸립니다. 끝나면 되돌려 놓으세요). 나뉘어 온 폴더라면 나눔은 그대로이고 뷰와 헤드의 시작만 달라집니다.
#
# <details><summary>답</summary>정확도는 보통 몇 장만큼 움직입니다(나뉘지 않은 폴더라면 나눔까지 바뀌어 더 크게 움직입니다). 표에서 백본끼리의 차이가 그만한 크기라면 시드만으로도 생길 수 있는 차이입니다.</details>
#
# **2. 사전 학습이 없다면?** 설정을 `weights = "none"`으로 바꾸고 설정과 4, 5를 다시 실행하세요(백본이 모두 새로 돌아 CPU로는 오래 걸립니다. 끝나면 설정을 되돌리고 4를 다시 실행하세요).
#
# <details><summary>답</summary>정확도가 가장 많은 클래스만 찍는 바닥 쪽으로 크게 떨어집니다. 두 표에 함께 있는 백본에서, 그 차이가 이 사진들에서 사전 학습이 가져다준 몫입니다.</details>
#
# **3. 1등은 정말 1등일까?** 새 칸에 아래를 넣어 1등과 2등을 짝지어 보세요. 이름은 표에서 골라 바꿉니다.
#
# ```python
# from scipy import stats
#
# first, second = (right_images(runs[name]) for name in ("efficientnet_lite0", "efficientnet_b3"))
# only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
# print(only_first, only_second, stats.binomtest(only_first, max(1, only_first + only_second)).pvalue)
# ```
#
# <details><summary>답</summary>한쪽만 맞힌 사진이 한쪽으로 쏠릴수록 p가 작아집니다. 위의 그림에서 구간이 겹쳐도 p는 0.05보다 작을 수 있습니다. 백본이 여럿이라 여러 번 견주면 우연히 작은 p도 나오기 쉬우니, 견준 횟수만큼 p를 곱해 보는 것이 안전합니다(본페로니 보정).</details>
