"""The parts of `experiments.device_visit`: its worker, and what that asks of a device."""
