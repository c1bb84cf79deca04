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
# # 01. ResNet50으로 만화 얼굴의 표정 가려내기
#
# {{ colab_badge }}
#
# 만화 얼굴 몇백 장으로 표정을 가려내는 분류기를 만듭니다. 신경망을 처음부터 가르치기에는 턱없이 적은 양이라 **전이 학습**(transfer learning)을 씁니다.
# 큰 데이터로 이미 배운 몸통(**백본**)은 얼려 두고, 끝에 붙는 작은 분류기(**헤드**)만 새로 가르칩니다. 마지막에는 **내 그림**을 넣어 봅니다.
#
# **배우는 것** ① 백본을 얼린다는 말의 뜻과 확인하는 법 ② 얼린 백본의 출력을 보관하면 왜 빨라지는가 ③ 학습 곡선에서 과적합을 읽고, 믿을 숫자를 고르는 법
#
# **설정** `data_dir`은 그림 폴더(비우면 찾거나 내려받습니다), `weights`는 `auto`(허브), `none`(무작위 초기화), 파일이나 폴더의 경로, `views`는 증강한 뷰의 수입니다.

# %% tags=["parameters"] id="parameters"
# @title 설정 { run: "auto" }
data_dir = ""  # @param {type:"string"}
weights = "auto"  # @param {type:"string"}
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
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

# @inline transferlab.errors: printable, some, UserError, DataError, WeightsError
# @inline transferlab.machine: choose_precision
# @inline transferlab.data: SPLITS, PART, IGNORED, PICTURE, MASKS, PLACEHOLDER, MAX_SIDE
# @inline transferlab.data: MAX_RATIO, MAX_PIXELS, HEIF, REMEDIES, Rejected, Tree, Layout
# @inline transferlab.data: ImageSet, Fold
# @inline transferlab.data: CHUNK, IMAGE_NAMES, MASK_NAMES, MASK_OF, MAGIC, clean_name, is_picture
# @inline transferlab.data: read_tree, split_parts, holds_pictures, read_below, innermost
# @inline transferlab.data: has_classes, all_read, check_classes, find_classes, find_parts, find_layout, white_of
# @inline transferlab.data: has_band, find_white, to_rgb, read_image, load_images
# @inline transferlab.data: split_indices, split_images
# @inline transferlab.download: fetch_from_kaggle
# @inline transferlab.views: Augmentation, printed
# @inline transferlab.pretrained: tensor_hash, fetch_from_hub
# @inline transferlab.features: extract
# @inline transferlab.files: PID_NAMESPACE, host_mark, process_mark
# @inline transferlab.notebook: NotYet, PRINTS_ALL, load_body, FrozenBackbone, Run
# @inline transferlab.notebook: describe_run, save_run, from_colab, copy_to_drive
# @inline transferlab.plots: GREY, COLORS, use_fonts
# @inline transferlab.plots: plot_class_counts, plot_images, plot_curves, plot_confusion, plot_answer

KAGGLE = "mertkkl/manga-facial-expressions/versions/1"


def find_faces():
    local = Path("data/manga_facial_expressions")
    return local if local.is_dir() else fetch_from_kaggle(KAGGLE, f"Or unpack it as {local}")


UserError.remedy = "아래에 적힌 까닭을 보고 고친 다음 이 칸을 다시 실행하세요."
DataError.remedy = "그림 폴더를 쓸 수 없습니다. 아래 까닭을 보고 ‘설정’의 data_dir(폴더/클래스/그림)을 고친 다음 거기서부터 다시 실행하세요."
WeightsError.remedy = "가중치를 읽지 못했습니다. 인터넷을 확인하거나 ‘설정’의 weights에 파일을 적고 거기서부터 다시 실행하세요."
image_set = fold = augmentation = NotYet("먼저 ‘1. 데이터’와 ‘2. 뷰’를 실행하세요.")
frozen = order = NotYet("먼저 ‘3. 모델’과 ‘4’의 첫 칸을 실행하세요.")
run = NotYet("먼저 ‘5. 학습’을 실행하세요.")

