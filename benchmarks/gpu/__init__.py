"""Check and time the GPU runtime: ``python -m benchmarks.gpu``. A GPU goes in, a JSON and a Markdown report come out.

- __main__.py: runs each part in its own process, with a time limit
- common.py: models, images, timing and the journal that the parts write their results to
- checks.py: part 1, scores and heat maps against eager torchvision
- speed.py, inside.py, roofline.py: part 2, the forward pass, its stages, and the machine's limits
- compiled.py: part 3, torch.compile
- pipeline.py, decoding.py: part 4, from files to results in plain processes
- served.py: part 5, the whole service over HTTP
- report.py: the Markdown report
"""
