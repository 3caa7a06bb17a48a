"""The symmetries found in models of other libraries."""
