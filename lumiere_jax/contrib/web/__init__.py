"""The web page: what people ask for in a browser, checked, queued and made.

`page`, `fields`, `widgets` and `server` need Gradio, the other modules do not.
"""
