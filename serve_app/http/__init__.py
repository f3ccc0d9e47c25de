"""Stage 1: an HTTP request comes in, its images go to the router as ``ClassifyRequest``, JSON goes out.

Knows FastAPI and Starlette, but not Ray. The files in the order in which a request meets them:

    proxy_middleware.py       around Ray Serve's application: headers that Ray cannot decode
    middleware.py             request id, CORS, API key, admission
    auth.py                   API keys
    rate_limit.py             images per second and API key
    admission.py              admission control
    app.py                    the FastAPI application, errors as problem+json
    classify.py               POST /v1/classify, POST /predict
    embed.py                  POST /v1/embed
    parameters_middleware.py  query length, the header X-Warnings
    uploads.py                request body -> encoded images
    limited_request.py        a body within its limits; content_coding.py undoes gzip and deflate
    form_body.py              multipart forms; form_names.py reads their names
    json_body.py              JSON within bounds; base64_images.py reads its images and their URLs
    unknown_parameters.py     names what was ignored
    negotiation.py            Accept -> JSON, JSON lines or binary
    fan_out.py                one request -> one task per image; url_images.py has those by URL fetched
    responses.py              results -> JSON
    schemas.py                the JSON types
    oip.py                    Open Inference Protocol, /v2; oip_tensors.py reads and writes its tensors
    hugging_face.py           POST /, as Hugging Face's inference servers have it
    torchserve.py             /predictions, /ping and /models, as TorchServe has them
    one_image.py              classifies the only image of a request, for these two
    model_names.py            model and version in a path -> variant
    error_forms.py            errors in the form of the path's protocol
    jobs/                     /v1/jobs
    heads/                    /v1/heads, and what heads say about the images of other routes
    feedback.py               POST /v1/feedback
    status.py                 health, models, status
    service.py                what this package needs from the deployment around it
    openapi.py                completes the OpenAPI document; openapi_examples.py holds its examples
"""
