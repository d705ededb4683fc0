"""What the report is made of: reading files, numbers in words, charts, tables, the page's template. Floor 0."""
