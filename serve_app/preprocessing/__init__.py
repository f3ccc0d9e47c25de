"""Stage 2: an encoded image in, the uint8 crop that the model sees out. Pillow only."""
