"""`femtune report`: what a run learnt, on one page that can be read anywhere.

texts       what models and data say, made safe to show
record      a run directory -> its settings, history, and how it stands
contenders  who is measured: the base, baselines, schemes; over seeds, a mean
tally       shards of E-steps -> counts, lengths, a sample: columns, never a draw at a time
judged      evaluations -> confusion, reliability, before and after
figures     numbers -> pictures (Vega-Lite)
parts       what a page is made of
opening, sections, closing   what it says, from the first screen to the last table
page        all of it -> HTML (report.html.j2, style.css)
"""
