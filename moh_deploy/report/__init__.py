"""The parts of reports: tables, pages, JUnit, Markdown, baseline files."""
