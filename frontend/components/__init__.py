"""Parts of pages: uploads and results come in from the views; widgets, charts and text go out to the browser.

sign_in.py      OpenID Connect sign-in, where it is configured
uploads.py      uploaded files -> photos, read once per session
one_photo.py    one photo's predictions, timings and code snippets, with heat_map.py and feedback.py
many_photos.py  many photos' progress, cards and table, with thumbnails.py
problems.py     the API's errors as text          downloads.py  download buttons
"""
