"""What claims share: training loops, intervals, tables, figures, command lines."""
