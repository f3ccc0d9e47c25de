"""Fewer operations with the same answer: batch norms merged into the convolutions before them."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock


def fold(model: ResNet) -> ResNet:
    """Merge each batch norm into its convolution, in place; exact up to float32 rounding.

    Args:
        model: In eval mode.

    Returns:
        The same model, with identities where its batch norms were.
    """
    _merge(model, "conv1", "bn1")
    for block in model.modules():
        if isinstance(block, BasicBlock):
            _merge(block, "conv1", "bn1")
            _merge(block, "conv2", "bn2")
            if block.downsample is not None:
                _merge(block.downsample, "0", "1")
    return model


def _merge(owner: nn.Module, conv: str, norm: str) -> None:
    setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
    setattr(owner, norm, nn.Identity())
