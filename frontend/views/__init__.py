"""One file per page, with one function that shows it; ``frontend/app.py`` registers the functions.

The functions raise the API client's ServerDownError and ProblemError; ``frontend/app.py`` shows them.

The folder is not called ``pages``: Streamlit serves every file of a ``pages`` folder beside the entry script as a page
of its own until the entry script has called ``st.navigation`` once, and so without the entry script's sign-in.
"""
