"""What all rooms agree on: parameters, paths, names, environment variables, events; without torch or any tool."""
