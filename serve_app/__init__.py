"""An image-classification service: encoded photos in, labels with scores out.

The packages in the order in which a request meets them:

    http/           stage 1: HTTP, admission control, JSON
    routing/        which model variant classifies the image
    preprocessing/  stage 2: encoded bytes -> uint8 crop
    inference/      stage 3: crops -> classes and activation maps
    deployments/    the three stages as Ray Serve deployments; app.py is the graph

Around them:

    observability/  metrics, traces, the prediction log, feedback
    batch/          batch prediction on Ray Data
    analytics/      ETL and bounds of the prediction log
    training/       weights from labeled images
    release/        `serve-app deploy`
    launcher/       `serve-app run`
    cli/            the command line

``messages.py`` holds the two types that travel between the stages, ``config.py`` every setting, ``errors.py`` every
error, ``prediction_log_format.py`` the files of the prediction log, ``zip_entries.py`` the names of the files in a zip,
``csv_text.py`` the rule for text in a CSV.
"""
