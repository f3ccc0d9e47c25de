"""Programs that classify a photo with a head, for users to copy."""

from __future__ import annotations

from urllib.parse import urlsplit

CURL = "curl {option}-F images=@photo.jpg '{url}/v1/classify?head={head}'"
PYTHON = """\
{import_os}import requests

with open("photo.jpg", "rb") as photo:
    response = requests.post("{url}/v1/classify?head={head}", files={{"images": photo}}{headers})
response.raise_for_status()
answer = response.json()["results"][0]["heads"]["{head}"]
if answer["none_of_these"]:
    print("none of these; the nearest are:")
for prediction in answer["predictions"]:
    print(f"{{prediction['score']:6.1%}}  {{prediction['label']}}")
"""
INFERENCE_CLIENT = """\
{import_os}from huggingface_hub import InferenceClient  # pip install huggingface_hub

client = InferenceClient(model="{url}/models/{head}"{token})
for prediction in client.image_classification("photo.jpg"):
    print(f"{{prediction.score:6.1%}}  {{prediction.label}}")
"""
TRITONCLIENT = """\
{import_os}import numpy as np
import tritonclient.http as triton  # pip install 'tritonclient[http]'

client = triton.InferenceServerClient("{address}"{ssl})
with open("photo.jpg", "rb") as photo:
    pixels = np.array([[photo.read()]], dtype=object)
image = triton.InferInput("image", [1, 1], "BYTES").set_data_from_numpy(pixels)
result = client.infer("{head}", [image]{headers})
for label, score in zip(result.as_numpy("label")[0], result.as_numpy("score")[0]):
    print(f"{{score:6.1%}}  {{label.decode()}}")
"""
PROGRAMS = {"curl": CURL, "Python": PYTHON, "InferenceClient": INFERENCE_CLIENT, "tritonclient": TRITONCLIENT}


def head_programs(url: str, head: str, needs_key: bool) -> dict[str, str]:
    """Return the text of each program by the name of the tool that it needs.

    Args:
        url: Base URL of the API as users reach it.
        head: The head's name, as ``check_head_name`` accepts it.
        needs_key: Whether the API wants a key; the programs read it from the environment's API_KEY.
    """
    parts = urlsplit(url)
    key = 'os.environ["API_KEY"]'
    blanks = {
        "url": url,
        "head": head,
        "address": parts.netloc + parts.path,
        "ssl": ", ssl=True" if parts.scheme == "https" else "",
        "option": '-H "X-API-Key: $API_KEY" ' if needs_key else "",
        "import_os": "import os\n\n" if needs_key else "",
        "headers": f', headers={{"X-API-Key": {key}}}' if needs_key else "",
        "token": f", token={key}" if needs_key else "",
    }
    return {tool: text.format(**blanks) for tool, text in PROGRAMS.items()}
