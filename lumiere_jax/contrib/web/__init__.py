"""The web page: forms for every task, a job queue, and the server.

`page` and `components` need Gradio, the other modules do not.
"""
