"""The programs people and other programs start."""
