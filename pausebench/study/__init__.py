"""A study: its arms and cells, the plan, and what it costs. Never imports the trainer."""
