"""The decoder: GPT-2 style, hidden states out, the attention mask an argument of forward."""
