"""Examples of the OpenAPI document, by operation: one of each JSON body that a route takes or returns."""

from __future__ import annotations

from typing import Any

JSON = "application/json"
PIXEL = (  # a PNG of one black pixel, in base64
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4AWNkYGAAAAAIAAIpa33UAAAAAElFTkSuQmCC"
)
JOB = "5f4b1c0e9d8a47b6a3f2e1d0c9b8a7f6"
MODEL = {"name": "resnet18", "version": "imagenet1k-v1", "sha256": "f37072fd" * 8}
PREDICTIONS = [
    {"label": "tabby", "score": 0.61, "class_id": 281},
    {"label": "tiger cat", "score": 0.21, "class_id": 282},
]
RESULT = {
    "index": 0,
    "id": "cat.jpg",
    "status": "ok",
    "image": {"format": "jpeg", "width": 3024, "height": 4032, "orientation": 6},
    "predictions": PREDICTIONS,
    "uncertainty": {"margin": 0.4, "entropy": 1.2, "abstain": False},
    "timings_ms": {"decode": 6.1, "queue": 2.0, "model": 3.4},
    "batch_size": 16,
}
EMBEDDED = {name: value for name, value in RESULT.items() if name not in ("predictions", "uncertainty")}
EMBEDDED["embedding"] = [0.0, 1.27, 0.03]  # the first three of 512
JOB_STATE = {
    "id": JOB,
    "status": "running",
    "created": "2026-11-30T08:15:00Z",
    "source": "photos.zip",
    "top_k": 10,
    "embed": False,
    "model": MODEL,
    "progress": {"total": 8000, "done": 2560, "failed": 3},
    "eta_s": 31.2,
    "error": None,
}
ROW = {
    "path": "a/cat.jpg",
    "status": "ok",
    "predictions": PREDICTIONS,
    "uncertainty": {"margin": 0.4, "entropy": 1.2},
    "version": "imagenet1k-v1",
}
INFER_RESPONSE = {
    "model_name": "resnet18",
    "model_version": "imagenet1k-v1",
    "outputs": [
        {"name": "label", "datatype": "BYTES", "shape": [1, 2], "data": ["tabby", "tiger cat"]},
        {"name": "score", "datatype": "FP32", "shape": [1, 2], "data": [0.61, 0.21]},
        {"name": "class_id", "datatype": "INT64", "shape": [1, 2], "data": [281, 282]},
    ],
}
EXAMPLE = "968833f894684728b8972141332f20d8"
HEAD_VERSION = "000003-5f4b1c0e"
ACCURACY = {"photos": 40, "correct": 38, "accuracy": 0.95, "low": 0.83, "high": 0.99}
HEAD_SUMMARY = {
    "name": "cups",
    "version": HEAD_VERSION,
    "etag": f'"3-{HEAD_VERSION}"',
    "mine": True,
    "public": False,
    "created": "2026-11-30T08:15:00.000+00:00",
    "updated": "2026-11-30T08:20:00.000+00:00",
    "kind": "classes",
    "status": "ready",
    "labels": ["mine", "others"],
    "photos": 40,
    "accuracy": ACCURACY,
    "backbone": MODEL,
    "suggestions": 1,
}
HEAD = HEAD_SUMMARY | {
    "versions": ["000002-9f86d081", HEAD_VERSION],
    "keeps_photos": False,
    "examples": [{"id": EXAMPLE, "class": "mine", "added": "2026-11-30T08:15:00+00:00", "photo": None}],
    "report": {
        "kind": "classes",
        "photos": 40,
        "accuracy": ACCURACY,
        "classes": [{"name": "mine", "photos": 20, "accuracy": ACCURACY | {"photos": 20, "correct": 19}}],
        "confusion": [[19, 1], [1, 19]],
    },
    "warnings": None,
}
SUGGESTION = "1c5d7a90b2e84f6d93a0c4e5f6071829"
SUGGESTED_PHOTO = {
    "id": SUGGESTION,
    "class": "others",
    "caller": "bob",
    "added": "2026-11-30T08:25:00+00:00",
    "expires": "2026-12-30T08:25:00+00:00",
    "photo": None,
    "answer": {
        "version": HEAD_VERSION,
        "predictions": [
            {"label": "mine", "score": 0.71, "class_id": 0},
            {"label": "others", "score": 0.29, "class_id": 1},
        ],
        "none_of_these": False,
        "distance": 0.19,
        "max_distance": 0.27,
        "uncertainty": {"margin": 0.42, "entropy": 0.6, "abstain": False},
        "explanation": None,
        "similar": [{"id": EXAMPLE, "class": "mine", "distance": 0.19, "photo": None}],
    },
}
METADATA = {
    "name": "resnet18",
    "versions": ["imagenet1k-v1"],
    "platform": "pytorch",
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1, 1]}],
    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [-1, -1]}],
}
CONFIG = {
    "name": "resnet18",
    "platform": "pytorch",
    "max_batch_size": 64,
    "input": [{"name": "image", "data_type": "TYPE_STRING", "dims": [1]}],
    "output": [{"name": "label", "data_type": "TYPE_STRING", "dims": [-1]}],
    "dynamic_batching": {},
}

