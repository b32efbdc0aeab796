"""pausebench beside transformers and litgpt: the same work, in turns, in one run on one machine.

    python -m tests.benchmarks.compare                                  # everything, on generated English
    python -m tests.benchmarks.compare --work pretrain finetune --data DIR
    python -m tests.benchmarks.compare --model tiny --vocab-size 2000 --steps 1 --repeats 1    # does it run here?

docs/benchmarks.md says what is measured and why it is fair.
"""
