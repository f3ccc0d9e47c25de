"""Turn a batch of stored images into random training crops, on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - PyTorch's own convention
from torch import Tensor

WHITE_AREA = (1.2, 3.0)  # area of the crop on white, relative to the image
DETAIL = (0.25, 0.5)  # side that is left of an image of low resolution, as a fraction


@dataclass(frozen=True)
class Augmentation:
    """Ranges from which each crop's geometry and colors are drawn."""

    area: tuple[float, float] = (0.25, 1.5)  # fraction of the image, log-uniform; above 1 mirrors it around its border
    aspect: float = 4 / 3  # largest width/height ratio of the crop, and of its inverse
    rotate_deg: float = 10.0  # largest rotation in either direction
    color: float = 0.3  # largest relative change of brightness, contrast and saturation
    sharpness: tuple[float, float] = (-0.8, 2.0)  # amount of the unsharp mask; negative values blur
    noise: float = 10.0  # largest standard deviation of per-pixel noise, in units of 0-255
    gray: float = 0.05  # fraction of images that become gray
    flip: bool = True  # mirror half of the images left to right
    white: float = 0.0  # fraction of images that shrink onto a white background
    low_resolution: float = 0.0  # fraction of images that lose detail, as small pictures that are enlarged


def augment(images: Tensor, crop_px: int, options: Augmentation, generator: torch.Generator) -> Tensor:
    """Cut one random crop from each image and vary its colors and sharpness.

    Images are uint8, (N, 3, S, S), RGB; crops are float32, (N, 3, crop_px, crop_px), channels-last, 0-255. The
    generator is on the images' device; the same state gives the same crops.
    """
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(n, *shape, device=images.device).uniform_(low, high, generator=generator)

    pixels = images.float().contiguous(memory_format=torch.channels_last)
    pixels = _sharpen(pixels, uniform(*options.sharpness, 1, 1, 1))
    if options.low_resolution:
        pixels = _lose_detail_of_some(pixels, uniform(0, 1) < options.low_resolution, generator)

    area = torch.exp(uniform(math.log(options.area[0]), math.log(options.area[1])))
    ratio = torch.exp(uniform(-math.log(options.aspect), math.log(options.aspect)))
    on_white = uniform(0, 1) < options.white if options.white else None
    if on_white is not None:
        area = torch.where(on_white, uniform(*WHITE_AREA), area)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    center_x = uniform(-1, 1) * (1 - width).abs()
    center_y = uniform(-1, 1) * (1 - height).abs()
    if options.flip:
        width = width * torch.sign(uniform(-1, 1))
    angle = uniform(-1, 1) * math.radians(options.rotate_deg)
    cos, sin = torch.cos(angle), torch.sin(angle)
    matrices = torch.stack((width * cos, -height * sin, center_x, width * sin, height * cos, center_y), 1)
    grid = F.affine_grid(matrices.view(n, 2, 3), [n, 3, crop_px, crop_px], align_corners=False)
    crops = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if on_white is not None:
        outside = (grid.abs() > 1).any(-1) & on_white.view(n, 1, 1)
        crops = crops.masked_fill(outside[:, None], 255)

    strength = options.color
    crops = crops * uniform(1 - strength, 1 + strength, 1, 1, 1)
    mean = crops.mean((1, 2, 3), keepdim=True)
    crops = mean + (crops - mean) * uniform(1 - strength, 1 + strength, 1, 1, 1)
    luma = (crops * crops.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    saturation = uniform(1 - strength, 1 + strength, 1, 1, 1)
    saturation[uniform(0, 1) < options.gray] = 0
    crops = luma + (crops - luma) * saturation
    if options.noise:
        noise = torch.empty_like(crops).normal_(generator=generator)
        crops = crops + noise * uniform(0, options.noise, 1, 1, 1)
    return crops.clamp_(0, 255).contiguous(memory_format=torch.channels_last)


def lose_detail(pixels: Tensor, px: int) -> Tensor:
    """Shrink float images, (N, 3, S, S), to a side of ``px`` and enlarge them again."""
    small = F.interpolate(pixels, px, mode="bilinear", antialias=True)
    return F.interpolate(small, pixels.shape[-1], mode="bilinear", antialias=True)


def _lose_detail_of_some(pixels: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    share = torch.empty(1, device=pixels.device).uniform_(*DETAIL, generator=generator).item()
    coarse = lose_detail(pixels, max(1, round(pixels.shape[-1] * share)))
    return torch.where(chosen.view(-1, 1, 1, 1), coarse, pixels)


def _sharpen(pixels: Tensor, amount: Tensor) -> Tensor:
    """Apply an unsharp mask with a 3x3 binomial blur: ``amount`` > 0 sharpens, -1 returns the blurred image."""
    kernel = pixels.new_tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return (pixels + (pixels - blurred) * amount).clamp_(0, 255)
