"""Devices, hosts and the process that a training runs on."""
