"""What can be typed: options, groups, the schema of every command and its help. Imports errors alone."""
