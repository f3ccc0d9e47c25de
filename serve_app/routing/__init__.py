"""Chooses the model variant that classifies an image, and sends images to it in groups.

Images come in as ``ClassifyRequest``, results go out as ``ClassifyResult``. Knows neither Ray nor HTTP.

    traffic_split.py  shares of the variants, by chance or by client
    router.py         choice, failover, live changes of the shares
    variant.py        one variant: grouping of calls, state, availability
    shadow.py         copies of images for a variant whose results are compared and never returned
"""
