"""Optimizers, schedules and what is known of each parameter: values that a Run holds."""
