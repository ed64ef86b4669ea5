"""A local page over stored draws: `femtune view RUN...`. The files, in the order of the data:

runs       which runs there are, and what each was asked with
filters    a query string as a filter, a filter as conditions of SQL
database   a DuckDB in memory
index      what is filtered by, of all draws, there; a shard at a time, as shards appear
store      questions to the index and the shards: counts, pages, one draw, one problem
export     what a filter finds, as JSON lines or Parquet, a shard at a time
texts      strange characters made visible    difference   of two texts, by words
wording    what things are called, addresses  pages        what is answered to each address
guard      who may ask: the token, headers    app          the routes
serve      the port, the address, the end
"""
