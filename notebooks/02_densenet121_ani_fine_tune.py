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
# # 02. DenseNet121과 ResNet50, 어느 쪽이 나은가
#
# {{ colab_badge }}
#
# 01번에서 ResNet50으로 만화 얼굴의 표정을 가려냈습니다. 백본을 DenseNet121으로 바꾸면 나아질까요? 두 모델의 정확도를 나란히 적는 것만으로는 대답이 되지 않습니다.
# 검증 그림이 적으면 **우연만으로도** 몇 %포인트는 달라지기 때문입니다. 이 노트북은 백본을 **비교하는 법**을 다룹니다.
#
# **배우는 것** ① 무엇을 똑같이 맞춰야 비교가 되는가 ② 같은 그림에서 둘의 답을 짝지어 보는 법(McNemar 검정) ③ 차이를 말할 수 없을 때 그렇게 말하는 법
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
# @inline transferlab.metrics: Interval
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
# @inline transferlab.plots: GREY, COLORS, use_fonts, plot_images, plot_confusion, plot_runs
# @inline transferlab.plots: plot_answer

KAGGLE = "mertkkl/manga-facial-expressions/versions/1"


def find_faces():
    local = Path("data/manga_facial_expressions")
    return local if local.is_dir() else fetch_from_kaggle(KAGGLE, f"Or unpack it as {local}")


UserError.remedy = "아래에 적힌 까닭을 보고 고친 다음 이 칸을 다시 실행하세요."
DataError.remedy = "그림 폴더를 쓸 수 없습니다. 아래 까닭을 보고 ‘설정’의 data_dir(폴더/클래스/그림)을 고친 다음 거기서부터 다시 실행하세요."
WeightsError.remedy = "가중치를 읽지 못했습니다. 인터넷을 확인하거나 ‘설정’의 weights에 파일을 적고 거기서부터 다시 실행하세요."
image_set = labels = loaded = NotYet("먼저 ‘1. 데이터’를 실행하세요.")
STALE = NotYet("그림 폴더가 바뀌었습니다. ‘1. 데이터’부터 다시 실행하세요.")
resnet = densenet = NotYet("먼저 ‘3. 같은 조건으로’를 실행하세요.")

# %% [markdown] id="data-text"
# ## 1. 데이터
#
# 01번과 같은 그림을 같은 시드로 나눕니다. 두 모델이 **같은 그림으로 배우고 같은 그림으로 시험을 쳐야** 비교가 됩니다. 아래는 클래스마다 두 장씩입니다.
# (저장소에 올라온 노트북에는 남의 만화 대신 직접 그린 그림이 들어 있습니다.)

# %% id="data"
image_set, loaded = load_images(data_dir or find_faces()), data_dir
if not use_fonts() and not "".join(image_set.classes).isascii():
    print("한글 글꼴이 없습니다: apt install fonts-nanum 뒤에 커널을 다시 시작하세요.")
labels = image_set.labels
print(f"{image_set.name}: 그림 {len(labels)}장, 클래스 {len(image_set.classes)}개")
if not data_dir and len(labels) != 455:
    print("주의: 연구의 455장과 그림 수가 다릅니다. 받은 폴더를 확인하세요.")
for left_out in [*image_set.notes, *image_set.rejected[:10]]:
    print(f"알림: {left_out}")

# %% tags=["shows-images"] id="samples"
two_each = [i for c in labels.unique() for i in torch.where(labels == c)[0][:2]]
names = [image_set.classes[labels[i]] for i in two_each]
plot_images([image_set.images[i] for i in two_each], names, f"{image_set.name}: two of each class")
plt.show()

# %% [markdown] id="parts-text"
# ## 2. 부품
#
# 01번에서 하나씩 만들어 본 것들입니다. 뷰를 그리고, 백본을 얼리고, 헤드를 붙이고, 보관한 특징으로 학습합니다. 두 모델이 다르게 쓰는 것은 **백본 하나뿐**이어야 하므로
# 모두 같은 함수를 지나갑니다(특징 수가 달라 헤드 첫 층의 입력 폭은 따라 달라집니다). 내용이 낯설다면 01번을 먼저 보세요.

# %% id="views"
# @inline transferlab.views: faces_augmentation, render_view

# %% id="model-parts"
# @inline transferlab.backbones: normalize, FrozenFeatures, make_head
# @inline transferlab.pretrained: state_hash

# %% id="kept"
# @inline transferlab.train: train_epoch, score
# @inline transferlab.notebook: right_images

# %% id="train"
# @inline transferlab.notebook: train_head

# %% [markdown] id="runs-text"
# ## 3. 같은 조건으로
#
# 데이터, 나눔, 뷰, 헤드를 정하는 시드, 학습 규칙을 모두 함께 씁니다. 달라지는 것은 체크포인트(구조와 가중치)뿐이므로, 여기서 내릴 수 있는 결론도 **체크포인트에 대한 것**입니다.
# 같은 구조라도 가중치가 다르면 순위는 뒤집힐 수 있습니다. 저장소에 올라온 결과는 표의 `weights`에 적힌 대체 가중치로 얻은 것입니다. 특징은 보관되므로 이 칸을 다시 실행하면 백본은 돌지 않고, 설정을 바꾸었다면 바뀐 설정으로 학습합니다.


