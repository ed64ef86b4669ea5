"""Reading of files into rows.

kinds        what a file is, by its name
streams      its bytes and text: compression, encoding, files that are not what their name says
lines        JSON lines, JSON
separated    tables of separated cells: .csv, .tsv
columnar     Parquet, Arrow, folders of `datasets.save_to_disk`
reading      any of these, or a folder of shards
"""
