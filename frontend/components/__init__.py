"""Parts of pages: uploads and results come in from the views; widgets, charts and text go out to the browser.

sign_in.py      OpenID Connect sign-in, where it is configured, and who may use the page
uploads.py      uploaded files -> photos, read once per session
samples.py      the sample photos, one click each
model_card.py   the served model's card and classes, in the side panel
pictures.py     photos -> small pictures for the screen, or the reason why there is none
one_photo.py    one photo's predictions, timings and code snippets, with certainty.py, heat_map.py and feedback.py
many_photos.py  many photos' progress, cards and table
markdown.py     text from outside, escaped; every name, label and error that Streamlit takes as Markdown passes it
log_notices.py  what Analytics says when there is nothing to draw, or nothing new is written
problems.py     the API's errors as text          downloads.py  download buttons
"""