# %% [markdown] id="data-text"
# ## 1. 데이터
#
# 그림을 한 장씩 읽고, 클래스 비율이 같도록(**층화**) 학습과 검증으로 나눕니다. `train`·`val`로 나뉜 폴더라면 그 나눔을 그대로 씁니다.
# **막대의 높이가 얼마나 고르지 않은지** 보세요. 제목의 비율이 모든 모델이 넘어야 할 바닥입니다. 가장 많은 클래스만 찍어도 그만큼은 맞히니까요.
# 그 아래 그림에서는 사람이 보아도 **헷갈리는 짝**을 찾아보세요. 모델이 어디서 틀릴지 미리 짐작해 두세요. (저장소에 올라온 노트북에서 그림이 보이는 칸은
# 남의 만화 대신 코드로 그린 그림으로 따로 실행한 결과입니다. 직접 실행하면 여러분의 그림이 나옵니다.)

# %% id="data"
image_set, loaded = load_images(data_dir or find_faces()), data_dir
fold = split_images(image_set, seed=seed)
if not use_fonts() and not "".join(image_set.classes).isascii():
    print("한글 글꼴이 없습니다: apt install fonts-nanum 뒤에 커널을 다시 시작하세요.")
plot_class_counts(image_set, fold)
plt.show()
print(f"{image_set.name}: 학습 {len(fold.train)}장, 검증 {len(fold.val)}장")
if not data_dir and len(image_set.labels) != 455:
    print("주의: 연구의 455장과 그림 수가 다릅니다. 받은 폴더를 확인하세요.")
for left_out in [*image_set.notes, *image_set.rejected[:10]]:
    print(f"알림: {left_out}")

# %% tags=["shows-images"] id="samples"
first = [torch.where(image_set.labels == c)[0][0] for c in range(len(image_set.classes))]
pictures = [image_set.images[i] for i in first]
plot_images(pictures, image_set.classes, f"{image_set.name}: one of each class")
plt.show()

# %% [markdown] id="views-text"
# ## 2. 뷰: 한 장을 여러 장처럼
#
# **증강**(augmentation)은 그림을 조금씩 뒤집고, 돌리고, 밝기를 바꿔서 모델이 같은 그림만 외우지 못하게 합니다. 이렇게 무작위로 바꾼 한 벌을 **뷰**(view)라고 부르고,
# 크기만 맞춘 깨끗한 뷰를 0번으로 둡니다. 난수는 (seed, 뷰 번호, 파일 이름)에서 나오므로 같은 뷰는 언제 그려도 같습니다. 돌리고 남은 모서리는 검게 채워집니다. 바꾼 뒤에도 **같은 표정으로 읽히는지** 보세요.

# %% tags=["shows-images"] id="views"
# @inline transferlab.views: faces_augmentation, render_view
augmentation = faces_augmentation()
transforms = [augmentation.clean, *6 * [augmentation.train]]
how = {"seed": seed, "indices": fold.train[:1]}
pictures = [render_view(image_set, t, view=v, **how)[0] for v, t in enumerate(transforms)]
titles = ["clean", *(f"view {view}" for view in range(1, 7))]
plot_images(pictures, titles, "One image: its clean view, and six random ones")
plt.show()

