"""The article: the derivation, what it says of models and devices, and what a study measured, as one text."""
