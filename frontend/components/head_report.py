"""What a fit found out about a head, in words, and the table of confusions."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from frontend.api_client import Json
from frontend.components.confusion import confusion_chart
from frontend.components.markdown import escape_markdown
from frontend.components.taught_pictures import picture_of, show_gallery
from frontend.heads_client import HeadsClient

SHARES = {"right": "accuracy", "at least": "low", "at most": "high"}  # column -> field of an accuracy


def accuracy_text(accuracy: Json) -> str:
    """Return a measured accuracy with its interval in plain words."""
    low, high = f"{accuracy['low']:.0%}", f"{accuracy['high']:.0%}"
    return (
        f"**Right for {accuracy['correct']} of {accuracy['photos']} photos ({accuracy['accuracy']:.0%}).** "
        f"Of new photos like these, expect between {low} and {high} to be right."
    )


def show_accuracy(report: Json) -> None:
    """Show how often the head is right, and what the numbers do not say."""
    if accuracy := report["accuracy"]:
        st.success(accuracy_text(accuracy), icon=":material/verified:")
        st.caption("Each photo was tested by a head that had not been taught it, nor a nearly equal one.")
    elif report["kind"] == "one_class":
        st.info(
            "**This head has one class.** It only tells whether a photo is like the taught ones. "
            "Add a second class to tell things apart.",
            icon=":material/looks_one:",
        )
    else:
        st.info(
            "**Taught, but there are too few photos to measure how often it is right.**", icon=":material/straighten:"
        )
    for note in report["notes"]:
        st.caption(f":material/info: {escape_markdown(note)}")


def show_details(report: Json) -> None:
    """Show the accuracy of each class, and which classes are taken for which."""
    table, matrix = st.columns(2, gap="large")
    with table:
        st.markdown("**By class** · with its 95 % interval")
        percent = {name: st.column_config.NumberColumn(format="percent") for name in SHARES}
        st.dataframe(_class_table(report), hide_index=True, column_config=percent)
        if pair := report["most_confused"]:
            first, second = map(escape_markdown, pair["class_names"])
            photos = "1 photo" if pair["photos"] == 1 else f"{pair['photos']} photos"
            st.markdown(f"Most often confused: **{first}** and **{second}**, {photos}.")
    if report["confusion"]:
        with matrix:
            _show_confusion(report)


def show_photos_to_add(heads: HeadsClient, head: Json) -> None:
    """Show which photos would help most."""
    advice = head["report"]["photos_to_add"]
    if not advice:
        return
    st.subheader("Add these photos first", anchor=False)
    examples = {example["id"]: example for example in head["examples"]}
    for number, each in enumerate(advice):
        st.markdown(f"{number + 1}. {escape_markdown(each['advice'])}")
        like = [examples[id] for id in each["like"] if id in examples]
        show_gallery(
            [(picture_of(heads, example), f"Taught photo of {example['class']}") for example in like], f"like-{number}"
        )


def _show_confusion(report: Json) -> None:
    names = [each["name"] for each in report["classes"]]
    cells = [
        (true, predicted, count)
        for true, row in zip(names, report["confusion"], strict=True)
        for predicted, count in zip(names, row, strict=True)
        if count
    ]
    st.markdown("**Confusion matrix** · rows: true class, columns: predicted class")
    st.altair_chart(confusion_chart(pd.DataFrame(cells, columns=["label", "predicted", "photos"])), width="stretch")


def _class_table(report: Json) -> pd.DataFrame:
    rows = []
    for each in report["classes"]:
        accuracy = each["accuracy"]
        shares = (accuracy and round(accuracy[name], 2) for name in SHARES.values())
        rows.append((each["name"], each["photos"], *shares, each["note"] or ""))
    return pd.DataFrame(rows, columns=["class", "photos", *SHARES, "note"])
