"""One file for one question; see README.md. Nothing imports from here but its own tests."""
