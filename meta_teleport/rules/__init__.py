"""The contract of a rule, and the rules that are written by hand."""
