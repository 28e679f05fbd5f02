"""Files, what is installed, progress on the console."""
