"""The page: a Streamlit app that knows the service only through its HTTP API.

app.py       which pages there are, and what they share
classify.py  the Classify page: where photos come from, one or many
single.py    one photo: heat map, bars, times, snippets
feedback.py  was it right: thumbs and the right class
many.py      many photos: progress, cards, table, downloads
status.py    the Status page
heatmap.py   a class activation map laid over its photo
client.py    the HTTP client; the only place that knows URLs
"""
