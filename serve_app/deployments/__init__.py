"""The three stages as Ray Serve deployments, and the calls between them.

HTTP requests come in through Ray Serve, crops and results cross between replicas. Only this package, app.py and the
launcher import Ray Serve.

    ingress.py        stage 1, HTTP
    handles.py        calls to the next stage
    preprocessor.py   stage 2, decoding
    classifier.py     stage 3, the model
    one_process.py    all stages in one process
    metrics.py        Prometheus metrics of the ingress
    job_actor.py      the actor that works through batch jobs
    ray_internals.py  every use of a private Ray API
"""