# %% id="runs"
def train_backbone(name, timm_name):
    images = image_set if loaded == data_dir else STALE
    data = {"image_set": images, "augmentation": faces_augmentation(), "seed": seed}
    frozen = FrozenBackbone(name, timm_name, weights, **data)
    run = train_head(frozen, epochs=epochs, views=views, report=lambda row: None)
    assert state_hash(frozen.lower) == frozen.hash, "얼린 부분이 바뀌었습니다"
    print(f"{name}: 검증 손실 {run.history.val_loss[run.best]:.3f}, 에포크 {run.best}")
    return run


models = {"resnet50": "resnet50.tv_in1k", "densenet121": "densenet121.tv_in1k"}
resnet, densenet = [train_backbone(*one) for one in models.items()]  # both, or neither

# %% [markdown] id="table-text"
# ## 4. 나란히 놓기
#
# 정확도는 검증 손실이 가장 낮은 에포크의 값입니다. 95% 구간은 그림을 이만큼만 보았기 때문에 생기는 흔들림의 폭입니다. **두 구간이 겹치나요?** `gap`은 학습 정확도에서 검증 정확도를 뺀
# 과적합의 크기입니다. `weights`가 서로 다른 데이터로 배운 것이라면, 차이는 구조가 아니라 배운 데이터에서 왔을 수 있습니다.

# %% id="table"
# @inline transferlab.metrics: accuracy_interval
# @inline transferlab.notebook: summarise_run
display(pd.DataFrame([summarise_run(run) for run in (resnet, densenet)]).set_index("model").T)
plot_runs([resnet, densenet])
plt.show()

# %% [markdown] id="paired-text"
# ## 5. 같은 그림에서 짝짓기
#
# 구간 두 개를 눈으로 견주는 것은 무딘 방법입니다. 두 모델은 **같은 그림**을 보았으니, 한쪽만 맞힌 그림을 세면 됩니다. 둘이 똑같이 잘한다면 한쪽만 맞힌 그림은 동전 던지기처럼 반반으로
# 갈릴 것입니다. 그보다 더 쏠렸는지를 보는 것이 **McNemar 검정**입니다. p는 둘의 실력이 똑같은데도 이만큼, 또는 이보다 더 쏠릴 확률입니다(“둘이 똑같을 확률”이 아닙니다).
# p가 0.05 이상이면 “이 그림들로는 판정 보류”가 정직한 결론입니다.

# %% id="paired"
right = {run.frozen.name: right_images(run) for run in (resnet, densenet)}
only_resnet = int((right["resnet50"] & ~right["densenet121"]).sum())
only_densenet = int((right["densenet121"] & ~right["resnet50"]).sum())
print(f"둘 다 {int((right['resnet50'] & right['densenet121']).sum())}장 맞힘")
print(f"ResNet50만 {only_resnet}장, DenseNet121만 {only_densenet}장 맞힘")
p = stats.binomtest(only_resnet, max(1, only_resnet + only_densenet)).pvalue
print(f"McNemar 검정 p = {p:.3f}:", "판정 보류" if p >= 0.05 else "우연으로 보기 어려운 차이")

# %% [markdown] id="disagree-text"
# 한쪽만 맞힌 그림입니다(저장소에 올라온 노트북에서는 코드로 그린 그림으로 따로 실행한 결과라, 위에서 센 그림이 아닙니다). 윗줄의 답이 왜 갈렸는지 보이나요? 사람이 보아도 애매한 그림이 많다면, 남은 차이는 모델보다 **정답표**에 있을지도 모릅니다.

# %% tags=["shows-images"] id="disagree"
task, classes = densenet.frozen, densenet.frozen.image_set.classes
differ = torch.where(right_images(resnet) != right_images(densenet))[0][:7]
pictures = [task.image_set.images[i] for i in task.fold.val[differ]]
answers = [run.logits[differ].argmax(dim=1).tolist() for run in (resnet, densenet)]
truth = task.labels("val").cpu()[differ].tolist()
titles = [f"{classes[t]}\nR: {classes[r]}\nD: {classes[d]}" for t, r, d in zip(truth, *answers)]
plot_images(pictures, titles, "Only one is right: the truth, ResNet50's and DenseNet121's answer")
plt.show()

# %% [markdown] id="confusion-text"
# ## 6. 무엇을 착각하는가
#
# 정확도가 비슷해도 틀리는 방식은 다를 수 있습니다. 위는 ResNet50, 아래는 DenseNet121입니다. 같은 짝에서 틀리나요?

# %% id="confusion"
plot_confusion(resnet)
plot_confusion(densenet)
plt.show()

# %% [markdown] id="probe-text"
# ## 7. 재는 자를 바꾸면
#
# 순위가 헤드 때문에 나온 것은 아닐까요? 같은 깨끗한 특징에 규제를 건 로지스틱 회귀를 맞춰 봅니다(세기 C는 학습 그림 안에서만 고릅니다).
# **두 자가 같은 순서를 말하나요?** 다르다면 그 순서는 백본이 아니라 자나 우연이 정한 것입니다. 구간의 폭도 함께 보세요.


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


