"""Generated data: counting and relay, invented English. Nothing is downloaded."""
