"""Estimators of the meta-gradient: back-propagation through windows and whole lives, ES and PES."""
