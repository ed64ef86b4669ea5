"""Tasks: from the rows of a data set to problems, and what goes with them.

    load        any task's data, from a file or the Hub
    judge       ratings of responses, or which of two is better
    summarize   the same of summaries
    choice      multiple choice
    math        numbers and expressions
    schemas     the published forms of rows            frames      what a problem's task knows of it

The task `table` is any file with prompt and answer: problems.load_problems.
"""
