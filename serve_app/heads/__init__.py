"""Heads: classes that a user teaches from a few photos, as a small linear layer on the embeddings of the backbone.

Embeddings of labeled photos come in; a head that names the classes of further embeddings goes out, with a report on
how good it is. Nothing here knows HTTP, Ray or torch. Files in the order data meets them:

names.py       which names heads and classes may have
examples.py    one taught photo: its embedding, its class, its origin
fit.py         examples -> head and report; the only process that needs scikit-learn is the one that fits
folds.py       near duplicates, and folds that never separate them
scores.py      cross-validated logistic regression: strength, out-of-fold logits, temperature
unknown.py     distance to the taught photos, and the threshold for "none of these"
label_errors.py  examples that probably have the wrong class
report.py      what a fit says about itself, as types
taught.py      the head as it serves: classes, class maps and similar photos of one embedding
stored.py      what the files of a version hold, as types
versions.py    the folders of versions
pointers.py    the small files that say which version serves
reader.py      reads both, and takes damaged versions out of service
store.py       changes them: write, roll back, delete; its docstring draws the folder
registry.py    the heads that one replica holds in memory
"""
