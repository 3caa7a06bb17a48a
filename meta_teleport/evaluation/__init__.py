"""Is it any good? Held-out tasks, baselines, controls, intervals, figures."""
