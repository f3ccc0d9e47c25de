"""The Classify page: where photos come from, one or many."""

from __future__ import annotations

from typing import Any

import streamlit as st

from frontend.client import Client, Json, Photo
from frontend.many import show_many
from frontend.single import show_single


def show_classify(client: Client) -> None:
    """Take photos in, show what the model sees in them.

    Raises:
        ServerDownError: The API does not answer.
    """
    served = client.models()
    st.title("What is in this photo?")
    _show_model(served["models"][0])
    photos = _photos(served)
    if not photos:
        st.info("Drop one photo to see its ten likeliest classes and where the model looked; drop many to sort them.")
    elif len(photos) == 1:
        show_single(client, photos[0], served)
    else:
        show_many(client, photos, served)


def _show_model(model: Json) -> None:
    caption = f"Model {model['name']}, version {model['version']} · {model['classes']} classes"
    if model["notes"]:
        caption += f" · {model['notes']}"
    st.caption(caption)


def _photos(served: Json) -> list[Photo]:
    """Everything the user gave, from all four ways in."""
    # A new number makes new, empty widgets: Streamlit's way to clear an uploader.
    round_number = st.session_state.setdefault("round", 0)
    most = served["limits"]["max_image_bytes"] // 2**20
    kinds = [*served["formats"], "jpg", "tif"]
    upload, folder, paste, camera = st.tabs(["Photos", "Folder", "Paste", "Camera"])
    given: list[Any] = []
    given += upload.file_uploader(
        f"One photo or many: {', '.join(served['formats'])}, up to {most} MB each",
        accept_multiple_files=True,
        key=f"upload-{round_number}",
        max_upload_size=most,
    )
    given += folder.file_uploader(
        "A folder: every photo in it and below",
        type=kinds,
        accept_multiple_files="directory",
        key=f"folder-{round_number}",
        max_upload_size=most,
    )
    with paste:
        pasted = st.chat_input(
            "Click here, paste a picture (Ctrl+V) and press Enter", accept_file="multiple", file_type=kinds
        )
        if pasted and pasted.files:
            st.session_state.setdefault("pasted", []).extend(pasted.files)
        given += st.session_state.get("pasted", [])
    with camera:
        if st.toggle("Use the camera", key=f"camera-on-{round_number}"):  # asks for permission only then
            taken = st.camera_input("Take a photo", key=f"camera-{round_number}")
            given += [taken] if taken else []
    if given and st.button("Clear all", icon=":material/delete:"):
        st.session_state["round"] += 1
        st.session_state["pasted"] = []
        st.rerun()
    # Hashing a folder's bytes on each rerun would be felt; Streamlit numbers its files.
    known: dict[str, Photo] = st.session_state.setdefault("photos", {})
    photos = {file.file_id: known.get(file.file_id) or Photo(file.name, file.getvalue()) for file in given}
    st.session_state["photos"] = photos
    return list(photos.values())
