"""What docs/findings.md is made of: experiments -> CSV -> pictures and tables.

experiments   what is run, and what is drawn of it: the file to edit
running       an experiment's runs, and the rows of their metrics
numbers       the CSV, read back; means over seeds
tables        numbers as Markdown, which docs/hooks.py puts into the page
pictures      numbers as SVG, in docs/pictures
"""
