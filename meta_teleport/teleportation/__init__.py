"""Where on the orbit to go."""
