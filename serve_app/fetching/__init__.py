"""Images by URL: an allowed URL comes in, the encoded file goes out, with the bounds of an upload.

Knows sockets and HTTP, but neither Ray nor the service's own API. serve_app/image_url.py reads the URL before:

    fetch.py      one image, with redirects, limits and a time; what went wrong, for the client and for the log
    addresses.py  the addresses that a name may lead to
"""
