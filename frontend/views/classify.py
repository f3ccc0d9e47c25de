"""The Classify page: photos -> predictions."""

from __future__ import annotations

from typing import Any

import streamlit as st

from frontend.api_client import ApiClient, Json, Photo
from frontend.components.many_photos import show_many
from frontend.components.markdown import escape_markdown
from frontend.components.one_photo import show_one
from frontend.components.uploads import ACCEPTED, max_upload_mb, read_once, read_photo


def show_classify(client: ApiClient) -> None:
    """Take photos from four inputs and show their predictions."""
    served = client.models()
    st.title("What is in this photo?")
    model = served["models"][0]
    name, version, notes = (escape_markdown(model[key]) for key in ("name", "version", "notes"))
    st.caption(f"Model {name}, version {version} · {model['classes']} classes{notes and f' · {notes}'}")
    photos = _photos(served)
    if not photos:
        st.info(
            "Upload one photo to see its ten most likely classes and a heat map; upload many to sort and filter them."
        )
    elif len(photos) == 1:
        show_one(client, photos[0], served)
    else:
        show_many(client, photos, served)


def _photos(served: Json) -> list[Photo]:
    # A widget with a new key starts empty: Streamlit has no other way to clear an uploader.
    generation = st.session_state.setdefault("upload-generation", 0)
    max_mb = max_upload_mb(served["limits"])
    upload, folder, paste, camera = st.tabs(["Photos", "Folder", "Paste", "Camera"])
    files: list[Any] = []
    label = f"One or more photos: {escape_markdown(', '.join(served['formats']))}, up to {max_mb} MB each"
    files += upload.file_uploader(label, accept_multiple_files=True, key=f"upload-{generation}", max_upload_size=max_mb)
    label = "A folder: its photos and those of its subfolders"
    files += folder.file_uploader(
        label, ACCEPTED, accept_multiple_files="directory", key=f"folder-{generation}", max_upload_size=max_mb
    )
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
    if files and st.button("Clear all", icon=":material/delete:"):
        st.session_state["upload-generation"] += 1
        st.session_state["pasted"] = []
        st.rerun()
    return read_once("photos", ((file, read_photo) for file in files))
