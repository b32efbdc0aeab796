"""What people would use instead, set up as a competent user would: a file each."""