# %% [markdown] id="model-text"
# ## 3. 모델: 얼린 몸통과 새 헤드
#
# ```
#  image             lower: ResNet50, frozen          features           head, trains          logits
# ┌─────────┐      ┌──────────────────────────┐      ┌─────────┐      ┌───────────────┐      ┌─────────┐
# │ 224×224 │ ───▶ │  eval mode, no gradient  │ ───▶ │  2,048  │ ───▶ │ 512 → classes │ ───▶ │ classes │
# └─────────┘      └──────────────────────────┘      └─────────┘      └───────────────┘      └─────────┘
#  a view            once for every view              kept here          in every epoch
# ```
#
# 얼린다는 것은 기울기를 끄는 것만이 아닙니다. `requires_grad=False`만으로는 BatchNorm의 이동 평균이 학습 중에 계속 바뀌므로 **eval 모드**로 두어야 합니다.
# 정말 얼었는지는 파라미터와 버퍼 전체의 해시가 학습 뒤에도 같은지로 확인합니다. 가중치의 출처도 꼭 읽어 보세요. `random`이라면 무작위 초기화(전이 학습 아님)입니다. (저장소에 올라온 결과는 허브의 ImageNet 가중치가 아니라
# 아래에 적힌 대체 가중치로 얻은 것입니다. `auto`로 직접 실행하면 값이 달라집니다.)

# %% id="model-parts"
# @inline transferlab.backbones: normalize, FrozenFeatures, make_head
# @inline transferlab.pretrained: state_hash

# %% id="model"
data = {"image_set": image_set, "augmentation": augmentation, "seed": seed}
frozen = FrozenBackbone("resnet50", "resnet50.tv_in1k", weights, **data)
for name, part in {"lower(얼림)": frozen.lower, "head(학습)": frozen.new_head()}.items():
    print(f"{name}: 파라미터 {sum(p.numel() for p in part.parameters()):,}개")
print(f"가중치: {frozen.weights['source']}, 장치: {frozen.device}")

# %% [markdown] id="ordinary-text"
# ## 4. 누구나 쓰는 반복문, 그리고 같은 일을 빨리 하는 법
#
# 먼저 흔히 하듯이 한 에포크를 돌립니다. 배치마다 그림을 증강하고, 얼린 백본에 통과시키고, 헤드를 고칩니다. **시간이 어디에 가장 많이 들지** 예상해 보세요.


