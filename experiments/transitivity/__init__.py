"""Whether one orbit fills a level set."""
