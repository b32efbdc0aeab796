"""One file per command: builds the objects in reading order, calls one method."""
