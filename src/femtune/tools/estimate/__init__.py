"""Estimates of a run's cost before it starts: `femtune estimate`.

shapes       a model's layers and parameters, from its config and the headers of its weights
hardware     devices: peak FLOP/s, bandwidths, and achieved efficiency
formulas     draws, tokens, FLOPs and seconds of E-steps, M-steps, evaluations
memory       the memory of engine and M-step, and settings that make them fit
benchmark    measurements from a few real draws and steps
estimate     settings to costs, as a table and in words
"""