# Name of a parameter in a path -> its value.
TORCHSERVE_MODEL = {"modelName": "resnet18", "modelUrl": f"sha256:{MODEL['sha256']}"}
TORCHSERVE_VERSION = TORCHSERVE_MODEL | {
    "modelVersion": MODEL["version"],
    "workers": [{"id": "0", "status": "READY"}],
}
PARAMETERS = {"name": "resnet18", "version": "imagenet1k-v1", "job": JOB, "example": EXAMPLE, "suggestion": SUGGESTION}
# Operation and media type -> request body.
REQUESTS: dict[tuple[str, str], Any] = {
    **{
        (name, JSON): {"inputs": [{"id": "pixel", "b64": PIXEL}], "parameters": {"top_k": 3}}
        for name in ("classify", "predict")
    },
    ("embed", JSON): {"inputs": [{"id": "pixel", "b64": PIXEL}]},
    **{
        (name, JSON): {"inputs": PIXEL, "parameters": {"top_k": 2}}
        for name in ("hugging_face_classify", "hugging_face_classify_with")
    },
    ("feedback", JSON): {"request_id": "req_3a5bec64bf9e47bcab5353c3dff90e00", "index": 0, "correct": True},
    ("submit_job", JSON): {"source": "s3://bucket/photos"},
    ("share_head", JSON): {"public": True},
    ("roll_back_head", JSON): {"version": "000002-9f86d081"},
    ("relabel_example", JSON): {"class": "others"},
    ("approve_suggestions", JSON): {"ids": [SUGGESTION]},
    **{
        (name, JSON): {
            "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PIXEL]}],
            "parameters": {"top_k": 2},
        }
        for name in ("v2_infer", "v2_infer_version")
    },
}
# Operation and media type -> body of its success.
RESPONSES: dict[tuple[str, str], Any] = {
    ("classify", JSON): {
        "id": "req_3a5bec64bf9e47bcab5353c3dff90e00",
        "model": MODEL,
        "results": [RESULT],
        "summary": {"ok": 1, "failed": 0},
    },
    ("embed", JSON): {
        "id": "req_3a5bec64bf9e47bcab5353c3dff90e00",
        "model": MODEL,
        "results": [EMBEDDED],
        "summary": {"ok": 1, "failed": 0},
    },
    ("predict", JSON): [[["tabby", 0.61], ["tiger cat", 0.21]]],
    ("submit_job", JSON): JOB_STATE | {"status": "queued", "progress": {"total": None, "done": 0, "failed": 0}},
    ("list_jobs", JSON): {
        "jobs": [JOB_STATE],
        "sources": ["s3://bucket/photos"],
        "limits": {"max_zip_bytes": 500_000_000, "max_zip_entries": 100_000, "max_unpacked_bytes": 4_000_000_000},
    },
    ("get_job", JSON): JOB_STATE,
    ("cancel_job", JSON): JOB_STATE | {"status": "cancelled", "eta_s": None},
    ("get_job_results", JSON): [ROW],
    ("healthz", JSON): {"status": "ok"},
    ("readyz", JSON): {"status": "ready", "version": "imagenet1k-v1"},
    ("list_models", JSON): {
        "models": [{"variant": "main", "classes": 1000, **MODEL}],
        "limits": {"max_image_bytes": 20_971_520, "max_images": 64, "max_body_bytes": 67_108_864},
        "defaults": {"top_k": 10, "abstain_below": None},
        "formats": ["jpeg", "png", "webp", "gif", "bmp", "tiff", "avif", "heif"],
        "feedback": {"keep_images": False},
        "heads": [HEAD_SUMMARY],
    },
    ("list_labels", JSON): {"name": "resnet18", "version": "imagenet1k-v1", "labels": ["tench", "goldfish"]},
    ("get_status", JSON): {
        "model": MODEL,
        "images": {"ok": 812, "failed": 3, "in_flight": 2},
        "errors": {"unsupported_image": 3},
        "mean_batch_size": 4.2,
        "up_s": 3600.0,
    },
    ("get_usage", JSON): {
        "caller": "alice",
        "images": {"used": 12, "limit": 100, "remaining": 88, "total": 812},
        "bytes": {"used": 2_400_000, "limit": None, "remaining": None, "total": 160_000_000},
        "jobs": {"used": 1, "limit": 20, "remaining": 19, "total": None},
    },
    **{
        (name, JSON): [{"label": "tabby", "score": 0.61}, {"label": "tiger cat", "score": 0.21}]
        for name in ("hugging_face_classify", "hugging_face_classify_with")
    },
    ("list_heads", JSON): {
        "heads": [HEAD_SUMMARY],
        "backbone": MODEL,
        "keep_photos": False,
        "limits": {"max_heads": 100, "max_classes": 100, "max_photos_per_class": 500, "max_photos": 2000},
    },
    **{
        (name, JSON): HEAD
        for name in (
            *("teach_head", "get_head", "share_head", "roll_back_head"),
            *("add_examples", "relabel_example", "delete_example", "approve_suggestion", "approve_suggestions"),
        )
    },
    ("suggest_photos", JSON): {"ids": [SUGGESTION], "warnings": None},
    ("list_suggestions", JSON): {"suggestions": [SUGGESTED_PHOTO]},
    ("torchserve_ping", JSON): {"status": "Healthy"},
    ("torchserve_list_models", JSON): {"models": [TORCHSERVE_MODEL]},
    **{(f"torchserve_describe_{of}", JSON): [TORCHSERVE_VERSION] for of in ("model", "version")},
    **{
        (f"torchserve_predict{of}_{method}", JSON): {"tabby": 0.61, "tiger cat": 0.21}
        for of in ("", "_version")
        for method in ("post", "put")
    },
    ("v2_server", JSON): {
        "name": "serve_app",
        "version": "1",
        "extensions": ["binary_tensor_data", "classification", "model_configuration"],
    },
    ("v2_live", JSON): {"live": True},
    ("v2_ready", JSON): {"ready": True},
    ("v2_index", JSON): [{"name": "resnet18", "version": "imagenet1k-v1", "state": "READY", "reason": ""}],
    **{(f"v2_metadata{of}", JSON): METADATA for of in ("", "_version")},
    **{(f"v2_model_ready{of}", JSON): {"name": "resnet18", "ready": True} for of in ("", "_version")},
    **{(f"v2_config{of}", JSON): CONFIG for of in ("", "_version")},
    **{(f"v2_infer{of}", JSON): INFER_RESPONSE for of in ("", "_version")},
}
