"""How good taught heads are: accuracy, intervals, label errors and unknown photos, on labeled photos.

photos.py        a folder or tar of photos -> embeddings, computed once
experiments.py   draws of photos -> what a fit says, and what is true on the photos that it did not get
__main__.py      the tables
"""
