"""Additions to schemes that are not yet established: their laws are tested, their worth is not settled.

memory        memo, every, gain      remember right draws, and ask where that pays
reweighting   hard, resample, doubt  count some problems or draws more than others
answers       expected, reasons      use the probability of the answer after a rationale
"""
