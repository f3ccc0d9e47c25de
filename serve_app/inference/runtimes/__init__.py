"""Stage 3/3 · ways to run the same ResNet-18, from raw pixels to its last feature map."""
