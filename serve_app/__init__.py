"""An image-classification service: encoded photos in, labeled scores out.

The files in the order in which a request meets them (``head -1 serve_app/*.py``):

    api.py         Stage 1/3  HTTP in, HTTP out: routes, errors, health; bodies.py reads, answers.py writes
    oip.py         Stage 1/3  the same for clients of KServe and Triton; tensors.py reads and writes
    fanout.py      Stage 1/3  the images of a request, all on their way at once
    preprocess.py  Stage 2/3  encoded bytes -> uint8 pixels of the model's crop
    batcher.py     Stage 3/3  single requests -> batches, the moment the model is free
    classifier.py  Stage 3/3  uint8 batch -> top-k labels (and class activation maps)

Around them: ``cards.py`` and ``weights.py`` find and verify a model, ``config.py`` holds every knob,
``schemas.py`` the wire types, ``errors.py`` what can go wrong. ``deployments/`` puts the
stages on Ray Serve and ``app.py`` is the whole graph on one screen. ``training/`` makes
weights. ``python -m serve_app`` starts everything on this machine.
"""
