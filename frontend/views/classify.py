"""The Classify page: photos -> predictions."""

from __future__ import annotations

from typing import Any

import streamlit as st

from frontend.api_client import ApiClient, Json, Photo
from frontend.components.many_photos import show_many
from frontend.components.markdown import escape_markdown
from frontend.components.model_card import show_model_card
from frontend.components.one_photo import show_one
from frontend.components.samples import choose_sample, forget_sample
from frontend.components.taught_classes import choose_heads
from frontend.components.uploads import ACCEPTED, max_upload_mb, read_once, read_photo, read_zip
from frontend.zipped_photos import ZipError


def show_classify(client: ApiClient) -> None:
    """Take photos from six inputs and show their predictions."""
    with st.spinner("Reaching the service…"):
        served = client.models()
    model = served["models"][0]
    st.title("What is in this photo?")
    name, version = escape_markdown(model["name"]), escape_markdown(model["version"])
    st.caption(f"Model {name}, version {version}, knows {model['classes']:,} classes; the side panel lists them.")
    show_model_card(client, model)
    taught = choose_heads(served)
    inputs, samples = st.columns([3, 2], gap="large")
    try:
        with inputs:
            photos = _photos(served)
    except ZipError as error:
        st.error(escape_markdown(error), icon=":material/folder_zip:")
        return
    if photos:
        forget_sample()
    else:
        with samples:
            photos = choose_sample()
    if len(photos) == 1:
        show_one(client, photos[0], served, taught)
    elif photos:
        show_many(client, photos, served, taught)


def _photos(served: Json) -> list[Photo]:
    # A widget with a new key starts empty: Streamlit has no other way to clear an uploader.
    generation = st.session_state.setdefault("upload-generation", 0)
    max_mb = max_upload_mb(served["limits"])
    upload, folder, archive, paste, camera = st.tabs(["Photos", "Folder", "Zip", "Paste", "Camera"])
    files: list[Any] = []
    label = f"One or more photos: {escape_markdown(', '.join(served['formats']))}, up to {max_mb} MB each"
    files += upload.file_uploader(label, accept_multiple_files=True, key=f"upload-{generation}", max_upload_size=max_mb)
    label = "A folder: its photos and those of its subfolders"
    files += folder.file_uploader(
        label, ACCEPTED, accept_multiple_files="directory", key=f"folder-{generation}", max_upload_size=max_mb
    )
    zipped = archive.file_uploader("A zip of photos", "zip", key=f"zip-{generation}")
    with paste:
        hint = "Click here, paste a picture (Ctrl+V) and press Enter"
        pasted = st.chat_input(hint, accept_file="multiple", file_type=ACCEPTED)
        if pasted and pasted.files:
            st.session_state.setdefault("pasted", []).extend(pasted.files)
        files += st.session_state.get("pasted", [])
    with camera:
        # The browser asks for permission as soon as the camera widget is there.
        if st.toggle("Use the camera", key=f"camera-on-{generation}"):
            picture = st.camera_input("Take a photo", key=f"camera-{generation}")
            files += [picture] if picture else []
    if (files or zipped) and st.button("Clear all", icon=":material/delete:"):
        st.session_state["upload-generation"] += 1
        st.session_state["pasted"] = []
        st.rerun()
    readers = [(file, read_photo) for file in files]
    if zipped:
        readers.append((zipped, read_zip))
    with st.spinner("Reading the photos…"):
        return read_once("photos", readers)
