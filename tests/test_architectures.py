"""More than a dozen architectures from timm: each builds, is cut, trains, is saved and loads back, and computes the same throughout."""

import pytest
import torch
from torch.nn import functional as F

from transferlab import backbones
from transferlab.artifacts import load_model, save_run
from transferlab.backbones import fold_batchnorm, make_head, normalize, set_head, split_at
from transferlab.train import TrainResult, train

# timm's name -> (pixels a side, what makes it take so few). The smallest input that each takes.
SMALL = {
    "vgg16.tv_in1k": (32, {}), "resnet18.tv_in1k": (32, {}), "resnet50.tv_in1k": (32, {}), "densenet121.tv_in1k": (32, {}),
    "efficientnet_b0.ra_in1k": (32, {}), "efficientnet_b3.ra2_in1k": (32, {}), "tf_efficientnet_lite0.in1k": (32, {}),
    "tf_efficientnet_lite1.in1k": (32, {}), "tf_efficientnet_lite2.in1k": (32, {}), "mobilenetv3_large_100.ra_in1k": (32, {}),
    "convnext_tiny.fb_in1k": (32, {}), "vit_small_patch16_224.augreg_in21k_ft_in1k": (32, {"img_size": 32}),
    "vit_base_patch16_224.augreg2_in21k_ft_in1k": (32, {"img_size": 32}),
    "vit_small_patch14_dinov2.lvd142m": (28, {"img_size": 28}), "swin_tiny_patch4_window7_224.ms_in1k": (224, {}),
}
