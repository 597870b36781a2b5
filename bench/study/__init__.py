"""A blind preference study: a static page of image pairs, and what its answers say.

`python -m bench.study make` writes study.html, which names no method, and key.json, which does and stays at home.
`python -m bench.study read` joins the raters' result files with the key and with the automatic metrics.
"""
