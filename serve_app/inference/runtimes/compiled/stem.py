"""What the stems of both runtimes share: which rows are needed, and the normalization of a row.

A stem convolves an image (7 x 7, stride 2) and takes the maximum of its result (3 x 3, stride 2). A ring holds the
last three rows of the result.
"""

from __future__ import annotations

import numpy as np

from serve_app.inference.runtimes.compiled.llvm import jit_inlined

BORDER = 3  # pixels of zeros on each side of the image


@jit_inlined
def needed_rows(begin: int, end: int, conv_side: int, side: int) -> tuple[int, int, int]:
    """Return the first row of the convolution that some rows of the maximum need, and begin and end of the image's."""
    first = max(2 * begin - 1, 0)
    return first, max(2 * first - BORDER, 0), min(2 * min(2 * end, conv_side) + 2, side)


@jit_inlined
def normalize_row(source: np.ndarray, normalization: np.ndarray, target: np.ndarray) -> None:
    """Normalize a row of pixels: uint8, (3 S), and float32, (2, 3 S), become float32, (3 S or more)."""
    for x in range(len(source)):
        target[x] = np.float32(source[x]) * normalization[0, x] + normalization[1, x]


@jit_inlined
def pooled_rows(ring: int, row_bytes: int, y: int, conv_side: int) -> tuple[int, int, int]:
    """Return the addresses of the three rows in the ring whose maximum is row y."""
    above, below = max(2 * y - 1, 0), min(2 * y + 1, conv_side - 1)
    return ring + above % 3 * row_bytes, ring + 2 * y % 3 * row_bytes, ring + below % 3 * row_bytes
