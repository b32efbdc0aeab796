"""``python -m pausebench`` is the ``pausebench`` command."""

from pausebench.cli import main

if __name__ == "__main__":
    main()
