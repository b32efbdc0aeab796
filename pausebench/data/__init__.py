"""From source rows to batches: worlds, tokenizer, rows for pretraining and finetuning."""
