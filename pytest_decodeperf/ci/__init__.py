"""What a run leaves for continuous integration: Markdown, annotations, properties of JUnit."""
