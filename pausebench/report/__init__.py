"""From run folders to tables, figures and the page. Never imports torch or Hydra."""
