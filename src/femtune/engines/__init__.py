"""Engines behind one protocol (`types.Engine`): import the one that you want, each by its file.

fake.py            a Python function as the model, bytes as tokens: for tests and for teaching
engine.py    any Hugging Face causal model, with a batch that is refilled as rows end
                   (causal, fused: the model; slots: its cache; gumbel: noise; batch: the rows;
                   rows: how many; tree: several continuations after a prefix)
pairs.py           several continuations after a prefix, by an engine that scores pairs
engine.py            vLLM, in a process of its own
engine.py          a server that speaks OpenAI's completions
                   (http: transport and retries; dialects, handshake, server: what servers differ in)
"""
