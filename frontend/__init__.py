"""The web page: a Streamlit app that reaches the service only through its HTTP API.

Photos, folders and zips come in from a browser; predictions, heat maps, job results and charts go out to it.

app.py                     entry script: sign-in, navigation, errors that every page shares
views/                     one file per page: classify, batch_jobs, evaluate, analytics, status
components/                parts of pages
api_client.py              the HTTP client; the only file that knows URLs and httpx2
samples/                   photos to try, and whose they are
zipped_photos.py           a zip -> the photos in it
labeled_photos.py          labeled photos and their results -> metrics, for the Evaluate page
prediction_log_reader.py   the prediction log's files -> tables, each row once, for the Analytics page
prediction_log_queries.py  queries over these tables
feedback_votes.py          the votes of people -> counts
"""
