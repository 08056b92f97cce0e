"""Agreements between all rooms: parameters, paths, names, environment variables, events; without torch or any tool."""
