"""`femtune ladder`: ways to answer, from the cheapest to training, on the same held-out problems.

rungs     the rungs in their order, and which suit a task
cost      tokens of a rung, counted from what its run stored
climb     run rung after rung within a budget; store each one that is finished
compare   paired differences between all rungs
verdict   the rule that chooses a rung: a function of the table alone
answer    answer new items like a rung
use       the command that takes the chosen rung into use
board     the table on screen, as it grows
result    the whole of it, as Python gets it and as ladder.json
"""
