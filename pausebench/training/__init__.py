"""One trainer for pretraining and finetuning."""