# %% id="ordinary"
def ordinary_epoch(frozen, head, order):
    """The loop that everybody writes: augment, run the frozen part, update the head."""
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    augment, labels = frozen.augmentation.train, frozen.labels("train")
    total = 0.0
    for batch in order.split(32):
        chosen = {"indices": frozen.fold.train[batch], "view": 1, "seed": frozen.seed}
        images = render_view(frozen.image_set, augment, **chosen).to(frozen.device)
        with torch.no_grad():
            features = frozen.lower(images)  # nearly all of the time
        loss = F.cross_entropy(head(features), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(batch)
    return total / len(order)


order = torch.randperm(len(fold.train), generator=torch.Generator().manual_seed(seed))
torch.manual_seed(seed)  # dropout
started = time.perf_counter()
ordinary_loss = ordinary_epoch(frozen, frozen.new_head(), order)
ordinary_seconds = time.perf_counter() - started
print(f"보통의 에포크: {ordinary_seconds:.1f}초, 손실 {ordinary_loss:.4f}")

# %% [markdown] id="kept-text"
# 백본은 얼어 있으므로 **같은 뷰의 특징은 언제나 같습니다.** 한 번 계산해서 보관하면 됩니다. 아래 `train_epoch`은 위와 같은 반복문이고, 백본을 부르는 줄만 없습니다.
# 같은 뷰, 같은 순서, 같은 드롭아웃이니 손실도 같아야 합니다(bf16이나 fp16으로 뷰를 계산하는 기계에서는 그 정밀도만큼만 다릅니다). 백본을 한 번 돌리는 시간은 그대로 듭니다.
# 빨라지는 것은 **그 뷰를 다시 쓸 때부터**입니다. 시간이 어디에 들지 짐작한 답이 맞았나요?

# %% id="kept"
# @inline transferlab.train: train_epoch, score
x = frozen.features("train", view=1)  # the backbone runs here, once
head = frozen.new_head()
optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
torch.manual_seed(seed)
started = time.perf_counter()
kept_loss, _ = train_epoch(head, optimizer, x, frozen.labels("train"), order.split(32))
kept_seconds = time.perf_counter() - started
tolerance = 1e-3 if frozen.precision == torch.float32 else 5e-2
assert abs(kept_loss - ordinary_loss) < tolerance, "보관한 특징과 보통의 반복문이 다릅니다"
once = frozen.features("train", view=1, seconds=True)
print(f"특징 계산 {once:.1f}초(한 번), 보관한 에포크 {kept_seconds:.3f}초, 손실 {kept_loss:.4f}")

# %% [markdown] id="train-text"
# ## 5. 학습
#
# 보통의 반복문은 에포크마다 새 뷰를 뽑습니다. 여기서는 깨끗한 뷰와 증강한 뷰 `views`벌을 **돌려 씁니다**(에포크 e는 뷰 `e % (views + 1)`). 뷰마다 처음 한 번만 백본이 돌고, 두 번째 바퀴부터는
# 눈 깜짝할 사이에 지나갑니다. 잃는 것이 없을까요? 이 연구의 교차 검증(데이터와 백본 여섯 짝)에서는 뷰 4벌을 돌려 쓴 쪽이 에포크마다
# 새 뷰를 쓴 쪽보다 0.35%포인트(95% 구간 −0.21~+0.91) 높아서, 나빠졌다는 증거는 없었습니다. 다만 이 규칙은 그 데이터를 본 뒤에 골랐습니다. 30에포크라면 백본은 31번이 아니라 5번만 돕니다.
#
# 검증 손실이 5에포크 동안 나아지지 않으면 멈추고(**조기 종료**), 가장 낮았던 에포크의 가중치로 되돌립니다. 늘 같은 헤드에서 시작하므로 몇 번을 실행해도 같은 값이 나옵니다.

# %% id="train"
# @inline transferlab.notebook: train_head


# %% id="train-run"
def report(row):
    print(f"에포크 {row['epoch']:2}: 검증 손실 {row['val_loss']:.3f}, 정확도 {row['val_acc']:.1%}")


if frozen.asked != (weights, image_set.digest, seed, repr(augmentation)) or loaded != data_dir:
    frozen = NotYet("설정이나 그림이 바뀌었습니다. ‘1. 데이터’부터 다시 실행하세요.")
run = train_head(frozen, epochs=epochs, views=views, report=report)
print("얼린 부분의 해시가 그대로인가:", state_hash(frozen.lower) == frozen.hash)

# %% [markdown] id="curves-text"
# ## 6. 학습 곡선
#
# 실선(검증)과 점선(학습) 사이의 틈이 **과적합**의 크기입니다. 둘 다 깨끗한 뷰를 드롭아웃 없이 잰 값이라 그대로 견줄 수 있습니다.
# 세로줄은 검증 **손실**이 가장 낮은 에포크입니다. 정확도가 가장 높은 곳과 같은가요?

# %% id="curves"
plot_curves(run)
plt.show()

# %% [markdown] id="confusion-text"
# ## 7. 무엇을 무엇으로 착각하는가
#
# 가로줄은 실제 클래스, 세로줄은 모델의 답입니다. **대각선 밖에서 짙은 칸**이 자주 틀리는 짝입니다. 처음에 짐작한 짝이 맞았나요?
# 다만 그림이 많은 클래스의 줄은 저절로 짙어집니다. F1은 정밀도(그렇다고 답한 것 가운데 맞은 비율)와 재현율(실제로 그런 것 가운데 찾아낸 비율)의 조화 평균이고,
# 클래스별 F1을 고르게 평균한 것이 **macro-F1**입니다.

# %% id="confusion"
plot_confusion(run)
plt.show()

# %% [markdown] id="numbers-text"
# ## 8. 어느 숫자를 믿을 것인가
#
# 가장 높은 정확도(highest)를 적고 싶지만, 그것은 검증 그림을 여러 번 들여다보고 고른 낙관적인 값입니다. 이 연구는 **검증 손실이 가장 낮은 에포크**(best)의 값을 적습니다.
# best도 같은 검증 그림으로 에포크를 골랐으니 조금은 낙관적이고, 95% 구간에는 이 몫이 들어 있지 않습니다. `gap`(학습 − 검증, %포인트)이 best에서 last로 가며 어떻게 변하는지,
# 구간이 얼마나 넓은지 보세요. 구간의 폭은 주로 검증 그림의 수가 정합니다.
#
# 헤드가 꺼내 쓴 것이 특징이 아는 전부일까요? 마지막 줄은 같은 깨끗한 특징에 **규제를 건 로지스틱 회귀**를 맞춘 것입니다. 규제의 세기 C는 학습 그림 안에서만 고르고,
# 검증 그림은 한 번만 봅니다. 이 줄이 헤드보다 눈에 띄게 높다면 특징에는 헤드가 미처 꺼내지 못한 것이 남아 있을 수 있습니다. 두 구간이 크게 겹친다면 아직 그렇게 말할 수 없습니다.


# %% id="numbers"
def interval(correct, n):
    low, high = stats.binomtest(int(correct), n).proportion_ci(method="wilson")
    return f"{correct}/{n} = {correct / n:.1%}, 95% 구간 {low:.1%}~{high:.1%}"


chosen = [run.best, len(run.history), run.history["val_acc"].idxmax()]
table = run.history.loc[chosen, ["train_acc_clean", "val_acc", "val_loss"]].reset_index()
table["gap"] = table["train_acc_clean"] - table["val_acc"]
percent = dict.fromkeys(["train_acc_clean", "val_acc"], "{:.1%}") | {"gap": "{:+.1%}p"}
display(table.set_axis(["best", "last", "highest"]).style.format(percent, precision=3))
correct = (run.logits.argmax(dim=1) == run.frozen.labels("val")).sum().item()
print("best:", interval(correct, len(run.logits)))

x, val_x = (run.frozen.features(part).cpu() for part in ("train", "val"))
y, scale = run.frozen.labels("train").cpu(), x.std(dim=0).clamp(min=1e-6)
x, val_x = ((some - x.mean(dim=0)) / scale for some in (x, val_x))
turn = torch.linalg.svd(x, full_matrices=False).Vh.T  # to as many columns as images
search = GridSearchCV(LogisticRegression(), {"C": np.logspace(-4, 0, 5)}, scoring="neg_log_loss")
folds = max(2, min(5, *y.bincount().tolist()))
search.set_params(cv=folds, estimator__max_iter=1000).fit(x @ turn, y)
right = (search.predict(val_x @ turn) == run.frozen.labels("val").cpu().numpy()).sum()
print(f"로지스틱 회귀(C = {search.best_params_['C']:g}):", interval(right, len(val_x)))

# %% [markdown] id="save-text"
# ## 9. 저장
#
# 모델은 `model/`에, 에포크별 기록은 `result/`에, 그림은 `img/`에 씁니다. 실행할 때마다 새 시각이 이름에 붙고 있던 파일은 그대로 남습니다. Colab에서 설정의 `mount_drive`를 켜면
# Google Drive에도 사본을 둡니다. 백본은 다시 내려받을 수 있으므로 Drive에는 헤드만 씁니다.

# %% id="save"
files = save_run(run, out_dir, {"combined": plot_curves(run), "confusion": plot_confusion(run)})
print(*(f"{path.parent.name}/{path.name}" for path in files.values()), sep="\n")
if mount_drive:
    print("Google Drive:", copy_to_drive(files))

# %% [markdown] id="picture-text"
# ## 10. 내 그림
#
# `my_image`에 그림 경로를 적고 아래 칸만 다시 실행하세요(Colab이라면 `upload`를 켜세요). 비워 두면 검증 그림 한 장을 씁니다.
#
# 아랫줄은 백본의 특징이 **가장 비슷한 학습 그림 다섯 장**입니다(평균을 뺀 특징의 코사인 유사도). 답이 틀렸다면 여기서 까닭을 찾아보세요. 표정이 아니라 구도나 그림체,
# 머리 모양이 닮은 그림이 모였다면 백본이 표정보다 그것을 더 크게 보고 있다는 실마리입니다. 확률이 높다고 맞는 답도 아닙니다. 처음 보는 종류의 그림에도 확률의 합은 늘 100%입니다.

# %% tags=["shows-images"] id="picture"
my_image = ""  # @param {type:"string"}
upload = False  # @param {type:"boolean"}
if upload:
    my_image = next(iter(from_colab("files").upload()), "")
images, val = run.frozen.image_set, run.frozen.fold.val[0]
image = read_image(Path(my_image), images.white)[0] if my_image else images.images[val]
truth = images.classes[images.labels[val]]
plot_answer(run, image, my_image or f"validation image, true class {truth}")

# %% [markdown] id="summary"
# ## 정리
#
# - **얼렸다**는 것은 기울기를 끄고 eval 모드로 두어 값 하나 바뀌지 않는다는 뜻이고, 해시로 확인합니다(3, 5).
# - 얼린 부분의 출력은 그림과 뷰가 정해지면 상수이므로 **뷰마다 한 번만** 계산합니다. 남는 일은 헤드 학습뿐입니다(4, 5).
# - **과적합**은 학습과 검증의 틈이고, 적을 값은 검증 손실이 가장 낮은 에포크의 정확도와 **그 구간**입니다(6, 8).
# - 같은 특징에서도 헤드와 로지스틱 회귀는 다른 것을 꺼냅니다. 백본을 견줄 때는 **무엇으로 쟀는지**도 함께 적어야 합니다(8).
#
# ## 연습 문제
#
# **1. 조기 종료를 끄면?** 5의 마지막 칸에서 `run = …` 줄만 `run = train_head(frozen, epochs=100, views=views, patience=0, report=report)`로 바꾸고 그 칸부터 8까지 다시 실행하세요. 끝나면 되돌려 놓으세요.
#
# <details><summary>답</summary>고른 에포크는 그대로이거나 더 뒤로 갑니다. 뒤로 갈수록 학습 정확도는 오르는데 검증 손실은 나아지지 않거나 나빠집니다. 벌어지는 틈, 그것이 과적합입니다.</details>
#
# **2. 증강이 없으면?** 설정을 `views = 0`으로 바꾸고 설정, 5의 마지막 칸, 6, 8을 다시 실행하세요. 백본은 한 번도 돌지 않습니다. 왜일까요?
#
# <details><summary>답</summary>깨끗한 뷰의 특징은 이미 보관되어 있기 때문입니다. 정확도의 차이가 구간의 폭보다 훨씬 작다면 이 한 번으로 증강이 도움이 되었다고도 해가 되었다고도 하기 어렵습니다. 제대로 가리려면 02번의 5처럼 같은 그림에서 짝지어 보세요.</details>
#
# **3. 학습률을 바꾸면?** 5의 마지막 칸에서 `run = …` 줄을 `run = train_head(frozen, epochs=epochs, views=views, lr=1e-2, report=report)`로 바꾸고 그 칸과 6을 다시 실행하세요. `lr=1e-4`로도 해 보고 손실 곡선을 견주세요.
#
# <details><summary>답</summary>크면 곡선이 튀고, 일찍 과적합하거나 제대로 배우지 못한 채 멈추기도 합니다. 작으면 매끈하지만 정해진 에포크 안에 다 배우지 못해 학습 정확도까지 낮습니다. 덜 배운 것은 과적합이 아닙니다.</details>
