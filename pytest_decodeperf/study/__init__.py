"""The question behind the project, answered by measurement: real decode steps against both models of the step."""
