"""Run folders: their files, names, locks, parents, and the Slurm jobs behind them. Never imports torch."""
