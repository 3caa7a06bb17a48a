"""The program: commands, flags, what is printed."""
