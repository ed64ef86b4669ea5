"""Tasks: from the rows of a data set to problems, with the prompts and rewards that suit them.

    load        any task's data, from a file or the Hub
    judge       ratings of responses, or which of two is better
    summarize   the same for summaries
    choice      multiple choice
    math        numbers and expressions
    schemas     published schemas of rows             frames      a task's knowledge about a problem
    columns     names of columns, and their cells     codings     what a column of labels means
    sides       two responses to one conversation

The task `table` is any file with prompt and answer; see problems.load_problems.
"""