for run in (resnet, densenet):
    correct, n = probe(run), len(run.logits)
    low, high = vars(accuracy_interval(correct, n)).values()
    print(f"{run.frozen.name}: {correct}/{n} = {correct / n:.1%}, 95% 구간 {low:.1%}~{high:.1%}")

# %% [markdown] id="save-text"
# ## 8. 저장
#
# 두 모델을 새 시각이 붙은 이름으로 `model/`, `result/`, `img/`에 씁니다. 있던 파일은 그대로 남습니다.

# %% id="save"
compared = {"compared": plot_runs([resnet, densenet]), "confusion": plot_confusion(densenet)}
for run, figures in ((resnet, {}), (densenet, compared)):
    files = save_run(run, out_dir, figures)
    print(*(f"{path.parent.name}/{path.name}" for path in files.values()), sep="\n")
    if mount_drive:
        print("Google Drive:", copy_to_drive(files))

# %% [markdown] id="picture-text"
# ## 9. 내 그림
#
# `my_image`에 그림 경로를 적고 아래 칸만 다시 실행하세요(Colab이라면 `upload`를 켜세요). 두 모델이 차례로 답합니다. 두 백본의 특징이 **가장 비슷하다고 고른 학습 그림**은 서로 얼마나 다른가요?
# 답이 같아도 까닭은 다를 수 있고, 틀린 답의 실마리가 거기에 보이기도 합니다.

# %% tags=["shows-images"] id="picture"
my_image = ""  # @param {type:"string"}
upload = False  # @param {type:"boolean"}
if upload:
    my_image = next(iter(from_colab("files").upload()), "")
images, val = densenet.frozen.image_set, densenet.frozen.fold.val[0]
image = read_image(Path(my_image), images.white)[0] if my_image else images.images[val]
title = my_image or f"validation image, true class {images.classes[images.labels[val]]}"
plot_answer(resnet, image, f"ResNet50: {title}")
plot_answer(densenet, image, f"DenseNet121: {title}")

# %% [markdown] id="summary"
# ## 정리
#
# - 비교하려면 **백본 말고는 모두 같게** 둡니다. 그래도 결론은 구조가 아니라 체크포인트에 대한 것입니다(3).
# - 같은 그림을 본 두 모델은 **짝지어** 견줍니다. 한쪽만 맞힌 그림의 수가 증거의 전부입니다(5).
# - p가 크다는 것은 “같다”가 아니라 **“이 그림들로는 알 수 없다”**는 뜻입니다(5).
#
# 더 믿을 만한 답이 필요하다면, 저장소에서 아래 명령으로(그림폴더 자리에는 쓰신 폴더의 경로를 적습니다) 모든 그림을 다섯 겹으로 나누는 일을 다섯 번 되풀이해 견줄 수 있습니다.
#
# ```bash
# python -m transferlab compare --models resnet50 densenet121 --data 그림폴더 --folds 5 --repeats 5
# ```
#
# ## 연습 문제
#
# **1. 몇 장이면 될까?** 한쪽만 맞힌 그림이 지금의 비율을 지킨다면, p가 0.05 아래로 내려가려면 그림이 몇 배 필요할까요? 새 칸에서 `k = 2`, `k = 4`로 `stats.binomtest(k * only_resnet, k * (only_resnet + only_densenet)).pvalue`를 불러 보세요.
#
# <details><summary>답</summary>한쪽만 맞힌 그림이 a장과 b장이라면 대략 3.84 × (a + b) / (a − b)²배가 필요합니다. 그림이 k배가 되어도 표준오차는 √k분의 1로만 줄기 때문입니다. 두 수가 비슷하면 2배, 4배로는 어림없고, 같으면 몇 배로도 안 됩니다.</details>
#
# **2. 시드를 바꾸면?** 설정의 `seed`를 1, 2, 3으로 바꾸고 설정과 3~5를 다시 실행하세요(백본이 다시 돌아 시간이 걸립니다. 끝나면 되돌려 놓으세요). 두 모델의 순위가 늘 같은가요?
#
# <details><summary>답</summary>시드는 나눔과 뷰, 헤드의 시작을 모두 바꿉니다(이미 나뉘어 온 폴더라면 나눔은 그대로입니다). 순위가 뒤집힌다면 한 번 나눠 잰 차이를 백본의 차이라고 부를 수 없습니다. 교차 검증을 되풀이하는 까닭입니다.</details>
#
# **3. 헤드를 키우면?** 3의 `train_head`에 `hidden=2048`을 넣고 3, 4를 다시 실행하세요(백본은 돌지 않습니다).
#
# <details><summary>답</summary>파라미터가 네 배쯤 되지만 검증 정확도는 대개 구간 안에서만 움직입니다. 그렇다면 헤드를 키우는 것으로는 풀리지 않는 문제입니다. 끝나면 되돌려 놓으세요.</details>
