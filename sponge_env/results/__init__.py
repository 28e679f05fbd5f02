"""Results: agents compared in tables, pictures and one page."""
