"""Run folders and what is read from them. Never imports torch or the trainer."""
