"""Stage 3/3 · uint8 batch -> top-k classes and, on request, class activation maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from serve_app.schemas import ActivationMap, Classification, ClassifyItem, ModelCard


class ResNetEngine:
    """A ResNet-18 on one device, with its batch norms folded into the convolutions.

    Both that and the channels-last memory layout are exact up to float32 rounding, and save
    a CPU work and memory traffic.
    """

    def __init__(self, model: ResNet, card: ModelCard, device: str | None = None) -> None:
        """Prepare a model; it is changed in place.

        Args:
            model: In eval mode.
            card: The model's transform.
            device: A torch device; by default CUDA where there is one, else the CPU.
        """
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.crop_px = card.transform.crop_px
        _fold_batch_norms(model)
        model.to(self.device, memory_format=torch.channels_last)
        self._features = nn.Sequential(*list(model.children())[:-2])
        self._weight, self._bias = model.fc.weight.detach(), model.fc.bias.detach()
        # Pixels arrive as 0-255, mean and std are meant for 0-1.
        self._mean = (torch.tensor(card.transform.mean, device=self.device) * 255).view(1, 3, 1, 1)
        self._std = (torch.tensor(card.transform.std, device=self.device) * 255).view(1, 3, 1, 1)

    def warm_up(self, batch: int) -> None:
        """Pay for lazy initialisation before the first request does."""
        blank = np.zeros((self.crop_px, self.crop_px, 3), np.uint8)
        for size in {1, batch}:
            self.classify([ClassifyItem(blank, 1, "top")] * size)

    @torch.inference_mode()
    def classify(self, items: Sequence[ClassifyItem]) -> list[Classification]:
        """Classify a batch; results keep its order.

        A class activation map costs one product of the last feature map with one row of
        the last layer: the head is average-pool -> linear, so the map's mean plus the
        bias is the logit, exactly (tests/unit/test_classifier.py::test_map_adds_up).
        """
        features = self._features(self._normalise(np.stack([item.pixels for item in items])))
        logits = torch.addmm(self._bias, features.mean((2, 3)), self._weight.T)
        probabilities = logits.softmax(1)
        entropy = torch.special.entr(probabilities).sum(1).tolist()
        k = min(max(2, *(item.top_k for item in items)), probabilities.shape[1])
        best = probabilities.topk(k)
        results = []
        for i, (item, scores, ids) in enumerate(zip(items, best.values.tolist(), best.indices.tolist(), strict=True)):
            explained = ids[0] if item.explain == "top" else item.explain
            results.append(
                Classification(
                    class_ids=tuple(ids[: item.top_k]),
                    scores=tuple(scores[: item.top_k]),
                    margin=scores[0] - scores[1],
                    entropy=entropy[i],
                    activation_map=None if explained is None else self._map(features[i], logits[i], explained),
                )
            )
        return results

    def _normalise(self, pixels: np.ndarray) -> Tensor:
        """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in channels-last memory, on the device."""
        # The view is channels-last already; nothing is copied but the bytes to the device.
        batch = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
        return batch.float().sub_(self._mean).div_(self._std)

    def _map(self, features: Tensor, logits: Tensor, class_id: int) -> ActivationMap:
        values = torch.einsum("c,chw->hw", self._weight[class_id], features)
        return ActivationMap(class_id, values.cpu().numpy(), self._bias[class_id].item(), logits[class_id].item())


def _fold_batch_norms(model: ResNet) -> None:
    """Merge each batch norm into the convolution before it."""

    def fold(owner: nn.Module, conv: str, norm: str) -> None:
        setattr(owner, conv, fuse_conv_bn_eval(getattr(owner, conv), getattr(owner, norm)))
        setattr(owner, norm, nn.Identity())

    fold(model, "conv1", "bn1")
    for block in model.modules():
        if isinstance(block, BasicBlock):
            fold(block, "conv1", "bn1")
            fold(block, "conv2", "bn2")
            if block.downsample is not None:
                fold(block.downsample, "0", "1")
