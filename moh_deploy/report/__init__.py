"""What reports are made of: tables, pages, JUnit, Markdown, baseline files."""
