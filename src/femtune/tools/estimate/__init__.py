"""What a run will take, before it is begun: `femtune estimate`.

shapes       a model's layers and parameters, from its config and the headers of its weights
hardware     devices: peaks, bandwidths, and what share of them is reached
formulas     draws, tokens, FLOPs and seconds of E-steps, M-steps, evaluations
footprint    the memory of engine and M-step, and what to set where they don't fit
trial        the same from a few real draws and steps
outlook      settings to costs, as a table and in words
"""
