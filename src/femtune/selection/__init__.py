"""The M-step that trains no weights: it chooses the worked examples in the prompt.

search.py    which set of examples, given how right each one's answers are: a race, then swaps
answers.py   the answers under a set of examples: asked once, stored, and counted against a budget
step.py      candidates in, a model folder of examples out
"""
