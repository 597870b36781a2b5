"""One HTML page of all records: python -m bench.report --where dataset=halftone --out page.html

It opens from disk without a network: tables, curves, fronts, galleries, failures, provenance and commands. Which
images are shown is decided by a rule (`bench.report.gallery`) that the page states; what does not fit its size limit
is left out, and it says so. `gather` reads the records, `page` writes them, `figures` draws the same data for papers.
"""
