"""A local web page over stored draws: `femtune view RUN...`. The modules, in the order of the data:

runs       the runs on the command line, and their prompts
filters    query string -> filter -> SQL conditions
database   an in-memory DuckDB
index      the filterable columns of all draws, loaded by shard as shards appear
store      queries to the index and the shards: counts, pages, one draw, one problem
export     the draws of a filter, as JSON lines or Parquet, a shard at a time
texts      makes special characters visible   difference   compares two texts by words
wording    labels and links                   pages        the response for each address
guard      access control: token and headers  app          the routes
serve      the server: port, address, shutdown
"""
