"""Engines behind one protocol (`types.Engine`): import the one that you want, each by its file.

fake.py             a Python function as the model, bytes as tokens: for tests and for teaching
hf/engine.py        any Hugging Face causal model, with a batch that is refilled as rows end
                    (model, fused: the model; kv_slots: its cache; gumbel: noise; batch: the rows;
                    batch_size: how many; answer_tree: several continuations after a prefix)
vllm/engine.py      vLLM, in a process of its own
                    (setup: arguments and folders; requests: prompts and completions; scoring:
                    log-probabilities; worker: new weights)
openai/engine.py    a server that speaks OpenAI's completions
                    (http: transport and retries; dialects, probe, server: what servers differ in)
pairs.py            several continuations after a prefix, by an engine that scores pairs
weight_check.py     whether an engine serves the weights that it was given
model_files.py      a model's folder, configuration and tokenizer
"""
