"""`femtune report`: the results of a run on one self-contained HTML page.

texts        model and data texts, made safe to show
record       a run directory -> its settings, history and state
contenders   the models compared: the base, baselines and schemes; a mean over seeds
tally        E-step shards -> counts, lengths and a sample, read by column
predictions  evaluations -> confusion, reliability, before and after
figures      numbers -> pictures (Vega-Lite)
parts        the building blocks of a page: figures, tables, sections
summary, sections, details   the page's text, from the first screen to the last table
render       all of it -> HTML (report.html.j2, style.css)
"""
