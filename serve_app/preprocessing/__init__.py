"""Stage 2: an encoded image comes in, the uint8 crop that the model sees goes out. Knows Pillow, but not torch.

decode.py     opens a file if decoding it is bounded in time and memory
transform.py  color conversion, orientation, resize and crop
"""
