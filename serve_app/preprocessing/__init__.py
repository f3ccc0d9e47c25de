"""Stage 2: an encoded image comes in, the uint8 crop that the model sees goes out. Knows Pillow, but not torch.

formats.py      accepted formats, their suffixes, and the names of others
decode.py       opens a file if decoding it is bounded in time and memory
limits.py       the limit on pixels
orientation.py  the orientation in EXIF or XMP
jpeg.py, png.py, bmp.py, tiff.py
                headers, read without Pillow
heif.py         AVIF and HEIC; isobmff.py reads their boxes, bitstream.py the sizes in HEVC and AV1
depth.py        more than 8 bits per sample, floats, signed numbers
color.py        any mode to RGB
transform.py    orientation, resize and crop
thumbnail.py    a small upright picture, for the page; needs nothing else of the service
"""
